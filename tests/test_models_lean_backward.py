"""Steps that make their intermediates again give autograd's own gradients, and keep less; wrong formulas would show."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from truing.models.lean_backward import rms_norm


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def kept(make: object) -> int:
    """Elements that autograd keeps of a forward."""
    sizes: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) and t, lambda t: t):
        out = make()  # type: ignore[operator]
    return sum(sizes.values()) if out is not None else 0


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (draw(3, 4, 5), draw(5, seed=1)))
    frozen = draw(5, seed=1).detach()
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, frozen, 1e-5), (draw(3, 5),))
    fixed = draw(3, 5).detach()
    assert torch.autograd.gradcheck(lambda w: rms_norm(fixed, w, 1e-5), (draw(5, seed=1),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_bits_and_gradients_are_torchs(dtype: torch.dtype) -> None:
    x, w, g = draw(64, 32, dtype=dtype), draw(32, dtype=dtype, seed=4), draw(64, 32, dtype=dtype, seed=3).detach()
    ours, theirs = rms_norm(x, w, 1e-5), F.rms_norm(x, (32,), w, 1e-5)
    assert torch.equal(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, (x, w), g), torch.autograd.grad(theirs, (x, w), g), strict=True):
        torch.testing.assert_close(a, b, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-5)


def test_only_the_inputs_are_kept() -> None:
    x, w = draw(64, 32, dtype=torch.bfloat16), draw(32, dtype=torch.bfloat16).detach()
    assert kept(lambda: rms_norm(x, w, 1e-5)) == 64 * 32 * 2 + 32 * 2  # bfloat16 states and weight
    assert kept(lambda: F.rms_norm(x, (32,), w, 1e-5)) > 64 * 32 * 4  # a float32 copy, at least
    with torch.no_grad():
        assert kept(lambda: rms_norm(x, w, 1e-5)) == 0
