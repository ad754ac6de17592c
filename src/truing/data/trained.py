"""What must hold of a whole set of sequences: something is trained, and stopping is part of it."""

from __future__ import annotations

from collections.abc import Sequence

from truing.data.problems import BadRow
from truing.types import Tokens


def require_trained(batch: Sequence[Tokens], source: str = "") -> int:
    """How many tokens of a batch are trained. Raises DataError when none is: its loss would be a silent 0 or NaN."""
    total = sum(sum(t.trained) for t in batch)
    if total == 0:
        place = source or (batch[0].id if batch else "batch")
        raise BadRow("no_trained_tokens", f"none of the {len(batch)} sequences of this batch has a trained token, so it has no loss; raise max_length or drop them", place)
    return total


def require_stop(tokens: Sequence[Tokens], stop_ids: Sequence[int], source: str = "data") -> int:
    """How many sequences train a stop token. Raises DataError when none does: a model trained on them unlearns to stop."""
    stops = frozenset(stop_ids)
    count = sum(any(i in stops and on for i, on in zip(t.ids, t.trained, strict=True)) for t in tokens)
    if count == 0:
        message = f"in none of the {len(tokens)} sequences is the end-of-turn token trained (all are cut off), so the model would never stop; raise max_length"
        raise BadRow("eos_never_trained", message, source)
    return count
