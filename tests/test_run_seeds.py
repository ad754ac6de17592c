"""Randomness is a function of its arguments, proved against Philox written out from its paper."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import blake2b

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from truing import seeds

WORD = 2**64


def philox4x64(key: int, n: int) -> list[int]:
    """Salmon et al. 2011, figure 4: ten rounds on a counter of four words; the first block has counter 1."""
    words: list[int] = []
    counter = 1
    while len(words) < n:
        c = [counter % WORD, counter // WORD, 0, 0]
        k0, k1 = key % WORD, key // WORD
        for _ in range(10):
            p0, p1 = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [(p1 // WORD) ^ c[1] ^ k0, p1 % WORD, (p0 // WORD) ^ c[3] ^ k1, p0 % WORD]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) % WORD, (k1 + 0xBB67AE8584CAA73B) % WORD
        words += c
        counter += 1
    return words[:n]


def key_of(*parts: object) -> int:
    return int.from_bytes(blake2b(json.dumps(list(parts)).encode(), digest_size=16, person=b"truing.seeds").digest(), "big")


def test_uniforms_are_philox_of_the_paper() -> None:
    got = seeds.uniforms(5, "sample", 3, [0, 8], 9)
    for row, sample in zip(got.tolist(), [0, 8], strict=True):
        assert row == [(w >> 11) / 2**53 for w in philox4x64(key_of(5, "sample", 3, sample), 9)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6), st.integers(0, 2**40), st.integers(1, 20))
def test_a_sample_does_not_feel_its_batch(samples: list[int], seed: int, n: int) -> None:
    together = seeds.uniforms(seed, "sample", 7, samples, n)
    assert together.shape == (len(samples), n) and together.dtype == torch.float64
    for row, sample in zip(together, samples, strict=True):
        alone = seeds.uniforms(seed, "sample", 7, [sample], n + 5)[0]
        assert torch.equal(row, alone[:n])  # neither the batch nor the number of draws matters


def test_a_shared_generator_would_feel_the_batch() -> None:
    """The negative control: what most samplers do."""
    one = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    two = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))[1:]
    assert not torch.equal(one, two)


def test_uniform_in_the_half_open_interval() -> None:
    u = seeds.uniforms(0, "sample", 0, range(200), 100).flatten()
    assert 0 <= float(u.min()) and float(u.max()) < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 0.01
    neighbours = seeds.uniforms(0, "sample", 0, range(2000), 2)
    assert abs(stats.pearsonr(neighbours[:-1, 0].numpy(), neighbours[1:, 0].numpy()).statistic) < 0.07  # 3 standard errors


def test_every_argument_counts() -> None:
    draws = {
        seeds.stream(0, "a"), seeds.stream(1, "a"), seeds.stream(0, "b"), seeds.stream(0, "a", 0), seeds.stream(0, "a", 0, 0),
        seeds.stream(0, "a", 1, 11), seeds.stream(0, "a", 11, 1), seeds.stream(0, "a, 1", 1), seeds.stream(0, "a", -1),
    }  # fmt: skip
    assert len(draws) == 9
    assert all(0 <= d < 2**63 for d in draws)


def test_a_float_index_is_refused() -> None:
    with pytest.raises(TypeError):
        seeds.stream(0, "a", 1.5)  # type: ignore[arg-type]


def test_generator_draws_again_what_it_drew() -> None:
    a, b, c = (torch.randn(5, generator=seeds.generator(3, "init", i)) for i in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_permutations_are_uniform() -> None:
    assert sorted(seeds.permutation(1000, 0, "order", 1)) == list(range(1000))
    assert seeds.permutation(0, 0, "order") == [] and seeds.permutation(1, 0, "order") == [0]
    seen = [tuple(seeds.permutation(3, 0, "order", epoch)) for epoch in range(1200)]
    counts = [seen.count(p) for p in sorted(set(seen))]
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > 0.01


def test_another_process_draws_the_same() -> None:
    code = "from truing import seeds; print(seeds.stream(1, 'a', 2), seeds.permutation(9, 1, 'a'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "77"}).stdout
    assert out.strip() == f"{seeds.stream(1, 'a', 2)} {seeds.permutation(9, 1, 'a')}"
