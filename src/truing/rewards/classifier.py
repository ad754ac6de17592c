"""Any transformers ``*ForSequenceClassification`` model with one output, as a reward model.

safetensors only, no remote code, frozen, in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from truing.data.batches import by_token_budget
from truing.errors import ModelError
from truing.models.load import locate
from truing.rewards.completions import Completions, finite
from truing.rewards.retokenise import Retokeniser, Tokens, check_length
from truing.types import Score

PART = 8192  # tokens scored at once


@dataclass(frozen=True)
class Classifier:
    """Scores the sampled tokens when it shares the policy's tokenizer (``retokenise`` is None), else the text in its own."""

    model: Any
    name: str
    special: frozenset[int]
    retokenise: Retokeniser | None = None

    @torch.no_grad()
    def __call__(self, batch: Completions) -> list[Score]:
        if self.retokenise is not None:
            tokens = self.retokenise(batch)
        else:
            tokens = [Tokens(ids.tolist(), [0] * len(ids)) for ids in batch.pack.ids_N.split(batch.pack.lengths)]
        lengths = [len(t.ids) for t in tokens]
        check_length(lengths, getattr(self.model.config, "max_position_embeddings", None), self.name)
        order = sorted(range(len(tokens)), key=lambda i: lengths[i])  # a part of like lengths holds little padding
        values = [0.0] * len(tokens)
        for part in by_token_budget([lengths[i] for i in order], PART):
            rows = [order[p] for p in part]
            for row, value in zip(rows, self._scores([tokens[r] for r in rows]), strict=True):
                values[row] = value
        return [finite(v, self.name) for v in values]

    def _scores(self, tokens: Sequence[Tokens]) -> list[float]:
        pad = self._padding(tokens)
        lay = lambda rows, fill: torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=fill).to(self.model.device)  # noqa: E731
        given = {"input_ids": lay([t.ids for t in tokens], pad), "attention_mask": lay([[1] * len(t.ids) for t in tokens], 0)}
        if (getattr(self.model.config, "type_vocab_size", 0) or 0) > 1:
            given["token_type_ids"] = lay([t.kinds for t in tokens], 0)
        self.model.config.get_text_config().pad_token_id = pad
        logits: Tensor = self.model(**given).logits
        return [float(v) for v in logits.float().squeeze(-1).tolist()]

    def _padding(self, tokens: Sequence[Tokens]) -> int:
        """An id that no sequence of the batch ends with. Decoders read the last token that is not the padding id: were it the
        end-of-turn token, as in many tokenizers, they would read the token before the end."""
        taken = self.special | {t.ids[-1] for t in tokens}
        return next(i for i in range(len(taken) + 1) if i not in taken)


def architecture(name: str) -> str | None:
    """The first of the architectures that a model's config names, or None without a config. Raises ModelError for a missing model."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(locate(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"reward {name!r} cannot be found: {str(error).strip().splitlines()[0][:200]}; give a folder, a reachable hub id, module:function or an address") from error
    return next(iter(getattr(config, "architectures", None) or []), None)


def is_classifier(name: str) -> bool:
    """Whether a name stands for a classifier rather than for a folder of `truing reward`."""
    if (Path(name) / "truing.json").exists():
        return False
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        return False
    return (architecture(name) or "").endswith("ForSequenceClassification")


def load_classifier(name: str) -> Any:
    """The model behind a name. Raises ModelError when it cannot be loaded, is not in safetensors, or has not exactly one output."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    where = locate(name)
    labels = AutoConfig.from_pretrained(where, trust_remote_code=False).num_labels
    if labels != 1:
        raise ModelError(f"reward {name!r} is a classifier of {labels} classes; a reward is one number, so give a model with num_labels=1 (or a function that picks a class: module:function)")
    try:
        model = AutoModelForSequenceClassification.from_pretrained(where, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"reward {name!r} cannot be loaded: {str(error).strip().splitlines()[0][:300]}") from error
    return model.eval().requires_grad_(False)
