"""A language so small that every completion can be written down: its exact chances under a model, and the policy that PPO should find.

Words are letters with the world's seed; a prompt is one or more words, a completion at most ``longest`` of them, or fewer and the end. The reward of a
completion is a number drawn once for it, so that no word is good or bad by itself.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from truing.config import KL, PPO, Scores
from truing.models.load import save_model, tiny_model
from truing.models.pack import Pack
from truing.models.roles import Role
from truing.seeds import uniforms

END = "<end>"
LETTERS = "abcd"
MISSING_EOS = -0.5
Array = NDArray[np.float64]


def worth(prompts: list[str], completions: list[str]) -> list[float]:
    """The reward: for every prompt and completion a number of its own, uniform in [-1, 1], always the same.

    >>> worth(["a0", "a0"], ["b0 a0", "b0 a0"])[0] == worth(["a0"], ["b0 a0"])[0]
    True
    """
    return [_drawn(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


@cache
def _drawn(prompt: str, completion: str) -> float:
    return float(2 * uniforms(0, f"labs.optimum {prompt} > {completion}", 0, [0], 1)[0, 0] - 1)


class World(NamedTuple):
    """A model on the disk, the stage that trains it, and everything it can say.

    Attributes:
        prompts, starts: the prompts as text and as token ids.
        tokens: every completion as token ids, the end included where it is said; ``texts``: the same as text.
        rewards: ``[prompts, completions]``, what each earns, with what being cut off costs.
    """

    folder: Path
    config: PPO
    prompts: list[str]
    starts: list[list[int]]
    tokens: list[list[int]]
    texts: list[str]
    rewards: Array


@contextmanager
def world(seed: int, *, words: int = 3, longest: int = 3, score: Callable[[list[str], list[str]], list[float]] = worth, **changes: Any) -> Iterator[World]:
    """A random small decoder over ``words`` words and the end, and a PPO stage with these changes, in a temporary folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [f"{letter}{seed}" for letter in LETTERS[:words]]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([END, *names])}, unk_token=END))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)
    starts = [[1, 2], [words, 1, 1, 2]]  # a decoder with relative positions cannot tell "a" from "a a", so no prompt repeats a single word
    prompts = [" ".join(names[i - 1] for i in start) for start in starts]
    tokens = [[*said, 0] for n in range(longest) for said in product(range(1, words + 1), repeat=n)]
    tokens += [list(said) for said in product(range(1, words + 1), repeat=longest)]
    texts = [" ".join(names[i - 1] for i in said if i) for said in tokens]
    with tempfile.TemporaryDirectory(prefix="truing-optimum-") as name:
        folder = Path(name)
        # Larger random weights than usual: the reference should have preferences of its own, or leaving it would cost the same everywhere.
        model = tiny_model(words + 1, seed=seed, layers=2, hidden=64, context=16, bos_token_id=None, eos_token_id=0, pad_token_id=0, initializer_range=0.1)
        save_model(model, tokenizer, folder / "base")
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
        options: dict[str, Any] = dict(
            model=str(folder / "base"), prompts=str(folder / "prompts.jsonl"), reward=f"{score.__module__}:{score.__name__}", lora=None, dtype="float32", steps=100, batch_size=512,
            minibatches=4, epochs=2, lr=3e-3, warmup=0.0, schedule="linear", lam=1.0, kl=KL(coef=0.3, target=None), scores=Scores(missing_eos=MISSING_EOS, timeout=None),
            max_new_tokens=longest, max_length=16, save_every=1000,
        )  # fmt: skip
        config = PPO(**{**options, **changes})
        cut_off = np.array([0.0 if said[-1] == 0 else config.scores.missing_eos or 0.0 for said in tokens])
        rewards = np.array([score([p] * len(texts), texts) for p in prompts]) + cut_off
        yield World(folder, config, prompts, starts, tokens, texts, rewards)


@torch.no_grad()
def chances(role: Role, w: World) -> Array:
    """The exact log-probability of every completion at the sampling temperature, ``[prompts, completions]``: each is put through the model as it is."""
    pack = Pack([start + said for start in w.starts for said in w.tokens])
    positions = pack.spans([len(start) - 1 for start in w.starts for _ in w.tokens], [n - 1 for n in pack.lengths])
    logits = role.hidden(pack)[positions] @ role.backbone.head_weight.T
    logp = (logits.double() / w.config.temperature).log_softmax(-1).gather(-1, pack.ids_N[positions + 1][:, None]).squeeze(-1)
    lengths = [len(said) for _ in w.starts for said in w.tokens]
    return np.array([float(piece.sum()) for piece in logp.split(lengths)]).reshape(len(w.starts), -1)


class Best(NamedTuple):
    """The closed form, ``[prompts, completions]`` and ``[prompts]``: ``log pi* = log ref + r / coef - log Z``; ``log_z`` is ``log Z``."""

    logp: Array
    log_z: Array


def best(logp_ref: Array, rewards: Array, coef: float) -> Best:
    """``pi* = ref * exp(r / coef) / Z``, which no policy exceeds in ``E[r] - coef * KL(pi || ref)``; there it is ``coef * log Z``.

    >>> found = best(np.log([[0.5, 0.5]]), np.array([[1.0, 0.0]]), coef=1.0)  # e / (e + 1)
    >>> round(float(np.exp(found.logp[0, 0])), 4)
    0.7311
    """
    tilted = logp_ref + rewards / coef
    log_z = np.logaddexp.reduce(tilted, -1)
    return Best(tilted - log_z[:, None], log_z)


class Measured(NamedTuple):
    """How a policy stands to the reference and the optimum, each ``[prompts]``: total variation, E[r], KL(pi || ref), and ``coef log Z`` less E[r] - coef KL."""

    apart: Array
    reward: Array
    kl: Array
    short: Array


def measure(logp: Array, logp_ref: Array, rewards: Array, coef: float) -> Measured:
    """Exact sums over all completions."""
    optimum = best(logp_ref, rewards, coef)
    p = np.exp(logp)
    reward, kl = (p * rewards).sum(-1), (p * (logp - logp_ref)).sum(-1)
    return Measured(apart(p, np.exp(optimum.logp)), reward, kl, coef * optimum.log_z - (reward - coef * kl))


def apart(p: Array, q: Array) -> Array:
    """Total variation, half the sum of ``|p - q|`` over the last axis: the most by which the two can differ about any event.

    >>> float(apart(np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.0, 0.5])))
    0.5
    """
    return np.asarray(0.5 * np.abs(p - q).sum(-1))
