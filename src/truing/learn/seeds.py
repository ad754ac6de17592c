"""Randomness as a pure function of (seed, purpose, step, sample): there is no generator state to save, lose or share.

What sample i draws cannot depend on the batch it is in, on the order of the batch, or on how often a run was stopped.
Only hashes and Philox's raw 64-bit words are used, both fixed by their specification, so the numbers are the same on
every machine and in every version of the libraries.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


def _hash(size: int, seed: int, purpose: str, index: Sequence[int]) -> int:
    # JSON of a list cannot be split in two ways: ("a", 1, 11) and ("a", 11, 1) stay apart.
    text = json.dumps([operator.index(seed), purpose, *(operator.index(i) for i in index)])
    return int.from_bytes(blake2b(text.encode(), digest_size=size, person=b"truing.seeds").digest(), "big")


def _words(n: int, seed: int, purpose: str, index: Sequence[int]) -> NDArray[np.uint64]:
    """n words of 64 random bits; the first words do not depend on n."""
    return np.asarray(np.random.Philox(key=_hash(16, seed, purpose, index)).random_raw(n), dtype=np.uint64)


def stream(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit integer, uniform over its arguments: the seed of one purpose (``"init"``, ``"dropout"``) at one index."""
    return _hash(8, seed, purpose, index) >> 1


def generator(seed: int, purpose: str, *index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded by `stream`, for torch's own samplers. Draws depend on the order they are made in."""
    import torch

    return torch.Generator(device=device).manual_seed(stream(seed, purpose, *index))


def uniforms(seed: int, purpose: str, step: int, samples: Sequence[int], n: int) -> Tensor:
    """Uniform numbers in [0, 1), float64, ``[len(samples), n]``; row i is a function of (seed, purpose, step, samples[i]) only.

    Each is a multiple of 2**-53. The first k of n numbers do not depend on n, so a longer completion keeps its beginning.
    """
    import torch

    rows = np.empty((len(samples), n), dtype=np.float64)
    for row, sample in zip(rows, samples, strict=True):
        row[:] = (_words(n, seed, purpose, (step, sample)) >> np.uint64(11)) * 2.0**-53
    return torch.from_numpy(rows)


def permutation(n: int, seed: int, purpose: str, *index: int) -> list[int]:
    """A uniformly random order of range(n): the order that sorts n random words."""
    return [int(i) for i in np.argsort(_words(n, seed, purpose, index), kind="stable")]
