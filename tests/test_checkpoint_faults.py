"""R3: every single disk operation of a save fails once, on real files; the commit protocol's order is written down and checked."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from truing.disk import write_atomic
from truing.errors import CheckpointError
from truing.learn.checkpoint import load, newest, save
from truing.learn.run import Run
from truing.observe.events import read_events

OPERATIONS = ("open", "write", "fsync", "rename", "replace", "mkdir", "ftruncate", "unlink", "rmdir")


class Faults:
    """Counts the module's calls of the operating system and makes the nth one fail. The others really happen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], code: int) -> None:
        self.code, self.at, self.count, self.fired, self.trace = code, 0, 0, "", []  # type: ignore[var-annotated]
        for name in names:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.at:
                self.count += 1
                if self.count == self.at:
                    self.fired = name
                    if name == "write" and len(args[1]) > 1:
                        real(args[0], bytes(args[1])[: len(args[1]) // 2])  # a full disk takes a part first
                    raise OSError(self.code, os.strerror(self.code))
            return real(*args, **kwargs)

        return call

    def arm(self, n: int) -> None:
        self.at, self.count, self.fired = n, 0, ""


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"policy": {"w": torch.full((50,), float(step))}, "optimizer": {"m": torch.full((50,), -float(step))}}


def whole(folder: Path, step: int) -> None:
    found = load(folder)
    assert found.step == step and found.state["step"] == step
    assert torch.equal(found.tensors["policy"]["w"], torch.full((50,), float(step)))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("again", [False, True], ids=["next", "replacing"])
def test_the_nth_operation_of_a_save_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, again: bool) -> None:
    """After each fault: a good checkpoint loads, no half one is listed, the message names path, free space and remedy, and the next save works."""
    faults = Faults(monkeypatch, OPERATIONS, code)
    n, fired = 0, list[str]()
    while True:
        n += 1
        root = tmp_path / str(n)
        for step in (1, 2):
            save(root, step, tensors(step), {"step": step}, config_hash="c")
        new = 2 if again else 3
        faults.arm(n)
        error = None
        try:
            save(root, new, tensors(new), {"step": new}, config_hash="c")
        except CheckpointError as caught:
            error = str(caught)
        name = faults.fired
        faults.arm(0)
        found = newest(root)  # verifies: a half one would raise
        assert found is not None
        whole(found, int(found.name[5:]))
        assert int(found.name[5:]) in (2, new)
        assert error or found.name == f"step-{new:06d}", "no error, and no checkpoint"
        if error:
            assert str(root) in error and "MiB free" in error and os.strerror(code) in error and "run again" in error and "\n" not in error
        elif name:  # only the removal of what nobody lists may fail in silence
            assert name in ("unlink", "rmdir", "open"), f"a failing {name} went unreported"
        save(root, 9, tensors(9), {"step": 9}, config_hash="c")
        whole(root / "step-000009", 9)
        assert not [p for p in root.iterdir() if ".tmp-" in p.name], "leftovers stay"
        if not name:
            break
        fired.append(name)
    assert {"open", "write", "fsync", "rename", "mkdir", "unlink"} <= set(fired)
    assert len(fired) > 20


