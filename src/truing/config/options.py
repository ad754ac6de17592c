"""What options are made of, and the groups of them that several methods share."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Device = Literal["cpu", "cuda"]


class Frozen(BaseModel):
    """Base of every options object: immutable, no unknown keys, no silent coercion of infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


Options = TypeVar("Options", bound=Frozen)


class Lora(Frozen):
    """Low-rank adapters (Hu et al. 2021): W x + (alpha / rank) B A x, with B = 0 at the start."""

    rank: Positive = Field(16, description="r, the width of A and B")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="the adapter's output is multiplied by alpha / rank")
    layers: Positive | None = Field(None, description="adapt only the top k layers; null adapts all. The frozen trunk below is computed once a sequence")


class Stage(Frozen):
    """What every training stage has."""

    model: str = Field("smollm2-135m", description="a built-in name, a hub id, a folder, or the name of an earlier stage")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the layers' products, and of what goes back through the head; trained weights, states between layers, logits, log-probabilities and moments stay float32. auto = bfloat16 where the device has it and LoRA is on")
    lora: Lora | None = Field(Lora(), description="null trains every weight")
    device: Device = Field("cpu", description="where the models are: cpu, or cuda for a GPU. What is drawn at random is drawn on the CPU all the same")
    lr: Rate = Field(1e-4, description="learning rate of AdamW")
    warmup: Share = Field(0.05, description="share of the updates over which the learning rate rises from 0")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="of the learning rate after warm-up; linear and cosine fall to 0")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="of AdamW, not of the loss")
    grad_clip: Annotated[float, Field(gt=0)] = Field(1.0, description="global gradient norm")
    micro_tokens: Positive = Field(2048, description="most tokens in one forward and backward; changes memory, never the result. grpo with lora: null has 1280 by default")
    checkpointing: bool = Field(False, description="keep only each layer's input for backward and make the rest again: about a third more time, a fraction of the memory, the same gradients")
    max_length: Positive = Field(1024, description="most tokens of prompt + completion")
    on_bad: Literal["error", "skip", "quarantine"] = Field("error", description="what to do with a bad row of data")
    save_every: Positive = Field(20, description="updates between checkpoints")


class Divergence(Frozen):
    """What every penalty for leaving the reference has."""

    coef: Annotated[float, Field(ge=0)] = Field(0.05, description="score per nat")
    target: float | None = Field(6.0, description="nats per sequence that the adaptive controller steers to; null keeps coef fixed")
    horizon: Positive = Field(10_000, description="sequences over which the controller acts (Ziegler et al. 2019)")
    stop: float | None = Field(None, description="nats per token between the policy and the one that sampled, above which the rest of a rollout's updates is left out; 0.02 is usual")

    @field_validator("target", "stop")
    @classmethod
    def _positive(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and value <= 0:
            raise ValueError("a policy that learns is never at 0 nats; " + ("use a few nats a sequence (6), or null for a fixed coef" if info.field_name == "target" else "use 0.02 nats a token, or null for no limit"))
        return value


class KL(Divergence):
    """Penalty for leaving the reference. All placements aim at the same optimum, pi proportional to ref * exp(score / coef)."""

    place: Literal["reward", "loss_k2", "loss_k3"] = Field("reward", description="in the reward, as -coef * (log pi - log ref) at every token; or in the loss, by the k2 or k3 estimator with the gradient of KL(pi || ref)")


class Sampling(Frozen):
    """Which tokens may be drawn, and which texts end a completion. Truncations act in this order, after the temperature: top_k, top_p, min_p."""

    top_k: Positive | None = Field(None, description="draw from the k most likely tokens only; null draws from all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="draw from the fewest most likely tokens that together have at least this probability (nucleus); 1 draws from all")
    min_p: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="draw from tokens at least this many times as likely as the likeliest; 0 draws from all")
    stop: tuple[str, ...] = Field((), description="texts that end a completion, as an end-of-turn token does; what completes one is part of the completion")

    @field_validator("stop", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("every completion has the empty text from the start; write the text that ends one, or leave it out")
        return value

    @property
    def truncates(self) -> bool:
        """Whether any token is left out."""
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0


class Scores(Frozen):
    """What happens to scores before they become rewards, in this order: normalise, clip, missing_eos."""

    at: Literal["last", "steps", "tokens"] = Field("last", description="where a learned reward stands: its score at the last token, or how much each line or token changes it")
    normalise: Literal["none", "batch", "running", "reference"] = Field("none", description="unit spread in every batch, its mean left where it is; or subtract the mean and divide by the standard deviation of all scores so far, or of the first rollout, which the reference made")
    clip: Annotated[float, Field(gt=0)] | None = Field(None, description="scores are limited to +- this, after normalising")
    missing_eos: float | None = Field(-1.0, description="added to the score of a completion cut off at max_new_tokens; null leaves it alone")
    timeout: Annotated[float, Field(gt=0)] | None = Field(60.0, description="seconds that a function or an HTTP reward may take for a batch. Functions run in a process of their own, so one that hangs or dies cannot take the run along; null runs them in this one, without a limit")
    bad_share: Share = Field(0.1, description="the run stops when a larger share of a batch's rewards failed")
