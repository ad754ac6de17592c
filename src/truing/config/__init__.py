"""Recipes: small, frozen and complete on arrival. Nothing here imports torch.

A recipe is a name, a seed and an ordered mapping of stages; each stage is the options of one method. The same object
comes from YAML (`load_recipe`), from the command line (`--set ppo.lr=1e-6`) and from Python. Unknown keys are errors
with a did-you-mean; `truing schema` prints the JSON schema.
"""

from truing.config.grpo import GRPO, PRESETS
from truing.config.methods import PPO, SFT, Evaluate, Reward
from truing.config.options import KL, Frozen, Lora, Positive, Rate, Sampling, Scores, Share, Stage
from truing.config.recipe import METHODS, AnyStage, Recipe, checked, explain, load_recipe, make_options, make_recipe, make_stage, parse_yaml, suggestion

__all__ = [
    "GRPO", "KL", "METHODS", "PPO", "PRESETS", "SFT", "AnyStage", "Evaluate", "Frozen", "Lora", "Positive", "Rate", "Recipe", "Reward", "Sampling", "Scores", "Share", "Stage",
    "checked", "explain", "load_recipe", "make_options", "make_recipe", "make_stage", "parse_yaml", "suggestion",
]  # fmt: skip
