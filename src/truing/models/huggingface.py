"""What is used of transformers, imported without most of scipy.

transformers' base model imports `scipy.optimize` for losses of object detection, which take one function of it and 45 MiB that no decoder needs.
While those losses are imported, a function stands there that imports the real one when it is called; whoever imports scipy gets the whole of it, as ever.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType
from typing import Any

USER, USED, FUNCTION = "transformers.loss.loss_utils", "scipy.optimize", "linear_sum_assignment"


def _later(*given: Any, **named: Any) -> Any:
    return getattr(importlib.import_module(USED), FUNCTION)(*given, **named)


def _import_lightly() -> None:
    """Import the losses with the stand-in; where transformers wants something else (another version of it), nothing is done."""
    if USED in sys.modules or USER in sys.modules:
        return
    stand_in = ModuleType(USED)
    setattr(stand_in, FUNCTION, _later)
    sys.modules[USED] = stand_in
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module(USER)
    finally:
        if sys.modules.get(USED) is stand_in:
            del sys.modules[USED]


_import_lightly()

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase  # noqa: E402

__all__ = ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "PreTrainedModel", "PreTrainedTokenizerBase"]
