"""Sequence classifiers of other libraries as reward models, beside transformers' own numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

import tiny
from truing import rewards as r
from truing.errors import ConfigError, ModelError
from truing.models.load import load_tokenizer
from truing.models.pack import Pack
from truing.rewards.scorers import Classifier, Completions, find_scorer

KINDS: dict[str, dict[str, Any]] = {"bert": {}, "gpt2": {}, "llama": {"num_key_value_heads": 1}, "roberta": {}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("policy")) / "base"


def save_classifier(folder: Path, kind: str, tokenizer: Any, *, labels: int = 1, **options: Any) -> Any:
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64, num_labels=labels,
        initializer_range=0.5, pad_token_id=options.pop("pad_token_id", tokenizer.pad_token_id), **KINDS[kind], **options,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def batch_of(tokenizer: Any, texts: list[str], finished: list[bool]) -> Completions:
    prompt = tokenizer("Say a word.").input_ids
    ids = [tokenizer(t).input_ids + [tokenizer.eos_token_id] * done for t, done in zip(texts, finished, strict=True)]
    return Completions(["Say a word."] * len(texts), texts, Pack([prompt + i for i in ids]), [len(prompt)] * len(texts), finished)


@torch.no_grad()
def alone(model: Any, ids: list[int], **more: list[int]) -> float:
    """transformers on one sequence without any padding."""
    model.config.pad_token_id = None
    return float(model(input_ids=torch.tensor([ids]), **{k: torch.tensor([v]) for k, v in more.items()}).logits.item())


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_policy_s_tokenizer_it_reads_the_sampled_tokens(kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The padding id is the end-of-turn id here, as in many tokenizers: a decoder that looks for the last token that is no
    padding would then read one token too early."""
    tokenizer = load_tokenizer(str(base))
    model = save_classifier(tmp_path, kind, tokenizer, pad_token_id=tokenizer.eos_token_id)
    batch = batch_of(tokenizer, ["sun", "joy and gold and song", "mud and", "rust and ash"], [True, True, False, True])
    with caplog.at_level(logging.WARNING):
        scorer = find_scorer(str(tmp_path), tokenizer=tokenizer)
    assert isinstance(scorer, Classifier) and scorer.retokenise is None and "tokenised again" not in caplog.text
    flat, ids = batch.pack.ids_N.tolist(), []
    for start, n in zip(batch.pack.starts, batch.pack.lengths, strict=True):
        ids.append(flat[start : start + n])
    wanted = [alone(model, i) for i in ids]
    if kind in ("gpt2", "llama"):  # the naive way is wrong by more than any tolerance here
        model.config.pad_token_id = tokenizer.eos_token_id
        with torch.no_grad():
            naive = float(model(input_ids=torch.tensor([ids[0]])).logits.item())
        assert abs(naive - wanted[0]) > 1e-2
    assert [s.value for s in scorer(batch)] == pytest.approx(wanted, abs=1e-4)
    # whatever a sequence ends with, it is its end: here the first ids there are
    odd = [[9, 8, n] for n in range(4)] + [[9, 8, 7, 6, 5]]
    ends = Completions(["p"] * 5, ["t"] * 5, Pack(odd), [1] * 5, [True] * 5)
    assert [s.value for s in scorer(ends)] == pytest.approx([alone(model, i) for i in odd], abs=1e-4)
    monkeypatch.setattr("truing.rewards.classifier.PART", 1)
    assert [s.value for s in scorer(batch)] == pytest.approx(wanted, abs=1e-4)
    assert not any(p.requires_grad for p in scorer.model.parameters()) and not scorer.model.training


