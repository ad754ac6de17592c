"""Ratings: cleaning keeps every word, splits never touch, comparisons carry real disagreement, and the tables are right."""

from __future__ import annotations

import html
import itertools
import random
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing import assets
from truing.demo import agreement, films, quick, ratings
from truing.demo.ratings import Sentence
from truing.errors import DataError, RewardError
from truing.maths import stats


@pytest.fixture(scope="module")
def real() -> list[Sentence]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "0")
        patch.setenv("PIP_DEFAULT_TIMEOUT", "5")
        try:
            return ratings.load()
        except DataError as error:
            pytest.skip(f"the human ratings could not be had: {error}")


def made(n: int, seed: int = 0, raters: int = 6) -> list[Sentence]:
    rng = random.Random(seed)
    out = []
    for k in range(n):
        centre = rng.uniform(-2.5, 2.5)
        values = tuple(float(max(-4, min(4, round(rng.gauss(centre, 1.2))))) for _ in range(raters))
        out.append(Sentence(str(k), f"Made sentence number {k} has one {rng.random():.9f} word.", sum(values) / raters, values))
    return out


# --- cleaning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Lovely &amp; Amazing involves us.", "Lovely & Amazing involves us."),
        ("Of how art    when done right    can help heal.", "Of how art - when done right - can help heal."),
        ("The old world  meets new mesh.", "The old world meets new mesh."),
        ("the scene screams ''bathroom break!''", 'The scene screams "bathroom break!"'),
        ("(Wendigo is) why we go to the cinema.", "Wendigo is why we go to the cinema."),
        ("(Hawn's character)is bluntly written.", "Hawn's character is bluntly written."),
        ("(Morgan), Judd and Franklin can't save it.", "Morgan, Judd and Franklin can't save it."),
        ("...a roller coaster ride of a movie", "A roller coaster ride of a movie."),
        ("to the screen...Tuck Everlasting is a little of both.", "To the screen... Tuck Everlasting is a little of both."),
        ("Effective but too tepid biopic", "Effective but too tepid biopic."),
        ("'Easily my choice for one of the year's best films.'", "Easily my choice for one of the year's best films."),
        ("'Tadpole' is a film by 'friends'", "'Tadpole' is a film by 'friends'."),
        ("M:I 2 costs 2,500 at .5 a.m.", "M:I 2 costs 2,500 at .5 a.m."),
        ("Well cast ; well directed .", "Well cast; well directed."),
        (" : ", ""),
    ],
)
def test_cleaning_gives_natural_english_once(raw: str, expected: str) -> None:
    assert ratings.clean(raw) == expected
    assert ratings.clean(expected) == expected


@given(st.text(alphabet="abZé .,!?'`()-–\n9&;:\"", max_size=60))
def test_cleaning_keeps_every_letter_and_digit_in_order(text: str) -> None:
    def kept(t: str) -> str:
        return "".join(c.lower() for c in t if c.isalnum())

    assert kept(ratings.clean(text)) == kept(html.unescape(text))


# --- reading ---------------------------------------------------------------------------------------------------------


def test_parse_joins_texts_and_ratings() -> None:
    (found,) = ratings.parse(["7\t0.5\tGood , but slow\r"], ["7\t0.5\t1.5\t[2, -1]\r"])
    assert found == Sentence("7", "Good, but slow.", 0.5, (2.0, -1.0))


