"""`truing plan`: whole recipes whose later stages name earlier ones, what it advises, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import ppo_tiny
import tiny
from truing.cli import app, main
from truing.config import load_recipe, make_recipe
from truing.errors import TruingError
from truing.plan import Plan, plan
from truing.plan.advice import Change, changes
from truing.plan.available import size, there

NUMBERS = {
    "recipe": str, "memory_mib": float, "memory_source": str, "peak_mib": float, "fits": bool, "seconds": dict, "stages": dict,
}  # fmt: skip
STAGE = {
    "method": str, "model": str, "steps": int, "notes": list, "peak_mib": float, "peak_in": str, "fits": bool, "room_mib": float, "phases_mib": dict, "seconds": dict,
    "seconds_a_step": dict, "seconds_by_phase": dict, "seconds_opening": float, "seconds_a_checkpoint": float, "tokens_a_completion": (dict, type(None)), "measured_on": str, "advice": list,
}  # fmt: skip
ADVICE = {"settings": dict, "set": str, "peak_mib": float, "fits": bool, "same_result": bool, "time": str, "seconds_a_step": (float, type(None))}
PHASES = {"sft": {"update"}, "reward": {"update"}, "ppo": {"generate", "trunk", "score", "look", "update", "record"}, "evaluate": {"generate", "score", "look"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = ppo_tiny.world(tmp_path_factory.mktemp("world"))
    recipe = tiny.recipe(path, monitors={"sums": "ppo_tiny:sums"}, scores={"timeout": None})
    recipe["stages"]["evaluate"]["scores"] = {"proxy": "reward"}
    recipe["stages"]["groups"] = {"method": "grpo", "model": "sft", "prompts": str(path / "prompts.jsonl"), "reward": "ppo_tiny:sums", "scores": {"timeout": None}, "lora": None,
                                  "batch_size": 8, "group": 4, "max_new_tokens": 6, "steps": 5}  # fmt: skip
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def traces(path: Path) -> dict[str, str]:
    """Every file below a folder with its hash."""
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in sorted(path.rglob("*"))}


def run(*args: Any) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, ["plan", *map(str, args)], env={"COLUMNS": "80", "NO_COLOR": "1"})
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout, found.stderr


# -- a whole recipe --------------------------------------------------------------------------------------------------------
def test_a_whole_pipeline_is_planned_before_any_of_it_exists_and_nothing_is_left(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, random = traces(world), torch.get_rng_state()
    code, out, err = run(world / "recipe.yaml", "--json", "--runs-dir", world / "runs")
    assert code == 0 and "planning ppo" in err
    assert traces(world) == before and not list(tmp_path.iterdir()) and torch.equal(torch.get_rng_state(), random)

    found = json.loads(out)
    assert {k: type(v) for k, v in found.items()} == NUMBERS
    assert list(found["stages"]) == ["sft", "reward", "ppo", "evaluate", "groups"]
    for name, stage in found["stages"].items():
        assert set(stage) == set(STAGE)
        for key, kind in STAGE.items():
            assert isinstance(stage[key], kind), (name, key, stage[key])
        assert set(stage["seconds_by_phase"]) == PHASES.get(name, PHASES["ppo"])
        spans = [stage["seconds"], stage["seconds_a_step"], *stage["seconds_by_phase"].values()]
        assert all(0 < s["low"] <= s["expected"] <= s["high"] < math.inf for s in spans), (name, spans)
        assert stage["peak_mib"] == pytest.approx(max(sum(items.values()) for items in stage["phases_mib"].values()))
        assert stage["room_mib"] == pytest.approx(found["memory_mib"] - stage["peak_mib"])
        # a step is its phases and its share of a checkpoint; the stage is its steps and what comes before and after
        step = sum(s["expected"] for s in stage["seconds_by_phase"].values())
        assert step <= stage["seconds_a_step"]["expected"] <= step + stage["seconds_a_checkpoint"]
        assert stage["seconds"]["expected"] >= stage["steps"] * stage["seconds_a_step"]["expected"] + stage["seconds_opening"] - 1e-9
    assert found["peak_mib"] == max(s["peak_mib"] for s in found["stages"].values())
    assert found["seconds"]["expected"] == pytest.approx(sum(s["seconds"]["expected"] for s in found["stages"].values()))
    # 64 demonstrations, a tenth held out, in batches of 16: 4 updates an epoch (57 or 58 rows), 10 epochs
    assert found["stages"]["sft"]["steps"] == 40
    assert found["stages"]["ppo"]["steps"] == 8 and found["stages"]["groups"]["steps"] == 5
    assert found["stages"]["evaluate"]["steps"] == 2  # 24 prompts x 2 samples, 64 at a time, two models
    assert found["stages"]["ppo"]["notes"] == [f"model: sft has not run yet; planned on {world / 'base'}, which it starts from"]
    assert 1 <= found["stages"]["ppo"]["tokens_a_completion"]["expected"] <= 8 == found["stages"]["ppo"]["tokens_a_completion"]["high"]


def test_people_get_tables_and_the_verdict(world: Path) -> None:
    code, out, _ = run(world / "recipe.yaml", "--no-time", "--items", "--runs-dir", world / "runs")
    assert code == 0 and "It fits: the highest peak is" in out and ("MiB are left" in out or "GiB are left" in out)
    assert re.search(r"^ppo +5\d\.?\d?k, LoRA on 2 of 2 layers, float32 +[\d,]+ MiB", out, re.MULTILINE)
    assert "Adam moments" in out and "seconds a step" not in out and "…" not in out
    code, out, _ = run(world / "recipe.yaml", "--no-time", "--memory", "1MiB")
    assert code == 0 and "It fits" not in out and "reward does not fit" in out and re.search("No setting (makes it fit;|lowers it:) use a smaller model, or more memory.", out)


def test_a_stage_that_is_complete_is_planned_on_its_own_model(world: Path, tmp_path: Path) -> None:
    recipe = make_recipe(yaml.safe_load((world / "recipe.yaml").read_text()))
    done = tmp_path / "runs" / recipe.name / "sft"
    done.mkdir(parents=True)
    (done / "model").symlink_to(world / "base")
    assert "sft has not run" in str(plan(recipe, runs=tmp_path / "runs", time=False).stages[2].notes)
    (done / "done.json").write_text("{}")
    assert plan(recipe, runs=tmp_path / "runs", time=False).stages[2].notes == ()


def test_rows_that_an_earlier_stage_will_write_are_as_long_as_they_may_be(world: Path) -> None:
    recipe = yaml.safe_load((world / "recipe.yaml").read_text())
    recipe["stages"] = {k: recipe["stages"][k] for k in ("sft", "reward")}
    recipe["stages"]["again"] = {"method": "sft", "model": "sft", "data": str(world / "runs" / "tiny" / "reward" / "made.jsonl"), "max_length": 200}
    found = plan(make_recipe(recipe), runs=world / "runs", time=False).stages[2]
    assert found.steps is None and "every sequence is taken to have max_length=200 tokens" in found.notes[0]


# -- advice ------------------------------------------------------------------------------------------------------------------
def small(world: Path, **options: Any) -> dict[str, Any]:
    """PPO of every weight on long completions, so that what can be saved is more than the process itself."""
    ppo = {"model": str(world / "base"), "prompts": str(world / "prompts.jsonl"), "reward": "cut_off()", "lora": None, "batch_size": 512, "minibatches": 2, "max_new_tokens": 100,
           "micro_tokens": 32768, "steps": 3}  # fmt: skip
    return {"name": "small", "stages": {"ppo": {**ppo, **options}}}


def test_what_is_advised_really_lowers_the_peak(world: Path) -> None:
    recipe = small(world)
    peak = plan(make_recipe(recipe), time=False).peak
    room = (peak - 40) * 2**20
    found = plan(make_recipe(recipe), available=room, time=False)
    advice = found.stages[0].advice
    assert any(a.fits for a in advice) and {"micro_tokens"} in [set(a.change.settings) for a in advice]
    assert [a.fits for a in advice] == sorted((a.fits for a in advice), reverse=True)  # what suffices comes first
    for a in advice:
        again = plan(make_recipe(recipe, [word for word in shlex.split(a.change.text("ppo")) if word != "--set"]), time=False)
        process = again.stages[0].memory.items["process and libraries"] - found.stages[0].memory.items["process and libraries"]
        assert again.peak - process / 2**20 == pytest.approx(a.peak, rel=0.01), a
        assert a.peak < peak and a.fits == (a.peak * 2**20 <= room)
    assert plan(make_recipe(recipe), available=(peak + 200) * 2**20, time=False).stages[0].advice == ()


def test_several_changes_together_where_none_suffices(world: Path) -> None:
    recipe = make_recipe(small(world, minibatches=64))  # so that a smaller batch does not save what the others would
    process = lambda found: found.stages[0].memory.items["process and libraries"]  # noqa: E731
    before, now = plan(recipe, available=2**20, time=False), plan(recipe, available=2**20, time=False)
    while process(now) - process(before) > 2**20:  # until this process has loaded all it needs
        before, now = now, plan(recipe, available=2**20, time=False)
    alone = now.stages[0].advice
    best = min(a.peak for a in alone if len(a.change.settings) == 1 or set(a.change.settings) == {"lora"})
    together = [a for a in alone if a.change.cost == "all of these together"]
    assert together and together[0].peak < best and not together[0].fits
    room = (best + together[0].peak) / 2 * 2**20
    found = plan(recipe, available=room, time=False).stages[0].advice
    assert [a.fits for a in found].count(True) == 1 and found[0].change.cost == "all of these together"


def test_settings_are_written_as_a_recipe_reads_them() -> None:
    change = Change({"lora": {"rank": 4, "layers": None}, "checkpointing": True, "kl.coef": None, "micro_tokens": 512}, "", {}, True)
    assert change.text("ppo") == "--set 'ppo.lora={layers: null, rank: 4}' --set ppo.checkpointing=true --set ppo.kl.coef=null --set ppo.micro_tokens=512"


def test_changes_that_a_stage_cannot_have_are_not_offered(world: Path) -> None:
    def offered(**options: Any) -> set[str]:
        made = make_recipe(small(world, **options))
        stage = made.stages["ppo"]
        from truing.methods import footprint

        return {key for c in changes(stage, footprint.weights(stage), footprint.of_rollouts(stage, [20])) for key in c.settings}

    assert {"lora", "reference", "value", "batch_size", "micro_tokens"} <= offered()
    assert {"lora", "reference", "dtype"}.isdisjoint(offered(lora={"rank": 2}, dtype="bfloat16")) and "lora.layers" in offered(lora={"rank": 2})
    assert "checkpointing" in offered() and "checkpointing" not in offered(checkpointing=True)
    assert "value" not in offered(value_warmup=1) and "reference" not in offered(reference="offloaded")


# -- memory that is there ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "bytes"), [("8GiB", 8 * 2**30), ("8G", 8 * 2**30), ("8 GB", 8e9), ("500MiB", 500 * 2**20), ("1.5g", 1.5 * 2**30), ("2TiB", 2 * 2**40), ("64 kib", 2**16)]
)
def test_amounts_of_memory(text: str, bytes: float) -> None:
    assert size(text) == bytes


@pytest.mark.parametrize("text", ["8", "lots", "-3GiB", "0GiB", "GiB", "8GiBs", "1e3M", "nan G", "", "8 Gi B"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(TruingError, match=re.escape(f"--memory {text!r} is no amount of memory; write a number above 0 and a unit, 8GiB")):
        size(text)


def test_the_least_of_machine_and_control_groups_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr("truing.plan.available._PROC", proc)
    monkeypatch.setattr("truing.plan.available._CGROUP", groups)
    with pytest.raises(TruingError, match="does not say how much memory"):
        there()
    (proc / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable:    3000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    assert there(1024.0) == (3000 * 1024 + 1024, "available on this machine")
    for place, text in (("a/b/memory.max", "max"), ("a/b/memory.current", "5"), ("a/memory.max", "2000000"), ("a/memory.current", "900000"), ("a/memory.stat", "anon 1\ninactive_file 400000\n")):
        (groups / place).write_text(text)
    # the outer group allows 2,000,000; 900,000 are used, of which 400,000 are pages of files; 100,000 of the rest are this process's own
    assert there(100_000.0) == (2_000_000 - 500_000 + 100_000, "allowed by this process's control group")
    (groups / "memory" / "x").mkdir(parents=True)  # the older layout
    (proc / "self" / "cgroup").write_text("5:cpu:/\n4:memory:/x\n")
    (groups / "memory" / "x" / "memory.limit_in_bytes").write_text("1000000")
    (groups / "memory" / "x" / "memory.usage_in_bytes").write_text("250000")
    assert there() == (750_000, "allowed by this process's control group")


# -- what is refused -----------------------------------------------------------------------------------------------------------
def refused(capfd: pytest.CaptureFixture[str], *args: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *map(str, args)])
    said = capfd.readouterr().err.strip().splitlines()
    assert stop.value.code == 1 and "Traceback" not in "".join(said)
    assert [line for line in said if line.startswith("error: ")] == said[-1:]
    return said[-1]


def test_wrong_input_is_told_in_one_line(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = world / "recipe.yaml"
    assert "nowhere.yaml: cannot read the recipe" in refused(capfd, tmp_path / "nowhere.yaml")
    assert "--memory 'much' is no amount of memory" in refused(capfd, recipe, "--memory", "much")
    assert "unknown key 'stages.ppo.steeps'" in refused(capfd, recipe, "--no-time", "--set", "ppo.steeps=3")
    gone = refused(capfd, recipe, "--no-time", "--set", f"ppo.prompts={tmp_path}/gone.jsonl")
    assert "gone.jsonl: no such file; the plan reads it for the lengths of its rows" in gone
    assert "no such folder" in refused(capfd, recipe, "--no-time", "--set", f"sft.model={tmp_path}/gone")
    assert "names a stage that has not run by then" in refused(capfd, recipe, "--no-time", "--set", "sft.model=ppo")
    assert "neither an earlier stage nor a folder" in refused(capfd, recipe, "--no-time", "--set", "ppo.reward=rewrad")
    (tmp_path / "bad.jsonl").write_text('{"prompt": 3}\n')
    assert "bad.jsonl:1" in refused(capfd, recipe, "--no-time", "--set", f"ppo.prompts={tmp_path}/bad.jsonl")
    (tmp_path / "empty.yaml").write_text("[]")
    assert "a recipe is a mapping" in refused(capfd, tmp_path / "empty.yaml")
    assert "cannot be imported" in refused(capfd, recipe, "--set", "ppo.reward=nothing:here", "--runs-dir", tmp_path)


def test_folders_need_not_be_free(world: Path, tmp_path: Path) -> None:
    """A run of another recipe under the same name is no business of the plan's."""
    other = tmp_path / "tiny" / "ppo"
    other.mkdir(parents=True)
    (other / "recipe.yaml").write_text("steps: 1\n")
    assert isinstance(plan(load_recipe(world / "recipe.yaml"), runs=tmp_path, time=False), Plan)
