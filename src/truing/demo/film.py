"""`truing demo`: the classic of the field on real human judgements. A language model learns to write positive film reviews.

Three ways in: the real thing (SmolLM2-135M and 10,605 sentences with every rater's rating), the quick one (a tiny
model, template sentences, no download), and your own preference pairs. Each writes its data, runs one recipe, and adds
how well the reward model agrees with people. Sizes were chosen on the third split of the sentences and the dev prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from truing.assets import sha256
from truing.config import Recipe, make_recipe
from truing.disk import write_atomic
from truing.errors import DataError
from truing.pipeline import run_recipe

KL_TARGET = 2.0  # nats a sequence: at 4 the training rollouts had shrunk to half their length, at 2 they keep three quarters
COST = {  # measured seconds of the stages, for the time left of the whole
    "film": {"sft": 125, "reward": 185, "ppo": 330, "evaluate": 70},
    "quick": {"sft": 20, "reward": 10, "ppo": 15, "evaluate": 8},
    "own": {"sft": 125, "reward": 185, "judge": 185, "ppo": 400, "evaluate": 90},
}
ADAPTER = {"rank": 16, "alpha": 32.0, "layers": 8}


def run_demo(quick: bool = False, seed: int = 0, data: str | Path | None = None, name: str | None = None, runs: str | Path = "runs", progress: Any = None) -> Path:
    """Run the demo, or go on with it; returns the pipeline's folder, ``runs/NAME``.

    Args:
        quick: a tiny model on template sentences: under two minutes, no download.
        data: your own preference pairs (any format that `truing data check` accepts); replaces the film data.
        name: of the folder; by default film, quick or the data's name, with the seed when it is not 0.
    """
    if quick and data is not None:
        raise DataError("--quick runs on its own made-up sentences; leave out --quick or --data")
    kind = "quick" if quick else "own" if data is not None else "film"
    title = name or (kind if data is None else "own-" + re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data).stem)) + (f"-{seed}" if seed else "")
    folder = Path(runs) / title
    recipe = {"quick": quick_recipe, "own": own_recipe, "film": film_recipe}[kind](title, seed, folder)  # refuses a name that is no folder's
    write = {"quick": _write_quick, "own": _write_own(data), "film": _write_film}[kind]
    _once(folder / "data", {"kind": kind, "seed": seed, "source": None if data is None else sha256(_file(data))}, write, progress)
    if progress:
        progress.expect(COST[kind])
    run_recipe(recipe, Path(runs), progress)
    if kind != "own":
        _add_agreement(folder, gold="truing.demo.gold:judge" if kind == "film" else "truing.demo.gold:wordlist")
    return folder


# -- recipes -------------------------------------------------------------------------------------------------------------
def film_recipe(name: str, seed: int, folder: Path) -> Recipe:
    """The real demo: SFT on sentences of all sentiments, reward model on single raters' comparisons, PPO, verdict."""
    data = folder / "data"
    common = {"lora": ADAPTER, "micro_tokens": 2048, "max_length": 256}
    return make_recipe({
        "name": name, "seed": seed,
        "stages": {
            "sft": {**common, "model": "smollm2-135m", "data": str(data / "demos.jsonl"), "lr": 5e-4, "batch_size": 32},
            "reward": {**common, "model": "sft", "data": str(data / "prefs.jsonl"), "lr": 3e-4, "batch_size": 64},
            "ppo": {
                **common, "model": "sft", "reward": "reward", "prompts": str(data / "prompts.jsonl"), "steps": 20, "batch_size": 64, "minibatches": 4, "epochs": 2,
                "lr": 3e-4, "lam": 1.0, "max_new_tokens": 44, "temperature": 0.7, "kl": {"coef": 0.6, "target": KL_TARGET, "horizon": 500}, "save_every": 4,
                "monitors": {"gold": "truing.demo.gold:judge", "vader": "truing.demo.gold:lexicon"},
            },
            "evaluate": {
                "before": "sft", "after": "ppo", "prompts": str(data / "heldout.jsonl"), "samples": 4, "max_new_tokens": 44, "temperature": 0.7, "kl_target": KL_TARGET,
                "scores": {"gold": "truing.demo.gold:judge", "vader": "truing.demo.gold:lexicon", "proxy": "reward"}, "verdict": "gold",
            },
        },
    })  # fmt: skip


