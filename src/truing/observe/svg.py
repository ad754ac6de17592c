"""Small matplotlib panels as inline SVG that obeys a strict Content-Security-Policy and the page's colours.

matplotlib styles by ``style`` attributes, fonts by name and ids that repeat from figure to figure. Here styles become
presentation attributes, text takes the page's font and colour, colours become CSS variables (so light and dark both
work), ids are prefixed, and namespaces, metadata and style sheets go: nothing is left that could load anything.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#aa4499"  # safe for colour blindness (Okabe-Ito, Tol)
BRONZE = "#8f6b00"
INK, MUTED, GRID = "#222222", "#777777", "#dddddd"
_VARIABLES = {
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    PURPLE: "var(--purple)",
    BRONZE: "var(--bronze)",
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
}
_KEEP = {
    "fill", "fill-opacity", "fill-rule", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-dashoffset", "stroke-linejoin",
    "stroke-linecap", "opacity", "font-size", "font-weight", "font-style", "text-anchor",
}  # fmt: skip
WIDTH, ROW, FOOT = 360, 128, 34  # points: of a panel, of one of its axes, of the horizontal axis' labels


@dataclass(frozen=True)
class Line:
    """One series. ``trend`` draws the values thin and their moving mean thick; ``marks`` draws points, not a line.

    ``low`` and ``high`` draw error bars.
    """

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    label: str
    colour: str = BLUE
    trend: bool = True
    marks: str = ""
    dashed: bool = False
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, a row each from the top, stacked from segments: ``parts`` holds (label, colour, one length a row).

    ``rows`` names each; of many names only some are shown. ``beside`` (text, colour) stand on the right, one below the other.
    """

    rows: Sequence[str]
    parts: Sequence[tuple[str, str, Sequence[float]]]
    beside: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Axis:
    """One set of axes: lines, and a dashed level with its label; or bars. ``right`` has a scale of its own on the right side; ``height`` is in points."""

    label: str
    lines: list[Line]
    level: tuple[float, str] | None = None
    right: Line | None = None
    percent: bool = False
    from_zero: bool = False
    ticks: list[tuple[float, str]] | None = None
    bars: Bars | None = None
    height: float = ROW


@dataclass(frozen=True)
class Panel:
    """A figure: axes stacked over one horizontal axis, a title and a caption that a reader needs to judge it."""

    key: str
    title: str
    caption: str
    xlabel: str
    axes: list[Axis] = field(default_factory=list)


def window(n: int) -> int:
    """Width of the moving mean of a series of n values: a fifteenth of it, odd."""
    return max(1, n // 15) | 1


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving mean of width `window`; at the ends over what there is."""
    half = window(len(values)) // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def draw(panel: Panel) -> str:
    """The panel as ``<svg>`` text for the inside of an HTML page; it loads nothing and needs no inline style."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none", "svg.hashsalt": "truing", "text.parse_math": False, "font.size": 9.0, "axes.edgecolor": MUTED, "axes.linewidth": 0.6,
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
        "axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 2.5, "ytick.major.size": 0.0, "axes.grid": True, "axes.grid.axis": "y",
        "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.unicode_minus": True,
    }  # fmt: skip
    rows = len(panel.axes)
    height = sum(a.height for a in panel.axes) + FOOT + (20 if rows == 1 else 0)
    with mpl.rc_context(style):
        figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")
        canvas = FigureCanvasSVG(figure)
        all_axes = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[a.height for a in panel.axes])[:, 0]
        longest = max((len(t) for a in panel.axes for t in _labels(a)), default=0)
        twin = any(a.right for a in panel.axes)
        margin = (40 if twin else 6) + min(112, 4.9 * longest + 9)
        figure.subplots_adjust(left=44 / WIDTH, right=1 - margin / WIDTH, bottom=FOOT / height, top=1 - 20 / height, hspace=0.34)
        for axes, spec in zip(all_axes, panel.axes, strict=True):
            _draw_axis(axes, spec, offset=40 if twin else 6)
        all_axes[-1].set_xlabel(panel.xlabel, labelpad=3)
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _tame(buffer.getvalue(), panel)


def _labels(axis: Axis) -> list[str]:
    beside = [text for text, _ in axis.bars.beside] if axis.bars else []
    return [line.label for line in [*axis.lines, *([axis.right] if axis.right else [])]] + ([axis.level[1]] if axis.level else []) + beside


def _draw_axis(axes: Axes, spec: Axis, offset: float) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.set_facecolor("none")
    axes.set_title(spec.label, loc="left", fontsize=9, pad=7, color=INK, x=-38 / (axes.get_position().width * WIDTH))
    if spec.bars:
        _draw_bars(axes, spec.bars, offset)
        return
    axes.yaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
    for line in spec.lines:
        _draw_line(axes, line)
    labels = [(float(_end(line)), line.label, line.colour) for line in spec.lines if len(line.y) and line.label]
    if spec.from_zero:
        axes.set_ylim(bottom=0)
    if spec.level:
        axes.axhline(spec.level[0], color=MUTED, linewidth=1, dashes=(4, 3))
        labels.append((spec.level[0], spec.level[1], MUTED))
    if spec.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        low, high = axes.get_ylim()
        if high > 1:  # no share exceeds 1, and a mark at 1 keeps room to be seen
            axes.set_ylim(min(low, 0.9), 1.005)
    if spec.ticks:
        axes.set_xticks([t for t, _ in spec.ticks], [text for _, text in spec.ticks])
        axes.set_xlim(min(t for t, _ in spec.ticks) - 0.5, max(t for t, _ in spec.ticks) + 0.5)
    elif all(np.asarray(line.x).dtype.kind in "iu" for line in spec.lines):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    low, high = axes.get_ylim()
    places = [((v - low) / (high - low), text, colour) for v, text, colour in labels]
    if spec.right and len(spec.right.y):
        other = axes.twinx()
        other.spines["right"].set_visible(True)
        other.grid(False)
        other.yaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
        _draw_line(other, spec.right)
        low, high = other.get_ylim()
        places.append(((_end(spec.right) - low) / (high - low), spec.right.label, spec.right.colour))
    gap = 10.5 / (axes.get_window_extent().height * 72 / axes.figure.dpi)
    _write_beside(axes, apart([p for p, _, _ in places], gap), [(t, c) for _, t, c in places], offset)


