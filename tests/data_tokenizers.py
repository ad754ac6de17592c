"""Tiny real tokenizers for the data tests, one for each kind of chat template."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["hello world, how are you today?", "I am fine and you are fine", "the film was a joy to watch", "system user assistant", "a word and another word\n"] * 3

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED_WRONG = MARKED.replace("{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}", "{{ m['content'] }}{% generation %}{{ '<|im_end|>' }}{% endgeneration %}")
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# no generation prompt; the system turn is folded into the first user turn; blanks around contents
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + ((system if loop.first else '') + m['content']) | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# an empty thought stands between the generation prompt and the last answer, as in Qwen3 without thinking
THOUGHT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m['content'].lstrip('\n') + '<|im_end|>\n' }}"
    "{% elif '</think>' in m['content'] %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'].split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DROPS_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
OPEN_THOUGHT = CHATML.replace("{{ '<|im_start|>assistant\n' }}{% endif %}", "{{ '<|im_start|>assistant\n<think>' }}{% endif %}")
NEVER_ENDS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
LOWERS = CHATML.replace("m['content']", "m['content'] | lower")
TWICE = CHATML.replace("m['content']", "m['content'] + m['content']")
# only the last answer is closed by eos, other turns by another special token
ENDS_LAST = NEVER_ENDS.replace("+ '\n' }}{% endfor %}", "+ (eos_token if loop.last and m['role'] == 'assistant' else '<|sep|>') + '\n' }}{% endfor %}")

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>", "<|sep|>"]


def tiny(template: str | None, *, bos: str | None = None, eos: str | None = "<|im_end|>", pad: str | None = None, spaces: bool = False, plain_added: tuple[str, ...] = ()) -> Any:
    """A BPE tokenizer; ``spaces`` makes it SentencePiece-like (a blank before the first word), else byte-level."""
    core = Tokenizer(models.BPE(unk_token="<unk>" if spaces else None))
    if spaces:
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIAL], initial_alphabet=[chr(c) for c in range(32, 127)] + ["\n"], show_progress=False)
    else:
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain_added])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=pad, **({"unk_token": "<unk>"} if spaces else {}))
    if template is not None:
        made.chat_template = template
    return made
