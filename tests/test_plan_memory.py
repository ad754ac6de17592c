"""Memory that is planned from options alone: against what real models hold, and against arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from truing.config import GRPO, PPO, SFT, Evaluate, Lora, Reward, Stage
from truing.errors import ModelError
from truing.methods import footprint
from truing.methods.actor import open_actor
from truing.methods.footprint import MIB, Load
from truing.methods.memory_of_ppo import counted
from truing.methods.roles_of_ppo import open_roles
from truing.models import memory
from truing.models.anatomy import Line, anatomy, likelihood_of, values_of
from truing.models.backbone import Backbone
from truing.models.heads import ScalarHead
from truing.models.load import save_model, tiny_model
from truing.models.pack import Pack
from truing.models.roles import Role, open_backbone, open_role, origin, policy_role, save_role

TABLES = 4096  # bytes of rotary tables and the like, which deep copies share or not
LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a reward model of each kind on it: `rm` an adapter of LORA's shape, `full` with weights of its own, `start` a saved policy."""
    path = tiny.folder(tmp_path_factory.mktemp("plan"), layers=LAYERS)
    for name, lora, scores in (("rm", LORA, True), ("full", None, True), ("start", LORA, False)):
        backbone, source = open_backbone(str(path / "base"), Stage(lora=lora, dtype="float32"))
        role = policy_role(backbone, source, seed=0, purpose=name)
        if scores:
            role.head = ScalarHead(backbone.width, seed=0, purpose=name)
        save_role(role, path / name, base=source.base, tokenizer=None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / "full" / name).write_bytes((path / "base" / name).read_bytes())
    return path


LORA = Lora(rank=4, layers=2)


def ppo(folder: Path, **options: Any) -> PPO:
    settings = {"model": str(folder / "base"), "prompts": "none", "reward": "cut_off()", "dtype": "float32", "lora": LORA, "batch_size": 8, "minibatches": 2, "max_new_tokens": 12}
    return PPO(**{**settings, **{k: str(folder / v[1:]) if isinstance(v, str) and v.startswith("@") else v for k, v in options.items()}})


# -- weights -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {}, {"lora": None}, {"value": "shared"}, {"lora": None, "value": "shared"}, {"lora": None, "reference": "offloaded"}, {"model": "@start"}, {"model": "@start", "lora": None},
        {"reward": "@rm"}, {"reward": "@full"}, {"reward": "@rm", "lora": None}, {"reward": "@full", "lora": None}, {"monitors": {"a": "cut_off()"}}, {"value_model": "@base"},
        {"value_model": "@rm"}, {"value_model": "@full"}, {"value_model": "@base", "lora": None}, {"value_model": "@full", "lora": None},
    ],
    ids=str,
)  # fmt: skip
def test_the_models_of_ppo_hold_what_was_added_up(folder: Path, options: dict[str, Any]) -> None:
    config = ppo(folder, **options)
    planned, held = footprint.weights(config).items, counted(open_roles(config, 0))
    assert set(planned) == set(held)
    for name in held:
        assert abs(planned[name] - held[name]) < TABLES, (name, planned[name], held[name])


@pytest.mark.parametrize("options", [{}, {"lora": None}, {"kl": {"coef": 0.1}}, {"lora": None, "kl": {"coef": 0.1}}, {"model": "start", "kl": {"coef": 0.1}}], ids=str)
def test_the_models_of_grpo_hold_what_was_added_up(folder: Path, options: dict[str, Any]) -> None:
    start = folder / options.get("model", "base")
    config = GRPO(**{"prompts": "none", "reward": "cut_off()", "dtype": "float32", "lora": LORA, **options, "model": str(start)})
    planned = footprint.weights(config)
    actor = open_actor(config, 0, None, reference=config.kl.coef > 0)
    assert abs(sum(memory.storages(actor).values()) - sum(planned.items.values())) < 2 * TABLES
    assert planned.trained == sum(p.numel() * 4 for p in actor.parameters().values())


