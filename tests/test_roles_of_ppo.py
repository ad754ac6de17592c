"""PPO's four models under the recipe's settings: what each is made of, that they agree with transformers, and that shared work is done once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from truing.config import PPO, Lora, Stage
from truing.demo.tiny import write_tiny_model
from truing.errors import ModelError
from truing.methods.roles_of_ppo import Roles, open_roles
from truing.models import llama
from truing.models.backbone import Backbone
from truing.models.heads import ScalarHead
from truing.models.load import load_model, load_tokenizer
from truing.models.pack import Pack
from truing.models.roles import Role, open_backbone, open_role, policy_role, save_role

SEQUENCES = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18], [19, 20]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("roles"), layers=4)


def config(folder: Path, **options: Any) -> PPO:
    settings = {"model": str(folder / "base"), "prompts": "unused", "reward": "tiny:good", "dtype": "float32", "lora": Lora(rank=2, layers=2), **options}
    return PPO(**settings)


def classifier(folder: Path, to: Path, labels: int = 1) -> Any:
    """A transformers classifier with the base's shape and tokenizer, saved and loaded by transformers alone."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder / "base", num_labels=labels, pad_token_id=0, tie_word_embeddings=False))
    model.save_pretrained(to)
    load_tokenizer(str(folder / "base")).save_pretrained(to)
    return model.eval()


def reward_model(folder: Path, to: Path, lora: Lora | None) -> Role:
    options = Stage(model=str(folder / "base"), lora=lora, dtype="float32")
    backbone, source = open_backbone(options.model, options)
    role = policy_role(backbone, source, seed=5, purpose="reward")
    role.head = ScalarHead(backbone.width, seed=5, purpose="reward")
    with torch.no_grad():
        role.head.bias.fill_(0.25)
        for p in role.parameters().values():
            p.add_(0.01)
    save_role(role, to, base=source.base, tokenizer=load_tokenizer(source.base))
    return role


# -- the value model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [Lora(rank=2, layers=2), None])
@torch.no_grad()
def test_a_classifier_serves_as_value_model_token_by_token(folder: Path, tmp_path: Path, lora: Lora | None) -> None:
    theirs = classifier(folder, tmp_path / "rm")
    roles = open_roles(config(folder, value_model=str(tmp_path / "rm"), lora=lora), 0)
    assert roles.value.backbone is not roles.policy.backbone
    pack = Pack(SEQUENCES)
    ours = roles.value.values(pack, torch.arange(pack.tokens))
    hidden = torch.cat([theirs.base_model(input_ids=torch.tensor([s])).last_hidden_state[0] for s in SEQUENCES])
    torch.testing.assert_close(ours, theirs.score(hidden)[:, 0], atol=1e-5, rtol=1e-5)
    trained = [name for name in roles.parameters() if name.startswith("value.")]
    assert trained and all(("adapter" in n or "head" in n) if lora else "lm_head" not in n for n in trained)


@torch.no_grad()
def test_a_classifier_scores_as_transformers_says(folder: Path, tmp_path: Path) -> None:
    theirs = classifier(folder, tmp_path / "rm")
    ours = open_role(str(tmp_path / "rm"), head=True).score(Pack(SEQUENCES))
    expected = [float(theirs(input_ids=torch.tensor([s])).logits[0, 0]) for s in SEQUENCES]
    torch.testing.assert_close(ours, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [Lora(rank=2, layers=2), None])
@torch.no_grad()
def test_a_reward_model_serves_as_value_model_with_its_head(folder: Path, tmp_path: Path, lora: Lora | None) -> None:
    reward = reward_model(folder, tmp_path / "rm", lora)
    roles = open_roles(config(folder, value_model=str(tmp_path / "rm"), lora=lora), 0)
    pack = Pack(SEQUENCES)
    torch.testing.assert_close(roles.value.values(pack, torch.arange(pack.tokens)), reward.values(Pack(SEQUENCES), torch.arange(pack.tokens)), atol=1e-6, rtol=1e-6)
    assert (roles.value.backbone is roles.policy.backbone) == (lora is not None)  # one base: its frozen weights are there once
    assert not {id(p) for p in roles.policy.parameters().values()} & {id(p) for p in roles.value.parameters().values()}


@torch.no_grad()
def test_a_model_of_another_size_serves_as_value_model(folder: Path, tmp_path: Path) -> None:
    from truing.models.load import save_model, tiny_model

    tokenizer = load_tokenizer(str(folder / "base"))
    save_model(tiny_model(len(tokenizer), seed=9, layers=3, hidden=32), tokenizer, tmp_path / "small")
    roles = open_roles(config(folder, value_model=str(tmp_path / "small")), 0)
    assert roles.value.backbone.width == 32 and roles.policy.backbone.width == 48 and roles.value.backbone.depth == 1
    positions = torch.tensor([0, 3, 7])
    expected = load_model(str(tmp_path / "small")).base_model(input_ids=torch.tensor([SEQUENCES[0]])).last_hidden_state[0, [0, 3]]
    found = roles.value.values(Pack(SEQUENCES), positions)
    torch.testing.assert_close(found[:2], expected @ roles.value.head.weight, atol=1e-5, rtol=1e-5)  # a fresh head has bias 0
    assert len(found) == 3 and all(n.startswith(("policy.", "value.")) for n in roles.parameters())


