"""A chair: TRL's trainers of their own completions, as they come: GRPO of the current release, PPO of the last one that has it.

Asks: ``method`` (ppo, grpo), ``model`` (a folder), ``batch`` (completions an update), ``parts`` (micro-batches), ``prompt`` and ``new`` (tokens), ``epochs``
(ppo), ``group`` (grpo), ``trl`` (a folder to take trl from instead of the installed one). A unit is one step: collect, score, update.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks import tokens
from benchmarks.peer_training import UPDATES, common, counting, lapping
from benchmarks.turns import Turns, asked

PROMPTS = 512  # in the data set; each step draws its own


def ppo(turns: Any, asks: dict[str, Any]) -> None:
    """Policy, reference, reward and value model, each of the whole size; one minibatch, so ``epochs`` optimiser steps."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[import-not-found]

    policy, reference = (AutoModelForCausalLM.from_pretrained(asks["model"], dtype=torch.float32) for _ in range(2))
    reward, value = (AutoModelForSequenceClassification.from_pretrained(asks["model"], dtype=torch.float32, num_labels=1) for _ in range(2))
    prompts = tokens.sequences([asks["prompt"]] * PROMPTS, policy.config.vocab_size, seed=3)
    data = Dataset.from_dict({"input_ids": prompts})
    config = PPOConfig(
        **common(asks), num_ppo_epochs=asks["epochs"], num_mini_batches=1, response_length=asks["new"], temperature=1.0, kl_coef=0.05,
        total_episodes=asks["batch"] * 1000, local_rollout_forward_batch_size=asks["batch"], num_sample_generations=0,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=config, processing_class=AutoTokenizer.from_pretrained(asks["model"]), model=policy, ref_model=reference, reward_model=reward, value_model=value,
        train_dataset=data, eval_dataset=data.select(range(8)),
    )  # fmt: skip
    turns.facts |= {"dtype": str(policy.dtype).removeprefix("torch."), "attention": policy.config._attn_implementation}
    trainer.add_callback(lapping(turns, tokens=asks["batch"] * asks["new"]))  # it generates without a stop token, to the full length
    trainer.train()


def grpo(turns: Any, asks: dict[str, Any]) -> None:
    """No penalty (beta 0), so no reference; one update a rollout."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    model = AutoModelForCausalLM.from_pretrained(asks["model"], dtype=torch.float32)
    prompts = [tokens.words(ids) for ids in tokens.sequences([asks["prompt"]] * PROMPTS, model.config.vocab_size, seed=3)]
    config = GRPOConfig(
        **common(asks) | {"max_steps": UPDATES}, num_generations=asks["group"], max_completion_length=asks["new"], beta=0.0, temperature=1.0, num_iterations=1,
        generation_kwargs={"eos_token_id": -1},  # no completion ends before its length
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, args=config, reward_funcs=tokens.sevens, train_dataset=Dataset.from_dict({"prompt": prompts}), processing_class=AutoTokenizer.from_pretrained(asks["model"])
    )
    made = counting(trainer, lambda inputs: inputs["completion_ids"].numel())
    turns.facts |= {"dtype": str(model.dtype).removeprefix("torch."), "attention": model.config._attn_implementation}
    trainer.add_callback(lapping(turns, tokens=made))
    trainer.train()


def play(turns: Any, asks: dict[str, Any]) -> None:
    if asks.get("trl"):
        sys.path.insert(0, asks["trl"])
    turns.count_optimiser_steps()
    {"ppo": ppo, "grpo": grpo}[asks["method"]](turns, asks)


if __name__ == "__main__":
    play(Turns(), asked())
