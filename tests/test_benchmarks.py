"""The benchmark suite measures what it says: the harness on a tiny model with Truing in every chair, its arithmetic on made-up numbers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("a source distribution does not carry the benchmarks", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import gpu, growth, profiling, roofline, rows, side_by_side, startup, table, tokens, turns  # noqa: E402
from benchmarks.goals import GOALS, goal_of  # noqa: E402
from benchmarks.models import folder_of  # noqa: E402
from benchmarks.results import FILE, load, result, save  # noqa: E402
from benchmarks.side_by_side import Chair, ChairError, Played, Turn, take_turns  # noqa: E402

ROUNDS = {"rounds": 3, "quiet": True}


def made_up(name: str, seconds: list[float], peak: float, *, peer: bool = False, steps: int = 1) -> Turn:
    rounds = [{"seconds": s, "tokens": 100, "peak_mib": peak, "optimiser_steps": steps, "others": 0.0} for s in seconds]
    return Turn(Chair(name, "none", {}, peer=peer), {"versions": {}, "dtype": "float32"}, 1.0, rounds)


# -- the harness ---------------------------------------------------------------------------------------------------------------
def test_chairs_take_turns_on_the_same_work(tmp_path):
    """Truing in both chairs: each unit is answered, in order, with what it counted; the peer's chair is no other than ours."""
    shared = {"model": str(folder_of("tiny")), "prompt": 4, "lengths": [6] * 5, "slots": 5, "dtype": "float32"}
    chairs = [Chair("theirs", "truing_decode", shared, peer=True, threads=1), Chair("float32", "truing_decode", shared, threads=1)]
    played = take_turns(chairs, tmp_path, rounds=2)
    found = rows.compare("decode", "tiny", "decode", played, "tokens/s", Turn.rate)
    assert [(r.measure, r.peer, r.variant) for r in found] == [("speed", "theirs", "float32"), ("memory", "theirs", "float32")]
    assert all(r["tokens"] == 30 and r["peak_mib"] > 50 and r["seconds"] > 0 for t in played.turns for r in t.rounds)
    assert found[0].versions["truing"]["torch"] and found[0].settings["truing"]["dtype"] == "float32"
    assert "/" not in json.dumps(found[0].settings), "a record must not carry a path of the machine"


def test_a_training_chair_counts_optimiser_steps_and_real_tokens(tmp_path):
    asks = {"method": "sft", "model": str(folder_of("tiny")), "batch": 4, "lengths": [8, 5, 8, 5], "options": {"dtype": "float32", "lora": None}}
    played = take_turns([Chair("float32", "truing_training", asks, threads=1)], tmp_path, rounds=1, warmup=0)
    assert [(r["optimiser_steps"], r["tokens"]) for r in played.turns[0].rounds] == [(1, 26)] * len(played.turns[0].rounds)


def test_a_chair_that_fails_says_why(tmp_path):
    with pytest.raises(ChairError, match="No module named benchmarks.no_such_chair"):
        take_turns([Chair("float32", "no_such_chair", {})], tmp_path, rounds=1)


def test_only_quiet_turns_count_when_there_are_enough():
    turns = [{"others": o, "seconds": s} for o, s in ((0.0, 1.0), (side_by_side.QUIET, 9.0), (0.05, 2.0), (0.01, 3.0))]
    chair = Chair("x", "none", {})
    kept = side_by_side.counted(chair, {}, 0.0, turns, least=3)
    assert kept.quiet and kept.median("seconds") == 2.0
    noisy = side_by_side.counted(chair, {}, 0.0, turns, least=4)
    assert not noisy.quiet and noisy.median("seconds") == 2.5
    assert result("sft", "small", "float32", "SFT", "speed", "tokens/s", 2.0, "TRL", 1.0, rounds=4, quiet=False).held is None


