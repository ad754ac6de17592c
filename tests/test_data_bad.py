"""Every rule of bad data: one message with file:line, the rule's name and the fix; dropped and counted when asked."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from truing.data import check_disjoint, load, read_rows
from truing.data.read import LINE_LIMIT
from truing.data.records import TURN_LIMIT
from truing.errors import ConfigError, DataError

GOOD_SFT = {"prompt": "What is it?", "completion": "A wheel."}
GOOD_PAIR = {"prompt": "What is it?", "chosen": "A wheel.", "rejected": "No idea."}
GOOD_JUDGED = {"prompt": "What is it?", "completion": "A wheel.", "label": True}


def line(row: Any) -> bytes:
    return json.dumps(row).encode() + b"\n"


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": r, "content": c} for r, c in turns], **more}


GOOD_CHAT = chat(("user", "What is it?"), ("assistant", "A wheel."))
U, A = ("user", "hi"), ("assistant", "yo")

# (rule, kind, a good row, the bad line, what the message must also say)
BAD: list[tuple[str, str, Any, bytes, str]] = [
    ("malformed_json", "sft", GOOD_SFT, b'{"prompt": "a", "completion": }\n', "column 31.*fix the line"),
    ("malformed_json", "sft", GOOD_SFT, line(GOOD_SFT)[:-1] + b" " + line(GOOD_SFT), "one object a line"),
    ("malformed_json", "sft", GOOD_SFT, b'{"a":' * 100_000 + b"\n", "nested too deeply"),
    ("malformed_json", "sft", GOOD_SFT, b'{"prompt": ' + b"1" * 5000 + b', "completion": "x"}\n', "digits"),
    ("truncated_last_line", "sft", GOOD_SFT, b'{"prompt": "What is it?", "compl', "cut off.*write the file again"),
    ("invalid_utf8", "sft", GOOD_SFT, b'{"prompt": "caf\xe9", "completion": "x"}\n', "0xe9 at position 15.*convert the file to UTF-8"),
    ("lone_surrogate", "sft", GOOD_SFT, b'{"prompt": "a \\ud83d b", "completion": "x"}\n', "U\\+D83D.*remove it"),
    ("nul", "sft", GOOD_SFT, b'{"prompt": "a \\u0000 b", "completion": "x"}\n', "NUL character.*remove it"),
    ("non_finite", "preference", {**GOOD_PAIR, "margin": 1}, line({**GOOD_PAIR, "margin": float("nan")}), "NaN is not JSON; write a number"),
    ("non_finite", "preference", {**GOOD_PAIR, "margin": 1}, line({**GOOD_PAIR, "margin": float("-inf")}), "-Infinity is not JSON"),
    ("non_finite", "preference", {**GOOD_PAIR, "margin": 1}, line({**GOOD_PAIR, "margin": 7}).replace(b"7", b"1e999"), "1e999 overflows"),
    ("duplicate_key", "sft", GOOD_SFT, b'{"prompt": "a", "prompt": "b", "completion": "x"}\n', "'prompt' appears twice.*keep one"),
    ("not_an_object", "sft", GOOD_SFT, b'["a", "b"]\n', "found list"),
    ("line_too_long", "sft", GOOD_SFT, line({**GOOD_SFT, "prompt": "x" * LINE_LIMIT}), r"8\.0 MiB in one line; the limit is 8\.0 MiB"),
    ("too_many_turns", "sft", GOOD_CHAT, line(chat(*[U, A] * 5000)), "10,000 messages; the limit is 1,000. Split"),
    ("bad_score", "preference", {**GOOD_PAIR, "margin": 1}, line({**GOOD_PAIR, "margin": "2"}), "str '2'; write a number"),
    ("bad_score", "preference", {**GOOD_PAIR, "margin": 1}, line({**GOOD_PAIR, "margin": True}), "bool True; write a number"),
    ("bad_score", "preference", {**GOOD_PAIR, "margin": 1}, line({**GOOD_PAIR, "margin": -0.5}), "-0.5; write a finite number >= 0"),
    ("bad_label", "judged", GOOD_JUDGED, line({**GOOD_JUDGED, "label": "good"}), "str 'good'; write true"),
    ("bad_label", "judged", GOOD_JUDGED, line({**GOOD_JUDGED, "label": 1}), "int 1; write true"),
    ("bad_label", "judged", GOOD_JUDGED, line({**GOOD_JUDGED, "label": None}), "null; write true"),
    ("duplicate_id", "sft", {**GOOD_SFT, "id": "a"}, line({**GOOD_SFT, "id": "a"}), "already used at .*:1; ids must be unique"),
    ("bad_id", "sft", {**GOOD_SFT, "id": "a"}, line({**GOOD_SFT, "id": 1.5}), "float 1.5; write a string"),
    ("empty_prompt", "sft", GOOD_SFT, line({**GOOD_SFT, "prompt": "  \n"}), r"message 1 \(user\) is empty; write it or drop"),
    ("empty_prompt", "sft", GOOD_SFT, line({**GOOD_SFT, "prompt": []}), "empty list"),
    ("empty_prompt", "sft", GOOD_CHAT, line(chat(A, U, A)), "no user turn comes before the answer"),
    ("empty_prompt", "sft", {"instruction": "a", "output": "b"}, line({"instruction": " ", "output": "b"}), "instruction is empty"),
    ("empty_completion", "sft", GOOD_SFT, line({**GOOD_SFT, "completion": ""}), "assistant.* is empty"),
    ("empty_completion", "preference", GOOD_PAIR, line({**GOOD_PAIR, "rejected": " "}), "rejected has no answer"),
    ("empty_message", "sft", GOOD_CHAT, line(chat(("system", ""), U, A)), "message 1 .system. is empty"),
    ("identical_pair", "preference", GOOD_PAIR, line({**GOOD_PAIR, "rejected": "A wheel. "}), "are the same .'A wheel.'.*drop it"),
    ("unknown_role", "sft", GOOD_CHAT, line(chat(("user", "a"), ("asistant", "b"))), "message 2 of messages has role 'asistant'; did you mean 'assistant'"),
    ("unknown_role", "sft", GOOD_CHAT, line(chat(("human", "a"), A)), "did you mean 'user'"),
    ("unknown_role", "sft", GOOD_CHAT, line(chat(("xyz", "a"), A)), "use one of system, user, assistant, tool"),
    ("two_assistants", "sft", GOOD_CHAT, line(chat(U, A, A)), "messages 2 and 3 are both assistant turns; join them"),
    ("system_not_first", "sft", GOOD_CHAT, line(chat(U, ("system", "s"), A)), "message 2 is a system turn; only the first"),
    ("two_systems", "sft", GOOD_CHAT, line(chat(("system", "s"), U, A, system="t")), "keep one"),
    ("no_completion", "sft", GOOD_CHAT, line(chat(U, A, U)), "ends with a user turn.*end it with an assistant"),
    ("prompt_end", "prompts", {"prompt": "a"}, line({"prompt": chat(U, A)["messages"]}), "ends with a assistant turn; end it with the user's"),
    ("completion_role", "preference", GOOD_PAIR, line({**GOOD_PAIR, "chosen": chat(U, A)["messages"]}), "chosen goes from a user turn"),
    ("message_keys", "sft", GOOD_CHAT, line({"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}), "message 1 of messages lacks content"),
    ("message_keys", "sft", GOOD_CHAT, line({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}), "has tool_calls, which is not used"),
    ("wrong_type", "sft", GOOD_SFT, line({**GOOD_SFT, "completion": 3}), "completion is int 3; write a string"),
    ("wrong_type", "sft", GOOD_CHAT, line({"messages": "hello"}), "write a list of messages.*CSV cannot hold lists"),
    ("wrong_type", "sft", GOOD_CHAT, line({"messages": ["hello"]}), "message 1 of messages is str 'hello'"),
    ("wrong_type", "sft", GOOD_CHAT, line(chat(("user", ["part"]), A)), "content in message 1 of messages is list"),  # type: ignore[arg-type]
    ("columns", "sft", {**GOOD_SFT, "topic": "x"}, line(GOOD_SFT), "column topic is missing.*write it, or null"),
    ("columns", "sft", GOOD_SFT, line({**GOOD_SFT, "topic": "x"}), "column 'topic' is extra"),
    ("mixed_formats", "sft", GOOD_SFT, line(GOOD_CHAT), "'messages', the file began as 'prompt-completion'; keep one format"),
    ("unknown_format", "sft", GOOD_SFT, line({"query": "a", "reply": "b"}), "'query', 'reply' are no known format; known: messages"),
    ("unknown_format", "preference", GOOD_PAIR, line({"chosen": "a", "rejected": "b"}), "no prompt column; add one"),
    ("no_common_prompt", "preference", {"chosen": chat(U, A)["messages"], "rejected": chat(U, ("assistant", "b"))["messages"]},
     line({"chosen": chat(U, A)["messages"], "rejected": chat(("user", "other"), A)["messages"]}), "both must begin with the same prompt"),
    ("no_common_prompt", "preference", {"chosen": chat(U, A)["messages"], "rejected": chat(U, ("assistant", "b"))["messages"]},
     line({"chosen": chat(U, A, ("user", "c"), A)["messages"], "rejected": chat(U, A, ("user", "d"), A)["messages"]}), r"parts from the other at a user turn \(message 3\)"),
    ("malformed_transcript", "preference", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
     line({"chosen": "Hello \n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}), "a transcript starts with"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "kind", "good", "bad", "message"), BAD, ids=[f"{i}-{b[0]}" for i, b in enumerate(BAD)])
def test_each_rule_names_the_place_and_the_fix_and_drops_one_row(tmp_path, rule, kind, good, bad, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(line(good) + bad)
    with pytest.raises(DataError, match=f"(?s)^{path}:2: {rule}: .*{message}"):
        load(path, kind)
    dataset = load(path, kind, on_bad="skip")
    assert (dataset.rows, len(dataset.records), dataset.bad) == (2, 1, {rule: 1})
    kept = load(path, kind, on_bad="quarantine", quarantine_to=tmp_path / "out" / "bad.jsonl")
    (row,) = [json.loads(text) for text in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert kept.records == dataset.records
    assert (row["source"], row["rule"], row["message"]) == (f"{path}:2", rule, dataset.problems[0].message)
    if "row" in row:
        assert row["row"] == json.loads(bad)
    else:
        assert row["text"] == bad.decode("utf-8", "backslashreplace").rstrip("\n")[: len(row["text"])] and row["text"]


def test_bom(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line(GOOD_SFT) + line(GOOD_SFT))
    with pytest.raises(DataError, match=r"data\.jsonl:1: bom: .*save it as UTF-8 without BOM"):
        load(path, "sft")
    assert load(path, "sft", on_bad="skip").bad == {"bom": 1}
    table = tmp_path / "data.csv"
    table.write_bytes(b"\xef\xbb\xbfprompt,completion\na,b\n")
    with pytest.raises(DataError, match=r"data\.csv:1: bom"):
        load(table, "sft", on_bad="skip")  # nothing below a broken header means anything


def test_a_100_mb_line_is_refused_in_bounded_time_and_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "data.jsonl"
    with path.open("wb") as file:
        file.write(line(GOOD_SFT) + b'{"prompt": "')
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b'", "completion": "a"}\n' + line(GOOD_SFT))
    tracemalloc.start()
    start = time.monotonic()
    dataset = load(path, "sft", on_bad="skip")
    took, peak = time.monotonic() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(p.source, p.rule) for p in dataset.problems] == [(f"{path}:2", "line_too_long")]
    assert "100.0 MiB in one line; the limit is 8.0 MiB" in dataset.problems[0].message
    assert [r.source for r in dataset.records] == [f"{path}:1", f"{path}:3"]
    assert took < 20 and peak < 64 * 2**20


@pytest.mark.parametrize("newline", [b"\n", b""])
def test_the_line_limit_is_exact(tmp_path, newline):
    path = tmp_path / "data.jsonl"
    room = LINE_LIMIT - len(line({"prompt": ""}).rstrip())
    path.write_bytes(line({"prompt": "x" * room}).rstrip() + newline)
    assert len(load(path, "prompts").records) == 1
    path.write_bytes(line({"prompt": "x" * (room + 1)}).rstrip() + newline)
    with pytest.raises(DataError, match="line_too_long"):
        load(path, "prompts")


def test_the_turn_limit_is_exact(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(line(chat(*[U, A] * (TURN_LIMIT // 2))))
    assert len(load(path, "sft").records[0].messages) == TURN_LIMIT
    path.write_bytes(line(chat(("system", "s"), *[U, A] * (TURN_LIMIT // 2))))
    with pytest.raises(DataError, match="too_many_turns"):
        load(path, "sft")


def test_the_first_error_counts_the_others(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(line(GOOD_SFT) + line({**GOOD_SFT, "prompt": ""}) + line({**GOOD_SFT, "completion": ""}) * 2 + b"nonsense\n")
    with pytest.raises(DataError, match=r"data\.jsonl:2: empty_prompt: .*3 more: 2 empty_completion, 1 malformed_json; on_bad skip or quarantine"):
        load(path, "sft")
    assert load(path, "sft", on_bad="skip").bad == {"empty_completion": 2, "empty_prompt": 1, "malformed_json": 1}


def test_blank_lines_are_no_rows_and_do_not_shift_the_places(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n" + line(GOOD_SFT) + b"  \n\r\n" + line(GOOD_SFT).rstrip() + b"\r\n")
    assert [r.source for r in load(path, "sft").records] == [f"{path}:2", f"{path}:5"]


@pytest.mark.parametrize("text", [b"", b"\n \n"])
def test_an_empty_file(tmp_path, text):
    path = tmp_path / "data.jsonl"
    path.write_bytes(text)
    with pytest.raises(DataError, match="no data: it has no rows"):
        load(path, "sft")


def test_nothing_left_is_an_error(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(line({**GOOD_SFT, "prompt": ""}) * 3)
    with pytest.raises(DataError, match="all 3 rows are bad: 3 empty_prompt; the first is .*:1: empty_prompt"):
        load(path, "sft", on_bad="skip")


def test_csv_problems_have_their_line(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(
        b'prompt,chosen,rejected,margin\na,"b\nb",c,1\na,b,b,2\n\xff,1,2,3\na,b,c,nan\na,b\na,"b"x,c,1\na,b,c,\na,' + b"x" * LINE_LIMIT + b'y,c,1\na,b,c,1\na,"unclosed,c\n'
    )
    dataset = load(path, "preference", on_bad="skip")
    assert [(p.source.rpartition(":")[2], p.rule) for p in dataset.problems] == [
        ("4", "identical_pair"), ("5", "invalid_utf8"), ("6", "bad_score"), ("7", "columns"), ("8", "malformed_csv"), ("10", "line_too_long"), ("12", "malformed_csv"),
    ]  # fmt: skip
    assert [r.source.rpartition(":")[2] for r in dataset.records] == ["2", "9", "11"]
    assert [r.margin for r in dataset.records] == [1.0, None, 1.0]


@pytest.mark.parametrize("header", [b"prompt,prompt", b"prompt,", b"a,\xff"])
def test_csv_headers_must_be_names(tmp_path, header):
    path = tmp_path / "data.csv"
    path.write_bytes(header + b"\nx,y\n")
    with pytest.raises(DataError, match=r"data\.csv:1: "):
        load(path, "sft", on_bad="skip")


def test_arrays_have_the_line_of_each_element(tmp_path):
    path = tmp_path / "data.json"
    path.write_text('[\n {"prompt": "a"},\n {"prompt": "b",\n  "prompt": "c"}, {"prompt": NaN},\n\n {"prompt": "d"}\n]\n')
    dataset = load(path, "prompts", on_bad="skip")
    assert [r.source for r in dataset.records] == [f"{path}:2", f"{path}:6"]
    assert [(p.source, p.rule) for p in dataset.problems] == [(f"{path}:3", "duplicate_key"), (f"{path}:4", "non_finite")]


@pytest.mark.parametrize("text", ['[{"prompt": "a"}, {"prompt"]', '[{"prompt": "a"} {"prompt": "b"}]', '[{"prompt": "a"}', '[{"prompt": "a"}] x', "[", '["\ud83d"]'])
def test_a_broken_array_is_never_half_read(tmp_path, text):
    path = tmp_path / "data.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=rf"^{path}:1: (malformed_json|invalid_utf8): "):
        load(path, "prompts", on_bad="skip")


def test_a_corrupt_parquet_file(tmp_path):
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load(path, "sft", on_bad="skip")


def test_parquet_problems_have_their_row(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "data.parquet"
    rows = [{**GOOD_PAIR, "margin": 1.0}, {**GOOD_PAIR, "margin": float("nan")}, {**GOOD_PAIR, "chosen": None, "margin": 1.0}, {**GOOD_PAIR, "prompt": "a\x00", "margin": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    dataset = load(path, "preference", on_bad="quarantine", quarantine_to=tmp_path / "bad.jsonl")
    assert [(p.source, p.rule) for p in dataset.problems] == [(f"{path}:2", "bad_score"), (f"{path}:3", "wrong_type"), (f"{path}:4", "nul")]
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 3


def test_places_that_are_no_data(tmp_path):
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "none.jsonl", "does not exist"), ("nothing.csv", "does not exist")):
        with pytest.raises(DataError, match=message):
            load(path, "sft")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"ending in '\.txt' are not read; use one of \.jsonl"):
        load(tmp_path / "a.txt", "sft")


def test_the_wrong_kind_says_what_was_found_and_wanted(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(line(GOOD_SFT))
    with pytest.raises(DataError, match=r"data\.jsonl:1: found the format 'prompt-completion' \(columns prompt, completion\); kind 'preference' wants 'preference' \(columns prompt, chosen, rejected\)"):
        load(path, "preference", on_bad="skip")
    with pytest.raises(ConfigError, match="kind='dpo' does not exist; use one of sft, preference, prompts, judged"):
        load(path, "dpo")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on_bad='ignore' does not exist; use one of error, skip, quarantine"):
        load(path, "sft", on_bad="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs quarantine_to"):
        load(path, "sft", on_bad="quarantine")


def test_a_quarantine_that_cannot_be_written(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(line(GOOD_SFT) + b"x\n")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        load(path, "sft", on_bad="quarantine", quarantine_to=tmp_path / "file" / "bad.jsonl")


def test_the_same_prompt_in_train_and_eval(tmp_path):
    train, held = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_bytes(line(GOOD_SFT) + line({**GOOD_SFT, "prompt": "Else?"}))
    held.write_bytes(line({"prompt": "New?"}) + line({"prompt": " Else?\n"}))
    with pytest.raises(DataError, match=rf"^{held}:2: train_eval_overlap: .*training data at {train}:2 \(1 prompts are in both\); remove"):
        check_disjoint(load(train, "sft"), load(held, "prompts"))
    held.write_bytes(line({"prompt": "New?"}) + line({"prompt": "Else?", "system": "Another setting."}).replace(b"Else", b"Or"))
    check_disjoint(load(train, "sft"), load(held, "prompts"))


def test_read_rows_stops_at_the_first_unreadable_row(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(line({"anything": [1]}) + b"x\n")
    rows = read_rows(path)
    assert next(rows) == ({"anything": [1]}, f"{path}:1")
    with pytest.raises(DataError, match=r":2: malformed_json"):
        next(rows)


def test_reading_works_from_strange_places(tmp_path):
    folder = tmp_path / "a folder: é"
    folder.mkdir()
    (folder / "data.jsonl").write_bytes(line(GOOD_SFT))
    record = load(Path(folder / "data.jsonl"), "sft").records[0]
    assert record.id == "data.jsonl:1"
