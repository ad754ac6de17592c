"""What holds for every input: invariances, bounds, and definitions worked step by step, on episodes and numbers that hypothesis makes up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from truing.maths import kl, reduce, stats
from truing.maths.advantages import gae, group_centred, group_standardised, leave_one_out, whiten
from truing.maths.likelihood import entropy, from_logits, token_likelihood
from truing.maths.policy import cispo, clip_share, clipped_surrogate, ratio, sequence_logp
from truing.maths.preference import bradley_terry, centering
from truing.maths.returns import discounted_returns, lambda_returns, n_step_returns
from truing.maths.value import clipped_squared_error, squared_error

D = torch.float64
ordinary = st.floats(-10, 10, allow_subnormal=False)
fractions = st.floats(0, 1, allow_subnormal=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def tensors(*shape: int, elements: Any = ordinary) -> st.SearchStrategy[Tensor]:
    return arrays(np.float64, shape, elements=elements).map(torch.from_numpy)


def batches(elements: Any = ordinary, least: int = 1) -> st.SearchStrategy[Tensor]:
    shapes = st.tuples(st.integers(1, 3), st.integers(least, 5))
    return shapes.flatmap(lambda s: arrays(np.float64, s, elements=elements)).map(torch.from_numpy)


@st.composite
def several(draw: Any, count: int, least: int = 1) -> list[Tensor]:
    shape = (draw(st.integers(1, 3)), draw(st.integers(least, 5)))
    return [torch.from_numpy(draw(arrays(np.float64, shape, elements=ordinary))) for _ in range(count)]


@st.composite
def windows(draw: Any) -> dict[str, Tensor]:
    """One row of steps with any pattern of terminations and truncations; next_values is the shifted value inside an episode."""
    t = draw(st.integers(1, 8))
    values, other, rewards = (torch.from_numpy(draw(arrays(np.float64, t, elements=ordinary))) for _ in range(3))
    carry = torch.from_numpy(draw(arrays(np.float64, t, elements=st.sampled_from([0.0, 1.0]))))
    ends = torch.from_numpy(draw(arrays(np.float64, t, elements=st.sampled_from([0.0, 1.0])))) * (1 - carry)
    next_values = torch.where((carry == 1) & (torch.arange(t) < t - 1), values.roll(-1), other)
    return {"rewards": rewards, "values": values, "next_values": next_values, "discount": draw(fractions) * (1 - ends), "carry": carry}


# -- returns, by their definitions ---------------------------------------------------------------------------------------
def n_step_by_definition(w: dict[str, Tensor], n: int) -> list[float]:
    r, v, d, c = (w[k].tolist() for k in ("rewards", "next_values", "discount", "carry"))
    found = []
    for t in range(len(r)):
        total, weight = 0.0, 1.0
        for k in range(t, len(r)):
            total += weight * r[k]
            weight *= d[k]
            if k - t + 1 == n or c[k] == 0 or k == len(r) - 1:
                break
        found.append(total + weight * v[k])
    return found


def lambda_by_definition(w: dict[str, Tensor], lam: float) -> list[float]:
    size = len(w["rewards"])
    steps = [n_step_by_definition(w, n) for n in range(1, size + 1)]
    found = []
    for t in range(size):
        last = next(k for k in range(t, size) if w["carry"][k] == 0 or k == size - 1) - t + 1  # rewards until the episode or the window ends
        found.append(sum((1 - lam) * lam ** (n - 1) * steps[n - 1][t] for n in range(1, last)) + lam ** (last - 1) * steps[last - 1][t])
    return found


@given(windows(), st.integers(1, 10))
def test_n_step_returns_equal_their_definition(w: dict[str, Tensor], n: int) -> None:
    args = [w[k] for k in ("rewards", "next_values", "discount", "carry")]
    np.testing.assert_allclose(n_step_returns(*args, n).numpy(), n_step_by_definition(w, n), **CLOSE)
    np.testing.assert_allclose(discounted_returns(*args).numpy(), n_step_by_definition(w, 99), **CLOSE)


@given(windows(), fractions)
def test_lambda_returns_and_gae_equal_their_definition(w: dict[str, Tensor], lam: float) -> None:
    expected = lambda_by_definition(w, lam)
    np.testing.assert_allclose(lambda_returns(w["rewards"], w["next_values"], w["discount"], w["carry"], lam).numpy(), expected, **CLOSE)
    np.testing.assert_allclose((gae(**w, lam=lam) + w["values"]).numpy(), expected, **CLOSE)


@given(windows(), fractions, st.integers(1, 4))
def test_padding_changes_nothing(w: dict[str, Tensor], lam: float, extra: int) -> None:
    ended = {**w, "discount": w["discount"].clone(), "carry": w["carry"].clone()}
    ended["discount"][-1] = ended["carry"][-1] = 0
    padded = {name: torch.cat([x, torch.zeros(extra, dtype=D)]) for name, x in ended.items()}
    found = gae(**padded, lam=lam)
    torch.testing.assert_close(found[:-extra], gae(**ended, lam=lam), rtol=0, atol=0)
    assert found[-extra:].eq(0).all()


@given(windows(), fractions, ordinary)
def test_advantages_are_linear_in_rewards_and_values(w: dict[str, Tensor], lam: float, scale: float) -> None:
    scaled = {**w, **{k: scale * w[k] for k in ("rewards", "values", "next_values")}}
    torch.testing.assert_close(gae(**scaled, lam=lam), scale * gae(**w, lam=lam), **CLOSE)


@given(windows(), fractions)
def test_rows_do_not_see_each_other(w: dict[str, Tensor], lam: float) -> None:
    stacked = {name: torch.stack([x, torch.zeros_like(x) if name in ("discount", "carry") else 100 + x]) for name, x in w.items()}
    torch.testing.assert_close(gae(**stacked, lam=lam)[0], gae(**w, lam=lam), rtol=0, atol=0)


# -- whitening and groups ------------------------------------------------------------------------------------------------
@given(batches(least=2), st.sampled_from([0, 1]))
def test_whitened_numbers_have_mean_zero_and_at_most_unit_variance(x: Tensor, ddof: int) -> None:
    every = torch.ones_like(x, dtype=torch.bool)
    w = whiten(x, every, ddof=ddof)
    n = x.numel()
    assert abs(w.mean()) < 1e-6 and w.square().sum() / (n - ddof) <= 1 + 1e-9  # eps only shrinks
    assert w.abs().max() <= (n - ddof) ** 0.5 + 1e-9  # one element cannot have more than the whole sum of squares
    torch.testing.assert_close(whiten(x, every, ddof=ddof, shift_mean=False) - w, x.mean().expand_as(x), **CLOSE)


@given(batches(least=2), ordinary, st.floats(0.5, 100))
def test_whitening_forgets_shift_and_scale(x: Tensor, shift: float, scale: float) -> None:
    every = torch.ones_like(x, dtype=torch.bool)
    if x.std() > 0.1:
        torch.testing.assert_close(whiten(scale * x + shift, every), whiten(x, every), rtol=1e-5, atol=1e-5)  # eps does not scale


@given(batches(least=2), st.randoms())
def test_order_does_not_matter(x: Tensor, random: Any) -> None:
    order = list(range(x.shape[-1]))
    random.shuffle(order)
    for function in (group_centred, group_standardised, leave_one_out, lambda t: whiten(t, torch.ones_like(t, dtype=torch.bool))):
        torch.testing.assert_close(function(x[:, order]), function(x)[:, order], **CLOSE) if x.std(-1).min() > 1e-3 else None


@given(batches(least=2), ordinary, st.floats(0.5, 100))
def test_group_advantages_sum_to_zero_and_forget_shift(r: Tensor, shift: float, scale: float) -> None:
    for function in (group_centred, group_standardised, leave_one_out):
        assert function(r).sum(-1).abs().max() < 1e-6
        if r.std(-1).min() > 1e-3:
            torch.testing.assert_close(function(r + shift), function(r), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(group_centred(scale * r), scale * group_centred(r), **CLOSE)
    size = r.shape[-1]
    assert group_standardised(r).abs().max() <= (size - 1) / size**0.5 + 1e-9  # one 1 among zeros is the farthest a sample can stand out
    assert group_standardised(r, ddof=0).abs().max() <= (size - 1) ** 0.5 + 1e-9
    assert (group_standardised(r, floor=0.5).abs() <= group_standardised(r).abs() + 1e-12).all()


# -- policy --------------------------------------------------------------------------------------------------------------
@given(several(3), st.floats(0, 1), st.floats(0, 1))
def test_clipping_only_ever_raises_the_loss(xs: list[Tensor], low: float, high: float) -> None:
    logp, old, advantages = xs
    loss = clipped_surrogate(logp, old, advantages, low, high)
    assert (loss >= -advantages * ratio(logp, old) - 1e-12).all()  # a pessimistic bound
    assert (clipped_surrogate(logp, old, advantages, low / 2, high / 2) >= loss - 1e-12).all()  # and a narrower clip is more pessimistic
    inside = clip_share(logp, old, low, high) == 0
    torch.testing.assert_close(loss[inside], (-advantages * ratio(logp, old))[inside], **CLOSE)
    dual = clipped_surrogate(logp, old, advantages, low, high, dual_clip=3.0)
    assert (dual <= loss).all() and (dual <= torch.maximum(3 * advantages.abs(), loss.clamp(max=0))).all()
    torch.testing.assert_close(dual[advantages >= 0], loss[advantages >= 0], rtol=0, atol=0)


@given(tensors(7), st.floats(0, 0.9), st.floats(0, 2))
def test_the_clipped_surrogate_never_falls_as_the_policy_moves_away(advantage: Tensor, low: float, high: float) -> None:
    logp = torch.linspace(-2, 2, 401, dtype=D)
    zero = torch.zeros_like(logp)
    up = clipped_surrogate(logp, zero, advantage[0].abs().expand_as(logp), low, high)
    down = clipped_surrogate(logp, zero, -advantage[0].abs().expand_as(logp), low, high)
    assert (up.diff() <= 1e-12).all() and (down.diff() >= -1e-12).all()  # monotone in the ratio, flat past the bound
    assert up[logp > math.log(1 + high)].unique().numel() <= 1 and down[logp < math.log(1 - low)].unique().numel() <= 1


@given(several(2))
def test_ratios_are_positive_finite_and_each_others_inverse(xs: list[Tensor]) -> None:
    a, b = 4 * xs[0], 4 * xs[1]
    assert (ratio(a, b) > 0).all() and torch.isfinite(ratio(a, b)).all()
    torch.testing.assert_close(ratio(a, b) * ratio(b, a), torch.ones_like(a), **CLOSE)
    torch.testing.assert_close(ratio(a, a), torch.ones_like(a), rtol=0, atol=0)


@given(several(3), st.floats(0, 5))
def test_cispos_weight_is_between_its_bounds(xs: list[Tensor], high: float) -> None:
    logp, old, advantages = (xs[0] - 11), xs[1], xs[2].abs() + 0.1  # log-probabilities below 0
    weight = cispo(logp, old, advantages, clip_low=0.5, clip_high=high) / (-advantages * logp)
    assert (weight >= 0.5 - 1e-9).all() and (weight <= 1 + high + 1e-9).all()


@given(several(1), st.integers(1, 4), st.floats(-1e9, 1e9))
def test_padding_does_not_change_a_sequences_log_probability(xs: list[Tensor], extra: int, junk: float) -> None:
    (logp,) = xs
    counted = torch.ones_like(logp, dtype=torch.bool)
    padded = torch.cat([logp, torch.full((len(logp), extra), junk, dtype=D)], 1)
    where = torch.cat([counted, torch.zeros(len(logp), extra, dtype=torch.bool)], 1)
    torch.testing.assert_close(sequence_logp(padded, where), sequence_logp(logp, counted), **CLOSE)
    torch.testing.assert_close(sequence_logp(logp, counted), logp.mean(-1), **CLOSE)


# -- value and preference ------------------------------------------------------------------------------------------------
@given(several(3), st.floats(0.01, 30))
def test_clipping_values_only_ever_raises_the_loss(xs: list[Tensor], clip: float) -> None:
    values, old, targets = xs
    loss = clipped_squared_error(values, old, targets, clip)
    assert (loss >= squared_error(values, targets)).all() and (squared_error(values, targets) >= 0).all()
    near = (values - old).abs() <= clip
    torch.testing.assert_close(loss[near], squared_error(values, targets)[near], **CLOSE)


@given(several(2), ordinary, st.floats(0, 5))
def test_only_differences_of_scores_count(xs: list[Tensor], shift: float, margin: float) -> None:
    chosen, rejected = xs
    loss = bradley_terry(chosen, rejected, margin)
    torch.testing.assert_close(bradley_terry(chosen + shift, rejected + shift, margin), loss, **CLOSE)
    assert (loss >= 0).all() and (loss >= bradley_terry(chosen, rejected) - 1e-12).all()  # a margin asks for more
    torch.testing.assert_close(bradley_terry(chosen, rejected) - bradley_terry(rejected, chosen), rejected - chosen, **CLOSE)
    torch.testing.assert_close(centering(chosen, rejected), centering(rejected, chosen), rtol=0, atol=0)


# -- divergence and entropy ----------------------------------------------------------------------------------------------
@given(several(2, least=2), ordinary)
def test_divergence_and_entropy_are_bounded_and_forget_a_shift_of_the_logits(xs: list[Tensor], shift: float) -> None:
    a, b = xs
    assert (kl.exact(a, b) >= -1e-12).all() and kl.exact(a, a).abs().max() < 1e-12
    assert (entropy(a) >= -1e-12).all() and (entropy(a) <= math.log(a.shape[-1]) + 1e-12).all()
    torch.testing.assert_close(kl.exact(a + shift, b), kl.exact(a, b), **CLOSE)
    torch.testing.assert_close(entropy(a + shift), entropy(a), **CLOSE)
    # against the uniform distribution, divergence is the entropy that is missing
    torch.testing.assert_close(kl.exact(a, torch.zeros_like(a)), math.log(a.shape[-1]) - entropy(a), **CLOSE)


@given(several(2))
def test_estimators_have_their_signs(xs: list[Tensor]) -> None:
    a, b = xs
    assert (kl.k3(a, b) >= 0).all() and (kl.k2(a, b) >= 0).all()
    torch.testing.assert_close(kl.k1(a, b), -kl.k1(b, a), rtol=0, atol=0)
    for estimator in (kl.k1, kl.k2, kl.k3):
        assert estimator(a, a).eq(0).all()


@given(batches(least=2), st.floats(0.1, 5), st.integers(1, 4))
def test_likelihoods_are_those_of_softmax_whatever_the_chunk(logits: Tensor, temperature: float, chunk: int) -> None:
    targets = torch.arange(len(logits)) % logits.shape[-1]
    found = from_logits(logits, targets, temperature=temperature, chunk=chunk)
    torch.testing.assert_close(found.logp, (logits / temperature).log_softmax(-1)[range(len(logits)), targets], **CLOSE)
    torch.testing.assert_close(found.entropy, entropy(logits / temperature), **CLOSE)
    through_a_head = token_likelihood(logits, torch.eye(logits.shape[-1], dtype=D), targets, temperature=temperature, chunk=chunk)
    torch.testing.assert_close(through_a_head.logp, found.logp, **CLOSE)
    torch.testing.assert_close(through_a_head.entropy, found.entropy, **CLOSE)


# -- reductions ----------------------------------------------------------------------------------------------------------
@given(several(1), st.data())
def test_a_scalar_does_not_depend_on_how_the_batch_is_cut(xs: list[Tensor], data: Any) -> None:
    (loss,) = xs
    counted = torch.from_numpy(data.draw(arrays(np.bool_, tuple(loss.shape))))
    cut = data.draw(st.integers(0, len(loss)))
    for scalar in (
        lambda x, c: reduce.tokens(x, c, 11),
        lambda x, c: reduce.sequences(x, c, 5),
        lambda x, c: reduce.constant(x, c, 5, 9),
        lambda x, c: reduce.elements(x, 5),
    ):
        torch.testing.assert_close(scalar(loss[:cut], counted[:cut]) + scalar(loss[cut:], counted[cut:]), scalar(loss, counted), **CLOSE)


@given(several(1), st.integers(1, 4))
def test_padding_does_not_change_a_scalar(xs: list[Tensor], extra: int) -> None:
    (loss,) = xs
    counted = torch.ones_like(loss, dtype=torch.bool)
    padded = torch.cat([loss, torch.full((len(loss), extra), float("nan"), dtype=D)], 1)
    where = torch.cat([counted, torch.zeros(len(loss), extra, dtype=torch.bool)], 1)
    for scalar in (lambda x, c: reduce.tokens(x, c, 11), lambda x, c: reduce.sequences(x, c, 5), lambda x, c: reduce.constant(x, c, 5, 9)):
        torch.testing.assert_close(scalar(padded, where), scalar(loss, counted), **CLOSE)
    packed = reduce.tokens(padded[where], torch.ones(loss.numel(), dtype=torch.bool), 11)  # packed = padded
    torch.testing.assert_close(packed, reduce.tokens(padded, where, 11), **CLOSE)


# -- statistics ----------------------------------------------------------------------------------------------------------
@given(st.integers(1, 40), st.data())
def test_pass_at_k_equals_the_ratio_of_binomials_and_grows(n: int, data: Any) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    found = float(stats.pass_at_k(n, c, k))
    assert math.isclose(found, 1 - math.comb(n - c, k) / math.comb(n, k), rel_tol=1e-9, abs_tol=1e-12) and 0 <= found <= 1
    if k < n:
        assert float(stats.pass_at_k(n, c, k + 1)) >= found
    if c < n:
        assert float(stats.pass_at_k(n, c + 1, k)) >= found


@given(st.integers(1, 500), st.data())
def test_wilsons_interval_holds_its_estimate(n: int, data: Any) -> None:
    s = data.draw(st.integers(0, n))
    found = stats.wilson(s, n)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    mirrored = stats.wilson(n - s, n)
    assert math.isclose(found.low, 1 - mirrored.high, abs_tol=1e-12)
    # its bounds solve |p - bound| = z sqrt(bound (1 - bound) / n), which is what defines it
    for bound in (found.low, found.high):
        assert math.isclose(abs(found.mean - bound), 1.959963984540054 * math.sqrt(max(bound * (1 - bound), 0) / n), abs_tol=1e-7)


@given(arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(3, 5)), elements=st.integers(0, 2)), st.randoms())
def test_kappa_forgets_the_names_of_subjects_and_categories(votes: Any, random: Any) -> None:
    table = np.stack([(votes == k).sum(1) for k in range(3)], 1)  # votes are [subjects, raters]
    columns, rows = [0, 1, 2], list(range(len(table)))
    random.shuffle(columns)
    random.shuffle(rows)
    found = stats.fleiss_kappa(table)
    np.testing.assert_allclose(stats.fleiss_kappa(table[rows][:, columns]), found, atol=1e-12)
    assert math.isnan(found) == (len(np.unique(votes)) == 1) and not found > 1


@given(several(2, least=2), ordinary)
def test_explained_variance_is_at_most_one_and_forgets_an_offset(xs: list[Tensor], shift: float) -> None:
    values, targets = xs[0].numpy(), xs[1].numpy()
    found = stats.explained_variance(values, targets)
    if targets.std() > 1e-3:
        assert found <= 1
        np.testing.assert_allclose(stats.explained_variance(values + shift, targets), found, rtol=1e-6, atol=1e-6)


@given(arrays(np.float64, st.integers(1, 30), elements=fractions), st.integers(1, 12))
def test_calibration_error_is_zero_when_calibrated_and_at_most_one(p: Any, bins: int) -> None:
    assert stats.calibration_error(p, p, bins=bins) == 0
    assert 0 <= stats.calibration_error(p, np.round(1 - p), bins=bins) <= 1
