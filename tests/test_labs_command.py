"""`truing lab` as people and scripts meet it: real processes, real labs, exit codes, files."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from truing.cli import app
from truing.cli import lab as command
from truing.config import Frozen, make_options
from truing.errors import ConfigError
from truing.labs.lab import LABS, Check, Findings, Table, find
from truing.maths.stats import Interval

TRUING = [sys.executable, "-m", "truing", "lab"]


def truing(*args: str, **more) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **more.pop("env", {})}
    return subprocess.run([*TRUING, *args], capture_output=True, text=True, timeout=120, env=env, **more)


def here(*args: str):
    """The same in this process, where numpy and torch are loaded already."""
    return CliRunner().invoke(app, ["lab", *args], prog_name="truing", env={"COLUMNS": "200", "NO_COLOR": "1"})


# -- the list and the options -------------------------------------------------------------------------------------------


def test_the_list_is_in_order_and_json_too(tmp_path):
    plain = truing("list", cwd=tmp_path)
    assert plain.returncode == 0 and [line.split()[0] for line in plain.stdout.splitlines()[: len(LABS)]] == list(LABS)
    assert {row["name"]: row["shows"] for row in json.loads(truing("list", "--json", cwd=tmp_path).stdout)} == LABS
    assert here().stdout == here("list").stdout == plain.stdout
    assert not list(tmp_path.iterdir())  # it ran nothing


@pytest.mark.parametrize("more", (["--seeds", "2"], ["--set", "x=1"], ["--out", "x"], ["--options"], ["--seed", "0"]))
def test_the_list_ignores_no_option_silently(more):
    found = here("list", *more)
    assert found.exit_code == 2 and "no option but --json" in found.stderr


@pytest.mark.parametrize("name", LABS)
def test_every_lab_has_the_face_of_a_lab(name):
    lab = find(name)
    assert issubclass(lab.Options, Frozen) and isinstance(lab.SEEDS, int) and callable(lab.run)
    assert len(lab.expectation(lab.Options())) > 40
    for row in command.described(lab.Options):
        assert row["values"], f"{name}: option {row['option']} does not say what it may be"
        value = command._literal(row["default"])  # what is printed as the default can be given as it is printed
        assert make_options(lab.Options, [f"{row['option']}={value}"]) == lab.Options()


def test_options_are_listed_alone_and_under_help():
    for found in (here("clipping", "--options"), here("clipping", "--help"), here("--help", "clipping"), here("-h", "--out", "x", "clipping")):
        assert found.exit_code == 0 and "dual_clip" in found.stdout and "null" in found.stdout
    rows = {row["option"]: row for row in json.loads(here("clipping", "--options", "--json").stdout)}
    assert rows["clip_low"] == {"option": "clip_low", "default": 0.2, "values": "number from 0 below 1", "description": "the ratio's lower bound is 1 - clip_low"}
    assert rows["dual_clip"]["values"] == "number above 1 to 10 or null"
    rows = {row["option"]: row for row in json.loads(here("timeline", "--options", "--json").stdout)}
    assert rows["track"]["values"] == "all | reward | language"
    assert "dual_clip" not in here("--help").stdout


def test_help_and_list_load_nothing_that_learns():
    for args in ("['lab', '--help']", "['lab', 'list']"):
        code = f"import sys, truing.cli\ntry: truing.cli.main({args})\nexcept SystemExit as e: print(e.code, *sorted(sys.modules), file=sys.stderr)"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        code, *loaded = found.stderr.split()
        assert code == "0" and {"torch", "matplotlib", "gymnasium", "truing.labs.gae"}.isdisjoint(loaded)


# -- errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["gea"], 2, "did you mean 'gae'?"),
        (["gea", "--options"], 2, "did you mean 'gae'?"),
        (["gea", "--help"], 2, "did you mean 'gae'?"),
        (["gae", "--seeds", "0"], 2, "--seeds"),
        (["gae", "--seed", "-1"], 2, "--seed"),
        (["gae", "--sed", "1"], 2, "--seed"),
        (["gae", "--set"], 2, "--set"),
    ],
)
def test_what_cannot_be_meant_exits_2_and_helps(args, code, said, tmp_path):
    found = here(*args, "--out", str(tmp_path / "made")) if args[-1] != "--set" else here(*args)
    assert found.exit_code == code and said in found.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["gae", "--set", "critic_eror=1"], "unknown key 'critic_eror'; did you mean 'critic_error'?"),
        (["gae", "--set", "critic_error=-1"], "critic_error=-1"),
        (["gae", "--set", "critic_error=.nan"], "critic_error=nan"),
        (["gae", "--set", "critic_error"], "write option=value"),
        (["gae", "--set", "states=many"], "states='many'"),
        (["clipping", "--set", "dual_clip=1"], "dual_clip=1"),
        (["kl", "--set", "samples=1"], "samples=1"),
        (["timeline", "--set", "first=2030"], "first=2030"),
        (["timeline", "--out", "a file"], "a file: cannot write figures there: a file stands where a folder is needed; choose another folder with --out"),
        (["timeline", "--out", "a file/below"], "a file stands where a folder is needed"),
        (["timeline", "--out", "/proc/nowhere"], "/proc/nowhere: cannot write figures there"),
    ],
)
def test_an_error_is_one_line_on_stderr(args, said, tmp_path, capfd):
    from truing.cli import main

    (tmp_path / "a file").write_text("kept")
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["lab", *args])
    finally:
        os.chdir(before)
    out, err = capfd.readouterr()
    assert stop.value.code == 1 and out == "" and [p.name for p in tmp_path.iterdir()] == ["a file"]
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert (tmp_path / "a file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    found = truing("timeline", "--out", str(tmp_path / "x"))
    assert found.returncode == 1 and "choose another folder with --out" in found.stderr


def test_a_disk_that_fills_up_leaves_no_half_figure(tmp_path):
    # A limit of 20 kB on any file stands for the full disk: the figure is larger.
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); import truing.cli; truing.cli.main(['lab', 'timeline', '--out', sys.argv[1]])"
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and found.stderr.startswith(f"error: {tmp_path}/out: cannot write figures there: File too large") and "checkpoint" not in found.stderr
    assert list((tmp_path / "out").iterdir()) == []


# -- running ------------------------------------------------------------------------------------------------------------


def png_size(data: bytes) -> tuple[int, int, float]:
    """Width, height and dots an inch, from the file's own header and pHYs chunk (which counts dots a metre)."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = data.index(b"pHYs") + 4
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"), int.from_bytes(data[at : at + 4], "big") * 0.0254


