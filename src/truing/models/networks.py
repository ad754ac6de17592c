"""Small networks for tasks whose observations are vectors or states: a policy and a value that share no weight.

Both are perceptrons of the same hidden sizes, so their layers are multiplied side by side, as one batched product: weights
are ``[2, inputs, outputs]``, 0 the policy and 1 the value. A shared trunk would be worse on small tasks (Huang et al. 2022,
"The 37 implementation details of PPO", detail 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from truing.errors import ModelError


class Look(NamedTuple):
    """Log-probability of the actions taken, entropy of the policy (both nats) and value, ``[...]`` each, with gradient."""

    logp: Tensor
    entropy: Tensor
    values: Tensor


class Categorical(nn.Module):
    """pi(a|s) = softmax of the network's outputs ``[..., A]``."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.size = actions

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Gumbel noise ``[*shape, A]``: added to the outputs, it makes their argmax a sample (Gumbel 1954)."""
        return -torch.empty(*shape, self.size).exponential_(generator=generator).log_()

    def act(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return (outputs + noise).argmax(-1)

    def best(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    def likelihood(self, outputs: Tensor, actions: Tensor, *, entropy: bool = True) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy, ``[...]``, in nats."""
        log_probs = outputs.log_softmax(-1)
        taken = -nn.functional.nll_loss(log_probs.flatten(0, -2), actions.flatten(), reduction="none").view(actions.shape)
        return taken, -(log_probs.exp() * log_probs).sum(-1) if entropy else taken.new_full((), math.nan)


