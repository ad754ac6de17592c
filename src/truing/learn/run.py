"""A run is a folder, and one process at a time works in it; killed at any instant, it goes on as if nothing had happened.

```
FOLDER/
  recipe.yaml       the resolved options and the seed
  events.jsonl      the event log (observe.events)
  samples/          step-000010.jsonl: what the model wrote at a step
  checkpoints/      step-000120/ (learn.checkpoint)
  done.json         the result; present exactly when the stage is complete
```
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import platform
import re
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import orjson
import yaml

from truing.disk import disk_error, fsync_folder, write_all, write_atomic
from truing.errors import CheckpointError, ConfigError, RunBusyError, TruingError
from truing.learn import checkpoint
from truing.learn.checkpoint import Checkpoint
from truing.learn.compare import differences
from truing.observe.events import EventLog, canonical_json, plain
from truing.observe.surroundings import peak_mib, surroundings

if TYPE_CHECKING:
    from torch import Tensor

LOCK, RECIPE, DONE = ".lock", "recipe.yaml", "done.json"
_SAMPLES = re.compile(r"^step-(\d{6,})\.jsonl$")
_UNFINISHED = re.compile(r"\.tmp-\d+-[0-9a-f]+$")
_locks: set[int] = set()


class StoppedEarly(TruingError):
    """The run was asked to stop, finished its step and saved it; the same command goes on from there.

    ``resume`` is that command. ``exit_code`` is 130 after Ctrl-C and 143 after SIGTERM (128 + the signal, as shells count):
    never 0, because the work is not done.
    """

    def __init__(self, folder: Path, step: int, signum: int) -> None:
        self.folder, self.step, self.exit_code, self.resume = folder, step, 128 + signum, _command()
        super().__init__(f"{folder}: stopped as asked; step {step} is saved. Go on with: {self.resume}")


class Run:
    """One stage's folder, held for as long as the ``with`` block lasts.

    ```python
    with Run.open(folder, recipe, seed=0) as run:
        if run.done is None:
            saved = run.restore()
            for step in range(saved.step + 1 if saved else 1, steps + 1):
                ...                                                  # one update
                run.log("step", step, {"loss": loss})
                if step % save_every == 0 or run.stopping:
                    run.checkpoint(step, tensors, state)
                    run.stop_if_asked(step)
            run.finish({"loss": loss})
    ```

    The first SIGINT (Ctrl-C) or SIGTERM sets ``stopping``; the second raises KeyboardInterrupt at once, which loses only
    the work since the last checkpoint. Outside the main thread signals are left alone.

    Attributes:
        folder: the run's folder.
        seed: the seed of all its randomness (truing.seeds).
        done: what `finish` was given, with ``seconds`` and ``peak_mib``; None while the stage is incomplete.
        stopping: a signal asked to finish the step, save and stop.
        progress: the display given to `open`, for the method to update; None when there is none.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any], seed: int, progress: Any) -> None:
        self.folder = folder
        self.seed = seed
        self.progress = progress
        self.stopping = False
        self.done: dict[str, Any] | None = None
        self.config_hash = hashlib.sha256(canonical_json(_with_seed(recipe, seed))).hexdigest()
        self._events: EventLog
        self._before = 0  # length of the log that earlier sessions left
        self._signal = 0
        self._pid = os.getpid()
        self._step = 0
        self._saved: int | None = None
        self._restored = False
        self._seconds, self._peak_mib = 0.0, 0.0
        self._began = time.monotonic()
        self._exit = contextlib.ExitStack()

    @classmethod
    def open(cls, folder: Path, recipe: Mapping[str, Any], *, seed: int, progress: Any = None) -> Run:
        """Take the folder: create it, lock it, compare the recipe, watch for signals, and log who works in it.

        Args:
            folder: the run's folder; created with its parents when missing.
            recipe: the resolved options of the stage, as plain objects. Secrets in them are not written down.
            seed: of all randomness of the run.
            progress: anything; kept as ``run.progress``.

        Raises RunBusyError when a live process holds the folder, ConfigError when it was begun with another recipe or
        seed, CheckpointError when it cannot be written.
        """
        run = cls(Path(folder), recipe, seed, progress)
        with run._exit:  # whatever was taken is given back when a later step fails
            _guard_standard_streams()
            run._lock()
            run._sweep()
            run._compare_recipe(_with_seed(recipe, seed))
            run.done = run._read_done()
            run._events = EventLog(run.folder)
            run._exit.callback(run._events.close)
            run._before = run._events.position()
            run._watch_signals()
            if run.done is None:
                run._log_session()
            run._exit = run._exit.pop_all()
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            # Keeps the lines of an unfinished run for people to read; a failing disk has been reported by then.
            with contextlib.suppress(CheckpointError):
                self._events.flush()
        finally:
            self._exit.close()

    @property
    def seconds(self) -> float:
        """Wall time worked on this stage so far, over all sessions; time lost to a kill is not counted."""
        return self._seconds + time.monotonic() - self._began

    @property
    def peak_mib(self) -> float:
        """Peak resident memory in MiB over all sessions, of the whole process."""
        return max(self._peak_mib, peak_mib())

    def restore(self, *, fall_back: bool = False) -> Checkpoint | None:
        """The newest checkpoint, or None at the very beginning; everything written after it is forgotten.

        Call it before the first `log`. The event log is cut to where it was at that checkpoint and the samples of later
        steps are deleted, so that what is repeated is written once.

        Raises CheckpointError when the newest checkpoint is damaged; with ``fall_back`` the one before it is used instead,
        and the damaged one is moved aside to ``damaged-step-...``.
        """
        root = self.folder / "checkpoints"
        folder = checkpoint.newest(root, fall_back=fall_back)
        found = checkpoint.load(folder) if folder else None
        position = 0
        if found:
            own = found.state.get("run")
            if found.config_hash != self.config_hash or not isinstance(own, dict):
                raise CheckpointError(f"{found.folder}: was made by another recipe; remove it, or use another name for this run")
            position = own["events"]
            self._seconds, self._peak_mib = own["seconds"], own["peak_mib"]
            found = dataclasses.replace(found, state={k: v for k, v in found.state.items() if k != "run"})
        step = found.step if found else -1
        checkpoint.clean(root)
        self._set_aside_after(root, step)
        self._events.truncate(position)
        self._delete_samples_after(step)
        self._saved = found.step if found else None
        self._step = found.step if found else 0
        self._restored = True
        self._log_session()
        return found

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add one event. Put what depends on the machine (seconds, memory) into events of kind ``timing`` only."""
        if self._before and not self._restored:
            raise TruingError(f"{self.folder}: holds the events of an earlier session; call restore() before log()")
        self._events.append(kind, step, values)
        self._step = step

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write ``samples/step-NNNNNN.jsonl``, whole or not at all. Call it before the `checkpoint` of the same step."""
        folder = self.folder / "samples"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error(folder, error, "make the folder of samples") from error
        write_atomic(folder / f"step-{step:06d}.jsonl", b"".join(canonical_json(row) + b"\n" for row in rows))

    def checkpoint(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int = 2) -> Path:
        """Save after ``step``, together with the position of the log; see `learn.checkpoint.save`. The key "run" of the state is taken."""
        if "run" in state:
            raise CheckpointError(f"{self.folder}: the state of step {step} has the key 'run', which is the run's own; use another")
        self._events.flush()  # a checkpoint must never point past the end of the log
        own = {"events": self._events.position(), "seconds": self.seconds, "peak_mib": self.peak_mib}
        path = checkpoint.save(self.folder / "checkpoints", step, tensors, {**state, "run": own}, config_hash=self.config_hash, keep=keep)
        self._saved = self._step = step
        return path

    def stop_if_asked(self, step: int | None = None) -> None:
        """Raise StoppedEarly when a signal asked to stop and ``step`` is saved (None: there is nothing to save); otherwise go on."""
        if self.stopping and self._saved == step:
            raise StoppedEarly(self.folder, step or 0, self._signal)

    def finish(self, values: Mapping[str, Any]) -> None:
        """Log ``values`` as the result and write ``done.json`` with them, ``seconds`` and ``peak_mib``; the stage is complete then."""
        cost = {"seconds": round(self.seconds, 3), "peak_mib": round(self.peak_mib, 1)}
        self.log("result", self._step, values)
        self.log("timing", self._step, cost)
        self._events.flush()
        done = plain({**values, **cost})
        write_atomic(self.folder / DONE, orjson.dumps(done, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n")
        self.done = done
        if self.stopping:  # asked after the last step: this stage is complete, the next must not begin
            raise StoppedEarly(self.folder, self._step, self._signal)

    # -- opening ------------------------------------------------------------------------------------------------------

    def _lock(self) -> None:
        path = self.folder / LOCK
        try:
            new = not self.folder.is_dir()
            self.folder.mkdir(parents=True, exist_ok=True)
            if new:
                fsync_folder(self.folder.parent)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise disk_error(path, error, "make the run folder") from error
        self._exit.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise disk_error(path, error, "lock the run folder (its file system may know no locks; put runs on a local disk)") from error
            holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip() or "an unknown process"
            raise RunBusyError(f"{self.folder}: in use by {holder}; wait for it, stop it, or use another name") from error
        _locks.add(fd)
        self._exit.callback(_locks.discard, fd)
        try:
            os.ftruncate(fd, 0)
            write_all(fd, f"pid {os.getpid()} on {platform.node()}\n".encode())
        except OSError as error:
            raise disk_error(path, error, "write the lock") from error

    def _sweep(self) -> None:
        """Remove the unfinished files of a session that was killed; the lock says that nobody is writing them."""
        for folder in (self.folder, self.folder / "samples"):
            for path in folder.glob("*.tmp-*"):
                if _UNFINISHED.search(path.name):
                    with contextlib.suppress(OSError):
                        os.unlink(path)

    def _compare_recipe(self, recipe: dict[str, Any]) -> None:
        path = self.folder / RECIPE
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            readable = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
            if yaml.safe_load(readable) != recipe:  # a few characters (U+0085) only come back when escaped
                readable = yaml.safe_dump(recipe, sort_keys=False)
            write_atomic(path, readable.encode())
            return
        except OSError as error:
            raise disk_error(path, error, "read the recipe") from error
        try:
            before = yaml.safe_load(text)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not valid YAML any more; use another name, or delete the folder {self.folder} to start again") from error
        changed = list(differences(before, recipe))
        if changed:
            shown = "; ".join(changed[:8]) + (f"; and {len(changed) - 8} more" if len(changed) > 8 else "")
            raise ConfigError(f"{self.folder}: was begun with another recipe: {shown}. Use another name, or delete the folder to start again")

    def _read_done(self) -> dict[str, Any] | None:
        path = self.folder / DONE
        try:
            done = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}; delete this file, and the stage is finished again from its last checkpoint") from error
        if not isinstance(done, dict):
            raise CheckpointError(f"{path}: holds no JSON object; delete this file, and the stage is finished again from its last checkpoint")
        return done

    def _log_session(self) -> None:
        self._events.append("session", self._saved or 0, {"seed": self.seed, **surroundings()})

    # -- signals ------------------------------------------------------------------------------------------------------

    def _watch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(signum)
            signal.signal(signum, self._on_signal)
            if before is not None:  # None: a handler that was not set from Python and cannot be put back
                self._exit.callback(signal.signal, signum, before)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked child is no run: it dies as it would have
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        self._signal = signum
        # print() may be what was interrupted, and is not reentrant.
        with contextlib.suppress(OSError):
            os.write(2, b"\nStopping: this step will be finished and saved. Once more stops now.\n")

    # -- forgetting ---------------------------------------------------------------------------------------------------

    def _set_aside_after(self, root: Path, step: int) -> None:
        """After falling back, what is newer is damaged; out of the way, but kept for whoever wants to know why."""
        if not root.is_dir():
            return
        for path in sorted(root.iterdir()):
            if re.fullmatch(r"step-\d{6,}", path.name) and int(path.name[5:]) > step:
                aside = path.with_name(f"damaged-{path.name}-{time.time_ns()}")
                try:
                    os.rename(path, aside)
                except OSError as error:
                    raise disk_error(path, error, "move the damaged checkpoint aside") from error
                warnings.warn(f"the damaged checkpoint {path} is now {aside}; delete it when it is of no more use", stacklevel=3)

    def _delete_samples_after(self, step: int) -> None:
        folder = self.folder / "samples"
        if not folder.is_dir():
            return
        for path in folder.iterdir():
            match = _SAMPLES.match(path.name)
            if match and int(match[1]) > step:
                try:
                    os.unlink(path)
                except OSError as error:
                    raise disk_error(path, error, "delete the samples of a step that is repeated") from error


def _with_seed(recipe: Mapping[str, Any], seed: int) -> dict[str, Any]:
    if recipe.get("seed", seed) != seed:
        raise ConfigError(f"recipe.seed={recipe['seed']!r} contradicts seed={seed}; give one of them")
    values: dict[str, Any] = plain({"seed": seed, **recipe})
    return values


def _guard_standard_streams() -> None:
    """A process may be started with stdin, stdout or stderr closed; our files must not get their numbers, or prints land in them."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is fd


def _release_locks_in_child() -> None:
    # A forked child shares the lock; one that outlives a killed parent would keep the folder busy.
    for fd in _locks:
        with contextlib.suppress(OSError):
            os.close(fd)
    _locks.clear()


os.register_at_fork(after_in_child=_release_locks_in_child)


def _command() -> str:
    """The command line of this process, for people to paste."""
    name = os.path.basename(sys.argv[0] or "")
    if name in ("truing", "__main__.py"):
        return shlex.join(["truing", *sys.argv[1:]])
    return shlex.join(["python", *sys.argv]) if name.endswith(".py") else "the same command"