def test_the_nth_operation_of_a_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for opening, logging, samples, checkpoints and the end: then the run goes on to the same result."""
    faults = Faults(monkeypatch, ("open", "write", "fsync", "rename", "replace", "mkdir", "ftruncate"), errno.ENOSPC)

    def work(folder: Path) -> None:
        with Run.open(folder, {"lr": 0.1}, seed=0) as run:
            if run.done is not None:
                return
            saved = run.restore()
            w = saved.tensors["policy"]["w"] if saved else torch.zeros(3)
            for step in range(saved.step + 1 if saved else 1, 4):
                w = w * 0.5 + step
                run.log("step", step, {"w": float(w[0])})
                run.samples(step, [{"text": f"é {step}"}])
                if step == 2:
                    run.checkpoint(step, {"policy": {"w": w}}, {})
            run.finish({"w": float(w[0])})

    monkeypatch.setattr("truing.learn.run.surroundings", dict)  # asking git and the processor is not disk work
    want = ((0.0 * 0.5 + 1) * 0.5 + 2) * 0.5 + 3
    n, errors = 0, 0
    while True:
        n += 1
        folder = tmp_path / str(n) / "run"
        folder.parent.mkdir()
        faults.arm(n)
        try:
            work(folder)
        except CheckpointError as error:
            errors += 1
            assert str(folder) in str(error) and "free" in str(error)
        over = not faults.fired
        faults.arm(0)
        work(folder)
        steps = [(e["kind"], e["step"], e.get("w")) for e in read_events(folder) if e["kind"] not in ("session", "timing")]
        assert steps == [("step", 1, 1.0), ("step", 2, 2.5), ("step", 3, 4.25), ("result", 3, want)]
        assert sorted(p.name for p in (folder / "samples").iterdir()) == [f"step-00000{i}.jsonl" for i in (1, 2, 3)]
        assert not list(folder.rglob("*.tmp-*"))
        if over:
            break
    assert errors >= n - 4 and n > 40


def test_a_disk_that_takes_a_few_bytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]))
    whole(save(tmp_path, 4, tensors(4), {"step": 4}, config_hash="c"), 4)
    monkeypatch.setattr(os, "write", lambda fd, data: 0)
    with pytest.raises(CheckpointError, match="accepts no more bytes"):
        save(tmp_path, 5, tensors(5), {"step": 5}, config_hash="c")


def test_the_order_of_the_commit_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut needs and no kill can show: contents, then manifest, then names, each on the disk before the next; pruning last."""
    save(tmp_path, 1, tensors(1), {"step": 1}, config_hash="c", keep=1)
    trace: list[str] = []
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename")}
    names: dict[int, str] = {}

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        fd: int = real["open"](path, *args, **kwargs)
        names[fd] = "folder" if ".tmp-" in Path(os.fsdecode(path)).name else "parent" if Path(os.fsdecode(path)) == tmp_path else Path(os.fsdecode(path)).name
        return fd

    def synced(fd: int) -> None:
        trace.append(f"sync {names[fd]}")
        real["fsync"](fd)

    def renamed(a: Path, b: Path) -> None:
        trace.append("prune" if ".tmp-" in b.name else "publish")
        real["rename"](a, b)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    save(tmp_path, 2, tensors(2), {"step": 2}, config_hash="c", keep=1)
    assert trace == [
        "sync optimizer.safetensors", "sync policy.safetensors", "sync state.json", "sync MANIFEST.json", "sync folder", "publish", "sync parent", "prune",
    ]  # fmt: skip


def test_the_log_is_on_the_disk_before_a_checkpoint_points_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace: list[str] = []
    real_fsync, real_mkdir = os.fsync, os.mkdir

    def synced(fd: int) -> None:
        trace.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        real_fsync(fd)

    def made(path: Path, *args: Any) -> None:
        if ".tmp-" in Path(path).name:
            trace.append("begin")
        real_mkdir(path, *args)

    with Run.open(tmp_path, {}, seed=0) as run:
        run.restore()
        run.log("step", 1, {})
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "mkdir", made)
        run.checkpoint(1, tensors(1), {})
    assert trace.index("events.jsonl") < trace.index("begin")


def test_too_little_space_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, tensors(1), {"step": 1}, config_hash="c")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=399))  # 2 x 50 x 4 bytes are needed
    with pytest.raises(CheckpointError, match=r"needs 0 MiB \(0 MiB free\); free some space"):
        save(tmp_path, 2, tensors(2), {"step": 2}, config_hash="c")
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    """No shim: the kernel refuses files over 64 KiB."""
    code = f"""
import resource, torch
from pathlib import Path
from truing.errors import CheckpointError
from truing.learn.checkpoint import save, newest
root = Path({str(tmp_path)!r})
save(root, 1, {{"g": {{"w": torch.ones(10)}}}}, {{}}, config_hash="c")
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    save(root, 2, {{"g": {{"w": torch.ones(100_000)}}}}, {{}}, config_hash="c")
except CheckpointError as error:
    print(error, newest(root).name)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "step-000002: could not save this checkpoint: File too large" in out and out.endswith("step-000001\n")
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match=r"a file stands where a folder is needed"):
            save(root, 1, {}, {}, config_hash="c")


def test_write_atomic_replaces_or_leaves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, b"old")
    real = os.write

    def half(fd: int, data: bytes) -> int:
        real(fd, bytes(data)[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(CheckpointError, match=r"x\.json: could not write: No space left.*free some space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