@pytest.mark.parametrize("lora", [None, LORA, Lora(rank=2)])
def test_the_models_of_sft_and_reward_hold_what_was_added_up(folder: Path, lora: Lora | None) -> None:
    for config in (SFT(model=str(folder / "base"), data="none", lora=lora, dtype="float32"), Reward(model=str(folder / "base"), data="none", lora=lora, dtype="float32")):
        backbone, source = open_backbone(config.model, config)
        role = policy_role(backbone, source, seed=0, purpose="x")
        if isinstance(config, Reward):
            role.head = ScalarHead(backbone.width, seed=0, purpose="x")
        planned = footprint.weights(config)
        assert planned.trained == sum(p.numel() * 4 for p in role.parameters().values())
        assert abs(sum(planned.items.values()) - sum(memory.storages(role).values())) < TABLES


@pytest.mark.parametrize(("before", "after"), [("base", "full"), ("start", "start"), ("start", "base"), ("base", "start")])
def test_two_models_that_share_a_backbone_are_counted_once(folder: Path, before: str, after: str) -> None:
    config = Evaluate(before=str(folder / before), after=str(folder / after), prompts="none", scores={"proxy": str(folder / "rm")})
    one = open_role(config.before)
    base = origin(config.before).base
    two = open_role(config.after, share=one.backbone, share_base=base)
    judge = open_role(config.scores["proxy"], share=one.backbone, share_base=base, head=True)
    held, planned = sum(memory.storages(one, two, judge).values()), sum(footprint.weights(config).items.values())
    assert abs(held - planned) < 3 * TABLES


@pytest.mark.parametrize(("kind", "lora"), [("llama", None), ("llama", Lora(rank=2)), ("qwen2", Lora(rank=2, layers=3)), ("gpt2", None), ("gpt2", Lora(rank=2))])
def test_two_layers_say_what_five_hold_and_remember(tmp_path: Path, kind: str, lora: Lora | None) -> None:
    """The small models go through the same code as the large: weights, adapters and activations are linear in layers."""
    model = tiny_model(300, layers=5, hidden=32, kind=kind)
    save_model(model, None, tmp_path / "m")
    found = anatomy(str(tmp_path / "m"), lora, torch.float32)
    backbone = Backbone(model, lora=lora)
    role = Role(backbone, backbone.adapter(0, "x") if lora else None, ScalarHead(32, seed=0, purpose="x"))
    assert found.lean == backbone.lean and found.adapted == 5 - backbone.depth
    assert found.elements == sum(p.numel() for p in model.parameters())
    assert abs(found.weights - sum(memory.storages(model).values())) < TABLES
    assert found.adapter == (sum(p.numel() * 4 for p in role.adapter.parameters()) if role.adapter else 0)
    assert found.largest == 4 * max(p.numel() for p in model.parameters())
    pack = Pack([[3 + t for t in range(20)]] * 4)
    positions = pack.spans([9] * 4, [19] * 4)
    backbone.prepare(pack, 1000)
    known = memory.storages(role, pack.trunk)
    for graph in (likelihood_of, values_of):
        true = memory.kept(lambda graph=graph: graph(role, pack, positions), known)  # type: ignore[misc]
        true -= 4 * len(positions) * 300 if lora is None and graph is likelihood_of else 0  # a trained head keeps its chunk of logits, which the plan counts apart
        planned = found.kept(graph, [20] * 4, 0.5)
        assert true > 20_000 and abs(planned / true - 1) < 0.05, (graph, planned, true)


# -- arithmetic ------------------------------------------------------------------------------------------------------------
def planned(config: Any, prompts: list[int] | None = None) -> dict[str, float]:
    return footprint.plan(config, footprint.of_rollouts(config, prompts or [20] * 5), 0.0).items


