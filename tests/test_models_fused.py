"""The passes between products: what they compute, in both their forms; and what happens where there is no compiler."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from truing import native
from truing.maths import likelihood
from truing.models import attention, fused
from truing.native import products

WIDTHS = (1, 15, 16, 17, 40, 688)  # below, at and beyond the sixteen lanes, whole and with a rest
CLOSE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 1e-2, "rtol": 1.6e-2}}  # bfloat16 rounds by 2^-9; the PyTorch form up to three times


@pytest.fixture(params=["compiled", "pytorch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pytorch":
        for caller in (fused, attention, likelihood, products):
            monkeypatch.setattr(caller, "passes", lambda x, dtype: None)
    elif native.library(torch.float32) is None:
        pytest.skip("no C compiler on this machine, so the passes run in PyTorch only")
    return str(request.param)


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), **CLOSE[dtype])


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("d", WIDTHS)
def test_normalisation_and_its_gradients_are_the_formulas(form: str, d: int, dtype: torch.dtype) -> None:
    x, y, w, g, extra = numbers(7, d), numbers(7, d, seed=1, dtype=dtype), numbers(d, seed=2), numbers(7, d, seed=3, dtype=dtype), numbers(7, d, seed=4)
    x64, w64 = x.double().requires_grad_(), w.double().requires_grad_()
    wanted = w64 * x64 * (x64.square().mean(-1, keepdim=True) + 1e-3).rsqrt()
    g_x, g_w = torch.autograd.grad(wanted, (x64, w64), g.double())

    n, r = fused.norm(x, w, 1e-3, dtype)
    assert n.dtype == dtype and r.shape == (7,)
    close(n, wanted, dtype)
    close(fused.renorm(x, w, r, dtype), wanted, dtype)
    close(fused.norm_backward(g, x, w, r), g_x, torch.float32)
    close(fused.norm_backward(g, x, w, r, extra=extra), g_x + extra, torch.float32)
    close(fused.norm_weight_backward(g, x, r), g_w, torch.float32)

    total, n, r = fused.add_norm(x, y, w, 1e-3)
    close(total, x.double() + y.double(), torch.float32)
    close(n, F.rms_norm(x.double() + y.double(), (d,), w.double(), 1e-3), dtype)
    close(fused.add(x, y), x.double() + y.double(), torch.float32)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("d", WIDTHS)
def test_the_gate_and_its_gradients_are_the_formulas(form: str, d: int, dtype: torch.dtype) -> None:
    both, g = 4 * numbers(5, 2 * d, dtype=dtype), numbers(5, d, seed=1, dtype=dtype)
    gates, ups = both[:, :d], both[:, d:]  # columns of one matrix, as the decoder has them
    a, b = gates.double().requires_grad_(), ups.double().requires_grad_()
    wanted = F.silu(a) * b
    close(fused.gate(gates, ups), wanted, dtype)
    for found, expected in zip(fused.gate_backward(g, gates.contiguous(), ups.contiguous()), torch.autograd.grad(wanted, (a, b), g.double()), strict=True):
        close(found, expected, dtype)
    own = g.clone()
    written = fused.gate_backward(own, gates.contiguous(), ups.contiguous(), (own, torch.empty_like(g)))  # over its own input
    for found, expected in zip(written, torch.autograd.grad(F.silu(a) * b, (a, b), g.double()), strict=True):
        close(found, expected, dtype)


def test_the_gate_is_right_at_both_ends(form: str) -> None:
    gates = torch.tensor([[-1e4, -100.0, -88.0, -20.0, 0.0, 20.0, 88.0, 100.0, 1e4]])
    torch.testing.assert_close(fused.gate(gates, torch.ones_like(gates)), F.silu(gates.double()).float(), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("dtype", CLOSE)
def test_a_nan_stays(form: str, dtype: torch.dtype) -> None:
    nan = torch.full((1, 16), float("nan"))
    assert fused.norm(nan, torch.ones(16), 1e-6, dtype)[0].isnan().all() and fused.gate(nan.to(dtype), nan.to(dtype)).isnan().all()


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("heads", "groups", "d", "columns"), [(2, 1, 8, 16), (1, 3, 32, 40), (3, 2, 20, 33)])
def test_a_new_token_looks_back_at_its_own_row(form: str, heads: int, groups: int, d: int, columns: int, dtype: torch.dtype) -> None:
    lengths, column = torch.tensor([columns - 3, 0, 5, 1]), columns - 2
    angle = torch.arange(columns)[:, None] * torch.linspace(1, 0.1, d // 2)
    turn = fused.Turn(angle.cos().repeat(1, 2), torch.cat((-angle.sin(), angle.sin()), -1))
    keys, values = 2 * numbers(4, heads, d, columns, dtype=dtype), numbers(4, heads, columns, d, seed=1, dtype=dtype)
    before = keys.clone(), values.clone()
    qkv = numbers(4, heads * (groups + 2), d, seed=2, dtype=dtype)
    qk, v = qkv.split((heads * (groups + 1), heads), 1)
    found = fused.LookBack(turn, lengths, column, columns, 0.3, dtype)(qk, v, keys, values)
    assert found.shape == (4, heads * groups * d)
    turned = fused.turned(qk.float(), turn.cos[lengths, None], turn.sin[lengths, None])
    for row, length in enumerate(lengths.tolist()):
        for head in range(heads):
            close(keys[row, head, :, column], turned[row, heads * groups + head], dtype)
            assert torch.equal(values[row, head, column], v[row, head])
            seen = slice(column - length, column + 1)
            for group in range(groups):
                q = turned[row, head * groups + group].to(dtype).double() * 0.3
                wanted = (q @ keys[row, head, :, seen].double()).softmax(-1) @ values[row, head, seen].double()
                at = (head * groups + group) * d
                torch.testing.assert_close(found[row, at : at + d].double(), wanted, atol=2e-5 if dtype == torch.float32 else 5e-2, rtol=1e-5)
    others = torch.arange(columns) != column
    assert torch.equal(keys[..., others], before[0][..., others]) and torch.equal(values[:, :, others], before[1][:, :, others])


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_what_is_allocated_is_of_its_own_type_and_not_the_default(form: str, default: torch.dtype) -> None:
    x, g = numbers(9, 33), numbers(9, 33, seed=1)
    torch.set_default_dtype(default)
    try:
        _, r = fused.norm(x, torch.ones(33, dtype=torch.float32), 0.0, torch.float32)
        total, _, again = fused.add_norm(x, g, torch.ones(33, dtype=torch.float32), 0.0)
        found = fused.norm_weight_backward(g, x, r)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in (r, total, again, found)} == {torch.float32}
    close(found, (g.double() * x.double() * x.double().square().mean(-1, keepdim=True).rsqrt()).sum(0), torch.float32)


def run(code: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("v", [1, 2, 15, 16, 17, 33, 4099])
@pytest.mark.parametrize("scale", [1.0, 40.0], ids=["spread", "sharp"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen-head", "trained-head"])
def test_a_heads_likelihood_is_the_formula_in_float64(form: str, v: int, scale: float, trained: bool) -> None:
    hidden, head, targets = numbers(21, 8, seed=1).requires_grad_(), (numbers(v, 8, seed=2) * scale).requires_grad_(trained), torch.arange(21) * 7 % v
    pull = numbers(21, seed=3).double()
    found = likelihood.token_likelihood(hidden, head, targets, temperature=0.7, chunk=8)
    (found.logp.double() * pull).sum().backward()
    h, w = hidden.detach().double().requires_grad_(), head.detach().double().requires_grad_()
    log_probs = (h @ w.t() / 0.7).log_softmax(1)
    logp = log_probs.gather(1, targets[:, None])[:, 0]
    (logp * pull).sum().backward()
    torch.testing.assert_close(found.logp.double(), logp, rtol=1e-5, atol=2e-6 * scale)
    torch.testing.assert_close(found.entropy.double(), -(log_probs.exp() * log_probs).sum(1), rtol=1e-4, atol=2e-6 * scale)
    assert (found.entropy >= 0).all()
    torch.testing.assert_close(hidden.grad.double(), h.grad, rtol=1e-4, atol=1e-5 * scale)
    if trained:
        torch.testing.assert_close(head.grad.double(), w.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("v", [2, 17, 4099])
@pytest.mark.parametrize("scale", [1.0, 8.0], ids=["spread", "sharp"])
def test_through_the_head_in_bfloat16_every_factor_is_rounded_and_no_difference(form: str, v: int, scale: float) -> None:
    """Where a target is all but certain its gradient is small, and its error must be small beside that; the rest is float32's to the bit."""
    hidden, head, pull = numbers(21, 8, seed=1).requires_grad_(), (numbers(v, 8, seed=2) * scale).requires_grad_(), numbers(21, seed=3)
    h, w = hidden.detach().double().requires_grad_(), head.detach().double()
    log_probs = (h @ w.t()).log_softmax(1)
    targets = log_probs.argmax(1)
    exact = torch.autograd.grad((log_probs.gather(1, targets[:, None])[:, 0] * pull).sum(), h)[0]
    rough, fine = (likelihood.token_likelihood(hidden, head, targets, chunk=8, backward=dtype) for dtype in (torch.bfloat16, None))
    (g_rough, head_rough), (g_fine, head_fine) = (torch.autograd.grad((found.logp * pull).sum(), (hidden, head)) for found in (rough, fine))
    assert torch.equal(rough.logp, fine.logp) and torch.equal(rough.entropy, fine.entropy) and torch.equal(head_rough, head_fine)
    real = exact.norm(dim=1) > 1e-3  # below that float32 itself no longer knows 1 - p
    away = lambda g: ((g.double() - exact).norm(dim=1) / exact.norm(dim=1))[real].max()  # noqa: E731
    assert int(real.sum()) > 2 and away(g_fine) < 1e-3 and not torch.equal(g_rough, g_fine) and away(g_rough) < 2e-2


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("v", [5, 16, 40])
def test_a_head_without_numbers_gives_none(form: str, odd: float, v: int) -> None:
    """One row's logits are not numbers: its log-probability and entropy are NaN, so that an update is refused; the others' are as they were."""
    hidden, head, targets = numbers(4, 3), numbers(v, 3, seed=1), torch.tensor([0, 1, 2, 3])
    whole = likelihood.token_likelihood(hidden, head, targets)
    hidden[2, 1] = odd
    found = likelihood.token_likelihood(hidden, head, targets)
    for now, before in zip(found, whole, strict=True):
        assert now.isnan().tolist() == [False, False, True, False] and torch.equal(now[[0, 1, 3]], before[[0, 1, 3]])


