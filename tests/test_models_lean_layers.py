"""The lean layers against transformers' own forward and autograd: families, precisions, positions, lengths, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from test_models_backbone import FAMILIES, SEQUENCES, gpt2, moved, small
from truing.config import Lora
from truing.models import attention, attention_plain, fused, llama, memory
from truing.models.backbone import Backbone
from truing.models.pack import Pack

KINDS = {**{kind: {} for kind in FAMILIES}, "one key head a query head": {"kind": "llama", "kv_heads": 4}, "biases everywhere": {"kind": "llama", "attention_bias": True}}
LONG = [[(7 * i + t) % 60 + 3 for t in range(n)] for i, n in enumerate((150, 3, 40, 140, 1, 38))]


def model_of(name: str) -> nn.Module:
    options: dict[str, Any] = dict(KINDS[name])
    model = small(options.pop("kind", name), **options)
    with torch.no_grad():  # biases and norms that start at 0 and 1 would hide a missing term
        for i, p in enumerate(p for p in model.parameters() if p.ndim == 1):
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return model


def pull(shape: torch.Size) -> Tensor:
    """The gradient that arrives at the hidden states."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def gradients(backbone: Backbone, sequences: list[list[int]], adapter: Any = None, positions: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    named = dict(adapter.tensors()) if adapter is not None else dict(backbone.model.named_parameters())
    for p in named.values():
        p.grad = None
    pack = Pack(sequences)
    hidden = backbone.hidden(pack, adapter, positions)
    weights = pull(torch.Size((pack.tokens, hidden.shape[1])))
    (hidden * (weights if positions is None else weights[positions])).sum().backward()
    return hidden.detach(), {k: p.grad.clone() for k, p in named.items() if p.grad is not None}


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Each gradient within 1e-5 of its largest element from float64's; or where float32 cannot be, no further from it than autograd's own is, give or take its noise."""
    assert ours.keys() == theirs.keys() == exact.keys()
    for name, g in exact.items():
        away, allowed = ((x[name].double() - g).abs().max() for x in (ours, theirs))
        assert away <= max(1e-5 * g.abs().max(), 4 * allowed), (name, float(away), float(allowed))


@pytest.fixture
def new_memory_is_nan() -> Iterator[None]:
    """What nobody has written yet reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def test_sizes_rise_by_a_sixteenth_to_an_eighth() -> None:
    assert [llama.octave(n) for n in (0, 1, 8, 9, 127, 129, 1024, 1025, 2047)] == [0, 8, 8, 16, 128, 144, 1024, 1152, 2048]
    sizes = [llama.octave(n) for n in range(64, 5000)]
    assert all(n <= s <= n + max(7, n / 8) for n, s in zip(range(64, 5000), sizes, strict=True)) and len({s for s in sizes if 1024 < s <= 2048}) == 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["compiled", "pytorch"])
