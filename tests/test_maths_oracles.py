"""The same numbers from libraries that share no line with ours. Each is imported inside its test and may be absent."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from truing.maths import kl, stats
from truing.maths.advantages import gae, group_standardised
from truing.maths.likelihood import entropy, from_logits
from truing.maths.policy import ratio
from truing.maths.preference import bradley_terry
from truing.maths.returns import discounted_returns, lambda_returns

D = torch.float64
SEEDS = [0, 1, 2]


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


# -- returns and advantages ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def torchrl() -> ModuleType:
    return pytest.importorskip("torchrl.objectives.value.functional")


class Steps:
    """Five environments, thirteen steps, terminations and truncations at random; V of a truncated state is not the next row's."""

    def __init__(self, seed: int, gamma: float = 0.9) -> None:
        chance = torch.rand(5, 13, generator=torch.Generator().manual_seed(seed), dtype=D)
        self.terminated, self.done = chance < 0.15, chance < 0.3  # done = terminated or truncated
        self.rewards, self.values = numbers(5, 13, seed=seed), numbers(5, 13, seed=seed + 1)
        self.next_values = torch.cat([self.values[:, 1:], numbers(5, 1, seed=seed + 2)], 1)
        self.next_values = torch.where(self.done, numbers(5, 13, seed=seed + 3), self.next_values)
        self.discount, self.carry = gamma * ~self.terminated, (~self.done).double()
        self.discount = self.discount.double()


def column(x: Tensor) -> Tensor:
    return x[..., None]  # torchrl's tensors are [*, T, 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
def test_gae_and_lambda_returns_equal_torchrls(torchrl: ModuleType, seed: int, lam: float) -> None:
    s = Steps(seed, gamma=0.5)  # exact in float32 too
    assert (s.done & ~s.terminated).any() and s.terminated.any()
    done, terminated = column(s.done), column(s.terminated)
    advantage, target = torchrl.generalized_advantage_estimate(0.5, lam, column(s.values), column(s.next_values), column(s.rewards), done, terminated)
    ours = gae(s.rewards, s.values, s.next_values, s.discount, s.carry, lam)
    torch.testing.assert_close(ours, advantage[..., 0])
    torch.testing.assert_close(ours + s.values, target[..., 0])
    returns = torchrl.td_lambda_return_estimate(0.5, lam, column(s.next_values), column(s.rewards), done, terminated)
    torch.testing.assert_close(lambda_returns(s.rewards, s.next_values, s.discount, s.carry, lam), returns[..., 0])


