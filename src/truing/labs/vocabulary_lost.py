"""What is lost with the state: the model that counts, when its state is the prompt only, and when gamma is 0.

With the full state the pipeline's stage runs as it is. With the prompt only, every token of a completion is drawn from the prompt alone, as if it
were the first; the same `look` and `learn` then treat each token as an episode of its own, which is worth the completion's score (gamma 1) or,
but for the last one, nothing (gamma 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from truing.data.template import Renderer
from truing.labs.canvas import BLUE, GREEN, ORANGE, PURPLE, band, canvas, label_ends
from truing.labs.lab import Check, Findings, Table
from truing.labs.tabular import over_seeds, reference, said
from truing.labs.vocabulary_tokens import TRIED, Words, mean_score, train, trained_roles, words
from truing.learn.update import Learner
from truing.maths.stats import Interval
from truing.methods import ppo as page
from truing.methods.ppo_update import Seen, minibatches
from truing.methods.roles_of_ppo import Roles, open_roles
from truing.models.pack import Pack
from truing.rewards.scorers import Completions
from truing.rollout.sampler import sample
from truing.types import Rollout, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPECTED = (
    "with the prompt and all tokens so far as the state, and gamma 1, the model learns to count; a policy of the prompt alone cannot pass a bound that is known, whatever "
    "its gamma, because it never knows how far it has counted; with the full state but gamma 0 only the last token is credited, and less is learned"
)
VARIANTS = ((True, 1.0), (True, 0.0), (False, 1.0), (False, 0.0), (True, 0.99))  # full state, gamma
COLOURS = (GREEN, BLUE, ORANGE, PURPLE, "#56b4e9")


def run(size: int, steps: int, seeds: Sequence[int]) -> Findings:
    runs = [[_one(size, steps, seed, full, gamma) for seed in seeds] for full, gamma in VARIANTS]
    curves, finals = ([np.array([r[k] for r in rows]) for rows in runs] for k in (0, 1))
    ends = [over_seeds(f) for f in finals]
    bound = float(np.mean([prompt_only_bound(n, size + 2) for n in range(1, size + 1)]))
    names = [name(full, gamma) for full, gamma in VARIANTS]
    table = Table(
        f"Score of a completion after {steps} rollouts, {len(seeds)} seeds; a policy of the prompt alone reaches {bound:.3f} at most",
        ("state", "gamma", "score", "behind the full state with gamma 1"),
        [("prompt + tokens so far" if full else "prompt", gamma, end, over_seeds(finals[0] - final) if i else None) for i, ((full, gamma), end, final) in enumerate(zip(VARIANTS, ends, finals, strict=True))],
    )
    checks = [Check(f"with the full state and gamma {VARIANTS[i][1]:g} it learns what no policy of the prompt alone can", f"score {said(ends[i])}, bound {bound:.3f}", ends[i].low > bound) for i in (0, 4)]
    checks += [_under(names[i], finals[i], bound) for i in (2, 3)]
    gap = over_seeds(finals[0] - finals[1])
    checks.append(Check("with the full state but gamma 0 less is learned", f"behind by {said(gap)}", gap.low > 0))
    values = {"bound": bound, "curves": dict(zip(names, [c.tolist() for c in curves], strict=True))}
    return Findings(checks, [table], {"vocabulary-lost-state": _draw(names, curves, bound)}, values)


def name(full: bool, gamma: float) -> str:
    return f"{'full state' if full else 'prompt only'}, gamma {gamma:g}"


def _under(label: str, finals: np.ndarray, bound: float) -> Check:
    end: Interval = over_seeds(finals)
    chance = 2 * 0.5 / np.sqrt(TRIED * len(finals))  # twice the largest standard error of a mean of scores in [0, 1]
    return Check(f"{label}: stays below the bound", f"score {said(end)}, bound {bound:.3f}", end.mean <= bound + chance)


def prompt_only_bound(wanted: int, longest: int) -> float:
    """The largest expected score when ``wanted`` different words are due and each of at most ``longest`` tokens is drawn from the same distribution.

    Place i counts only the i-th word, and the first place is reached most often: so the best policy has one word, the first, and stops
    with a probability q at each token. It says k words with probability ``(1 - q)^k q`` (at most ``longest``), which score ``1 / max(wanted, k)``.

    >>> round(prompt_only_bound(1, 1000), 4)  # -q log q, which is 1 / e at q = 1 / e
    0.3679
    """
    q = np.linspace(0.0, 1.0, 2001)[:, None]
    k = np.arange(1, longest + 1)
    chance = (1 - q) ** k * np.where(k == longest, 1.0, q)
    return float((chance / np.maximum(wanted, k)).sum(-1).max())


# -- the runs -----------------------------------------------------------------------------------------------------------


def _one(size: int, steps: int, seed: int, full: bool, gamma: float) -> tuple[list[float], float]:
    """Mean score of each rollout, and of fresh completions at the end."""
    with words(size, steps, seed, discount=gamma) as made:
        if full:
            found = train(made, seed, tried=False)
            return found.curve, mean_score(trained_roles(made, seed), made, seed)
        return _prompt_only(made, seed, gamma)


def _prompt_only(made: Words, seed: int, gamma: float) -> tuple[list[float], float]:
    config = made.config.model_copy(update={"scores": made.config.scores.model_copy(update={"missing_eos": None})})  # a token is no completion: what being cut off costs is in its score
    roles = open_roles(config, seed)
    learner = Learner(
        roles.parameters(), lr=config.lr, total=config.steps * config.epochs * config.minibatches, schedule=config.schedule, grad_clip=config.grad_clip,
        micro_tokens=config.micro_tokens, eps=1e-5,
    )  # fmt: skip
    curve = []
    for step in range(1, config.steps + 1):
        batch, scores, mean = blind(roles, made, seed, step, config.batch_size, gamma)
        curve.append(mean)
        plan = [list(minibatches(len(batch), config.minibatches, seed, step, epoch)) for epoch in range(config.epochs)]
        experience = page.look(batch, roles, config, plan[0], config.kl.coef, scores, learner.micro_tokens)
        seen = Seen()
        for epoch in plan:
            for rows in epoch:
                page.learn(learner, roles, batch, experience, rows, config, seen)
    return curve, blind(roles, made, seed, 0, TRIED, gamma)[2]


def blind(roles: Roles, made: Words, seed: int, step: int, count: int, gamma: float) -> tuple[page.Batch, list[Score], float]:
    """Completions whose every token was drawn from the prompt alone: a batch with a row for each token, its worth, and the mean score of the completions."""
    longest, stop = made.config.max_new_tokens, Renderer(roles.tokenizer).stop_ids
    which = [i % len(made.prompts) for i in range(count)]
    ids = [list(roles.tokenizer(q).input_ids) for q in made.prompts]
    drawn = sample(roles.policy, [ids[i] for i in which for _ in range(longest)], max_new_tokens=1, temperature=1.0, stop_ids=stop, seed=seed, step=step)
    tokens = drawn.completion_BT.view(count, longest).tolist()
    lengths = [next((t + 1 for t, token in enumerate(row) if token in stop), longest) for row in tokens]
    texts = roles.decode([row[:n] for row, n in zip(tokens, lengths, strict=True)])
    scores = roles.reward(Completions([made.prompts[i] for i in which], texts, Pack(drawn.sequences()), [len(p) for p in drawn.prompts], drawn.finished_B.tolist()))
    kept, worth = [], []
    for i, (row, n, score) in enumerate(zip(tokens, lengths, scores, strict=True)):
        value = score.value + (made.config.scores.missing_eos or 0.0) * (row[n - 1] not in stop)
        kept += [i * longest + t for t in range(n)]
        worth += [Score(value if gamma or t == n - 1 else 0.0) for t in range(n)]
    rollout: Rollout = drawn.select(kept)
    asked = [made.prompts[which[k // longest]] for k in kept]
    return page.Batch(rollout, Completions(asked, [""] * len(kept), Pack(rollout.sequences()), [len(p) for p in rollout.prompts], rollout.finished_B.tolist())), worth, float(np.mean([s.value for s in scores]))


def _draw(names: Sequence[str], curves: Sequence[np.ndarray], bound: float) -> Figure:
    with canvas(width=9.5, height=4.8, title="What is lost with the state: learning to count") as (figure, axes):
        panel = axes[0, 0]
        x = np.arange(1, curves[0].shape[1] + 1)
        for label, curve, colour in zip(names, curves, COLOURS, strict=True):
            band(panel, x, curve, label, colour)
        panel.set(xlabel="rollout", ylabel="score of a completion", xlim=(1, len(x)), ylim=(-0.03, 1.05))
        reference(panel, bound, f"the most from the prompt alone: {bound:.2f}")
        label_ends(panel)
        panel.set_title(f"mean of {len(curves[0])} seeds, 10th to 90th percentile")
    return figure