def test_rows_that_only_fill_up_touch_nothing(kind: str, dtype: torch.dtype, form: str, new_memory_is_nan: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """35 tokens run as 40 rows, and 6 positions as 8: with memory that is NaN until it is written, values and gradients are those of exactly 35 and 6."""
    if form == "pytorch":
        monkeypatch.setattr(fused, "passes", lambda x, dtype: None)
    sequences, positions = [[3 + (5 * i + t) % 50 for t in range(n)] for i, n in enumerate((20, 9, 6))], torch.tensor([0, 7, 19, 20, 33, 34])
    assert llama.octave(35) == 40 and llama.octave(6) == 8
    made = []
    for even in (lambda n, *_: llama.octave(n), lambda n, *_: n):
        monkeypatch.setattr(llama, "even", even)
        backbone = Backbone(copy.deepcopy(model_of(kind)), lora=Lora(rank=2, alpha=4.0), dtype=dtype)
        adapter = moved(backbone)
        made.append([gradients(backbone, sequences, adapter, p) for p in (None, positions)])
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    for (hidden, grads), (plain_hidden, plain_grads) in zip(*made, strict=True):
        torch.testing.assert_close(hidden, plain_hidden, **near)
        for name, g in plain_grads.items():
            assert (grads[name] - g).norm() <= near["rtol"] * g.norm(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequences", [SEQUENCES, LONG], ids=["short", "long"])
def test_values_and_gradients_are_transformers_own(kind: str, sequences: list[list[int]]) -> None:
    model = model_of(kind)
    for lora in (None, Lora(rank=2, alpha=4.0), Lora(rank=2, alpha=4.0, layers=2)):  # the last with a frozen trunk below
        found = []
        for lean, dtype in ((True, torch.float32), (False, torch.float32), (False, torch.float64)):
            backbone = Backbone(copy.deepcopy(model), lora=lora, lean=lean)
            adapter = moved(backbone).to(dtype) if lora else None  # type: ignore[attr-defined]
            backbone.model.to(dtype)
            assert backbone.lean == lean
            found.append(gradients(backbone, sequences, adapter))
        (ours, our_grads), (theirs, their_grads), (_, exact_grads) = found
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        assert_near(our_grads, their_grads, exact_grads)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4.0)])
@pytest.mark.parametrize("sequences", [SEQUENCES, LONG], ids=["short", "long"])
def test_products_in_bfloat16_stay_within_its_rounding(lora: Lora | None, sequences: list[list[int]]) -> None:
    model = small()
    exact, rounded = (Backbone(copy.deepcopy(model), lora=lora, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    under = [moved(b) if lora else None for b in (exact, rounded)]
    (a, a_grads), (b, b_grads) = gradients(exact, sequences, under[0]), gradients(rounded, sequences, under[1])
    assert b.dtype == torch.float32 and all(g.dtype == torch.float32 for g in b_grads.values())
    assert 0 < (a - b).abs().max() < 0.05 * a.abs().max()
    for name, g in a_grads.items():
        assert (b_grads[name] - g).norm() < 0.05 * g.norm(), name
    if lora is None:  # the weights themselves are not rounded
        assert all(p.dtype == torch.float32 for p in rounded.model.parameters()) and rounded.dtype == torch.bfloat16
        twin = rounded.frozen_copy()
        assert torch.equal(twin.hidden(Pack(sequences)), rounded.hidden(Pack(sequences)))


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4.0, layers=1), Lora(rank=2, alpha=4.0)])
@pytest.mark.parametrize("lean", [True, False])
def test_some_positions_are_those_of_all(lora: Lora | None, lean: bool) -> None:
    backbone = Backbone(small(), lora=lora, lean=lean)
    adapter = moved(backbone) if lora else None
    positions = torch.tensor([2, 0, 2, 14, 7])
    named = dict(adapter.tensors()) if adapter is not None else dict(backbone.model.named_parameters())  # type: ignore[attr-defined]
    found, grads = gradients(backbone, SEQUENCES, adapter, positions)
    for p in named.values():
        p.grad = None
    every = backbone.hidden(Pack(SEQUENCES), adapter)
    torch.testing.assert_close(found, every[positions].detach(), atol=1e-6, rtol=1e-6)
    (every[positions] * pull(every.shape)[positions]).sum().backward()
    for name, g in grads.items():
        assert (g - named[name].grad).abs().max() <= 1e-6 * g.abs().max(), name


