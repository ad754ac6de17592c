"""Checkpoints that are whole or absent: a run may be killed at any instant and goes on from the newest good one.

The commit protocol: write into ``step-000120.tmp-PID-RAND/``, fsync each file, write ``MANIFEST.json`` (size and SHA-256
of each file), fsync it and the folder, rename to ``step-000120/``, fsync the parent, and only then remove older ones.
Nothing but safetensors and JSON is written or read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from truing.disk import disk_error, free_space, fsync_folder, write_all
from truing.errors import CheckpointError
from truing.learn.tensors import check_group, safetensors, state_bytes

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "MANIFEST.json"
STATE = "state.json"
FORMAT = 1
_STEP = re.compile(r"^step-(\d{6,})$")
_LEFTOVER = re.compile(r"^step-\d{6,}\.tmp-(\d+)-[0-9a-f]+$")
_FILE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*\.(safetensors|json)$")
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_REMEDY = "restore it from a copy, or delete the folder of this checkpoint: the run goes on from the one before it"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after ``step`` updates: named tensors by group (``"policy"``, ``"optimizer"``), and plain numbers.

    ``config_hash`` identifies the recipe that made it.
    """

    folder: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    config_hash: str = ""


def save(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, config_hash: str, keep: int = 2) -> Path:
    """Write ``root/step-NNNNNN`` durably and return it; when this returns, losing power loses nothing.

    Args:
        root: the folder of all checkpoints of one run; created when missing. One process saves there at a time.
        step: updates done. A checkpoint of the same step is replaced.
        tensors: group -> name -> tensor, on any device; each group becomes ``GROUP.safetensors``.
        state: counters, controllers and the like: anything JSON holds exactly. Tuples come back as lists.
        config_hash: identifies the recipe that made it.
        keep: newest checkpoints that stay; older ones are removed after this one is safe. At least 1.

    Raises CheckpointError when the disk refuses (earlier checkpoints stay loadable) or something cannot be stored, and
    NonFiniteError when a tensor or number is NaN or infinite: such a state is never saved.
    """
    root = Path(root)
    if keep < 1:
        raise CheckpointError(f"keep={keep} would remove the checkpoint just written; use 1 or more")
    if step < 0:
        raise CheckpointError(f"{root}: step={step} is negative")
    encoded = state_bytes(state, root, step)
    for group, named in tensors.items():
        check_group(group, named, root, step)
    final = root / f"step-{step:06d}"
    beside = root / f"{final.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        if not root.is_dir():
            root.mkdir(parents=True)
            fsync_folder(root.parent)
        clean(root)
        _check_space(root, sum(t.numel() * t.element_size() for named in tensors.values() for t in named.values()) + len(encoded))
        parent = max((name for name in _steps(root) if _number(name) < step), key=_number, default=None)
        os.mkdir(beside)
        files = {f"{group}.safetensors": _write(beside / f"{group}.safetensors", safetensors(named)) for group, named in sorted(tensors.items())}
        files[STATE] = _write(beside / STATE, iter([encoded]))
        manifest = {"format": FORMAT, "step": step, "parent": parent, "config_hash": config_hash, "files": files}
        _write(beside / MANIFEST, iter([_sealed(manifest)]))
        fsync_folder(beside)
        _commit(beside, final)
        for name in sorted((n for n in _steps(root) if _number(n) <= step), key=_number)[:-keep]:
            remove(root / name)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise disk_error(final, error, "save this checkpoint") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return final


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint after verifying the size and the hash of every file. Raises CheckpointError that names the bad file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    manifest = verify(folder)
    tensors: dict[str, dict[str, Tensor]] = {}
    for name in manifest["files"]:
        if name.endswith(".safetensors"):
            try:
                # A mapped file's tensors lie at any address, and matrix products may round differently there;
                # copies lie where those of the uninterrupted run did: at torch's own alignment.
                tensors[name.removesuffix(".safetensors")] = {k: t.clone() for k, t in load_file(folder / name).items()}
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(f"{folder / name}: cannot be read as safetensors: {error}") from error
    return Checkpoint(folder, manifest["step"], tensors, json.loads((folder / STATE).read_bytes()), manifest["config_hash"])


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file has the recorded size and SHA-256.

    Raises CheckpointError that names the bad file: missing, cut off, changed, exchanged, a pickle, or the manifest itself.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _PICKLED)
    if pickled:
        raise CheckpointError(f"{folder / pickled[0]}: a pickle can run any code when it is loaded, so it is refused; only safetensors and JSON are read")
    path = folder / MANIFEST
    manifest = _manifest(path)
    match = _STEP.match(folder.name)
    if match and int(match[1]) != manifest["step"]:
        raise CheckpointError(f"{path}: is of step {manifest['step']}, but the folder is named {folder.name}; {_REMEDY}")
    for name, recorded in manifest["files"].items():
        file = folder / name
        try:
            size = file.stat().st_size
            if size != recorded["size"]:
                raise CheckpointError(f"{file}: is {size} bytes long, {recorded['size']} were written; {_REMEDY}")
            found = _file_hash(file)
        except FileNotFoundError as error:
            raise CheckpointError(f"{file}: is missing; {_REMEDY}") from error
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}; {_REMEDY}") from error
        if found != recorded["sha256"]:
            raise CheckpointError(f"{file}: SHA-256 is {found[:16]}..., {recorded['sha256'][:16]}... was written: the file was changed or damaged; {_REMEDY}")
    return manifest


