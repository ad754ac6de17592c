"""Weights that lie on the disk and are in memory only while they are read.

The file is safetensors, mapped into memory when it is opened: the system loads what is touched and takes it back afterwards.
Nothing is rounded, and tensors start where memory of their own would, so results are those of resident weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from truing.disk import disk_error, fsync_folder
from truing.errors import ModelError
from truing.models.backbone import Backbone

FILE = "reference.safetensors"
ALIGNED = 64  # bytes, as torch aligns memory of its own


class Offloaded:
    """A frozen twin of a backbone, as it is now, whose weights are on the disk outside `reading`."""

    def __init__(self, backbone: Backbone, folder: Path | None = None, *, source: Path | None = None) -> None:
        """Args:
        folder: where the file goes; None = a temporary folder that goes when the process does.
        source: the folder of the model this is; when its file holds these very bits, it serves and nothing is written.
        """
        weights = dict(backbone.model.named_parameters())
        self.backbone = _twin(backbone)
        self.path = next((p for p in _files(source) if holds(p, weights)), None) or self._written(weights, folder)
        self._drop()

    def _written(self, weights: Mapping[str, Tensor], folder: Path | None) -> Path:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="truing-reference-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = folder / FILE
        if not holds(path, weights):
            write(path, weights)
        return path

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """The weights are there inside this block. Raises ModelError when the file has gone or changed its shape."""
        try:
            with safe_open(self.path, framework="pt") as file:
                for name, p in self.backbone.model.named_parameters():
                    p.data = file.get_tensor(name).to(p.device)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{self.path}: the offloaded reference cannot be read ({error}); start the run again, which writes it anew") from error
        try:
            yield
        finally:
            self._drop()

    def _drop(self) -> None:
        for p in self.backbone.model.parameters():
            p.data = p.data.new_empty(0)


def _twin(backbone: Backbone) -> Backbone:
    """The same weights, not copied, in a module of its own that is frozen."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in backbone.model.parameters()}
    twin = Backbone(copy.deepcopy(backbone.model, shared), lora=None, lean=backbone.lean, dtype=backbone.dtype)
    twin.model.requires_grad_(False)
    return twin


def _files(folder: Path | None) -> list[Path]:
    found = sorted(folder.glob("*.safetensors")) if folder is not None else []
    return found if len(found) == 1 else []


def holds(path: Path, weights: Mapping[str, Tensor]) -> bool:
    """Whether a safetensors file has exactly these bits; a damaged file has not."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys()) >= set(weights) and all(_same(file.get_tensor(name), p) for name, p in weights.items())
    except (OSError, SafetensorError):
        return False


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.detach().cpu().contiguous().view(torch.uint8))


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    """With a header filled up to whole cache lines: matrix products round differently on tensors that start anywhere else."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in weights.items()}
    save_file(tensors, path, metadata={"fill": ""})
    with path.open("rb") as f:
        start = 8 + int.from_bytes(f.read(8), "little")
    save_file(tensors, path, metadata={"fill": " " * (-start % ALIGNED)})


def write(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Written beside, fsynced and renamed: the file is whole or not there. Raises CheckpointError with the free space."""
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(weights, beside)
        with beside.open("rb") as f:
            os.fsync(f.fileno())
        os.replace(beside, path)
        fsync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise disk_error(path, error if isinstance(error, OSError) else OSError(str(error)), "write the offloaded reference") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
