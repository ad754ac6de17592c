"""The memory that is promised: counted by arithmetic where that is possible, against a real run where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from truing.config import PPO, Lora
from truing.maths.likelihood import token_likelihood
from truing.methods.memory_of_ppo import plan
from truing.methods.roles_of_ppo import Roles, open_roles
from truing.models import memory, precision
from truing.models.pack import Pack

MIB = 2**20
# The tiny decoder: 3 layers, width 48, 4 heads and 2 key/value heads of 12, feed-forward 96.
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, WIDE = 3, 48, 4, 2, 12, 96
LINEAR = [(HEADS * HEAD, WIDTH), (KV_HEADS * HEAD, WIDTH), (KV_HEADS * HEAD, WIDTH), (WIDTH, HEADS * HEAD), (WIDE, WIDTH), (WIDE, WIDTH), (WIDTH, WIDE)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("memory"), layers=LAYERS)


def opened(folder: Path, **options: Any) -> tuple[PPO, Roles]:
    settings = {"model": str(folder / "base"), "prompts": "unused", "reward": "tiny:good", "dtype": "float32", "lora": Lora(rank=2, layers=2), "batch_size": 8, "minibatches": 2,
                "max_new_tokens": 12, "steps": 2, **options}  # fmt: skip
    config = PPO(**settings)
    return config, open_roles(config, 0)


def test_weights_moments_and_cache_are_counted(folder: Path) -> None:
    config, roles = opened(folder)
    items = plan(config, roles, [20] * 5).items
    adapters = 2 * 2 * sum(2 * (out + into) for out, into in LINEAR) * 4  # policy and value; two layers; rank 2; float32
    head = (WIDTH + 1) * 4
    assert items["trained weights"] == items["gradients"] == adapters + head and items["Adam moments"] == 2 * (adapters + head)
    layer = sum(out * into for out, into in LINEAR) + 2 * WIDTH
    vocabulary = roles.policy.backbone.head_weight.shape[0]
    frozen = 4 * (LAYERS * layer + WIDTH + vocabulary * WIDTH)
    assert frozen <= items["frozen weights"] < frozen + 1024  # and the tables of the rotary embedding
    assert items["key/value cache"] == 2 * 8 * KV_HEADS * HEAD * (20 + 12) * LAYERS * 4  # batch 8, prompt 20, 12 new
    assert items["trunk cache"] == 8 * (20 + 12) * WIDTH * 4
    assert items["reference copy"] == items["value model"] == items["reward models"] == 0 and "offloaded reference" not in items


def test_full_fine_tuning_shows_its_copies_and_offloading_removes_one(folder: Path) -> None:
    config, roles = opened(folder, lora=None)
    items = plan(config, roles, [20]).items
    size = sum(p.numel() * 4 for p in roles.policy.backbone.model.parameters())
    assert items["trained weights"] == 2 * size + (WIDTH + 1) * 4  # policy, value model and its head
    assert size <= items["reference copy"] < size + 1024
    assert items["trunk cache"] == 0

    config, roles = opened(folder, lora=None, reference="offloaded")
    offloaded = plan(config, roles, [20])
    assert offloaded.items["reference copy"] < 1024
    assert size <= offloaded.phases["look"]["offloaded reference"] < 1.2 * size and "offloaded reference" not in offloaded.phases["update"]


@pytest.mark.parametrize("options", [{}, {"lora": None}, {"value": "shared"}, {"lora": Lora(rank=2)}])
def test_activations_are_those_of_the_largest_micro_batch(folder: Path, options: dict[str, Any]) -> None:
    """One sequence and two are counted; four, a whole minibatch, must then be what counting it gives."""
    config, roles = opened(folder, **options)
    found = plan(config, roles, [20]).items["activations"]
    pack = Pack([[3 + t for t in range(32)]] * 4)
    positions = pack.spans([19] * 4, [31] * 4)
    backbone, known = roles.policy.backbone, memory.storages(roles.policy, roles.value)
    backbone.prepare(pack, 1000)
    known |= memory.storages(pack.trunk) if backbone.depth else {}

    def policy() -> Any:
        hidden = roles.policy.hidden(pack)[positions]
        made = token_likelihood(hidden, backbone.head_weight, pack.ids_N[positions + 1])
        return (made, roles.values(hidden, pack, positions)) if config.value == "shared" else made

    true = max(memory.kept(policy, known), memory.kept(lambda: roles.value.values(pack, positions), known))
    assert true > 50_000 and abs(found - true) <= 0.1 * true

    half = plan(config.model_copy(update={"micro_tokens": 64}), roles, [20]).items["activations"]  # two sequences of 32 at a time
    assert 0.45 * found < half < 0.6 * found
    together = memory.kept(lambda: (policy(), roles.value.values(pack, positions)), known)
    assert config.value == "shared" or together > 1.5 * true  # what it would be if both models' graphs were alive at once


def test_looking_ahead_leaves_no_trace(folder: Path) -> None:
    config, roles = opened(folder)
    weights = {k: p.detach().clone() for k, p in roles.parameters().items()}
    state = torch.get_rng_state()
    made = plan(config, roles, [20, 9])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, weights[k]) and p.grad is None for k, p in roles.parameters().items())
    assert all(p.grad is None for p in roles.policy.backbone.model.parameters())

    values = made.values()
    assert values["memory/peak_planned"] == made.peak >= max(v for k, v in values.items() if k.startswith("memory/phase/"))
    assert all(v >= 0 for v in values.values()) and values["memory/plan/trained_weights"] * MIB == made.items["trained weights"]
    text = str(made)
    assert f"Predicted peak: {made.peak:,.0f} MiB" in text and "four separate copies" in text and len(set(map(len, text.split("\n\n")[0].splitlines()))) == 1


def test_storages_count_once_and_look_everywhere() -> None:
    a = torch.zeros(100)
    assert memory.storages([a, a[3:], {"x": (a.view(10, 10),)}]) == {a.untyped_storage().data_ptr(): 400}
    linear = torch.nn.Linear(10, 5)
    assert sum(memory.storages(linear, a).values()) == (50 + 5) * 4 + 400
    x = torch.zeros(7, 10, requires_grad=True)
    known = memory.storages(linear)
    assert memory.kept(lambda: linear(x).sigmoid(), known) == 7 * 10 * 4 + 7 * 5 * 4  # the input, and what sigmoid needs


RUN = """
import sys
from pathlib import Path
import tiny
from truing.config import PPO, Lora
from truing.methods import memory_of_ppo, ppo
from truing.models import memory
folder = Path(sys.argv[1])
config = PPO(model=str(folder / "base"), prompts=str(folder / "prompts.jsonl"), reward="tiny:good", steps=3, batch_size=16, minibatches=2, epochs=1, max_new_tokens=32,
             lora=None if sys.argv[2] == "full" else Lora(rank=4), scores={"timeout": None})