def _write_beside(axes: Axes, places: Sequence[float], texts: Sequence[tuple[str, str]], offset: float) -> None:
    for place, (text, colour) in zip(places, texts, strict=True):
        axes.annotate(
            text,
            (1, place),
            xycoords="axes fraction",
            xytext=(offset, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8.5,
            annotation_clip=False,
        )


def _draw_bars(axes: Axes, bars: Bars, offset: float) -> None:
    y = np.arange(len(bars.rows))
    left = np.zeros(len(y))
    for _, colour, lengths in bars.parts:
        axes.barh(y, lengths, left=left, height=0.86, color=colour, linewidth=0)
        left = left + np.asarray(lengths, dtype=float)
    axes.set_xlim(0, max(axes.get_xlim()[1], 1.02 * float(left.max()) or 1.0))
    axes.set_ylim(len(y) - 0.4, -0.6)
    axes.grid(False)
    every = -(-len(y) // 8)
    axes.set_yticks(y[::every], list(bars.rows)[::every])
    n = len(bars.beside)
    _write_beside(axes, [1 - (i + 0.5) / max(n, 9) for i in range(n)], bars.beside, offset)


def _draw_line(axes: Axes, line: Line) -> None:
    x, y = np.asarray(line.x), np.asarray(line.y, dtype=float)
    if line.low is not None and line.high is not None:
        error = np.abs(np.array([y - np.asarray(line.low), np.asarray(line.high) - y]))
        axes.errorbar(x, y, np.nan_to_num(error, nan=0.0), fmt="none", ecolor=line.colour, elinewidth=2, capsize=4, zorder=3)
    if line.marks:
        cloud = line.low is None and not line.label
        look: dict[str, Any] = {"markersize": 5, "markeredgewidth": 0, "alpha": 0.5} if cloud else {"markersize": 6, "markeredgewidth": 1.4}
        edge = INK if line.low is not None else line.colour
        axes.plot(x, y, line.marks, color=line.colour, markeredgecolor=edge, linestyle="none", **look)
        return
    dashes: dict[str, Any] = {"dashes": (5, 2)} if line.dashed else {}
    if line.trend and len(y) >= 15:
        axes.plot(x, y, color=line.colour, linewidth=0.7, alpha=0.35)
        axes.plot(x, smooth(y), color=line.colour, linewidth=1.9, **dashes)
    else:
        axes.plot(x, y, color=line.colour, linewidth=1.9, marker="o" if len(y) < 4 else None, markersize=4, **dashes)


def _end(line: Line) -> float:
    values = np.asarray(line.y, dtype=float)
    return float(smooth(values)[-1] if line.trend and not line.marks else values[-1])


def apart(places: list[float], gap: float) -> list[float]:
    """Move label heights (0 bottom, 1 top) the least that keeps them ``gap`` apart and inside."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    out = [min(1.0, max(0.0, p)) for p in places]
    for _ in range(60):
        for a, b in zip(order, order[1:], strict=False):
            short = gap - (out[b] - out[a])
            if short > 1e-9:
                out[a], out[b] = out[a] - short / 2, out[b] + short / 2
        out = [min(1.02, max(-0.02, p)) for p in out]
    return out


def _tame(text: str, panel: Panel) -> str:
    root = ET.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", text))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r"""(?:url\(#|href="#)([^)"]+)""", text))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {k.rpartition("}")[2]: v for k, v in element.attrib.items()}
        for item in attributes.pop("style", "").split(";"):
            key, _, value = item.partition(":")
            if key.strip() in _KEEP:
                attributes[key.strip()] = value.strip()
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id":
                value = f"{panel.key}-{value}"
            elif key in ("fill", "stroke"):
                value = _VARIABLES.get(value.lower(), value)
            element.set(key, re.sub(r"(url\(#|^#(?=[mp][0-9a-f]{10}))", rf"\g<1>{panel.key}-", value) if key in ("href", "clip-path") else value)
        if element.tag == "text" and "fill" not in element.attrib:
            element.set("fill", "currentColor")
        for attribute in ("text", "tail"):  # matplotlib breaks paths over lines
            if element.tag != "text" and (getattr(element, attribute) or "").isspace():
                setattr(element, attribute, None)
        if "d" in element.attrib:
            element.set("d", " ".join(element.attrib["d"].split()))
    box = root.get("viewBox", f"0 0 {WIDTH} {ROW}")
    root.attrib.clear()
    for key, value in {"viewBox": box, "role": "img", "aria-label": f"{panel.title}. {panel.caption}", "stroke-linejoin": "round"}.items():
        root.set(key, value)
    return ET.tostring(root, encoding="unicode")
