"""Human ratings of film sentences: read, cleaned, split in a fixed way, and turned into demonstrations and comparisons.

Source: Hutto, C.J. & Gilbert, E.E. (2014), VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
Text, ICWSM-14: 10,605 sentences of film reviews (after Pang & Lee 2004), each rated from -4 (extremely negative) to 4 by
15 to 29 independent people, whose single ratings are in the data.
"""

from __future__ import annotations

import hashlib
import html
import io
import itertools
import json
import random
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from truing import assets, seeds
from truing.demo import films
from truing.errors import DataError

_TEXTS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt"


@dataclass(frozen=True, slots=True)
class Sentence:
    """A cleaned sentence with the whole-number ratings (-4..4) of its raters and their mean."""

    id: str
    text: str
    mean: float
    ratings: tuple[float, ...]

    @property
    def words(self) -> int:
        return len(self.text.split())

    def row(self) -> dict[str, object]:
        return {"id": self.id, "text": self.text, "mean": self.mean, "ratings": list(self.ratings)}


# --- reading -----------------------------------------------------------------------------------------------------------


def load(archive: Path | None = None) -> list[Sentence]:
    """The 10,605 film sentences, in file order; ``archive`` defaults to `assets.ratings_archive()`.

    Raises DataError with file:line where the text and the ratings do not fit.
    """
    path = archive or assets.ratings_archive()
    try:
        with tarfile.open(path) as tar:
            texts, ratings = (_member(tar, name) for name in (_TEXTS, _RATINGS))
    except (tarfile.TarError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not the archive of the VADER study: {error}") from error
    return parse(texts, ratings)


def _member(tar: tarfile.TarFile, name: str) -> list[str]:
    source = tar.extractfile(name)
    if source is None:
        raise KeyError(name)
    return io.TextIOWrapper(source, encoding="utf-8", newline="\n").read().rstrip("\r\n").split("\n")


def parse(texts: Sequence[str], ratings: Sequence[str]) -> list[Sentence]:
    """Join ``id TAB mean TAB text`` with ``id TAB mean TAB deviation TAB [ratings]`` line by line."""
    if len(texts) != len(ratings):
        raise DataError(f"{_RATINGS}:{len(ratings)}: {len(ratings)} lines of ratings for {len(texts)} sentences")
    sentences = []
    for n, (left, right) in enumerate(zip(texts, ratings, strict=True), 1):
        try:
            key, mean, text = left.rstrip("\r").split("\t")
            other, _, _, listed = right.rstrip("\r").split("\t")
            raw = json.loads(listed)
            values = tuple(float(v) for v in raw)
        except (ValueError, TypeError) as error:
            raise DataError(f"{_RATINGS}:{n}: cannot be read: {error}") from error
        if key != other:
            raise DataError(f"{_RATINGS}:{n}: ratings of sentence {other!r} stand beside sentence {key!r}")
        if len(values) < 2 or not all(isinstance(v, int) and -4 <= v <= 4 for v in raw):
            raise DataError(f"{_RATINGS}:{n}: ratings {listed!r}: expected two or more whole numbers from -4 to 4")
        average = sum(values) / len(values)
        if abs(average - float(mean)) > 1e-6:
            raise DataError(f"{_RATINGS}:{n}: the mean of the ratings is {average}, the file says {mean}")
        cleaned = clean(text)
        if not cleaned:
            raise DataError(f"{_TEXTS}:{n}: the sentence is empty")
        sentences.append(Sentence(key, cleaned, average, values))
    return sentences


def clean(text: str) -> str:
    """Natural English from the study's spelling of it; words are never changed.

    >>> clean("...a  ''moving'' look at art    when done right    and S&amp;M")
    'A "moving" look at art - when done right - and S&M.'
    """
    text = html.unescape(text)
    text = re.sub(r"\s{3,}|\s*–\s*", " - ", text)  # the study blanked dashes: "art    when done right    can"
    text = " ".join(text.split())
    text = text.replace("’", "'").replace("`", "'")
    text = re.sub(r"''(.+?)''", r'"\1"', text)
    if re.fullmatch(r"'[^']*(\w'\w[^']*)*'", text):  # one quotation from end to end
        text = text[1:-1]
    text = re.sub(r" +([,;:!?]|\.(?!\d))", r"\1", text)
    text = re.sub(r"\.{2,}", "...", text)
    text = re.sub(r"^[.\s-]+|[\s-]+$", "", text)
    text = re.sub(
        r"^\(([^()]*)\)(?:[.\s]*(?=\w))?", lambda m: m[1] + " " * text[m.end() : m.end() + 1].isalnum(), text
    )  # the editor's insertion: "(Wendigo is) why we go"
    text = re.sub(r"\.\.\.(?=[^\s.,;:!?'\")])", "... ", text)
    text = re.sub(r"(?<=[a-z]{2}[.!?])(?=[A-Z][a-z'])", " ", text)
    text = re.sub(r"\( +", "(", re.sub(r" +\)", ")", text))
    text = text.strip().rstrip(" ,;:")
    if not text:
        return ""
    if re.search(r"[\w*%)'\"]$", text) and not re.search(r"[.!?][)'\"]+$", text):
        text += "."
    return text[0].upper() + text[1:]


# --- splitting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Splits:
    """Disjoint sets of sentences; sentences that share six words in a row are always in the same one.

    ``reward`` (40%) is what the reward model trains on and the policy imitates; ``reward_test`` (5%) measures the reward
    model; ``gold`` (45%) is what the gold judge trains on and nothing else sees; ``dev`` (10%) is for choosing sizes.
    """

    reward: tuple[Sentence, ...]
    reward_test: tuple[Sentence, ...]
    gold: tuple[Sentence, ...]
    dev: tuple[Sentence, ...]

    def named(self) -> dict[str, tuple[Sentence, ...]]:
        return {"reward": self.reward, "reward_test": self.reward_test, "gold": self.gold, "dev": self.dev}


_BOUNDS = (("reward", 0.396), ("reward_test", 0.45), ("gold", 0.90), ("dev", 1.0))


def split(sentences: Iterable[Sentence]) -> Splits:
    """Split by a hash of the text, so that it depends on neither seed nor order."""
    parts: dict[str, list[Sentence]] = {name: [] for name, _ in _BOUNDS}
    for cluster in near_duplicates(sentences):
        # The smallest hash of the cluster decides: a function of the set of its texts.
        u = min(int.from_bytes(hashlib.sha256(s.text.encode()).digest()[:8], "big") for s in cluster) / 2**64
        # The minimum of k uniforms is made uniform again, or large clusters would all fall into the first part.
        u = 1 - (1 - u) ** len(cluster)
        parts[next(name for name, bound in _BOUNDS if u < bound or bound == 1.0)] += cluster
    return Splits(**{name: tuple(sorted(members, key=_order)) for name, members in parts.items()})


def near_duplicates(sentences: Iterable[Sentence], shingle: int = 6) -> list[list[Sentence]]:
    """Clusters of sentences linked by ``shingle`` words in a row (or by being equal, if shorter); case and marks ignored."""
    items = list(sentences)
    parent = list(range(len(items)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[tuple[str, ...], int] = {}
    for i, sentence in enumerate(items):
        words = re.sub(r"[^\w\s]", "", sentence.text.lower()).split()
        for j in range(max(1, len(words) - shingle + 1)):
            first = seen.setdefault(tuple(words[j : j + shingle]), i)
            parent[find(i)] = find(first)
    clusters: dict[int, list[Sentence]] = defaultdict(list)
    for i, sentence in enumerate(items):
        clusters[find(i)].append(sentence)
    return list(clusters.values())


def _order(sentence: Sentence) -> str:
    return hashlib.sha256(f"{sentence.id}\n{sentence.text}".encode()).hexdigest()


def fingerprint(sentences: Iterable[Sentence]) -> str:
    """SHA-256 of texts and ratings, in any order: it names a split in the card and in caches."""
    digest = hashlib.sha256()
    for line in sorted(json.dumps([s.text, *s.ratings]) for s in sentences):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


# --- what the stages train on ------------------------------------------------------------------------------------------


def ask(prompt: films.Prompt) -> list[dict[str, str]]:
    """A request as messages: the system line, then the user's turn."""
    return [{"role": "system", "content": films.SYSTEM}, {"role": "user", "content": prompt.text}]


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def is_single(text: str) -> bool:
    """Whether ``text`` is one sentence: no full stop, ! or ? before another capital letter."""
    return not re.search(r"[.!?]['\")]* +['\"(]?[A-Z]", text)


def demonstrations(
    sentences: Sequence[Sentence], prompts: Sequence[films.Prompt], *, seed: int, n: int | None = None, min_words: int = 4, max_words: int = 24
) -> list[dict[str, object]]:
    """Rows ``{"id", "messages"}``: single sentences of every sentiment, each as the answer to a request that fits it.

    A sentence that speaks of an aspect answers a request about that aspect; one that speaks of none answers any. ``n``
    None uses every sentence of ``min_words`` to ``max_words`` words once; DataError if there are fewer than ``n``.
    """
    rng = random.Random(seeds.stream(seed, "demo-demonstrations"))
    usable = [s for s in sentences if min_words <= s.words <= max_words and is_single(s.text)]
    if n is not None and n > len(usable):
        raise DataError(f"n={n} demonstrations: only {len(usable)} of {len(sentences)} sentences have {min_words} to {max_words} words; ask for fewer")
    rng.shuffle(usable)
    by_aspect: dict[str, list[films.Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_aspect[prompt.aspect].append(prompt)
    rows: list[dict[str, object]] = []
    for sentence in usable[:n]:
        aspects = [a for a in films.aspects_of(sentence.text) if a in by_aspect]
        prompt = rng.choice(by_aspect[rng.choice(aspects)] if aspects else prompts)
        rows.append({"id": f"demo-{sentence.id}", "messages": [*ask(prompt), answer(sentence.text)]})
    return rows


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison: a rater of ``chosen`` gave more than a rater of ``rejected`` did; the means may say otherwise."""

    id: str
    prompt: films.Prompt
    chosen: Sentence
    rejected: Sentence

    @property
    def gap(self) -> float:
        """Mean rating of chosen minus that of rejected; negative where the drawn raters disagree with the means."""
        return self.chosen.mean - self.rejected.mean

    def row(self) -> dict[str, object]:
        return {"id": self.id, "prompt": ask(self.prompt), "chosen": [answer(self.chosen.text)], "rejected": [answer(self.rejected.text)]}


def preference_pairs(
    sentences: Sequence[Sentence], *, seed: int, per_group: int = 8, groups: int | None = None, min_words: int = 2, max_words: int = 32
) -> list[Pair]:
    """Comparisons in groups: a request, ``per_group`` sentences, and every two of them compared by one drawn rater each.

    Each sentence is in one group at most, and each group has a request of its own, so holding out requests holds out
    sentences. Ties of the two drawn ratings are dropped. ``groups`` None makes as many as the sentences allow.
    The single raters give real disagreement: nothing is averaged.
    """
    if per_group < 2:
        raise DataError(f"per_group={per_group}: a comparison needs at least 2 sentences")
    rng = random.Random(seeds.stream(seed, "demo-preferences"))
    usable = [s for s in sentences if min_words <= s.words <= max_words]
    possible = len(usable) // per_group
    if possible < 1 or (groups is not None and groups > possible):
        raise DataError(f"groups={groups}: {len(usable)} sentences of {min_words} to {max_words} words make {possible} groups of {per_group}; ask for fewer")
    rng.shuffle(usable)
    pairs = []
    for g, prompt in enumerate(films.train_prompts(possible if groups is None else groups)):
        group = usable[g * per_group : (g + 1) * per_group]
        for k, (a, b) in enumerate(itertools.combinations(group, 2)):
            left, right = rng.choice(a.ratings), rng.choice(b.ratings)
            if left != right and a.text != b.text:
                chosen, rejected = (a, b) if left > right else (b, a)
                pairs.append(Pair(f"pref-{g:04d}-{k:02d}", prompt, chosen, rejected))
    return pairs
