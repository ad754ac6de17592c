"""The milestones that lead to aligned language models: two histories that run side by side and meet in RLHF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import Field

from truing.config import Frozen
from truing.errors import ConfigError
from truing.labs.canvas import canvas
from truing.labs.lab import Check, Findings, Table
from truing.observe.svg import BLUE, GREEN, INK, MUTED, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEEDS = 0
REWARD, NETWORK, BOTH = "learning from reward", "networks and language", "language models that learn from reward"
COLOUR = {REWARD: BLUE, NETWORK: ORANGE, BOTH: GREEN}


class Milestone(NamedTuple):
    """``year`` is that of the first report; ``source`` says where it can be read."""

    year: int
    name: str
    authors: str
    changed: str
    track: str
    source: str


MILESTONES = (
    Milestone(1957, "Perceptron", "Rosenblatt", "a machine finds its weights from examples", NETWORK, "Cornell Aeronautical Laboratory report 85-460-1"),
    Milestone(1957, "Dynamic programming", "Bellman", "a state is worth its reward plus what follows", REWARD, "Dynamic Programming, Princeton University Press"),
    Milestone(1959, "Checkers program", "Samuel", "a program improves by playing against itself", REWARD, "IBM Journal of Research and Development 3(3)"),
    Milestone(1969, "Perceptrons", "Minsky, Papert", "what a single layer can never compute", NETWORK, "MIT Press"),
    Milestone(1983, "Actor-critic", "Barto, Sutton, Anderson", "one unit acts, another predicts", REWARD, "IEEE Transactions on Systems, Man, and Cybernetics 13(5)"),
    Milestone(1986, "Back-propagation", "Rumelhart, Hinton, Williams", "hidden layers learn from the error at the output", NETWORK, "Nature 323"),
    Milestone(1988, "Temporal differences", "Sutton", "a guess learns from the next guess", REWARD, "Machine Learning 3"),
    Milestone(1989, "Q-learning", "Watkins", "the best policy, learnt while following another", REWARD, "PhD thesis, Cambridge"),
    Milestone(1992, "REINFORCE", "Williams", "the gradient of reward, from sampled actions alone", REWARD, "Machine Learning 8"),
    Milestone(1992, "TD-Gammon", "Tesauro", "a network learns backgammon from itself", REWARD, "Machine Learning 8"),
    Milestone(1997, "Long short-term memory", "Hochreiter, Schmidhuber", "errors survive hundreds of steps back", NETWORK, "Neural Computation 9(8)"),
    Milestone(1999, "Policy gradient theorem", "Sutton, McAllester et al.", "policy gradients with a learned value function", REWARD, "NIPS 12"),
    Milestone(2003, "Neural language model", "Bengio, Ducharme et al.", "words become vectors that predict the next word", NETWORK, "Journal of Machine Learning Research 3"),
    Milestone(2012, "AlexNet", "Krizhevsky, Sutskever, Hinton", "depth, data and two GPUs win ImageNet", NETWORK, "NIPS 25"),
    Milestone(2013, "Deep Q-network", "Mnih et al.", "one network plays Atari games from the pixels", REWARD, "arXiv 1312.5602"),
    Milestone(2014, "Attention", "Bahdanau, Cho, Bengio", "a translator looks back at the words it needs", NETWORK, "arXiv 1409.0473"),
    Milestone(2015, "TRPO and GAE", "Schulman, Levine et al.", "safe steps; bias against variance in one number", REWARD, "arXiv 1502.05477 and 1506.02438"),
    Milestone(2016, "AlphaGo", "Silver, Huang et al.", "networks and search defeat Lee Sedol at Go", REWARD, "Nature 529"),
    Milestone(2017, "Transformer", "Vaswani et al.", "attention alone; all positions train at once", NETWORK, "arXiv 1706.03762"),
    Milestone(2017, "Human preferences", "Christiano, Leike et al.", "a reward learnt from comparisons by people", REWARD, "arXiv 1706.03741"),
    Milestone(2017, "PPO", "Schulman, Wolski et al.", "a clipped ratio: many safe steps from one sample", REWARD, "arXiv 1707.06347"),
    Milestone(2018, "GPT", "Radford, Narasimhan et al.", "read first, then be tuned to the task", NETWORK, "OpenAI report"),
    Milestone(2019, "RLHF for language models", "Ziegler, Stiennon et al.", "PPO and a KL penalty tune GPT-2 to human choices", BOTH, "arXiv 1909.08593"),
    Milestone(2020, "GPT-3", "Brown et al.", "175 billion parameters; examples in the prompt suffice", NETWORK, "arXiv 2005.14165"),
    Milestone(2020, "Learning to summarise", "Stiennon, Ouyang et al.", "summaries that people prefer to the human reference", BOTH, "arXiv 2009.01325"),
    Milestone(2022, "InstructGPT and ChatGPT", "Ouyang et al.; OpenAI", "SFT, reward model, PPO: 1.3B is preferred to 175B", BOTH, "arXiv 2203.02155; 30 November 2022"),
    Milestone(2022, "Constitutional AI", "Bai et al.", "written principles and AI feedback judge harm", BOTH, "arXiv 2212.08073"),
    Milestone(2023, "DPO", "Rafailov, Sharma et al.", "preferences train the policy with one simple loss", BOTH, "arXiv 2305.18290"),
    Milestone(2024, "GRPO", "Shao et al.", "a group of answers takes the critic's place", BOTH, "arXiv 2402.03300"),
    Milestone(2025, "DeepSeek-R1", "DeepSeek-AI", "reasoning grows from rewards that check the answer", BOTH, "arXiv 2501.12948"),
)  # fmt: skip


class Options(Frozen):
    """Which part of the history is drawn."""

    first: int = Field(1957, description="first year drawn")
    last: int = Field(2025, description="last year drawn")
    track: Literal["all", "reward", "language"] = Field("all", description="one history alone, or both; what they share is always there")


def chosen(options: Options) -> list[Milestone]:
    """The milestones of the options, oldest first. Raises ConfigError when there is none."""
    left_out = {"all": "", "reward": NETWORK, "language": REWARD}[options.track]
    found = [m for m in MILESTONES if options.first <= m.year <= options.last and m.track != left_out]
    if not found:
        raise ConfigError(f"first={options.first}, last={options.last}: no milestone lies between them; the years go from {MILESTONES[0].year} to {MILESTONES[-1].year}")
    return found


def expectation(options: Options) -> str:
    found = chosen(options)
    said = f"{len(found)} milestones from {found[0].year} to {found[-1].year} in order of time. "
    if {m.track for m in found} == set(COLOUR):
        said += "Learning from reward and networks for language run apart and meet in 2019, when PPO first tunes a language model to human preferences. "
    return said + "No two labels overlap and none leaves the page."


def run(options: Options, seeds: Sequence[int]) -> Findings:
    """Draw the two histories; the checks measure the drawing itself. Nothing is random."""
    found = chosen(options)
    figure = draw(found)
    touching, outside = collisions(figure)
    years = [m.year for m in found]
    apart = [m.year for m in found if m.track != BOTH]
    shared = [m.year for m in found if m.track == BOTH]
    checks = [
        Check("the milestones are in order of time", f"{years[0]} to {years[-1]}, {len(years)} of them", years == sorted(years)),
        Check("no two labels overlap", f"{len(touching)} of {len(_labels(figure))} labels touch another" + "".join(f"; {a!r} and {b!r}" for a, b in touching), not touching),
        Check("no label leaves the page", f"{len(outside)} do" + "".join(f"; {a!r}" for a in outside), not outside),
    ]
    if {m.track for m in found} == set(COLOUR):
        alone = sum(year < shared[0] for year in apart)
        checks.append(Check("two histories run side by side before they meet", f"{alone} milestones before {shared[0]}, {len(shared)} shared since", alone > 0))
    rows = [(m.year, m.name, m.authors, m.changed, m.track, m.source) for m in found]
    tables = [Table("Milestones", ("year", "milestone", "authors", "what changed", "track", "source"), rows)]
    return Findings(checks, tables, {"timeline": figure}, {"milestones": [m._asdict() for m in found]})


# -- the drawing --------------------------------------------------------------------------------------------------------


def draw(found: Sequence[Milestone]) -> Figure:
    """One row a milestone, time downwards: reward on the left, language on the right, and one rail where they meet."""
    rows = len(found)
    with canvas(width=12.5, height=1.2 + 0.43 * rows) as (figure, grid):
        axes: Axes = grid[0, 0]
        figure.set_layout_engine("none")
        head = 0.95 / figure.get_figheight()
        axes.set_position((0.0, 0.02, 1.0, 0.98 - head))
        axes.set(xlim=(-1, 1), ylim=(rows, -0.8))
        axes.axis("off")
        figure.text(0.025, 1 - 0.32 / figure.get_figheight(), "From the perceptron to RLHF", fontsize=17, fontweight="bold", va="center")
        figure.text(0.025, 1 - 0.64 / figure.get_figheight(), "one row a milestone, in order of time (the rows are not to scale)", fontsize=9.5, color=MUTED, va="center")
        tracks = [track for track in (REWARD, NETWORK, BOTH) if any(m.track == track for m in found)]
        meeting = next((i for i, m in enumerate(found) if m.track == BOTH), rows) - 0.5
        for track in tracks:
            _rail(axes, track, found, meeting)
            x, y, align = {REWARD: (-0.2, -0.95, "right"), NETWORK: (0.2, -0.95, "left"), BOTH: (0.0, rows - 0.3, "center")}[track]
            axes.text(x, y, track, color=COLOUR[track], fontsize=10.5, ha=align, va="center")
        for row, milestone in enumerate(found):
            _entry(axes, row, milestone, meeting)
    return figure


def _x(track: str, row: float, meeting: float) -> float:
    """The rails lie apart, come together over the last rows before they meet, and are one afterwards."""
    side = {REWARD: -0.11, NETWORK: 0.11, BOTH: 0.0}[track]
    closing = np.clip((row - (meeting - 4.0)) / 4.0, 0, 1)
    return float(side * (1 - closing * closing * (3 - 2 * closing)))


def _rail(axes: Axes, track: str, found: Sequence[Milestone], meeting: float) -> None:
    own = [row for row, m in enumerate(found) if m.track == track]
    end = meeting if track != BOTH and meeting < len(found) - 0.5 else float(max(own))
    start = meeting if track == BOTH else float(min(own))
    y = np.linspace(start, max(end, float(max(own))), 200)
    axes.plot([_x(track, v, meeting) for v in y], y, color=COLOUR[track], linewidth=5 if track == BOTH else 3, solid_capstyle="round", alpha=0.9, zorder=1)


def _entry(axes: Axes, row: int, milestone: Milestone, meeting: float) -> None:
    """The dot, a fine line, and two lines of text: year and name with the authors, then what changed."""
    left = milestone.track == REWARD or (milestone.track == BOTH and row % 2 == 0)
    side, align = (-1, "right") if left else (1, "left")
    x, colour = _x(milestone.track, row, meeting), COLOUR[milestone.track]
    axes.plot([x, side * 0.185], [row, row], color=colour, linewidth=0.8, alpha=0.6, zorder=0)
    axes.plot([x], [row], "o", color="white", markeredgecolor=colour, markeredgewidth=2, markersize=8, zorder=3)
    axes.annotate(f"{milestone.year}  {milestone.name}", (side * 0.2, row), xytext=(0, 1.5), textcoords="offset points", ha=align, va="bottom", fontsize=11, fontweight="bold", color=colour)  # fmt: skip
    axes.annotate(f"{milestone.authors}: {milestone.changed}", (side * 0.2, row), xytext=(0, -1.5), textcoords="offset points", ha=align, va="top", fontsize=8.6, color=INK)  # fmt: skip


def _labels(figure: Figure) -> list[tuple[str, np.ndarray]]:
    """Every text of the figure and its box in pixels, ``[[left, bottom], [right, top]]``."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible() and text.get_text().strip()]
    drawn = [text for text in texts if text.axes is None or text.axes.axison or text in text.axes.texts]
    return [(text.get_text(), np.asarray(text.get_window_extent().get_points())) for text in drawn]


def collisions(figure: Figure) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of texts whose boxes overlap, and texts that leave the page."""
    labels = _labels(figure)
    page = np.array([[0.0, 0.0], figure.bbox.size])
    touching = [
        (a, b) for i, (a, one) in enumerate(labels) for b, two in labels[i + 1 :] if bool(np.all(np.minimum(one[1], two[1]) > np.maximum(one[0], two[0])))
    ]  # fmt: skip
    return touching, [name for name, box in labels if bool(np.any(box[0] < page[0]) or np.any(box[1] > page[1]))]