@pytest.mark.parametrize(
    ("text", "rating", "message"),
    [
        ("1\t1.0\tFine.", "2\t1.0\t0\t[1, 1]", "'2' stand beside sentence '1'"),
        ("1\t1.0\tFine.", "1\t1.0\t0\t[1, 3]", "mean of the ratings is 2.0, the file says 1.0"),
        ("1\t1.0\tFine.", "1\t1.0\t0\t[1]", "two or more"),
        ("1\t4.0\tFine.", "1\t4.0\t0\t[1, 7]", "-4 to 4"),
        ("1\t1.0\tFine.", "1\t1.0\t0\t[1, 'a']", "cannot be read"),
        ("1\t1.0\tFine.", "1\t1.0\t0\tnull", "cannot be read"),
        ("1\tnan\tFine.", "1\t1.0\t0\t[1, NaN]", "-4 to 4"),
        ("1 1.0 Fine.", "1\t1.0\t0\t[1, 1]", "cannot be read"),
        ("1\t1.0\t  ", "1\t1.0\t0\t[1, 1]", "empty"),
    ],
)
def test_parse_names_the_line(text: str, rating: str, message: str) -> None:
    good = ("0\t1.0\tFine.", "0\t1.0\t0\t[1, 1]")
    with pytest.raises(DataError, match=f"txt:2: .*{message}"):
        ratings.parse([good[0], text], [good[1], rating])


def test_the_real_study(real: list[Sentence]) -> None:
    assert len(real) == 10_605 and min(len(s.ratings) for s in real) == 15
    assert real[0].mean == pytest.approx(34 / 15) and real[0].text.startswith('The Rock is destined to be the 21st Century\'s new "Conan"')
    assert [s.text for s in real if ratings.clean(s.text) != s.text] == []


# --- splitting -------------------------------------------------------------------------------------------------------


def test_near_duplicates_stay_together_and_the_split_ignores_order() -> None:
    base = made(400)
    same = "this is one of the best films of the year"
    near = [
        Sentence("x", f"Truly, {same}!", 1.0, (1.0, 1.0)),
        Sentence("y", f"I say {same}, no less.", 2.0, (2.0, 2.0)),
        Sentence("z", "Fine.", 0.0, (0.0, 0.0)),
    ]
    clusters = [sorted(s.id for s in c) for c in ratings.near_duplicates([*near, Sentence("w", "fine", 1.0, (1.0, 1.0))])]
    assert sorted(clusters) == [["w", "z"], ["x", "y"]]
    mixed = [Sentence(s.id, f"{s.id}{s.id} {s.text[-20:]}", s.mean, s.ratings) for s in base] + near
    first = ratings.split(mixed)
    random.Random(1).shuffle(mixed)
    assert ratings.split(mixed) == first
    sizes = {name: len(part) for name, part in first.named().items()}
    assert sum(sizes.values()) == len(mixed)
    assert sizes["reward"] > 110 and sizes["gold"] > 130 and sizes["dev"] > 15 and sizes["reward_test"] > 5
    home = {s.id: name for name, part in first.named().items() for s in part}
    assert home["x"] == home["y"]


def test_real_splits_share_no_six_words(real: list[Sentence]) -> None:
    parts = ratings.split(real).named()
    assert {name: round(len(part) / len(real), 2) for name, part in parts.items()} == {"reward": 0.4, "reward_test": 0.06, "gold": 0.44, "dev": 0.1}
    where: dict[str, set[str]] = defaultdict(set)
    for name, part in parts.items():
        for s in part:
            words = "".join(c for c in s.text.lower() if c.isalnum() or c == " " or c == "_").split()
            for j in range(len(words) - 5):
                where[" ".join(words[j : j + 6])].add(name)
    assert not [k for k, names in where.items() if len(names) > 1]
    means = [float(np.mean([s.mean for s in part])) for part in parts.values()]
    assert max(means) - min(means) < 0.3


# --- demonstrations and comparisons ----------------------------------------------------------------------------------


def test_demonstrations_are_single_sentences_of_the_asked_length_that_fit_their_request(real: list[Sentence]) -> None:
    part = ratings.split(real).reward
    prompts = films.train_prompts()
    rows = ratings.demonstrations(part, prompts, seed=3, n=500)
    aspect = {p.text: p.aspect for p in prompts}
    text_of = {s.text: s for s in part}
    for row in rows:
        system, user, reply = row["messages"]  # type: ignore[misc]
        assert (system["role"], user["role"], reply["role"]) == ("system", "user", "assistant")
        sentence = text_of[reply["content"]]
        assert 4 <= sentence.words <= 24 and ratings.is_single(sentence.text)
        spoken = films.aspects_of(sentence.text)
        assert not spoken or aspect[user["content"]] in spoken
    assert len({row["id"] for row in rows}) == 500
    means = [text_of[row["messages"][2]["content"]].mean for row in rows]  # type: ignore[index]
    assert abs(np.mean(means)) < 0.3 and np.std(means) > 1.5  # every sentiment: the policy starts neutral
    assert rows == ratings.demonstrations(part, prompts, seed=3, n=500) != ratings.demonstrations(part, prompts, seed=4, n=500)


