"""Small networks against torch.distributions, torch.nn and closed forms."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal

from truing.errors import ModelError
from truing.models.networks import Categorical, Gaussian, Networks, build
from truing.seeds import generator

VECTOR = Box(-1, 1, (3,))


def made(actions: gymnasium.Space, observations: gymnasium.Space = VECTOR, **options) -> Networks:
    return build(observations, actions, generator=generator(0, "init"), **options)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_layers_side_by_side_equal_two_plain_perceptrons(activation: str) -> None:
    networks = made(Discrete(4), hidden=(8, 5), activation=activation)
    with torch.no_grad():
        for p in networks.parameters():
            p.normal_(generator=generator(1, "weights"))
    x = torch.randn(6, 3, generator=generator(0, "x"))
    for side, head, bias, got in zip((0, 1), (networks.policy, networks.value), (networks.policy_bias, networks.value_bias), networks(x), strict=True):
        h = x
        for weight, shift in zip(networks.weights, networks.biases, strict=True):
            h = getattr(torch, activation)(h @ weight[side] + shift[side])
        torch.testing.assert_close(got, (h @ head + bias).squeeze(-1) if side else h @ head + bias, atol=2e-6, rtol=2e-6)


def test_policy_and_value_share_nothing() -> None:
    networks = made(Discrete(2))
    networks(torch.randn(4, 3))[0].sum().backward()
    assert networks.weights[0].grad[1].abs().max() == 0 and networks.value.grad is None  # the value's half sees nothing of the policy's loss
    assert networks.weights[0].grad[0].abs().max() > 0


def test_initial_weights_are_orthogonal_and_the_first_policy_is_nearly_uniform() -> None:
    networks = made(Discrete(3), hidden=(64, 64))
    for side in (0, 1):  # columns of length sqrt(2), at right angles
        torch.testing.assert_close(networks.weights[1][side].T @ networks.weights[1][side], 2 * torch.eye(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(networks.policy.norm(dim=0), torch.full((3,), 0.01))
    torch.testing.assert_close(networks.value.norm(), torch.tensor(1.0))
    logp, entropy = networks.actions.likelihood(networks(torch.randn(100, 3))[0], torch.zeros(100, dtype=torch.long))
    assert (logp.exp() - 1 / 3).abs().max() < 0.02 and entropy.min() > 0.99 * math.log(3)


def test_categorical_equals_torchs_distribution_and_gumbel_noise_samples_it() -> None:
    outputs, actions = torch.tensor([[0.0, 1.0, -2.0]]).repeat(60_000, 1), torch.randint(0, 3, (60_000,), generator=generator(0, "a"))
    kind = Categorical(3)
    logp, entropy = kind.likelihood(outputs, actions)
    theirs = TorchCategorical(logits=outputs)
    torch.testing.assert_close(logp, theirs.log_prob(actions))
    torch.testing.assert_close(entropy, theirs.entropy())
    drawn = kind.act(outputs, kind.noise((60_000,), generator(0, "noise")))
    shares = torch.bincount(drawn, minlength=3) / 60_000
    error = 4 * (theirs.probs[0] * (1 - theirs.probs[0]) / 60_000).sqrt()  # four standard errors
    assert ((shares - theirs.probs[0]).abs() < error).all()
    assert (kind.best(outputs) == 1).all()


def test_gaussian_equals_torchs_distribution() -> None:
    kind = Gaussian(2)
    with torch.no_grad():
        kind.log_std.copy_(torch.tensor([0.3, -1.0]))
    outputs, noise = torch.randn(5, 4, 2, generator=generator(0, "o")), kind.noise((5, 4), generator(0, "n"))
    actions = kind.act(outputs, noise)
    theirs = Normal(outputs, kind.log_std.exp())
    logp, entropy = kind.likelihood(outputs, actions)
    torch.testing.assert_close(logp, theirs.log_prob(actions).sum(-1))
    torch.testing.assert_close(entropy, theirs.entropy().sum(-1))
    torch.testing.assert_close((actions - outputs) / kind.log_std.exp(), noise)
    (grad,) = torch.autograd.grad(entropy.sum(), kind.log_std)
    torch.testing.assert_close(grad, torch.full((2,), 20.0))  # dH/dlog_std = 1 for each of the 20


def test_states_are_one_hot_and_leading_dimensions_are_kept() -> None:
    networks = made(Discrete(4), Discrete(5))
    states = torch.tensor([[0, 4], [2, 2], [1, 3]])
    outputs, values = networks(states)
    assert outputs.shape == (3, 2, 4) and values.shape == (3, 2)
    torch.testing.assert_close(outputs[1, 0], outputs[1, 1])
    assert (outputs[0, 0] - outputs[0, 1]).abs().max() > 0
    look = networks.look(states, torch.zeros(3, 2, dtype=torch.long))
    torch.testing.assert_close(look.logp, outputs.log_softmax(-1)[..., 0])
    assert torch.equal(networks.act(states[:, 0], torch.zeros(3, 4)), networks.best(states)[:, 0])


def test_equal_seeds_give_equal_weights() -> None:
    a, b = made(Discrete(2)), made(Discrete(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (Dict({"a": Discrete(2)}), Discrete(2), "FlattenObservation"),
        (Box(0, 1, (2, 2)), Discrete(2), "FlattenObservation"),
        (Discrete(3, start=1), Discrete(2), "from 0"),
        (VECTOR, Discrete(3, start=-1), "from 0"),
        (VECTOR, Box(-1, 1, (2, 2)), "vector of real numbers"),
        (VECTOR, Box(-3, 3, (2,), int), "vector of real numbers"),
        (VECTOR, Dict({"a": Discrete(2)}), "vector of real numbers"),
    ],
)
def test_spaces_that_cannot_be_served_are_named(observations, actions, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=message):
        made(actions, observations)


def test_the_fast_tanh_is_tanh() -> None:
    from truing.models.networks import _tanh

    x = torch.linspace(-12, 12, 10_001)
    assert np.abs(_tanh(x).numpy() - np.tanh(x.double().numpy())).max() < 3e-7
    x64 = torch.linspace(-3, 3, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(_tanh(x64).sum(), x64)[0], 1 - torch.tanh(x64.detach()).square())