def quick_recipe(name: str, seed: int, folder: Path) -> Recipe:
    """The same stages on a tiny model: SFT trains every weight from scratch, the other stages adapt it."""
    data = folder / "data"
    adapted = {"lora": {"rank": 8, "alpha": 16.0}, "max_length": 96}
    return make_recipe({
        "name": name, "seed": seed,
        "stages": {
            "sft": {"model": str(data / "base"), "lora": None, "data": str(data / "demos.jsonl"), "lr": 3e-3, "batch_size": 32, "epochs": 24, "warmup": 0.02, "max_length": 96, "eval_share": 0.1, "save_every": 40},
            "reward": {**adapted, "model": "sft", "data": str(data / "prefs.jsonl"), "lr": 3e-3, "batch_size": 64, "epochs": 6},
            "ppo": {
                **adapted, "model": "sft", "reward": "reward", "prompts": str(data / "prompts.jsonl"), "steps": 20, "batch_size": 64, "minibatches": 2, "epochs": 2,
                "lr": 2e-3, "lam": 1.0, "max_new_tokens": 20, "temperature": 0.7, "kl": {"coef": 0.3, "target": 4.0, "horizon": 500}, "save_every": 5, "monitors": {"gold": "truing.demo.gold:wordlist"},
            },
            "evaluate": {
                "before": "sft", "after": "ppo", "prompts": str(data / "heldout.jsonl"), "samples": 8, "max_new_tokens": 20, "temperature": 0.7, "kl_target": 4.0,
                "scores": {"gold": "truing.demo.gold:wordlist", "proxy": "reward"}, "verdict": "gold",
            },
        },
    })  # fmt: skip


def own_recipe(name: str, seed: int, folder: Path) -> Recipe:
    """Your pairs: the chosen answers teach the style, one half of the pairs the reward model, the other half the judge."""
    data = folder / "data"
    common = {"lora": ADAPTER, "micro_tokens": 2048, "max_length": 512}
    return make_recipe({
        "name": name, "seed": seed,
        "stages": {
            "sft": {**common, "model": "smollm2-135m", "data": str(data / "demos.jsonl"), "lr": 5e-4},
            "reward": {**common, "model": "sft", "data": str(data / "prefs.jsonl"), "lr": 3e-4},
            "judge": {**common, "method": "reward", "model": "sft", "data": str(data / "judge.jsonl"), "lr": 3e-4},
            "ppo": {
                **common, "model": "sft", "reward": "reward", "monitors": {"gold": "judge"}, "prompts": str(data / "prompts.jsonl"), "steps": 20, "batch_size": 64, "epochs": 2,
                "lr": 3e-4, "lam": 1.0, "max_new_tokens": 96, "temperature": 0.7, "kl": {"coef": 0.6, "target": KL_TARGET, "horizon": 500}, "save_every": 4,
            },
            "evaluate": {
                "before": "sft", "after": "ppo", "prompts": str(data / "heldout.jsonl"), "max_new_tokens": 96, "temperature": 0.7, "kl_target": KL_TARGET,
                "scores": {"gold": "judge", "proxy": "reward"}, "verdict": "gold",
            },
        },
    })  # fmt: skip


# -- data ----------------------------------------------------------------------------------------------------------------
def _once(folder: Path, made_of: dict[str, Any], write: Callable[[Path, int], None], progress: Any) -> None:
    marker = folder / "complete.json"
    if marker.exists():
        if json.loads(marker.read_text()) != made_of:
            raise DataError(f"{folder}: was made from other data or another seed; give this run another --name, or delete {folder.parent}")
        return
    if progress:
        progress.note("writing the data")
    write(folder, made_of["seed"])
    write_atomic(marker, json.dumps(made_of).encode() + b"\n")


