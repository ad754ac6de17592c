"""Small networks for tasks whose observations are vectors or states: two-layer perceptrons, a policy and a value on top.

A policy has one face whatever its actions are: ``act`` turns noise drawn outside into actions, ``likelihood`` gives
log-probability and entropy with gradient, ``best`` the most likely action.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from truing.errors import ModelError
from truing.maths.likelihood import TokenLikelihood


def layer(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """A linear layer with orthogonal weights scaled by ``gain`` and zero bias (Huang et al. 2022, detail 2)."""
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, gain, generator=generator)
    nn.init.zeros_(made.bias)
    return made


class OneHot(nn.Module):
    """Whole numbers ``[...]`` in [0, n) as one-hot vectors ``[..., n]``."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.one_hot(states.long(), self.n).float()


def perceptron(space: Any, outputs: int, *, hidden: tuple[int, ...], activation: str, gain: float, generator: torch.Generator) -> nn.Sequential:
    """Observations of a Gymnasium space to ``outputs`` numbers; ``gain`` scales the last layer.

    Raises ModelError for a space that is neither Discrete nor a vector Box.
    """
    if type(space).__name__ == "Discrete":
        parts: list[nn.Module] = [OneHot(int(space.n))]
        width = int(space.n)
    elif type(space).__name__ == "Box" and len(space.shape) == 1:
        parts, width = [], int(space.shape[0])
    else:
        raise ModelError(f"observations {space} are neither Discrete nor a vector; wrap the environment, for example with gymnasium.wrappers.FlattenObservation")
    for a, b in pairwise((width, *hidden)):
        parts += [layer(a, b, math.sqrt(2.0), generator), {"tanh": nn.Tanh, "relu": nn.ReLU}[activation]()]
    return nn.Sequential(*parts, layer((width, *hidden)[-1], outputs, gain, generator))


class Categorical(nn.Module):
    """pi(a|s) = softmax(logits(s)) over a finite set of actions."""

    action_type = torch.int64

    def __init__(self, body: nn.Module, actions: int) -> None:
        super().__init__()
        self.body, self.actions = body, actions

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Gumbel noise ``[*shape, A]``: adding it to the logits makes the argmax a sample (Gumbel 1954)."""
        return -torch.empty(*shape, self.actions).exponential_(generator=generator).log()

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        return (self.body(observations) + noise).argmax(-1)

    def best(self, observations: Tensor) -> Tensor:
        return self.body(observations).argmax(-1)

    def likelihood(self, observations: Tensor, actions: Tensor) -> TokenLikelihood:
        """Log-probability of the actions and entropy of the policy, ``[...]`` each, in nats."""
        log_probs = self.body(observations).log_softmax(-1)
        return TokenLikelihood(log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1))


class Gaussian(nn.Module):
    """pi(a|s) = N(mean(s), diag(exp(log_std))^2) with a log_std that does not depend on the state, 0 at the start.

    Log-probabilities and entropies are sums over the action's dimensions. Actions are stored as drawn; whoever steps the
    environment clips them to its bounds.
    """

    action_type = torch.float32

    def __init__(self, body: nn.Module, size: int) -> None:
        super().__init__()
        self.body, self.log_std = body, nn.Parameter(torch.zeros(size))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal noise ``[*shape, A]``."""
        return torch.randn(*shape, len(self.log_std), generator=generator)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        return self.body(observations) + self.log_std.exp() * noise

    def best(self, observations: Tensor) -> Tensor:
        return self.body(observations)

    def likelihood(self, observations: Tensor, actions: Tensor) -> TokenLikelihood:
        """Log-density of the actions and differential entropy, ``[...]`` each, in nats."""
        z = (actions - self.body(observations)) * (-self.log_std).exp()
        constant = self.log_std + 0.5 * math.log(2 * math.pi)
        entropy = (constant + 0.5).sum()
        return TokenLikelihood(-(0.5 * z.square() + constant).sum(-1), entropy.expand(z.shape[:-1]))


class Networks(NamedTuple):
    """A policy and a value network that share nothing (a shared trunk is worse on small tasks: Huang et al. 2022, detail 13)."""

    policy: Categorical | Gaussian
    value: nn.Module

    def values(self, observations: Tensor) -> Tensor:
        """V(s) of observations ``[..., D]`` (or ``[...]`` of states), ``[...]``."""
        return self.value(observations).squeeze(-1)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name, the policy's before the value's."""
        return {f"{part}.{name}": p for part in ("policy", "value") for name, p in getattr(self, part).named_parameters()}


def build(observations: Any, actions: Any, *, generator: torch.Generator, hidden: tuple[int, ...] = (64, 64), activation: str = "tanh") -> Networks:
    """Policy and value network for a task's Gymnasium spaces.

    Raises ModelError for actions that are neither Discrete nor a vector Box, or bounded by NaN.
    """
    body: dict[str, Any] = {"hidden": hidden, "activation": activation, "generator": generator}
    if type(actions).__name__ == "Discrete":
        if int(getattr(actions, "start", 0)) != 0:
            raise ModelError(f"actions {actions} do not start at 0; wrap the environment with gymnasium.wrappers.TransformAction")
        policy: Categorical | Gaussian = Categorical(perceptron(observations, int(actions.n), gain=0.01, **body), int(actions.n))
    elif type(actions).__name__ == "Box" and len(actions.shape) == 1:
        policy = Gaussian(perceptron(observations, int(actions.shape[0]), gain=0.01, **body), int(actions.shape[0]))
    else:
        raise ModelError(f"actions {actions} are neither Discrete nor a vector of numbers; wrap the environment, for example with gymnasium.wrappers.FlattenAction")
    return Networks(policy, perceptron(observations, 1, gain=1.0, **body))
