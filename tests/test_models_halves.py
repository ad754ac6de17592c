"""The halves of a decoder layer: in one call, put together from passes, and in PyTorch they are the same; and the formulas, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from test_models_fused import form, numbers  # noqa: F401
from truing.models import halves, linears
from truing.models.linears import Part

EPS, SCALE = 1e-3, 0.7
NEAR = {torch.float32: 1e-5, torch.bfloat16: 4e-2}  # of the norm; one token's numbers are rounded half a dozen times on the way
SIZES = [(1, 16, 32, 34), (7, 34, 48, 66), (67, 64, 34, 130), (301, 130, 128, 50)]  # tokens, width, heads, inner: in blocks of 32 rows and panels of 48 columns, whole and with a rest


def part(outs: int, ins: int, rank: int, dtype: torch.dtype, seed: int, *, bias: bool = False) -> Part:
    weight = numbers(outs, ins, seed=seed) / math.sqrt(ins)
    a, b = (numbers(rank, ins, seed=seed + 1) / math.sqrt(ins), numbers(outs, rank, seed=seed + 2) / 2) if rank else (None, None)
    return Part(weight.to(dtype) if rank else weight, numbers(outs, seed=seed + 3) if bias else None, a, b)


def leaves(*given: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach().clone().requires_grad_() for t in given]


def both_ways(outs: tuple[Tensor, ...], pulls: list[Tensor], read: list[Tensor | None]) -> list[Tensor]:
    """What a half gives, and every gradient that it has."""
    wanted = [t for t in read if t is not None]
    found = torch.autograd.grad(sum(((o * p).sum() for o, p in zip(outs, pulls, strict=True)), torch.zeros(())), wanted)
    return [o.detach() for o in outs] + list(found)


def assert_near(found: list[Tensor], exact: list[Tensor], near: float) -> None:
    for i, (a, b) in enumerate(zip(found, exact, strict=True)):
        assert a.shape == b.shape and (a.double() - b.double()).norm() <= near * b.double().norm(), i


def linear(x: Tensor, p: Part) -> Tensor:
    y = F.linear(x, p.weight.double(), None if p.bias is None else p.bias.double())
    return y if p.a is None or p.b is None else y + SCALE * (x @ p.a.double().t()) @ p.b.double().t()


def normal(x: Tensor, w: Tensor) -> Tensor:
    return w.double() * x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()


@pytest.fixture(params=["one call", "pieces"])
def taken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pieces":
        monkeypatch.setattr(linears, "WHOLE", 0)
    return str(request.param)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("rank", [0, 2, 18])
@pytest.mark.parametrize(("n", "width", "heads", "inner"), SIZES)
def test_what_follows_attention_is_the_formula(form: str, taken: str, n: int, width: int, heads: int, inner: int, rank: int, dtype: torch.dtype) -> None:  # noqa: F811
    x, mixed, norm, pull = numbers(n, width), numbers(n, heads, seed=1, dtype=dtype), numbers(width, seed=2), numbers(n, width, seed=3)
    parts = [part(*shape, rank, dtype, seed) for shape, seed in (((width, heads), 10), ((inner, width), 20), ((inner, width), 30), ((width, inner), 40))]
    runs = []
    for exact in (False, True):
        x_, mixed_, norm_, *flat = read = leaves(x, mixed, norm, *(t for p in parts for t in p))
        own = linears.parts_of(flat)
        assert x_ is not None and mixed_ is not None and norm_ is not None
        if exact:
            x2 = x_.double() + linear(mixed_.double(), own[0])
            inside = normal(x2, norm_)
            out = x2 + linear(F.silu(linear(inside, own[1])) * linear(inside, own[2]), own[3])
        else:
            out = halves.finish(x_, mixed_, norm_, EPS, own, SCALE)
        runs.append(both_ways((out,), [pull], read))
    assert_near(*runs, NEAR[dtype])


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("rank", [0, 2, 18])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n", "width", "heads", "inner"), SIZES)
def test_what_comes_before_attention_is_the_formula(form: str, taken: str, n: int, width: int, heads: int, inner: int, rank: int, bias: bool, dtype: torch.dtype) -> None:  # noqa: F811
    x, norm, pulls = numbers(n, width), numbers(width, seed=2), [numbers(n, w, seed=w) for w in (width, heads, inner, inner)]
    parts = [part(out, width, rank, dtype, seed, bias=bias) for out, seed in ((heads, 10), (inner, 20), (inner, 30))]
    runs = []
    for exact in (False, True):
        x_, norm_, *flat = read = leaves(x, norm, *(t for p in parts for t in p))
        own = linears.parts_of(flat)
        assert x_ is not None and norm_ is not None
        outs = (x_, *(linear(normal(x_.double(), norm_), p) for p in own)) if exact else halves.project(x_, norm_, EPS, dtype, own, SCALE)
        runs.append(both_ways(outs, pulls, read))
    assert_near(*runs, NEAR[dtype])


@pytest.mark.parametrize("dtype", NEAR)
def test_only_what_is_trained_gets_a_gradient(form: str, taken: str, dtype: torch.dtype) -> None:  # noqa: F811
    """The lowest adapted layer of a frozen model: neither its states nor its normalisations are trained, its adapters are."""
    x, mixed, norm = numbers(40, 32), numbers(40, 32, seed=1, dtype=dtype), numbers(32, seed=2)
    parts = [part(*shape, 4, dtype, seed) for shape, seed in (((32, 32), 10), ((64, 32), 20), ((64, 32), 30), ((32, 64), 40))]
    own = [p._replace(a=p.a.requires_grad_(), b=p.b.requires_grad_()) for p in parts]  # type: ignore[union-attr]
    same, *qkv = halves.project(x, norm, EPS, dtype, own[:3], SCALE)
    assert all(y.requires_grad for y in qkv)
    (sum(y.float().sum() for y in qkv) + halves.finish(same, mixed, norm, EPS, own, SCALE).sum()).backward()  # type: ignore[union-attr]
    assert x.grad is None and mixed.grad is None and all(p.weight.grad is None and p.a.grad is not None and p.b.grad is not None for p in own)  # type: ignore[union-attr]
    frozen = halves.finish(x, mixed, norm, EPS, parts, SCALE)
    assert frozen.requires_grad  # their adapters were made to be trained in place
    assert not halves.finish(x, mixed, norm, EPS, [p._replace(a=p.a.detach(), b=p.b.detach()) for p in parts], SCALE).requires_grad  # type: ignore[union-attr]


def test_threads_and_neighbours_change_no_bit(form: str, taken: str) -> None:  # noqa: F811
    if form == "pytorch":
        pytest.skip("PyTorch's products promise neither")
    x, mixed, norm = numbers(150, 64), numbers(150, 64, seed=1), numbers(64, seed=2)
    parts = [part(*shape, 0, torch.float32, seed) for shape, seed in (((64, 64), 10), ((130, 64), 20), ((130, 64), 30), ((64, 130), 40))]
    runs, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x_, mixed_, norm_, *flat = read = leaves(x, mixed, norm, *(t for p in parts for t in p))
            assert x_ is not None and mixed_ is not None and norm_ is not None
            runs.append(both_ways((halves.finish(x_, mixed_, norm_, EPS, linears.parts_of(flat), SCALE),), [numbers(150, 64, seed=3)], read))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
    with torch.no_grad():
        assert torch.equal(halves.finish(x[37:50], mixed[37:50], norm, EPS, parts, SCALE), runs[0][0][37:50])
