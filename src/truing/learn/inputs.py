"""What a stage was fed, by content: a run may only go on, or count as complete, on the same data and the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from truing.assets import sha256
from truing.config import Evaluate, Frozen, Stage
from truing.data.tasks import is_task
from truing.models import device
from truing.models.roles import wants_bfloat16
from truing.rewards import expression

FILES = ("data", "prompts")
MODELS = ("model", "value_model", "before", "after")
TABLES = ("monitors", "scores")  # of reward expressions


def fingerprint(config: Frozen) -> dict[str, Any]:
    """The options as plain values, with ``inputs``: the SHA-256 of every data file and of every saved model's weights.

    Built-in names, hub ids, tasks that are made and functions have no content to hash here; they are named by the options themselves.
    Raises ConfigError for a device that this machine has not.
    """
    if isinstance(config, Stage | Evaluate):
        device.find(config.device, f"{getattr(config, 'method', 'stage')}.device")
    options = config.model_dump(mode="json")
    named = {key: options[key] for key in (*FILES, *MODELS) if isinstance(options.get(key), str)}
    rewards = {"reward": options["reward"]} if isinstance(options.get("reward"), str) else {}
    for table in TABLES:
        if isinstance(getattr(config, table, None), dict):
            rewards |= {f"{table}.{key}": value for key, value in options[table].items()}
    for key, text in rewards.items():
        named |= {key if folder == text else f"{key}: {folder}": folder for folder in sorted(expression.folders(text))}
    inputs = {key: found for key, value in named.items() if not is_task(value) and (found := _content(Path(value))) is not None}
    if isinstance(config, Stage) and config.dtype == "auto":  # another processor would choose another precision and other bits
        inputs["dtype"] = "bfloat16" if wants_bfloat16(config) else "float32"
    return {**options, "inputs": inputs} if inputs else options


def _content(path: Path) -> str | None:
    if path.is_file():
        return sha256(path)
    card, weights = path / "truing.json", path / "model.safetensors"
    if card.is_file():
        return str(json.loads(card.read_text())["weights_sha256"])
    return sha256(weights) if weights.is_file() else None