def newest(root: Path, *, fall_back: bool = False) -> Path | None:
    """The newest checkpoint under ``root``, verified; None when there is none. Unfinished ones are never considered.

    A damaged newest one raises CheckpointError, since going on from an older one repeats work. With ``fall_back`` it is
    passed over with a warning. Raises CheckpointError when every one is damaged.
    """
    root = Path(root)
    problems = []
    for name in sorted(_steps(root), key=_number, reverse=True):
        try:
            verify(root / name)
        except CheckpointError as error:
            if not fall_back:
                raise
            warnings.warn(f"passed over a damaged checkpoint: {error}", stacklevel=2)
            problems.append(str(error))
            continue
        return root / name
    if problems:
        raise CheckpointError(f"{root}: no checkpoint is whole: {'; '.join(problems)}. Delete the run folder to start again")
    return None


def remove(folder: Path) -> None:
    """Delete a checkpoint; being killed in the middle leaves no half one under its name. Raises OSError."""
    leftover = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    os.rename(folder, leftover)
    # Some network file systems keep the names of open files for a while; the next save cleans up.
    shutil.rmtree(leftover, ignore_errors=True)


def _write(path: Path, pieces: Iterator[bytes | memoryview]) -> dict[str, Any]:
    h = hashlib.sha256()
    size = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for piece in pieces:
            h.update(piece)
            write_all(fd, piece)
            size += len(piece)
        os.fsync(fd)
    finally:
        os.close(fd)
    return {"size": size, "sha256": h.hexdigest()}


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest with its own hash, so that no bit of it can flip unseen either."""
    body = {k: v for k, v in manifest.items() if k != "sha256"}
    seal = hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return orjson.dumps({**body, "sha256": seal}, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n"


def _manifest(path: Path) -> dict[str, Any]:
    damaged = f"{path}: does not have the contents that were written; {_REMEDY}"
    try:
        data = path.read_bytes()
        manifest = orjson.loads(data)
        if not isinstance(manifest, dict) or data != _sealed(manifest):
            raise CheckpointError(damaged)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing, so this is not a whole checkpoint; {_REMEDY}") from error
    except ValueError as error:
        raise CheckpointError(damaged) from error
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; {_REMEDY}") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: has format {manifest.get('format')!r}, but this version of truing reads format {FORMAT}")
    files = manifest.get("files")
    if type(manifest.get("step")) is not int or not isinstance(manifest.get("config_hash"), str) or not isinstance(files, dict) or STATE not in files:
        raise CheckpointError(damaged)
    for name, recorded in files.items():
        if not _FILE.match(name):
            raise CheckpointError(f"{path}: lists {name!r}; a checkpoint holds safetensors and JSON files only")
        if not isinstance(recorded, dict) or type(recorded.get("size")) is not int or not isinstance(recorded.get("sha256"), str):
            raise CheckpointError(damaged)
    return manifest


def _commit(beside: Path, final: Path) -> None:
    replaced = None
    if final.exists():  # saved before at the same step, or damaged and passed over
        replaced = final.with_name(f"{final.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        os.rename(final, replaced)
    try:
        os.rename(beside, final)
    except BaseException:
        if replaced:
            with contextlib.suppress(OSError):
                os.rename(replaced, final)
        raise
    fsync_folder(final.parent)
    if replaced:
        shutil.rmtree(replaced, ignore_errors=True)


def _check_space(root: Path, needed: int) -> None:
    if shutil.disk_usage(root).free < needed:
        size = f"{needed / 2**20:.0f} MiB"
        raise CheckpointError(
            f"{root}: a checkpoint needs {size} ({free_space(root)}); free some space there, then run again: it goes on from the last good one"
        )


def clean(root: Path) -> None:
    """Remove what saves that died left behind, never what another live process is writing."""
    if not root.is_dir():
        return
    for path in root.iterdir():
        match = _LEFTOVER.match(path.name)
        # One process saves at a time, so those of our own number are leftovers too (in containers the numbers repeat).
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _steps(root: Path) -> list[str]:
    try:
        return [p.name for p in root.iterdir() if _STEP.match(p.name) and p.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{root}: cannot list the checkpoints: {error.strerror}") from error


def _number(name: str) -> int:
    return int(name.removeprefix("step-"))


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
