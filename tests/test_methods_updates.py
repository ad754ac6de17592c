"""The update's arithmetic: what a batch is cut into changes nothing, and PPO starts from ratio 1 and KL 0 exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from test_models_backbone import moved, small
from truing.config import PPO, Lora, make_recipe
from truing.data.trained import require_trained
from truing.errors import NonFiniteError
from truing.learn.update import Learner, parts
from truing.methods import ppo as ppo_page
from truing.methods import reward_model as rm_page
from truing.methods import sft as sft_page
from truing.models.backbone import Backbone
from truing.models.heads import ScalarHead
from truing.models.roles import Role
from truing.types import TokenPair, Tokens

BATCH = [
    Tokens((5, 6, 7, 8, 9), (False, False, True, True, True), "a"),
    Tokens((5, 6, 10), (False, False, True), "b"),
    Tokens((11, 12, 13, 14, 15, 16, 17, 18), (False, True, True, True, False, False, True, True), "c"),
    Tokens((19, 20), (False, True), "d"),
]


def role(lean: bool = True, lora: Lora | None = None) -> Role:
    backbone = Backbone(small(), lora=lora, lean=lean)
    return Role(backbone, moved(backbone) if lora else None)


def gradients(policy: Role, parts: Sequence[Sequence[int]], total: int) -> dict[str, Tensor]:
    params = policy.parameters()
    for p in params.values():
        p.grad = None
    for part in parts:
        sft_page.loss(policy, [BATCH[i] for i in part], total).backward()
    return {k: p.grad.clone() for k, p in params.items() if p.grad is not None}


def naive(policy: Role) -> dict[str, Tensor]:
    """One sequence at a time, transformers' own logits, cross entropy by the book."""
    params = policy.parameters()
    for p in params.values():
        p.grad = None
    total = 0.0
    for t in BATCH:
        logits = policy.backbone.model(input_ids=torch.tensor([t.ids])).logits[0].log_softmax(-1)
        for i in range(1, len(t)):
            if t.trained[i]:
                total = total - logits[i - 1, t.ids[i]]
    (total / 10).backward()  # type: ignore[union-attr]
    return {k: p.grad.clone() for k, p in params.items() if p.grad is not None}


@pytest.mark.parametrize("lora", [None, Lora(rank=2, layers=2)])
def test_packed_padded_accumulated_and_whole_batches_give_one_gradient(lora: Lora | None) -> None:
    packed, padded = role(True, lora), role(False, lora)
    total = require_trained(BATCH)
    assert total == 10
    whole = gradients(packed, [range(4)], total)
    others = {
        "accumulated": gradients(packed, [[0], [3, 1], [2]], total),
        "reordered": gradients(packed, [[2, 0, 3, 1]], total),
        "padded": gradients(padded, [range(4)], total),
        "padded, accumulated": gradients(padded, [[0, 1], [2, 3]], total),
    }
    if lora is None:
        others["naive loop"] = naive(packed)
    for name, found in others.items():
        assert found.keys() == whole.keys(), name
        for key, g in whole.items():
            torch.testing.assert_close(found[key], g, atol=1e-5, rtol=1e-5, msg=lambda m, n=name, k=key: f"{n}: {k}: {m}")
    # the field's mistake, a mean of micro-batch means, gives another gradient
    wrong = [sft_page.loss(packed, [BATCH[i]], require_trained([BATCH[i]])) / 4 for i in range(4)]
    for p in packed.parameters().values():
        p.grad = None
    sum(wrong).backward()  # type: ignore[union-attr]
    assert max((p.grad - whole[k]).abs().max() for k, p in packed.parameters().items() if p.grad is not None) > 1e-3


def test_prompt_tokens_have_no_gradient_of_their_own() -> None:
    policy = role()
    base = sft_page.loss(policy, BATCH, 10)
    other = [Tokens((*t.ids[:-1], t.ids[-1]), t.trained, t.id) for t in BATCH]
    torch.testing.assert_close(sft_page.loss(policy, other, 10), base)
    untrained = Tokens((5, 6, 7, 8, 9), (False,) * 5, "none")
    torch.testing.assert_close(sft_page.loss(policy, [*BATCH, untrained], 10), base)