def test_a_value_model_must_read_the_same_tokens(folder: Path, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "other", ["quite other words", "zebra"], seed=0, vocab_size=300, hidden=32, layers=3)
    with pytest.raises(ModelError, match="a value per token needs the same tokenizer"):
        open_roles(config(folder, value_model=str(tmp_path / "other")), 0)
    classifier(folder, tmp_path / "three", labels=3)
    with pytest.raises(ModelError, match="gives 3 numbers"):
        open_roles(config(folder, value_model=str(tmp_path / "three")), 0)
    with pytest.raises(ModelError, match="no score head"):
        open_role(str(folder / "base"), head=True)


def test_a_file_without_a_language_model_head_is_no_policy(folder: Path, tmp_path: Path) -> None:
    classifier(folder, tmp_path / "rm")  # transformers would fill the head with random numbers and say nothing
    with pytest.raises(ModelError, match=r"lacks 1 of the weights.*lm_head\.weight"):
        open_roles(config(folder, model=str(tmp_path / "rm")), 0)


# -- the reference -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_offloaded_reference_gives_the_bits_of_a_resident_one(folder: Path, tmp_path: Path) -> None:
    found = []
    for where in ("resident", "offloaded"):
        roles = open_roles(config(folder, lora=None, reference=where), 0, tmp_path)
        for p in roles.parameters().values():
            p.add_(0.5)
        with roles.reading_reference():
            found.append(roles.reference.hidden(Pack(SEQUENCES)))
    assert torch.equal(*found)
    assert not roles.reference.parameters()


# -- the trunk -----------------------------------------------------------------------------------------------------------


def every_use(roles: Roles, pack: Pack, epochs: int = 3) -> None:
    """What a rollout asks of the roles: each of them looks, then policy and value learn in minibatches, epoch after epoch."""
    with torch.no_grad():
        for role in (roles.policy, roles.reference, roles.value):
            role.hidden(pack)
    for _ in range(epochs):
        for rows in ([3, 0], [1, 2]):
            part = pack.select(rows)
            (roles.policy.hidden(part).sum() + roles.value.values(part, part.last()).sum()).backward()


@pytest.mark.parametrize("own_value", [False, True])
@pytest.mark.parametrize("micro_tokens", [1, 7, 1000])
def test_frozen_layers_see_each_sequence_once_whatever_the_roles_and_epochs(folder: Path, tmp_path: Path, micro_tokens: int, own_value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if own_value:
        classifier(folder, tmp_path / "rm")
    roles = open_roles(config(folder, value_model=str(tmp_path / "rm") if own_value else None), 0)
    seen: dict[int, list[tuple[int, ...]]] = {}
    real = llama.run_layers

    def counted(model: Any, x: Any, pack: Pack, first: int, last: int, adapter: Any, *rest: Any) -> Any:
        if first < 2:
            seen.setdefault(id(model), []).extend(tuple(s.tolist()) for s in pack.ids_N.split(pack.lengths))
            assert (first, last, adapter) == (0, 2, None) and (len(pack) == 1 or pack.tokens <= micro_tokens)
        return real(model, x, pack, first, last, adapter, *rest)

    monkeypatch.setattr(llama, "run_layers", counted)
    pack = Pack(SEQUENCES)
    roles.prepare(pack, micro_tokens)
    every_use(roles, pack)
    roles.prepare(pack, micro_tokens)
    assert list(seen.values()) == [[tuple(s) for s in SEQUENCES]] * (2 if own_value else 1)

    # Without it, parts of a rollout that no role saw whole compute their trunk again and again.
    seen.clear()
    if micro_tokens > 100:
        every_use(roles, Pack(SEQUENCES).select([0, 1, 2, 3]))
        assert sum(map(len, seen.values())) == 4 * (2 if own_value else 1)
        for _ in range(3):
            roles.policy.hidden(Pack(SEQUENCES))
        assert len(seen[id(roles.policy.backbone.model)]) == 4 + 12


@torch.no_grad()
def test_a_prepared_trunk_changes_nothing(folder: Path) -> None:
    roles = open_roles(config(folder), 0)
    for p in roles.policy.parameters().values():
        p.add_(0.05)
    pack = Pack(SEQUENCES)
    roles.prepare(pack, 7)
    for rows in ([0, 1, 2, 3], [2, 0], [3]):
        plain = Pack([SEQUENCES[r] for r in rows])
        torch.testing.assert_close(roles.policy.hidden(pack.select(rows)), roles.policy.hidden(plain), atol=1e-5, rtol=1e-5)
        assert pack.select(rows).trunk.keys() == {roles.policy.backbone}


def test_nothing_is_prepared_where_every_layer_is_trained(folder: Path) -> None:
    for lora in (Lora(rank=2), None):
        roles = open_roles(config(folder, lora=lora), 0)
        pack = Pack(SEQUENCES)
        roles.prepare(pack, 7)
        assert pack.trunk == {} and isinstance(roles.policy.backbone, Backbone)


def test_packs_are_cut_in_order_within_the_budget() -> None:
    pack = Pack([[1] * n for n in (3, 4, 9, 1)])
    assert [list(rows) for rows in pack.cut(8)] == [[0, 1], [2], [3]]
    assert [list(rows) for rows in pack.cut(1)] == [[0], [1], [2], [3]] and [list(rows) for rows in pack.cut(100)] == [[0, 1, 2, 3]]
