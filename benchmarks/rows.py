"""The rows: which chairs sit at the table for a piece of work, and what is read off their turns.

Every row is a function of the settings and a model's name that returns its results; `ROWS` lists them with the models they are measured on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import growth, roofline, startup, tokens
from benchmarks.models import folder_of, reward_of
from benchmarks.results import Result, result
from benchmarks.side_by_side import KEEP, Chair, ChairError, Played, Turn, take_turns


@dataclass(frozen=True)
class Settings:
    """How a row is measured.

    Attributes:
        peers: the interpreter of the peers' virtual environment, and the folder of the last trl that has PPO.
        rounds, seconds: quiet rounds a row, and the most time for them.
        beside: the one peer's setting to measure; None = all of a row.
        bfloat16: what the bfloat16 rows of SFT, reward model and GRPO train: every weight, as their peer does, or LoRA adapters.
    """

    peers: str
    trl_ppo: str
    rounds: int = 7
    seconds: float = 600.0
    bfloat16: str = "full"
    beside: str | None = None

    def peer(self, name: str, module: str, **asks: Any) -> Chair:
        return Chair(name, module, asks, peer=True, python=self.peers)

    def play(self, row: str, model: str, chairs: Sequence[Chair], warmup: int = 0) -> Played:
        """The chairs' turns, those of peers that were not asked for left out."""
        wanted = [c for c in chairs if not c.peer or self.beside in (None, c.name)]
        return take_turns(wanted, KEEP / "logs" / f"{row}-{model}", rounds=self.rounds, warmup=warmup, seconds=self.seconds)

    def precise(self, dtype: str) -> dict[str, Any]:
        """The recipe's options for training in a precision."""
        return {"dtype": dtype, **({} if dtype == "bfloat16" and self.bfloat16 == "lora" else {"lora": None})}


BATCH, PROMPT, NEW = 64, 32, 64
STOPS = 64  # of 4,096 ids
PRECISIONS = ("float32", "bfloat16")
TRL: dict[str, dict[str, Any]] = {"TRL": {"parts": 1}, "TRL, micro-batches of a quarter": {"parts": 4}, "TRL, micro-batches of a quarter, bfloat16": {"parts": 4, "dtype": "bfloat16"}}
Measures = Callable[[Turn], float]


def compare(row: str, model: str, work: str, played: Played, unit: str, figure: Measures, *, exact: bool = True) -> list[Result]:
    """Speed and peak memory of every Truing chair beside every peer's; a peer in bfloat16 has only Truing's bfloat16 beside it.

    Raises ChairError when they did not make the same number of optimiser steps, or (``exact``) did not read the same number of tokens.
    """
    for name in ("optimiser_steps", *(["tokens"] if exact else [])):
        seen = {t.chair.name: t.median(name) for t in played.turns if name in t.rounds[0]}
        if len(set(seen.values())) > 1:
            raise ChairError(f"{row}: the chairs did not do the same work: {name} a round were {seen}")
    found = []
    for theirs in (t for t in played.turns if t.chair.peer):
        for ours in (t for t in played.turns if not t.chair.peer and t.chair.module != "roofline"):
            if theirs.chair.asks.get("dtype") == "bfloat16" and ours.facts["dtype"] != "bfloat16":
                continue
            for measure, what, one in (("speed", unit, figure), ("memory", "MiB", lambda t: t.peak_mib)):
                found.append(
                    result(row, model, ours.chair.name, work, measure, what, one(ours), theirs.chair.name, one(theirs), **context(ours, theirs))
                )  # fmt: skip
    return found


def context(*turns: Turn) -> dict[str, Any]:
    """What a record says of how it came about; paths are no business of a reader's."""
    sides = {("peer" if t.chair.peer else "truing"): t for t in turns}
    plain = lambda asks: {k: v for k, v in asks.items() if k not in ("model", "reward", "trl", "lengths")}  # noqa: E731
    facts = lambda t: {k: v for k, v in t.facts.items() if k in ("dtype", "lora", "lean", "attention")}  # noqa: E731
    return {
        "rounds": min(len(t.rounds) for t in turns), "quiet": all(t.quiet for t in turns), "versions": {side: t.facts["versions"] for side, t in sides.items()},
        "settings": {
            "threads": turns[0].chair.threads, "optimiser_steps_a_round": turns[0].median("optimiser_steps"),
            **{side: {**plain(t.chair.asks), **facts(t), "others": round(t.median("others"), 3)} for side, t in sides.items()},
        },
    }  # fmt: skip