def test_too_few_sentences_say_how_many_there_are() -> None:
    with pytest.raises(DataError, match=r"n=50 demonstrations: only 9 of 9"):
        ratings.demonstrations(made(9), films.train_prompts(), seed=0, n=50)
    with pytest.raises(DataError, match=r"groups=2: 9 sentences .* make 1 groups of 8"):
        ratings.preference_pairs(made(9), seed=0, groups=2)
    with pytest.raises(DataError, match="per_group=1"):
        ratings.preference_pairs(made(9), seed=0, per_group=1)


def test_each_sentence_and_each_request_belongs_to_one_group() -> None:
    pairs = ratings.preference_pairs(made(100), seed=1, per_group=4)
    groups: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        groups[pair.prompt.text] |= {pair.chosen.id, pair.rejected.id}
    assert len(groups) == 25 and all(len(g) <= 4 for g in groups.values())
    assert max(Counter(s for g in groups.values() for s in g).values()) == 1
    compared = Counter(frozenset((p.chosen.id, p.rejected.id)) for p in pairs)
    assert max(compared.values()) == 1 and len(pairs) <= 25 * 6
    assert len({p.id for p in pairs}) == len(pairs)
    assert pairs[0].row()["chosen"] == [{"role": "assistant", "content": pairs[0].chosen.text}]


def test_comparisons_are_single_raters_with_ties_dropped() -> None:
    # Left is rated 1 or -1 evenly, right 0, 0, 0 or 2: P(left > right | differ) = (1/2 * 3/4) / 1 = 3/8. Never tied.
    pairs = []
    for k in range(1500):
        left = Sentence(f"l{k}", f"The left sentence {k}.", 0.0, (1.0, -1.0))
        right = Sentence(f"r{k}", f"The right sentence {k}.", 0.5, (0.0, 0.0, 0.0, 2.0))
        pairs += ratings.preference_pairs([left, right], seed=k, per_group=2)
    assert len(pairs) == 1500
    wins = sum(p.chosen.id[0] == "l" for p in pairs)
    assert abs(wins - 1500 * 3 / 8) < 4 * (1500 * 3 / 8 * 5 / 8) ** 0.5
    # Comparing means would always choose right.
    assert all(p.gap < 0 for p in pairs if p.chosen.id[0] == "l")
    tied = [Sentence("a", "Same one here.", 1.0, (1.0, 1.0)), Sentence("b", "Same two here.", 1.0, (1.0, 1.0))]
    assert ratings.preference_pairs(tied, seed=0, per_group=2) == []


# --- agreement -------------------------------------------------------------------------------------------------------


def by_hand(a: Sentence, b: Sentence) -> tuple[Fraction | None, Fraction | None, Fraction | None]:
    """Share, ceiling and decided of one pair, by going through every two raters."""
    wins = unequal = Fraction(0)
    agree, valid, sure, sure_valid = Fraction(0), 0, Fraction(0), 0
    for i, j in itertools.product(range(len(a.ratings)), range(len(b.ratings))):
        x, y = int(a.ratings[i]), int(b.ratings[j])
        rest_a = [int(v) for k, v in enumerate(a.ratings) if k != i]
        rest_b = [int(v) for k, v in enumerate(b.ratings) if k != j]
        gap = Fraction(sum(rest_a), len(rest_a)) - Fraction(sum(rest_b), len(rest_b))
        wins += x > y
        unequal += x != y
        if gap == 0:
            continue
        valid += 1
        agree += Fraction(1, 2) if x == y else Fraction((x - y) * gap > 0)
        if x != y:
            sure_valid += 1
            sure += (x - y) * gap > 0
    return (wins / unequal if unequal else None), (agree / valid if valid else None), (sure / sure_valid if sure_valid else None)


