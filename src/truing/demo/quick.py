"""A small stand-in for the demo's data that needs no download: template sentences and simulated raters.

For tests and `truing demo --quick`. It has the real data's form (single noisy ratings, four splits), not its difficulty.
The gold word list and the words of the sentences overlap without being equal, so that a policy can please the
reward model in ways that gold does not count.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from truing import seeds
from truing.demo import dataset, ratings
from truing.demo.ratings import Sentence

#: word -> what an average rater gives a sentence with it
_WORDS = {
    "wonderful": 3.0, "brilliant": 3.0, "beautiful": 2.5, "great": 2.5, "moving": 2.0, "funny": 2.0, "charming": 2.0, "clever": 1.5, "good": 1.5, "fresh": 1.0,
    "awful": -3.0, "terrible": -3.0, "boring": -2.5, "bad": -2.5, "stupid": -2.0, "dull": -2.0, "weak": -1.5, "slow": -1.5, "flat": -1.5, "stale": -1.0,
}  # fmt: skip
#: the gold list: six words of each kind that the sentences have, and some that they don't
_GOOD = frozenset({"wonderful", "brilliant", "beautiful", "great", "moving", "good", "superb", "excellent", "delightful", "perfect", "gripping", "masterly"})
_BAD = frozenset({"awful", "terrible", "boring", "bad", "dull", "weak", "dreadful", "horrible", "clumsy", "tedious", "poor", "disaster"})

_TEMPLATES = (
    "The {noun} is {word}.", "A {word} film with a {other} {noun}.", "I found the {noun} {word}.", "The {noun} was {word} and {other}.",
    "This is a {word} movie.", "What a {word} {noun}.", "It has a {word} {noun}.", "The {noun} feels {word} to me.",
)  # fmt: skip
_NOUNS = ("plot", "cast", "script", "music", "ending", "story", "camera work", "dialogue", "pace", "hero")


def sentences(n: int = 960) -> list[Sentence]:
    """``n`` different sentences, always the same, each with 15 raters: the words' mean plus noise, rounded, within -4..4."""
    rng = random.Random(seeds.stream(0, "demo-quick-sentences"))
    words = list(_WORDS)
    made: dict[str, float] = {}
    while len(made) < n:
        word = rng.choice(words)
        other = rng.choice([w for w in words if w != word and _WORDS[w] * _WORDS[word] > 0])
        template = rng.choice(_TEMPLATES)
        text = template.format(noun=rng.choice(_NOUNS), word=word, other=other)
        made[text] = (_WORDS[word] + _WORDS[other]) / 2 if "{other}" in template else _WORDS[word]
    out = []
    for k, (text, mean) in enumerate(made.items()):
        raters = tuple(float(min(4, max(-4, round(rng.gauss(mean, 1.2))))) for _ in range(15))
        out.append(Sentence(f"quick-{k:03d}", text, sum(raters) / len(raters), raters))
    return out


def gold_score(text: str) -> float:
    """4 * (different good words - different bad words) / (3 or the number of words, whichever is more); 0 for no text."""
    words = re.findall(r"[a-z]+", text.lower())
    seen = set(words)
    return 4.0 * (len(seen & _GOOD) - len(seen & _BAD)) / max(3, len(words))


def write_quick_data(folder: Path, seed: int) -> dict[str, Any]:
    """The files of `dataset.write_data`, small and made up; score them with ``truing.demo.gold:wordlist``. No network."""
    sizes = dataset.Sizes(demos=None, groups=None, per_group=8, prompts=48, heldout=24, dev=12)
    source = {"name": "template sentences with simulated raters", "citation": "none: made by truing.demo.quick", "licence": "Apache-2.0"}
    return dataset.write_splits(folder, _split(sentences()), seed=seed, sizes=sizes, source=source)


def _split(items: list[Sentence]) -> ratings.Splits:
    """Templates repeat word sequences on purpose, so the near-duplicate split would put all into one; every fourth is held out."""
    return ratings.Splits(
        reward=tuple(s for k, s in enumerate(items) if k % 4 in (0, 1)),
        reward_test=tuple(s for k, s in enumerate(items) if k % 4 == 2),
        gold=(),
        dev=tuple(s for k, s in enumerate(items) if k % 4 == 3),
    )
