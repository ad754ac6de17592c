"""Every preset equals its paper's formula on a group of four with rewards 1 0 0 1, written out here number by number."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import tensor

import grpo_by_hand as hand
from grpo_by_hand import LENGTHS, LOGP, OLD, REF, REWARDS
from truing.config import GRPO, PRESETS
from truing.errors import TruingError
from truing.methods.groups import advantages
from truing.rewards.shaping import soft_overlong

# Rewards 1 0 0 1: mean 1/2, standard deviation (n - 1) sqrt(4 * 0.25 / 3) = 0.57735; others' mean 1/3 or 2/3.
STANDARDISED = [s * 0.5 / (math.sqrt(1 / 3) + 1e-6) for s in (1, -1, -1, 1)]
CENTRED = [0.5, -0.5, -0.5, 0.5]
LEAVE_ONE_OUT = [2 / 3, -2 / 3, -2 / 3, 2 / 3]


def clipped(i: int, t: int, a: float, low: float, high: float) -> float:
    rho = math.exp(LOGP[i][t] - OLD[i][t])
    return -min(rho * a, min(max(rho, 1 - low), 1 + high) * a)


def tokens() -> list[tuple[int, int]]:
    return [(i, t) for i in range(4) for t in range(LENGTHS[i])]


def k3(i: int, t: int) -> float:
    d = REF[i][t] - LOGP[i][t]
    return math.exp(d) - 1 - d


def grpo() -> float:
    """Equation 3: mean over outputs of the mean over their tokens of (surrogate - beta k3)."""
    return sum(sum(clipped(i, t, STANDARDISED[i], 0.2, 0.2) + 0.04 * k3(i, t) for t in range(n)) / n for i, n in enumerate(LENGTHS)) / 4


def dr_grpo() -> float:
    """No division by the spread, and a constant instead of the length: max_new_tokens = 5."""
    return sum(clipped(i, t, CENTRED[i], 0.2, 0.2) for i, t in tokens()) / (4 * 5)


def dapo() -> float:
    """Clip-higher, a mean over all tokens of the group, and the soft penalty: the last 20% of 5 tokens is one, so 5 tokens would cost 1 and none here does."""
    return sum(clipped(i, t, STANDARDISED[i], 0.2, 0.28) for i, t in tokens()) / sum(LENGTHS)


def gspo() -> float:
    """s_i = exp(mean_t log ratio), clipped to 1 - 3e-4 .. 1 + 4e-4, once a sequence."""
    total = 0.0
    for i, n in enumerate(LENGTHS):
        s = math.exp(sum(LOGP[i][t] - OLD[i][t] for t in range(n)) / n)
        total += -min(s * STANDARDISED[i], min(max(s, 1 - 3e-4), 1 + 4e-4) * STANDARDISED[i])
    return total / 4


def cispo() -> float:
    """-sg(min(ratio, 5)) A log pi, a mean over all tokens."""
    return sum(-min(math.exp(LOGP[i][t] - OLD[i][t]), 5.0) * STANDARDISED[i] * LOGP[i][t] for i, t in tokens()) / sum(LENGTHS)


def rloo() -> float:
    """The KL penalty is part of the reward; each completion against the others; -A log pi(y), a mean over completions."""
    shaped = [REWARDS[i] - 0.05 * sum(OLD[i][t] - REF[i][t] for t in range(n)) for i, n in enumerate(LENGTHS)]
    return sum(-(shaped[i] - (sum(shaped) - shaped[i]) / 3) * sum(LOGP[i]) for i in range(4)) / 4


def reinforce_plus_plus() -> float:
    """Token rewards -beta k1 and the score at the end, summed from each token on, whitened over all tokens of the batch."""
    returns = {(i, t): REWARDS[i] - 0.01 * sum(OLD[i][u] - REF[i][u] for u in range(t, LENGTHS[i])) for i, t in tokens()}
    mean, std = statistics.fmean(returns.values()), math.sqrt(statistics.variance(returns.values()) + 1e-8)
    return sum(clipped(i, t, (returns[i, t] - mean) / std, 0.2, 0.2) for i, t in tokens()) / sum(LENGTHS)


def reinforce_plus_plus_baseline() -> float:
    """Less the group's mean, then whitened over all tokens; k2 of each token in the loss."""
    each = {(i, t): CENTRED[i] for i, t in tokens()}
    mean, std = statistics.fmean(each.values()), math.sqrt(statistics.variance(each.values()) + 1e-8)
    k2 = lambda i, t: (LOGP[i][t] - REF[i][t]) ** 2 / 2  # noqa: E731
    return sum(clipped(i, t, (each[i, t] - mean) / std, 0.2, 0.2) + 0.01 * k2(i, t) for i, t in tokens()) / sum(LENGTHS)


