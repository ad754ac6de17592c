"""R1, R8, R10: real processes, killed at every disk operation and at random moments, interrupted, doubled, and badly housed.

The training is a toy whose every number comes from `truing.seeds`; what is proved is the folder. The oracle is the
uninterrupted run: same weights hash, same log, same samples, byte for byte.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from truing import seeds
from truing.learn import run as run_module
from truing.learn.checkpoint import newest
from truing.learn.run import Run, StoppedEarly
from truing.learn.tensors import digest
from truing.observe.events import canonical_events

STEPS, EVERY = 4, 2
OPERATIONS = ("open", "write", "fsync", "rename", "replace", "mkdir", "ftruncate", "unlink", "rmdir")


def train(folder: Path, pause: float = 0.0, kill_at: int = 0) -> None:
    """A deterministic run; with ``kill_at`` it kills itself just before (or in the middle of) its nth disk operation."""
    torch.set_num_threads(1)
    run_module.surroundings = dict  # asking git and the processor is slow, and not the point
    counter = [0]
    for name in OPERATIONS:
        setattr(os, name, _counted(name, getattr(os, name), counter, kill_at))
    try:
        with Run.open(folder, {"lr": 0.5}, seed=7) as run:
            standard = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)]
            if any(str(folder) in place for place in standard):
                os._exit(98)  # what is printed would land in the run's files
            if run.done is not None:
                return
            saved = run.restore()
            w = saved.tensors["policy"]["w"] if saved else torch.zeros(8, dtype=torch.float64)
            mean = float(saved.state["mean"]) if saved else 0.0
            for step in range(saved.step + 1 if saved else 1, STEPS + 1):
                time.sleep(pause)
                order = seeds.permutation(8, 7, "order", step)
                w = torch.sin(w[order] * 3 + seeds.uniforms(7, "noise", step, [0], 8)[0])
                mean = 0.9 * mean + 0.1 * float(w.mean())
                run.log("step", step, {"mean": mean, "nan": float("nan")})
                run.log("timing", step, {"now": time.time()})
                run.samples(step, [{"w": w}])
                if step % EVERY == 0 or run.stopping:
                    run.checkpoint(step, {"policy": {"w": w}}, {"mean": mean}, keep=1)
                    run.stop_if_asked(step)
            run.finish({"weights": digest({"w": w}), "mean": mean})
    except StoppedEarly as stop:
        os._exit(stop.exit_code)
    except KeyboardInterrupt:
        os._exit(99)


def _counted(name: str, real: Any, counter: list[int], kill_at: int) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        counter[0] += 1
        if counter[0] == kill_at:
            if name == "write" and kill_at % 2:
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return call


def result(folder: Path) -> tuple[Any, ...]:
    """Everything of a finished run that may not depend on how often it was killed."""
    samples = {p.name: p.read_bytes() for p in (folder / "samples").iterdir()}
    done = json.loads((folder / "done.json").read_text())
    last = newest(folder / "checkpoints")
    assert last is not None
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())[-1:]  # killed before pruning, the one before stays
    assert not list(folder.rglob("*.tmp-*"))
    weights = (last / "policy.safetensors").read_bytes()
    return canonical_events(folder), samples, done["weights"], done["mean"], weights, names, sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope="module")
def fork() -> Any:
    """Starts processes that have torch loaded already: a clean server is forked, not this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "truing.learn.run", "safetensors.torch", __name__])

    def start(*args: Any, **kwargs: Any) -> BaseProcess:
        process = context.Process(target=train, args=args, kwargs=kwargs)
        process.start()
        return process

    with pytest.MonkeyPatch.context() as patch:
        # the server finds what it shall preload by this alone
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
        multiprocessing.forkserver.ensure_running()
    return start


