"""PPO's gradient is that of a loop over sequences and tokens in float64, and nothing about how a batch is laid out or cut changes it."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import ppo_tiny as tiny_ppo
from truing.config import PPO
from truing.learn.update import Learner
from truing.methods import ppo as page
from truing.methods.completions import Batch
from truing.methods.ppo_update import Seen
from truing.methods.roles_of_ppo import Roles
from truing.models.roles import Role

D = torch.float64
Model = Callable[[list[int]], tuple[Tensor, Tensor]]  # token ids -> log-probabilities [T, V], values [T]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ppo.world(tmp_path_factory.mktemp("ppo"))


# -- what PPO is, one token at a time ------------------------------------------------------------------------------------
def in_float64(role: Role, temperature: float) -> tuple[Model, dict[str, Tensor]]:
    """A role as transformers' own model of its weights in float64, adapters merged in; and the weights to differentiate by."""
    model = copy.deepcopy(role.backbone.model).to(D)
    fixed = {k: v.detach().to(D) for k, v in model.named_parameters()}
    free = {k: v.detach().to(D).clone().requires_grad_() for k, v in role.parameters().items()}
    if role.adapter is not None:  # the frozen ones too
        free |= {f"adapter.{k}": v.detach().to(D).clone().requires_grad_() for k, v in role.adapter.tensors().items() if f"adapter.{k}" not in free}

    def forward(ids: list[int]) -> tuple[Tensor, Tensor]:
        weights = dict(fixed)
        for name, p in free.items():
            if name.startswith("model."):
                weights[name.removeprefix("model.")] = p
            if name.endswith(".A"):
                path = name.removeprefix("adapter.").removesuffix(".A")
                weights[f"{path}.weight"] = fixed[f"{path}.weight"] + role.adapter.scale * free[f"adapter.{path}.B"] @ p  # type: ignore[union-attr]
        out = functional_call(model, weights, kwargs={"input_ids": torch.tensor([ids]), "output_hidden_states": True})
        hidden = out.hidden_states[-1][0]
        values = hidden @ free["head.weight"] + free["head.bias"] if "head.weight" in free else torch.zeros(len(ids), dtype=D)
        return (out.logits[0] / temperature).log_softmax(-1), values

    return forward, free