def test_a_pair_s_shared_sequences_run_once_and_the_split_changes_nothing() -> None:
    policy = role()
    policy.head = ScalarHead(policy.backbone.width, seed=0, purpose="h")
    sides = [Tokens(t.ids, t.trained, t.id) for t in BATCH]
    pairs = [TokenPair(sides[0], sides[1], 0.0, "1"), TokenPair(sides[0], sides[2], 0.5, "2"), TokenPair(sides[2], sides[3], 0.0, "3")]
    chosen, rejected = rm_page.scores(policy, pairs)
    for pair, c, r in zip(pairs, chosen, rejected, strict=True):
        alone = rm_page.scores(policy, [pair])
        torch.testing.assert_close((c, r), (alone[0][0], alone[1][0]), atol=1e-5, rtol=1e-5)
    seen: dict[str, float] = {}
    whole = rm_page.loss(policy, pairs, 3, 0.01, seen)
    parts = sum(rm_page.loss(policy, [p], 3, 0.01, {}) for p in pairs)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)
    by_hand = sum(math.log1p(math.exp(-(c - r - p.margin))) + 0.01 * (c + r) ** 2 for c, r, p in zip(chosen.tolist(), rejected.tolist(), pairs, strict=True)) / 3
    assert float(whole.detach()) == pytest.approx(by_hand, rel=1e-5)
    assert rm_page.tokens_of(pairs) == 5 + 3 + 8 + 2  # the sequences a, b, c, d, each once
    swapped = [TokenPair(p.rejected, p.chosen, 0.0, p.id) for p in pairs]
    torch.testing.assert_close(rm_page.scores(policy, swapped)[0], rejected, atol=1e-6, rtol=1e-6)


def test_groups_are_pairs_connected_by_a_sequence() -> None:
    a, b, c, d, e = (Tokens((i, i + 1), (False, True), str(i)) for i in range(1, 6))
    assert rm_page._groups([TokenPair(a, b), TokenPair(c, d), TokenPair(b, e), TokenPair(d, c)]) == [0, 1, 0, 1]


# -- learner -------------------------------------------------------------------------------------------------------------
def quadratic(lr: float = 0.1, **options: object) -> tuple[Learner, torch.nn.Parameter]:
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    return Learner({"p": p}, lr=lr, total=100, **options), p  # type: ignore[arg-type]


def test_a_non_finite_update_is_left_out_and_five_in_a_row_stop() -> None:
    learner, p = quadratic()
    before = p.detach().clone()
    out = learner.update([0], len, lambda _: (p * float("nan")).sum())
    assert out["update/skipped"] == 1 and torch.equal(p, before)
    learner.update([0], len, lambda _: p.square().sum())
    assert not torch.equal(p, before) and torch.isfinite(p).all()
    with pytest.raises(NonFiniteError, match="5 updates in a row"):
        for _ in range(5):
            learner.update([0], len, lambda _: (p * float("inf")).sum())
    assert torch.isfinite(p).all()


def test_out_of_memory_halves_the_micro_batch_and_not_the_result() -> None:
    results = []
    for limit in (100, 8):
        learner, p = quadratic(micro_tokens=64)

        def loss(part: list[int], p: torch.nn.Parameter = p, limit: int = limit) -> Tensor:
            if len(part) * 4 > limit:
                raise MemoryError("simulated allocator")
            return sum((p - i).square().sum() for i in part) / 8  # type: ignore[return-value]

        learner.update(range(8), lambda part: 4 * len(part), loss)
        results.append(p.detach().clone())
        assert learner.micro_tokens == (64 if limit == 100 else 8)
    torch.testing.assert_close(*results, atol=1e-6, rtol=0)
    with pytest.raises(MemoryError):
        quadratic()[0].update([0], lambda part: 4, lambda _: (_ for _ in ()).throw(MemoryError()))


def test_learner_state_comes_back_exactly() -> None:
    one, p = quadratic(schedule="cosine", warmup=0.1)
    two, q = quadratic(schedule="cosine", warmup=0.1)
    run = lambda learner, w, n: [learner.update([0], len, lambda _: (w**4).sum()) for _ in range(n)]  # noqa: E731
    run(one, p, 7)
    run(two, q, 3)
    fresh, r = quadratic(schedule="cosine", warmup=0.1)
    fresh.load({k: {n: t.clone() for n, t in v.items()} for k, v in two.tensors().items()}, two.state())
    run(fresh, r, 4)
    assert torch.equal(p, r)


def test_schedules_by_hand() -> None:
    learner, _ = quadratic(schedule="linear", warmup=0.1)
    assert [learner.factor(i) for i in (0, 9, 10, 55, 100)] == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])
    learner, _ = quadratic(schedule="cosine")
    assert [learner.factor(i) for i in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])


def test_parts_cover_everything_once_in_order() -> None:
    lengths = [3, 9, 1, 1, 30, 2, 2]
    found = parts(range(7), lambda part: sum(lengths[i] for i in part), 10)
    assert [i for part in found for i in part] == list(range(7))
    assert all(sum(lengths[i] for i in part) <= 10 or len(part) == 1 for part in found)


