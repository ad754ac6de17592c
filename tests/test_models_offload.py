"""A reference on the disk: the same bits as a resident one, no memory between uses, and never a file that was half written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from truing.errors import CheckpointError, ModelError
from truing.models.backbone import Backbone
from truing.models.load import save_model, tiny_model
from truing.models.offload import FILE, Offloaded, holds
from truing.models.pack import Pack

SEQUENCES = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18], [19]]


def full(seed: int = 0, **options: object) -> Backbone:
    return Backbone(tiny_model(64, seed=seed, layers=3, hidden=48, **options), lora=None)


@torch.no_grad()
def test_it_has_the_bits_of_a_resident_copy_whatever_the_policy_becomes(tmp_path: Path) -> None:
    policy = full()
    resident, offloaded = policy.frozen_copy(), Offloaded(policy, tmp_path)
    for p in policy.model.parameters():
        p.add_(1.0)
    for _ in range(2):
        with offloaded.reading():
            assert torch.equal(offloaded.backbone.hidden(Pack(SEQUENCES)), resident.hidden(Pack(SEQUENCES)))
            assert torch.equal(offloaded.backbone.head_weight, resident.head_weight)
        assert sum(p.numel() for p in offloaded.backbone.model.parameters()) == 0
    assert not any(p.requires_grad for p in offloaded.backbone.model.parameters()) and all(p.requires_grad for p in policy.model.parameters())


def test_a_file_that_is_damaged_half_written_or_of_other_weights_is_written_again(tmp_path: Path) -> None:
    policy = full()
    weights = dict(policy.model.named_parameters())
    path = Offloaded(policy, tmp_path).path
    assert path == tmp_path / FILE and holds(path, weights) and not holds(path, dict(full(1).model.named_parameters()))
    whole, inode = path.read_bytes(), path.stat().st_ino
    assert Offloaded(policy, tmp_path).path.stat().st_ino == inode  # the right one is used as it is

    for damage in (whole[: len(whole) // 2], b"", whole[:-4] + b"\0\0\x80\xbf"):
        path.write_bytes(damage)
        assert not holds(path, weights)
        again = Offloaded(policy, tmp_path)
        assert holds(again.path, weights) and path.read_bytes() == whole
    Offloaded(full(1), tmp_path)
    assert not holds(path, weights)


def test_a_run_that_dies_while_writing_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "replace", dies)
        with pytest.raises(CheckpointError, match=r"reference\.safetensors.*offloaded reference.*No space left"):
            Offloaded(full(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert Offloaded(full(), tmp_path).path.exists()


def test_the_models_own_file_serves_when_it_holds_these_bits(tmp_path: Path) -> None:
    policy = full()
    save_model(policy.model, None, tmp_path / "same")
    save_model(tiny_model(64, layers=3, hidden=48).to(torch.bfloat16), None, tmp_path / "rounded")
    kept = Offloaded(policy, tmp_path / "run", source=tmp_path / "same")
    assert kept.path == tmp_path / "same" / "model.safetensors" and not (tmp_path / "run").exists()
    with kept.reading(), torch.no_grad():
        assert torch.equal(kept.backbone.hidden(Pack(SEQUENCES)), policy.hidden(Pack(SEQUENCES)))
    other = Offloaded(policy, tmp_path / "run", source=tmp_path / "rounded")
    assert other.path == tmp_path / "run" / FILE and load_file(other.path).keys() == dict(policy.model.named_parameters()).keys()


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    offloaded = Offloaded(full(), tmp_path)
    offloaded.path.unlink()
    with pytest.raises(ModelError, match=r"reference\.safetensors.*start the run again"), offloaded.reading():
        pass
    temporary = Offloaded(full())
    path = temporary.path
    assert path.exists()
    del temporary
    assert not path.parent.exists()


MEASURE = """
import re, sys, torch
from truing.models.backbone import Backbone
from truing.models.load import tiny_model
from truing.models.offload import Offloaded
from truing.models.pack import Pack

def resident():
    with open("/proc/self/status") as f:
        return int(re.search("VmRSS:[^0-9]*([0-9]+)", f.read())[1]) / 1024

policy = Backbone(tiny_model(4096, layers=8, hidden=512, heads=8), lora=None)
size = sum(p.numel() for p in policy.model.parameters()) * 4 / 2**20
with torch.no_grad():
    policy.hidden(Pack([[1, 2, 3]]))
    reference = Offloaded(policy)
    before = resident()
    with reference.reading():
        reference.backbone.hidden(Pack([[1, 2, 3]]))
        inside = resident()
    print(size, before, inside, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_between_uses_it_takes_no_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    size, before, inside, after = map(float, done.stdout.split())
    # Inside, the layers and the few embeddings that were looked up are resident: 8 x (4/3 x 2 x 512^2 + ...) of a model whose embedding is 8 MiB.
    assert size > 60 and inside - before > size - 10 and abs(after - before) < 0.1 * size, (size, before, inside, after)
