"""One look for every lab's figure: colours, paper, and labels at the end of lines instead of a legend."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from truing.observe.svg import BLUE, GREEN, GRID, INK, MUTED, ORANGE, PURPLE, apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#e69f00", "#56b4e9", MUTED)  # Okabe and Ito's, safe for colour blindness

_STYLE = {
    "figure.facecolor": "white", "savefig.facecolor": "white", "font.size": 10.0, "axes.titlesize": 11.0, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.edgecolor": MUTED, "axes.linewidth": 0.6, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.8,
}  # fmt: skip


@contextmanager
def canvas(rows: int = 1, columns: int = 1, *, width: float = 9.0, height: float = 4.5, title: str = "", **more: Any) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure and its axes ``[rows, columns]`` in the labs' style, inches; draw inside the block, keep the figure.

    More keywords go to ``Figure.subplots``. The figure belongs to nobody's pyplot: nothing has to be closed.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, **more)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
        yield figure, axes


def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def band(axes: Axes, x: ArrayLike, runs: ArrayLike, label: str, colour: str, *, centre: str = "mean") -> None:
    """The mean (or median) of ``runs [n, len(x)]`` as a line, and the spread of single runs (10th to 90th percentile) as a band."""
    y = np.asarray(runs, dtype=float)
    middle = np.mean(y, 0) if centre == "mean" else np.median(y, 0)
    if len(y) > 1:
        low, high = np.quantile(y, [0.1, 0.9], axis=0)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, middle, color=colour, label=label)


def moving_mean(values: ArrayLike, width: int) -> np.ndarray:
    """Mean of the last ``width`` values, over what there is at the beginning: ``[..., T]`` to ``[..., T]``.

    >>> moving_mean([1.0, 3.0, 5.0], 2).tolist()
    [1.0, 2.0, 4.0]
    """
    y = np.asarray(values, dtype=float)
    total = np.cumsum(np.concatenate([np.zeros((*y.shape[:-1], 1)), y], -1), -1)
    end = np.arange(1, y.shape[-1] + 1)
    start = np.maximum(0, end - width)
    return (total[..., end] - total[..., start]) / (end - start)


def label_ends(axes: Axes, *, gap: float = 0.055) -> None:
    """Each labelled line's name at its right end in its colour, moved apart where they would touch; no legend is needed."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_") and np.size(line.get_ydata())]
    low, high = axes.get_ylim()
    scale = axes.yaxis.get_transform()
    span = scale.transform([low, high])
    places = [float((scale.transform([float(np.asarray(line.get_ydata())[-1])])[0] - span[0]) / (span[1] - span[0])) for line in lines]
    for place, line in zip(apart(places, gap), lines, strict=True):
        axes.annotate(str(line.get_label()), (1.0, place), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points", va="center", color=line.get_color(), fontsize=9.5, annotation_clip=False)  # fmt: skip