def test_parts_are_as_few_as_the_budget_allows_and_about_equal() -> None:
    cut = lambda lengths, budget: [sum(lengths[i] for i in part) for part in parts(range(len(lengths)), lambda part: sum(lengths[i] for i in part), budget)]  # noqa: E731
    assert cut([96] * 64, 4096) == [3072, 3072]  # 42 rows fit into one, which would leave 22
    assert cut([96] * 64, 2048) == [1536] * 4
    assert cut([1] * 10, 4) == [4, 4, 2]  # three parts of at most ceil(10 / 3) = 4
    assert cut([95, 2, 3], 10) == [95, 5]  # what is larger than the budget takes nobody along
    assert cut([7], 10) == [7] and parts([], len, 10) == []


# -- PPO -----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose SFT and reward stages are complete."""
    from truing.pipeline import run_recipe

    path = tiny.folder(tmp_path_factory.mktemp("tiny data"))
    data = tiny.recipe(path)
    data["stages"] = {k: data["stages"][k] for k in ("sft", "reward")}
    return run_recipe(make_recipe(data), path / "runs")


def options(trained: Path, **changes: object) -> PPO:
    stage = tiny.recipe(trained.parent.parent)["stages"]["ppo"]
    return PPO(**{**stage, "model": str(trained / "sft" / "model"), "reward": str(trained / "reward" / "model"), "steps": 2, **changes})


VARIANTS = {"lora": {}, "full": {"lora": None}}  # of the models that the stages before have trained; `test_ppo_runs` has every other setting


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_ratio_is_exactly_one_and_the_first_kl_exactly_zero(variant: str, trained: Path, tmp_path: Path) -> None:
    from truing.observe.events import read_events

    result = ppo_page.ppo(options(trained, **VARIANTS[variant]), tmp_path / "run", seed=3)
    first, second = (e for e in read_events(tmp_path / "run") if e["kind"] == "metrics")
    values = first.get("values", first)
    assert values["policy/first_ratio_error"] == 0.0
    assert values["kl/sequence"] == 0.0 and values["kl/k3_sequence"] == 0.0
    assert values["sampler/mismatch"] < 1e-4
    later = second.get("values", second)
    assert later["policy/first_ratio_error"] == 0.0 and later["kl/k3_sequence"] > 0
    assert result["updates"] == 2 * 2 * 2  # steps x epochs x minibatches that really step


def test_rewards_add_up_and_stand_at_the_last_token(trained: Path) -> None:
    from truing.methods.roles_of_ppo import open_roles
    from truing.rollout.sampler import sample

    config = options(trained, scores={"missing_eos": -2.0})
    roles = open_roles(config, 0)
    with torch.no_grad():
        for name, p in roles.policy.parameters().items():
            if name.endswith(".B"):
                p.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    rollout = sample(roles.policy, [[4, 5, 6], [7, 8]] * 8, max_new_tokens=6, temperature=1.0, stop_ids=[2], seed=0, step=1)
    batch, scores, _ = ppo_page.score(rollout, ppo_page.read(rollout, ["q"] * 16, roles, config), roles, config)
    plan = list(ppo_page.minibatches(16, 2, 0, 1, 0))
    found = ppo_page.look(batch, roles, config, plan, 0.3, scores, 64)
    k1 = (found.past.logp - found.logp_ref).sum(-1)
    wanted = torch.tensor([s.value for s in scores]) - 0.3 * k1 + torch.where(rollout.finished_B, 0.0, -2.0)
    torch.testing.assert_close(found.rewards.sum(-1), wanted, atol=1e-5, rtol=1e-5)
    assert k1.abs().max() > 0.01 and (found.rewards[~rollout.trained_BT] == 0).all()
    # every per-token number, once more, one sequence at a time and without packing
    for i, ids in enumerate(rollout.sequences()):
        n, start = len(ids), len(rollout.prompts[i])
        from truing.models.pack import Pack

        with torch.no_grad():
            hidden, ref = roles.policy.hidden(Pack([ids])), roles.reference.hidden(Pack([ids]))
            head = roles.policy.backbone.head_weight
            for t in range(start, n):
                assert found.past.logp[i, t - start].item() == pytest.approx((hidden[t - 1] @ head.T).log_softmax(-1)[ids[t]].item(), abs=1e-4)
                assert found.logp_ref[i, t - start].item() == pytest.approx((ref[t - 1] @ head.T).log_softmax(-1)[ids[t]].item(), abs=1e-4)
                assert found.past.values[i, t - start].item() == pytest.approx(roles.value.values(Pack([ids[:t]]), torch.tensor([t - 1])).item(), abs=1e-4)
    returns, targets = 0.0, found.past.targets
    last = int(rollout.lengths_B[0]) - 1
    assert targets[0, last].item() == pytest.approx(found.rewards[0, last].item(), abs=1e-5), returns  # at the last token the target is the reward itself
