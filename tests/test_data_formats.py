"""Each format of data becomes the same records, from each kind of file."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from truing.data import load
from truing.data.read import hub_id
from truing.errors import DataError
from truing.types import Message


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def m(*turns: str) -> tuple[Message, ...]:
    """m("system: s", "user: u") as messages."""
    return tuple(Message(*turn.split(": ", 1)) for turn in turns)


def plain(*turns: str) -> list[dict[str, str]]:
    return [{"role": t.role, "content": t.content} for t in m(*turns)]


DEMONSTRATIONS: list[tuple[str, dict[str, Any], tuple[Message, ...]]] = [
    ("messages", {"messages": plain("user: a", "assistant: b")}, m("user: a", "assistant: b")),
    ("messages", {"messages": plain("system: s", "user: a", "assistant: b", "tool: t", "assistant: c")}, m("system: s", "user: a", "assistant: b", "tool: t", "assistant: c")),
    ("messages", {"messages": plain("user: a", "assistant: b"), "system": "s"}, m("system: s", "user: a", "assistant: b")),
    ("messages", {"messages": plain("user: a", "assistant: b"), "system": None}, m("user: a", "assistant: b")),
    ("messages", {"messages": [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": None}]}, m("user: a", "assistant: b")),
    ("prompt-completion", {"prompt": "a", "completion": " b"}, m("user: a", "assistant:  b")),
    ("prompt-completion", {"prompt": plain("system: s", "user: a"), "completion": plain("assistant: b")}, m("system: s", "user: a", "assistant: b")),
    ("prompt-completion", {"prompt": plain("user: a"), "completion": "b"}, m("user: a", "assistant: b")),
    ("sharegpt", {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, m("system: s", "user: a", "assistant: b")),
    ("sharegpt", {"conversations": plain("user: a", "assistant: b")}, m("user: a", "assistant: b")),
    ("alpaca", {"instruction": "a", "input": "i", "output": "b"}, m("user: a\n\ni", "assistant: b")),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, m("user: a", "assistant: b")),
    ("alpaca", {"instruction": "a", "output": "b", "system": "s"}, m("system: s", "user: a", "assistant: b")),
]


@pytest.mark.parametrize(("format", "row", "messages"), DEMONSTRATIONS)
def test_demonstrations(tmp_path, format, row, messages):
    path = write(tmp_path / "d.jsonl", row)
    dataset = load(path, "sft")
    (record,) = dataset.records
    assert (dataset.format, record.messages, record.id, record.source) == (format, messages, "d.jsonl:1", f"{path}:1")
    (prompt,) = load(path, "prompts").records
    assert prompt.messages == messages[:-1]


PAIRS: list[tuple[str, dict[str, Any], tuple[tuple[Message, ...], ...]]] = [
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, (m("user: a"), m("assistant: b"), m("assistant: c"))),
    ("preference", {"prompt": plain("user: a"), "chosen": plain("assistant: b"), "rejected": plain("assistant: c")}, (m("user: a"), m("assistant: b"), m("assistant: c"))),
    ("preference", {"prompt": "a", "chosen": plain("user: a", "assistant: b"), "rejected": plain("user: a", "assistant: c")}, (m("user: a"), m("assistant: b"), m("assistant: c"))),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "c", "system": "s"}, (m("system: s", "user: a"), m("assistant: b"), m("assistant: c"))),
    ("preference-implicit", {"chosen": plain("user: a", "assistant: b"), "rejected": plain("user: a", "assistant: c")}, (m("user: a"), m("assistant: b"), m("assistant: c"))),
    ("preference-implicit", {"chosen": plain("user: a", "assistant: b", "user: c", "assistant: d"), "rejected": plain("user: a", "assistant: b", "user: c", "assistant: e")},
     (m("user: a", "assistant: b", "user: c"), m("assistant: d"), m("assistant: e"))),
    ("preference-implicit", {"chosen": plain("user: a", "assistant: b", "user: c", "assistant: d"), "rejected": plain("user: a", "assistant: e")},
     (m("user: a"), m("assistant: b", "user: c", "assistant: d"), m("assistant: e"))),
    ("hh-rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\nd\n\nAssistant: yes", "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\nd\n\nAssistant: no"},
     (m("user: a", "assistant: b", "user: c\nd"), m("assistant: yes"), m("assistant: no"))),
    ("hh-rlhf", {"chosen": "\n\nHuman: I said Human: yes\n\nAssistant: b", "rejected": "\n\nHuman: I said Human: yes\n\nAssistant:c "}, (m("user: I said Human: yes"), m("assistant: b"), m("assistant: c"))),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "parts"), PAIRS)
@pytest.mark.parametrize("margin", [None, 0, 1.5])
def test_preferences(tmp_path, format, row, parts, margin):
    path = write(tmp_path / "p.jsonl", {**row, "id": 7, **({} if margin is None else {"margin": margin})})
    dataset = load(path, "preference")
    (record,) = dataset.records
    assert (dataset.format, record.id, record.margin) == (format, "7", margin)
    assert (record.prompt, record.chosen, record.rejected) == parts
    assert load(path, "prompts").records[0].messages == parts[0]


def test_prompts_keep_the_other_columns(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "2+2?", "answer": 4, "id": "x", "system": "s"}, {"prompt": "1+1?", "answer": None})
    first, second = load(path, "prompts").records
    assert (first.messages, first.extra, first.id) == (m("system: s", "user: 2+2?"), {"answer": 4}, "x")
    assert (second.extra, second.id) == ({"answer": None}, "p.jsonl:2")
    path = write(tmp_path / "q.jsonl", {"prompt": "2+2?", "completion": "4"})
    assert load(path, "prompts").records[0].extra == {"completion": "4"}


def test_judged(tmp_path):
    path = write(tmp_path / "j.jsonl", {"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False})
    dataset = load(path, "judged")
    assert dataset.format == "unpaired"
    assert [(r.prompt, r.completion, r.label) for r in dataset.records] == [(m("user: a"), m("assistant: b"), True), (m("user: a"), m("assistant: c"), False)]


def test_columns_nothing_uses_are_named(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1.0, "source": "web"}
    path = write(tmp_path / "p.jsonl", row)
    assert load(path, "preference").unused == ("score_chosen", "source")
    assert load(path, "prompts").unused == ()


def test_the_same_rows_from_every_kind_of_file(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"id": f"r{i}", "prompt": f'Say "{i}", é', "chosen": f"yes,\n{i}", "rejected": "no", "margin": i / 2} for i in range(3)]
    write(tmp_path / "d.jsonl", *rows)
    write(tmp_path / "lines.json", *rows)
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=2))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    with (tmp_path / "d.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = {}
    for name in ("d.jsonl", "lines.json", "array.json", "d.parquet", "d.csv"):
        dataset = load(tmp_path / name, "preference")
        found[name] = [(r.id, r.prompt, r.chosen, r.rejected, r.margin) for r in dataset.records]
        assert dataset.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    expected = [(f"r{i}", m(f'user: Say "{i}", é'), m(f"assistant: yes,\n{i}"), m("assistant: no"), i / 2) for i in range(3)]
    assert all(records == expected for records in found.values())


def test_csv_labels_and_nested_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "j.csv").write_text("prompt,completion,label\na,b,true\na,c,0\n")
    assert [r.label for r in load(tmp_path / "j.csv", "judged").records] == [True, False]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": plain("user: a", "assistant: b")}]), tmp_path / "d.parquet")
    assert load(tmp_path / "d.parquet", "sft").records[0].messages == m("user: a", "assistant: b")


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("acme/demos") == ("acme/demos", "train")
    assert hub_id("acme/demos:test[:10%]") == ("acme/demos", "test[:10%]")
    for path in ("demos", "demos/a.jsonl", "./a/b", "/a/b", "a/b/c", "acme/demos:te st"):
        assert hub_id(path) is None


def _in_process(code: str, folder: Path) -> str:
    """The hub client reads its settings once, at import; so each case gets a process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_data_set_by_id(tmp_path):
    pytest.importorskip("datasets")
    # the client takes a folder of this name as the data set of this name: the same call as for one on the hub
    (tmp_path / "acme" / "demos").mkdir(parents=True)
    write(tmp_path / "acme" / "demos" / "train.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "", "completion": "b"})
    code = "from truing.data import load; d = load('acme/demos:train', 'sft', on_bad='skip'); print(d.records[0].id, d.records[0].source, d.problems[0], len(d.sha256))"
    assert _in_process(code, tmp_path).startswith("demos#1 acme/demos#1 acme/demos#2: empty_prompt: ")


def test_a_hub_that_cannot_be_reached(tmp_path):
    pytest.importorskip("datasets")
    code = "from truing.data import load\ntry:\n    load('acme/none', 'sft')\nexcept Exception as error:\n    print(type(error).__name__, error)"
    said = _in_process(code, tmp_path)
    assert said.startswith("DataError acme/none:train: neither a file here nor a data set that the hub gave:") and "pass a file" in said


def test_a_margin_is_refused_outside_preferences(tmp_path):
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "margin": 1})
    with pytest.raises(DataError, match="column 'margin' is extra"):
        load(path, "sft")
