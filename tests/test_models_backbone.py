"""The lean forward equals transformers', packed equals padded, adapters are what LoRA says, and saved models come back bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from truing.config import Lora, Stage
from truing.errors import ConfigError, ModelError
from truing.models import llama
from truing.models.backbone import Backbone
from truing.models.heads import ScalarHead
from truing.models.load import load_model, save_model, tiny_model
from truing.models.pack import Pack
from truing.models.precision import fast_float32
from truing.models.roles import Role, merge_into, open_backbone, open_role, origin, policy_role, reference_role, save_role, wants_bfloat16

SEQUENCES = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18], [19]]
FAMILIES = {"llama": {}, "mistral": {"sliding_window": None}, "qwen2": {}, "qwen3": {"head_dim": 16}}


def small(kind: str = "llama", **options: object) -> nn.Module:
    return tiny_model(64, kind=kind, layers=3, hidden=32, heads=4, **{**FAMILIES.get(kind, {}), **options})


def gpt2() -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)).eval()


def moved(backbone: Backbone, seed: int = 1) -> object:
    """An adapter that is far from its start."""
    adapter = backbone.adapter(seed, "test")
    with torch.no_grad():
        for name, p in adapter.tensors().items():
            if name.endswith(".B"):
                p.copy_(torch.empty(p.shape).normal_(std=0.05, generator=torch.Generator().manual_seed(len(name))))
    return adapter


def test_pack_moves_between_its_two_layouts() -> None:
    pack = Pack(SEQUENCES)
    assert pack.shape == (4, 7) and pack.tokens == 15
    grid = pack.grid(pack.ids_N)
    for row, ids in zip(grid.tolist(), SEQUENCES, strict=True):
        assert row[: len(ids)] == ids
    assert torch.equal(pack.flat(grid), pack.ids_N)
    assert pack.ids_N[pack.last()].tolist() == [s[-1] for s in SEQUENCES]
    assert pack.ids_N[pack.spans([1, 0, 6, 0], [3, 1, 7, 0])].tolist() == [6, 7, 10, 18]
    assert pack.select([2, 0]).ids_N.tolist() == SEQUENCES[2] + SEQUENCES[0]
    with pytest.raises(ModelError, match="empty"):
        Pack([[1], []])


@pytest.mark.parametrize("kind", [*FAMILIES, "gpt2"])
@torch.no_grad()
def test_hidden_states_equal_transformers_one_sequence_at_a_time(kind: str) -> None:
    model = gpt2() if kind == "gpt2" else small(kind)
    backbone = Backbone(model, lora=Lora(rank=2))
    assert backbone.lean == (kind != "gpt2")
    ours = backbone.hidden(Pack(SEQUENCES)).split([len(s) for s in SEQUENCES])
    for ids, found in zip(SEQUENCES, ours, strict=True):
        theirs = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-4)


def test_a_forward_that_would_be_wrong_is_not_used() -> None:
    assert not llama.fits(small("mistral", sliding_window=4))
    assert llama.fits(small())
    broken = small()
    broken.base_model.layers[0].input_layernorm.forward = lambda x: x  # something the lean forward does not know of
    assert not llama.fits(broken)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_equal_merged_weights_and_train_alone(kind: str, tmp_path: Path) -> None:
    model = gpt2() if kind == "gpt2" else small(kind)
    backbone = Backbone(model, lora=Lora(rank=2, alpha=6.0, layers=2))
    pack = Pack(SEQUENCES)
    plain = backbone.hidden(pack).detach()
    torch.testing.assert_close(backbone.hidden(pack, backbone.adapter(0, "fresh")), plain, atol=0, rtol=0)
    adapter = moved(backbone)
    under = backbone.hidden(pack, adapter)
    assert (under - plain).abs().max() > 1e-3
    under.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.tensors().values())
    assert all(p.grad is None for p in model.parameters())
    touched = {path.split("layers.")[-1].split("h.")[-1].split(".")[0] for path in backbone.targets}
    assert touched == {"1", "2"}  # the top two of three

    save_role(Role(backbone, adapter), tmp_path, base="somewhere")
    merge_into(model, origin(str(tmp_path)))
    pack.trunk.clear()
    torch.testing.assert_close(backbone.hidden(pack), under, atol=1e-5, rtol=1e-5)


def test_the_frozen_trunk_is_computed_once_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone(small(), lora=Lora(rank=2, layers=1))
    calls: list[tuple[int, int]] = []
    real = llama.run_layers
    monkeypatch.setattr(llama, "run_layers", lambda *a: calls.append((a[3], a[4])) or real(*a))
    pack = Pack(SEQUENCES)
    whole = backbone.hidden(pack, moved(backbone))
    backbone.hidden(pack)
    part = backbone.hidden(pack.select([2, 1]), moved(backbone))
    assert calls.count((0, 2)) == 1 and calls.count((2, 3)) == 3
    torch.testing.assert_close(part[:7], whole[7:14], atol=1e-5, rtol=1e-5)


def test_a_model_left_alone_comes_back_bit_identical(tmp_path: Path) -> None:
    model = small().to(torch.bfloat16)
    save_model(model, None, tmp_path / "a")
    save_model(load_model(str(tmp_path / "a"), torch.bfloat16), None, tmp_path / "b")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_roles_save_and_load(tmp_path: Path) -> None:
    save_model(small(), None, tmp_path / "base")
    options = Stage(model=str(tmp_path / "base"), lora=Lora(rank=2, layers=2), dtype="float32")
    backbone, source = open_backbone(options.model, options)
    role = Role(backbone, moved(backbone), ScalarHead(backbone.width, seed=3, purpose="x"))
    expected = role.score(Pack(SEQUENCES)).detach()
    save_role(role, tmp_path / "rm", base=options.model)

    alone = open_role(str(tmp_path / "rm"), head=True)
    torch.testing.assert_close(alone.score(Pack(SEQUENCES)), expected, atol=1e-5, rtol=1e-5)
    shared = open_role(str(tmp_path / "rm"), head=True, share=backbone, share_base=source.base)
    assert shared.backbone is backbone and torch.equal(shared.score(Pack(SEQUENCES)), expected)

    # as the start of a policy it keeps its weights; the reference is equal to the last bit, frozen, and stays behind
    again, start = open_backbone(str(tmp_path / "rm"), options)
    policy = policy_role(again, start, seed=0, purpose="policy")
    reference = reference_role(policy, start, seed=0)
    pack = Pack(SEQUENCES)
    assert torch.equal(policy.hidden(pack), reference.hidden(pack)) and not reference.parameters()
    with torch.no_grad():
        next(iter(policy.parameters().values())).add_(1.0)
    assert not torch.equal(policy.hidden(pack), reference.hidden(pack))

    # another shape of adapter is refused (its base would not be the one that is saved), full fine-tuning merges it
    with pytest.raises(ConfigError, match="rank: 2.*rank: 3"):
        open_backbone(str(tmp_path / "rm"), options.model_copy(update={"lora": Lora(rank=3)}))
    full, full_source = open_backbone(str(tmp_path / "rm"), options.model_copy(update={"lora": None}))
    torch.testing.assert_close(full.hidden(Pack(SEQUENCES)), role.hidden(Pack(SEQUENCES)), atol=1e-5, rtol=1e-5)
    save_role(Role(full), tmp_path / "full", base=full_source.base)
    torch.testing.assert_close(open_role(str(tmp_path / "full")).hidden(Pack(SEQUENCES)), role.hidden(Pack(SEQUENCES)), atol=1e-5, rtol=1e-5)

    # a base that changed under its adapters is noticed
    with torch.no_grad():
        other = small()
        other.base_model.norm.weight.mul_(2)
    save_model(other, None, tmp_path / "base")
    with pytest.raises(ModelError, match="not the ones it was trained on"):
        open_role(str(tmp_path / "rm"), head=True)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    with pytest.raises(ModelError, match="after the head"):
        Backbone(tiny_model(64, kind="granite", hidden=32, logits_scaling=8.0), lora=Lora(rank=2))


def test_peft_reads_our_adapters(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed; the adapter files follow its layout")
    save_model(small(), None, tmp_path / "base")
    options = Stage(model=str(tmp_path / "base"), lora=Lora(rank=2, alpha=6.0, layers=2), dtype="float32")
    backbone, _ = open_backbone(options.model, options)
    role = Role(backbone, moved(backbone))
    save_role(role, tmp_path / "adapter", base=options.model)
    theirs = peft.PeftModel.from_pretrained(load_model(options.model), tmp_path / "adapter")
    with torch.no_grad():
        hidden = theirs.base_model.model.base_model(input_ids=torch.tensor([SEQUENCES[2]])).last_hidden_state[0]
    torch.testing.assert_close(role.hidden(Pack([SEQUENCES[2]])), hidden, atol=1e-5, rtol=1e-5)


def test_full_fine_tuning_keeps_one_frozen_reference(tmp_path: Path) -> None:
    backbone = Backbone(small(), lora=None)
    policy = Role(backbone)
    reference = reference_role(policy, origin("somewhere"), seed=0)
    assert not reference.parameters() and len(policy.parameters()) > 10
    with torch.no_grad():
        backbone.model.base_model.norm.weight.mul_(2)
    assert not torch.equal(policy.hidden(Pack(SEQUENCES)), reference.hidden(Pack(SEQUENCES)))


def test_frozen_layers_in_bfloat16_stay_close() -> None:
    exact, rounded = Backbone(small(), lora=Lora(layers=1)), Backbone(small(), lora=Lora(layers=1), dtype=torch.bfloat16)
    a, b = exact.hidden(Pack(SEQUENCES)), rounded.hidden(Pack(SEQUENCES))
    assert b.dtype == torch.float32 and 0 < (a - b).abs().max() < 0.1 * a.abs().max()
    assert wants_bfloat16(Stage(dtype="bfloat16", lora=None)) and not wants_bfloat16(Stage(lora=None))


def test_the_fast_float32_product_is_float32() -> None:
    fast_float32()
    a, b = (torch.randn(96, 96, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    exact = a.double() @ b.double()
    assert (a @ b - exact).abs().max() < 1e-4 < (a.bfloat16() @ b.bfloat16() - exact).abs().max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: load_model(str(p / "missing" / "model")), "no such folder"),
        (lambda p: load_model(str(p)), "config.json"),
        (lambda p: Backbone(small(), lora=Lora(layers=9)), "has 3 layers"),
        (lambda p: Backbone(small(), lora=Lora()).hidden(Pack([[1] * 300])), "context of 256"),
    ],
)
def test_bad_input_is_named(make, message, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=message):
        make(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save_model(small(), None, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*refused"):
        load_model(str(tmp_path))
