"""`device: cuda`: the loops on a GPU (a pretended one where there is none) give the CPU's numbers; what the pretended one refuses, and what is said without one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import grpo_tiny
import ppo_tiny
from pretended import REAL, Pretended, gpu
from test_models_attention import away, drawn, wanted_of
from test_models_backbone import gpt2, moved, small
from truing.config import SFT, Evaluate, Lora, Reward, Sampling, Stage, make_recipe
from truing.errors import ConfigError
from truing.learn.inputs import fingerprint
from truing.learn.run import Run
from truing.learn.update import Learner
from truing.methods.evaluate import evaluate
from truing.methods.grpo import grpo
from truing.methods.ppo import ppo
from truing.methods.reward_model import reward_model
from truing.methods.sft import sft
from truing.models import attention, attention_plain, device, fused
from truing.models.backbone import Backbone
from truing.models.pack import Pack
from truing.models.roles import Role, open_backbone, open_role, wants_bfloat16
from truing.observe.events import read_events
from truing.pipeline import run_recipe
from truing.plan import plan
from truing.rollout.sampler import sample

LORA = {"rank": 4, "layers": 1}
PACK = [[5, 6, 7, 8, 9], [10, 11, 12], [3, 4], [20]]
pretended = pytest.mark.skipif(REAL, reason="there is a GPU")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grpo_tiny.world(tmp_path_factory.mktemp("world"))


# -- the pretended GPU refuses what CUDA refuses -----------------------------------------------------------------------------
REFUSED: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "a tensor of the CPU": (lambda x: x + torch.ones(3), "same device"),
    "an index of the device into the CPU": (lambda x: torch.ones(3)[x.long()], "same device"),
    "numbers of the CPU written by index": (lambda x: x.index_put_((torch.tensor([0, 1]),), torch.ones(2)), "same device"),
    "embedding by ids of the CPU": (lambda x: torch.nn.functional.embedding(torch.tensor([0]), x[:, None]), "same device"),
    "concatenation": (lambda x: torch.cat([x, torch.ones(1)]), "same device"),
    "numpy": (lambda x: x.numpy(), "can't convert cuda"),
    "a kernel of the CPU": (lambda x: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*[x.view(1, 1, 3, 1)] * 3, 0.0, True, scale=1.0), "CUDA"),
    "a generator of the CPU": (lambda x: torch.rand(3, device=x.device, generator=torch.Generator()), "generator"),
    "random numbers of the device": (lambda x: torch.rand_like(x), "random"),
}


@pretended
@pytest.mark.parametrize("what", REFUSED)
def test_the_pretended_gpu_refuses(what: str) -> None:
    call, says = REFUSED[what]
    with gpu():
        x = torch.tensor([1.0, 2.0, 0.0]).to("cuda")
        assert x.is_cuda and x.device == torch.zeros(1, device="cuda").device
        with pytest.raises((RuntimeError, TypeError, NotImplementedError), match=says):
            call(x)


@pretended
def test_the_pretended_gpu_allows_what_cuda_allows() -> None:
    """Numbers of no dimension, indices on the CPU, copies; and gradients come back where they came from."""
    with gpu():
        w = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        x = w.to("cuda")
        y = (x * torch.tensor(2.0))[torch.tensor([2, 0])]
        assert isinstance(y, Pretended) and y.cpu().tolist() == [6.0, 2.0] == y.tolist() and float(y.sum()) == 8.0
        y.sum().backward()
        assert w.grad is not None and not w.grad.is_cuda and w.grad.tolist() == [2.0, 0.0, 2.0]
        there = torch.zeros(3, device="cuda").copy_(torch.ones(3))
        there[torch.tensor([True, False, False])] = 5.0
        assert there.tolist() == [5.0, 1.0, 1.0]


PLANTED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "a pack that stays on the CPU": (lambda m: m.setattr(Pack, "on", lambda self, _: self), "same device"),
    "compiled passes on memory of the device": (lambda m: m.setattr(fused, "passes", lambda x, dtype: fused_passes(dtype)), "address of memory"),
    "attention of the CPU": (lambda m: m.setattr(attention_plain, "_form", lambda *_: (attention_plain._flash, attention_plain._flash_backward)), "Could not run"),
    "adapters that stay on the CPU": (lambda m: m.setattr(Backbone, "device", device.CPU), "same device"),
    "scores that stay on the device": (lambda m: m.setattr(torch.Tensor, "cpu", lambda self: self), "same device|can't convert cuda"),
}


def fused_passes(dtype: torch.dtype) -> Any:
    from truing.native import library

    return library(dtype) or pytest.skip("no C compiler")


@pretended
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_of_devices_is_caught(bug: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu():
        plant, says = PLANTED[bug]
        plant(monkeypatch)
        with pytest.raises((RuntimeError, NotImplementedError, TypeError), match=says):
            runs(world, device="cuda")["reward"](tmp_path / "run")


# -- pieces --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lengths", [[1], [2, 1], [129, 100], [513, 400]], ids=str)
def test_the_gpus_form_of_attention_is_pytorchs(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "passes", lambda x, dtype: None)
    monkeypatch.setattr(attention_plain, "_form", lambda *_: (attention_plain._chosen, attention_plain._chosen_backward))
    pack, qkv, turn, g = drawn(lengths, 2, 3)
    found, wanted = attention.attend(*qkv, pack, turn, 0.4), wanted_of(pack, *qkv, turn)
    assert away(found, wanted) < 1e-6
    gradients = zip(torch.autograd.grad(found, qkv, g), torch.autograd.grad(wanted, qkv, g.double()), strict=True)
    assert lengths == [1] or max(away(a, b.double()) for a, b in gradients) < 2e-6


def read(backbone: Backbone) -> list[torch.Tensor]:
    """Log-probabilities, values and the gradients of everything that is trained, of a role that has moved."""
    role = Role(backbone, None if backbone.lora is None else moved(backbone), backbone.head(0, "x"))
    pack = Pack(PACK)
    positions = pack.spans([0] * 4, [n - 1 for n in pack.lengths])
    found = role.likelihood(role.hidden(pack, positions), pack, positions, entropy_gradient=True)
    values = role.values(pack, pack.last())
    (found.logp.sum() + found.entropy.sum() + values.square().sum()).backward()
    assert not any(x.is_cuda for x in (*found, values, role.likeliest(pack, positions)))
    return [*(x.detach() for x in (*found, values)), *(p.grad.cpu() for _, p in sorted(role.parameters().items()) if p.grad is not None)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [Lora(rank=2, layers=2), None], ids=["lora", "every weight"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
def test_a_backbone_reads_and_learns_the_same(kind: str, lora: Lora | None, checkpointing: bool) -> None:
    model = gpt2() if kind == "gpt2" else small(kind)
    wanted = read(Backbone(copy.deepcopy(model), lora=lora, checkpointing=checkpointing))
    with gpu():
        there = Backbone(copy.deepcopy(model).to("cuda"), lora=lora, checkpointing=checkpointing)
        assert there.device.type == "cuda" and there.lean == (kind != "gpt2")
        found = read(there)
    assert len(found) == len(wanted) > 3
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).abs().max()) <= 2e-5 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=5), Sampling(top_p=0.8, min_p=0.01)], ids=["all", "top_k", "top_p"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_sample_is_the_same_tokens(kind: str, sampling: Sampling) -> None:
    """Six prompts in three places, so that rows end, move up and join; the uniforms are the CPU's, so the tokens are too."""
    model = gpt2() if kind == "gpt2" else small(kind)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [5, 6, 7], [2, 3], [40]]

    def drawn_by(backbone: Backbone) -> Any:
        role = Role(backbone, moved(backbone))
        return sample(role, prompts, max_new_tokens=[9, 3, 20, 5, 7, 1], temperature=1.0, stop_ids=range(0, 60, 9), seed=3, step=1, batch_size=3, sampling=sampling)

    lora = Lora(rank=2, layers=2)
    wanted = drawn_by(Backbone(copy.deepcopy(model), lora=lora))
    with gpu():
        found = drawn_by(Backbone(copy.deepcopy(model).to("cuda"), lora=lora))
        assert not found.completion_BT.is_cuda and torch.equal(found.completion_BT, wanted.completion_BT) and torch.equal(found.finished_B, wanted.finished_B)
    torch.testing.assert_close(found.sampler_logp_BT, wanted.sampler_logp_BT, atol=1e-5, rtol=1e-5)