@pytest.fixture(scope="module")
def whole(fork: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = fork(folder)
    process.join()
    assert process.exitcode == 0
    found = result(folder)
    assert found[0].count(b"\n") == STEPS + 1
    return found


def test_killed_at_every_disk_operation(fork: Any, whole: tuple[Any, ...], tmp_path: Path) -> None:
    n = 0
    while True:
        n += 1
        folder = tmp_path / str(n) / "run"
        folder.parent.mkdir()
        process = fork(folder, kill_at=n)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        process = fork(folder)
        process.join()
        assert process.exitcode == 0 and result(folder) == whole, f"killed at operation {n}"
    assert n > 60


def test_killed_again_and_again(fork: Any, whole: tuple[Any, ...], tmp_path: Path) -> None:
    """Each session gets a little further, or dies while it recovers."""
    draw = random.Random(0)
    for trial in range(3):
        folder = tmp_path / str(trial)
        for _ in range(60):
            process = fork(folder, kill_at=draw.randint(5, 60))
            process.join()
            if process.exitcode == 0:
                break
        assert process.exitcode == 0 and result(folder) == whole


def test_killed_from_outside_at_random_moments(fork: Any, whole: tuple[Any, ...], tmp_path: Path) -> None:
    draw = random.Random(1)
    for trial in range(5):
        folder = tmp_path / str(trial)
        process = fork(folder, pause=0.1)
        process.join(draw.uniform(0.05, 0.1 * STEPS))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        process = fork(folder)
        process.join()
        assert result(folder) == whole


def _steps(folder: Path) -> Iterator[int]:
    try:
        yield from (int(p.name[5:11]) for p in (folder / "samples").glob("step-*.jsonl"))
    except FileNotFoundError:
        return


def _until(what: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_saves_and_stops(fork: Any, whole: tuple[Any, ...], tmp_path: Path, signum: int, code: int) -> None:
    folder = tmp_path / "run"
    process = fork(folder, pause=0.3)
    _until(lambda: 1 in _steps(folder))
    os.kill(process.pid, signum)
    process.join()
    assert process.exitcode == code and not (folder / "done.json").exists()
    last = newest(folder / "checkpoints")
    assert last and int(last.name[5:]) == max(_steps(folder)), "the step was not saved"
    process = fork(folder)
    process.join()
    found = result(folder)
    assert found == whole


def test_two_signals_stop_now(fork: Any, whole: tuple[Any, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = fork(folder, pause=2.0)
    _until(lambda: (folder / "events.jsonl").exists() and (folder / "events.jsonl").stat().st_size > 0)
    begun = time.monotonic()
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, signum)
        time.sleep(0.1)
    process.join()
    assert process.exitcode == 99 and time.monotonic() - begun < 1.5
    process = fork(folder)
    process.join()
    assert result(folder) == whole


def test_two_processes_on_one_folder(fork: Any, whole: tuple[Any, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = fork(folder, pause=0.3)
    _until(lambda: 1 in _steps(folder))
    second = fork(folder)
    second.join()
    assert second.exitcode == 1  # RunBusyError
    first.join()
    assert first.exitcode == 0 and result(folder) == whole
    first = fork(folder)  # complete: nothing to do
    first.join()
    assert result(folder) == whole


@pytest.mark.parametrize("streams", ["", ">&- 2>&- <&-", ">/dev/full 2>/dev/full"])
def test_badly_housed(whole: tuple[Any, ...], tmp_path: Path, streams: str) -> None:
    """LANG=C, a read-only HOME, a path with spaces and Unicode, and no or full standard streams. And Ctrl-C by a real shell's child."""
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    folder = tmp_path / "ein Ordner mit Leerzeichen — 走る" / "run"
    code = f"import sys, pathlib, {__name__} as t; t.train(pathlib.Path(sys.argv[1]), pause=float(sys.argv[2]))"
    path = os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)])
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C", "LC_ALL": "C", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    shell = f'exec "$0" -c "$1" "$2" "$3" {streams}'
    process = subprocess.Popen(["/bin/sh", "-c", shell, sys.executable, code, str(folder), "0.3"], env=env, stderr=None if streams else subprocess.PIPE)
    _until(lambda: 1 in _steps(folder), 60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    if not streams:
        assert b"will be finished and saved" in said and b"Traceback" not in said
    again = subprocess.run(["/bin/sh", "-c", shell, sys.executable, code, str(folder), "0"], env=env, check=False)
    assert again.returncode == 0
    assert result(folder) == whole
    assert list(home.iterdir()) == []
