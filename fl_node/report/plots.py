"""Pictures of a run, as SVG that stands in a page: colours follow the page, text is text.

The palette is Okabe & Ito's (https://jfly.uni-koeln.de/color/), which is told apart with any kind of colour vision;
a marker or a dash says the same. The same figures always give the same bytes. matplotlib is imported when something
is drawn, and draws without a display.
"""

from __future__ import annotations

import html
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fl_node.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
STYLES: tuple[tuple[str, str, Any], ...] = (
    (BLUE, "o", "-"),
    (VERMILLION, "s", (0, (5, 1.5))),
    (GREEN, "^", (0, (2, 1.2))),
    (PURPLE, "D", (0, (6, 1.5, 1.5, 1.5))),
    (ORANGE, "v", (0, (8, 2))),
    (SKY, "P", (0, (1, 1))),
)
"""Colour, marker and dash of the learners, in their order; the palette's yellow is too faint for a line."""
PAPER_STYLES: tuple[tuple[str, Any], ...] = (
    ("+", (0, (1, 2))),
    ("x", (0, (4, 2))),
    (".", (0, (8, 2, 1, 2))),
    ("2", "none"),
)
"""Marker and dash of the paper's lines, which are all grey: the two learners, the single node, the final model."""
INK, MUTED, GRID, BACKGROUND = "#010101", "#767677", "#d0d0d1", "#fefefe"
"""Colours that the page replaces by its own, and that nothing else has."""
_OF_PAGE = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)", BACKGROUND: "var(--page)"}
MANY = len(STYLES)
"""So many learners have a line of their own in the legend; of more the range is shown."""
WIDTH = 5.4
"""Inches; the text of a picture this wide can be read on a telephone."""

Kind = Literal["learner", "global", "paper"]


@dataclass(frozen=True)
class Line:
    """One line of a diagram."""

    label: str
    points: Sequence[tuple[float, float]]
    kind: Kind = "learner"


@dataclass(frozen=True)
class Span:
    """From when to when somebody did something, in seconds."""

    start: float
    end: float
    kind: Literal["work", "wait"]


def lines(name: str, title: str, series: Sequence[Line], y_label: str, x_label: str, *, whole: bool = True) -> str:
    """Draw lines over numbers, such as rounds.

    Parameters
    ----------
    name
        The picture's id, unique in its page.
    title
        A description of the picture, for screen readers.
    series
        The lines; learners in the order of nodeId. Lines without points, such as those of learners whose values are
        hidden or unknown, are not in the legend.
    y_label, x_label
        The titles of the axes.
    whole
        Whether the horizontal axis has whole numbers only.
    """
    with _figure(WIDTH, 3.4) as (figure, axes):
        learners = [line for line in series if line.kind == "learner"]
        many = len(learners) > MANY
        if many:
            _range(axes, [line for line in learners if line.points])
        for position, line in enumerate([] if many else learners):
            if not line.points:
                continue  # the others keep their own colours
            colour, marker, dash = STYLES[position]
            axes.plot(
                *_xy(line), color=colour, marker=marker, linestyle=dash, label=line.label, markersize=_size(line)
            )
        for line in (line for line in series if line.kind == "global" and line.points):
            axes.plot(*_xy(line), color=INK, marker="*", linewidth=2, label=line.label, markersize=_size(line) + 2)
        for position, line in enumerate(line for line in series if line.kind == "paper" and line.points):
            marker, dash = PAPER_STYLES[position % len(PAPER_STYLES)]
            style: dict[str, Any] = {"color": MUTED, "linewidth": 1, "label": line.label, "zorder": 1.5}
            axes.plot(*_xy(line), marker=marker, markersize=_size(line), linestyle=dash, **style)
        axes.margins(x=0.04)
        if whole:
            _whole_numbers(axes.xaxis)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(figure, axes)
        return _svg(figure, name, title)


