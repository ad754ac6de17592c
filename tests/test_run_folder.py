"""The run folder: what is compared, locked, restored, forgotten and kept out of it."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.errors import CheckpointError, ConfigError, DataError, RunBusyError, TruingError
from truing.learn.run import Run, StoppedEarly
from truing.observe.events import read_events

RECIPE = {"method": "sft", "lr": 1e-5, "lora": {"rank": 16, "alpha": 32.0}, "dtype": "auto", "name": "1e5", "none": None, "list": [1, "a"]}
W = {"policy": {"w": torch.ones(2)}}


def kinds(folder: Path) -> list[tuple[str, int]]:
    return [(e["kind"], e["step"]) for e in read_events(folder)]


def test_a_run_from_beginning_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with Run.open(folder, RECIPE, seed=3) as run:
        assert run.done is None and run.restore() is None and run.seed == 3
        run.log("step", 1, {"loss": 0.5})
        run.samples(1, [{"text": "é", "logp": [float("nan")]}])
        run.checkpoint(1, W, {"x": 1})
        run.finish({"loss": 0.5})
    assert kinds(folder) == [("session", 0), ("step", 1), ("result", 1), ("timing", 1)]
    assert (folder / "samples" / "step-000001.jsonl").read_text(encoding="utf-8") == '{"logp":["nan"],"text":"é"}\n'
    done = json.loads((folder / "done.json").read_text())
    assert done["loss"] == 0.5 and 0 <= done["seconds"] < 60 and 50 < done["peak_mib"] < 10_000
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == {"seed": 3, **RECIPE}
    before = (folder / "events.jsonl").read_bytes()
    with Run.open(folder, RECIPE, seed=3) as run:
        assert run.done == done
    assert (folder / "events.jsonl").read_bytes() == before  # looking at a complete stage leaves no trace


def test_the_session_event(tmp_path: Path) -> None:
    Run.open(tmp_path, RECIPE, seed=3).__exit__(None, None, None)
    (event,) = read_events(tmp_path)
    assert event["kind"] == "session" and event["seed"] == 3 and event["pid"] == os.getpid()
    assert event["versions"]["torch"] == torch.__version__ and event["versions"]["python"] == sys.version.split()[0]
    assert event["threads"] == torch.get_num_threads() and event["cores"] >= 1 and isinstance(event["bfloat16"], bool)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", event["started"])
    assert event["git"] is None or re.fullmatch(r"[0-9a-f]{40,64}", event["git"])


# -- recipe ---------------------------------------------------------------------------------------------------------


def test_a_changed_recipe_is_refused_with_the_keys(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, seed=0):
        pass
    changed = {**RECIPE, "lora": {"rank": 8, "alpha": 32.0}, "new": 1, "name": 1e5}
    changed.pop("none")
    with pytest.raises(ConfigError) as caught:
        Run.open(tmp_path, changed, seed=0)
    for part in ("lora.rank: 16 -> 8", "new: absent -> 1", "none: None -> absent", "name: '1e5' -> 100000.0", "another name", "delete the folder"):
        assert part in str(caught.value)
    assert "alpha" not in str(caught.value) and "lr" not in str(caught.value)
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        Run.open(tmp_path, RECIPE, seed=1)
    with Run.open(tmp_path, dict(reversed(RECIPE.items())), seed=0) as run:  # order means nothing, and the lock is free again
        assert run.done is None


def test_one_and_true_are_not_the_same_option(tmp_path: Path) -> None:
    with Run.open(tmp_path, {"x": 1}, seed=0):
        pass
    for other in (True, 1.0):
        with pytest.raises(ConfigError, match=f"x: 1 -> {other}"):
            Run.open(tmp_path, {"x": other}, seed=0)


def test_two_seeds(tmp_path: Path) -> None:
    with Run.open(tmp_path, {"seed": 5}, seed=5):
        pass
    with pytest.raises(ConfigError, match="seed=5 contradicts seed=6"):
        Run.open(tmp_path, {"seed": 5}, seed=6)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=6), st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2), max_size=4))
def test_any_recipe_equals_itself_after_writing(tmp_path_factory: pytest.TempPathFactory, recipe: dict) -> None:
    recipe.pop("seed", None)
    folder = tmp_path_factory.mktemp("r")
    one = Run.open(folder, recipe, seed=0)
    one.__exit__(None, None, None)
    two = Run.open(folder, recipe, seed=0)
    two.__exit__(None, None, None)
    assert one.config_hash == two.config_hash


@pytest.mark.parametrize("text", ["{", "a: b: c", "\x00", "- 1"])
def test_a_damaged_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match="delete the folder"):
        Run.open(tmp_path, RECIPE, seed=0)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_damaged_end(tmp_path: Path, text: str) -> None:
    with Run.open(tmp_path, RECIPE, seed=0):
        pass
    (tmp_path / "done.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"done\.json: .*delete this file"):
        Run.open(tmp_path, RECIPE, seed=0)


# -- lock -----------------------------------------------------------------------------------------------------------


def test_the_second_holder_is_refused(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, seed=0):
        log = (tmp_path / "events.jsonl").read_bytes()
        with pytest.raises(RunBusyError, match=rf"in use by pid {os.getpid()} on .*another name"):
            Run.open(tmp_path, RECIPE, seed=0)
        assert (tmp_path / "events.jsonl").read_bytes() == log
    with Run.open(tmp_path, RECIPE, seed=0):
        pass


def test_a_forked_child_does_not_keep_the_folder(tmp_path: Path) -> None:
    """A sandbox worker that outlives its killed parent must not make the folder busy for ever."""
    run = Run.open(tmp_path, RECIPE, seed=0)
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"x")
        time.sleep(30)
        os._exit(0)
    os.read(ready, 1)
    try:
        run.__exit__(None, None, None)
        with Run.open(tmp_path, RECIPE, seed=0):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_child_dies_of_signals(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(tell, b"x")
            time.sleep(30)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM and not run.stopping


def test_a_failed_opening_gives_everything_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), len(os.listdir("/proc/self/fd"))
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"events\.jsonl: could not open the event log"):
        Run.open(tmp_path, RECIPE, seed=0)
    (tmp_path / "events.jsonl").rmdir()
    assert (signal.getsignal(signal.SIGINT), len(os.listdir("/proc/self/fd"))) == before
    with Run.open(tmp_path, RECIPE, seed=0):
        pass
    assert (signal.getsignal(signal.SIGINT), len(os.listdir("/proc/self/fd"))) == before


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not make the run folder: .*choose another name"):
        Run.open(tmp_path / "file" / "run", RECIPE, seed=0)
    with pytest.raises(CheckpointError, match="choose a shorter name"):
        Run.open(tmp_path / ("x" * 300), RECIPE, seed=0)


# -- restore --------------------------------------------------------------------------------------------------------


def steps(run: Run, first: int, last: int, save: tuple[int, ...] = ()) -> None:
    for step in range(first, last + 1):
        run.log("step", step, {"loss": 1 / step})
        run.log("timing", step, {"seconds": time.time()})
        run.samples(step, [{"step": step}])
        if step in save:
            run.checkpoint(step, {"policy": {"w": torch.full((3,), float(step))}}, {"step": step})


def test_restore_forgets_what_will_be_repeated(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        run.restore()
        steps(run, 1, 5, save=(2, 3))
    (tmp_path / "samples" / "step-000004.jsonl.tmp-1-00ff").write_text("half")
    (tmp_path / "samples" / "notes.txt").write_text("mine")
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        found = run.restore()
        assert found and found.step == 3 and found.state == {"step": 3} and found.tensors["policy"]["w"].tolist() == [3, 3, 3]
        assert kinds(tmp_path) == [("session", 0), *((k, s) for s in (1, 2, 3) for k in ("step", "timing")), ("session", 3)]
        assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["notes.txt", "step-000001.jsonl", "step-000002.jsonl", "step-000003.jsonl"]


def test_nothing_saved_yet_means_from_the_beginning(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        run.restore()
        steps(run, 1, 2)
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        assert run.restore() is None
        assert kinds(tmp_path) == [("session", 0)] and list((tmp_path / "samples").iterdir()) == []


def test_logging_twice_is_prevented(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        run.log("step", 1, {})
    with Run.open(tmp_path, RECIPE, seed=0) as run, pytest.raises(TruingError, match=r"call restore\(\) before log\(\)"):
        run.log("step", 1, {})


def test_falling_back_moves_the_damaged_one_aside(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        run.restore()
        steps(run, 1, 4, save=(2, 4))
    bad = tmp_path / "checkpoints" / "step-000004" / "policy.safetensors"
    bad.write_bytes(bad.read_bytes()[:-1])
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        with pytest.raises(CheckpointError, match=re.escape(str(bad))):
            run.restore()
        with pytest.warns(UserWarning, match="damaged"):
            found = run.restore(fall_back=True)
        assert found and found.step == 2 and ("step", 3) not in kinds(tmp_path)
        steps(run, 3, 3, save=(3,))
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        found = run.restore()
        assert found and found.step == 3
    assert sorted(re.sub(r"\d{9,}", "N", p.name) for p in (tmp_path / "checkpoints").iterdir()) == ["damaged-step-000004-N", "step-000002", "step-000003"]


def test_a_shortened_log_is_noticed(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        run.restore()
        steps(run, 1, 2, save=(2,))
    (tmp_path / "events.jsonl").write_bytes(b"")
    with Run.open(tmp_path, RECIPE, seed=0) as run, pytest.raises(DataError, match=r"events\.jsonl: .*lines were lost"):
        run.restore()


def test_a_checkpoint_of_another_recipe(tmp_path: Path) -> None:
    with Run.open(tmp_path / "a", RECIPE, seed=0) as run:
        run.checkpoint(1, W, {})
    with Run.open(tmp_path / "b", RECIPE, seed=1) as run:
        (tmp_path / "a" / "checkpoints").rename(tmp_path / "b" / "checkpoints")
        with pytest.raises(CheckpointError, match="another recipe"):
            run.restore()


def test_seconds_and_memory_add_up_over_sessions(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        time.sleep(0.2)
        run.checkpoint(1, W, {})
        state = json.loads((tmp_path / "checkpoints/step-000001/state.json").read_text())["run"]
        assert 0.2 <= state["seconds"] < 5
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        run.restore()
        time.sleep(0.2)
        run.finish({})
        assert run.done and state["seconds"] + 0.2 <= run.done["seconds"] < state["seconds"] + 5
        assert run.done["peak_mib"] >= round(state["peak_mib"], 1)


def test_the_state_may_not_take_the_runs_key(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, seed=0) as run, pytest.raises(CheckpointError, match="'run'"):
        run.checkpoint(1, W, {"run": 1})


# -- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step(tmp_path: Path, capfd: pytest.CaptureFixture[str], signum: int, code: int) -> None:
    before = signal.getsignal(signum)
    with Run.open(tmp_path, RECIPE, seed=0) as run:
        run.stop_if_asked(1)  # nobody asked
        signal.raise_signal(signum)
        assert run.stopping and "will be finished and saved" in capfd.readouterr().err
        run.stop_if_asked(1)  # not saved yet: the next step will
        run.checkpoint(2, W, {})
        with pytest.raises(StoppedEarly, match="step 2 is saved") as caught:
            run.stop_if_asked(2)
        assert caught.value.exit_code == code and caught.value.resume in str(caught.value)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signum)
    assert signal.getsignal(signum) == before


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["/x/bin/truing", "run", "my recipe.yaml"], "truing run 'my recipe.yaml'"),
        (["/x/truing/__main__.py", "demo"], "truing demo"),
        (["mine.py", "--n", "1"], "python mine.py --n 1"),
        (["-c"], "the same command"),
    ],
)
def test_the_command_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], shown: str) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert StoppedEarly(tmp_path, 1, signal.SIGINT).resume == shown


def test_in_a_thread_signals_are_left_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with Run.open(tmp_path, RECIPE, seed=0) as run:
            run.restore()
            steps(run, 1, 2, save=(2,))
            seen.append(signal.getsignal(signal.SIGINT))
            run.finish({})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before] and (tmp_path / "done.json").exists()


# -- secrets --------------------------------------------------------------------------------------------------------


def test_no_secret_reaches_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD")
    for name in names:
        monkeypatch.setenv(name, f"canary-{name.lower()}")
    recipe = {**RECIPE, "data": "https://host/x?token=canary-hf_token", "api_key": "canary-of-the-recipe"}
    for _ in range(2):  # the second time the recipe is compared
        with Run.open(tmp_path, recipe, seed=0) as run:
            run.restore()
            run.log("finding", 1, {"text": "failed with canary-openai_api_key"})
            run.samples(1, [{"completion": "canary-wandb_api_key"}])
            run.checkpoint(1, W, {"x": 1})
    with Run.open(tmp_path, recipe, seed=0) as run:
        run.restore()
        run.finish({"error": "canary-db_password"})
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 8
    for path in files:
        assert b"canary" not in path.read_bytes(), path
    assert b"[redacted]" in (tmp_path / "recipe.yaml").read_bytes()
