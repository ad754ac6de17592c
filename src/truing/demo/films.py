"""The prompts of the demo: requests for one sentence about an aspect of a film, none of which asks for a sentiment.

Three sets that never share a wording nor an (aspect, kind of film) combination: `train_prompts` for SFT and PPO,
`dev_prompts` for every choice of size, `heldout_prompts` for the verdict alone. They are made from tables, so they are
the same on every machine and for every seed.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from truing.errors import DataError

SYSTEM = "You write film reviews."

#: aspect -> words that show that a sentence speaks of it (used to pair demonstrations with requests)
ASPECTS: dict[str, str] = {
    "acting": r"act(or|ors|ress|resses|ing|ed)|cast|performances?|performers?|plays",
    "plot": r"plots?|story|stories|storyline|narrative",
    "pacing": r"pac(e|ed|ing)|slow|minutes|hours?|running time|length",
    "camera work": r"camera|cinematograph\w*|shots?|photograph\w*",
    "music": r"music|musical|score|soundtrack|songs?",
    "ending": r"end|ends|ending|climax|finale|final",
    "dialogue": r"dialogue|lines|talk\w*|words",
    "direction": r"direct(s|or|ors|ed|ing|ion)|filmmak\w+",
    "script": r"scripts?|screenplay|writ(es|er|ers|ing|ten)",
    "humor": r"humor\w*|funny|funniest|laugh\w*|jokes?|comic|comed\w+",
    "characters": r"characters?|hero|heroine|heroes|protagonist",
    "editing": r"edit\w*|cuts?|scenes?",
    "opening": r"opening|opens|begin\w*|start\w*|first",
    "special effects": r"effects|stunts?|action|animat\w+|spectacle",
    "setting": r"setting|world|city|place|landscapes?|country|period|town",
    "emotion": r"emotion\w*|heart\w*|moving|moved|feel\w*|touching",
    "themes": r"themes?|ideas?|message|subject|meditation|explor\w+",
    "look": r"visual\w*|look|looks|images?|imagery|style|stylish|design",
    "suspense": r"suspense\w*|tension|tense|thrill\w*|mystery|twists?|scar(e|es|y)",
    "originality": r"original\w*|fresh|new|familiar|formula\w*|cliche\w*|imagin\w+",
}
_SPOKEN = {"humor": "sense of humor", "emotion": "emotional side", "look": "visual style"}

KINDS = (
    "this film", "a family film", "a road movie", "a small documentary", "a courtroom drama", "a spy thriller", "a period drama", "a teenage comedy",
    "an animated feature", "a science fiction film", "a foreign film", "a musical", "a western", "a sports movie", "a detective film", "a debut feature",
    "a sequel", "an independent film",
)  # fmt: skip

_TRAIN_FRAMES = (
    "Write one sentence about the {aspect} of {film}.",
    "In one sentence, review the {aspect} of {film}.",
    "Give me a single sentence on the {aspect} in {film}.",
    "What did you think of the {aspect} in {film}? One sentence.",
    "Describe the {aspect} of {film} in one sentence.",
    "One sentence, please: the {aspect} of {film}.",
    "Comment in one sentence on the {aspect} of {film}.",
    "Write a short review of {film}: one sentence on its {aspect}.",
    "How was the {aspect} of {film}? Answer in one sentence.",
    "Sum up the {aspect} of {film} in one sentence.",
    "You just saw {film}. Write a sentence about the {aspect}.",
    "For a newspaper, write one sentence on the {aspect} of {film}.",
    "Say something about the {aspect} of {film} in one sentence.",
    "Your readers ask about the {aspect} of {film}. Reply in one sentence.",
)
_DEV_FRAMES = (
    "Assess the {aspect} of {film}, using exactly one sentence.",
    "I need one line of commentary about the {aspect} of {film}.",
    "Tell us, in a sentence, about {film} and its {aspect}.",
    "A reader wonders about the {aspect} of {film}: respond with one sentence.",
)
_HELDOUT_FRAMES = (
    "Your verdict on the {aspect} of {film}, in one sentence?",
    "Put your view of {film} and its {aspect} into one sentence.",
    "Compose a one-sentence review of {film}, focusing on the {aspect}.",
    "Think back to {film}; what about the {aspect}? One sentence.",
    "With {film} in mind, judge the {aspect} in just one sentence.",
    "Draft one sentence for a film magazine covering the {aspect} of {film}.",
    "A colleague has not seen {film}. Explain its {aspect} in one sentence.",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request. ``aspect`` is a key of `ASPECTS`; ``combination`` is the aspect and the kind of film."""

    id: str
    text: str
    aspect: str
    film: str

    @property
    def combination(self) -> tuple[str, str]:
        return self.aspect, self.film


@functools.cache
def _make(name: str, frames: tuple[str, ...], parts: frozenset[int]) -> tuple[Prompt, ...]:
    """Every combination whose diagonal (mod 6) is in ``parts``, each with every frame in turn, round after round."""
    combinations = [(a, f) for i, a in enumerate(ASPECTS) for j, f in enumerate(KINDS) if (i + 5 * j + j // 6) % 6 in parts]
    # A fixed stride visits the table in an order in which neighbours share neither aspect nor film.
    stride = next(s for s in range(len(combinations) * 5 // 13, len(combinations)) if _coprime(s, len(combinations)))
    order = [combinations[k * stride % len(combinations)] for k in range(len(combinations))]
    prompts: list[Prompt] = []
    for turn in range(len(frames)):
        for k, (aspect, film) in enumerate(order):
            text = frames[(k + turn) % len(frames)].format(aspect=_SPOKEN.get(aspect, aspect), film=film)
            prompts.append(Prompt(f"{name}-{len(prompts):04d}", text[0].upper() + text[1:], aspect, film))
    return tuple(prompts)


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def train_prompts(n: int = 400) -> list[Prompt]:
    """The prompts that SFT and PPO see."""
    return _first(_make("train", _TRAIN_FRAMES, frozenset({1, 2, 3, 4})), n)


def dev_prompts(n: int = 60) -> list[Prompt]:
    """The prompts on which sizes are chosen; never trained on, never in the verdict."""
    return _first(_make("dev", _DEV_FRAMES, frozenset({5})), n)


def heldout_prompts(n: int = 100) -> list[Prompt]:
    """The prompts of the verdict."""
    return _first(_make("heldout", _HELDOUT_FRAMES, frozenset({0})), n)


def _first(prompts: tuple[Prompt, ...], n: int) -> list[Prompt]:
    if not 1 <= n <= len(prompts):
        raise DataError(f"n={n} prompts: there are {len(prompts)} such prompts; ask for 1 to {len(prompts)}")
    return list(prompts[:n])


_PATTERNS = {aspect: re.compile(rf"\b({words})\b", re.IGNORECASE) for aspect, words in ASPECTS.items()}


def aspects_of(sentence: str) -> list[str]:
    """The aspects that a sentence speaks of, by its words: ``aspects_of("A slow, funny film.")`` is pacing and humor."""
    return [aspect for aspect, pattern in _PATTERNS.items() if pattern.search(sentence)]