def test_a_run_says_what_it_expects_before_and_what_it_found_after(tmp_path):
    found = truing("clipping", cwd=tmp_path)
    assert found.returncode == 0 and found.stderr == ""
    text = found.stdout
    order = ["Expected: ", "Worked cases", "Where the gradient lives", "\u2713 ratio 1.5, A 0.4: the objective is 0.48", "\nheld\n", "figure: runs/labs/clipping/clipping.png"]
    places = [text.index(part) for part in order]
    assert places == sorted(places) and text.startswith("Expected: ")
    folder = tmp_path / "runs" / "labs" / "clipping"
    assert sorted(p.name for p in folder.iterdir()) == ["clipping.png", "result.json"]
    width, _, dpi = png_size((folder / "clipping.png").read_bytes())
    assert round(dpi) == 160 and width == round(10.5 * 160)


def test_json_is_one_document_and_the_file_is_the_same(tmp_path):
    found = here("clipping", "--json", "--out", str(tmp_path / "here"), "--set", "dual_clip=3", "--set", "clip_high=0.28")
    assert found.exit_code == 0 and found.stderr == ""
    document = json.loads(found.stdout)
    assert set(document) == {"name", "options", "seeds", "expectation", "tables", "checks", "held", "values", "figures", "seconds", "versions"}
    assert document == json.loads((tmp_path / "here" / "result.json").read_text())
    assert document["name"] == "clipping" and document["options"]["dual_clip"] == 3 and document["options"]["clip_low"] == 0.2
    assert document["held"] is True and document["versions"]["torch"] and document["versions"]["truing"]
    assert [Path(figure).exists() for figure in document["figures"]] == [True]
    table = document["tables"][0]
    assert set(table) == {"title", "columns", "rows"} and len(table["rows"][0]) == len(table["columns"])


def run(tmp_path: Path, *args: str) -> dict:
    found = here(*args, "--json", "--out", str(tmp_path))
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


SMALL = ("gae", "--set", "trajectories=10", "--set", "states=3")


