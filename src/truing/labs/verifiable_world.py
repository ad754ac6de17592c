"""The world of the lab `verifiable`: tasks of reasoning-gym, a small decoder that reads them, and a warm-up that is stopped before it can do them.

Three sets of questions, none of which shares a question with another: demonstrations for the warm-up, prompts for the reinforcement learning, and held-out
ones to measure on. A digit, a letter and an operator are one token each; a phrase that most questions share is one token too, so that prompts stay short.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

from truing.config import SFT
from truing.data import tasks
from truing.errors import ConfigError
from truing.methods.sft import sft
from truing.models.load import save_model, tiny_model

END, PAD = "<end>", "<pad>"
CONTEXT = 128
_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w]+|_")
_APART = 10_000_000  # between the seeds of two worlds: many data sets make row i of seed s from s + i


class Task(NamedTuple):
    """A task and the size of its world.

    Attributes:
        dataset, options: of reasoning-gym.
        longest: tokens that a completion may have.
        demonstrations, epochs, lr: of the warm-up, which ends before the task is learned.
        rate: learning rate of the reinforcement learning.
    """

    dataset: str
    options: Mapping[str, Any]
    longest: int
    demonstrations: int
    epochs: int
    lr: float
    rate: float


TASKS: dict[str, Task] = {
    "chain_sum": Task("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}, 5, 4000, 10, 2e-3, 3e-4),
    "spell_backward": Task("spell_backward", {"min_word_len": 3, "max_word_len": 7}, 9, 2000, 10, 2e-3, 3e-4),
    "number_sorting": Task("number_sorting", {"min_numbers": 4, "max_numbers": 4, "min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": 99}, 30, 2000, 5, 2e-3, 3e-4),
}


class World(NamedTuple):
    """A task's files and its model on the disk."""

    folder: Path
    task: Task

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"

    @property
    def heldout(self) -> Path:
        return self.folder / "heldout.jsonl"

    @property
    def warm(self) -> Path:
        """The model after its warm-up."""
        return self.folder / "warm" / "model"


@contextmanager
def world(task: Task, seed: int, *, prompts: int = 4000, heldout: int = 200, hidden: int = 96, layers: int = 2) -> Iterator[World]:
    """Files, a random small decoder and its warm-up, in a temporary folder."""
    rows = questions(task, seed, heldout + task.demonstrations + prompts)
    with tempfile.TemporaryDirectory(prefix="truing-verifiable-") as name:
        made = World(Path(name), task)
        write_world(made, rows, seed, heldout=heldout, hidden=hidden, layers=layers)
        yield made


def write_world(made: World, rows: Sequence[Mapping[str, Any]], seed: int, *, heldout: int, hidden: int, layers: int) -> None:
    """The three files, the untrained model and the warm one."""
    folder, task = made.folder, made.task
    shown = heldout + task.demonstrations
    demonstrations = [{"prompt": row["question"], "completion": row["answer"]} for row in rows[heldout:shown]]
    for path, part in ((made.heldout, rows[:heldout]), (folder / "demonstrations.jsonl", demonstrations), (made.prompts, rows[shown:])):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer = reader([row["question"] for row in rows], [row["answer"] for row in rows])
    model = tiny_model(len(tokenizer), seed=seed, layers=layers, hidden=hidden, context=CONTEXT, bos_token_id=None, eos_token_id=0, pad_token_id=1)
    save_model(model, tokenizer, folder / "base")
    config = SFT(
        model=str(folder / "base"), data=str(folder / "demonstrations.jsonl"), lora=None, dtype="float32", lr=task.lr, schedule="constant", epochs=task.epochs,
        batch_size=64, max_length=CONTEXT, eval_share=0.0, save_every=100_000,
    )  # fmt: skip
    sft(config, folder / "warm", seed=seed)


def questions(task: Task, seed: int, count: int) -> list[dict[str, Any]]:
    """Rows with ``count`` different questions. Raises ConfigError when the task has not as many."""
    options = {**task.options, "size": 2 * count, "seed": _APART * (seed + 1)}
    source = f"reasoning-gym:{task.dataset}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
    found: dict[str, dict[str, Any]] = {}
    for row, _ in tasks.rows(source):
        found.setdefault(row["question"], row)
    if len(found) < count:
        raise ConfigError(f"verifiable: {task.dataset} with {dict(task.options)} has {len(found)} different questions among {2 * count}, and {count} are needed; ask for fewer prompts")
    return list(found.values())[:count]


# -- tokenizer ----------------------------------------------------------------------------------------------------------


def reader(questions: Sequence[str], answers: Sequence[str]) -> Any:
    """A tokenizer of single characters, of what all questions begin and end with, and of the phrases that most of them, or of the answers, share."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ends = (commonprefix(questions), commonprefix([q[::-1] for q in questions])[::-1])
    middles = [q[len(ends[0]) : len(q) - len(ends[1])] for q in questions]
    phrases = sorted({*ends, *shared(middles), *shared(answers)} - {""}, key=lambda p: (-len(p), p))
    letters = sorted(set().union(*questions, *answers) - set(phrases))
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate([END, PAD, *phrases, *letters])}, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*map(re.escape, phrases), r"[\s\S]"])), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False)


def shared(texts: Sequence[str]) -> set[str]:
    """The longest runs of words and signs, without digits, that stand in more than half of the texts.

    >>> sorted(shared(["What is 1 + 2?", "What is 7 + 8?", "What is 4 - 4?"]))
    [' + ', '?', 'What is ']
    """
    split = [_PIECE.findall(text) for text in texts]
    often = {piece for piece, n in _counted(set(pieces) for pieces in split).items() if 2 * n > len(texts) and not piece.isdigit()}
    runs = _counted({run for run in _runs(pieces, often) if len(run) > 1 or not run.isalpha()} for pieces in split)
    return {run for run, n in runs.items() if 2 * n > len(texts)}


def _runs(pieces: Sequence[str], often: set[str]) -> Iterator[str]:
    run = ""
    for piece in pieces:
        if piece in often:
            run += piece
        elif run:
            yield run
            run = ""
    if run:
        yield run


def _counted(sets: Iterable[set[str]]) -> Counter[str]:
    return Counter(piece for found in sets for piece in found)
