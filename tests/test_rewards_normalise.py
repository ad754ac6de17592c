"""Normalising and clipping scores: goldens, exact state, dense scores."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from truing.config import Scores
from truing.errors import CheckpointError, RewardError
from truing.maths.advantages import whiten
from truing.rewards.normalise import Normaliser
from truing.types import Score, Status

GOLDEN = [1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0]


def apply(values: list[float], **settings: object) -> list[float]:
    return Normaliser(Scores(**settings)).apply(values).values  # type: ignore[arg-type]


def test_batch_is_whitening_that_keeps_the_mean() -> None:
    # Huang et al. 2024, policy detail 9; unbiased variance (n - 1)
    found = apply(GOLDEN, normalise="batch")
    assert found == pytest.approx([0.1394, 0.5046, 0.8697, 1.2349, 1.6, 1.9651, 2.3303, 2.6954, 3.0606], abs=5e-5)
    assert statistics.mean(found) == pytest.approx(1.6) and statistics.stdev(found) == pytest.approx(1.0, abs=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12))
def test_batch_is_the_whitening_of_maths(values: list[float]) -> None:
    wanted = whiten(torch.tensor(values, dtype=torch.float64), torch.ones(len(values), dtype=torch.bool), shift_mean=False)
    assert apply(values, normalise="batch") == pytest.approx(wanted.tolist(), rel=1e-6, abs=1e-6)


def test_running_uses_every_score_so_far() -> None:
    normaliser = Normaliser(Scores(normalise="running"))
    seen: list[float] = []
    for batch in ([1.0, 4.0], [2.0, -3.0, 5.0], [0.5]):
        seen += batch
        found = normaliser.apply(batch)
        mean, std = statistics.mean(seen), statistics.stdev(seen)  # the oracle: the standard library, over all of them
        assert found.values == pytest.approx([(v - mean) / std for v in batch])
        assert (found.mean, found.std) == pytest.approx((mean, std))


def test_reference_is_the_first_batch_for_ever() -> None:
    normaliser = Normaliser(Scores(normalise="reference"))
    assert normaliser.apply([1.0, 3.0]).values == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)])  # mean 2, variance 2
    state = normaliser.state()
    assert normaliser.apply([2.0, 100.0]).values == pytest.approx([0.0, 98 / math.sqrt(2)]) and normaliser.state() == state


def test_none_changes_nothing_and_clip_limits_after_normalising() -> None:
    assert apply([0.1, -7.0]) == [0.1, -7.0]
    found = Normaliser(Scores(clip=5.0)).apply([0.1, -7.0, 5.0, 6.0])
    assert found == ([0.1, -5.0, 5.0, 5.0], 0.5, 0.0, 1.0)
    assert apply([1.0, 2.0, 3.0], normalise="running", clip=0.5) == [-0.5, 0.0, 0.5]  # mean 2, std 1


@pytest.mark.parametrize("kind", ["none", "batch", "running", "reference"])
@pytest.mark.parametrize("values", [[0.1] * 7, [3.0], [-2.5e8] * 3])
def test_equal_scores_are_centred_and_never_divided(kind: str, values: list[float]) -> None:
    found = Normaliser(Scores(normalise=kind)).apply(values)  # type: ignore[arg-type]
    keeps = kind in ("none", "batch")
    assert found.values == (pytest.approx(values) if keeps else [0.0] * len(values)) and all(map(math.isfinite, found.values))
    assert found.std == (1.0 if kind == "none" else 0.0)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5), min_size=2, max_size=5), st.sampled_from(["running", "reference", "batch"]))
def test_a_state_through_json_goes_on_with_the_same_bits(batches: list[list[float]], kind: str) -> None:
    settings = Scores(normalise=kind, clip=2.0)  # type: ignore[arg-type]
    whole = Normaliser(settings)
    expected = [whole.apply(batch) for batch in batches]
    state, found = None, []
    for batch in batches:
        one = Normaliser(settings, state)
        found.append(one.apply(batch))
        state = json.loads(json.dumps(one.state()))
    assert found == expected and state == whole.state()


def test_scores_keep_their_parts_and_failed_ones_are_not_counted() -> None:
    bad = Score(math.nan, {"error": math.nan}, Status.CRASHED)
    scores = [Score(1.0, {"rm": 1.0}), bad, Score(3.0, {"rm": 3.0}, Status.WRONG)]
    found, summary = Normaliser(Scores(normalise="running")).apply_scores(scores)
    assert [s.value for s in (found[0], found[2])] == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)]) and found[1] is bad
    assert found[2].status == Status.WRONG and found[2].parts == {"rm": 3.0} and (summary.mean, summary.std) == pytest.approx((2.0, math.sqrt(2)))
    assert summary.values == [found[0].value, found[2].value]
    assert Normaliser(Scores(normalise="batch")).apply_scores([bad])[0] == [bad]


@pytest.mark.parametrize("kind", ["none", "batch", "running", "reference"])
def test_a_spread_is_scaled_like_its_value_and_the_shift_stands_at_the_last_token(kind: str) -> None:
    scores = [Score(3.0, {}, Status.OK, (1.0, 0.0, 2.0)), Score(-1.0, {}, Status.OK, (-1.0,)), Score(1.0)]
    settings = Scores(normalise=kind)  # type: ignore[arg-type]
    found, summary = Normaliser(settings).apply_scores(scores)
    assert [s.value for s in found] == pytest.approx(Normaliser(settings).apply([3.0, -1.0, 1.0]).values)  # as without a spread
    scale = {"none": 1.0}.get(kind, 0.5)  # standard deviation of 3, -1, 1 is 2
    assert found[0].spread[:2] == pytest.approx((scale, 0.0)) and found[2].spread == ()
    for s in found[:2]:
        assert math.fsum(s.spread) == pytest.approx(s.value, abs=1e-9)
    assert summary.clipped_share == 0.0


def test_the_clip_limits_each_number_of_a_spread() -> None:
    found, summary = Normaliser(Scores(clip=1.0)).apply_scores([Score(2.5, {}, Status.OK, (3.0, -2.0, 0.5, 1.0)), Score(-4.0)])
    assert found[0].spread == (1.0, -1.0, 0.5, 1.0) and found[0].value == 1.5 and found[1].value == -1.0
    assert summary.clipped_share == 3 / 5  # of four tokens and one whole score


def test_what_cannot_be_normalised_is_refused() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(RewardError, match="must be left out before"):
            apply([1.0, value], normalise="running")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Normaliser(Scores(normalise="running"), {"count": "many"})


def test_without_a_spread_of_scores_nothing_is_scaled() -> None:
    reference = Normaliser(Scores(normalise="reference"))
    assert reference.apply([2.0, 2.0]).values == [0.0, 0.0] and reference.apply([5.0]).values == [3.0]
    alone, _ = Normaliser(Scores(normalise="batch")).apply_scores([Score(3.0, {}, Status.OK, (1.0, 2.0))])
    assert alone[0].value == 3.0 and alone[0].spread == (1.0, 2.0)