def _file(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise DataError(f"--data {path}: no such file; give preference pairs in JSONL, JSON, CSV or Parquet")
    return Path(path)


def _write_film(folder: Path, seed: int) -> None:
    from truing.demo.dataset import write_data
    from truing.demo.gold import judge

    write_data(folder, seed=seed)
    judge([""], ["A film."])  # fits the judge once and keeps it in the cache


def _write_quick(folder: Path, seed: int) -> None:
    from truing.demo.quick import write_quick_data
    from truing.demo.tiny import write_tiny_model

    write_quick_data(folder, seed)
    texts = [m["content"] for line in (folder / "demos.jsonl").read_text().splitlines() for m in json.loads(line)["messages"]]
    write_tiny_model(folder / "base", texts, seed=seed)


def _write_own(data: str | Path | None) -> Callable[[Path, int], None]:
    def write(folder: Path, seed: int) -> None:
        from truing.data.prepare import read_records
        from truing.seeds import permutation

        records = read_records(str(data), "preference", "error", folder)
        prompts = list(dict.fromkeys(r.prompt for r in records))
        if len(prompts) < 20:
            raise DataError(f"{data}: {len(prompts)} different prompts; the demo holds a tenth out and halves the rest, so it needs 20 or more")
        order = [prompts[i] for i in permutation(len(prompts), seed, "own-data")]
        held = max(2, len(order) // 10)
        half = held + (len(order) - held) // 2
        part = {p: ("heldout" if i < held else "prefs" if i < half else "judge") for i, p in enumerate(order)}
        rows: dict[str, list[Any]] = {"heldout": [], "prefs": [], "judge": [], "demos": [], "prompts": []}
        turns = lambda messages: [{"role": m.role, "content": m.content} for m in messages]  # noqa: E731
        for r in records:
            if part[r.prompt] != "heldout":
                margin = {} if r.margin is None else {"margin": r.margin}
                rows[part[r.prompt]].append({"id": r.id, "prompt": turns(r.prompt), "chosen": turns(r.chosen), "rejected": turns(r.rejected), **margin})
            if part[r.prompt] == "prefs":
                rows["demos"].append({"id": r.id, "messages": turns(r.prompt + r.chosen)})
        rows["heldout"] = [{"id": f"heldout-{i}", "prompt": turns(p)} for i, p in enumerate(order[:held])]
        rows["prompts"] = [{"id": f"train-{i}", "prompt": turns(p)} for i, p in enumerate(order[held:half])]
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in rows.items():
            write_atomic(folder / f"{name}.jsonl", b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))

    return write


# -- agreement with people -----------------------------------------------------------------------------------------------
def _add_agreement(folder: Path, gold: str) -> None:
    """Put the reward model's accuracy on held-out sentences, beside people's and the judge's, into ``evaluation.json``."""
    path = folder / "evaluate" / "evaluation.json"
    result = json.loads(path.read_text())
    if "reward_accuracy" not in result:
        result["reward_accuracy"] = agreement(folder / "reward" / "model", folder / "data" / "reward_test.jsonl", gold)
        write_atomic(path, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")


def agreement(model: Path, sentences: Path, gold: str) -> dict[str, Any]:
    """Pairwise accuracy by bucket of the difference of mean human ratings: reward model, people, gold judge."""
    from truing.demo.agreement import accuracy_table, heldout_pairs
    from truing.demo.dataset import read_sentences
    from truing.rewards.scorers import find_scorer

    judge = find_scorer(gold)
    table = accuracy_table(
        {"reward_model": sentence_scorer(model), "gold": lambda texts: [s.value for s in judge(_texts_only(texts))]}, heldout_pairs(read_sentences(sentences))
    )
    rows = [
        {"low": r.low, "high": r.high, "pairs": r.pairs, "human": r.ceiling, **{k: v[0] for k, v in r.accuracy.items()}, "interval": {k: v[1:] for k, v in r.accuracy.items()}}
        for r in table.rows
    ]
    return {"overall": rows[-1].get("reward_model"), "ece": table.calibration["reward_model"], "buckets": rows[:-1], "wide": rows[-1]}


def sentence_scorer(model: Path) -> Callable[[list[str]], Sequence[float]]:
    """The reward model as a function of sentences: each is scored as the answer to the same neutral request."""
    from truing.data.batches import by_token_budget
    from truing.data.template import Renderer
    from truing.demo.films import train_prompts
    from truing.demo.ratings import answer, ask
    from truing.models.pack import Pack
    from truing.models.roles import open_role, tokenizer_of
    from truing.rewards.scorers import Learned
    from truing.types import Demonstration, Message

    renderer = Renderer(tokenizer_of(str(model)))
    question = tuple(Message(**m) for m in ask(train_prompts()[0]))
    scorer = Learned(open_role(str(model), head=True))

    def score(texts: list[str]) -> list[float]:
        ids = [renderer.demonstration(Demonstration((*question, Message(**answer(t))), str(i), "sentence"), 256).ids for i, t in enumerate(texts)]
        out: list[float] = []
        for part in by_token_budget([len(i) for i in ids], 2048):
            out += scorer.role.score(Pack([ids[i] for i in part])).tolist()
        return out

    return score


def _texts_only(texts: list[str]) -> Any:
    from truing.models.pack import Pack
    from truing.rewards.scorers import Completions

    return Completions([""] * len(texts), list(texts), Pack([[0]] * len(texts)), [0] * len(texts), [True] * len(texts))
