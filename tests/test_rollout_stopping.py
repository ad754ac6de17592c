"""What ends a completion: stop tokens, and stop strings that lie across tokens, inside tokens and inside characters."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch

from data_tokenizers import TEXTS, tiny
from test_models_backbone import gpt2, moved, small
from truing.config import Lora, Sampling
from truing.errors import ConfigError
from truing.models.backbone import Backbone
from truing.models.load import load_tokenizer
from truing.models.roles import Role
from truing.rollout.sampler import sample
from truing.rollout.stopping import Stops, plain_text

KINDS = ["bytes", "spaces", "smollm2"]


@cache
def tokenizer(kind: str) -> Any:
    return load_tokenizer("smollm2-135m") if kind == "smollm2" else tiny(None, spaces=kind == "spaces")


def ended(stops: Stops, ids: list[int], row: int = 0) -> int | None:
    """After how many of these tokens the completion is over."""
    for n, token in enumerate(ids, 1):
        if stops.stopped(torch.tensor([row]), torch.tensor([token])).item():
            return n
    return None


def whole(tok: Any, ids: list[int]) -> str:
    """What a completion says after other text, all of it decoded at once: the oracle."""
    before = tok.encode("a", add_special_tokens=False)
    return str(tok.decode(before + ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))[1:]


def first(tok: Any, ids: list[int], texts: tuple[str, ...]) -> int | None:
    return next((n for n in range(1, len(ids) + 1) if any(t in whole(tok, ids[:n]) for t in texts)), None)


# -- one text at a time ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["bytes", "smollm2"])
@pytest.mark.parametrize(
    ("text", "stop", "said"),
    [
        ("the film was a joy to watch", "joy", "the film was a joy"),
        ("the film was a joy to watch", "y to w", None),  # begins and ends inside words
        ("one\n\ntwo", "\n\n", "one\n\n"),
        ("a€b 日本語", "日本", "a€b 日本"),
        ("good 👩‍👩‍👧 day", "👩‍👩‍👧", "good 👩‍👩‍👧"),  # five characters, 18 bytes
        ("thought<|im_end|>more", "<|im_end|>", "thought<|im_end|>"),  # one special token
        ("thought<|im_end|>more", "im_e", "thought<|im_end|>"),  # inside a special token
        ("nothing of the kind", "joy", ""),
        ("joy", "joy to", ""),
    ],
)  # fmt: skip
def test_a_completion_ends_with_the_token_that_completes_the_text(kind: str, text: str, stop: str, said: str | None) -> None:
    tok = tokenizer(kind)
    ids = tok.encode(text, add_special_tokens=False)
    n = ended(Stops([], [stop], plain_text(tok)), ids)
    assert n == first(tok, ids, (stop,))
    if said is not None:
        assert (n is None and said == "") or tok.decode(ids[:n]) == said
    else:
        assert n is not None and stop in tok.decode(ids[:n]) and stop not in tok.decode(ids[: n - 1])


def test_a_blank_before_the_first_word_counts() -> None:
    """A SentencePiece-like tokenizer drops it when it decodes a text's first token; what was said was the blank and the word."""
    tok = tokenizer("spaces")
    ids = tok.encode("world how world", add_special_tokens=False)
    assert tok.decode(ids).startswith("world")  # the blank is gone
    assert ended(Stops([], [" wor"], plain_text(tok)), ids) == first(tok, ids, (" wor",)) == 1
    assert ended(Stops([], ["how wor"], plain_text(tok)), ids) == first(tok, ids, ("how wor",))


def test_a_character_of_several_tokens() -> None:
    tok = tokenizer("bytes")
    ids = tok.encode("日本", add_special_tokens=False)
    assert len(ids) == 6  # a token a byte
    assert ended(Stops([], ["本"], plain_text(tok)), ids) == 6
    assert ended(Stops([], ["日本"], plain_text(tok)), [300, *ids[:3], 300, *ids]) == 11  # the first 日 is followed by something else
    short = Stops([], ["日本"], plain_text(tok))
    short._tokens = len("日本") + 1  # a tail as long as the text has characters
    assert ended(short, ids) is None


# -- every prefix of anything that can be sampled --------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_is_what_a_search_of_the_whole_text_finds(kind: str) -> None:
    tok, dice = tokenizer(kind), random.Random(0)
    plain = [tok.encode(text, add_special_tokens=False) for text in [*TEXTS[:5], "a  b\n\n c", "日本語 …", "é👩‍👩‍👧"]]
    ended_by_text = 0
    for _ in range(250):
        ids: list[int] = []
        while len(ids) < 25:
            some = dice.choice(plain)
            ids += dice.choice([some, [dice.randrange(len(tok))], some[dice.randrange(len(some)) :]])
        text = whole(tok, ids)
        cuts = [(i := dice.randrange(len(text)), i + dice.randint(1, 6)) for _ in range(dice.randint(1, 3))]
        texts = tuple(t for a, b in cuts if "\ufffd" not in (t := text[a:b]))
        if texts:
            wanted = first(tok, ids, texts)
            assert ended(Stops([], texts, plain_text(tok)), ids) == wanted, (ids, texts)
            ended_by_text += wanted is not None
    assert ended_by_text > 150


