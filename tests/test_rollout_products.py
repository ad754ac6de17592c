"""Weights laid out for decoding: the same numbers as the layers give, whatever the shapes; and a whole step in one call beside the step in pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from test_models_backbone import moved, small
from truing import native
from truing.config import Lora
from truing.models.adapters import Adapter
from truing.models.backbone import Backbone
from truing.models.roles import Role
from truing.rollout.lean import LeanDecoder
from truing.rollout.products import LaidOut, Reordered, Shared, linear

DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}  # bfloat16 rounds weights, A x and the sum by 2^-9 each
needs_products = pytest.mark.skipif(not hasattr(native.library(torch.float32), "multiply"), reason="no C compiler, or no AVX-512: decoding multiplies by oneDNN here")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def layers(outs: tuple[int, ...], inputs: int, rank: int, *, bias: bool) -> tuple[list[tuple[str, nn.Linear]], Adapter | None]:
    torch.manual_seed(inputs + sum(outs))
    found = [(f"l{i}", nn.Linear(inputs, out, bias=bias)) for i, out in enumerate(outs)]
    if rank == 0:
        return found, None
    adapter = Adapter({name: (m.out_features, m.in_features) for name, m in found}, Lora(rank=rank, alpha=2.0 * rank), seed=0, purpose="test")
    for p in adapter.parameters():
        nn.init.normal_(p.data, std=0.1)
    return found, adapter


def error_of(y: Tensor, found: list[tuple[str, nn.Linear]], adapter: Adapter | None, x: Tensor) -> float:
    """The largest error of y, as a share of the largest sum of absolute products."""
    x64, wanted, size = x.double(), [], []
    for name, m in found:
        weight, most = m.weight.double(), m.weight.double().abs()
        if adapter is not None and (pair := adapter.pair(name)):
            a, b = pair[0].double(), pair[1].double()
            weight, most = weight + adapter.scale * b @ a, most + adapter.scale * b.abs() @ a.abs()
        wanted.append(x64 @ weight.T + (m.bias.double() if m.bias is not None else 0))
        size.append(x64.abs() @ most.T)
    return float((y.double() - torch.cat(wanted, -1)).abs().max() / torch.cat(size, -1).max())


@needs_products
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 3, 16])
@torch.no_grad()
def test_every_shape_gives_what_the_layers_give(rank: int, dtype: torch.dtype) -> None:
    """Columns and rows below, at and beyond what a block of registers holds; ranks that are odd; with bias and without."""
    laid = 0
    for outs, inputs, rows in itertools.product(((1,), (16,), (33, 15), (48, 16, 40)), (2, 30, 64, 128), (1, 7, 8, 9, 300)):
        found, adapter = layers(outs, inputs, rank, bias=sum(outs) % 2 == 1)
        x = torch.randn(rows, inputs).to(dtype)
        product = linear(found, adapter, dtype, packed=True)
        laid += isinstance(product, LaidOut)
        assert error_of(product(x), found, adapter, x) < CLOSE[dtype], (outs, inputs, rows)
    assert laid == 80 or (dtype == torch.bfloat16 and laid == 0)


@needs_products
@torch.no_grad()
def test_odd_widths_go_without() -> None:
    found, adapter = layers((32,), 33, 4, bias=True)
    assert not isinstance(linear(found, adapter, torch.float32, packed=True), LaidOut)


@pytest.mark.parametrize("form", [Shared, Reordered])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_without_compiled_products_the_numbers_are_the_same(form: type, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truing.rollout.products.passes", lambda x, dtype: None)
    found, adapter = layers((48, 16, 40), 64, 3, bias=True)
    product = linear(found, adapter, dtype, packed=form is Reordered)
    if type(product) is not form:
        pytest.skip("this PyTorch is built without oneDNN")
    x = torch.randn(9, 64).to(dtype)
    assert error_of(product(x), found, adapter, x) < CLOSE[dtype]


def decoded(role: Role, *, compiled: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits of three rows over thirty steps, and the cache."""
    decoder = LeanDecoder(role)
    if not compiled:
        decoder.compiled = None
    found = [decoder.admit([[3, 4, 5], [6] * 20, [7]])]
    found += [decoder.step(torch.tensor([8 + i, 9, 10])) for i in range(30)]
    return torch.stack(found), decoder.keys + decoder.values


@needs_products
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_step_in_one_call_is_the_step_in_pieces(kind: str, dtype: torch.dtype) -> None:
    backbone = Backbone(small(kind), lora=Lora(rank=3, layers=2), dtype=dtype)
    role = Role(backbone, moved(backbone))
    if LeanDecoder(role).compiled is None:
        pytest.skip("this processor does not multiply bfloat16 in pairs")
    (one, cache), (pieces, other) = (decoded(role, compiled=c) for c in (True, False))
    close = {"atol": 2e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 5e-2, "rtol": 5e-2}
    torch.testing.assert_close(one, pieces, **close)
    for a, b in zip(cache, other, strict=True):
        torch.testing.assert_close(a, b, **close)


@needs_products
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_no_bit_depends_on_the_number_of_threads(dtype: torch.dtype, threads: None) -> None:
    backbone = Backbone(small("llama"), lora=Lora(rank=2), dtype=dtype)
    role = Role(backbone, moved(backbone))
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        decoder = LeanDecoder(role)
        decoder.admit([[5, 6]] * 40)
        found.append(torch.stack([decoder.step(torch.arange(40) % 50) for _ in range(3)]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