def timeline(name: str, title: str, rows: Sequence[tuple[str, Sequence[Span]]], marks: Sequence[float]) -> str:
    """Draw a timeline, one row per node: filled bars for work, open bars for waiting.

    Parameters
    ----------
    name, title
        As for :func:`lines`.
    rows
        The label of each row and its spans.
    marks
        Positions of vertical lines, in seconds.
    """
    with _figure(WIDTH * 1.6, 1.1 + 0.34 * len(rows)) as (figure, axes):
        for number, (_, spans) in enumerate(rows):
            colour = STYLES[number % MANY][0]
            for kind in ("work", "wait"):
                bars = [(span.start, max(span.end - span.start, 0.0)) for span in spans if span.kind == kind]
                # Work that follows on work is told apart by a gap.
                filled, edge = (colour, BACKGROUND) if kind == "work" else ("none", colour)
                axes.broken_barh(bars, (number - 0.3, 0.6), linewidth=0.8, facecolor=filled, edgecolor=edge)
        for mark in marks:
            axes.axvline(mark, color=MUTED, linewidth=0.8, zorder=0.5)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.01)
        axes.set_xlabel("seconds since the initial weights, by block timestamps")
        return _svg(figure, name, title)


def stacks(
    name: str,
    title: str,
    parts: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    y_label: str,
    x_label: str,
) -> str:
    """Draw stacked bars, one per label: the first part is filled, the others are hatched.

    Parameters
    ----------
    name, title
        As for :func:`lines`.
    parts
        The height of each part, by its name; one value per label.
    labels
        The labels on the x axis.
    y_label, x_label
        The titles of the axes.
    """
    with _figure(WIDTH, 2.7) as (figure, axes):
        bottom = [0.0] * len(labels)
        for number, (part, values) in enumerate(parts.items()):
            colour = STYLES[number][0]
            look: dict[str, Any] = {"edgecolor": colour, "linewidth": 1}
            look |= {"facecolor": "none", "hatch": "////"} if number else {"facecolor": colour}
            axes.bar(range(len(labels)), values, 0.7, bottom=bottom, label=part, **look)
            bottom = [low + value for low, value in zip(bottom, values, strict=True)]
        step = -(-len(labels) // 15)
        axes.set_xticks(range(0, len(labels), step), labels[::step])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_ylim(bottom=0)
        axes.grid(visible=False, axis="x")
        _legend(figure, axes)
        return _svg(figure, name, title)


def bubbles(name: str, title: str, counts: Mapping[int, Sequence[int]]) -> str:
    """Draw the number of images of each label and learner as the area of a circle.

    Parameters
    ----------
    name, title
        As for :func:`lines`.
    counts
        The number of images per label, by nodeId.
    """
    with _figure(WIDTH, 1.0 + 0.3 * len(counts)) as (figure, axes):
        _bubbles(axes, counts)
        return _svg(figure, name, title)


def bubbles_file(title: str, counts: Mapping[int, Sequence[int]]) -> str:
    """Draw the same with its title and the sum of each learner, as an SVG file of its own."""
    with _figure(WIDTH, 1.4 + 0.3 * len(counts)) as (figure, axes):
        _bubbles(axes, counts)
        axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=10)
        sums = axes.secondary_yaxis("right")
        sums.set_yticks(range(len(counts)), [str(sum(row)) for row in counts.values()])
        sums.set_ylabel("sum")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
        return stream.getvalue()


def _bubbles(axes: Axes, counts: Mapping[int, Sequence[int]]) -> None:
    most = max((max(row) for row in counts.values()), default=0) or 1
    for number, row in enumerate(counts.values()):
        bubbles = [(label, 150 * count / most) for label, count in enumerate(row) if count]
        places, sizes = [label for label, _ in bubbles], [size for _, size in bubbles]
        colour = STYLES[number % MANY][0]
        axes.scatter(places, [number] * len(bubbles), s=sizes, color=colour, linewidths=0)
    labels = max((len(row) for row in counts.values()), default=0)
    axes.set_xticks(range(labels))
    axes.set_xlim(-0.5, labels - 0.5)
    axes.set_yticks(range(len(counts)), [f"learner {node_id}" for node_id in counts])
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set_xlabel("label")
    axes.grid(visible=False)


