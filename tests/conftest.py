"""What all tests share: one thread a process, no hub, no display, and the same random examples on every machine."""

from __future__ import annotations

import os

# Before anything imports torch or matplotlib, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from hypothesis import settings

settings.register_profile("truing", deadline=None, derandomize=True, database=None)
settings.load_profile("truing")
