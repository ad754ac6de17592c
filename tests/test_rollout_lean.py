"""The lean decoder: rows that come and go, a cache laid anew, shared prompts, packed weights; each against transformers or a plain pass."""

from __future__ import annotations

import random

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from test_models_backbone import moved, small
from truing.config import Lora
from truing.errors import ConfigError
from truing.models import llama
from truing.models.backbone import Backbone
from truing.models.load import tiny_model
from truing.models.pack import Pack
from truing.models.roles import Role
from truing.rollout import lean
from truing.rollout.lean import LeanDecoder
from truing.rollout.products import PACKED
from truing.rollout.sampler import REFILL, _without, sample

KINDS = ["llama", "mistral", "qwen2", "qwen3"]


def role(kind: str = "llama", dtype: torch.dtype = torch.float32, lora: Lora | None = Lora(rank=2, layers=2)) -> Role:  # noqa: B008 - frozen
    backbone = Backbone(small(kind), lora=lora, dtype=dtype)
    return Role(backbone, moved(backbone) if lora else None)


def logits_of(policy: Role, sequence: list[int]) -> Tensor:
    """After the whole sequence, by the forward that trains."""
    hidden = policy.hidden(Pack([sequence]))[-1]
    return torch.nn.functional.linear(hidden, policy.backbone.head_weight, policy.backbone.head_bias)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [PACKED, 0], ids=["packed", "shared"])
@torch.no_grad()
def test_rows_that_come_and_go_keep_the_logits_of_a_plain_pass(kind: str, packed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty steps of admissions, departures and new columns, in random order: after each, every row's logits are those of its tokens alone."""
    monkeypatch.setattr(lean, "PACKED", packed)
    policy, rng = role(kind), random.Random(kind)
    decoder = LeanDecoder(policy)
    rows: list[list[int]] = []
    logits = torch.zeros(0, 0)
    for step in range(60):
        if not rows or (len(rows) < 12 and rng.random() < 0.3):
            new = [[rng.randrange(50) for _ in range(rng.choice([1, 2, 3, 7, 20]))] for _ in range(rng.randint(1, 3))] * rng.randint(1, 2)
            fresh = decoder.admit(new)
            logits = torch.cat([logits, fresh]) if rows else fresh
            rows += [list(p) for p in new]
        expected = torch.stack([logits_of(policy, row) for row in rows])
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5, msg=lambda m, s=step: f"step {s}: {m}")  # type: ignore[misc]
        over = torch.tensor([rng.random() < 0.1 for _ in rows])
        if over.any():
            order = _without(over)
            decoder.keep(order)
            rows = [rows[i] for i in order.tolist()]
        if rows:
            tokens = torch.tensor([rng.randrange(50) for _ in rows])
            logits = decoder.step(tokens)
            rows = [[*row, token] for row, token in zip(rows, tokens.tolist(), strict=True)]
    assert decoder.columns > lean.COLUMNS  # it has been laid anew


@torch.no_grad()
def test_one_column_too_few_would_be_noticed() -> None:
    """The comparison above is not blind: without a row's first token its logits differ by more than it allows."""
    policy = role()
    sequence = list(range(5, 25))
    assert (logits_of(policy, sequence) - logits_of(policy, sequence[1:])).abs().max() > 1e-3


def test_the_gaps_of_rows_that_are_over_are_filled_from_the_end() -> None:
    assert _without(torch.tensor([False, True, False, True, False, False])).tolist() == [0, 4, 2, 5]
    assert _without(torch.tensor([True, True])).tolist() == []
    assert _without(torch.tensor([False, False])).tolist() == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_samples_are_those_of_one_row_at_a_time(kind: str) -> None:
    """Whatever is decoded together, and whenever a row got its place."""
    policy, rng = role(kind), random.Random(1)
    prompts = [[rng.randrange(50) for _ in range(rng.randint(1, 9))] for _ in range(40)]
    limits = [rng.randint(1, 40) for _ in prompts]
    options = {"temperature": 1.0, "stop_ids": [3], "seed": 0, "step": 0}
    alone = [sample(policy, [p], max_new_tokens=n, samples=[i], **options) for i, (p, n) in enumerate(zip(prompts, limits, strict=True))]  # type: ignore[arg-type]
    for batch_size in (3, 8, 17, 256):
        together = sample(policy, prompts, max_new_tokens=limits, batch_size=batch_size, **options)  # type: ignore[arg-type]
        assert together.sequences() == [a.sequences()[0] for a in alone]
        assert together.lengths_B.tolist() == [int(a.lengths_B) for a in alone] and together.finished_B.tolist() == [bool(a.finished_B) for a in alone]
        logp = torch.cat([a.sampler_logp_BT[0] for a in alone])
        torch.testing.assert_close(together.sampler_logp_BT[together.trained_BT], logp, atol=2e-5, rtol=1e-5)
    assert all(n <= limit for n, limit in zip(together.lengths_B.tolist(), limits, strict=True)) and together.finished_B.any() and not together.finished_B.all()


def test_a_place_that_is_free_is_taken_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    step = LeanDecoder.step
    monkeypatch.setattr(LeanDecoder, "step", lambda self, tokens: rows.append(len(tokens)) or step(self, tokens))
    limits = [2] * 12 + [30] + [2] * 12
    policy = role()
    sample(policy, [[5, 6]] * 25, max_new_tokens=limits, temperature=1.0, stop_ids=[], seed=0, step=0, batch_size=8)
    # The long one begins first and takes 29 steps; beside it the 24 short ones take one step each, seven at a time: none waits for it.
    assert len(rows) == 29 and rows[:4] == [8, 8, 8, 4] and set(rows[4:]) == {1}
    assert 8 // REFILL == 1