def test_peaks_move_with_the_settings_as_arithmetic_says(folder: Path) -> None:
    plain = planned(ppo(folder))
    # 8 rows x (20 + 12) tokens x 3 layers x keys and values of 2 heads x 12 numbers x 4 bytes
    assert plain["key/value cache"] == 8 * 32 * 3 * 2 * 2 * 12 * 4
    assert planned(ppo(folder, batch_size=16))["key/value cache"] == 2 * plain["key/value cache"]
    assert planned(ppo(folder, max_new_tokens=44))["key/value cache"] == 2 * plain["key/value cache"]  # 20 + 44 = 2 x 32
    assert planned(ppo(folder, batch_size=1024, minibatches=128))["key/value cache"] == 256 / 8 * plain["key/value cache"]  # 256 at once
    one = planned(ppo(folder, lora=Lora(rank=4, layers=1)))
    head = 4 * 49
    assert one["trained weights"] - head == (plain["trained weights"] - head) / 2 and one["Adam moments"] == 2 * one["trained weights"]
    assert one["activations"] < 0.6 * plain["activations"]
    wide = planned(ppo(folder, lora=Lora(rank=8, layers=2)))
    assert wide["trained weights"] - head == 2 * (plain["trained weights"] - head)
    full = planned(ppo(folder, lora=None))
    assert full["gradients"] == full["trained weights"] and full["Adam moments"] == 2 * full["trained weights"] and "gradient being added" in full
    # a micro-batch of four sequences of 32 tokens, or of two
    half = planned(ppo(folder, micro_tokens=64))
    assert half["activations"] == pytest.approx(plain["activations"] / 2, rel=0.1)
    assert planned(ppo(folder, value="shared"))["trained weights"] == (plain["trained weights"] - head) / 2 + head
    assert "offloaded reference" in planned(ppo(folder, lora=None, reference="offloaded"))


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer_whole(folder: Path) -> None:
    if "checkpointing" not in Stage.model_fields:
        pytest.skip("no such setting")
    whole, inputs = (planned(ppo(folder, lora=Lora(rank=4), checkpointing=on))["activations"] for on in (False, True))
    # at most: an input of 48 float32 numbers a token and layer, a layer whole, and what is around the layers
    assert inputs < 0.75 * whole
    tokens, adapted = 4 * 32, LAYERS
    layer = anatomy(str(folder / "base"), Lora(rank=4), torch.float32).kept(likelihood_of, [32] * 4, 12 / 32) / adapted
    assert inputs > tokens * 48 * 4 * adapted
    assert inputs < tokens * 48 * 4 * adapted + 2.2 * layer


def test_bfloat16_halves_what_is_frozen_and_what_is_remembered(folder: Path) -> None:
    exact, half = (planned(ppo(folder, dtype=d)) for d in ("float32", "bfloat16"))
    vocabulary = anatomy(str(folder / "base"), LORA, torch.float32).vocabulary
    outside = 4 * (vocabulary * 48 + 48)  # embedding and last normalisation stay float32
    assert half["frozen weights"] - outside == pytest.approx((exact["frozen weights"] - outside) / 2, rel=0.01)
    assert half["key/value cache"] == exact["key/value cache"] / 2 and half["trunk cache"] == exact["trunk cache"] / 2
    assert half["trained weights"] == exact["trained weights"] and half["activations"] < 0.8 * exact["activations"]


def test_a_phase_holds_what_belongs_to_it(folder: Path) -> None:
    config = ppo(folder, lora=None, reward=str(folder / "full"))
    made = footprint.plan(config, footprint.of_rollouts(config, [20]), 100.0 * MIB)
    assert set(made.phases) == {"load", "generate", "look", "update"}
    assert "activations" not in made.phases["look"] and "key/value cache" not in made.phases["update"] and "gradients" not in made.phases["generate"]
    assert made.peak == max(sum(p.values()) for p in made.phases.values()) / MIB
    assert made.peak == sum(made.phases[made.highest_phase].values()) / MIB
    assert replace(made, so_far=9e12).peak == 9e12 / MIB
    sft = footprint.plan(SFT(model=str(folder / "base"), data="none", eval_share=0.0), Load([32] * 4, 0.5), 0.0)
    assert set(sft.phases) == {"load", "update"}
    reward = footprint.plan(Reward(model=str(folder / "base"), data="none"), Load([32] * 4, 0.01), 0.0)
    assert set(reward.phases) == {"load", "update", "held out"} and not reward.items["log-probabilities"]


def test_groups_read_a_prompt_once(folder: Path) -> None:
    config = GRPO(model=str(folder / "base"), prompts="none", dtype="float32", batch_size=16, group=8, max_new_tokens=12)
    load = footprint.of_rollouts(config, [20] * 4)
    assert (load.prompts, load.rows, load.prompt, load.new) == (2, 16, 20, 12)
    longer = footprint.of_rollouts(config.model_copy(update={"environment": "calculator", "max_turns": 3, "max_length": 90}), [20] * 4)
    assert sum(longer.part) / len(longer.part) == 90  # 20 + 3 x 12 + 2 x 20 = 96, cut at max_length


def test_a_line_through_two_counts() -> None:
    assert Line.through(70.0, 100.0).of(10) == 340.0


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        footprint.weights(SFT(model=str(tmp_path / "gone"), data="none"))
