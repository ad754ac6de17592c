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
from functools import cache
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from truing.config import SFT
from truing.data import tasks
from truing.data.template import Renderer
from truing.errors import ConfigError, RewardError
from truing.methods.sft import sft
from truing.models.load import save_model, tiny_model
from truing.models.roles import Role, open_backbone, policy_role, tokenizer_of
from truing.rewards.verifiers.verifier import Verifier, open_verifier
from truing.rollout.sampler import sample
from truing.types import Message, Prompt

END, PAD = "<end>", "<pad>"
CONTEXT = 128
ROUNDS = 60  # the most of a warm-up
TRIED = 128  # questions that tell when it is over
_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w]+|_")
_APART = 10_000_000  # between the seeds of two worlds: many data sets make row i of seed s from s + i


class Task(NamedTuple):
    """A task and the size of its world.

    Attributes:
        options: of the data set.
        longest: tokens that a completion may have.
        demonstrations: of the warm-up.
        steps, lr: of the reinforcement learning.
    """

    options: Mapping[str, Any]
    longest: int
    demonstrations: int
    steps: int = 200
    lr: float = 4e-4


TASKS: dict[str, Task] = {
    "palindrome_generation": Task({"min_length": 3, "max_length": 7}, 9, 2000),
    "rotate_matrix": Task({"min_n": 2, "max_n": 2, "min_rotations": 1, "max_rotations": 3}, 9, 2000),
    "spell_backward": Task({"min_word_len": 3, "max_word_len": 7}, 9, 2000),
    "chain_sum": Task({"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}, 5, 4000, steps=500),
}


class World(NamedTuple):
    """A task's files on the disk, its warm model, and how right that is.

    Attributes:
        warm: the folder of the model after its warm-up.
        rounds: of the warm-up.
    """

    folder: Path
    name: str
    task: Task
    warm: Path
    rounds: int

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"

    @property
    def heldout(self) -> Path:
        return self.folder / "heldout.jsonl"


@contextmanager
def world(name: str, seed: int, *, until: float = 0.25, prompts: int = 4000, heldout: int = 200, hidden: int = 96, layers: int = 2) -> Iterator[World]:
    """Files, a random small decoder and its warm-up, in a temporary folder.

    Args:
        name: one of `TASKS`.
        until: the warm-up ends where this share of answers to questions of the reinforcement learning is right, and not above twice of it, or a half.
    """
    task = TASKS[name]
    rows = questions(name, task, seed, heldout + task.demonstrations + prompts)
    with tempfile.TemporaryDirectory(prefix="truing-verifiable-") as folder:
        yield made(Path(folder), name, task, rows, seed, until=until, heldout=heldout, hidden=hidden, layers=layers)


def made(folder: Path, name: str, task: Task, rows: Sequence[Mapping[str, Any]], seed: int, *, until: float, heldout: int, hidden: int, layers: int) -> World:
    """The three files, the untrained model and the warm one."""
    shown = heldout + task.demonstrations
    demonstrations = [{"prompt": row["question"], "completion": row["answer"]} for row in rows[heldout:shown]]
    for file, part in (("heldout", rows[:heldout]), ("prompts", rows[shown:])):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer = reader([row["question"] for row in rows], [row["answer"] for row in rows])
    model = tiny_model(len(tokenizer), seed=seed, layers=layers, hidden=hidden, context=CONTEXT, bos_token_id=None, eos_token_id=0, pad_token_id=1)
    save_model(model, tokenizer, folder / "base")
    return warm_up(World(folder, name, task, folder / "base", 0), rows[shown:][:TRIED], demonstrations, seed, until)


def warm_up(w: World, tried: Sequence[Mapping[str, Any]], demonstrations: Sequence[Mapping[str, Any]], seed: int, until: float) -> World:
    """Rounds of imitation, each a stage of its own, until this share of answers is right.

    Some tasks are understood within a few updates: a round that ends above twice the share, and above a half, is taken back, and tried again with half the demonstrations.
    """
    size = len(demonstrations)
    for made in range(ROUNDS):
        folder = w.folder / f"warm-{made}"
        data = w.folder / f"demonstrations-{size}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in demonstrations[:size]))
        config = SFT(
            model=str(w.warm), data=str(data), lora=None, dtype="float32", lr=1.5e-3, schedule="constant", warmup=0.0, batch_size=64, max_length=CONTEXT, eval_share=0.0,
            save_every=100_000,
        )  # fmt: skip
        sft(config, folder, seed=seed + made)
        share = right(folder / "model", tried, w.task.longest, samples=2, seed=seed).mean()
        if share > max(2 * until, 0.5) and size > 64:
            size //= 2
            continue
        w = w._replace(warm=folder / "model", rounds=made + 1)
        if share >= until:
            break
    return w


def right(model: Path, rows: Sequence[Mapping[str, Any]], longest: int, *, samples: int, seed: int, temperature: float = 1.0) -> NDArray[np.bool_]:
    """Which of a model's answers the verifier accepts, ``[rows, samples]``. Raises RewardError where it fails."""
    return answers(*policy(model), rows, longest, samples=samples, seed=seed, temperature=temperature)


def answers(role: Role, tokenizer: Any, rows: Sequence[Mapping[str, Any]], longest: int, *, samples: int, seed: int, temperature: float = 1.0) -> NDArray[np.bool_]:
    """The same of an open role; equal answers to a question are asked about once."""
    renderer, verifier = Renderer(tokenizer), _verifier()
    starts = [renderer.prompt(Prompt((Message("user", row["question"]),), "", ""), CONTEXT, longest) for row in rows for _ in range(samples)]
    rollout = sample(role, starts, max_new_tokens=longest, temperature=temperature, stop_ids=renderer.stop_ids, seed=seed, step=0, purpose="labs.verifiable", batch_size=1024)
    ids = [tokens[:n].tolist() for tokens, n in zip(rollout.completion_BT, rollout.lengths_B, strict=True)]
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    asked = sorted({(i // samples, text) for i, text in enumerate(texts)})
    scores = dict(zip(asked, verifier([text for _, text in asked], [rows[i] for i, _ in asked]), strict=True))
    failed = [score for score in scores.values() if not score.status.usable]
    if failed:
        raise RewardError(f"verifiable: the verifier failed on {len(failed)} of {len(scores)} answers, the first with {failed[0].status.value}; a machine that is too busy lets them time out")
    return np.array([scores[i // samples, text].value == 1 for i, text in enumerate(texts)]).reshape(-1, samples)


@cache
def _verifier() -> Verifier:
    """One for all that is measured: its process takes seconds to start."""
    return open_verifier("reasoning_gym")


def policy(model: Path) -> tuple[Role, Any]:
    """A model's role and its tokenizer."""
    config = SFT(model=str(model), data="", lora=None, dtype="float32")
    backbone, source = open_backbone(config.model, config)
    return policy_role(backbone, source, seed=0, purpose="policy"), tokenizer_of(config.model)


def questions(name: str, task: Task, seed: int, count: int) -> list[dict[str, Any]]:
    """Rows with ``count`` different questions. Raises ConfigError when the task has not as many."""
    options = {**task.options, "size": 8 * count // 5, "seed": _APART * (seed + 1)}
    source = f"reasoning-gym:{name}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
    found: dict[str, dict[str, Any]] = {}
    for row, _ in tasks.rows(source):
        found.setdefault(row["question"], row)
    if len(found) < count:
        raise ConfigError(f"verifiable: {name} has {len(found)} different questions among {8 * count // 5}, and {count} are needed; ask for fewer prompts")
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
