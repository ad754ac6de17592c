"""The whole pipeline on a tiny model: it learns, it is skipped when complete, and killed at any instant it ends in the same bits."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from truing.config import load_recipe, make_recipe
from truing.errors import ConfigError, DataError
from truing.observe.events import canonical_events, read_events
from truing.pipeline import run_recipe

STAGES = ("sft", "reward", "ppo", "evaluate")


def outcome(folder: Path) -> dict[str, Any]:
    """Everything of a finished pipeline that may not depend on how often it was stopped."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        done = json.loads((folder / stage / "done.json").read_text())
        found[stage] = {k: v for k, v in done.items() if k not in ("seconds", "peak_mib")}
        found[f"{stage} events"] = canonical_events(folder / stage)
        found[f"{stage} samples"] = {p.name: p.read_bytes() for p in sorted((folder / stage / "samples").glob("*"))}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run, by the command line, in a process of its own."""
    path = tiny.folder(tmp_path_factory.mktemp("pipeline data"))
    # a reward made of a stage and a price on length, scores with a memory, a coefficient that adapts: everything a killed run must not forget
    composed = tiny.recipe(path, reward="reward - 0.05 * excess_tokens(6)", scores={"normalise": "running"}, kl={"coef": 0.05, "target": 2.0, "horizon": 200})
    (path / "recipe.yaml").write_text(yaml.safe_dump(composed, sort_keys=False))
    run_to_the_end(path)
    return path


def start(path: Path, runs: str) -> subprocess.Popen[bytes]:
    code = "import sys; sys.path.insert(0, sys.argv[1]); from truing.cli import main; sys.exit(main(sys.argv[2:]))"
    where = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, where, "run", str(path / "recipe.yaml"), "--runs-dir", str(path / runs), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=path)


def run_to_the_end(path: Path, runs: str = "runs") -> dict[str, Any]:
    process = start(path, runs)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()[-3000:]
    return json.loads(out)


def test_it_learns_and_every_stage_leaves_its_evidence(whole: Path) -> None:
    folder = whole / "runs" / "tiny"
    sft = [e for e in read_events(folder / "sft") if e["kind"] == "metrics"]
    assert sft[-1]["loss"] < 0.8 * sft[0]["loss"]
    reward = json.loads((folder / "reward" / "done.json").read_text())
    assert reward["eval/accuracy"] > 0.8  # good words against bad ones, on prompts it has not seen
    evaluation = json.loads((folder / "evaluate" / "evaluation.json").read_text())
    assert evaluation["difference"]["proxy"]["mean"] > 0
    rows = evaluation["rows"]
    before, after = ([sum(s["scores"]["proxy"] for s in row[which]) / 2 for row in rows] for which in ("before", "after"))
    assert evaluation["difference"]["proxy"]["mean"] == pytest.approx(sum(after) / len(after) - sum(before) / len(before))
    ppo = [e for e in read_events(folder / "ppo") if e["kind"] == "metrics"]
    assert all(m["reward/proxy"] == pytest.approx(m["part/reward"] - 0.05 * m["part/excess_tokens(6)"], abs=1e-5) for m in ppo)  # every part on its own
    assert len({m["kl/coef"] for m in ppo}) == 8 and len({m["reward/normaliser_std"] for m in ppo}) == 8
    samples = [json.loads(line) for line in (folder / "ppo" / "samples" / "step-000008.jsonl").read_text().splitlines()]
    assert len(samples) == 16 and all(len(s["logp"]) == s["tokens"] for s in samples)
    assert (whole / "runs" / "tiny" / "report.html").exists()


def test_a_complete_pipeline_is_left_alone(whole: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (whole / "runs").rglob("*") if p.is_file() and p.name not in ("recipe.yaml", "report.html", ".lock")}
    began = time.monotonic()
    run_to_the_end(whole)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert time.monotonic() - began < 60  # importing and looking, no training; generous for a busy machine


@pytest.mark.parametrize("trial", range(2))
def test_killed_at_random_it_ends_in_the_same_bits(trial: int, whole: Path) -> None:
    rng, runs, kills = random.Random(trial), f"killed-{trial}", 0
    while kills < 4:
        process = start(whole, runs)
        time.sleep(rng.uniform(3.0, 9.0))  # it takes about 3 s to import and load
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    run_to_the_end(whole, runs)
    ours, theirs = outcome(whole / runs / "tiny"), outcome(whole / "runs" / "tiny")
    for key in theirs:
        # stages name each other by folder, which differs between the two runs
        assert str(ours[key]).replace(f"/{runs}/", "/runs/") == str(theirs[key]), key
    assert kills > 0


def test_interrupted_it_saves_says_how_to_go_on_and_goes_on(whole: Path) -> None:
    process = start(whole, "interrupted")
    deadline = time.monotonic() + 120
    while not (whole / "interrupted/tiny/sft/events.jsonl").exists() or b'"metrics"' not in (whole / "interrupted/tiny/sft/events.jsonl").read_bytes():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Go on with" in err and b"Traceback" not in err
    run_to_the_end(whole, "interrupted")
    assert outcome(whole / "interrupted/tiny")["ppo"]["weights_sha256"] == outcome(whole / "runs/tiny")["ppo"]["weights_sha256"]


def test_another_recipe_under_the_same_name_is_refused(whole: Path) -> None:
    with pytest.raises(ConfigError, match="lr"):
        run_recipe(load_recipe(whole / "recipe.yaml", ["sft.lr=1e-5"]), whole / "runs")


def test_a_stage_may_only_name_earlier_ones(tmp_path: Path) -> None:
    data = tiny.recipe(tmp_path)
    data["stages"] = {"ppo": data["stages"]["ppo"], "sft": data["stages"]["sft"]}
    with pytest.raises(ConfigError, match="put 'sft' before 'ppo'"):
        run_recipe(make_recipe(data), tmp_path)


def test_a_verdict_on_training_prompts_is_refused(whole: Path) -> None:
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: train_eval_overlap.*also in the training data"):
        run_recipe(load_recipe(whole / "recipe.yaml", ["name=seen", f"evaluate.prompts={whole / 'prompts.jsonl'}"]), whole / "runs")
    assert not (whole / "runs" / "seen" / "sft").exists()  # before anything is trained


def test_inputs_that_changed_under_a_run_are_noticed(whole: Path) -> None:
    prompts = whole / "prompts.jsonl"
    before = prompts.read_text()
    try:
        prompts.write_text(before.replace("Speak", "Talk"))
        with pytest.raises(ConfigError, match=r"inputs\.prompts"):
            run_recipe(load_recipe(whole / "recipe.yaml"), whole / "runs")
    finally:
        prompts.write_text(before)


def test_the_quick_demo_works_and_takes_under_two_minutes(tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "truing", "demo", "--quick", "--runs-dir", str(tmp_path), "--json"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found = json.loads(done.stdout)
    assert found["gold"]["low"] > 0 and found["gold"]["mean"] > 0, found["verdict"]  # how much depends on the processor's bits; that it rose does not
    assert time.monotonic() - began < 240  # under 2 minutes on two idle cores; the tests run beside others


def test_your_own_pairs_are_split_by_prompt(tmp_path: Path) -> None:
    from truing.demo.film import _file, _write_own, own_recipe

    data = tiny.folder(tmp_path) / "prefs.jsonl"
    _write_own(data)(tmp_path / "own", 0)
    rows = {name: [json.loads(line) for line in (tmp_path / "own" / f"{name}.jsonl").read_text().splitlines()] for name in ("prefs", "judge", "heldout", "demos")}
    prompts = {name: {r["prompt"][0]["content"] for r in rows[name]} for name in ("prefs", "judge", "heldout")}
    assert prompts["prefs"].isdisjoint(prompts["judge"]) and prompts["heldout"].isdisjoint(prompts["prefs"] | prompts["judge"])
    assert len(rows["prefs"]) + len(rows["judge"]) + 4 * len(rows["heldout"]) == 192 and len(rows["demos"]) == len(rows["prefs"])
    assert list(own_recipe("own", 0, tmp_path).stages) == ["sft", "reward", "judge", "ppo", "evaluate"]
    with pytest.raises(DataError, match="no such file"):
        _file(tmp_path / "absent.jsonl")
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in data.read_text().splitlines()[:8]))
    with pytest.raises(DataError, match="20 or more"):
        _write_own(few)(tmp_path / "few", 0)


def test_a_run_s_data_is_not_mixed_with_another_s(tmp_path: Path) -> None:
    from truing.demo.film import run_demo

    with pytest.raises(DataError, match="leave out --quick or --data"):
        run_demo(quick=True, data="x.jsonl", runs=tmp_path)
    with pytest.raises(ConfigError, match="name"):
        run_demo(quick=True, name="../outside", runs=tmp_path)
    assert not (tmp_path.parent / "outside").exists()
    (tmp_path / "quick" / "data").mkdir(parents=True)
    (tmp_path / "quick" / "data" / "complete.json").write_text('{"kind": "film", "seed": 0, "source": null}')
    with pytest.raises(DataError, match="another --name"):
        run_demo(quick=True, runs=tmp_path)