def test_the_human_ceiling_equals_the_count_by_hand() -> None:
    items = made(14, seed=5, raters=5) + [Sentence("q", "Odd.", -0.5, (-4.0, 4.0, -2.0, 0.0))]
    pairs = agreement.heldout_pairs(items)
    assert len(pairs.left) > 90
    for k in range(len(pairs.left)):
        expected = by_hand(items[pairs.left[k]], items[pairs.right[k]])
        for found, want in zip((pairs.share[k], pairs.ceiling[k], pairs.decided[k]), expected, strict=True):
            assert np.isnan(found) if want is None else found == pytest.approx(float(want))


def test_accuracy_of_known_scorers() -> None:
    items = made(60, seed=2)
    mean = {s.text: s.mean for s in items}
    pairs = agreement.heldout_pairs(items)
    table = agreement.accuracy_table(
        {"perfect": lambda t: [mean[x] for x in t], "reversed": lambda t: [-mean[x] for x in t], "constant": lambda t: [1.0] * len(t)}, pairs, resamples=50
    )
    for row in table.rows:
        assert row.accuracy["perfect"] == (1.0, 1.0, 1.0) and row.accuracy["reversed"] == (0.0, 0.0, 0.0) and row.accuracy["constant"] == (0.5, 0.5, 0.5)
    assert sum(row.pairs for row in table.rows[:-1]) == len(pairs.left)
    assert table.headline.pairs == sum(row.pairs for row in table.rows[2:5])
    ceilings = [row.ceiling for row in table.rows[:-1]]
    assert ceilings == sorted(ceilings)  # people agree more on wider gaps
    # A constant scorer says 1/2 everywhere: all pairs share one bin, and its error is |mean share - 1/2|.
    assert table.calibration["constant"] == pytest.approx(abs(float(np.nanmean(pairs.share)) - 0.5))
    assert table.calibration["reversed"] > table.calibration["perfect"]


def test_intervals_know_that_pairs_share_sentences() -> None:
    items = made(60, seed=3)
    rng = random.Random(0)
    noisy = {s.text: s.mean + rng.gauss(0, 1.5) for s in items}
    row = agreement.accuracy_table({"noisy": lambda t: [noisy[x] for x in t]}, agreement.heldout_pairs(items), resamples=400).headline
    estimate, low, high = row.accuracy["noisy"]
    wilson = stats.wilson(estimate * row.pairs, row.pairs)
    assert low < estimate < high and high - low > 1.5 * (wilson.high - wilson.low)


def test_bad_scorers_and_too_few_sentences_are_refused() -> None:
    pairs = agreement.heldout_pairs(made(20))
    with pytest.raises(RewardError, match=r"scorer 'short' gave scores of shape \(19,\) for 20 texts"):
        agreement.accuracy_table({"short": lambda t: [0.0] * (len(t) - 1)}, pairs)
    with pytest.raises(RewardError, match=r"scorer 'nan' scored 'Made sentence number 0.*as nan"):
        agreement.accuracy_table({"nan": lambda t: [float("nan")] * len(t)}, pairs)
    with pytest.raises(DataError, match="2 sentences"):
        agreement.heldout_pairs(made(2))


def test_the_real_human_ceiling(real: list[Sentence]) -> None:
    pairs = agreement.heldout_pairs(ratings.split(real).reward_test, max_pairs=4000)
    row = agreement.accuracy_table({"words": lambda t: [quick.gold_score(x) for x in t]}, pairs, resamples=50).headline
    assert row.ceiling is not None and 0.92 < row.ceiling < 0.96 and 0.5 <= row.accuracy["words"][0] < row.ceiling


def test_the_archive_that_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / assets.ARCHIVE
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is not the archive of the VADER study"):
        ratings.load(path)
