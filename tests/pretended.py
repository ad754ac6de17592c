"""A GPU that is not there, for tests: tensors that say `cuda:0`, hold their numbers in CPU memory, and refuse what CUDA refuses.

Inside `gpu()` everything runs and gives real numbers, so that a whole training step can be compared with the CPU's. Refused are: an operation between a
tensor of the device and one of the CPU (a number of no dimension may be on either, an index on the CPU, and `copy_` crosses); `numpy()` and addresses;
kernels that only a CPU has; random numbers drawn on the device, which Truing draws on the CPU. Not shown are the kernels' rounding and speed, streams,
and memory. Where there is a real GPU, `gpu()` is that one.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

REAL = torch.cuda.is_available()
CUDA = torch.device("cuda", 0)
CROSSING = {"aten::copy_", "aten::_to_copy", "aten::set_"}
INDEXING = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index"}
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
_composite = 0  # inside PyTorch's own choice of an attention kernel, which sees the memory that is really there


class Pretended(Tensor):
    """A tensor on the device; ``held`` are its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> Pretended:
        made = Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device="cpu", requires_grad=requires_grad)  # type: ignore[attr-defined]
        made.held = held
        return made

    device = property(lambda _: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    is_cpu = property(lambda _: False)  # type: ignore[assignment]
    data = property(lambda self: Pretended(self.held), lambda self, value: self._become(value))  # type: ignore[assignment]

    def _become(self, value: Tensor) -> None:
        other = Pretended(_held(value), self.requires_grad)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k != "held"})
        torch.utils.swap_tensors(self, other)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pretended:
        made = Pretended(self.held.clone(), self.requires_grad)
        made.__dict__.update({k: v for k, v in self.__dict__.items() if k != "held"})
        memo[id(self)] = made
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.held!r})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    __array__ = numpy

    def data_ptr(self) -> int:
        if sys._getframe(1).f_globals["__name__"].startswith("truing."):  # others only compare addresses
            raise RuntimeError("the address of memory on the device was asked for; code of the CPU would read it and crash")
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _call(func, args, dict(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if name in INDEXING and isinstance(args[0], Pretended):  # the tensor that is indexed, and what is written into it
            given = [x for x in (args[0], *args[2:3]) if isinstance(x, Tensor)]
        if name not in CROSSING and any(not isinstance(x, Pretended) and x.dim() for x in given):
            raise RuntimeError(f"{MIXED} (when running {name})")
        if name.startswith(("mkldnn::", "onednn::")) or ("for_cpu" in name and not name.endswith("backward") and not _composite):
            raise NotImplementedError(f"Could not run '{name}' with arguments from the 'CUDA' backend.")
        if torch.Tag.nondeterministic_seeded in func.tags and "scaled_dot_product" not in name and "dropout" not in name:
            raise RuntimeError(f"{name} draws random numbers on the device")
        owner = {id(x.held): x for x in given if isinstance(x, Pretended)}
        made = func(*tree_map_only(Pretended, _held, args), **tree_map_only(Pretended, _held, kwargs))
        there = name not in CROSSING or isinstance(args[0], Pretended)
        return tree_map_only(Tensor, lambda x: owner.get(id(x)) if id(x) in owner else Pretended(x) if there else x, made)


def _held(x: Tensor) -> Tensor:
    return x.held if isinstance(x, Pretended) else x


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return Pretended(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _held(g).clone()


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Pretended) -> Tensor:
        return x.held.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return Pretended(g.clone())


def moved(x: Tensor, device: torch.device | None) -> Tensor:
    if device is None or (device.type == "cuda") == isinstance(x, Pretended):
        return x
    return _Up.apply(x) if device.type == "cuda" else _Down.apply(x)


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A call that may name a device, before PyTorch looks for a real one."""
    global _composite
    if func is Tensor.cpu:
        return moved(args[0], torch.device("cpu"))
    if func is Tensor.cuda:
        return moved(args[0], CUDA)
    if func is Tensor.to:
        return _to(*args, **kwargs)
    if func is torch.nn.functional.scaled_dot_product_attention:
        _composite += 1
        try:
            return func(*args, **kwargs)
        finally:
            _composite -= 1
    device = torch.device(kwargs["device"]) if isinstance(kwargs.get("device"), str | torch.device) else None
    if device is None or not (device.type == "cuda" or any(isinstance(x, Pretended) for x in args)):
        return func(*args, **kwargs)
    if device.type == "cuda" and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{kwargs['generator'].device.type}'")
    return tree_map_only(Tensor, lambda x: moved(x, device), func(*args, **kwargs | {"device": None}))


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        return moved(x, args[0].device).to(args[0].dtype)
    copy = kwargs.pop("copy", False)
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
    made = moved(x, device)
    return Tensor.to(made, made.dtype if dtype is None else dtype, copy=copy and made is x)


class _Calls(TorchFunctionMode):
    """For calls without a tensor of the device among their arguments; PyTorch turns it off in backward."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, dict(kwargs or {}))


def _apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` with new parameters in place of old ones with new contents; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = made.setdefault(id(p), nn.Parameter(fn(p.detach()), p.requires_grad))
        for name, b in part._buffers.items():
            part._buffers[name] = None if b is None else fn(b)
    return module


@contextlib.contextmanager
def gpu() -> Iterator[None]:
    """Inside, there is a GPU."""
    if REAL:
        yield
        return
    with contextlib.ExitStack() as stack:
        for name, found in (("is_available", True), ("is_bf16_supported", True), ("get_device_name", "a pretended GPU"), ("max_memory_allocated", 3 * 2**20)):
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, _found=found, **__: _found))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        stack.enter_context(_Calls())
        yield
