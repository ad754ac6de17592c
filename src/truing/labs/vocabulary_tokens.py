"""PPO on a language model that learns to count: the pipeline's own stage, `methods.ppo.ppo`, in a temporary folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from truing.config import KL, PPO, Scores
from truing.data.template import Renderer
from truing.labs.vocabulary_grid import SHARED, Episode, Run
from truing.learn import checkpoint
from truing.methods import ppo as page
from truing.methods.ppo_update import minibatches
from truing.methods.roles_of_ppo import Roles, open_roles
from truing.models.load import save_model, tiny_model
from truing.observe.events import read_events
from truing.rollout.sampler import sample
from truing.types import Score

END = "<end>"
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven")
RECORDED, TRIED = 64, 256  # completions of the recorded rollout; and when a policy is tried out


def count_on(prompts: list[str], completions: list[str]) -> list[float]:
    """The programmed reward: the share of right words, place by place, of the longer of what was said and what should be said.

    >>> count_on(["count to four from one"] * 4, ["two three four", "two four", "two three four five", ""])
    [1.0, 0.3333333333333333, 0.75, 0.0]
    """
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        _, _, last, _, first = prompt.split()
        wanted, said = NUMBERS[NUMBERS.index(first) + 1 : NUMBERS.index(last) + 1], completion.split()
        scores.append(sum(w == s for w, s in zip(wanted, said, strict=False)) / max(len(wanted), len(said)))
    return scores


class Words(NamedTuple):
    """A tiny model on the disk, the prompts, and the PPO stage that trains it."""

    folder: Path
    prompts: list[str]
    config: PPO


@contextmanager
def words(size: int, rollouts: int, seed: int, **changes: Any) -> Iterator[Words]:
    """A random decoder of one layer with a token for each word, ``size`` prompts, and a PPO stage that trains every weight."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [END, *NUMBERS[: size + 1], "count", "to", "from"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=END))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)
    prompts = [f"count to {NUMBERS[size]} from {first}" for first in NUMBERS[:size]]
    with tempfile.TemporaryDirectory(prefix="truing-vocabulary-") as name:
        folder = Path(name)
        model = tiny_model(len(vocabulary), seed=seed, layers=1, hidden=32, context=32, bos_token_id=None, eos_token_id=0, pad_token_id=0)
        save_model(model, tokenizer, folder / "base")
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in prompts))
        options: dict[str, Any] = dict(
            model=str(folder / "base"), prompts=str(folder / "prompts.jsonl"), reward=f"{__name__}:count_on", steps=rollouts, batch_size=64, lora=None, dtype="float32",
            lr=3e-3, schedule="linear", warmup=0.0, discount=1.0, kl=KL(coef=0.01, target=None), scores=Scores(missing_eos=-0.2, timeout=None), max_new_tokens=size + 2, save_every=rollouts,
        )  # fmt: skip
        yield Words(folder, prompts, PPO(**{**SHARED, **options, **changes}))


def train(made: Words, seed: int, *, tried: bool = True) -> Run:
    """Run the stage; and try the policy before and after on fresh completions, with its own chances."""
    page.ppo(made.config, made.folder / "run", seed=seed)
    log = [event for event in read_events(made.folder / "run") if event["kind"] == "metrics"]
    before, after = (mean_score(roles(made, seed), made, seed) if tried else float("nan") for roles in (_opened, trained_roles))
    return Run([values["reward/proxy"] for values in log], log, before, after)


def _opened(made: Words, seed: int) -> Roles:
    return open_roles(made.config, seed)


def trained_roles(made: Words, seed: int, step: int | None = None) -> Roles:
    """The four roles with the weights of a checkpoint of the run, the last unless told; the reference is the untrained model."""
    roles = _opened(made, seed)
    weights = checkpoint.load(made.folder / "run" / "checkpoints" / f"step-{step or made.config.steps:06d}").tensors["weights"]
    with torch.no_grad():
        for name, parameter in roles.parameters().items():
            parameter.copy_(weights[name])
    return roles


