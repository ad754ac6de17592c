"""The figure: a walk and a completion, their numbers step by step, and how both were learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from truing.envs.table import ACTIONS, MOVES
from truing.labs.canvas import BLUE, GREEN, INK, MUTED, ORANGE, band, canvas
from truing.labs.tabular import draw_map, draw_path, reference
from truing.labs.vocabulary_table import Pair, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from truing.labs.vocabulary_grid import Episode

LONG = 14  # moves; a longer walk is a thread, without numbers
MOST = 9  # steps shown; of a longer episode, its beginning and its end


def draw(pair: Pair, grids: Sequence[Sequence[float]], texts: Sequence[Sequence[float]], best: float) -> Figure:
    title = "One PPO, two worlds: an agent on a grid, and a language model that counts"
    with canvas(3, 2, width=13.5, height=11.6, title=title, height_ratios=[1.25, 0.85, 1.0]) as (figure, axes):
        _walk(axes[0, 0], pair)
        _tokens(axes[0, 1], pair)
        walk, completion = pair.walk, pair.completion
        states = [place(s, pair.size) for s in walk.states]
        _strip(axes[1, 0], walk, states, [ACTIONS[a] for a in walk.actions])
        _strip(axes[1, 1], completion, ["prompt"] + [f"+ {pair.say(a)}" for a in completion.actions[:-1]], [pair.say(a) for a in completion.actions])
        axes[1, 0].set_title("its numbers: each step costs 0.01, the goal pays 1")
        axes[1, 1].set_title("its numbers: the KL penalty at each token, the score at the last")
        for curve, runs, colour, label, top in ((axes[2, 0], grids, BLUE, "return of an episode", best), (axes[2, 1], texts, GREEN, "score of a completion", 1.0)):
            _curve(curve, runs, colour, label, top, pair.after)
    return figure


def _walk(axes: Axes, pair: Pair) -> None:
    size, walk = pair.size, pair.walk
    with torch.no_grad():
        values = pair.networks.values(torch.arange(size * size)).numpy()
    draw_map(axes, size, size, values, start=(0, 0), goal=(size - 1, size - 1))
    for text in axes.texts:  # the values into the corners, out of the path's way
        if text.get_text() not in ("start", "goal"):
            text.set(x=text.get_position()[0] - 0.44, y=text.get_position()[1] - 0.13, ha="left", fontsize=min(9.5, 36 / size))
    axes.set_title(f"a walk after {pair.after} rollouts: state = a cell, action = a move")
    long = len(walk) > LONG
    axes.set_xlabel("in the cells: the critic's value" + ("" if long else "; on the arrows: t"))
    if long:
        draw_path(axes, walk.states + [size * size - 1] * walk.terminated, size, ORANGE, shake=0.12)
        return
    seen: dict[frozenset[int], int] = {}
    for t, (state, action) in enumerate(zip(walk.states, walk.actions, strict=True)):
        down, right = MOVES[action]
        after = walk.states[t + 1] if t + 1 < len(walk) else None
        stays = after == state
        way = frozenset((state, -1 - action if stays or after is None else after))
        again = seen[way] = seen.get(way, -1) + 1
        aside = 0.2 * again + 0.17 * stays  # beside the path, so that a way taken twice, or into the edge, is seen
        row, column = divmod(state, size)
        x, y = column + 0.5 + aside * abs(down), row + 0.55 + aside * abs(right)
        reach = 0.43 if stays else 0.66 if after is None and walk.terminated else 1.0
        axes.annotate("", (x + right * reach, y + down * reach), (x, y), arrowprops={"arrowstyle": "-|>", "color": ORANGE, "linewidth": 2.2, "mutation_scale": 14, "shrinkA": 3, "shrinkB": 3}, zorder=6)
        axes.text(
            x + right * reach * (0.3 if stays else 0.45), y + down * reach * (0.3 if stays else 0.45), str(t), ha="center", va="center", color="white", fontsize=8, zorder=7,
            bbox={"boxstyle": "circle,pad=0.18", "facecolor": ORANGE, "edgecolor": "white", "linewidth": 0.8},
        )  # fmt: skip


def _tokens(axes: Axes, pair: Pair) -> None:
    """A line a step: the state, prompt grey and tokens so far green, then the next token."""
    e = pair.completion
    start = len(e.states[0])
    lines = _shown(len(e))
    columns = start + len(e)
    axes.set(xlim=(-0.9, columns + 0.02), ylim=(len(lines) + 0.75, -0.35), xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(f"a completion after {pair.after} rollouts: state = prompt + all tokens so far")
    size = min(10.5, 84 / columns)
    for line, t in enumerate(lines):
        if t is None:
            axes.text(columns / 2, line, "...", ha="center", va="center")
            continue
        axes.text(-0.85, line, f"t = {t}", ha="left", va="center", color=MUTED, fontsize=9.5)
        for i, word in enumerate([*pair.seen.text(e.states[t]), pair.say(e.actions[t])]):
            kind = "prompt" if i < start else "so far" if i < start + t else "next"
            _pill(axes, i, line, word, kind, size)
    ending = "says <end>: terminated" if e.terminated else f"cut off at {len(e)} tokens"
    axes.text(-0.85, len(lines) + 0.15, f"{ending}; score {e.score:.2f}", ha="left", va="center", color=INK, fontsize=10.5, fontweight="bold")
    for i, (name, kind) in enumerate((("prompt", "prompt"), ("so far", "so far"), ("action", "next"))):
        _pill(axes, columns - 3 + i, len(lines) + 0.15, name, kind, size)


def _pill(axes: Axes, x: float, y: float, word: str, kind: str, size: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    face, edge, ink = {"prompt": ("#eceff1", "#eceff1", INK), "so far": ("#d8efe6", "#d8efe6", INK), "next": ("white", ORANGE, ORANGE)}[kind]
    axes.add_patch(FancyBboxPatch((x + 0.08, y - 0.26), 0.84, 0.52, boxstyle="round,pad=0,rounding_size=0.12", facecolor=face, edgecolor=edge, linewidth=1.5))
    axes.text(x + 0.5, y, word, ha="center", va="center", color=ink, fontsize=size, fontweight="bold" if kind == "next" else "normal")


def _strip(axes: Axes, e: Episode, states: Sequence[str], actions: Sequence[str]) -> None:
    """The episode's numbers, a column a step; the advantage shaded by sign and size."""
    from matplotlib.patches import Rectangle

    rows: list[tuple[str, Sequence[Any]]] = [("state", states), ("action", actions), ("reward", e.rewards), ("value V", e.values), ("return G", e.returns), ("advantage A", e.advantages)]
    shown = _shown(len(e))
    width = max(len(shown), 4)
    left = -0.24 * width
    axes.set(xlim=(left, width), ylim=(len(rows) + 0.1, -1), xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    largest = max(map(abs, e.advantages)) or 1.0
    size = min(10.0, 82 / width)
    axes.text(left, -0.5, "t", ha="left", va="center", color=MUTED, fontsize=10)
    for y, (name, values) in enumerate(rows):
        axes.text(left, y + 0.5, name, ha="left", va="center", color=INK, fontsize=10, fontweight="bold" if y == len(rows) - 1 else "normal")
        axes.plot([left, width], [y, y], color="#e3e7ea", linewidth=0.7)
        for x, t in enumerate(shown):
            if y == 0:
                axes.text(x + 0.5, -0.5, "..." if t is None else str(t), ha="center", va="center", color=MUTED, fontsize=size)
            if t is None:
                continue
            value = values[t]
            if y == len(rows) - 1:
                colour = BLUE if value >= 0 else ORANGE
                axes.add_patch(Rectangle((x + 0.04, y + 0.08), 0.92, 0.84, facecolor=colour, alpha=0.1 + 0.5 * abs(value) / largest, linewidth=0))
            text = value if isinstance(value, str) else f"{round(value, 2) + 0.0:{'+' if y == len(rows) - 1 else ''}.2f}"
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=ORANGE if y == 1 else INK, fontsize=size, fontweight="bold" if y == 1 else "normal")


def _curve(axes: Axes, runs: Sequence[Sequence[float]], colour: str, label: str, top: float, recorded: int) -> None:
    x = np.arange(1, len(runs[0]) + 1)
    for run in runs:
        axes.plot(x, run, color=colour, linewidth=0.6, alpha=0.35)
    band(axes, x, runs, label, colour)
    low = min(0.0, float(np.min(runs)))
    axes.set(xlabel="rollout", ylabel=label, xlim=(1, len(x)), ylim=(low - 0.03, top + 0.13 * (top - low)))
    reference(axes, top, f"best possible {top:.2f}")
    axes.axvline(recorded, color=ORANGE, linewidth=1.0, linestyle=(0, (2, 2)))
    axes.set_title(f"learning: mean of {len(runs)} seeds, single seeds thin; dotted: recorded")


def _shown(count: int) -> list[int | None]:
    """Which steps have room.

    >>> _shown(3), _shown(20)
    ([0, 1, 2], [0, 1, 2, 3, None, 16, 17, 18, 19])
    """
    return list(range(count)) if count <= MOST else [*range(MOST // 2), None, *range(count - (MOST - 1) // 2, count)]