def bert_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "say", "a", "word", ".", "sun", "and", "joy", "[", "]", "sep"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def test_bert_reads_a_pair_of_texts(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = load_tokenizer(str(base))
    model = save_classifier(tmp_path, "bert", bert_tokenizer())
    batch = batch_of(policy, ["sun and joy", "joy", "a [SEP] sun"], [True] * 3)
    batch.prompts[:] = ["say a word ."] * 3
    with caplog.at_level(logging.WARNING):
        scorer = find_scorer(str(tmp_path), tokenizer=policy, share_base=str(base))
        found = scorer(batch)
        scorer(batch)
    assert len([m for m in caplog.records if "tokenised again" in m.message]) == 1 and str(tmp_path) in caplog.text and str(base) in caplog.text
    # by hand: [CLS] say a word . [SEP] sun and joy [SEP], the second text marked by 1
    wanted = alone(model, [2, 4, 5, 6, 7, 3, 8, 9, 10, 3], token_type_ids=[0] * 6 + [1] * 4)
    assert found[0].value == pytest.approx(wanted, abs=1e-5)
    assert abs(alone(model, [2, 4, 5, 6, 7, 3, 8, 9, 10, 3]) - wanted) > 1e-2  # without the marks it is another number
    assert found[1].value == pytest.approx(alone(model, [2, 4, 5, 6, 7, 3, 10, 3], token_type_ids=[0] * 6 + [1] * 2), abs=1e-5)
    # "[SEP]" in a text is text: the unknown word it spells, not the token that ends the first text
    assert scorer.retokenise(batch)[2].ids.count(3) == 2  # type: ignore[attr-defined, misc]


def test_a_chat_template_is_used_where_there_is_one(base: Path, tmp_path: Path) -> None:
    from truing.demo.tiny import write_tiny_model

    write_tiny_model(tmp_path / "t", ["other words give other merges " * 4], seed=3, vocab_size=300, layers=1, hidden=32)
    other, policy = load_tokenizer(str(tmp_path / "t")), load_tokenizer(str(base))
    model = save_classifier(tmp_path / "c", "llama", other)
    batch = batch_of(policy, ["sun and joy", "mud"], [True, False])
    found = find_scorer(r.learned(tmp_path / "c") - 0.5 * r.cut_off(), tokenizer=policy)(batch)
    text = "<|im_start|>user\nSay a word.<|im_end|>\n<|im_start|>assistant\n"
    ids = [other(text + "sun and joy<|im_end|>", add_special_tokens=False).input_ids, other(text + "mud", add_special_tokens=False).input_ids]
    assert [s.parts["c"] for s in found] == pytest.approx([alone(model, i) for i in ids], abs=1e-4)
    assert found[1].value == pytest.approx(found[1].parts["c"] - 0.5)
    # nothing is known of the policy's tokens: the text is read, which is right for any
    assert [s.value for s in find_scorer(str(tmp_path / "c"))(batch)] == pytest.approx([s.parts["c"] for s in found], abs=1e-5)


def test_what_is_no_reward_model_is_refused(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    save_classifier(tmp_path / "two", "bert", tokenizer, labels=2)
    with pytest.raises(ModelError, match="classifier of 2 classes; a reward is one number.*num_labels=1"):
        find_scorer(str(tmp_path / "two"), tokenizer=tokenizer)
    save_classifier(tmp_path / "one", "bert", tokenizer)
    with pytest.raises(ConfigError, match="scores.at: tokens needs a reward model that Truing trained"):
        find_scorer(str(tmp_path / "one"), tokenizer=tokenizer, at="tokens")
    scorer = find_scorer(str(tmp_path / "one"), tokenizer=tokenizer)
    with pytest.raises(ModelError, match="context of 64; lower max_length"):
        scorer(batch_of(tokenizer, ["sun and joy " * 40], [True]))
    weights = tmp_path / "one" / "model.safetensors"
    weights.rename(tmp_path / "one" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        find_scorer(str(tmp_path / "one"), tokenizer=tokenizer)
    with pytest.raises(ModelError, match="no such folder"):
        find_scorer("./nowhere/at/all")
    with pytest.raises(ModelError, match="head|score"):  # a language model
        find_scorer(str(base), tokenizer=tokenizer)
