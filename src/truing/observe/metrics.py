"""The table of every number Truing logs: its unit, definition, healthy range and the source of the definition.

One name means one quantity everywhere: in ``events.jsonl``, in the report, in the doctor and in ``docs/metrics.md``
(written by ``python -m truing.observe.metrics``). A name that is not in the table cannot be looked up.
"""


from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from truing.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Healthy:
    """Where a number should lie, and what it means when it does not.

    Attributes:
        low, high: inclusive bounds; None is unbounded.
        advice: what a value outside means and what to try.
        when: "every" checks each logged value; "late" the median of the last tenth (at least 5 values).
        severity: how serious a value outside is: "error" means the run's numbers cannot be trusted.
    """

    low: float | None
    high: float | None
    advice: str
    when: Literal["every", "late"] = "late"
    severity: Literal["warning", "error"] = "warning"

    def __contains__(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    @property
    def range(self) -> str:
        """``0 to 0.3``, ``at least 0.1``, ``at most 2`` or, when both bounds agree, ``exactly 0``."""
        if self.low is not None and self.low == self.high:
            return f"exactly {self.low:g}"
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"at least {self.low:g}" if self.low is not None else f"at most {self.high:g}"


@dataclass(frozen=True, slots=True)
class Metric:
    """One logged number. ``methods`` are those that log it; ``healthy`` is None where no range holds in general."""

    name: str
    unit: str
    definition: str
    healthy: Healthy | None
    source: str
    methods: tuple[str, ...]


ZIEGLER = "Ziegler et al. 2019 (1909.08593)"
SCHULMAN_KL = "Schulman 2020, Approximating KL divergence"
PPO = "Schulman et al. 2017 (1707.06347)"
DETAILS = "Huang et al. 2022, The 37 implementation details of PPO"
GAO = "Gao et al. 2023 (2210.10760)"
OUYANG = "Ouyang et al. 2022 (2203.02155)"
LI = "Li et al. 2016 (1510.03055)"
STIENNON = "Stiennon et al. 2020 (2009.01325)"
YAO = "Yao et al. 2025, off-policy RL by inference mismatch"
SHAO = "Shao et al. 2024 (2402.03300)"
YU = "Yu et al. 2025, DAPO (2503.14476)"
OWN = "Truing"

CORRELATION = "_correlation"
"""Ending of ``monitor/<name>_correlation``, which belongs to ``monitor/<name>``."""

_ALL = ("sft", "reward", "ppo", "grpo")
_RL = ("ppo", "grpo")
_MISTRUST = "the gradient is computed on other probabilities than the samples were drawn from; check dtype, temperature and weight updates of the sampler"

_ROWS = [
    # every trained stage
    Metric("grad/norm", "none", "global 2-norm of the gradient before clipping; the mean over the updates of the step",
           Healthy(1e-12, None, "a gradient of zero trains nothing: every token may be masked, or every advantage zero"), "Pascanu et al. 2013 (1211.5063)", _ALL),
    Metric("lr", "1", "learning rate of the (last) update of the step", None, OWN, _ALL),
    Metric("update/skipped", "share", "updates of the step that were left out because their loss or gradient was not finite",
           Healthy(0, 0, "NaN or infinity in loss or gradient: lower lr, and look at the samples of that step", "every"), OWN, _ALL),
    # supervised fine-tuning and reward model
    Metric("loss", "nats per trained token (sft), nats per pair (reward)",
           "sft: mean of -log p(token) over the trained tokens of the update. reward: mean of -log sigmoid(r_chosen - r_rejected - margin), plus the centring term",
           Healthy(0.0, 9.0, "above log(vocabulary) the model is worse than uniform: look at the chat template, the learning rate and the trained mask"),
           f"{OUYANG}, section 3.5", ("sft", "reward")),
    Metric("eval/loss", "as loss", "the loss on the held-out rows, without updates",
           Healthy(0.0, 9.0, "held-out rows are badly predicted; compare with `loss`: a gap that grows is overfitting"), f"{OUYANG}, section 3.5", ("sft", "reward")),
    Metric("tokens/trained", "tokens", "tokens that counted in the loss of the update (completion and end-of-turn tokens only)",
           Healthy(1, None, "an update without trained tokens learns nothing", "every", "error"), OWN, ("sft",)),
    Metric("eval/eos_share", "share", "held-out completions whose end-of-turn token is the model's first choice at its place",
           Healthy(0.2, 1.0, "the model has not learned to stop, so generations run to the limit: is the end-of-turn token trained?"), OWN, ("sft",)),
    Metric("accuracy", "share", "pairs of the update in which the chosen completion scores higher (a tie counts one half)",
           Healthy(0.52, 1.0, "the reward model does not beat a coin on its own training pairs; raise lr or check which side is chosen"), OUYANG, ("reward",)),
    Metric("score/mean", "score", "mean score over both completions of the pairs", None, OUYANG, ("reward",)),
    Metric("score/std", "score", "standard deviation of the scores over both completions",
           Healthy(1e-3, None, "all completions score alike: the head is dead or the pairs are empty"), OUYANG, ("reward",)),
    Metric("margin/mean", "score", "mean of r_chosen - r_rejected", None, OUYANG, ("reward",)),
    Metric("eval/accuracy", "share", "accuracy on the pairs of held-out prompts",
           Healthy(0.55, 1.0, "the reward model does not generalise; PPO against it optimises noise. More pairs, fewer epochs, or a stronger backbone"), OUYANG, ("reward",)),
    Metric("eval/pairs", "pairs", "held-out pairs behind the eval numbers", Healthy(1, None, "no pair was held out"), OWN, ("reward",)),
    Metric("eval/ece", "share", "expected calibration error: mean |confidence - accuracy| over ten equal bins of sigmoid(r_chosen - r_rejected), weighted by pairs",
           Healthy(0.0, 0.1, "the probabilities are over- or under-confident; fewer epochs or a smaller lr"), "Guo et al. 2017 (1706.04599)", ("reward",)),
    # PPO: rewards
    Metric("reward/proxy", "score", "mean score that the reward model gave the step's completions, failed ones left out", None, GAO, _RL),
    Metric("reward/failed_share", "share", "completions whose score failed (timed out, crashed, not finite); they are left out of every mean",
           Healthy(0.0, 0.1, "the reward fails too often; read `status` in samples/", "every"), OWN, _RL),
    Metric("reward/total", "score", "mean return that is trained: proxy with its penalties, minus the KL penalty summed over the sequence", None, ZIEGLER, ("ppo",)),
    Metric("reward/score_std", "score", "standard deviation over the step's completions of the scores as the reward gave them, before any normalising or clipping",
           Healthy(1e-6, None, "the completions all score alike, so there is nothing to learn from them: the reward is constant, saturated or clipped, or the prompts admit one answer only"), OWN, _RL),
    Metric("reward/clipped_share", "share", "scores that scores.clip changed",
           Healthy(0.0, 0.5, "most scores are clipped, so good and better ones look alike; raise scores.clip, or normalise first"), DETAILS, _RL),
    Metric("reward/normaliser_mean", "score", "what scores.normalise subtracts from each score", None, STIENNON, _RL),
    Metric("reward/normaliser_std", "score", "what scores.normalise divides each score by", Healthy(1e-6, None, "dividing by next to nothing blows noise up into reward; scores.normalise: none, or a reward that differs between texts"), STIENNON, _RL),
    Metric("part/<name>", "score", "mean of one named part of a composed reward, its own number before sign and weight: the expression of the parts is reward/proxy", None, OWN, _RL),
    Metric("monitor/<name>", "score", "mean score of an independent judge that is never trained on, on the same completions", None, GAO, _RL),
    Metric("monitor/<name>_correlation", "1", "Spearman's rank correlation of the reward with that judge over the step's completions; the over-optimisation alarm watches how it falls", None, GAO, _RL),
    # PPO: distance to the reference
    Metric("kl/sequence", "nats per sequence", "k1 = mean over sequences of the sum over tokens of log pi - log ref; unbiased, may be slightly negative by noise",
           Healthy(-1.0, None, "clearly negative means that the samples do not come from the policy (masks, temperature, stale weights)"), SCHULMAN_KL, _RL),
    Metric("kl/k3_sequence", "nats per sequence", "mean over sequences of the sum over tokens of exp(d) - 1 - d with d = log ref - log pi; never negative",
           Healthy(0.0, None, "negative is impossible: the log-probabilities are broken", "every", "error"), SCHULMAN_KL, _RL),
    Metric("kl/token", "nats per token", "the k1 sum over all tokens divided by the number of completion tokens", None, SCHULMAN_KL, _RL),
    Metric("kl/coef", "score per nat", "coefficient of the KL penalty, as the adaptive controller left it", Healthy(0.0, None, "negative rewards leaving the reference", "every", "error"), ZIEGLER, _RL),
    Metric("kl/loss", "nats per token", "mean KL term of the loss, k2 or k3, over the trained tokens of all minibatches; only with kl.place: loss_k2 or loss_k3",
           Healthy(0.0, None, "k2 and k3 are never negative: the log-probabilities are broken", "every", "error"), SCHULMAN_KL, _RL),
    # PPO: the update
    Metric("policy/loss", "none", "clipped surrogate loss, mean over the trained tokens of all minibatches", None, PPO, _RL),
    Metric("policy/approx_kl", "nats per token", "mean of ratio - 1 - log ratio between the policy being updated and the one that sampled",
           Healthy(0.0, 0.1, "each step moves the policy too far from its samples; lower lr or fewer epochs"), DETAILS, _RL),
    Metric("policy/clip_share", "share", "tokens whose ratio lies outside 1 +- clip", Healthy(0.0, 0.4, "most of the update is clipped away; lower lr or fewer epochs"), DETAILS, _RL),
    Metric("policy/ratio_mean", "ratio", "mean of pi / pi_old over the trained tokens; 1 in expectation", Healthy(0.9, 1.1, "samples and update disagree; see sampler/mismatch"), PPO, _RL),
    Metric("policy/ratio_max", "ratio", "largest pi / pi_old of any trained token in the step", Healthy(0.0, 20.0, "single tokens dominate the update; lower lr"), PPO, _RL),
    Metric("policy/entropy", "nats per token", "mean entropy of the policy's next-token distribution at the sampled positions; of a group method, of the completions that have a gradient",
           Healthy(0.1, None, "the policy has become nearly deterministic: exploration is over. Raise the KL coefficient or the entropy bonus"), PPO, _RL),
    Metric("policy/entropy_weight", "score per nat", "weight of the entropy bonus, as entropy_target has adapted it", Healthy(0.0, None, "a negative bonus drives exploration out", "every", "error"), "He et al. 2025, Skywork-OR1 (2505.22312)", ("grpo",)),
    Metric("policy/first_ratio_error", "ratio", "largest |ratio - 1| in the first minibatch after sampling, before any update: 0 by definition",
           Healthy(0.0, 0.0, _MISTRUST, "every", "error"), DETAILS, _RL),
    Metric("policy/updates", "updates", "optimiser steps made of the rollout's planned epochs x minibatches", Healthy(1.0, None, "no update was made of the rollout: no group's rewards differ, or kl.stop is too small", "every"), DETAILS, _RL),
    Metric("policy/stopped", "0 or 1", "1 when kl.stop ended the rollout's updates early",
           Healthy(0.0, 0.5, "most rollouts are cut short by kl.stop, and their later minibatches taught nothing; lower lr or epochs so that the planned updates are made"), DETAILS, ("ppo",)),
    Metric("value/loss", "score squared", "clipped squared error of the value head, mean over the trained tokens", None, PPO, ("ppo",)),
    Metric("value/error", "score", "root mean squared difference of the rollout's values and their targets; of the unit of the score, unlike the loss", None, PPO, ("ppo",)),
    Metric("value/clip_share", "share", "tokens whose new value lies outside the old one +- value_clip, where the loss no longer pulls",
           Healthy(0.0, 0.5, "value_clip is small beside the scores and holds the critic back; raise it, set it to null, or normalise the scores"), DETAILS, ("ppo",)),
    Metric("value/explained_variance", "share", "1 - Var(return - value) / Var(return), with the values of the rollout; 1 is perfect, 0 no better than a constant",
           Healthy(0.0, 1.0, "the critic is worse than a constant, so advantages are noisier than the rewards; raise value_lr or warm the critic up"), DETAILS, ("ppo",)),
    Metric("advantage/std", "score", "standard deviation of the advantages over the trained tokens, before they are standardised",
           Healthy(1e-8, None, "every action looks equally good, so nothing can be learned"), DETAILS, _RL),
    # PPO: the texts
    Metric("tokens/mean", "tokens", "mean completion length, the end-of-turn token included", Healthy(1.0, None, "the policy answers with nothing"), "Singhal et al. 2023 (2310.03716)", _RL),
    Metric("tokens/std", "tokens", "standard deviation of the completion lengths of the step", None, OWN, _RL),
    Metric("tokens/eos_share", "share", "completions that ended by themselves rather than at max_new_tokens",
           Healthy(0.2, 1.0, "nearly all completions are cut off and their scores describe fragments; raise max_new_tokens or the missing_eos penalty"), OWN, _RL),
    Metric("tokens/truncated_share", "share", "completions cut off at max_new_tokens; 1 - tokens/eos_share", None, OWN, _RL),
    Metric("text/distinct_2", "share", "distinct word pairs / word pairs over the step's completions", Healthy(0.1, 1.0, "the completions repeat themselves or one another: mode collapse"), LI, _RL),
    Metric("sampler/mismatch", "nats per token", "mean |trainer - sampler log-probability| of the sampled tokens; of a truncated sample only what the trainer's exceeds the sampler's by, because renormalising raises the sampler's", Healthy(0.0, 0.05, _MISTRUST), YAO, _RL),
    Metric("sampler/kept", "share", "mean over the trained tokens of pi_trainer / pi_sampler of a truncated sample: what top_k, top_p and min_p left of the policy's probability",
           Healthy(0.5, None, "the samples say little of what the policy would say; loosen top_k, top_p or min_p"), YAO, _RL),
    Metric("sampler/weight_mean", "ratio", "mean over the trained tokens of min(pi_trainer / pi_sampler, sampler_cap), the weight that corrects for the sampler's numbers; 1 when they agree. Not of a truncated sample: see sampler/kept",
           Healthy(0.9, 1.1, _MISTRUST), YAO, ("ppo",)),
    Metric("sampler/capped_share", "share", "tokens whose pi_trainer / pi_sampler exceeds sampler_cap", Healthy(0.0, 0.01, _MISTRUST + ". A capped weight is a biased one"), YAO, ("ppo",)),
    Metric("text/repetition", "share", "mean over the step's completions of the share of a completion's word pairs that repeat an earlier one",
           Healthy(0.0, 0.5, "the completions run in loops; penalise repetition(2), or shorten max_new_tokens"), LI, _RL),
    # groups
    Metric("groups/count", "groups", "prompts whose completions were scored at this step, those sampled again included", Healthy(1.0, None, "nothing was scored", "every"), SHAO, ("grpo",)),
    Metric("groups/varied_share", "share", "groups whose rewards are not all equal: the others have no gradient",
           Healthy(0.1, None, "nearly all groups are all right or all wrong, so most samples teach nothing; use zero_variance: resample, a curriculum, a larger group, or other prompts"), YU, ("grpo",)),
    Metric("groups/solved_share", "share", "groups whose completions are all right: the verified part of their scores, or the score where nothing is verified, is 1 or more", None, YU, ("grpo",)),
    Metric("groups/hopeless_share", "share", "groups whose completions are all wrong: 0 or less", Healthy(0.0, 0.9, "almost no prompt is ever solved; start with easier ones, or fine-tune first"), YU, ("grpo",)),
    Metric("groups/used_share", "share", "completions that count in the loss", Healthy(0.05, None, "almost nothing of what is sampled is learned from"), YU, ("grpo",)),
    Metric("curriculum/skipped_solved", "prompts", "prompts the walk passed by because their solve rate is at least curriculum.solved", None, YU, ("grpo",)),
    Metric("curriculum/skipped_hopeless", "prompts", "prompts the walk passed by because their solve rate is at most curriculum.hopeless", None, YU, ("grpo",)),
    Metric("curriculum/solve_rate", "share", "mean solve rate over the prompts visited so far, each a running mean over its own visits", None, OWN, ("grpo",)),
    Metric("reward/overlong", "score", "mean soft penalty of completions that are nearly or quite too long, 0 to -1; not part of reward/proxy", None, YU, ("grpo",)),
    Metric("probe/<name>", "score", "what the reward paid before training, at step 1: for gold answers, the same after talk that fills max_new_tokens (overlong), after a loop (repetition), and for wrong answers in their form", None, OWN, ("grpo",)),
    Metric("reward/hidden_gap", "share", "mean over programs with both of the share of visible tests passed less that of hidden ones: a program that solves the task has none",
           Healthy(None, 0.2, "the policy passes the tests it can know and not the others: it has learned the tests, not the task. Reward hidden tests, or write more of them"), OWN, ("grpo",)),
    # timings: no part of exact resume
    Metric("seconds/generate", "s", "wall time of sampling", None, OWN, _RL),
    Metric("seconds/score", "s", "wall time of the reward and the monitors", None, OWN, _RL),
    Metric("seconds/trunk", "s", "wall time of the frozen layers below the adapters, computed once a sequence for every role and epoch", None, OWN, _RL),
    Metric("seconds/reference", "s", "wall time of the log-probabilities of policy and reference and of the values", None, OWN, _RL),
    Metric("seconds/update", "s", "wall time of forward, backward and optimiser", None, OWN, _ALL),
    Metric("seconds/step", "s", "wall time of the whole step", None, OWN, _ALL),
    Metric("tokens_per_second", "tokens/s", "tokens processed (sft, reward) or generated (ppo) divided by the seconds of the step", None, OWN, _ALL),
    Metric("memory/plan/<name>", "MiB", "what one item was expected to take, before the first step", None, OWN, ("ppo",)),
    Metric("memory/phase/<name>", "MiB", "what the items that are there together in a phase were expected to take", None, OWN, ("ppo",)),
    Metric("memory/alternative/<name>", "MiB", "what the same run was expected to take under another choice of models", None, OWN, ("ppo",)),
    Metric("memory/peak_planned", "MiB", "highest resident memory that was expected before the first step", None, OWN, ("ppo",)),
    Metric("memory/peak_mib", "MiB", "highest resident memory of the process so far", None, OWN, _ALL),
    Metric("memory/device_peak_mib", "MiB", "most memory of the GPU that tensors of this process have taken so far; with `device: cuda`", None, OWN, _ALL),
]

METRICS: dict[str, Metric] = {m.name: m for m in _ROWS}
TIMINGS = frozenset(n for n in METRICS if n.startswith(("seconds/", "memory/")) or n == "tokens_per_second")
"""Names of "timing" events: they describe the machine, so exact resume does not compare them."""


def lookup(name: str) -> Metric:
    """The metric called ``name``; ``monitor/gold`` finds the row ``monitor/<name>``, ``monitor/gold_correlation`` that of the correlations, ``part/rm`` the row ``part/<name>``.

    Raises:
        ConfigError: the name is not in the table; the message names the nearest one.
    """
    if name in METRICS:
        return METRICS[name]
    for family in ("memory/plan", "memory/phase", "memory/alternative"):
        if name.startswith(f"{family}/") and len(name) > len(family) + 1:
            return METRICS[f"{family}/<name>"]
    family, _, rest = name.partition("/")
    ending = CORRELATION if family == "monitor" and rest.removesuffix(CORRELATION) not in ("", rest) else ""
    if rest and f"{family}/<name>{ending}" in METRICS:
        return METRICS[f"{family}/<name>{ending}"]
    close = difflib.get_close_matches(str(name), METRICS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(METRICS)}"
    raise ConfigError(f"metric {name!r} is not in the table of metrics; {hint} New ones are added in truing/observe/metrics.py")


def markdown() -> str:
    """The table as a Markdown page, for ``docs/metrics.md``."""
    head = [
        "# Every number Truing logs",
        "",
        "Generated by `python -m truing.observe.metrics`; edit `src/truing/observe/metrics.py`, not this file.",
        "",
        "*Healthy* is checked by `truing doctor RUN`: on every logged value where it says so, else on the median of the last tenth of a stage.",
        "",
        "| name | unit | methods | definition | healthy | outside it | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in METRICS.values():
        healthy = "" if m.healthy is None else m.healthy.range + (" (every value)" if m.healthy.when == "every" else "")
        cells = [f"`{m.name}`", m.unit, ", ".join(m.methods), m.definition, healthy, m.healthy.advice if m.healthy else "", m.source]
        head.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(head) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