@pytest.mark.parametrize("make", [small, gpt2])
@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4.0), Lora(rank=2, alpha=4.0, layers=2)])
def test_checkpointing_keeps_less_and_gives_the_same_gradients_to_the_last_bit(make: Any, lora: Lora | None) -> None:
    model, sequences = make(), [s[:60] for s in LONG]  # the context of the small GPT-2 is 64
    plain, saving = (Backbone(copy.deepcopy(model), lora=lora, checkpointing=on) for on in (False, True))
    under = [moved(b) if lora else None for b in (plain, saving)]
    (a, a_grads), (b, b_grads) = gradients(plain, sequences, under[0]), gradients(saving, sequences, under[1])
    assert torch.equal(a, b) and a_grads.keys() == b_grads.keys() and len(a_grads) > 5
    assert all(torch.equal(g, b_grads[name]) for name, g in a_grads.items())
    pack = Pack(sequences)
    sizes = []
    for backbone, adapter in zip((plain, saving), under, strict=True):
        backbone.prepare(pack, pack.tokens)
        sizes.append(memory.kept(lambda b=backbone, o=adapter: b.hidden(pack, o), memory.storages(backbone.model, adapter, pack.trunk)))  # type: ignore[misc]
    assert sizes[1] < 0.4 * sizes[0]


def test_attention_is_the_plain_formula_at_every_length_and_its_gradient_that_of_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = Pack([[1] * n for n in (3, 9, 1, 4)])
    monkeypatch.setattr("truing.models.pack.FEW", 4)
    pack._grids = None
    assert len(pack.grids()) == 3  # 9; 4 and 3; 1
    draw = lambda heads, s: torch.randn(pack.tokens, heads, 6, generator=torch.Generator().manual_seed(s)).requires_grad_()  # noqa: E731
    q, k, v = draw(4, 0), draw(2, 1), draw(2, 2)
    angle = torch.arange(9)[:, None] * torch.tensor([1.0, 0.3, 0.1])
    turn = attention.Turn(torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1))

    def plain() -> Tensor:
        """One sequence, one head, one query at a time; a head's halves are the real and imaginary parts of numbers that turn."""
        out = []
        for start, length in zip(pack.starts, pack.lengths, strict=True):
            for t in range(length):
                for h in range(4):
                    rotate = lambda x, at: torch.complex(x[:3], x[3:]) * torch.polar(torch.ones(3), angle[at])  # noqa: E731
                    mine = rotate(q[start + t, h], t)
                    scores = torch.stack([(mine * rotate(k[start + s, h // 2], s).conj()).real.sum() for s in range(t + 1)]) * 0.4
                    out.append(scores.softmax(0) @ v[start : start + t + 1, h // 2])
        return torch.stack(out).view(q.shape)

    wanted = plain()
    g = pull(wanted.shape)
    grads = torch.autograd.grad(wanted, (q, k, v), g)
    for short, block in ((None, None), (128, 128), (128, 4), (128, 2), (2, 2)):  # compiled; batched products in one block, in blocks but for the short ones, flash attention but for the last
        if short is not None:
            monkeypatch.setattr(attention, "passes", lambda x, dtype: None)
            monkeypatch.setattr(attention_plain, "SHORT", short)
            monkeypatch.setattr(attention_plain, "BLOCK", block)
        found = attention.attend(q, k, v, pack, turn, 0.4)
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
        for a, b in zip(torch.autograd.grad(found, (q, k, v), g), grads, strict=True):
            torch.testing.assert_close(a, b, atol=5e-6, rtol=1e-5)


def test_grids_hold_every_token_once() -> None:
    for lengths in ([5, 5, 5], [300, 2, 290, 100, 1, 1, 40], [1]):
        pack = Pack([[t + 1 for t in range(n)] for n in lengths])
        grids = pack.grids()
        tokens = torch.cat([torch.arange(pack.tokens) if g.tokens is None else g.tokens for g in grids])
        assert sorted(tokens.tolist()) == list(range(pack.tokens))
        for g in grids:
            if g.cells is not None:
                assert len(g.cells) == len(g.tokens) and g.cells.unique().numel() == len(g.cells) and g.cells.max() < g.rows * g.longest
                firsts = torch.isin(g.cells, torch.arange(0, g.rows * g.longest, g.longest))
                assert pack.ids_N[g.tokens[firsts]].tolist() == [1] * g.rows  # every row begins with the beginning of a sequence