def naive_loss(
    config: PPO, batch: Batch, scores: Sequence[float], rows: Sequence[int], *, old: Model, ref: Model, old_value: Model, now: Model, now_value: Model, coef: float
) -> Tensor:
    """The whole of PPO's loss on the rows of a minibatch, by nothing but arithmetic."""
    sequences, starts, gamma, lam = batch.rollout.sequences(), batch.texts.starts, config.discount, config.lam
    logps, refs, values, advantages, targets, later = ([] for _ in range(6))
    with torch.no_grad():
        for i, ids in enumerate(sequences):
            before, reference, worth = old(ids)[0], ref(ids)[0], old_value(ids)[1]
            places = range(starts[i] - 1, len(ids) - 1)  # a completion token stands one after the place it is predicted from
            logp, logp_ref, value = ([float(x[t, ids[t + 1]]) for t in places] for x in (before, reference, worth[:, None].expand(-1, before.shape[1])))
            reward = [0.0] * len(places)
            reward[-1] += scores[i] + (config.scores.missing_eos or 0.0) * (not batch.rollout.finished_B[i])
            if config.kl.place == "reward":
                reward = [r - coef * (a - b) for r, a, b in zip(reward, logp, logp_ref, strict=True)]
            advantage, following = [0.0] * len(places), 0.0
            for t in reversed(range(len(places))):
                next_value = value[t + 1] if t + 1 < len(places) else 0.0
                following = reward[t] + gamma * next_value - value[t] + gamma * lam * following
                advantage[t] = following
            away = [a - b for a, b in zip(logp, logp_ref, strict=True)]
            after, to_come = [0.0] * len(places), 0.0
            for t in reversed(range(len(places))):
                after[t] = to_come
                to_come = away[t] + gamma * to_come
            after = [gamma * x for x in after]
            for found, x in zip((logps, refs, values, advantages, targets, later), (logp, logp_ref, value, advantage, [a + v for a, v in zip(advantage, value, strict=True)], after), strict=True):
                found.append(x)
    everything = [a for row in advantages for a in row]
    mean = sum(everything) / len(everything)
    to_go = [a - b + x for i, row in enumerate(later) for a, b, x in zip(logps[i], refs[i], row, strict=True)]
    baseline = sum(to_go) / len(to_go)  # of the divergence still to come, each token's own included
    scale = 1 / math.sqrt(sum((a - mean) ** 2 for a in everything) / (len(everything) - 1) + 1e-8)

    def following(i: int, t: int, rho: Tensor) -> Tensor:
        worse = later[i][t] - baseline
        return torch.max(worse * rho, worse * rho.clamp(1 - config.clip, 1 + config.clip))

    total, count = torch.zeros((), dtype=D), 0
    for i in rows:
        ids, start = sequences[i], starts[i]
        distribution, worth = now(ids)[0], now_value(ids)[1]
        for t in range(len(ids) - start):
            at, token = start - 1 + t, ids[start + t]
            logp, value = distribution[at, token], worth[at]
            advantage = (advantages[i][t] - mean) * scale
            rho = (logp - logps[i][t]).exp()
            loss = torch.max(-advantage * rho, -advantage * rho.clamp(1 - config.clip, 1 + config.clip))
            if config.dual_clip is not None and advantage < 0:
                loss = torch.min(loss, torch.tensor(-config.dual_clip * advantage, dtype=D))
            if config.sampler_cap is not None:
                loss = loss * min(math.exp(logps[i][t] - float(batch.rollout.sampler_logp_BT[i, t])), config.sampler_cap)
            entropy = -(distribution[at].exp() * distribution[at]).sum()
            loss = loss - config.entropy * entropy
            if config.kl.place == "loss_k2":
                loss = loss + coef * scale * (rho.detach() * 0.5 * (logp - refs[i][t]) ** 2 + following(i, t, rho))
            if config.kl.place == "loss_k3":
                loss = loss + coef * scale * (rho * ((refs[i][t] - logp).exp() - 1 - (refs[i][t] - logp)) + following(i, t, rho))
            error = (value - targets[i][t]) ** 2
            if config.value_clip is not None:
                error = torch.max(error, (values[i][t] + (value - values[i][t]).clamp(-config.value_clip, config.value_clip) - targets[i][t]) ** 2)
            total, count = total + loss + config.value_weight * 0.5 * error, count + 1
    return total / count


class Gradients(Learner):
    """A learner that writes down the gradient of an update and takes no step."""

    def update(self, items: Any, tokens: Any, loss: Any, again: Any = lambda: None) -> dict[str, float]:
        value = self._accumulate(items, tokens, loss, again)
        self.found = {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in self.params.items()}
        self._forget_gradients()
        return {"loss": value}


def of_the_page(roles: Roles, batch: Batch, experience: page.Experience, rows: list[int], config: PPO, **cut: int) -> tuple[float, dict[str, Tensor], Seen]:
    learner, seen = Gradients(roles.parameters(), lr=1.0, total=1, **cut), Seen()
    value = page.learn(learner, roles, batch, experience, rows, config, seen)["loss"]
    return value, learner.found, seen


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float, what: str) -> None:
    """Every group of weights within `tolerance` of its largest gradient."""
    assert found.keys() == wanted.keys()
    for key, g in wanted.items():
        far = float((found[key].to(D) - g.to(D)).abs().max() / g.abs().max().clamp(min=1e-12))
        assert far < tolerance, f"{what}: {key} is {far:.2e} of its largest gradient away"


