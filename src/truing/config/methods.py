"""The options of each method: small, frozen and complete on arrival. `grpo.py` has those of the group methods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from truing.config.options import KL, Device, Frozen, Positive, Rate, Sampling, Scores, Share, Stage


class SFT(Stage):
    """Supervised fine-tuning: imitate the assistant turns, nothing else."""

    method: Literal["sft"] = "sft"
    data: str = Field(description="demonstrations: a file or a hub id")
    epochs: Positive = 1
    batch_size: Positive = Field(32, description="sequences per update")
    eval_share: Annotated[float, Field(ge=0, lt=1)] = Field(0.02, description="share of the rows held out for the reported loss")


class Reward(Stage):
    """Bradley-Terry reward model: one scalar head on the last token of prompt + completion."""

    method: Literal["reward"] = "reward"
    data: str = Field(description="preference pairs: a file or a hub id")
    epochs: Positive = 1
    batch_size: Positive = Field(64, description="pairs per update")
    group_prompts: bool = Field(True, description="keep the pairs of one prompt in one batch, so that each distinct completion is scored once (InstructGPT, section 3.5)")
    centering: Annotated[float, Field(ge=0)] = Field(0.01, description="weight of (r_chosen + r_rejected)^2, which keeps scores near zero")
    eval_share: Annotated[float, Field(gt=0, lt=1)] = Field(0.05, description="share of the prompts held out for accuracy, calibration and centring")


class PPO(Stage):
    """Proximal policy optimisation with policy, reference, reward and value models."""

    method: Literal["ppo"] = "ppo"
    prompts: str = Field(description="prompts: a file or a hub id")
    reward: str = Field("reward", description="a reward-model folder, the name of an earlier stage, module:function(prompts, completions) -> scores, or an expression of these: reward - 0.01 * excess_tokens(150)")
    monitors: dict[str, str] = Field({}, description="name -> scorer, written like reward: logged beside the reward at every step, never trained on")
    scores: Scores = Scores()
    steps: Positive = Field(100, description="rollouts; each is followed by epochs x minibatches updates")
    batch_size: Positive = Field(64, description="completions per rollout")
    minibatches: Positive = Field(4, description="optimiser steps an epoch")
    epochs: Positive = Field(4, description="times each rollout is learned from")
    reference: Literal["resident", "offloaded"] = Field("resident", description="offloaded keeps the reference of lora: null on the disk but while it is read; with lora the reference is the backbone itself and costs nothing")
    value: Literal["shared", "separate"] = Field("separate", description="value head on the policy's adapter, or on an adapter of its own that starts from the reward model")
    value_model: str | None = Field(None, description="a separate value model: a name, folder, hub id or earlier stage that reads the same tokens; null = on the policy's backbone")
    value_lr: Rate | None = Field(None, description="null = lr")
    value_clip: Annotated[float, Field(gt=0)] | None = Field(0.2, description="a value may move this far from the old one before its error stops counting; null leaves it free")
    value_weight: Annotated[float, Field(ge=0)] = Field(0.5, description="of the value error in the loss")
    value_warmup: Annotated[int, Field(ge=0)] = Field(0, description="first rollouts in which only the value model learns")
    kl: KL = KL()
    clip: Share = Field(0.2, description="the ratio pi / pi_old stays within 1 +- this")
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(None, description="bounds the loss of a negative advantage by this times its size; 3 is usual")
    sampler_cap: Annotated[float, Field(ge=1)] | None = Field(2.0, description="weight each token by pi_trainer / pi_sampler, at most this, when their numbers differ; null does not correct")
    entropy: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the entropy bonus in the loss")
    discount: Share = Field(1.0, description="gamma, a token")
    lam: Share = Field(0.95, description="lambda of generalised advantage estimation: 1 is unbiased, less has less variance")
    max_new_tokens: Positive = Field(64, description="a completion that is longer is cut off")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="of sampling, and of every log-probability")
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _divides(self) -> PPO:
        if self.batch_size % self.minibatches:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of minibatches={self.minibatches}; each minibatch must be whole")
        if self.max_length <= self.max_new_tokens:
            raise ValueError(f"max_length={self.max_length} leaves no room for a prompt beside max_new_tokens={self.max_new_tokens}; raise it")
        if self.kl.target is not None and self.kl.coef == 0:
            raise ValueError("kl.coef=0 stays 0 whatever kl.target asks; set kl.coef above 0, or kl.target: null")
        if self.kl.target is not None and self.batch_size > self.kl.horizon:
            raise ValueError(f"kl.horizon={self.kl.horizon} is shorter than one batch of {self.batch_size}, so the controller would overshoot; raise kl.horizon")
        if self.value_model is not None and self.value == "shared":
            raise ValueError("value: shared is a head on the policy itself, so value_model has no use; leave one of them out")
        if self.reference == "offloaded" and self.lora is not None:
            raise ValueError("reference: offloaded is for lora: null; with lora the reference is the frozen backbone without its adapter and takes no memory of its own")
        for name in self.monitors:
            if name.removesuffix("_correlation") in self.monitors and name.endswith("_correlation"):
                raise ValueError(f"monitors.{name}: that name is taken by the correlation of {name.removesuffix('_correlation')} with the reward; choose another")
        if self.value_warmup >= self.steps:
            raise ValueError(f"value_warmup={self.value_warmup} leaves none of steps={self.steps} to the policy; lower it")
        if self.value == "shared" and self.value_warmup:
            raise ValueError("value_warmup trains the value model alone, and value: shared has no weights apart from the policy's; use value: separate")
        return self


class Evaluate(Frozen):
    """Two models on held-out prompts, sample by sample with the same random numbers, under independent scores."""

    method: Literal["evaluate"] = "evaluate"
    before: str = Field("sft", description="the model to compare with: a name, a folder, or an earlier stage")
    after: str = Field("ppo", description="the model under test")
    prompts: str = Field(description="held-out prompts: a file or a hub id")
    scores: dict[str, str] = Field({}, description="name -> scorer: a reward-model folder, an earlier stage, or module:function")
    verdict: str | None = Field(None, description="which of the scores decides; null = the first")
    environment: str | None = Field(None, description="as in grpo: completions become episodes of several turns, and environment() is a score")
    max_turns: Positive = Field(4, description="of an episode; needs environment")
    samples: Positive = Field(4, description="completions of each prompt by each model; verified scores get pass@k and majority@k up to this k")
    max_new_tokens: Positive = 64
    temperature: Annotated[float, Field(gt=0)] = 1.0
    sampling: Sampling = Sampling()
    kl_target: Annotated[float, Field(gt=0)] | None = Field(None, description="nats per sequence the training aimed at; the verdict allows twice that")
    device: Device = Field("cpu", description="where the models are: cpu, or cuda for a GPU")
    max_length: Positive = 1024
    micro_tokens: Positive = 2048
    on_bad: Literal["error", "skip", "quarantine"] = "error"

    @model_validator(mode="after")
    def _has_room(self) -> Evaluate:
        if self.max_length <= self.max_new_tokens:
            raise ValueError(f"max_length={self.max_length} leaves no room for a prompt beside max_new_tokens={self.max_new_tokens}; raise it")
        return self
