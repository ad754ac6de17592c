"""A chair: `truing sft` and `truing reward`, whole, on fixed tokens instead of a file.

Asks: ``method`` (sft, reward), ``model`` (a folder), ``batch``, ``lengths`` (of the sequences of the data set), and any field of the recipe under ``options``.
A unit is one update with everything the method does around it; the fixed tokens stand where the method would have read and rendered a file.
"""

from __future__ import annotations

from typing import Any

from benchmarks import tokens
from benchmarks.turns import Turns, asked, resident_mib, scratch
from truing import allocator

FOREVER = 100_000  # updates: more than anybody waits for


class Lap:
    """The progress display that a method reports every step to: here, the end of a unit."""

    def __init__(self, turns: Any, found: dict[str, Any]) -> None:
        self.turns, self.found = turns, found

    def note(self, text: str) -> None:
        """Plans and warnings are for people."""

    def step(self, name: str, step: int, values: dict[str, float], total: int) -> None:
        self.turns.lap(**{key: value(values) if callable(value) else value for key, value in self.found.items()})


def options(asks: dict[str, Any]) -> dict[str, Any]:
    """What every recipe of the suite says: a learning rate that leaves the model as it is, nothing saved on the way."""
    return {"model": asks["model"], "lr": 1e-6, "schedule": "constant", "warmup": 0.0, "save_every": 10 * FOREVER, "batch_size": asks["batch"], **asks.get("options", {})}


def watched(turns: Any, module: Any) -> None:
    """Say in the facts which precision the method's backbone really has, and what memory there is once it is loaded."""
    opened = module.open_backbone

    def open_backbone(*args: Any, **more: Any) -> Any:
        backbone, source = opened(*args, **more)
        turns.facts |= {"dtype": str(backbone.dtype).removeprefix("torch."), "lora": backbone.lora is not None, "lean": backbone.lean, "loaded_mib": resident_mib()}
        return backbone, source

    module.open_backbone = open_backbone


def play(turns: Any, asks: dict[str, Any]) -> None:
    from truing.config import SFT, Reward
    from truing.methods import reward_model, sft
    from truing.models.load import load_tokenizer
    from truing.types import TokenPair, Tokens

    turns.count_optimiser_steps()
    tokenizer = load_tokenizer(asks["model"])
    method: Any = sft if asks["method"] == "sft" else reward_model
    epochs = FOREVER * asks["batch"] // len(asks["lengths"])

    def made(seed: int) -> list[Tokens]:
        ids = tokens.sequences(asks["lengths"], len(tokenizer), seed, end=tokenizer.eos_token_id)
        return [Tokens(tuple(row), (False, *[True] * (len(row) - 1))) for row in ids]

    rows: list[Any] = made(1) if method is sft else [TokenPair(*both) for both in zip(made(1), made(2), strict=True)]
    method.train_and_held = lambda *_, **__: (rows, [] if method is sft else rows[:1])
    method.epoch_order = lambda n, *_: list(range(n))  # the peer's chair takes its rows in order too, so both see the same batches
    watched(turns, method)
    read = [0]
    updated = method.Learner.update

    def update(learner: Any, items: Any, counted: Any, *args: Any, **more: Any) -> Any:
        read[0] = counted(list(items))
        return updated(learner, items, counted, *args, **more)

    method.Learner.update = update
    progress = Lap(turns, {"tokens": lambda _: read[0]})
    if method is sft:
        sft.sft(SFT(data="none", epochs=epochs, eval_share=0.0, **options(asks)), scratch() / "run", seed=0, progress=progress)
    else:
        reward_model.reward_model(Reward(data="none", epochs=epochs, **options(asks)), scratch() / "run", seed=0, progress=progress)


if __name__ == "__main__":
    allocator.settle()
    play(Turns(), asked())