def seconds(turn: Turn) -> float:
    return turn.median("seconds")


# -- generation -------------------------------------------------------------------------------------------------------------
def decode(settings: Settings, model: str) -> list[Result]:
    """Sequences of one length."""
    shared = {"model": str(folder_of(model)), "lengths": [NEW] * BATCH, "prompt": PROMPT, "slots": BATCH}
    chairs = [
        *(settings.peer(f"transformers generate, {how}", "peer_decode", how=how.split()[0], **shared) for how in ("dynamic cache", "static cache", "continuous batching")),
        settings.peer("transformers generate, dynamic cache, bfloat16", "peer_decode", how="dynamic", dtype="bfloat16", **shared),
        *(Chair(dtype, "truing_decode", {**shared, "dtype": dtype}) for dtype in PRECISIONS),
        Chair("bfloat16, with an adapter", "truing_decode", {**shared, "dtype": "bfloat16", "lora": True}),
        Chair("products", "roofline", {}),
    ]
    work = f"decode {BATCH} x {NEW} new tokens, prompt {PROMPT}"
    played = settings.play("decode", model, chairs)
    found = compare("decode", model, work, played, "tokens/s", Turn.rate)
    operations = roofline.generation(json.loads((folder_of(model) / "config.json").read_text()), PROMPT, [NEW] * BATCH)
    for dtype in PRECISIONS:
        share = 100 * operations / played["products"].median(dtype) / played[dtype].median("seconds")
        found.append(result("decode", model, dtype, work, "roofline", "% of the time that its matrix products need", share, **context(played[dtype])))
    return found


def decode_spread(settings: Settings, model: str) -> list[Result]:
    """Sequences of very different lengths, which nobody knows before: they end by themselves, at one of `STOPS` ids or at 256 tokens.

    `further` is what that adds to the advantage at equal lengths, which is measured in the same turns. (With a limit for each sequence instead, whoever
    sorts by it gains what no real rollout would give.)
    """
    shared = {"model": str(folder_of(model)), "prompt": PROMPT, "slots": BATCH}
    spread, equal = {**shared, "lengths": [256] * (4 * BATCH), "stops": STOPS}, {**shared, "lengths": [NEW] * BATCH}
    chairs = [
        *(settings.peer(f"transformers generate, {how}", "peer_decode", how=how.split()[0], **spread) for how in ("dynamic cache", "continuous batching")),
        *(Chair(dtype, "truing_decode", {**spread, "dtype": dtype}) for dtype in PRECISIONS),
    ]
    reference = [settings.peer("transformers generate, equal lengths", "peer_decode", how="dynamic", **equal), *(Chair(f"{d}, equal lengths", "truing_decode", {**equal, "dtype": d}) for d in PRECISIONS)]  # fmt: skip
    work = f"decode {4 * BATCH} sequences that end by themselves, 1 to 256 new tokens (geometric, mean about {NEW}), {BATCH} at once, prompt {PROMPT}"
    played = settings.play("decode-spread", model, [*chairs, *reference])
    found = compare("decode-spread", model, work, Played([t for t in played.turns if t.chair in chairs]), "tokens/s", Turn.rate, exact=False)
    peer = chairs[0].name
    for dtype in PRECISIONS if settings.beside is None else ():
        at_spread, at_equal = (played[ours].rate() / played[theirs].rate() for ours, theirs in ((dtype, peer), (f"{dtype}, equal lengths", reference[0].name)))
        found.append(result("decode-spread", model, dtype, work, "further", f"x the ratio at equal lengths ({at_equal:.2f}x)", at_spread / at_equal, **context(played[dtype])))
    return found


# -- updates ------------------------------------------------------------------------------------------------------------------
def _updates(row: str, method: str, work: str, lengths: Sequence[int], *, longest: int, batch: int = 8, packed: bool = False, ours: int | None = None) -> Callable[[Settings, str], list[Result]]:
    """A row of SFT or the reward model; ``ours`` is Truing's batch where the peer's rows hold several sequences."""

    def play(settings: Settings, model: str) -> list[Result]:
        shared = {"method": method, "model": str(folder_of(model)), "lengths": list(lengths)}
        peer = {**shared, "batch": batch, "packed": packed, "longest": longest}
        chairs = [
            *(settings.peer(name, "peer_training", **peer, **more) for name, more in TRL.items()),
            *(Chair(dtype, "truing_training", {**shared, "batch": ours or batch, "options": settings.precise(dtype)}) for dtype in PRECISIONS),
        ]  # fmt: skip
        played = settings.play(row, model, chairs, warmup=12)
        _same_precision(played)
        return compare(row, model, work, played, "tokens/s", Turn.rate, exact=len(set(lengths)) == 1)

    return play