def remax() -> float:
    """Against the reward of the greedy completion, 0.25 here."""
    shaped = [REWARDS[i] - 0.05 * sum(OLD[i][t] - REF[i][t] for t in range(n)) for i, n in enumerate(LENGTHS)]
    return sum(-(shaped[i] - 0.25) * sum(LOGP[i]) for i in range(4)) / 4


def expert() -> float:
    """Imitation of the first and the last, which are the best: the mean of -log pi over their four tokens."""
    return -(sum(LOGP[0]) + sum(LOGP[3])) / 4


PAPERS = {
    "grpo": grpo, "dr_grpo": dr_grpo, "dapo": dapo, "gspo": gspo, "cispo": cispo, "rloo": rloo, "reinforce++": reinforce_plus_plus,
    "reinforce++-baseline": reinforce_plus_plus_baseline, "remax": remax, "expert": expert,
}  # fmt: skip


def test_every_preset_has_its_formula_here() -> None:
    assert set(PAPERS) == set(PRESETS)


@pytest.mark.parametrize("preset", PAPERS)
def test_preset_equals_its_paper(preset: str) -> None:
    found = hand.drawn(greedy={0: 0.25}) if preset == "remax" else hand.drawn()
    assert float(hand.loss(hand.options(preset), found)) == pytest.approx(PAPERS[preset](), abs=2e-6)


def test_presets_differ() -> None:
    """No two rows are one objective under two names."""
    values = [PAPERS[p]() for p in PAPERS]
    assert min(abs(a - b) for n, a in enumerate(values) for b in values[:n]) > 1e-4  # fifty times what the formulas are held to


def test_what_a_preset_sets_can_be_set_otherwise() -> None:
    config = hand.options("dapo", clip_high=0.5, kl={"coef": 0.1})
    assert config.clip_high == 0.5 and config.clip_low == 0.2 and config.zero_variance == "resample" and config.kl.coef == 0.1
    assert hand.options("grpo", kl={"coef": 0.01}).kl.place == "token_k3"  # the rest of the row's penalty stays
    assert GRPO.model_validate(config.model_dump()) == config  # what a run writes down is what it reads again


def test_parts_are_half_as_large_where_every_weight_is_trained() -> None:
    given = {"prompts": "none", "max_length": 256}
    parts = [GRPO(**given, **more).micro_tokens for more in ({}, {"lora": None}, {"lora": None, "micro_tokens": 4096}, {"lora": {"rank": 4}}, {"preset": "dapo", "lora": None})]
    assert parts == [2048, 1280, 4096, 2048, 1280]


def test_presets_meet_where_their_papers_say_so() -> None:
    """RLOO is 4/3 of centring; on the first update of on-policy samples the clipped surrogate has the plain policy gradient."""
    logp = hand.grid(LOGP).requires_grad_()
    plain = hand.options("rloo", kl={"coef": 0.0}, ratio="none", clip="none")
    centred = hand.options("rloo", kl={"coef": 0.0}, advantage="centred")
    (a,) = torch.autograd.grad(hand.loss(plain, logp=logp), logp)
    (b,) = torch.autograd.grad(hand.loss(centred, logp=logp), logp)
    assert torch.allclose(a, b * 4 / 3)
    token = hand.options("rloo", kl={"coef": 0.0}, ratio="token", clip="surrogate")
    (c,) = torch.autograd.grad(hand.loss(token, logp=logp, old=logp.detach()), logp)
    assert torch.allclose(a, c, atol=1e-7)


