"""Rows of a reasoning-gym data set, made in a process of their own: ``python -m truing.data.reasoning_rows < request``.

Some of its generators draw from Python's and NumPy's global random numbers or walk over sets of strings, so the same seed gives
other rows in another process. Here hashing is fixed by whoever starts the process, and both generators are seeded anew for each
row: row i is a function of (data set, options, i) alone.

A request is ``{"name": ..., "options": {...}}``. The answer is one JSON object a line: ``{"row": {...}}`` each, or ``{"refused": why}``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from truing.seeds import stream


class Refused(Exception):
    """The request cannot be meant; the message says why and what to write."""


def rows(name: str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows, in order. Raises Refused."""
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise Refused(f"the data set {name!r} does not exist; {_near(name, sorted(DATASETS))}")
    dataset = _open(name, dict(options))
    made = i = 0
    while made < len(dataset):
        word = stream(options["seed"], "reasoning-gym", i)
        random.seed(word)
        np.random.seed(word % 2**32)  # the global generators are the ones that the package draws from
        entry, i = dataset[i], i + 1
        if "Integral(" in (entry["answer"] or "") and i < 10 * len(dataset):  # sympy could not integrate it, and no more could anyone who is asked
            continue
        made += 1
        metadata = plain(entry["metadata"])
        source = metadata.get("source_dataset", name)
        if source not in DATASETS:
            source = name
        own = options if source == name else next(d["config"] for d in options["datasets"] if d["name"] == source)
        yield {
            "question": entry["question"], "answer": entry["answer"], "dataset": source, "metadata": repr(metadata),
            "options": {k: v for k, v in own.items() if k not in ("seed", "size")},
        }  # fmt: skip


def _open(name: str, options: dict[str, Any]) -> Any:
    from reasoning_gym.factory import DATASETS

    kind, config = DATASETS[name]
    _known(name, options, config)
    if name == "composite":
        from reasoning_gym.composite import DatasetSpec

        specs = options.get("datasets")
        if not isinstance(specs, list) or not all(isinstance(s, dict) and isinstance(s.get("name"), str) for s in specs):
            raise Refused('composite: datasets must be a list like [{"name": "chain_sum", "weight": 1, "config": {"min_terms": 2}}]')
        for spec in specs:
            if spec["name"] not in DATASETS:
                raise Refused(f"the data set {spec['name']!r} does not exist; {_near(spec['name'], sorted(DATASETS))}")
            spec.setdefault("weight", 1.0)
            spec.setdefault("config", {})
            _known(spec["name"], spec["config"], DATASETS[spec["name"]][1])
        options["datasets"] = [DatasetSpec(**spec) for spec in specs]
    try:
        made = config(**options)
        getattr(made, "validate", lambda: None)()
        return kind(config=made)
    except (AssertionError, TypeError, ValueError) as error:
        raise Refused(f"{name} refuses {', '.join(f'{k}={v!r}' for k, v in options.items())}: {str(error) or type(error).__name__}") from error


def _known(name: str, options: Mapping[str, Any], config: Any) -> None:
    fields = [f.name for f in dataclasses.fields(config)]
    for key in options:
        if key not in fields:
            raise Refused(f"{name} has no option {key!r}; {_near(key, fields)}")


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"


def plain(value: Any) -> Any:
    """The same of Python's own types, so that `repr` can be read back: NumPy's scalars and arrays become numbers, texts and lists."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        made = [plain(v) for v in value]
        return tuple(made) if isinstance(value, tuple) else set(made) if isinstance(value, set | frozenset) else made
    return value


def main() -> None:
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # some generators print
        try:
            request = json.load(sys.stdin)
            for row in rows(request["name"], request["options"]):
                out.write(json.dumps({"row": row}) + "\n")
        except Refused as error:
            out.write(json.dumps({"refused": str(error)}) + "\n")
        except ImportError as error:
            out.write(json.dumps({"missing": str(error)}) + "\n")


if __name__ == "__main__":
    main()