def test_a_turn_is_from_go_to_the_end_and_the_first_is_free(monkeypatch):
    said, clock = [], iter([0.0, 5.0, 7.0, 10.0, 20.0])
    monkeypatch.setattr(turns.time, "perf_counter", lambda: next(clock))
    one = object.__new__(turns.Turns)
    one.facts, one._ready = {}, False
    monkeypatch.setattr(turns.Turns, "_say", lambda _, answer: said.append(answer))
    monkeypatch.setattr(turns.sys, "stdin", iter_lines(["go\n", "go\n"]))
    one._start()  # at 0
    one.lap()  # ready at 5; go at 7
    one.lap(tokens=3)  # done at 10; go at 20
    assert "seconds" not in said[0] and said[1]["seconds"] == 3.0 and said[1]["tokens"] == 3


class iter_lines:
    def __init__(self, lines: list[str]) -> None:
        self.readline = iter(lines).__next__


# -- start-up --------------------------------------------------------------------------------------------------------------------
def python(line: str) -> list[str]:
    return [sys.executable, "-c", line]


def test_a_process_is_timed_to_what_is_waited_for_or_to_its_end(tmp_path):
    """It says so at once and sleeps a second: the first time has to be a second less than the whole."""
    sign = tmp_path / "sign"
    line = f"import pathlib, time; pathlib.Path({str(sign)!r}).touch(); time.sleep(1)"
    found = startup.timed("it", python(line), tmp_path / "log", until=sign.exists)
    assert 0 < found["seconds"] <= found["whole"] - 0.9
    found = startup.timed("it", python("import time; time.sleep(0.2)"), tmp_path / "log")
    assert found["seconds"] == found["whole"] >= 0.2


def test_a_process_that_fails_says_what_it_printed(tmp_path):
    with pytest.raises(ChairError, match=r"(?s)it ended with code 3; the end of .*log:\n.*no such thing"):
        startup.timed("it", python("print('no such thing'); raise SystemExit(3)"), tmp_path / "log")
    with pytest.raises(ChairError, match="it ended with code 4; it printed nothing"):
        startup.timed("it", python("raise SystemExit(4)"), tmp_path / "log", until=lambda: False)
    with pytest.raises(ChairError, match=r"(?s)without what was waited for.*all well"):
        startup.timed("it", python("print('all well')"), tmp_path / "log", until=lambda: False)


@pytest.mark.parametrize("until", [None, lambda: False])
def test_a_process_that_hangs_is_killed_and_says_what_it_printed(tmp_path, monkeypatch, until):
    monkeypatch.setattr(startup, "LIMIT", 1.0)
    began = time.monotonic()
    with pytest.raises(ChairError, match=r"(?s)it was not done after 1 s and was killed.*still here"):
        startup.timed("it", ["/bin/sh", "-c", "echo still here; exec sleep 60"], tmp_path / "log", until)
    assert time.monotonic() - began < 30


def test_a_chair_that_hangs_is_killed(tmp_path, monkeypatch):
    """A chair's own error, that it ended without an answer, gives way to the reason."""
    monkeypatch.setattr(startup, "LIMIT", 0.3)
    (tmp_path / "log").write_text("reading weights")
    with subprocess.Popen(python("import time; time.sleep(60)"), stdout=subprocess.PIPE) as process:
        with pytest.raises(ChairError, match=r"(?s)the peer was not done after 0.3 s.*reading weights"):
            with startup._limited("the peer", process, tmp_path / "log"):
                process.stdout.read()
                raise ChairError("the peer ended with code -9")


def test_others_are_neither_this_process_nor_those_it_waited_for(monkeypatch):
    """In 10 s the machine's processors worked 4 s, this process 0.5 s and its children 1.5 s: others used (4 - 2) / 10 of one."""
    busy, clock, own = iter([100.0, 104.0]), iter([0.0, 10.0]), iter([(1.0, 0.0, 2.0, 0.0, 9.0), (1.25, 0.25, 3.0, 0.5, 19.0)])
    monkeypatch.setattr(startup, "machine_busy", lambda: next(busy))
    monkeypatch.setattr(startup.os, "times", lambda: next(own))
    with monkeypatch.context() as at:
        at.setattr(startup.time, "perf_counter", lambda: next(clock))
        found = startup.watched(lambda: {"seconds": 7.0})
    assert found == {"seconds": 7.0, "others": 0.2}