def test_seeds_are_counted_from_the_first_and_decide_everything(tmp_path):
    def document(*args: str) -> dict:
        out = run(tmp_path, *SMALL, *args)
        del out["seconds"]
        return out

    one, again, other = document("--seeds", "2", "--seed", "7"), document("--seeds", "2", "--seed", "7"), document("--seeds", "2")
    assert one["seeds"] == [7, 8] and other["seeds"] == [0, 1]
    assert one == again and one["tables"] != other["tables"]
    assert set(one["tables"][0]["rows"][0][1]) == {"mean", "low", "high"}


def test_one_seed_is_enough(tmp_path):
    for name in ("gae", "kl"):
        more = SMALL[1:] if name == "gae" else ("--set", "samples=1000")
        assert run(tmp_path, name, *more, "--seeds", "1")["seeds"] == [0]


def test_a_lab_without_chance_says_so(tmp_path):
    found = here("clipping", "--seeds", "3", "--json", "--out", str(tmp_path))
    assert found.exit_code == 0 and "draws nothing at random" in found.stderr and json.loads(found.stdout)["seeds"] == []
    assert here("clipping", "--out", str(tmp_path)).stderr == ""


def test_what_does_not_hold_is_named_and_is_no_error(tmp_path):
    # A critic that is wrong by five times the largest reward: its offset, not the walk, is what varies most.
    args = ("gae", "--set", "critic_error=5", "--set", "batch=1", "--set", "trajectories=10", "--seeds", "2", "--out", str(tmp_path))
    found = here(*args)
    assert found.exit_code == 0 and "\u2717 the variance is largest at lambda 1" in found.stdout
    assert "did not hold: the variance is largest at lambda 1" in found.stdout and "\nheld\n" not in found.stdout
    document = run(tmp_path, *args[:-2])
    assert document["held"] is False and [c["claim"] for c in document["checks"] if not c["held"]] == ["the variance is largest at lambda 1"]


def test_a_plain_locale_gets_words_for_marks(tmp_path):
    found = truing("clipping", "--out", str(tmp_path), env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert found.returncode == 0 and "yes ratio 1.5" in found.stdout


def test_tables_keep_their_width_in_a_pipe(tmp_path):
    wide = CliRunner().invoke(app, ["lab", "timeline", "--out", str(tmp_path)], env={"COLUMNS": "80"})
    assert max(map(len, wide.stdout.splitlines())) > 120


# -- cells and records --------------------------------------------------------------------------------------------------


def test_examples():
    assert doctest.testmod(command).attempted > 0 and doctest.testmod(command).failed == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Interval(1.4, 1.38, 1.42), "1.40 [1.38, 1.42]"),
        (Interval(-0.0012, -0.0054, 0.003), "-0.001 [-0.005, 0.003]"),
        (Interval(-0.001, -0.5, 0.5), "0.0 [-0.5, 0.5]"),  # not "-0.0"
        (Interval(25_000.0, 24_000.0, 26_000.0), "25,000 [24,000, 26,000]"),
        (Interval(0.5, 0.5, 0.5), "0.5 [0.5, 0.5]"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1957, "1957"),
        (0.1 + 0.2, "0.3"),
        (True, "True"),
        ("[red]text[/red]", "[red]text[/red]"),
    ],
)
def test_cells(value, text):
    assert command.cell(value) == text


def test_brackets_in_a_cell_are_text(capsys):
    command._console().print(command.rendered(Table("a [bold]title[/bold]", ("x",), [("[red]y[/red]",)])))
    out = capsys.readouterr().out
    assert "[red]y[/red]" in out


def test_a_row_that_does_not_fit_its_table_is_refused():
    with pytest.raises(ValueError, match="2 columns"):
        Table("t", ("a", "b"), [(1, 2), (1,)])


def test_findings_hold_when_every_check_does():
    good, bad = Check("a", "1", True), Check("b", "2", False)
    assert Findings([good], [], {}).held and not Findings([good, bad], [], {}).held
    assert Findings([bad], [], {}, {"x": {"y": [Interval(1.0, 0.0, 2.0)]}}).document()["values"] == {"x": {"y": [{"mean": 1.0, "low": 0.0, "high": 2.0}]}}


def test_find_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'cartpole'"):
        find("cartpol")