made, real = [], memory_of_ppo.plan
memory_of_ppo.plan = lambda *a: made.append(real(*a)) or made[-1]
ppo.ppo(config, folder / sys.argv[2], seed=0)
print(made[0].peak, memory.highest() / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("which", ["lora", "full"])
def test_the_peak_is_what_was_promised(tmp_path: Path, which: str) -> None:
    tiny.folder(tmp_path, hidden=256, layers=4)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", RUN, str(tmp_path), which], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    planned, measured = map(float, done.stdout.split()[-2:])
    assert abs(planned / measured - 1) < 0.15, (planned, measured)


SHAPES = """
import sys, torch
from truing.models import memory, precision
precision.fast_float32()
x, w = torch.randn(1000, 96), torch.randn(192, 96)
for n in range(1, 40):
    x[:n] @ w.T
before = memory.resident()
for n in range(40, 640):
    x[:n] @ w.T
print((memory.resident() - before) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_kernels_of_shapes_long_gone_are_forgotten() -> None:
    def growth(**env: str) -> float:
        plain = {k: v for k, v in os.environ.items() if not k.endswith("CACHE_CAPACITY")}
        return float(subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True, env={**plain, "OMP_NUM_THREADS": "1", **env}).stdout)

    bounded = growth()
    assert bounded < precision.KERNELS
    kept = growth(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")  # the default of oneDNN: it grows with every shape
    assert kept < 20 or kept > 2 * bounded  # small where the processor's kernels are not compiled