def answers(roles: Roles, made: Words, seed: int, count: int, purpose: str) -> tuple[page.Batch, list[Score]]:
    """Completions of the prompts in turn, with their scores."""
    ids = [list(roles.tokenizer(q).input_ids) for q in made.prompts]
    which = [i % len(ids) for i in range(count)]
    rollout = sample(
        roles.policy, [ids[i] for i in which], max_new_tokens=made.config.max_new_tokens, temperature=made.config.temperature,
        stop_ids=Renderer(roles.tokenizer).stop_ids, seed=seed, step=0, purpose=purpose,
    )  # fmt: skip
    batch, scores, _ = page.score(rollout, page.read(rollout, [made.prompts[i] for i in which], roles, made.config), roles, made.config)
    return batch, scores


def mean_score(roles: Roles, made: Words, seed: int) -> float:
    return float(np.mean([s.value for s in answers(roles, made, seed, TRIED, "tried")[1]]))


# -- recording ----------------------------------------------------------------------------------------------------------


class Recorded(NamedTuple):
    """A rollout as the stage's own `look` sees it."""

    roles: Roles
    config: PPO
    batch: page.Batch
    scores: list[Score]
    experience: page.Experience

    def text(self, ids: Sequence[int]) -> list[str]:
        found: list[str] = self.roles.tokenizer.convert_ids_to_tokens(list(ids))
        return found


def record(made: Words, seed: int, step: int | None = None) -> Recorded:
    """One more rollout of the roles as they were at a checkpoint."""
    roles = trained_roles(made, seed, step)
    batch, scores = answers(roles, made, seed, RECORDED, "recorded")
    plan = list(minibatches(len(batch), made.config.minibatches, seed, 0, 0))
    return Recorded(roles, made.config, batch, scores, page.look(batch, roles, made.config, plan, made.config.kl.coef, scores, made.config.micro_tokens))


def episode(seen: Recorded, row: int) -> Episode:
    """One completion of the rollout: its states are the prompt and all tokens so far."""
    rollout, past = seen.batch.rollout, seen.experience.past
    n, start, whole = int(rollout.lengths_B[row]), len(rollout.prompts[row]), rollout.sequences()[row]
    cut = lambda x: x[row, :n].tolist()  # noqa: E731
    states, values, alive = [whole[: start + t] for t in range(n)], cut(past.values), [1.0] * (n - 1) + [0.0]
    return Episode(
        states, cut(rollout.completion_BT), np.stack([next_token(seen.roles, s) for s in states]), cut(past.logp), cut(seen.experience.rewards),
        cut(-seen.config.kl.coef * (past.logp - seen.experience.logp_ref)), values, [*values[1:], 0.0], [seen.config.discount * a for a in alive], alive,
        cut(past.targets - past.values), cut(past.advantages), bool(rollout.finished_B[row]), seen.scores[row].value,
    )  # fmt: skip


@torch.no_grad()
def next_token(roles: Roles, state: Sequence[int]) -> np.ndarray:
    """The policy's probability of every token after this state alone, ``[V]``, by transformers' own forward."""
    logits = roles.policy.backbone.model(input_ids=torch.tensor([list(state)])).logits[0, -1]
    return np.asarray(logits.softmax(-1))


def recomputed(seen: Recorded) -> tuple[float, float]:
    """Over all tokens of the rollout, the largest change of log pi(token) when the model is given the state alone, and when it is given the prompt alone."""
    alone, forgotten = 0.0, 0.0
    rollout = seen.batch.rollout
    for row, whole in enumerate(rollout.sequences()):
        start = len(rollout.prompts[row])
        at_prompt = np.log(next_token(seen.roles, whole[:start]))
        for t, token in enumerate(whole[start:]):
            logp = float(seen.experience.past.logp[row, t])
            alone = max(alone, abs(float(np.log(next_token(seen.roles, whole[: start + t])[token])) - logp))
            forgotten = max(forgotten, abs(float(at_prompt[token]) - logp))
    return alone, forgotten


def reward_error(seen: Recorded) -> float:
    """How far the rewards of a completion are from adding up to ``score - beta * KL``, at most; KL is the sum of its tokens' ``log pi - log ref``."""
    scores = torch.tensor([s.value for s in seen.scores]) + (seen.config.scores.missing_eos or 0.0) * ~seen.batch.rollout.finished_B
    kl = (seen.experience.past.logp - seen.experience.logp_ref).sum(-1)
    return float((seen.experience.rewards.sum(-1) - (scores - seen.config.kl.coef * kl)).abs().max())