def _same_precision(played: Played) -> None:
    for turn in played.turns:
        if turn.chair.name in PRECISIONS and turn.facts["dtype"] != turn.chair.name:
            raise ChairError(f"{turn.chair.name} was asked for and {turn.facts['dtype']} was used; try --bfloat16 lora")


MIXED = tokens.log_uniform(1024, 8, 127, seed=4)
A_PACK = round(8 * 128 / (sum(MIXED) / len(MIXED)))  # sequences that fill eight rows of 128


# -- rollouts -----------------------------------------------------------------------------------------------------------------
def ppo(settings: Settings, model: str) -> list[Result]:
    """Four models; on the peer's side and with float32 each of the whole size, by default four roles on one backbone."""
    shared = {"method": "ppo", "model": str(folder_of(model)), "batch": BATCH, "prompt": PROMPT, "new": NEW, "epochs": 4}
    whole = {"dtype": "float32", "lora": None}
    chairs = [
        *(settings.peer(name, "peer_rollouts", **shared, **more, trl=settings.trl_ppo) for name, more in TRL.items()),
        Chair("float32, every weight", "truing_rollouts", {**shared, "reward": str(reward_of(model, lora=False)), "options": whole}),
        Chair("default", "truing_rollouts", {**shared, "reward": str(reward_of(model, lora=True))}),
    ]
    played = settings.play("ppo", model, chairs)
    return compare("ppo", model, f"PPO step, {BATCH} x ({PROMPT} + {NEW}) tokens, 4 epochs", played, "s a step", seconds)


def grpo(settings: Settings, model: str) -> list[Result]:
    shared = {"method": "grpo", "model": str(folder_of(model)), "batch": BATCH, "group": 8, "prompt": PROMPT, "new": NEW}
    chairs = [
        *(settings.peer(name, "peer_rollouts", **shared, **more) for name, more in TRL.items()),
        *(Chair(dtype, "truing_rollouts", {**shared, "reward": "benchmarks.tokens:sevens", "options": settings.precise(dtype)}) for dtype in PRECISIONS),
    ]
    played = settings.play("grpo", model, chairs)
    _same_precision(played)
    return compare("grpo", model, f"GRPO step, 8 x 8 completions, {PROMPT} + {NEW} tokens, no penalty", played, "s a step", seconds)


# -- others -------------------------------------------------------------------------------------------------------------------
def start_up(settings: Settings, model: str) -> list[Result]:
    return startup.measure(settings.peers, settings.trl_ppo, settings.rounds)


def grow(settings: Settings, model: str) -> list[Result]:
    return growth.measure(model, settings.rounds, settings.seconds)


def cartpole(settings: Settings, model: str) -> list[Result]:
    from benchmarks import classic

    return classic.results(seeds=3)


SMALL = ("small",)
ROWS: dict[str, tuple[Callable[[Settings, str], list[Result]], tuple[str, ...]]] = {
    "decode": (decode, ("small", "medium", "smollm2-135m")),
    "decode-spread": (decode_spread, SMALL),
    "ppo": (ppo, SMALL),
    "grpo": (grpo, SMALL),
    "sft": (_updates("sft", "sft", "SFT, 8 x 128 tokens", [128] * 256, longest=128), SMALL),
    "sft-padded": (_updates("sft-padded", "sft", "SFT, 8 sequences of 8 to 127 tokens (log-uniform)", MIXED, longest=128), SMALL),
    "sft-packed": (_updates("sft-packed", "sft", f"SFT, the same, {A_PACK} sequences an update; the peer packs them into 8 rows of 128", MIXED, longest=128, packed=True, ours=A_PACK), SMALL),
    "reward": (_updates("reward", "reward", "reward model, 8 pairs x 128 tokens", [128] * 256, longest=128), SMALL),
    "reward-mixed": (_updates("reward-mixed", "reward", "reward model, 8 pairs of 8 to 127 tokens (log-uniform)", MIXED, longest=128), SMALL),
    "start-up": (start_up, ("tiny",)),
    "growth": (grow, SMALL),
    "cartpole": (cartpole, ("networks",)),
}  # fmt: skip