ALL = {"clip": 0.1, "dual_clip": 1.5, "entropy": 0.03, "discount": 0.9, "lam": 0.8, "temperature": 0.7, "sampler_cap": 1.2, "value_weight": 0.7, "value_clip": 0.1}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared value head": {"value": "shared"},
    "every weight": {"lora": None},
    "every weight, shared value head": {"lora": None, "value": "shared", **ALL},
    "everything on": ALL,
    "nothing clipped": {"clip": 1.0, "value_clip": None, "sampler_cap": None, "scores": {"missing_eos": None, "timeout": None}},
    "a value model of its own": {"value_model": "base"},
    "reference on the disk": {"lora": None, "reference": "offloaded"},
    "divergence in the loss, k2": {"kl": {"coef": 0.1, "target": None, "place": "loss_k2"}},
    "divergence in the loss, k3, all on": {"kl": {"coef": 0.1, "target": None, "place": "loss_k3"}, **ALL},
    "divergence in the loss, k3, shared": {"kl": {"coef": 0.1, "target": None, "place": "loss_k3"}, "value": "shared"},
}


def compare(config: PPO, folder: Path, patch: Callable[[], None] = lambda: None, tolerance: float = 1e-5) -> Seen:
    """A rollout, some updates, one minibatch's gradient; the page's beside the loop's. Raises AssertionError when they differ."""
    roles = tiny_ppo.moved_roles(config, folder, 0.2 if config.lora else 0.05)
    batch, scores = tiny_ppo.rolled_out(roles, config, noise=0.2)
    assert 0 < int(batch.rollout.finished_B.sum()) < len(batch)
    old, _ = in_float64(roles.policy, config.temperature)
    with roles.reading_reference():
        ref, _ = in_float64(roles.reference, config.temperature)
    old_value, _ = in_float64(roles.value, config.temperature)
    patch()
    experience = tiny_ppo.looked(batch, scores, roles, config)
    tiny_ppo.shake(roles.policy, 0.25, seed=11)  # some updates later
    if config.value == "separate":
        tiny_ppo.shake(roles.value, 0.1, seed=12)
    now, free = in_float64(roles.policy, config.temperature)
    now_value, free_value = in_float64(roles.value, config.temperature)

    rows = [6, 1, 3, 2, 4]
    loss = naive_loss(config, batch, [s.value for s in scores], rows, old=old, ref=ref, old_value=old_value, now=now, now_value=now_value, coef=config.kl.coef)
    weights = {f"policy.{k}": p for k, p in free.items()} | {f"value.{k}": p for k, p in free_value.items()}
    gradients = {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(weights.items(), torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True)}
    names = set(roles.parameters())
    if config.value == "shared":  # one set of weights in two roles
        for k in list(gradients):
            if k.startswith("value.") and k not in names:
                gradients["policy." + k.removeprefix("value.")] += gradients.pop(k)

    value, found, seen = of_the_page(roles, batch, experience, rows, config, micro_tokens=25)
    assert_near(found, gradients, tolerance, "against the loop")
    assert value == pytest.approx(float(loss.detach()), rel=tolerance, abs=1e-6)
    return seen


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_gradient_is_that_of_a_loop_in_float64(setting: str, world: Path, tmp_path: Path) -> None:
    changes = dict(SETTINGS[setting])
    if "value_model" in changes:
        changes["value_model"] = str(world / changes["value_model"])
    config = tiny_ppo.options(world, **changes)
    seen = compare(config, tmp_path)
    # or it would say little: ratios and values that are clipped, and some that are not
    for bound, far in ((config.clip, (seen.all("logp") - seen.all("logp_old")).exp().sub(1).abs()), (config.value_clip or 0.1, seen.all("moved").abs())):
        assert far.max() > 0.1 and (far < bound).any() and ((far > bound).any() or bound == 1.0)


