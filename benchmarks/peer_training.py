"""A chair: TRL's trainers of one sequence at a time, supervised fine-tuning and the reward model, as they come.

Asks: ``method`` (sft, reward), ``model`` (a folder), ``batch``, ``parts`` (micro-batches an update), ``lengths`` (of the sequences of the
data set, in order), ``longest`` (of a row), ``packed`` (several sequences a row).
A unit is one update, from the end of the one before; its tokens are the real ones, padding left out.
"""

from __future__ import annotations

from typing import Any

from benchmarks import tokens
from benchmarks.turns import Turns, asked, scratch

UPDATES = 100_000  # more than anybody waits for


def common(asks: dict[str, Any]) -> dict[str, Any]:
    """What every trainer of TRL is told: the processor, no saving, no reports, no recomputation (its defaults need a GPU or are slower); ``dtype`` bfloat16 is its
    mixed precision, float32 weights under autocast."""
    return {
        "output_dir": str(scratch()), "use_cpu": True, "bf16": asks.get("dtype") == "bfloat16", "fp16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 10 * UPDATES, "seed": 0, "learning_rate": 1e-6, "per_device_train_batch_size": asks["batch"] // asks["parts"],
        "gradient_accumulation_steps": asks["parts"],
    }  # fmt: skip


def lapping(turns: Any, **found: Any) -> Any:
    """A callback that ends a unit at the end of every update; ``found`` is answered with it, and emptied of its counts."""
    from transformers import TrainerCallback

    class Lap(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.lap(**{name: value() if callable(value) else value for name, value in found.items()})

    return Lap()


def counting(trainer: Any, count: Any) -> Any:
    """Make ``trainer`` tell how many real tokens each loss read; returns the sum since it was last asked."""
    read = [0]
    loss = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        read[0] += count(inputs)
        return loss(model, inputs, *args, **more)

    def total() -> int:
        found, read[0] = read[0], 0
        return found

    trainer.compute_loss = compute_loss
    return total


def play(turns: Any, asks: dict[str, Any]) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    turns.count_optimiser_steps()
    tokenizer = AutoTokenizer.from_pretrained(asks["model"])
    options = common(asks) | {"max_steps": UPDATES, "max_length": asks["longest"], "train_sampling_strategy": "sequential"}
    if asks["method"] == "sft":
        from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

        model = AutoModelForCausalLM.from_pretrained(asks["model"], dtype=torch.float32)
        ids = tokens.sequences(asks["lengths"], model.config.vocab_size, seed=1, end=tokenizer.eos_token_id)
        config = SFTConfig(**options, packing=asks["packed"], packing_strategy="bfd")
        trainer = SFTTrainer(model=model, args=config, train_dataset=Dataset.from_dict({"input_ids": ids}), processing_class=tokenizer)
    else:
        from trl import RewardConfig, RewardTrainer

        model = AutoModelForSequenceClassification.from_pretrained(asks["model"], dtype=torch.float32, num_labels=1)
        sides = {f"{name}_ids": tokens.sequences(asks["lengths"], model.config.vocab_size, seed, end=tokenizer.eos_token_id) for seed, name in ((1, "chosen"), (2, "rejected"))}
        trainer = RewardTrainer(model=model, args=RewardConfig(**options), train_dataset=Dataset.from_dict(sides), processing_class=tokenizer)
    real = counting(trainer, lambda inputs: int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else inputs["input_ids"].numel())
    trainer.add_callback(lapping(turns, tokens=real))
    turns.facts |= {"dtype": str(next(model.parameters()).dtype).removeprefix("torch."), "attention": model.config._attn_implementation}
    trainer.train()


if __name__ == "__main__":
    play(Turns(), asked())
