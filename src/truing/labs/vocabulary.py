"""The same tiny PPO on a grid and on a language model, each word of reinforcement learning beside what it is in both.

Both runs really train: an agent on a GridWorld, and a small random decoder that is asked to "count to five from two". They share
PPO's estimate, loss and update; the lab watches the calls, and puts one rollout through the tensors of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from truing.config import Frozen
from truing.labs import vocabulary_draw, vocabulary_grid, vocabulary_lost, vocabulary_table, vocabulary_tokens
from truing.labs.lab import Cell, Check, Findings, Table
from truing.labs.tabular import enough, optimal, over_seeds, said
from truing.labs.vocabulary_grid import Episode, Run
from truing.labs.vocabulary_table import Pair
from truing.labs.vocabulary_tokens import Recorded
from truing.maths.stats import Interval

__all__ = ["SEEDS", "Options", "expectation", "run"]
SEEDS = 3


class Options(Frozen):
    """What ``--set`` may change."""

    exercise: Literal["main", "lost_state"] = Field("main", description="lost_state: what is learned when the state is the prompt only, or when gamma is 0")
    size: Annotated[int, Field(ge=2, le=6)] = Field(4, description="rows and columns of the grid; and how far the language model counts: to one more")
    steps: Annotated[int, Field(ge=2, le=1000)] = Field(40, description="rollouts of each run, each followed by its updates")
    record: Annotated[int, Field(ge=1)] | None = Field(None, description="rollouts after which one episode is recorded, at least half of steps; null = half")

    @model_validator(mode="after")
    def _in_time(self) -> Options:
        if self.exercise == "lost_state" and self.record is not None:
            raise ValueError(f"record={self.record}: the exercise lost_state records no episode; leave record out")
        if not self.steps <= 2 * self.recorded < 2 * self.steps:
            raise ValueError(f"record={self.record} does not lie in the second half of steps={self.steps}; use {(self.steps + 1) // 2} to {self.steps - 1}")
        return self

    @property
    def recorded(self) -> int:
        return self.record or (self.steps + 1) // 2


def expectation(options: Options) -> str:
    if options.exercise == "lost_state":
        return vocabulary_lost.EXPECTED
    return (
        "PPO learns both tasks, above the untrained policy on the mean over seeds; in both the first ratio is exactly 1, and the same functions compute advantage, "
        "ratio, clipping, loss and update; one rollout gives one loss, laid out as moves or as tokens; the language model's state is the prompt "
        "and all tokens so far: one token longer each step, and no less will do"
    )


def run(options: Options, seeds: Sequence[int]) -> Findings:
    enough("vocabulary", seeds)
    if options.exercise == "lost_state":
        return vocabulary_lost.run(options.size, options.steps, seeds)
    grids = [vocabulary_grid.train(options.size, options.steps, seed) for seed in seeds]
    texts: list[Run] = []
    for seed in seeds:
        with vocabulary_tokens.words(options.size, options.steps, seed, save_every=options.recorded) as made:
            texts.append(vocabulary_tokens.train(made, seed))
            if seed == seeds[0]:
                seen = vocabulary_tokens.record(made, seed, options.recorded)
    pair, same_run, losses = record(options, seeds[0], grids[0][0], texts[0], seen)
    dictionary = vocabulary_table.table(pair)
    learned = [_learned(runs) for runs in ([g for g, _ in grids], texts)]
    best = float(optimal(vocabulary_grid.world(options.size).mdp(), 1.0)[0][0])
    rows: list[tuple[Cell, ...]] = [(task, *measured, top) for task, measured, top in zip(("grid: return of an episode", "language model: score of a completion"), learned, (best, 1.0), strict=True)]
    table = Table(f"Policies with their own chances, {len(seeds)} seeds", ("task", "untrained", "trained", "gain", "best possible"), rows)
    checks = [*(_gained(name, gain) for name, (_, _, gain) in zip(("the grid", "counting"), learned, strict=True)), *_ratios([g for g, _ in grids], texts), _calls(options.size, dictionary)]
    checks += [_losses(losses), *_states(pair), _same(options.recorded, same_run)]
    figure = vocabulary_draw.draw(pair, [g.curve for g, _ in grids], [t.curve for t in texts], best)
    curves = {"grid": [g.curve for g, _ in grids], "language model": [t.curve for t in texts]}
    return Findings(checks, [dictionary, table], {"vocabulary": figure}, {"curves": curves, "walk": _plain(pair.walk), "completion": _plain(pair.completion)})


def record(options: Options, seed: int, grid: Run, text: Run, seen: Recorded) -> tuple[Pair, bool, list[float]]:
    """One walk and one completion of the recorded rollouts: the first that is not perfect tells most.

    Also whether the grid's run, stopped there, was the same run; and the loss of the recorded walks, laid out as moves and as tokens.
    """
    (short, networks), (_, later) = (vocabulary_grid.train(options.size, rollouts, seed, tried=False) for rollouts in (options.recorded, options.recorded + 1))
    taken = vocabulary_grid.walks(options.size, networks, seed)
    episodes = vocabulary_grid.episodes(taken, networks)
    shortest = 2 * (options.size - 1)
    walk = next((e for e in episodes if e.terminated and shortest < len(e) <= shortest + 2), min(episodes, key=lambda e: (not e.terminated, len(e))))
    completions = [vocabulary_tokens.episode(seen, row) for row in range(len(seen.batch))]
    completion = next((e for e in completions if len(e) > 2 and e.score < 1), completions[0])
    ended = [w for w, e in zip(taken, episodes, strict=True) if e.terminated]
    layouts = (vocabulary_grid.loss_as_moves, vocabulary_grid.loss_as_tokens)
    losses = [float(loss(ended, later, seen.config).detach()) for loss in layouts] if ended else []  # `later` is an update further, so that ratios differ from 1
    pair = Pair(options.size, options.recorded, walk, episodes, grid, networks, completion, completions, text, seen)
    return pair, short.curve == grid.curve[: options.recorded], losses


def _learned(runs: Sequence[Run]) -> tuple[Interval, ...]:
    return tuple(over_seeds(values) for values in ([r.before for r in runs], [r.after for r in runs], [r.after - r.before for r in runs]))


# -- checks -------------------------------------------------------------------------------------------------------------


def _gained(name: str, gain: Interval) -> Check:
    return Check(f"PPO learns: {name}", f"trained minus untrained: {said(gain)}", gain.low > 0)


def _ratios(grids: Sequence[Run], texts: Sequence[Run]) -> list[Check]:
    worst = [max(log["policy/first_ratio_error"] for r in runs for log in r.log) for runs in (grids, texts)]
    count = sum(len(r.log) for r in grids)
    return [Check("the first ratio of every rollout is exactly 1 in both", f"largest |ratio - 1| over {count} rollouts each: {worst[0]:g} on the grid, {worst[1]:g} in the language model", worst == [0.0, 0.0])]


def _same(rollouts: int, same: bool) -> Check:
    return Check("a run that is repeated is the same run", f"on the grid the returns of the first {rollouts} rollouts are {'equal' if same else 'not equal'}, bit for bit", same)


def _calls(size: int, dictionary: Table) -> Check:
    """Watch one rollout of each, with its updates."""

    def grid() -> None:
        _, networks = vocabulary_grid.train(size, 1, 0, tried=False)
        episode = vocabulary_grid.episodes(vocabulary_grid.walks(size, networks, 0, 1), networks)[0]
        _ = episode.returns, episode.td_errors

    def text() -> None:
        with vocabulary_tokens.words(size, 1, 0) as made:
            vocabulary_tokens.train(made, 0, tried=False)
            episode = vocabulary_tokens.episode(vocabulary_tokens.record(made, 0), 0)
            _ = episode.returns, episode.td_errors

    both = vocabulary_table.called(grid) & vocabulary_table.called(text)
    named = vocabulary_table.in_both(dictionary)
    missing = [name for name in named if name not in both]
    said_so = f"{len(named) - len(missing)} of {len(named)} functions ran in both" + (f"; not in both: {', '.join(missing)}" if missing else "")
    return Check("what the table says computed both, did", f"watched call by call: {said_so}", not missing)


def _losses(losses: Sequence[float]) -> Check:
    claim = "walks laid out as moves or as tokens have one loss"
    if not losses:
        return Check(claim, "no recorded walk reached the goal; record later, or use a smaller grid", False)
    moves, tokens = losses
    return Check(claim, f"{moves:.7f} as the grid lays them out, {tokens:.7f} as padded completions", abs(moves - tokens) <= 1e-6 * max(1.0, abs(moves)))


def _states(pair: Pair) -> list[Check]:
    episodes = pair.completions
    grows = {len(after) - len(before) for e in episodes for before, after in zip(e.states, e.states[1:], strict=False)}
    alone, forgotten = vocabulary_tokens.recomputed(pair.seen)
    error = vocabulary_tokens.reward_error(pair.seen)
    return [
        Check(
            "a state is the prompt and all tokens so far: one more each step, and no less will do",
            f"longer by {sorted(grows)}; log pi from the state alone differs by at most {alone:.0e} nats, from the prompt alone by up to {forgotten:.1f}",
            grows <= {1} and alone < 1e-4 < 0.1 < forgotten,
        ),
        Check("a completion's rewards add up to its score minus beta times its KL", f"largest error over {len(episodes)} completions: {error:.0e}", error < 1e-5),
    ]


def _plain(episode: Episode) -> dict[str, Any]:
    lists = ("states", "actions", "logp", "rewards", "values", "advantages", "whitened", "td_errors", "returns", "targets")
    return {name: getattr(episode, name) for name in lists} | {"terminated": episode.terminated, "score": episode.score}
