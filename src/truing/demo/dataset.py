"""The demo's data as files: what `truing sft`, `truing reward` and `truing ppo` read, and a card that says what it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from truing.demo import films, ratings
from truing.demo.ratings import Sentence
from truing.disk import write_atomic
from truing.errors import DataError

CITATION = (
    "Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text. "
    "Eighth International Conference on Weblogs and Social Media (ICWSM-14). Ann Arbor, MI."
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of the data is written. None means all there is.

    demos: demonstrations. groups: groups of compared sentences, of ``per_group`` each. prompts: for PPO. max_words: of a
    demonstration; it sets how long the policy's answers are.
    """

    demos: int | None = None
    groups: int | None = None
    per_group: int = 8
    prompts: int = 400
    heldout: int = 100
    dev: int = 60
    max_words: int = 24


def write_data(folder: Path, *, seed: int, sizes: Sizes | None = None) -> dict[str, Any]:
    """Write the real data of the demo into ``folder`` and return the card.

    demos.jsonl (SFT), prefs.jsonl (reward model), prompts.jsonl (PPO), heldout.jsonl (verdict), dev_prompts.jsonl (choices of
    size), reward_test.jsonl and dev_sentences.jsonl (sentences with their ratings, for `agreement`), data.json (the card).
    The same seed gives the same bytes; the split of the sentences does not depend on the seed.
    """
    return write_splits(folder, ratings.split(ratings.load()), seed=seed, sizes=sizes or Sizes(), source=SOURCE)


SOURCE = {
    "name": "film sentences of the VADER study with every rater's rating",
    "citation": CITATION,
    "from": "additional_resources/hutto_ICWSM_2014.tar.gz of the source distribution vaderSentiment 3.3.2",
    "licence": "MIT (vaderSentiment); sentences after Pang & Lee 2004, from reviews on rottentomatoes.com",
}


def write_splits(folder: Path, splits: ratings.Splits, *, seed: int, sizes: Sizes, source: Mapping[str, str]) -> dict[str, Any]:
    """`write_data` for any split sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = films.train_prompts(sizes.prompts)
    demos = ratings.demonstrations(splits.reward, prompts, seed=seed, n=sizes.demos, max_words=sizes.max_words)
    pairs = ratings.preference_pairs(splits.reward, seed=seed, per_group=sizes.per_group, groups=sizes.groups)
    files: dict[str, Sequence[Mapping[str, object]]] = {
        "demos.jsonl": demos,
        "prefs.jsonl": [pair.row() for pair in pairs],
        "prompts.jsonl": [_prompt_row(p) for p in prompts],
        "heldout.jsonl": [_prompt_row(p) for p in films.heldout_prompts(sizes.heldout)],
        "dev_prompts.jsonl": [_prompt_row(p) for p in films.dev_prompts(sizes.dev)],
        "reward_test.jsonl": [s.row() for s in splits.reward_test],
        "dev_sentences.jsonl": [s.row() for s in splits.dev],
    }
    for name, rows in files.items():
        write_atomic(folder / name, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    card = {
        "source": dict(source),
        "seed": seed,
        "sizes": asdict(sizes),
        "rows": {name: len(rows) for name, rows in files.items()},
        "splits": {name: {"sentences": len(part), "sha256": ratings.fingerprint(part)} for name, part in splits.named().items()},
        "scale": "ratings from -4 (extremely negative) to 4 (extremely positive)",
        "pairs_against_the_means": round(sum(p.gap < 0 for p in pairs) / len(pairs), 4),
    }
    write_atomic(folder / "data.json", (json.dumps(card, indent=1) + "\n").encode())
    return card


def _prompt_row(prompt: films.Prompt) -> dict[str, object]:
    return {"id": prompt.id, "prompt": ratings.ask(prompt)}


def read_sentences(path: Path) -> list[Sentence]:
    """Sentences with their ratings, as `write_data` wrote them. Raises DataError with file:line."""
    sentences = []
    try:
        lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    for n, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            sentences.append(Sentence(str(row["id"]), str(row["text"]), float(row["mean"]), tuple(float(v) for v in row["ratings"])))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{n}: is not a sentence with ratings: {error!r}; write the data again") from error
    return sentences