def test_auto_is_bfloat16_on_a_gpu_where_there_is_lora() -> None:
    with gpu():
        assert wants_bfloat16(Stage(device="cuda")) and not wants_bfloat16(Stage(device="cuda", lora=None)) and not wants_bfloat16(Stage(device="cuda", dtype="float32"))
        assert fingerprint(SFT(data="none", device="cuda"))["inputs"]["dtype"] == "bfloat16"


def test_float32_is_float32_whatever_the_process_was_told() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    with gpu():
        device.find("cuda", "device")
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.backends.cuda.matmul.fp32_precision == "ieee"


# -- whole runs ----------------------------------------------------------------------------------------------------------
def runs(world: Path, **more: Any) -> dict[str, Callable[[Path], dict[str, Any]]]:
    small: dict[str, Any] = {"model": str(world / "base"), "dtype": "float32", "lora": LORA, "lr": 1e-2, **more}
    on = {"device": more.get("device", "cpu")}
    demos, prefs = str(world / "demos.jsonl"), str(world / "prefs.jsonl")
    return {
        "sft": lambda f: sft(SFT(data=demos, eval_share=0.1, **small), f, seed=0),
        "sft of every weight": lambda f: sft(SFT(data=demos, eval_share=0.1, checkpointing=True, **{**small, "lora": None}), f, seed=0),
        "reward": lambda f: reward_model(Reward(data=prefs, **small), f, seed=0),
        "ppo": lambda f: ppo(ppo_tiny.options(world, **on), f, seed=0),
        "ppo of every weight": lambda f: ppo(ppo_tiny.options(world, lora=None, reference="offloaded", **on), f, seed=0),
        "ppo, one value head": lambda f: ppo(ppo_tiny.options(world, value="shared", entropy=0.01, kl={"place": "loss_k2", "target": None}, scores={"at": "tokens"}, **on), f, seed=0),
        "grpo": lambda f: grpo(grpo_tiny.options(world, kl={"coef": 0.1}, sampling={"top_p": 0.9}, monitors={"rm": str(world / "rm")}, **on), f, seed=0),
        "evaluate": lambda f: evaluate(
            Evaluate(before=str(world / "base"), after=str(world / "base"), prompts=str(world / "heldout.jsonl"), scores={"rm": str(world / "rm")}, max_new_tokens=6, **on), f, seed=0),
    }  # fmt: skip