def test_equal_prompts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    embed, policy = llama.embed, role()
    monkeypatch.setattr(llama, "embed", lambda model, pack: read.append(pack.tokens) or embed(model, pack))
    go = lambda prompts: sample(policy, prompts, max_new_tokens=3, temperature=1.0, stop_ids=[], seed=0, step=0)  # noqa: E731
    group = go([[5, 6, 7]] * 8 + [[8, 9]] * 8)
    assert sum(read) == 5
    assert group.sequences()[0] == go([[5, 6, 7]]).sequences()[0]


@torch.no_grad()
def test_samples_have_the_distribution_of_transformers() -> None:
    """Two tokens, drawn 20,000 times, against the probabilities that transformers' own forward gives to all pairs of a vocabulary of 12."""
    model = tiny_model(12, layers=2, hidden=32, heads=4, context=64, seed=3)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)  # far from uniform
    policy = Role(Backbone(model, lora=Lora()))
    n, prompt = 20_000, [5, 7, 2]
    drawn = sample(policy, [prompt] * n, max_new_tokens=2, temperature=0.8, stop_ids=[], seed=0, step=0, batch_size=512)
    first = (model(torch.tensor([prompt])).logits[0, -1].double() / 0.8).softmax(-1)
    second = (model(torch.tensor([[*prompt, t] for t in range(12)])).logits[:, -1].double() / 0.8).softmax(-1)
    counts = torch.bincount(drawn.completion_BT[:, 0] * 12 + drawn.completion_BT[:, 1], minlength=144).double()

    def p(first: Tensor, second: Tensor) -> float:
        expected = (first / first.sum())[:, None].mul(second).flatten() * n
        often = expected > 5
        found, wanted = (torch.cat([x[often], x[~often].sum()[None]]) for x in (counts, expected))
        return float(chisquare(found.numpy(), wanted.numpy()).pvalue)

    assert p(first, second) > 1e-3
    assert p(first**1.1, second) < 1e-6  # a temperature that is off by a tenth
    assert p(first, second.roll(1, 0)) < 1e-6  # a second token that has seen another first


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bfloat16_is_that_of_the_forward_that_trains(kind: str) -> None:
    """The adapter is not rounded into the weights: the sampler's log-probabilities stay as near the trainer's as bfloat16 itself allows."""
    policy = role(kind, torch.bfloat16)
    rollout = sample(policy, [[5, 6, 7], [9]] * 16, max_new_tokens=20, temperature=1.0, stop_ids=[], seed=0, step=0)
    pack = Pack(rollout.sequences())
    positions = pack.at(rollout.places()) - 1
    logits = torch.nn.functional.linear(policy.hidden(pack)[positions], policy.backbone.head_weight, policy.backbone.head_bias)
    again = logits.log_softmax(-1).gather(1, pack.ids_N[positions + 1][:, None]).squeeze(1)
    difference = (again - rollout.sampler_logp_BT[rollout.trained_BT]).abs()
    assert difference.mean() < 0.01 and difference.max() < 0.1
    assert 0 < difference.max()  # bfloat16 it is


def test_a_tiny_adapter_is_not_lost_in_bfloat16() -> None:
    """A change of every weight by less than half of its last bit would vanish in merged bfloat16 weights; here it changes the logits as in float32."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        policy = role(dtype=dtype)
        adapter = policy.adapter
        assert adapter is not None
        with torch.no_grad():
            for name, p in adapter.tensors().items():
                if name.endswith(".B"):
                    p.mul_(0.1)
            base, changed = (LeanDecoder(Role(policy.backbone, a)).admit([list(range(5, 20))]).double() for a in (None, adapter))
        found.append(changed - base)
    assert torch.nn.functional.cosine_similarity(found[0], found[1]).item() > 0.9


def test_limits_are_checked() -> None:
    for limits in ([3], [3, 0], []):
        with pytest.raises(ConfigError, match="max_new_tokens"):
            sample(role(), [[5], [6]], max_new_tokens=limits, temperature=1.0, stop_ids=[], seed=0, step=0)
    with pytest.raises(ConfigError, match="a prompt of 2 tokens and max_new_tokens=255 exceed"):
        sample(role(), [[5], [6, 7]], max_new_tokens=[10, 255], temperature=1.0, stop_ids=[], seed=0, step=0)


@torch.no_grad()
def test_rope_that_stretches_beyond_the_context_is_left_alone_within_it() -> None:
    """The cache has room for more columns than the context; asked for those, a dynamic rope would turn every key by other angles."""
    model = small(context=40, rope_scaling={"rope_type": "dynamic", "factor": 4.0})
    policy = Role(Backbone(model, lora=Lora()))
    before = logits_of(policy, list(range(5, 35)))
    rollout = sample(policy, [list(range(5, 30))], max_new_tokens=15, temperature=1.0, stop_ids=[], seed=0, step=0)  # to the last position
    pack = Pack(rollout.sequences())
    positions = pack.at(rollout.places()) - 1
    logits = torch.nn.functional.linear(policy.hidden(pack, positions), policy.backbone.head_weight)
    again = logits.log_softmax(-1).gather(1, pack.ids_N[positions + 1][:, None]).squeeze(1)
    torch.testing.assert_close(again, rollout.sampler_logp_BT[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(logits_of(policy, list(range(5, 35))), before)


def test_rope_whose_angles_depend_on_the_batch_is_left_to_transformers() -> None:
    half = [1.0] * 4
    long = {"rope_type": "longrope", "long_factor": half, "short_factor": half, "original_max_position_embeddings": 16, "factor": 4.0}
    assert not llama.fits(small(rope_scaling=long))