def test_on_policy_loss_is_zero_and_its_gradient_is_not() -> None:
    """Standardised advantages of equally long completions add up to 0, so the value says nothing; the gradient does."""
    equal = hand.drawn(lengths=(2, 2, 2, 2))
    logp = torch.full((4, 2), -1.0).requires_grad_()
    value = hand.loss(hand.options("grpo", kl={"coef": 0.0}), equal, logp=logp, old=logp.detach(), ref=logp.detach())
    (gradient,) = torch.autograd.grad(value, logp)
    assert abs(float(value.detach())) < 1e-7 and float(gradient.abs().min()) > 0.1


# -- a narrow spread -----------------------------------------------------------------------------------------------------
NARROW = (0.90, 0.95, 0.92, 0.93)


def test_standardising_amplifies_a_narrow_spread_and_a_floor_or_centring_does_not() -> None:
    rewards, group = tensor(NARROW), [[0, 1, 2, 3]]
    amplified = advantages(rewards, group, hand.options("grpo"))
    assert float(amplified.abs().max()) == pytest.approx(0.025 / statistics.stdev(NARROW), rel=1e-3)  # 1.2: as strong as right against wrong (0.87)
    floored = advantages(rewards, group, hand.options("grpo", std_floor=0.5))
    centred = advantages(rewards, group, hand.options("dr_grpo"))
    assert float(floored.abs().max()) == pytest.approx(0.05, rel=1e-3) and float(centred.abs().max()) == pytest.approx(0.025, rel=1e-3)
    assert float(amplified.abs().max()) > 20 * float(floored.abs().max())
    wide = advantages(tensor(REWARDS), group, hand.options("grpo", std_floor=0.5))
    assert torch.allclose(wide, tensor(STANDARDISED))  # the floor leaves a real spread alone


# -- which completions count -----------------------------------------------------------------------------------------------
def test_groups_without_a_difference() -> None:
    """The second group is all right: kept it counts in the mean with gradient 0, dropped it does not."""
    two = hand.drawn(rewards=(*REWARDS, 1.0, 1.0, 1.0, 1.0), lengths=LENGTHS * 2, prompts=(0,) * 4 + (1,) * 4)
    doubled = {name: hand.grid((*rows, *rows)) for name, rows in (("logp", LOGP), ("old", OLD), ("ref", REF))}
    settings = {"kl": {"coef": 0.0}, "batch_size": 8}
    keep = hand.loss(hand.options("grpo", **settings), two, **doubled)
    drop = hand.loss(hand.options("grpo", zero_variance="drop", **settings), two, **doubled)
    one = hand.loss(hand.options("grpo", kl={"coef": 0.0}))
    assert float(drop) == pytest.approx(float(one)) and float(keep) == pytest.approx(float(one) / 2)


def test_cut_off_completions_are_masked_or_kept() -> None:
    """Masked, the third completion's loss goes and its reward still counts in the group."""
    cut = hand.drawn(finished=(True, True, False, True))
    settings = {"kl": {"coef": 0.0}}
    masked = float(hand.loss(hand.options("grpo", truncated="mask", **settings), cut))
    expected = sum(sum(clipped(i, t, STANDARDISED[i], 0.2, 0.2) for t in range(LENGTHS[i])) / LENGTHS[i] for i in (0, 1, 3)) / 3
    assert masked == pytest.approx(expected, abs=1e-6)
    assert float(hand.loss(hand.options("grpo", **settings), cut)) != pytest.approx(masked)


def test_soft_penalty_of_long_completions() -> None:
    """Of 5 tokens the last 2 are the margin: 4 tokens cost 1/2, 5 cost 1, 3 nothing. Source: DAPO, equation 13."""
    config = hand.options("dapo", overlong=0.4)
    assert [soft_overlong(n, 5, 2) for n in (3, 4, 5)] == [0.0, -0.5, -1.0]
    found = hand.drawn(rewards=(1.0, 1.0, 1.0, 0.0), lengths=(3, 4, 5, 1))
    past, _ = hand.before(config, found, old=None, ref=None)
    rewards = (1.0, 0.5, 0.0, 0.0)
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    assert past.advantages[:, 0].tolist() == pytest.approx([(r - mean) / std for r in rewards], abs=1e-5)