@pytest.mark.parametrize("name", runs(Path()))
def test_a_whole_run_gives_the_cpus_numbers(name: str, world: Path, tmp_path: Path) -> None:
    """Every logged number of every step, and the trained weights, to the rounding of float32 after a few steps of Adam."""
    here = runs(world)[name](tmp_path / "here")
    with gpu():
        there = runs(world, device="cuda")[name](tmp_path / "there")
    cost = {"seconds", "peak_mib", "weights_sha256"}
    assert {k: v for k, v in there.items() if k not in cost} == {k: close(v) for k, v in here.items() if k not in cost}
    steps = [[{k: v for k, v in e.items() if k != "kind"} for e in read_events(tmp_path / side) if e["kind"] == "metrics"] for side in ("here", "there")]
    assert len(steps[0]) == len(steps[1]) and all(b == {k: close(v) for k, v in a.items()} for a, b in zip(*steps, strict=True))
    timing = [e for e in read_events(tmp_path / "there") if e["kind"] == "timing" and "memory/peak_mib" in e]
    assert all(e["memory/device_peak_mib"] > 0 for e in timing) and not any(k.startswith("memory/plan") for e in timing for k in e)
    if name != "evaluate":
        ours, theirs = (open_role(str(tmp_path / side / "model"), head=name == "reward") for side in ("here", "there"))
        weights = lambda role: role.adapter.tensors() if role.adapter else dict(role.backbone.model.named_parameters())  # noqa: E731
        for key, p in weights(ours).items():
            torch.testing.assert_close(weights(theirs)[key], p, atol=2e-4, rtol=1e-3)


def close(value: Any) -> Any:
    """Numbers to a thousandth, or 3e-4 where they are next to nothing (a ratio less 1); everything else as it is."""
    if isinstance(value, dict):
        return {k: close(v) for k, v in value.items()}
    return pytest.approx(value, rel=1e-3, abs=3e-4) if isinstance(value, float) else value


