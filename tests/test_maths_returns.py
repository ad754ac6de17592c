"""Returns and advantages by hand: numbers from a textbook, from another library's published output, or from the arithmetic in the comment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import tensor

from truing.maths.advantages import gae, group_centred, group_standardised, leave_one_out, td_error, whiten
from truing.maths.returns import discounted_returns, lambda_returns, n_step_returns

D = torch.float64


# -- returns -------------------------------------------------------------------------------------------------------------
def test_returns_equal_the_books_exercises() -> None:
    # Sutton and Barto, exercise 3.8: gamma .5, rewards -1, 2, 6, 3, 2, then the end: G = 2, 6, 8, 4, 2
    r, one, alive = tensor([-1.0, 2, 6, 3, 2], dtype=D), torch.ones(5, dtype=D), tensor([1.0, 1, 1, 1, 0], dtype=D)
    unused = 100 * one  # the true end asks for no value, and inside the episode a return asks for none
    torch.testing.assert_close(discounted_returns(r, unused, 0.5 * alive, alive), tensor([2.0, 6, 8, 4, 2], dtype=D))
    # exercise 3.9: a first reward of 2 and then 7 for ever at gamma .9: G_1 = 70, G_0 = 2 + .9 * 70 = 65; the window's end bootstraps from 70
    forever = discounted_returns(tensor([2.0, 7, 7], dtype=D), tensor([0.0, 0, 70], dtype=D), 0.9 * one[:3], one[:3])
    torch.testing.assert_close(forever, tensor([65.0, 70, 70], dtype=D))


def test_a_cut_episode_bootstraps_and_a_finished_one_does_not() -> None:
    # two episodes in one window, gamma .5; V(next) = 4, 6, 8, 10. First: rewards 1, 2, then *truncated*; second: 3, 5, then *terminated*.
    r, v = tensor([1.0, 2, 3, 5], dtype=D), tensor([4.0, 6, 8, 10], dtype=D)
    discount, carry = tensor([0.5, 0.5, 0.5, 0], dtype=D), tensor([1.0, 0, 1, 0], dtype=D)
    # G_1 = 2 + .5 * 6 = 5, G_0 = 1 + 2.5 = 3.5; G_3 = 5, G_2 = 3 + 2.5 = 5.5
    torch.testing.assert_close(discounted_returns(r, v, discount, carry), tensor([3.5, 5, 5.5, 5], dtype=D))
    # one step: 1 + 2, 2 + 3, 3 + 4, 5
    torch.testing.assert_close(n_step_returns(r, v, discount, carry, 1), tensor([3.0, 5, 7, 5], dtype=D))
    torch.testing.assert_close(n_step_returns(r, v, discount, carry, 2), tensor([3.5, 5, 5.5, 5], dtype=D))
    # lambda .5: G_0 = 1 + .5 * (.5 * 4 + .5 * 5) = 3.25, G_2 = 3 + .5 * (.5 * 8 + .5 * 5) = 6.25
    torch.testing.assert_close(lambda_returns(r, v, discount, carry, 0.5), tensor([3.25, 5, 6.25, 5], dtype=D))
    # carry says the same as booleans
    torch.testing.assert_close(lambda_returns(r, v, discount, carry.bool().double(), 0.5), tensor([3.25, 5, 6.25, 5], dtype=D))
    # a cut taken for an end loses what was still to come
    assert discounted_returns(r, v, 0.5 * carry, carry)[1].item() == 2


def test_n_counts_the_rewards() -> None:
    # rewards 1, 10, 100, 1000 and gamma 1/10: seen from the first step each is worth 1; V = 0 but at the end of the window, where it is 5
    r, one = tensor([1.0, 10, 100, 1000], dtype=D), torch.ones(4, dtype=D)
    v = tensor([0.0, 0, 0, 5], dtype=D)
    for n, first in ((1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0005), (5, 4.0005), (10**12, 4.0005)):
        assert n_step_returns(r, v, 0.1 * one, one, n)[0].item() == pytest.approx(first, rel=1e-12)
    assert n_step_returns(r, v, 0.1 * one, one, 2)[2].item() == pytest.approx(100 + 100 + 0.05)


# -- TD error and GAE ----------------------------------------------------------------------------------------------------
def test_td_error_takes_numbers_arrays_and_tensors() -> None:
    number = td_error(1.0, 0.5, 2.0, 0.9)
    assert number == pytest.approx(2.3) and isinstance(number, float)
    array = td_error(np.array([1.0, 0.0]), np.array([0.5, 3.0]), np.array([2.0, 4.0]), 0.5)  # 1 + 1 - .5, 0 + 2 - 3
    assert isinstance(array, np.ndarray) and array.tolist() == [1.5, -1.0]
    tensors = td_error(tensor([1.0]), tensor([0.5]), tensor([2.0]), tensor([0.0]))
    assert isinstance(tensors, torch.Tensor) and tensors.tolist() == [0.5]


def test_gae_equals_the_published_example() -> None:
    # rlax, torchrl and Stable-Baselines3 agree on this: r = [0, 0, 1, 0], V = [.1, .2, .3, .4], terminal at the end, gamma 1, lambda .95
    r, v = tensor([0.0, 0, 1, 0], dtype=D), tensor([0.1, 0.2, 0.3, 0.4], dtype=D)
    nxt, alive = tensor([0.2, 0.3, 0.4, 0.0], dtype=D), tensor([1.0, 1, 1, 0], dtype=D)
    a = gae(r, v, nxt, alive, alive, 0.95)
    torch.testing.assert_close(a, tensor([0.8448, 0.7840, 0.7200, -0.4], dtype=D), atol=5e-5, rtol=0)
    torch.testing.assert_close(a + v, tensor([0.9448, 0.9840, 1.02, 0.0], dtype=D), atol=5e-5, rtol=0)


def test_gae_equals_verls_example_with_padding() -> None:
    # verl: row 0 is one token shorter; gamma 1, lambda .95
    r, v = tensor([[0.0, 0, 1, 0], [0, 0, 0, 2]], dtype=D), tensor([[0.1, 0.2, 0.3, 0], [0.5, 0.4, 0.3, 0.2]], dtype=D)
    nxt = tensor([[0.2, 0.3, 0, 0], [0.4, 0.3, 0.2, 0]], dtype=D)
    alive = tensor([[1.0, 1, 0, 0], [1, 1, 1, 0]], dtype=D)
    expected = tensor([[0.92675, 0.9650, 1.0, 0], [1.7580, 1.8295, 1.9100, 2.0]], dtype=D)
    torch.testing.assert_close(gae(r, v, nxt, alive, alive, 0.95) + v, expected, atol=5e-5, rtol=0)
    torch.testing.assert_close(lambda_returns(r, nxt, alive, alive, 0.95), expected, atol=5e-5, rtol=0)


def test_truncation_is_not_termination() -> None:
    # Reward 1 for ever, gamma .9: V = 1 / (1 - .9) = 10 everywhere is exact, so every advantage is 0 when the cut at t = 2 bootstraps.
    one, ten = torch.ones(6, dtype=D), torch.full((6,), 10.0, dtype=D)
    carry = tensor([1.0, 1, 0, 1, 1, 0], dtype=D)
    torch.testing.assert_close(gae(one, ten, ten, 0.9 * one, carry, 0.95), torch.zeros(6, dtype=D), atol=1e-12, rtol=0)
    naive = gae(one, ten, ten, 0.9 * carry, carry, 0.95)  # the cut taken for an end
    assert naive[2].item() == pytest.approx(1 - 10)


def test_nothing_leaks_over_a_boundary() -> None:
    # the second episode's reward of 1000 is nobody's business in the first, however the first ended
    r, zero, one = tensor([0.0, 0, 1000], dtype=D), torch.zeros(3, dtype=D), torch.ones(3, dtype=D)
    for discount in (one, tensor([1.0, 0, 1], dtype=D)):
        carry = tensor([1.0, 0, 1], dtype=D)
        for found in (gae(r, zero, zero, discount, carry, 1.0), discounted_returns(r, zero, discount, carry), n_step_returns(r, zero, discount, carry, 3)):
            assert found.tolist() == [0, 0, 1000]
    assert gae(r, zero, zero, one, one, 1.0).tolist() == [1000, 1000, 1000]  # without the boundary it would be


# -- whitening -----------------------------------------------------------------------------------------------------------
def test_whitening_equals_the_published_numbers() -> None:
    x = tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]], dtype=D)
    full = torch.ones_like(x, dtype=torch.bool)
    population = tensor([[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]], dtype=D)
    unbiased = tensor([[0.1394, 0.5046, 0.8697], [1.2349, 1.6, 1.9651], [2.3303, 2.6954, 3.0606]], dtype=D)
    torch.testing.assert_close(whiten(x, full, shift_mean=False, ddof=0), population, atol=5e-5, rtol=0)
    torch.testing.assert_close(whiten(x, full, shift_mean=False, ddof=1), unbiased, atol=5e-5, rtol=0)
    torch.testing.assert_close(whiten(x, full, shift_mean=False), unbiased, atol=5e-5, rtol=0)  # n - 1 is the default
    torch.testing.assert_close(whiten(x, full), unbiased - 1.6, atol=5e-5, rtol=0)  # and so is a mean of 0


def test_whitenings_eps_stands_inside_the_root() -> None:
    x, both = tensor([0.0, 2e-4], dtype=D), tensor([True, True])
    # mean 1e-4, population variance 1e-8: 1e-4 / sqrt(1e-8 + 1e-8) = 1 / sqrt 2; with eps 3e-8, 1e-4 / sqrt(4e-8) = 1/2
    torch.testing.assert_close(whiten(x, both, ddof=0), tensor([-(0.5**0.5), 0.5**0.5], dtype=D))
    torch.testing.assert_close(whiten(x, both, ddof=0, eps=3e-8), tensor([-0.5, 0.5], dtype=D))
    # unbiased variance 2e-8: 1e-4 / sqrt(2e-8 + 2e-8) = 1/2
    torch.testing.assert_close(whiten(x, both, eps=2e-8), tensor([-0.5, 0.5], dtype=D))


def test_whitening_ignores_what_does_not_count() -> None:
    nan, inf = float("nan"), float("inf")
    torch.testing.assert_close(whiten(tensor([1.0, 3.0, 1e6]), tensor([True, True, False]), ddof=0), tensor([-1.0, 1.0, 0.0]))
    junk, where = tensor([1.0, 3.0, nan, inf]), tensor([True, True, False, False])
    torch.testing.assert_close(whiten(junk, where, ddof=0), tensor([-1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(whiten(junk, where, ddof=0, shift_mean=False), tensor([1.0, 3.0, 0.0, 0.0]))
    torch.testing.assert_close(whiten(tensor([1, 3, 9]), tensor([1, 1, 0]), ddof=0), tensor([-1.0, 1.0, 0.0]))  # whole numbers, and a mask of them


@pytest.mark.parametrize("ddof", [0, 1])
def test_one_element_has_no_spread(ddof: int) -> None:
    assert whiten(tensor([5.0, 7.0]), tensor([True, False]), ddof=ddof).tolist() == [5.0, 0.0]
    assert whiten(tensor([5.0]), tensor([False]), ddof=ddof).tolist() == [0.0]
    assert whiten(tensor([5.0, 5.0]), tensor([True, True]), ddof=ddof).tolist() == [0.0, 0.0]
    assert whiten(tensor([4.0, 6.0]), tensor([True, True]), ddof=ddof)[1].item() == pytest.approx(0.5**0.5 if ddof else 1.0)


# -- groups --------------------------------------------------------------------------------------------------------------
def test_group_advantages_equal_the_published_example() -> None:
    r, sign = tensor([1.0, 0, 0, 1], dtype=D), tensor([1.0, -1, -1, 1], dtype=D)
    # std with n - 1: sqrt(4 * .25 / 3) = .57735; verl (eps 1e-6) .8660, TRL (eps 1e-4) .8659; the population's .5 gives 1
    torch.testing.assert_close(group_standardised(r), sign * (0.5 / (3**-0.5 + 1e-6)), rtol=1e-12, atol=0)
    torch.testing.assert_close(group_standardised(r), sign * 0.8660, atol=5e-5, rtol=0)
    torch.testing.assert_close(group_standardised(r, eps=1e-4), sign * 0.8659, atol=5e-5, rtol=0)
    torch.testing.assert_close(group_standardised(r, ddof=0), sign * (0.5 / (0.5 + 1e-6)), rtol=1e-12, atol=0)
    torch.testing.assert_close(leave_one_out(r), sign * 2 / 3)
    torch.testing.assert_close(group_centred(r), sign / 2)


def test_each_group_stands_alone() -> None:
    r = tensor([[[1.0, 2, 3], [10, 10, 40]]], dtype=D)  # means 2 and 20, sample variances 1 and (100 + 100 + 400) / 2 = 300
    torch.testing.assert_close(group_centred(r), tensor([[[-1.0, 0, 1], [-10, -10, 20]]], dtype=D))
    torch.testing.assert_close(leave_one_out(r), tensor([[[-1.5, 0, 1.5], [-15, -15, 30]]], dtype=D))  # 1 - 2.5, 2 - 2, 3 - 1.5; 10 - 25, 40 - 10
    expected = tensor([[[-1.0, 0, 1], [-10 / 300**0.5, -10 / 300**0.5, 20 / 300**0.5]]], dtype=D)
    torch.testing.assert_close(group_standardised(r), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("function", [group_centred, group_standardised, leave_one_out])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_equal_rewards_give_exactly_nothing(function, dtype) -> None:  # type: ignore[no-untyped-def]
    for value in (0.1, -0.3, 1 / 3, 1e6 + 0.1):
        for size in (2, 3, 7, 10):  # three times 0.1, summed and divided by 3, is not 0.1
            assert function(torch.full((2, size), value, dtype=dtype)).eq(0).all()


def test_a_floor_keeps_a_narrow_spread_small() -> None:
    narrow, wide = tensor([0.9, 0.95], dtype=D), tensor([0.0, 1.0], dtype=D)
    # the sample std of two is their distance d / sqrt 2: without a floor both give -+ (d / 2) / (d / sqrt 2) = -+ 1 / sqrt 2
    sign = tensor([-1.0, 1.0], dtype=D)
    torch.testing.assert_close(group_standardised(narrow, eps=1e-12), sign * 0.5**0.5)
    torch.testing.assert_close(group_standardised(narrow, eps=1e-12, floor=0.1), sign * 0.025 / 0.1)  # .0354 is below the floor
    torch.testing.assert_close(group_standardised(wide, eps=1e-12, floor=0.1), sign * 0.5**0.5)  # .707 is above it
    torch.testing.assert_close(group_standardised(narrow, eps=0.1, floor=0.1), sign * 0.025 / 0.2)