def test_start_up_turns_leave_out_the_warm_up_and_what_was_not_quiet(monkeypatch):
    """Truing's second turn was disturbed, so there is a third round; the median is of 1 and 3 s, not of the warm-up's 99 or the disturbed 50."""
    ours, theirs = iter([(99.0, 0.0), (1.0, 0.0), (50.0, 0.5), (3.0, 0.0)]), iter([(99.0, 0.0), (5.0, 0.0), (5.0, 0.0), (8.0, 0.0)])
    monkeypatch.setattr(startup, "watched", lambda work: work())
    turn = lambda it: (lambda: dict(zip(("seconds", "others"), next(it), strict=True)))  # noqa: E731
    found = startup.take_turns({"Truing": turn(ours), "peer": turn(theirs)}, rounds=2)
    assert (found["Truing"].median("seconds"), len(found["Truing"].rounds), found["Truing"].quiet) == (2.0, 2, True)
    assert found["peer"].median("seconds") == 5.0 and len(found["peer"].rounds) == 3


def test_start_up_figures_are_held_to_their_goals_and_stand_beside_the_peer():
    turns = {"Truing": made_up("Truing", [4.0, 4.0, 4.0], 0), "peer": made_up("peer", [8.0, 8.0, 8.0], 0, peer=True)}
    alone, beside = startup._compared("first PPO step", "tiny", "first step", turns, "peer", {}, {})
    assert (alone.measure, alone.truing_figure, alone.goal, alone.held, alone.peer) == ("seconds", 4.0, "<= 10 s", True, None)
    assert (beside.measure, beside.peer, beside.peer_figure, beside.ratio, beside.goal) == ("speed", "peer", 8.0, 2.0, None)
    assert [r.measure for r in startup._compared("import truing.methods.grpo", "none", "import", turns, "peer", {}, {})] == ["speed"]


def test_the_first_step_of_the_tiny_recipe_is_read_from_its_event_log():
    """A real `truing run`: its first step ends before its process does, which has a checkpoint and a report to write."""
    found = startup.first_step(startup.tiny_model())
    assert 0.5 < found["seconds"] < found["whole"] - 0.05 and found["versions"]["torch"]


# -- arithmetic ------------------------------------------------------------------------------------------------------------------
def test_ratios_are_of_medians():
    """Peer: median of 1, 2, 9 s is 2; ours 1 s: twice as fast (a ratio of means would say 4). Memory 100 of 400 MiB is a quarter."""
    played = Played([made_up("peer", [1.0, 9.0, 2.0], 400, peer=True), made_up("default", [1.0, 1.0, 1.0], 100)])
    speed, memory = rows.compare("ppo", "small", "PPO", played, "s a step", rows.seconds)
    assert (speed.peer_figure, speed.truing_figure, speed.ratio) == (2.0, 1.0, 2.0)
    assert (memory.ratio, memory.goal, memory.held) == (0.25, "<= 0.4x", True)
    assert (speed.goal, speed.held) == (">= 4.5x", False)
    rate, _ = rows.compare("sft", "small", "SFT", Played([replace(played.turns[0]), made_up("float32", [1.0], 1)]), "tokens/s", Turn.rate)
    assert (rate.peer_figure, rate.truing_figure, rate.ratio) == (50.0, 100.0, 2.0)


def test_other_work_is_not_compared():
    played = Played([made_up("peer", [1.0], 1, peer=True, steps=4), made_up("default", [1.0], 1, steps=16)])
    with pytest.raises(ChairError, match="optimiser_steps"):
        rows.compare("ppo", "small", "PPO", played, "s a step", rows.seconds)


