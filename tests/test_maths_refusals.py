"""What cannot be meant is refused, at its exact boundary, with the value and the remedy; what can be meant is accepted there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from truing.maths import check, kl, reduce, stats
from truing.maths.advantages import gae, group_centred, group_standardised, leave_one_out, whiten
from truing.maths.likelihood import from_logits, token_likelihood
from truing.maths.policy import cispo, clip_share, clipped_surrogate, ratio, reinforce, sequence_logp, sequence_logp_at_tokens, truncated_importance
from truing.maths.preference import bradley_terry, centering
from truing.maths.returns import discounted_returns, lambda_returns, n_step_returns
from truing.maths.value import clipped_squared_error, squared_error

NAN, INF = float("nan"), float("inf")
TINY = 1e-9  # a boundary's other side
ONE, TWO = torch.ones(2), torch.ones(2, 1)  # TWO would broadcast against ONE to [2, 2]
TRUE = torch.ones(2, dtype=torch.bool)
IDS = tensor([0, 1])


def steps(**changed: Tensor) -> list[Tensor]:
    """rewards, next_values, discount, carry."""
    return list({**dict(rewards=ONE, next_values=ONE, discount=ONE, carry=ONE), **changed}.values())


def gae_with(lam: float = 0.9, values: Tensor = ONE, **changed: Tensor) -> Tensor:
    r, v, d, c = steps(**changed)
    return gae(r, values, v, d, c, lam)


RETURNS: dict[str, Callable[..., Tensor]] = {
    "gae": gae_with,
    "discounted_returns": lambda **c: discounted_returns(*steps(**c)),
    "lambda_returns": lambda lam=0.9, **c: lambda_returns(*steps(**c), lam),
    "n_step_returns": lambda n=2, **c: n_step_returns(*steps(**c), n),
}
BAD_STEPS: dict[str, tuple[dict[str, Tensor], str]] = {
    "a NaN reward": (dict(rewards=tensor([1.0, NAN])), r"rewards holds NaN or infinity in 1 of 2 places; leave failed samples out"),
    "infinite rewards": (dict(rewards=tensor([INF, -INF])), "rewards holds NaN or infinity in 2 of 2"),
    "a NaN value": (dict(next_values=tensor([NAN, 1.0])), "next_values holds NaN"),
    "whole numbers": (dict(rewards=tensor([1, 0])), r"rewards holds torch.int64; make it floating point, rewards.float\(\)"),
    "gamma above 1": (dict(discount=tensor([1.0, 1.001])), "discount spans 1.0 to 1.00.*gamma in"),
    "gamma below 0": (dict(discount=tensor([-0.001, 1.0])), "discount spans -0.001.* to 1.0"),
    "a NaN gamma": (dict(discount=tensor([1.0, NAN])), "discount spans nan"),
    "half a boundary": (dict(carry=tensor([0.5, 1.0])), "carry spans 0.5 to 1.0; it is 1 inside an episode"),
    "a negative carry": (dict(carry=tensor([-1.0, 1.0])), "carry spans -1.0"),
    "another length": (dict(carry=torch.ones(3)), r"every argument has one shape; got rewards \(2,\).*carry \(3,\)"),
    "next values of another layout": (dict(next_values=TWO), r"every argument has one shape.*next_values \(2, 1\)"),
    "another layout": (dict(discount=TWO), r"every argument has one shape.*discount \(2, 1\)"),
}


@pytest.mark.parametrize("function", RETURNS)
@pytest.mark.parametrize("what", BAD_STEPS)
def test_bad_steps_are_refused(function: str, what: str) -> None:
    changed, message = BAD_STEPS[what]
    with pytest.raises(ValueError, match=f"{function}: {message}"):
        RETURNS[function](**changed)


@pytest.mark.parametrize("function", RETURNS)
@pytest.mark.parametrize("empty", [torch.zeros(0), torch.zeros(3, 0), torch.tensor(1.0)])
def test_no_steps_are_refused(function: str, empty: Tensor) -> None:
    values = {"values": empty} if function == "gae" else {}
    with pytest.raises(ValueError, match=f"{function}: rewards .* has no steps"):
        RETURNS[function](rewards=empty, next_values=empty, discount=empty, carry=empty, **values)


@pytest.mark.parametrize("function", RETURNS)
def test_the_ends_of_the_allowed_are_allowed(function: str) -> None:
    for discount in (torch.zeros(2), ONE):
        for carry in (torch.zeros(2), ONE, TRUE if function == "gae" else ONE):
            assert torch.isfinite(RETURNS[function](discount=discount, carry=carry)).all()
    one_step = {"values": torch.ones(1)} if function == "gae" else {}
    assert RETURNS[function](rewards=torch.ones(1), next_values=torch.ones(1), discount=torch.ones(1), carry=torch.ones(1), **one_step).shape == (1,)


def pairs_of(function: Callable[..., Any], count: int, *rest: Any) -> list[Callable[[], Any]]:
    """Calls with one argument of another shape, each in turn."""
    return [lambda i=i: function(*(TWO if j == i else ONE for j in range(count)), *rest) for i in range(count)]


SHAPES: dict[str, list[Callable[[], Any]]] = {
    "reinforce": pairs_of(reinforce, 2),
    "ratio": pairs_of(ratio, 2),
    "clipped_surrogate|ratio": pairs_of(clipped_surrogate, 3),
    "clip_share|ratio": pairs_of(clip_share, 2),
    "reinforce|ratio": pairs_of(cispo, 3),
    "sequence_logp": [lambda: sequence_logp(ONE, torch.ones(3)), lambda: sequence_logp_at_tokens(ONE, torch.ones(3)), lambda: sequence_logp(TWO, ONE)],
    "squared_error": pairs_of(squared_error, 2),
    "clipped_squared_error": pairs_of(clipped_squared_error, 3, 0.2),
    "bradley_terry": [*pairs_of(bradley_terry, 2), lambda: bradley_terry(ONE, ONE, TWO), lambda: bradley_terry(ONE, ONE, torch.ones(1))],
    "centering": pairs_of(centering, 2),
    "k1": pairs_of(kl.k1, 2),
    "k2": pairs_of(kl.k2, 2),
    "k3": pairs_of(kl.k3, 2),
    "exact": pairs_of(kl.exact, 2),
    "penalty|ratio|k2": pairs_of(kl.penalty, 4, "k2"),
    "penalty|ratio|k3": pairs_of(kl.penalty, 4, "k3"),
    "ratio|truncated_importance": pairs_of(truncated_importance, 2, 2.0),
    "reduce.tokens": pairs_of(reduce.tokens, 2, 2),
    "reduce.sequences": pairs_of(reduce.sequences, 2, 2),
    "reduce.constant": pairs_of(reduce.constant, 2, 2, 2),
    "whiten": pairs_of(whiten, 2),
    "gae": [lambda: gae_with(values=TWO)],
}


@pytest.mark.parametrize("names", SHAPES)
def test_shapes_that_would_broadcast_are_refused(names: str) -> None:
    for call in SHAPES[names]:
        with pytest.raises(ValueError, match=rf"^({names.replace('.', '[.]')}): every argument has one shape; got .*(\(2, 1\)|\(3,\)|\(1,\))"):
            call()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    # settings, just outside
    "lam above 1": (lambda: gae_with(1 + TINY), r"gae: lam=1.000000001 lies outside \[0, 1\]"),
    "lam below 0": (lambda: gae_with(-TINY), "gae: lam=-1e-09"),
    "lam NaN": (lambda: gae_with(NAN), "gae: lam=nan"),
    "lambda return above 1": (lambda: lambda_returns(*steps(), 1 + TINY), "lambda_returns: lam=1.000000001"),
    "lambda return below 0": (lambda: lambda_returns(*steps(), -TINY), "lambda_returns: lam=-1e-09"),
    "NaN value": (lambda: gae_with(values=tensor([NAN, 0.0])), "gae: values holds NaN"),
    "n 0": (lambda: n_step_returns(*steps(), 0), "n_step_returns: n=0; a return counts 1"),
    "n -1": (lambda: n_step_returns(*steps(), -1), "n=-1"),
    "clip_low": (lambda: clipped_surrogate(ONE, ONE, ONE, -TINY), "clipped_surrogate: clip_low=-1e-09, clip_high=-1e-09; bounds are widths"),
    "clip_low alone": (lambda: clipped_surrogate(ONE, ONE, ONE, -TINY, 0.2), "clip_low=-1e-09, clip_high=0.2"),
    "clip_high": (lambda: clipped_surrogate(ONE, ONE, ONE, 0.2, -TINY), "clip_low=0.2, clip_high=-1e-09"),
    "clip NaN": (lambda: clipped_surrogate(ONE, ONE, ONE, NAN), "clip_low=nan"),
    "dual_clip 1": (lambda: clipped_surrogate(ONE, ONE, ONE, dual_clip=1.0), "dual_clip=1.0 must be above 1"),
    "dual_clip NaN": (lambda: clipped_surrogate(ONE, ONE, ONE, dual_clip=NAN), "dual_clip=nan"),
    "clip_share": (lambda: clip_share(ONE, ONE, -TINY), "clip_share: clip_low=-1e-09"),
    "clip_share high": (lambda: clip_share(ONE, ONE, 0.2, -TINY), "clip_share: .*clip_high=-1e-09"),
    "cispo high": (lambda: cispo(ONE, ONE, ONE, clip_high=-TINY), "cispo: .*clip_high=-1e-09"),
    "cispo low": (lambda: cispo(ONE, ONE, ONE, clip_low=-TINY), "cispo: clip_low=-1e-09"),
    "value clip 0": (lambda: clipped_squared_error(ONE, ONE, ONE, 0.0), "clip=0.0 must be positive; leave clipping out with squared_error"),
    "value clip NaN": (lambda: clipped_squared_error(ONE, ONE, ONE, NAN), "clip=nan"),
    # whitening and groups
    "whiten NaN": (lambda: whiten(tensor([1.0, NAN]), TRUE), "whiten: x holds NaN"),
    "whiten ddof": (lambda: whiten(ONE, TRUE, ddof=2), "whiten: ddof=2; 1 divides by n - 1, 0 by n"),
    "whiten negative ddof": (lambda: whiten(ONE, TRUE, ddof=-1), "ddof=-1"),
    "whiten eps": (lambda: whiten(ONE, TRUE, eps=0.0), "whiten: eps=0.0 must be positive"),
    "whiten eps NaN": (lambda: whiten(ONE, TRUE, eps=NAN), "eps=nan"),
    "group ddof": (lambda: group_standardised(ONE, ddof=2), "group_standardised: ddof=2"),
    "group eps": (lambda: group_standardised(ONE, eps=0.0), "group_standardised: eps=0.0"),
    "group floor": (lambda: group_standardised(ONE, floor=0.0), "group_standardised: floor=0.0 must be positive, or None"),
    "group floor NaN": (lambda: group_standardised(ONE, floor=NAN), "floor=nan"),
    # likelihood
    "temperature 0": (lambda: token_likelihood(torch.zeros(2, 3), torch.zeros(5, 3), IDS, temperature=0), "token_likelihood: temperature=0 must be positive"),
    "temperature -1": (lambda: from_logits(torch.zeros(2, 3), IDS, temperature=-1), "from_logits: temperature=-1"),
    "temperature NaN": (lambda: from_logits(torch.zeros(2, 3), IDS, temperature=NAN), "temperature=nan"),
    "temperature inf": (lambda: from_logits(torch.zeros(2, 3), IDS, temperature=INF), "temperature=inf"),
    "chunk": (lambda: from_logits(torch.zeros(2, 3), IDS, chunk=0), "from_logits: chunk=0 must be 1 or more"),
    "head chunk": (lambda: token_likelihood(torch.zeros(2, 3), torch.zeros(5, 3), IDS, chunk=0), "token_likelihood: chunk=0"),
    "target 5 of 5": (lambda: token_likelihood(torch.zeros(2, 3), torch.zeros(5, 3), tensor([0, 5])), r"token_likelihood: token ids span 0..5, outside the 5 choices 0..4"),
    "target -1": (lambda: token_likelihood(torch.zeros(2, 3), torch.zeros(5, 3), tensor([-1, 4])), "span -1..4"),
    "logit target": (lambda: from_logits(torch.zeros(2, 3), tensor([0, 3])), "from_logits: token ids span 0..3, outside the 3 choices 0..2"),
    "logit target -1": (lambda: from_logits(torch.zeros(2, 3), tensor([-1, 0])), "span -1..0"),
    "target shape": (lambda: from_logits(torch.zeros(2, 3), tensor([0, 0, 0])), r"from_logits: targets \(3,\) must be \(2,\), one a row"),
    "head target shape": (lambda: token_likelihood(torch.zeros(2, 3), torch.zeros(5, 3), tensor([[0, 0]])), r"token_likelihood: targets \(1, 2\) must be \(2,\)"),
    "a single logit": (lambda: from_logits(tensor(1.0), IDS), "from_logits: logits is a single number"),
    "hidden of 3 axes": (lambda: token_likelihood(torch.zeros(1, 2, 3), torch.zeros(5, 3), IDS), r"token_likelihood: hidden \(1, 2, 3\), weight \(5, 3\), bias None; they are"),
    "hidden of 3 axes that nearly fit": (lambda: token_likelihood(torch.zeros(2, 3, 1), torch.zeros(5, 3), IDS), r"hidden \(2, 3, 1\)"),
    "hidden of 1 axis": (lambda: token_likelihood(torch.zeros(3), torch.zeros(5, 3), IDS), r"hidden \(3,\)"),
    "a head of 1 axis": (lambda: token_likelihood(torch.zeros(2, 3), torch.zeros(3), IDS), r"weight \(3,\)"),
    "another width": (lambda: token_likelihood(torch.zeros(2, 3), torch.zeros(5, 4), IDS), r"weight \(5, 4\)"),
    "head of 3 axes": (lambda: token_likelihood(torch.zeros(2, 3), torch.zeros(5, 3, 1), IDS), r"weight \(5, 3, 1\)"),
    "another bias": (lambda: token_likelihood(torch.zeros(2, 3), torch.zeros(5, 3), IDS, bias=torch.zeros(4)), r"bias \(4,\)"),
    "a broadcasting bias": (lambda: token_likelihood(torch.zeros(2, 3), torch.zeros(5, 3), IDS, bias=torch.zeros(1)), r"bias \(1,\)"),
    "cap": (lambda: truncated_importance(ONE, ONE, 1 - TINY), "truncated_importance: cap=0.999999999 must be 1 or more"),
    "cap NaN": (lambda: truncated_importance(ONE, ONE, NAN), "cap=nan"),
    "kind k1": (lambda: kl.penalty(ONE, ONE, ONE, ONE, "k1"), "penalty: kind='k1' must be 'k2' or 'k3'"),
    "kind": (lambda: kl.penalty(ONE, ONE, ONE, ONE, "K2"), "kind='K2'"),
    # KL controller
    "kl NaN": (lambda: kl.AdaptiveCoefficient(0.1, 6.0).after(NAN, 1), "kl=nan is not finite"),
    "kl inf": (lambda: kl.AdaptiveCoefficient(0.1, 6.0).after(INF, 1), "kl=inf"),
    "coef": (lambda: kl.AdaptiveCoefficient(-TINY, 6.0), "coef=-1e-09 cannot be negative"),
    "target": (lambda: kl.AdaptiveCoefficient(0.1, 0.0), "target=0.0"),
    "horizon": (lambda: kl.AdaptiveCoefficient(0.1, None, 0), "horizon=0 must be positive"),
    "five horizons": (lambda: kl.AdaptiveCoefficient(0.1, 6.0, 100).after(1.0, 500), "500 sequences at once against horizon=100; .*raise horizon"),
    "no sequences": (lambda: kl.AdaptiveCoefficient(0.1, 6.0, 100).after(1.0, 0), "0 sequences"),
    # reductions
    "no tokens": (lambda: reduce.tokens(ONE, ONE, 0), "reduce.tokens: total=0; the batch has nothing that counts"),
    "no sequences at all": (lambda: reduce.sequences(ONE, ONE, 0), "reduce.sequences: total=0"),
    "no constant": (lambda: reduce.constant(ONE, ONE, 0, 1), "reduce.constant: total=0"),
    "no length": (lambda: reduce.constant(ONE, ONE, 1, 0), "reduce.constant: length=0"),
    "no pairs": (lambda: reduce.elements(ONE, 0), "reduce.elements: total=0"),
    "negative": (lambda: reduce.tokens(ONE, ONE, -1), "total=-1"),
    # statistics
    "one value": (lambda: stats.bootstrap([1.0]), r"bootstrap: 1 value\(s\); an interval needs 2 or more"),
    "a number": (lambda: stats.bootstrap(1.0), "2 or more"),
    "a NaN": (lambda: stats.bootstrap([1.0, NAN]), "bootstrap: values hold NaN"),
    "level 0": (lambda: stats.bootstrap([1.0, 2.0], level=0.0), r"level=0.0 lies outside \(0, 1\)"),
    "level 1": (lambda: stats.bootstrap([1.0, 2.0], level=1.0), "level=1.0"),
    "no resamples": (lambda: stats.bootstrap([1.0, 2.0], resamples=0), "resamples=0"),
    "no trials": (lambda: stats.wilson(0, 0), "wilson: trials=0"),
    "z 0": (lambda: stats.wilson(0, 1, z=0), "z=0"),
    "too many": (lambda: stats.wilson(3 + TINY, 3), r"successes=3.000000001 lies outside \[0, trials=3\]"),
    "too few": (lambda: stats.wilson(-TINY, 3), "successes=-1e-09"),
    "NaN successes": (lambda: stats.wilson(NAN, 3), "successes=nan"),
    "NaN trials": (lambda: stats.wilson(0, NAN), "trials=nan"),
    "calibration shapes": (lambda: stats.calibration_error([0.5], [1.0, 0.0]), r"probabilities \(1,\) and outcomes \(2,\) must be equal in shape and not empty"),
    "calibration of nothing": (lambda: stats.calibration_error([], []), "not empty"),
    "probability above 1": (lambda: stats.calibration_error([0.5, 1 + TINY], [1.0, 0.5]), "probabilities span 0.5 to 1.000000001"),
    "probability below 0": (lambda: stats.calibration_error([-TINY, 0.5], [1.0, 0.5]), "probabilities span -1e-09 to 0.5"),
    "outcome above 1": (lambda: stats.calibration_error([0.5, 0.5], [0.5, 1 + TINY]), "outcomes 0.5 to 1.000000001"),
    "outcome below 0": (lambda: stats.calibration_error([0.5, 0.5], [-TINY, 0.5]), "outcomes -1e-09 to 0.5"),
    "probability NaN": (lambda: stats.calibration_error([NAN], [1.0]), "probabilities or outcomes hold NaN"),
    "outcome NaN": (lambda: stats.calibration_error([0.5], [NAN]), "hold NaN"),
    "no bins": (lambda: stats.calibration_error([0.5], [1.0], bins=0), "bins=0"),
    "variance shapes": (lambda: stats.explained_variance([1.0], [1.0, 2.0]), r"explained_variance: values \(1,\) and targets \(2,\)"),
    "variance of nothing": (lambda: stats.explained_variance([], []), "not empty"),
    "variance NaN": (lambda: stats.explained_variance([1.0, NAN], [1.0, 2.0]), "values or targets hold NaN"),
    "variance target NaN": (lambda: stats.explained_variance([1.0, 2.0], [INF, 2.0]), "hold NaN"),
    "k 0": (lambda: stats.pass_at_k(5, 1, 0), r"pass_at_k: k=0 lies outside \[1, 5\]"),
    "k above n": (lambda: stats.pass_at_k([9, 5], 1, 6), r"k=6 lies outside \[1, 5\]"),
    "c above n": (lambda: stats.pass_at_k(5, [5, 6], 1), r"samples=5, correct=\[5, 6\]; both count"),
    "c negative": (lambda: stats.pass_at_k(5, -1, 1), "correct=-1"),
    "c not whole": (lambda: stats.pass_at_k(5, 1.5, 1), "correct=1.5"),
    "n not whole": (lambda: stats.pass_at_k(5.5, 1, 1), "samples=5.5"),
    "c NaN": (lambda: stats.pass_at_k(5, NAN, 1), "correct=nan"),
    "n infinite": (lambda: stats.pass_at_k(INF, 1, 1), "samples=inf"),
    "n and c": (lambda: stats.pass_at_k([5, 5], [1, 1, 1], 1), r"samples \(2,\) and correct \(3,\) differ in shape"),
    "n and c would broadcast": (lambda: stats.pass_at_k([[5], [5]], [1, 1], 1), "differ in shape"),
    "no table": (lambda: stats.fleiss_kappa([3, 0]), r"fleiss_kappa: counts \(2,\); it is a table"),
    "empty table": (lambda: stats.fleiss_kappa([[]]), "it is a table"),
    "negative count": (lambda: stats.fleiss_kappa([[3, -1], [1, 1]]), "a count is negative or not a whole number"),
    "half a vote": (lambda: stats.fleiss_kappa([[1.5, 0.5]]), "not a whole number"),
    "a NaN vote": (lambda: stats.fleiss_kappa([[NAN, 2]]), "not a whole number"),
    "infinite votes": (lambda: stats.fleiss_kappa([[INF, 2]]), "not a whole number"),
    "unequal raters": (lambda: stats.fleiss_kappa([[2, 1], [1, 2], [2, 2]]), "row 2 has 4 ratings and row 0 has 3; leave incomplete subjects out"),
    "one rater": (lambda: stats.fleiss_kappa([[1, 0], [0, 1]]), r"1 rating\(s\) a subject"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_meant_is_refused(what: str) -> None:
    call, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        call()


ACCEPTED: dict[str, Callable[[], Any]] = {
    "lam 0": lambda: gae_with(0),
    "lam 1": lambda: gae_with(1),
    "lambda return 0": lambda: lambda_returns(*steps(), 0),
    "lambda return 1": lambda: lambda_returns(*steps(), 1),
    "n 1": lambda: n_step_returns(*steps(), 1),
    "clip 0": lambda: clipped_surrogate(ONE, ONE, ONE, 0.0, 0.0),
    "dual_clip": lambda: clipped_surrogate(ONE, ONE, ONE, dual_clip=1 + TINY),
    "clip_share 0": lambda: clip_share(ONE, ONE, 0.0, 0.0),
    "cispo 0": lambda: cispo(ONE, ONE, ONE, clip_low=0.0, clip_high=0.0),
    "value clip": lambda: clipped_squared_error(ONE, ONE, ONE, TINY),
    "eps": lambda: whiten(ONE, TRUE, ddof=0, eps=TINY),
    "floor": lambda: group_standardised(ONE, ddof=0, eps=TINY, floor=TINY),
    "chunk 1": lambda: from_logits(torch.zeros(2, 3), IDS, chunk=1),
    "last choice": lambda: from_logits(torch.zeros(2, 2), IDS),
    "last token": lambda: token_likelihood(torch.zeros(2, 3), torch.zeros(2, 3), IDS),
    "cold": lambda: from_logits(torch.zeros(2, 2), IDS, temperature=TINY),
    "coef 0": lambda: kl.AdaptiveCoefficient(0.0, TINY, 1).after(0.0, 4),
    "one of one": lambda: (reduce.tokens(ONE, ONE, 1), reduce.sequences(ONE, ONE, 1), reduce.constant(ONE, ONE, 1, 1), reduce.elements(ONE, 1)),
    "level": lambda: stats.bootstrap([1.0, 2.0], level=TINY, resamples=1),
    "level near 1": lambda: stats.bootstrap([1.0, 2.0], level=1 - TINY, resamples=1),
    "none of one": lambda: stats.wilson(0, 1, z=TINY),
    "half of a half": lambda: stats.wilson(0.5, 0.5),
    "probabilities 0 and 1": lambda: stats.calibration_error([0.0, 1.0], [0.0, 1.0], bins=1),
    "k 1 of 1": lambda: stats.pass_at_k(1, [0, 1], 1),
    "two raters": lambda: stats.fleiss_kappa([[1, 1]]),
    "no margin axis": lambda: bradley_terry(ONE, ONE, tensor(0.5)),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_what_can_be_meant_is_accepted_at_its_boundary(what: str) -> None:
    ACCEPTED[what]()


@pytest.mark.parametrize("function", [group_centred, group_standardised, leave_one_out])
def test_groups_refuse_what_has_no_other_to_be_compared_with(function: Callable[[Tensor], Tensor]) -> None:
    name = function.__name__
    for alone in (torch.ones(1), torch.ones(4, 1), tensor(1.0), torch.zeros(0)):
        with pytest.raises(ValueError, match=rf"{name}: rewards \(.*; the last axis is the group.*use 2 or more"):
            function(alone)
    with pytest.raises(ValueError, match=f"{name}: rewards holds NaN or infinity in 1 of 2 places"):
        function(tensor([NAN, 1.0]))
    with pytest.raises(ValueError, match=f"{name}: rewards holds torch.int64"):
        function(tensor([1, 0]))
    assert function(ONE).shape == (2,) and function(torch.zeros(0, 2)).shape == (0, 2)


def test_checks_let_pass_what_is_right() -> None:
    check.same_shape("x")
    check.same_shape("x", a=ONE)
    check.finite("x", a=torch.zeros(0))
    check.fraction("x", a=0, b=1)
    assert kl.AdaptiveCoefficient(0.1, None).after(INF, 0).coef == 0.1  # without a target nothing is steered
    assert not math.isnan(float(whiten(tensor([1.0, NAN]), tensor([True, False]))[0]))