class Gaussian(nn.Module):
    """pi(a|s) = N(outputs, diag(exp(log_std))^2), with a log_std that does not depend on the state and starts at 0.

    Log-probability and entropy are sums over the action's dimensions. Actions are kept as drawn; whoever steps the
    environment clips them to its bounds.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.log_std = size, nn.Parameter(torch.zeros(size))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal noise ``[*shape, A]``."""
        return torch.randn(*shape, self.size, generator=generator)

    def act(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return outputs + self.log_std.exp() * noise

    def best(self, outputs: Tensor) -> Tensor:
        return outputs

    def likelihood(self, outputs: Tensor, actions: Tensor, *, entropy: bool = True) -> tuple[Tensor, Tensor]:
        """Log-density and differential entropy, ``[...]``, in nats."""
        z = (actions - outputs) * (-self.log_std).exp()
        constant = self.log_std + 0.5 * math.log(2 * math.pi)
        return -(0.5 * z.square() + constant).sum(-1), (constant + 0.5).sum().expand(z.shape[:-1])


class Networks(nn.Module):
    """Policy and value network of a task; see the module's text.

    Args:
        inputs: width of an observation; ``states`` says that observations are whole numbers below it (one-hot inside).
        actions: the policy's kind of action.
        hidden, activation: sizes of the hidden layers, and "tanh" or "relu" after each.
        generator: of the initial weights: orthogonal with gain sqrt(2), 0.01 for the policy's last layer, 1 for the value's; biases 0
            (Huang et al. 2022, detail 2).
    """

    def __init__(
        self, inputs: int, actions: Categorical | Gaussian, *, generator: torch.Generator, states: bool = False, hidden: Sequence[int] = (64, 64), activation: str = "tanh"
    ) -> None:
        super().__init__()
        self.inputs, self.actions, self.states = inputs, actions, states
        self.activation = {"tanh": _tanh, "relu": torch.relu}[activation]
        sizes = list(pairwise((inputs, *hidden)))
        self.weights = nn.ParameterList([torch.stack([_orthogonal(a, b, math.sqrt(2.0), generator) for _ in range(2)]) for a, b in sizes])
        self.biases = nn.ParameterList([torch.zeros(2, 1, b) for _, b in sizes])
        self.layers = list(zip(self.weights, self.biases, strict=True))  # a ParameterList is slow to walk
        self.policy = nn.Parameter(_orthogonal(hidden[-1], actions.size, 0.01, generator))
        self.policy_bias = nn.Parameter(torch.zeros(actions.size))
        self.value = nn.Parameter(_orthogonal(hidden[-1], 1, 1.0, generator))
        self.value_bias = nn.Parameter(torch.zeros(1))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's outputs ``[..., A]`` and the values ``[...]`` of observations ``[..., D]`` (states ``[...]``)."""
        observations = self._vectors(observations)
        batch = observations.shape[:-1]
        hidden = observations.reshape(-1, self.inputs).expand(2, -1, -1)
        for weight, bias in self.layers:
            hidden = self.activation(torch.baddbmm(bias, hidden, weight))
        for_policy, for_value = hidden.unbind(0)
        outputs, values = torch.addmm(self.policy_bias, for_policy, self.policy), torch.addmm(self.value_bias, for_value, self.value)
        return outputs.view(*batch, -1), values.view(batch)

    def read(self, observations: np.ndarray) -> Tensor:
        """Observations of the environment as the networks take them."""
        return torch.from_numpy(observations if self.states else observations.astype(np.float32, copy=False))

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions ``[N]`` drawn with the noise ``[N, A]`` (``actions.noise``); of the two perceptrons the policy's runs."""
        hidden = self._vectors(observations)
        for weight, bias in self.layers:
            hidden = self.activation(torch.addmm(bias[0], hidden, weight[0]))
        return self.actions.act(torch.addmm(self.policy_bias, hidden, self.policy), noise)

    def best(self, observations: Tensor) -> Tensor:
        """The most likely actions."""
        return self.actions.best(self(observations)[0])

    def values(self, observations: Tensor) -> Tensor:
        """V(s), ``[...]``."""
        return self(observations)[1]

    def look(self, observations: Tensor, taken: Tensor, *, entropy: bool = True) -> Look:
        """Everything an update asks about actions taken in these observations; without ``entropy`` that one is nan and costs nothing."""
        outputs, values = self(observations)
        return Look(*self.actions.likelihood(outputs, taken, entropy=entropy), values)

    def _vectors(self, observations: Tensor) -> Tensor:
        return nn.functional.one_hot(observations.long(), self.inputs).float() if self.states else observations


def build(observations: Any, actions: Any, **options: Any) -> Networks:
    """Networks for a task's Gymnasium spaces; options as in `Networks`. Raises ModelError for spaces they cannot serve."""
    if _is_discrete(observations):
        inputs = int(observations.n)
    elif type(observations).__name__ == "Box" and len(observations.shape) == 1:
        inputs = int(observations.shape[0])
    else:
        raise ModelError(f"observations {observations} are neither Discrete from 0 nor a vector; wrap the environment, for example in gymnasium.wrappers.FlattenObservation")
    if _is_discrete(actions):
        kind: Categorical | Gaussian = Categorical(int(actions.n))
    elif type(actions).__name__ == "Box" and len(actions.shape) == 1 and np.issubdtype(actions.dtype, np.floating):
        kind = Gaussian(int(actions.shape[0]))
    else:
        raise ModelError(f"actions {actions} are neither Discrete from 0 nor a vector of real numbers; wrap the environment, for example in gymnasium.wrappers.TransformAction")
    return Networks(inputs, kind, states=_is_discrete(observations), **options)


def _is_discrete(space: Any) -> bool:
    return type(space).__name__ == "Discrete" and int(space.start) == 0


def _orthogonal(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> Tensor:
    return nn.init.orthogonal_(torch.empty(inputs, outputs), gain, generator=generator)


_MINUS_ONE = torch.tensor(-1.0)


def _tanh(x: Tensor) -> Tensor:
    # 2 sigmoid(2 x) - 1, equal to 1e-7: on a processor torch's sigmoid is eight times as fast as its tanh.
    return torch.add(_MINUS_ONE, (x + x).sigmoid(), alpha=2.0)