def test_tokens_on_which_sampler_and_trainer_disagree() -> None:
    """The sampler says each token of the second completion was ten times likelier, the third's twice as unlikely: weights 0.1 and 2."""
    found = hand.drawn()
    sampler = hand.grid(OLD).clone()
    sampler[1] += torch.tensor(10.0).log()
    sampler[2] -= torch.tensor(2.0).log()
    object.__setattr__(found.batch.rollout, "sampler_logp_BT", sampler)
    weighed = lambda second, third: sum({1: second, 2: third}.get(i, 1.0) * clipped(i, t, CENTRED[i], 0.2, 0.2) for i, t in tokens()) / (4 * 5)  # noqa: E731
    assert float(hand.loss(hand.options("dr_grpo", sampler_cap=1.5), found)) == pytest.approx(weighed(0.1, 1.5), abs=1e-6)
    assert float(hand.loss(hand.options("dr_grpo", sampler_cap=1.5, sampler_outside="mask"), found)) == pytest.approx(weighed(0.0, 0.0), abs=1e-6)
    assert float(hand.loss(hand.options("dr_grpo", sampler_cap=2.5, sampler_outside="mask"), found)) == pytest.approx(weighed(0.0, 2.0), abs=1e-6)
    with pytest.raises(ValueError, match="needs the bound sampler_cap"):
        hand.options("dr_grpo", sampler_outside="mask")


def test_completions_that_the_policy_has_left_are_masked() -> None:
    """Mean log pi_old - log pi of the four: 0.05, 0.4, -0.1, -0.2. Only the second has a negative advantage and exceeds 0.3."""
    masked = float(hand.loss(hand.options("dr_grpo", mask_beyond=0.3)))
    expected = sum(clipped(i, t, CENTRED[i], 0.2, 0.2) for i, t in tokens() if i != 1) / (4 * 5)
    assert masked == pytest.approx(expected, abs=1e-6)
    assert float(hand.loss(hand.options("dr_grpo", mask_beyond=0.41))) == pytest.approx(dr_grpo(), abs=1e-6)  # nobody is that far
    best = hand.drawn(rewards=(0.0, 1.0, 0.0, 1.0))  # now the second one's advantage is positive, and it stays
    assert float(hand.loss(hand.options("dr_grpo", mask_beyond=0.3), best)) == pytest.approx(float(hand.loss(hand.options("dr_grpo"), best)))


def test_a_completion_whose_companions_failed_has_no_advantage() -> None:
    found = hand.drawn(rewards=(1.0, 0.0, 1.0), lengths=(2, 1, 3), prompts=(0, 0, 1))
    past, _ = hand.before(hand.options("dr_grpo"), found, old=None, ref=None)
    assert past.advantages[:, 0].tolist() == [0.5, -0.5, 0.0]


@pytest.mark.parametrize(("changes", "message"), [
    ({"group": 1, "batch_size": 4}, "group=1 makes every advantage zero.*use 2 or more"), ({"batch_size": 6}, "batch_size=6 is not a multiple of group=4"),
    ({"preset": "rloo", "clip": "surrogate"}, "ratio: none has none"), ({"std_floor": 0.1, "advantage": "centred"}, "std_floor bounds the spread"),
    ({"clip_low": None}, "the surrogate needs both bounds"), ({"preset": "grop"}, "preset"), ({"kl": {"coef": 0, "target": 3}}, "kl.coef=0 stays 0"),
    ({"curriculum": {"solved": 0.2, "hopeless": 0.5}}, "hopeless=0.5 is not below solved=0.2"), ({"max_new_tokens": 64}, "leaves no room"),
])  # fmt: skip
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TruingError), match=message):
        hand.options(str(changes.get("preset", "grpo")), **{k: v for k, v in changes.items() if k != "preset"})