class Killed(Exception):
    """The run's end, from inside."""


class Killer:
    """A progress display that ends the run after some steps."""

    def __init__(self, at: int) -> None:
        self.at = at

    def note(self, text: str) -> None: ...

    def step(self, name: str, step: int, values: dict[str, float], total: int) -> None:
        if step == self.at:
            raise Killed


@pretended  # a real one's kernels may add in another order each time
@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "every weight"])
def test_a_killed_run_goes_on_to_the_same_bits(lora: Any, world: Path, tmp_path: Path) -> None:
    """Weights and moments are saved as tensors of the CPU and loaded back to the device, the step's number of Adam too."""
    config = ppo_tiny.options(world, device="cuda", lora=lora, steps=3, save_every=1)
    with gpu():
        whole = ppo(config, tmp_path / "whole", seed=0)
        with pytest.raises(Killed):
            ppo(config, tmp_path / "killed", seed=0, progress=Killer(3))
        again = ppo(config, tmp_path / "killed", seed=0)
        assert again["weights_sha256"] == whole["weights_sha256"]


def test_adams_state_is_back_on_the_device() -> None:
    with gpu():
        one, other = (Learner({"w": torch.nn.Parameter(torch.ones(3, device="cuda"))}, lr=0.1, total=4) for _ in range(2))
        one.update([0], len, lambda _: one.params["w"].sum().cpu())
        saved = {group: {k: v.cpu() for k, v in named.items()} for group, named in one.tensors().items()}
        other.load(saved, one.state())
        for learner in (one, other):
            learner.update([0], len, lambda _, w=learner.params["w"]: (w * w).sum().cpu())  # type: ignore[misc]
            assert all(x.is_cuda for x in learner.adam.state[learner.params["w"]].values()) and learner.device.type == "cuda"
        assert one.params["w"].tolist() == other.params["w"].tolist()


# -- without a GPU -------------------------------------------------------------------------------------------------------
@pretended
@pytest.mark.parametrize("method", ["sft", "reward", "ppo", "grpo", "evaluate"])
def test_cuda_without_a_gpu_is_refused_before_anything_is_written(method: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{method}.device=cuda: PyTorch \S+ (is built without CUDA|finds no GPU).*; use device: cpu"):
        runs(world, device="cuda")[method](tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pretended
def test_a_recipe_is_refused_before_its_first_stage(world: Path, tmp_path: Path) -> None:
    stages = {"sft": {"data": str(world / "demos.jsonl"), "model": str(world / "base")}, "reward": {"data": str(world / "prefs.jsonl"), "device": "cuda"}}
    recipe = make_recipe({"name": "x", "stages": stages})
    with pytest.raises(ConfigError, match="stages.reward.device=cuda: "):
        run_recipe(recipe, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="device=cuda"):
        open_role(str(world / "base"), on="cuda")
    with pytest.raises(ConfigError, match="device=cuda"):
        open_backbone(str(world / "base"), Stage(device="cuda"))


def test_other_devices_and_plans_of_a_gpu_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device='mps'.*'cpu' or 'cuda'"):
        make_recipe({"name": "x", "stages": {"sft": {"data": "d", "device": "mps"}}})
    with pytest.raises(ConfigError, match="device='gpu'"):
        open_role(str(world / "base"), on="gpu")
    with pytest.raises(ConfigError, match=r"stages.sft.device=cuda: .* plan with --set sft.device=cpu"):
        plan(make_recipe({"name": "x", "stages": {"sft": {"data": "d", "device": "cuda"}}}), runs=tmp_path)


def test_a_run_may_not_go_on_elsewhere(world: Path, tmp_path: Path) -> None:
    """Another device rounds differently, so it is another recipe."""
    with Run.open(tmp_path / "run", fingerprint(SFT(data=str(world / "demos.jsonl"))), seed=0):
        pass
    with gpu(), pytest.raises(ConfigError, match="device: 'cpu' -> 'cuda'"), Run.open(tmp_path / "run", fingerprint(SFT(data=str(world / "demos.jsonl"), device="cuda")), seed=0):
        pass
