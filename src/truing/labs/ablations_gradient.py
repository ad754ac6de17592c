"""How much the policy gradient of one and the same policy varies from rollout to rollout, with and without a baseline."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from truing.labs.optimum_loop import draw
from truing.labs.optimum_world import Array, World
from truing.maths.policy import reinforce
from truing.maths.returns import discounted_returns
from truing.methods import ppo as page
from truing.methods.completions import likelihood
from truing.methods.roles_of_ppo import Roles

SAMPLES = 64  # completions of a rollout


class Spread(NamedTuple):
    """Of the gradient with the return itself, the return less the batch's mean, and the return less V(s), ``[3]`` each.

    Attributes:
        traces: trace of the covariance over rollouts.
        shift: how far each mean gradient lies from that without a baseline, squared, in units of what chance alone makes it: about 1 where there is no bias.
    """

    traces: Array
    shift: Array


def spread(w: World, roles: Roles, seed: int, rollouts: int) -> Spread:
    """Gradients ``-1/B sum_t A_t grad log pi`` of ``rollouts`` rollouts of the policy as it is; 1/B, because dividing by the tokens would couple the rollouts' lengths to their rewards."""
    found = torch.stack([_gradients(w, roles, seed, 1_000_000 + k) for k in range(rollouts)], 1).double()  # [3, rollouts, weights]
    apart = found - found[:1]
    drift, chance = apart.mean(1).square().sum(-1), apart.var(1).sum(-1) / rollouts
    return Spread(found.var(1).sum(-1).numpy(), torch.where(chance > 0, drift / chance, 0.0).numpy())


def _gradients(w: World, roles: Roles, seed: int, step: int) -> Tensor:
    """``[3, weights]``, from one rollout."""
    config = w.config
    batch, scores = draw(w, roles, seed, step, SAMPLES)
    rows = list(range(len(batch)))
    seen = page.look(batch, roles, config, [rows], config.kl.coef, scores, config.micro_tokens)
    trained = batch.rollout.trained_BT
    alive = (trained & (torch.arange(trained.shape[1]) < batch.rollout.lengths_B[:, None] - 1)).float()
    returns = discounted_returns(seen.rewards, torch.zeros_like(seen.rewards), config.discount * alive, alive)[trained]
    pack, positions = batch.pack(rows)
    logp = likelihood(roles.policy, roles.policy.hidden(pack)[positions], pack, positions, config).logp
    weights = list(roles.policy.parameters().values())
    kinds = (returns, returns - returns.mean(), returns - seen.past.values[trained])
    grads = [torch.autograd.grad(reinforce(logp, kind).sum() / len(batch), weights, retain_graph=True, allow_unused=True) for kind in kinds]
    return torch.stack([torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(weights, one, strict=True)]) for one in grads])
