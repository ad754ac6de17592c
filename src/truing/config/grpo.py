"""The options of the critic-free methods. They are rows of one table, advantage x ratio x clip x reduction x KL, and `PRESETS` is that table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from truing.config.options import Divergence, Frozen, Positive, Sampling, Scores, Share, Stage

_TOKEN = {"ratio": "token", "clip": "surrogate", "clip_low": 0.2, "clip_high": 0.2}
_PLAIN = {"ratio": "none", "clip": "none", "reduction": "sum"}
_LEASH = {"kl": {"coef": 0.05, "place": "reward"}}
EVERY_WEIGHT = 1280  # micro_tokens without LoRA

PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeekMath, Shao et al. 2024 (2402.03300), equation 3; its beta and its own k3
    "grpo": {**_TOKEN, "advantage": "standardised", "reduction": "sequence", "kl": {"coef": 0.04, "place": "token_k3"}},
    # Liu et al. 2025 (2503.20783), section 3.2: no division by length or spread
    "dr_grpo": {**_TOKEN, "advantage": "centred", "reduction": "constant"},
    # Yu et al. 2025 (2503.14476), equations 8 to 13
    "dapo": {**_TOKEN, "clip_high": 0.28, "advantage": "standardised", "reduction": "token", "zero_variance": "resample", "overlong": 0.2},
    # Zheng et al. 2025 (2507.18071), equation 5 and section 5.1
    "gspo": {"ratio": "sequence", "clip": "surrogate", "clip_low": 3e-4, "clip_high": 4e-4, "advantage": "standardised", "reduction": "sequence"},
    # MiniMax 2025 (2506.13585), equation 4; the bound of Khatri et al. 2025 (2510.13786)
    "cispo": {"ratio": "token", "clip": "weight", "clip_low": None, "clip_high": 4.0, "advantage": "standardised", "reduction": "token"},
    # Ahmadian et al. 2024 (2402.14740), section 3.4; the penalty is part of the reward
    "rloo": {**_PLAIN, **_LEASH, "advantage": "leave_one_out"},
    # Hu et al. 2025 (2501.03262), equation 8 and section 3.2
    "reinforce++": {**_TOKEN, "advantage": "batch", "reduction": "token", "kl": {"coef": 0.01, "place": "reward"}},
    "reinforce++-baseline": {**_TOKEN, "advantage": "centred_batch", "reduction": "token", "kl": {"coef": 0.01, "place": "token_k2"}},
    # Li et al. 2024 (2310.10505), algorithm 1
    "remax": {**_PLAIN, **_LEASH, "advantage": "greedy"},
    # rejection-style expert iteration (Anthony et al. 2017; Zelikman et al. 2022, STaR): imitate the best of each group
    "expert": {**_PLAIN, "advantage": "best", "reduction": "token"},
}


class GroupKL(Divergence):
    """Penalty for leaving the reference; with coef 0 there is none, and no reference is loaded."""

    coef: Annotated[float, Field(ge=0)] = Field(0.0, description="score per nat; 0 needs no reference model")
    target: float | None = Field(None, description="nats per sequence that the adaptive controller steers to; null keeps coef fixed")
    place: Literal["reward", "loss_k2", "loss_k3", "token_k2", "token_k3"] = Field("loss_k2", description="in the reward; or in the loss with the gradient of KL(pi || ref) of whole completions (loss_); or each token's estimate alone, as papers write it (token_)")


class GroupScores(Scores):
    """What happens to scores before they become rewards, in this order: normalise, clip, missing_eos."""

    missing_eos: float | None = Field(None, description="added to the score of a completion cut off at max_new_tokens; null leaves it alone")


class Curriculum(Frozen):
    """Which prompts a rollout leaves out because nothing can be learned from them now. Solve rates are running means over visits."""

    solved: Share | None = Field(None, description="leave out prompts whose solve rate is at least this; null leaves none out")
    hopeless: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="leave out prompts whose solve rate is at most this; null leaves none out")
    after: Positive = Field(16, description="completions of a prompt before its rate is believed")
    rest: Positive = Field(5, description="times the walk passes a left-out prompt by before it is tried again")

    @model_validator(mode="after")
    def _in_order(self) -> Curriculum:
        if self.solved is not None and self.hopeless is not None and self.hopeless >= self.solved:
            raise ValueError(f"hopeless={self.hopeless} is not below solved={self.solved}, so every prompt would be left out")
        return self


class GRPO(Stage):
    """Critic-free reinforcement learning: the completions of one prompt are each other's baseline. GRPO, RLOO and their kin are presets."""

    method: Literal["grpo"] = "grpo"
    preset: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce++", "reinforce++-baseline", "remax", "expert"] = Field("grpo", description="a row of the table: what it sets can be set otherwise, option by option")
    prompts: str = Field(description="prompts: a file, a hub id, or tasks such as reasoning-gym:chain_sum(size=500)")
    reward: str = Field("verified()", description="an expression, as in ppo; verified() is what the verifier that each row names makes of the completion")
    monitors: dict[str, str] = Field({}, description="name -> scorer, written like reward: logged beside the reward at every step, never trained on")
    environment: Annotated[str, Field(min_length=1)] | None = Field(None, description="calculator, gymnasium:ID, verifiers:NAME or module:Class: completions become episodes of several turns, and environment() is a reward")
    max_turns: Positive = Field(4, description="of an episode; needs environment")
    scores: GroupScores = GroupScores()
    steps: Positive = Field(100, description="rollouts; each is followed by epochs x minibatches updates")
    batch_size: Positive = Field(64, description="completions per rollout")
    group: Positive = Field(8, description="completions of one prompt")
    minibatches: Positive = Field(1, description="optimiser steps an epoch")
    epochs: Positive = Field(1, description="times each rollout is learned from (mu)")
    advantage: Literal["standardised", "centred", "leave_one_out", "batch", "centred_batch", "greedy", "best"] = Field("standardised", description="reward less the group's mean, over its spread; less the mean; less the others' mean; returns whitened over the batch; less the mean, then whitened; less the greedy completion's reward; 1 for the group's best")
    std_floor: Annotated[float, Field(gt=0)] | None = Field(None, description="the least spread that standardised divides by: without one, rewards of 0.90 and 0.95 pull as hard as 0 and 1")
    ratio: Literal["token", "sequence", "none"] = Field("token", description="pi / pi_old of each token, of the whole completion (its geometric mean), or none: the plain policy gradient")
    clip: Literal["surrogate", "weight", "none"] = Field("surrogate", description="PPO's clipped surrogate; the importance weight alone is clipped and every token keeps its gradient; or nothing is")
    clip_low: Annotated[float, Field(ge=0, le=1)] | None = Field(0.2, description="the ratio stays above 1 - this; null leaves it free downwards (clip: weight only)")
    clip_high: Annotated[float, Field(ge=0)] = Field(0.2, description="the ratio stays below 1 + this")
    reduction: Literal["token", "sequence", "constant", "sum"] = Field("sequence", description="mean over tokens; over completions of their token means; sum over tokens by max_new_tokens; sum over tokens, mean over completions")
    kl: GroupKL = GroupKL()
    entropy: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the entropy bonus in the loss")
    entropy_target: Annotated[float, Field(gt=0)] | None = Field(None, description="nats a token that the bonus keeps the policy above: entropy then starts at 0, and rises or falls by 0.005 a rollout; null keeps it as it is")
    zero_variance: Literal["keep", "drop", "resample"] = Field("keep", description="groups whose rewards are all equal: keep them with advantage 0, drop them from the batch, or sample other prompts in their place")
    resample_rounds: Positive = Field(3, description="most times that prompts are sampled again for one rollout")
    truncated: Literal["keep", "mask"] = Field("keep", description="completions cut off at max_new_tokens: train on them, or on their group's other completions only")
    overlong: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="the last share of max_new_tokens over which a soft penalty falls from 0 to -1 (DAPO); null has none")
    curriculum: Curriculum = Curriculum()
    sampler_cap: Annotated[float, Field(ge=1)] | None = Field(2.0, description="weight each token by pi_trainer / pi_sampler, at most this, when their numbers differ; null does not correct")
    sampler_outside: Literal["cap", "mask"] = Field("cap", description="a weight above sampler_cap: limit it; or leave out every token whose weight lies outside 1 / sampler_cap .. sampler_cap")
    mask_beyond: Annotated[float, Field(gt=0)] | None = Field(None, description="leave out completions of negative advantage that the policy has already left by more than this many nats a token (DeepSeek-V3.2); 0.5 is usual, null keeps all")
    max_new_tokens: Positive = Field(64, description="a completion that is longer is cut off")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="of sampling, and of every log-probability")
    sampling: Sampling = Sampling()

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        """What the preset sets, and over it what was given: the recipe that is written down has every value.

        Gradients and moments of every weight leave less room for activations: without LoRA, parts are smaller unless the recipe says otherwise.
        """
        name = data.get("preset", "grpo") if isinstance(data, Mapping) else None
        if not isinstance(name, str) or name not in PRESETS:
            return data
        row = PRESETS[name]
        kl = data.get("kl", {})
        parts = {"micro_tokens": EVERY_WEIGHT} if data.get("lora", ...) is None else {}
        return {**row, **parts, **data, "kl": {**row.get("kl", {}), **kl} if isinstance(kl, Mapping) else kl}

    @model_validator(mode="after")
    def _whole(self) -> GRPO:
        if self.batch_size % self.group:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of group={self.group}; each group must be whole")
        if self.batch_size % self.minibatches:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of minibatches={self.minibatches}; each minibatch must be whole")
        if self.group < 2 and self.advantage not in ("batch", "greedy"):
            raise ValueError(f"group={self.group} makes every advantage zero: a completion alone has no other to be compared with; use 2 or more")
        if self.max_length <= self.max_new_tokens:
            raise ValueError(f"max_length={self.max_length} leaves no room for a prompt beside max_new_tokens={self.max_new_tokens}; raise it")
        return self

    @model_validator(mode="after")
    def _agrees(self) -> GRPO:
        if self.environment is None and self.max_turns != GRPO.model_fields["max_turns"].default:
            raise ValueError(f"max_turns={self.max_turns} counts the turns of an episode, and there is no environment; set environment, or leave max_turns out")
        if self.environment is not None and self.overlong is not None:
            raise ValueError("overlong counts the tokens of one completion, and an episode has several turns; use overlong: null, or subtract excess_tokens(n) from the reward")
        if self.entropy_target is not None and self.entropy:
            raise ValueError(f"entropy={self.entropy} is a fixed weight and entropy_target adapts it; leave one of them out")
        if self.sampler_outside == "mask" and self.sampler_cap is None:
            raise ValueError("sampler_outside: mask needs the bound sampler_cap; set it (2 is usual), or leave sampler_outside out")
        if self.ratio == "none" and self.clip != "none":
            raise ValueError(f"clip: {self.clip} bounds a ratio and ratio: none has none; use clip: none, or ratio: token")
        if self.clip == "surrogate" and self.clip_low is None:
            raise ValueError("clip_low: null is for clip: weight; the surrogate needs both bounds")
        if self.std_floor is not None and self.advantage != "standardised":
            raise ValueError(f"std_floor bounds the spread that standardised divides by, and advantage: {self.advantage} divides by none of a group; leave it out")
        if self.advantage == "best" and self.kl.coef > 0 and self.kl.place == "reward":
            raise ValueError("advantage: best imitates what scored best, so a penalty in the reward has nothing to act on; use kl.place: loss_k2, or kl.coef=0")
        if self.advantage == "greedy" and (self.scores.normalise != "none" or self.scores.clip is not None):
            raise ValueError("advantage: greedy compares with the greedy completion's score as it is; use scores.normalise: none and scores.clip: null")
        if self.kl.target is not None and self.kl.coef == 0:
            raise ValueError("kl.coef=0 stays 0 whatever kl.target asks; set kl.coef above 0, or kl.target: null")
        if self.kl.target is not None and self.batch_size > self.kl.horizon:
            raise ValueError(f"kl.horizon={self.kl.horizon} is shorter than one batch of {self.batch_size}, so the controller would overshoot; raise kl.horizon")
        if self.zero_variance != "keep" and self.advantage in ("batch", "greedy"):
            raise ValueError(f"zero_variance: {self.zero_variance} is for baselines of groups, and advantage: {self.advantage} learns from equal rewards too; use zero_variance: keep")
        for name in self.monitors:
            if name.removesuffix("_correlation") in self.monitors and name.endswith("_correlation"):
                raise ValueError(f"monitors.{name}: that name is taken by the correlation of {name.removesuffix('_correlation')} with the reward; choose another")
        return self