def _mutants() -> dict[str, tuple[str, str, Callable[[Any], Any]]]:
    """What -> (setting, where, what becomes of the function there): the field's mistakes, each of which a test must notice."""

    def at_the_pad(rewards_of: Any) -> Any:
        def shifted(batch: Batch, scores: Any, config: PPO) -> Tensor:
            return rewards_of(batch, scores, config).roll(1, -1) * batch.rollout.trained_BT

        return shifted

    def whitened_targets(estimate: Any) -> Any:
        def made(rewards: Tensor, values: Tensor, *rest: Any) -> Any:
            found = estimate(rewards, values, *rest)
            return found._replace(targets=found.advantages + values)

        return made

    def per_part(elements: Any) -> Any:
        return lambda loss, total: elements(loss, loss.numel())

    page_, update = "truing.methods.ppo", "truing.methods.ppo_update"
    return {
        "the reward one place late, on the padding": ("plain", f"{page_}.rewards_of", at_the_pad),
        "targets from whitened advantages": ("plain", f"{update}.estimate", whitened_targets),
        "a mean of micro-batch means": ("plain", "truing.maths.reduce.elements", per_part),
        "k1 the other way round in the reward": ("plain", "truing.maths.kl.k1", lambda k1: lambda a, b: k1(b, a)),
        "k3 the other way round in the loss": ("divergence in the loss, k3, shared", "truing.maths.kl.k3", lambda k3: lambda a, b: k3(b, a)),
        "the divergence to come left out": ("divergence in the loss, k2", "truing.maths.kl.penalty", lambda f: lambda a, b, c, later, kind, clip=None: f(a, b, c, 0 * later, kind)),
        "the ratio the other way round": ("plain", "truing.maths.policy.ratio", lambda ratio: lambda a, b: ratio(b, a)),
        "the smaller of the two losses": ("plain", "torch.maximum", lambda _: torch.minimum),
        "no whitening": ("plain", f"{update}.whiten", lambda _: lambda x, counted, **rest: x * counted),
        "the population's deviation": ("plain", f"{update}.whiten", lambda f: lambda x, counted, **rest: f(x, counted, ddof=0)),
        "entropy lowered": ("everything on", f"{page_}.policy_loss", lambda f: lambda logp, entropy, *rest: f(logp, -entropy, *rest)),
        "the sampler's weight on nothing": ("everything on", f"{page_}.truncated_importance", lambda f: lambda a, b, cap: torch.ones_like(a)),
        "log-probabilities at temperature 1": ("everything on", f"{page_}.likelihood", lambda f: lambda *given: f(*given[:-1], given[-1].model_copy(update={"temperature": 1.0}))),
    }


