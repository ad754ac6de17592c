"""`check`: what a file holds and what is wrong with it, as numbers and for a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_tokenizers import CHATML, DROPS_SYSTEM, tiny
from truing.data import check, rendered
from truing.data.check import histogram, visible
from truing.errors import DataError


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((json.dumps(row) if isinstance(row, dict) else row) + "\n" for row in rows))
    return path


def shown(report: Any) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(rendered(report))
    return console.export_text()


def test_a_good_file(tmp_path):
    path = write(tmp_path / "d.jsonl", *[{"prompt": f"hello {i}", "completion": "I am fine", "topic": "x"} for i in range(3)], {"prompt": "hello 0", "completion": "I am fine", "topic": "y"})
    tokenizer = tiny(CHATML, pad="<|im_end|>")
    report = check(path, tokenizer)
    assert (report.format, report.kind, report.rows, report.kept, report.ok, report.unit) == ("prompt-completion", "sft", 4, 4, True, "tokens")
    assert report.sample == (("<|im_start|>user\nhello 0<|im_end|>\n<|im_start|>assistant\n", False), ("I am fine<|im_end|>", True))
    assert report.duplicates == ((f"{path}:1", f"{path}:4"),)
    assert sum(n for _, _, n in report.lengths) == 4
    assert "pad token is its eos token" in " ".join(report.notices) and "does not use: topic" in report.notices[0]
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True
    text = shown(report)
    for part in ("prompt-completion, read as sft", "4 found, 4 good, 0 bad", "[[I am fine<|im_end|>]]", "1 groups of duplicates", "no problems"):
        assert part in text


def test_every_problem_is_reported_with_its_place(tmp_path):
    path = write(tmp_path / "d.jsonl", {"prompt": "hello", "completion": "fine"}, "nonsense", {"prompt": "", "completion": "x"}, {"prompt": "you " * 100, "completion": "x"})
    report = check(path, tiny(CHATML), max_length=40)
    assert [(p.source, p.rule) for p in report.problems] == [(f"{path}:2", "malformed_json"), (f"{path}:3", "empty_prompt"), (f"{path}:4", "nothing_to_train")]
    assert (report.rows, report.kept, report.ok, report.bad) == (4, 1, False, {"malformed_json": 1, "empty_prompt": 1, "nothing_to_train": 1})
    assert f"{path}:4: nothing_to_train" in shown(report)
    assert check(path).kept == 2  # without a tokenizer the long prompt cannot be seen


def test_rules_of_the_tokenizer(tmp_path):
    long = write(tmp_path / "long.jsonl", *[{"prompt": "hello", "completion": "fine " * 50}] * 2)
    assert [p.rule for p in check(long, tiny(CHATML), max_length=40).problems] == ["eos_never_trained"]
    system = write(tmp_path / "system.jsonl", {"prompt": "hello", "completion": "fine", "system": "s"})
    assert [p.rule for p in check(system, tiny(DROPS_SYSTEM)).problems] == ["template_drops_system"]
    turns = write(tmp_path / "turns.jsonl", {"messages": [{"role": r, "content": "a"} for r in ("user", "assistant") * 2]})
    report = check(turns, tiny(None))
    assert [p.rule for p in report.problems] == ["no_chat_template"] and "no chat template" in " ".join(report.notices)
    forged = write(tmp_path / "forged.jsonl", {"prompt": "hello<|im_end|>", "completion": "fine"})
    report = check(forged, tiny(CHATML))
    assert report.ok and "1 rows write the name of a control token" in " ".join(report.notices)


@pytest.mark.parametrize(
    ("row", "kind", "sample"),
    [
        ({"prompt": "hello", "chosen": "fine", "rejected": "no"}, "preference", (("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", False), ("fine<|im_end|>", True))),
        ({"prompt": "hello"}, "prompts", (("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", False),)),
        ({"prompt": "hello", "completion": "fine", "label": False}, "judged", (("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", False), ("fine<|im_end|>", True))),
    ],
)
def test_every_kind_has_a_sample(tmp_path, row, kind, sample):
    path = write(tmp_path / "d.jsonl", row)
    with_tokens, without = check(path, tiny(CHATML)), check(path)
    assert (with_tokens.kind, with_tokens.sample) == (kind, sample)
    assert without.unit == "characters" and without.longest == (9 if kind != "prompts" else 5)
    assert [text for text, on in without.sample if on] == ([] if kind == "prompts" else ["fine"])
    assert shown(without)


def test_hostile_text_cannot_reach_the_terminal(tmp_path):
    path = write(tmp_path / "d.jsonl", {"prompt": "\x1b[2J[bold red]x[/] \u202e\r", "completion": "y"}, {"prompt": "\x1b]0;t\x07", "completion": ""})
    text = shown(check(path))
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text and "[bold red]x[/]" in text
    assert visible("a\x1b\n\tb") == "a\\x1b\n\tb"


def test_histogram():
    assert histogram([]) == ()
    assert histogram([0, 0]) == ((0, 1, 2),)
    bins = histogram(list(range(100)))
    assert sum(n for _, _, n in bins) == 100 and len(bins) <= 12 and bins[-1][0] <= 99 < bins[-1][1]
    assert all(n == sum(low <= x < high for x in range(100)) for low, high, n in bins)


def test_files_without_rows_or_known_columns(tmp_path):
    report = check(write(tmp_path / "empty.jsonl"))
    assert [p.rule for p in report.problems] == ["no_rows"] and shown(report)
    report = check(write(tmp_path / "odd.jsonl", {"question": "a"}))
    assert (report.format, [p.rule for p in report.problems]) == ("unknown", ["unknown_format"])
    with pytest.raises(DataError, match="does not exist"):
        check(tmp_path / "none.jsonl")


def test_importing_the_room_is_light():
    code = "import sys, truing.data; print([m for m in ('torch', 'transformers', 'numpy', 'pyarrow', 'datasets', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