def points(name: str, title: str, series: Sequence[Line], y_label: str, x_label: str) -> str:
    """Draw points, with a colour and marker per learner, or the same for all if there are many.

    Parameters
    ----------
    name, title, series, y_label, x_label
        As for :func:`lines`.
    """
    with _figure(WIDTH, 3.0) as (figure, axes):
        many = len(series) > MANY
        for position, line in enumerate(series):
            colour, marker, _ = STYLES[0 if many else position]
            label = line.label if not many else "_"
            axes.plot(*_xy(line), color=colour, marker=marker, linestyle="none", label=label, clip_on=False)
        _whole_numbers(axes.xaxis)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(figure, axes)
        return _svg(figure, name, title)


def roc(name: str, title: str, some: Sequence[Line]) -> str:
    """Draw ROC curves on logarithmic axes, which show whether few members are recognized for certain.

    Parameters
    ----------
    name, title
        As for :func:`lines`.
    some
        The curves: rates of false and true positives.
    """
    with _figure(WIDTH, 3.6) as (figure, axes):
        for position, line in enumerate(some):
            colour, _, dash = STYLES[position % MANY]
            axes.plot(*_xy(line), color=colour, linestyle=dash, label=line.label)
        axes.plot([1e-3, 1], [1e-3, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label="guessing")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(1e-3, 1)
        axes.set_ylim(1e-3, 1)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        _legend(figure, axes)
        return _svg(figure, name, title)


def _xy(line: Line) -> tuple[list[float], list[float]]:
    return [x for x, _ in line.points], [y for _, y in line.points]


def _size(line: Line) -> float:
    """Return the size of markers: smaller where there are many, so that they don't hide each other."""
    return 5 if len(line.points) <= 12 else 3


def _range(axes: Axes, learners: Sequence[Line]) -> None:
    """Draw what lies between the lowest and the highest learner, and each learner as a faint line."""
    if not learners:
        return
    values: dict[float, list[float]] = {}
    for line in learners:
        axes.plot(*_xy(line), color=BLUE, linewidth=0.6, alpha=0.5)
        for x, y in line.points:
            values.setdefault(x, []).append(y)
    there = sorted(values)
    low, high = [min(values[x]) for x in there], [max(values[x]) for x in there]
    label = f"{counted(len(learners), 'learner')}, lowest to highest"
    axes.fill_between(there, low, high, color=BLUE, alpha=0.18, linewidth=0, label=label)


def _legend(figure: Figure, axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=3.2)


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    # matplotlib warns of a home folder that it can't write to; readers of a report need not know.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "fl-node",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": MUTED,
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "hatch.linewidth": 0.8,
        "lines.linewidth": 1.4,
        "text.color": INK,
        "xtick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.color": MUTED,
        "ytick.labelcolor": INK,
    }
    with mpl.rc_context():
        mpl.rcdefaults()  # not what a person has set for their own pictures
        mpl.rcParams.update(settings)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        yield figure, axes


def _svg(figure: Figure, name: str, title: str) -> str:
    """Return a figure as an SVG element for a page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    size = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', text)
    head = (
        f'<svg viewBox="{size.group(0).split(chr(34))[1] if size else "0 0 1 1"}" role="img" '
        f'aria-labelledby="{name}-title" class="plot" style="--width: {float(size.group(1)) if size else 0:g}">'
        f'<title id="{name}-title">{html.escape(title)}</title>'
    )
    text = head + text[text.index(">") + 1 :]
    # Several pictures stand in one page: an id is kept where something refers to it, and bears the picture's name.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: _id(match, name, used), text)
    text = re.sub(r'((?:xlink:)?href="|url\()#([^")]+)', rf"\1#{name}-\2", text).replace("xlink:href", "href")
    # The page's own fonts and colours.
    text = re.sub(r"font-family: [^;\"]*;? ?", "", re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text))
    for colour, of_page in _OF_PAGE.items():
        text = text.replace(colour, of_page)
    return re.sub(r"\n\s*", "\n", text).strip()


def _id(match: re.Match[str], name: str, used: set[str]) -> str:
    own = match.group(1)
    if own == f"{name}-title":
        return match.group(0)
    return f' id="{name}-{own}"' if own in used else ""