def test_what_has_no_chance_counts_for_nothing(form: str) -> None:
    """Two logits of 0 among hundreds of -1000, whose chance underflows: log 1/2 and an entropy of log 2."""
    head = torch.full((300, 1), -1000.0)
    head[[3, 299]] = 0.0
    found = likelihood.token_likelihood(torch.ones(2, 1), head, torch.tensor([299, 4]))
    torch.testing.assert_close(found.logp, torch.tensor([-math.log(2), -1000 - math.log(2)]))
    torch.testing.assert_close(found.entropy, torch.full((2,), math.log(2)))


LOADED = "import logging, torch; logging.basicConfig(level=logging.INFO, format='%(message)s'); from truing.native import library; print(library(torch.bfloat16) is not None)"


def test_without_a_compiler_or_by_setting_the_passes_run_in_pytorch(tmp_path: Path) -> None:
    assert run(LOADED, PATH=str(tmp_path), CC="no-such-compiler", TRUING_CACHE=str(tmp_path)) == "False"
    assert run(LOADED, TRUING_KERNELS="torch") == "False"
    with pytest.raises(AssertionError, match="TRUING_KERNELS=fast; use torch"):
        run(LOADED, TRUING_KERNELS="fast")


@pytest.mark.skipif(native.library(torch.float32) is None, reason="no C compiler on this machine")
def test_the_library_is_made_once_and_kept(tmp_path: Path) -> None:
    assert run(LOADED, TRUING_CACHE=str(tmp_path)) == "True"
    (made,) = (tmp_path / "kernels").iterdir()
    stamp = made.stat().st_mtime_ns
    assert run(LOADED, TRUING_CACHE=str(tmp_path), PATH=str(tmp_path)) == "True" and made.stat().st_mtime_ns == stamp  # no compiler is needed any more
    made.write_bytes(b"not a library")
    assert run(LOADED, TRUING_CACHE=str(tmp_path)) == "True"  # a file that cannot be loaded is made again