def test_rows_do_not_see_each_other() -> None:
    tok = tokenizer("bytes")
    texts = ["a joy to watch", "the film", "you are joy", "a word\n"]
    rows = [tok.encode(t, add_special_tokens=False) for t in texts]
    stops = Stops([], ["joy", "film"], plain_text(tok))
    over: dict[int, int] = {}
    for t in range(max(map(len, rows))):
        active = [r for r in (3, 1, 0, 2) if t < len(rows[r]) and r not in over]
        found = stops.stopped(torch.tensor(active, dtype=torch.long), torch.tensor([rows[r][t] for r in active], dtype=torch.long))
        over |= {r: t + 1 for r, done in zip(active, found.tolist(), strict=True) if done}
    assert over == {r: n for r in range(4) if (n := first(tok, rows[r], ("joy", "film"))) is not None} and set(over) == {0, 1, 2}


# -- what it costs ---------------------------------------------------------------------------------------------------------
def test_without_texts_nothing_is_decoded() -> None:
    def decode(rows: list[list[int]]) -> list[str]:
        raise AssertionError("decoded")

    for given in (None, decode):
        found = Stops([2, 7], (), given).stopped(torch.arange(4), torch.tensor([1, 2, 7, 3]))
        assert found.dtype == torch.bool and found.tolist() == [False, True, True, False]
    assert Stops([]).stopped(torch.arange(2), torch.tensor([1, 2])).tolist() == [False, False]


def test_only_a_token_that_can_end_a_text_is_looked_behind() -> None:
    tok = tokenizer("smollm2")
    asked: list[int] = []
    plain = plain_text(tok)

    def decode(rows: list[list[int]]) -> list[str]:
        asked.append(len(rows))
        return plain(rows)

    ids = tok.encode("the film was what it was, and it was that again and again; never mind.\n\nEnd", add_special_tokens=False)
    stops = Stops([], ["\n\n"], decode)
    assert ended(stops, ids) == len(ids) - 1
    # what a token says is asked once, and a tail for each of the two line ends; each is decoded beside its own first token
    assert sum(asked) == 2 * len(set(ids[:-1])) + 2 * 2
    assert not stops._tails  # nothing is kept of a row that is over


# -- bad input -------------------------------------------------------------------------------------------------------------
def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match=r"stop strings \['x'\] are looked for in text, .*give decode, for example plain_text"):
        Stops([1], ["x"])
    with pytest.raises(ConfigError, match="stop has an empty string"):
        Stops([1], ["x", ""], plain_text(tokenizer("bytes")))
    with pytest.raises(ConfigError, match=r"stop='END' is one string; write a list of them, \['END'\]"):
        Stops([1], "END", plain_text(tokenizer("bytes")))


# -- in a rollout ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_rollout_ends_where_its_text_does_and_is_otherwise_the_same(kind: str) -> None:
    tok = tokenizer("bytes")
    backbone = Backbone(gpt2() if kind == "gpt2" else small(kind), lora=Lora(rank=2, layers=2))
    policy = Role(backbone, moved(backbone))
    vocabulary = backbone.head_weight.shape[0]
    decode = lambda rows: plain_text(tok)([[i % len(tok) for i in row] for row in rows])  # noqa: E731 - the model's vocabulary is not the tokenizer's
    assert vocabulary > 50
    prompts = [[5, 6, 7 + i % 3] for i in range(24)]
    plain = sample(policy, prompts, max_new_tokens=16, temperature=1.0, stop_ids=[3], seed=0, step=0)
    texts = [decode([row])[0] for row in plain.said()]
    stop = tuple(sorted({text[4:6] for text in texts[:4] if "\ufffd" not in text[4:6]}))
    ended_ = sample(policy, prompts, max_new_tokens=16, temperature=1.0, stop_ids=[3], seed=0, step=0, sampling=Sampling(stop=stop), decode=decode)
    shorter = 0
    for before, after, done in zip(plain.said(), ended_.said(), ended_.finished_B.tolist(), strict=True):
        n = next((n for n in range(1, len(before) + 1) if any(t in decode([before[:n]])[0] for t in stop)), None)
        assert after == before[:n] and done == (n is not None or before[-1] == 3)
        shorter += len(after) < len(before)
    assert stop and shorter > 2
    real = ended_.trained_BT
    torch.testing.assert_close(ended_.sampler_logp_BT[real], plain.sampler_logp_BT[:, : real.shape[1]][real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("said", "stop"), [("€", "€"), ("🎉", "🎉"), ("a日本", "本"), ("aé€", "€"), ("a€", "€"), ("\n\n", "\n\n")])
def test_characters_spelled_in_byte_tokens_are_read(said: str, stop: str) -> None:
    """A tokenizer of the SentencePiece kind spells what it has no token for in byte tokens, and decodes a run of them that is no text byte by byte."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "</s>": 1, **{f"<0x{b:02X}>": 2 + b for b in range(256)}, "\u2581": 258, "a": 259}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>")
    ids = [i for c in said for i in ([259] if c == "a" else [2 + b for b in c.encode()])]
    assert ended(Stops([], (stop,), plain_text(tok)), ids) == len(ids)
    assert ended(Stops([], ("never",), plain_text(tok)), ids) is None