def test_goals_are_of_one_place_and_of_the_models_they_name():
    assert str(goal_of("decode", "float32", "speed", "small")) == ">= 2.5x" and str(goal_of("decode", "float32", "speed", "medium")) == ">= 1.6x"
    assert goal_of("decode", "float32", "roofline", "small") is None and goal_of("decode", "no such variant", "speed", "small") is None
    assert goal_of("sft", "bfloat16", "speed", "small", "TRL") and goal_of("sft", "bfloat16", "speed", "small", "TRL, bfloat16") is None
    assert not goal_of("ppo", "default", "memory", "small").held(0.41) and goal_of("ppo", "default", "memory", "small").held(0.4)
    assert {row for row, _, _ in GOALS} <= set(rows.ROWS) == set(table.ORDER)


def test_operations_of_generation_are_those_of_a_sum_over_tokens():
    """The closed form beside the loop it stands for, on another shape than the doctest's."""
    shape = {"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 3, "intermediate_size": 5, "num_hidden_layers": 3, "vocab_size": 11}
    total = 0
    for new in (1, 4):
        for position in range(6 + new - 1):  # the last sampled token is never read
            layer = 8 * 3 * 4 + 2 * 8 * 3 * 2 + 4 * 3 * 8 + 3 * 8 * 5
            total += 3 * (2 * layer + 2 * 2 * 4 * 3 * (position + 1))
        total += new * 2 * 8 * 11
    assert roofline.generation(shape, 6, [1, 4]) == total


def test_growth_is_the_most_along_one_axis():
    points = [{"batch": b, "length": n, "us_per_token": t, "own_mib": m} for b, n, t, m in ((1, 1, 10.0, 100.0), (2, 1, 11.0, 150.0), (10, 1, 9.0, 800.0), (1, 4, 40.0, 90.0))]
    line = growth.along(points, "batch")
    assert [p["batch"] for p in line] == [1, 2, 10]
    assert growth.worst(line, "us_per_token") == 1.1 and growth.worst(line, "own_mib") == 8.0
    assert growth.worst(growth.along(points, "length"), "us_per_token") == 4.0


def test_tokens_are_the_same_for_everybody():
    assert tokens.sequences([3, 5], 100, seed=1, end=1) == tokens.sequences([3, 5], 100, seed=1, end=1)
    assert [len(row) for row in tokens.sequences([3, 5], 100, seed=1)] == [3, 5]
    lengths = tokens.log_uniform(4000, 8, 127, seed=0)
    assert min(lengths) == 8 and max(lengths) == 127
    assert abs(sum(n < 32 for n in lengths) / 4000 - 0.5) < 0.03  # log(32 / 8) = log(128 / 32)
    assert tokens.sevens([], ["t7 t14 t3 t8", ""]) == [0.5, 0.0]


@pytest.mark.parametrize(("name", "product"), [("aten::mm", True), ("mkldnn::_linear_pointwise", True), ("aten::addmm_", True), ("aten::copy_", False), ("aten::sum", False),
                                              ("passes::linears", True), ("passes::finish", True), ("passes::gate", False)])  # fmt: skip
def test_profiles_know_products(name, product):
    assert profiling.is_product(name) is product


# -- results and table -----------------------------------------------------------------------------------------------------------
def test_a_result_is_replaced_when_it_is_measured_again(tmp_path):
    one = result("sft", "small", "float32", "SFT", "speed", "tokens/s", 200.0, "TRL", 100.0, **ROUNDS)
    save([one, replace(one, model="medium")], tmp_path / "r.json")
    kept = save([replace(one, truing_figure=50.0, ratio=0.5, held=False)], tmp_path / "r.json")
    assert [(r.model, r.ratio, r.held) for r in load(tmp_path / "r.json")] == [("small", 0.5, False), ("medium", 2.0, True)] == [(r.model, r.ratio, r.held) for r in kept]
    other = replace(one, variant="bfloat16", held=True)
    assert [r.variant for r in save([other], tmp_path / "r.json", whole=True) if r.model == "small"] == ["bfloat16"]  # what is no longer measured goes
    assert len(load(tmp_path / "r.json")) == 2
    elsewhere = replace(other, machine={**other.machine, "processor": "another"})
    kept = save([elsewhere], tmp_path / "r.json", whole=True)
    assert len(kept) == 3  # what another processor gave stays
    text = table.render(kept)
    assert text.count("goals are held.") == 2 and text.index("another") < text.index(other.processor)


def test_the_table_says_what_is_held_and_what_is_not():
    held = result("sft", "small", "float32", "SFT", "speed", "tokens/s", 200.0, "TRL", 100.0, **ROUNDS)
    lost = result("reward", "small", "float32", "reward model", "speed", "tokens/s", 110.0, "TRL", 100.0, **ROUNDS)
    alone = result("start-up", "none", "import truing", "import", "seconds", "s", 0.1, **ROUNDS)
    text = table.render([lost, held, alone])
    assert "2 of 3 goals are held." in text
    assert "| SFT | small | float32 | TRL | 100 tokens/s | 200 tokens/s | **2.00x** | >= 1x: held |" in text
    assert "| **1.10x** | >= 1.2x: **not held** |" in text and "| import | none | import truing | 0.1 s | <= 0.3 s: held |" in text
    assert text.index("| SFT |") < text.index("| reward model |")
    page = table.put(f"before\n{table.BEGIN}\nold\n{table.END}\nafter", text)
    assert page == f"before\n{table.BEGIN}\n\n{text}\n\n{table.END}\nafter"
    with pytest.raises(ValueError, match="no place"):
        table.put("a page without marks", text)


def test_the_committed_results_are_whole_and_their_table_is_in_the_documentation():
    found = load(FILE)
    for r in found:
        goal = goal_of(r.row, r.variant, r.measure, r.model, r.peer)
        judged = None if goal is None or r.quiet is False else goal.held(r.truing_figure if r.ratio is None else r.ratio)
        assert (r.goal, r.held) == (None if goal is None else str(goal), judged), r.key
        assert r.row in rows.ROWS and r.machine["processors"] > 0 and r.measured and asdict(r)
    assert len({r.key for r in found}) == len(found)
    page = table.PAGE.read_text()
    assert table.put(page, table.render(found)) == page, "docs/performance.md is not of these results: python -m benchmarks.table"


# -- the GPU's benchmark ---------------------------------------------------------------------------------------------------------
ONE = {"hidden_size": 2, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 3, "num_hidden_layers": 1, "vocab_size": 5}


def test_what_decoding_must_read_and_learning_must_multiply():
    """A layer of 4 * (1 + 1 + 1 + 1) + 3 * 6 = 34 weights, a head of 10; keys and values of a token are 2 * 2 numbers."""
    assert gpu.bytes_of_a_step(ONE, rows=2, length=10) == 2 * 34 + 2 * 10 * 4 * 2 + 4 * 10
    forward = 2 * 34 * 3 + 4 * 2 * (1 + 2 + 3) + 2 * 10 * 2  # three tokens are read, attention over 1, 2 and 3 keys; two are predicted
    assert gpu.operations(ONE, 3, lora=False) == 3 * forward and gpu.operations(ONE, 3, lora=True) == 2 * forward


def test_the_gpu_benchmark_is_rehearsed_on_the_cpu():
    before = gpu.FILE.read_text() if gpu.FILE.exists() else None
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--rehearse"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    rows = {row["unit"]: row for row in found["rows"]}
    assert list(rows) == list(gpu.UNITS[1:]) and all(row["seconds"] > 0 and row["peak_mib"] > 50 and row["facts"]["dtype"] == "bfloat16" for row in rows.values())
    assert rows["decode"]["share_of_bandwidth"] > 0 < rows["generate"]["share_of_bandwidth"] and rows["sft"]["mfu"] > 0 < rows["sft-lora"]["mfu"]
    assert not rows["sft"]["facts"]["lora"] and rows["sft-lora"]["facts"]["lora"] and set(rows["ppo"]["phases"]) == {"generate", "trunk", "score", "reference", "update"}
    assert (gpu.FILE.read_text() if gpu.FILE.exists() else None) == before, "a rehearsal's figures must not be kept"


def test_without_a_gpu_its_benchmark_says_so():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and "needs a CUDA GPU" in done.stderr and "Traceback" not in done.stderr