@pytest.mark.skipif(native.library(torch.float32) is None, reason="no C compiler on this machine")
def test_a_compiler_that_cannot_is_passed_over(tmp_path: Path) -> None:
    assert run(LOADED, TRUING_CACHE=str(tmp_path), CC="false") == "True"


def test_of_several_openmp_libraries_pytorchs_is_taken() -> None:
    line = "7f00-7f01 r--p 00000000 fe:00 12  "
    other, own, system = "/venv/scikit_learn.libs/libgomp-e9.so.1.0.0", "/my venv/torch/lib/libgomp.so.1", "/usr/lib/libiomp5.so"
    maps = lambda *paths: "\n".join(line + path for path in ("/usr/lib/libgompers.txt", *paths, "[heap]"))  # noqa: E731
    assert native.openmp_of(maps(other, own), Path("/my venv/torch")) == own
    assert native.openmp_of(maps(system, other), Path("/my venv/torch")) == system  # PyTorch brings none: the one that it found
    with pytest.raises(OSError, match="without OpenMP"):
        native.openmp_of(maps(), Path("/my venv/torch"))


@pytest.mark.skipif(native.library(torch.float32) is None, reason="no C compiler on this machine")
def test_results_do_not_depend_on_the_run_and_threads_are_pytorchs_though_others_are_loaded() -> None:
    code = (
        "import re, torch, sklearn.cluster; from truing.models import fused; torch.set_num_threads(2);"
        "threads = lambda: int(re.search(r'Threads:\\s*(\\d+)', open('/proc/self/status').read())[1]);"
        "x = torch.linspace(-3, 3, 96 * 4096).view(4096, 96); x.exp(); before = threads(); n, _ = fused.norm(x, x[0], 1e-6, torch.bfloat16);"
        "print(hash(tuple(n.float().flatten().tolist())), threads() - before)"
    )
    first, second = run(code), run(code)
    assert first == second and first.endswith(" 0")