@pytest.mark.parametrize("mutant", _mutants())
def test_the_fields_mistakes_are_noticed(mutant: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, where, change = _mutants()[mutant]
    module, _, name = where.rpartition(".")
    target = importlib.import_module(module)
    changed = change(getattr(target, name))

    def patch() -> None:
        monkeypatch.setattr(target, name, changed)
        if where.endswith("ppo_update.estimate"):
            monkeypatch.setattr(page, "estimate", changed)

    with pytest.raises(AssertionError, match="of its largest gradient away"):
        compare(tiny_ppo.options(world, **SETTINGS[setting]), tmp_path, patch, tolerance=1e-3)


# -- what must change nothing --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("setting", ["plain", "shared value head", "every weight", "everything on", "divergence in the loss, k3, all on"])
def test_how_a_minibatch_is_cut_and_ordered_changes_nothing(setting: str, world: Path, tmp_path: Path) -> None:
    config = tiny_ppo.options(world, **SETTINGS[setting])
    roles = tiny_ppo.moved_roles(config, tmp_path, 0.2 if config.lora else 0.05)
    batch, scores = tiny_ppo.rolled_out(roles, config, noise=0.2)
    experience = tiny_ppo.looked(batch, scores, roles, config)
    other = tiny_ppo.looked(batch, scores, roles, config, micro_tokens=12)
    tiny_ppo.shake(roles.policy, 0.25 if config.lora else 0.1, seed=11)
    rows = [6, 1, 3, 2, 7, 0]
    whole = of_the_page(roles, batch, experience, rows, config)
    assert_near(of_the_page(roles, batch, other, rows, config)[1], whole[1], 1e-5, "looked at in small parts")
    for micro_tokens in (1, 12, 25):  # one sequence at a time, and uneven parts
        value, found, _ = of_the_page(roles, batch, experience, rows, config, micro_tokens=micro_tokens)
        assert_near(found, whole[1], 1e-5, f"micro_tokens={micro_tokens}")
        assert value == pytest.approx(whole[0], rel=1e-5)
    assert_near(of_the_page(roles, batch, experience, rows[::-1], config)[1], whole[1], 1e-5, "the other way round")
    # the field's mistake, a mean of the parts' own means, is another gradient
    halves = [of_the_page(roles, batch, experience, part, config)[1] for part in (rows[:1], rows[1:])]
    assert max(float(((halves[0][k] + halves[1][k]) / 2 - g).abs().max() / g.abs().max().clamp(min=1e-12)) for k, g in whole[1].items()) > 0.01


def test_two_halves_accumulated_are_one_batch(world: Path, tmp_path: Path) -> None:
    """Sum of token-weighted gradients of two minibatches = the gradient of both at once."""
    config = tiny_ppo.options(world)
    roles = tiny_ppo.moved_roles(config, tmp_path)
    batch, scores = tiny_ppo.rolled_out(roles, config)
    experience, counts = tiny_ppo.looked(batch, scores, roles, config), batch.rollout.lengths_B
    whole = of_the_page(roles, batch, experience, list(range(8)), config)[1]
    parts = [[0, 5, 2], [1, 3, 4, 6, 7]]
    added = {k: sum(of_the_page(roles, batch, experience, part, config)[1][k] * int(counts[part].sum()) for part in parts) / int(counts.sum()) for k in whole}
    assert_near(added, whole, 1e-5, "accumulated")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padding_on_either_side_and_of_any_amount_changes_no_log_probability(kind: str, world: Path) -> None:
    """A sequence alone, in a pack beside a longer one, and left- or right-padded through transformers itself."""
    from test_models_backbone import gpt2, moved, small
    from truing.methods.completions import likelihood
    from truing.models.backbone import Backbone
    from truing.models.pack import Pack

    model = gpt2() if kind == "gpt2" else small()
    backbone = Backbone(model, lora=tiny_ppo.LORA)
    role, config = Role(backbone, moved(backbone)), tiny_ppo.options(world, temperature=0.7)  # type: ignore[arg-type]
    ids, long = [5, 9, 11, 3, 2], list(range(4, 30))

    def logps(pack: Pack, row: int) -> Tensor:
        with torch.no_grad():
            positions = torch.arange(pack.starts[row], pack.starts[row] + len(ids) - 1)
            return likelihood(role, role.hidden(pack)[positions], pack, positions, config).logp

    alone = logps(Pack([ids]), 0)
    for sequences, row in (([ids, long], 0), ([long, ids], 1), ([long, ids, long[:7]], 1)):
        torch.testing.assert_close(logps(Pack(sequences), row), alone, atol=1e-5, rtol=1e-5)
    plain = Role(backbone)
    role = plain
    alone = logps(Pack([ids]), 0)
    for pads in (1, 4, 11):
        for left in (True, False):
            padded = [0] * pads + ids if left else ids + [0] * pads
            real = torch.tensor([[0] * pads + [1] * len(ids) if left else [1] * len(ids) + [0] * pads])
            where = (real.cumsum(-1) - 1).clamp(min=0)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([padded]), attention_mask=real, position_ids=where).logits[0][real[0].bool()]
            theirs = (logits[:-1] / 0.7).log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
            torch.testing.assert_close(alone, theirs, atol=1e-5, rtol=1e-5)