@pytest.mark.parametrize("seed", SEEDS)
def test_discounted_returns_equal_torchrls(torchrl: ModuleType, seed: int) -> None:
    s = Steps(seed)
    done = s.done.clone()
    done[:, -1] = True  # reward2go has no value to bootstrap from
    carry = (~done).double()
    ours = discounted_returns(s.rewards, torch.zeros_like(s.rewards), torch.full_like(carry, 0.9), carry)
    torch.testing.assert_close(ours, torchrl.reward2go(column(s.rewards), column(done), 0.9)[..., 0])


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_equals_stable_baselines3s_buffer(seed: int) -> None:
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    spaces = pytest.importorskip("gymnasium").spaces
    rng = np.random.default_rng(seed)
    steps, envs = 9, 4
    rewards, values = rng.normal(size=(2, steps, envs)).astype(np.float32)
    starts = rng.random((steps + 1, envs)) < 0.3  # starts[t]: step t begins an episode, so step t - 1 ended one
    last = rng.normal(size=envs).astype(np.float32)
    buffer = buffers.RolloutBuffer(steps, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), device="cpu", gae_lambda=0.8, gamma=0.9, n_envs=envs)
    for t in range(steps):
        buffer.add(np.zeros((envs, 1)), np.zeros((envs, 1)), rewards[t], starts[t], torch.from_numpy(values[t]), torch.zeros(envs))
    buffer.compute_returns_and_advantage(torch.from_numpy(last), starts[-1])
    alive = tensor(~starts[1:].T, dtype=torch.float32)  # this buffer takes every end for a termination
    v = tensor(values.T)
    next_values = torch.cat([v[:, 1:], tensor(last)[:, None]], 1)
    ours = gae(tensor(rewards.T), v, next_values, 0.9 * alive, alive, 0.8)
    torch.testing.assert_close(ours.T, tensor(buffer.advantages), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((ours + v).T, tensor(buffer.returns), rtol=1e-5, atol=1e-5)


def test_group_standardised_equals_scipys_z_scores() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    r = numbers(6, 5, seed=0)
    for ddof in (0, 1):
        torch.testing.assert_close(group_standardised(r, ddof=ddof, eps=1e-15), tensor(scipy_stats.zscore(r.numpy(), axis=-1, ddof=ddof)))


# -- distributions -------------------------------------------------------------------------------------------------------
def test_likelihood_entropy_and_divergence_equal_scipys() -> None:
    special, scipy_stats = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.stats")
    logits, ref = 3 * numbers(8, 6, seed=1), 3 * numbers(8, 6, seed=2)
    p, q = special.softmax(logits.numpy(), axis=-1), special.softmax(ref.numpy(), axis=-1)
    targets = torch.arange(8) % 6
    found = from_logits(logits, targets)
    expected = logits.numpy()[range(8), targets] - special.logsumexp(logits.numpy(), axis=-1)
    np.testing.assert_allclose(found.logp.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(found.entropy.numpy(), scipy_stats.entropy(p, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(entropy(logits).numpy(), scipy_stats.entropy(p, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(kl.exact(logits, ref).numpy(), scipy_stats.entropy(p, q, axis=-1), rtol=1e-12)


def test_likelihood_and_divergence_equal_torchs_distributions() -> None:
    Categorical = torch.distributions.Categorical
    logits, ref, actions = numbers(8, 6, seed=3), numbers(8, 6, seed=4), torch.arange(8) % 6
    torch.testing.assert_close(from_logits(logits, actions).logp, Categorical(logits=logits).log_prob(actions))
    torch.testing.assert_close(entropy(logits), Categorical(logits=logits).entropy())
    torch.testing.assert_close(kl.exact(logits, ref), torch.distributions.kl_divergence(Categorical(logits=logits), Categorical(logits=ref)))


def test_estimators_average_to_torchs_divergence_of_normals() -> None:
    pi, ref = torch.distributions.Normal(tensor(0.0, dtype=D), 1.0), torch.distributions.Normal(tensor(0.7, dtype=D), 1.3)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=200_000))
    true = torch.distributions.kl_divergence(pi, ref)
    for estimator in (kl.k1, kl.k3):
        sample = estimator(pi.log_prob(x), ref.log_prob(x))
        assert abs(sample.mean() - true) < 4 * sample.std() / len(x) ** 0.5
    weight = ratio(ref.log_prob(x), pi.log_prob(x))  # drawn from pi, averaged over ref
    assert abs(weight.mean() - 1) < 4 * weight.std() / len(x) ** 0.5


# -- preferences ---------------------------------------------------------------------------------------------------------
def least(wins: list[tuple[int, int]], items: int) -> np.ndarray:
    """Mean-zero scores that minimise our loss over the comparisons."""
    winners, losers = (tensor([w[i] for w in wins]) for i in (0, 1))
    scores = torch.zeros(items, dtype=D, requires_grad=True)
    optimiser = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = bradley_terry(scores[winners], scores[losers]).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (scores.detach() - scores.detach().mean()).numpy()


def test_the_least_bradley_terry_loss_is_choixs_estimate() -> None:
    choix = pytest.importorskip("choix")
    wins = [(0, 1), (0, 1), (1, 0), (1, 2), (1, 2), (2, 1), (0, 2), (0, 2), (0, 2), (2, 0)]
    np.testing.assert_allclose(least(wins, 3), [0.594764, 0, -0.594764], atol=1e-6)
    np.testing.assert_allclose(least(wins, 3), choix.ilsr_pairwise(3, wins), atol=1e-6)
    rng = np.random.default_rng(0)
    pairs = [rng.choice(12, 2, replace=False) for _ in range(600)]
    strength = rng.normal(size=12)
    wins = [(int(a), int(b)) if rng.random() < 1 / (1 + np.exp(strength[b] - strength[a])) else (int(b), int(a)) for a, b in pairs]
    np.testing.assert_allclose(least(wins, 12), choix.opt_pairwise(12, wins, method="Newton-CG"), atol=1e-5)
    np.testing.assert_allclose(least(wins, 12), choix.ilsr_pairwise(12, wins, tol=1e-10), atol=1e-6)


# -- statistics ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", SEEDS)
def test_fleiss_kappa_equals_statsmodels(seed: int) -> None:
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    rng = np.random.default_rng(seed)
    table = np.stack([rng.multinomial(7, rng.dirichlet([0.5] * 4)) for _ in range(30)])
    assert stats.fleiss_kappa(table) == pytest.approx(inter_rater.fleiss_kappa(table, method="fleiss"), rel=1e-12)


def test_wilson_equals_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for successes, trials in ((0, 5), (3, 17), (50, 100), (999, 1000), (7, 7)):
        assert stats.wilson(successes, trials)[1:] == pytest.approx(proportion.proportion_confint(successes, trials, method="wilson"), abs=1e-12)


def test_pass_at_k_is_the_hypergeometric_chance_of_no_success() -> None:
    hypergeom = pytest.importorskip("scipy.stats").hypergeom
    n, c = np.meshgrid([10, 50, 200], [0, 1, 5, 10])
    for k in (1, 2, 10):
        np.testing.assert_allclose(stats.pass_at_k(n, c, k), 1 - hypergeom.pmf(0, n, c, k), rtol=1e-9, atol=1e-12)


def test_pass_at_k_is_unbiased_and_the_plain_estimate_is_not() -> None:
    binom = pytest.importorskip("scipy.stats").binom
    n, p, k = 12, 0.2, 4
    c = np.arange(n + 1)
    chance, true = binom.pmf(c, n, p), 1 - (1 - p) ** k
    assert (chance * stats.pass_at_k(n, c, k)).sum() == pytest.approx(true, rel=1e-12)
    assert (chance * (1 - (1 - c / n) ** k)).sum() < true - 0.03


def test_bootstrap_agrees_with_scipys() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(3).exponential(2.0, 80)
    for level in (0.8, 0.95):
        theirs = scipy_stats.bootstrap((x,), np.mean, n_resamples=20_000, confidence_level=level, method="percentile", rng=np.random.default_rng(9)).confidence_interval
        assert stats.bootstrap(x, level=level, resamples=20_000)[1:] == pytest.approx((theirs.low, theirs.high), abs=0.02)  # their own error is about .005


def test_explained_variance_equals_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    values, targets = rng.normal(size=(2, 50))
    assert stats.explained_variance(values, targets) == pytest.approx(metrics.explained_variance_score(targets, values), rel=1e-12)
