"""Plots as SVG text that stands inside an HTML page: values in, markup out.

Text stays text and takes the page's colour; lines are of middle tones that read on light and dark. Ids carry the
plot's name, so that several stand on one page, and the same values give the same bytes.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

PERSONAL_COLOR = "#3b82c4"
PLAIN_COLOR = "#8b919a"
BETTER_COLOR = "#3b82c4"
WORSE_COLOR = "#d07c2e"
LINE_COLOR = "#8b919a"

PAPER = "#fdfcfb"  # stands for the page's background
INCH = 96.0
_MAX_CURVES = 150
_MAX_POINTS = 160
_MAX_NAMED = 30

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.parse_math": False,  # a user may be called $1
    "axes.unicode_minus": True,
    "axes.edgecolor": LINE_COLOR,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": LINE_COLOR,
    "ytick.color": LINE_COLOR,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "grid.color": LINE_COLOR,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with its interval in a plot of methods."""

    label: str
    value: float
    low: float
    high: float
    color: str
    hollow: bool = False
    """A baseline: drawn as a ring."""


def plot_marks(name: str, marks: Sequence[Mark], width_px: float, *, zero: bool = False) -> str:
    """Methods from top to bottom, each a dot with its interval; `zero`: a thin line at 0."""
    with _figure(width_px, 40 + 22 * len(marks)) as (figure, axes):
        if zero:
            axes.axvline(0, color=LINE_COLOR, linewidth=0.8)
        for row, mark in enumerate(marks):
            axes.plot([mark.low, mark.high], [row, row], color=mark.color, linewidth=1.6, solid_capstyle="butt")
            face = PAPER if mark.hollow else mark.color
            axes.plot([mark.value], [row], "o", markersize=6, markerfacecolor=face, markeredgecolor=mark.color)
        axes.locator_params(axis="x", nbins=max(3, int(width_px / 80)))  # ticks such as −0.125 do not touch
        _name_rows(axes, [mark.label for mark in marks])
        return _svg(name, figure)


def plot_gains(name: str, gains: Mapping[str, float], label: str) -> str:
    """One bar per user, greatest gain first; users are named while they are few."""
    ordered = sorted(gains.items(), key=lambda pair: (-pair[1], pair[0]))
    return (_plot_named_gains if len(ordered) <= _MAX_NAMED else _plot_many_gains)(name, ordered, label)


def _plot_named_gains(name: str, gains: Sequence[tuple[str, float]], label: str) -> str:
    values = [value for _, value in gains]
    with _figure(400, 54 + 16 * len(gains)) as (figure, axes):
        axes.barh(range(len(values)), values, height=0.66, color=_gain_colors(values))
        zeros = [row for row, value in enumerate(values) if value == 0]
        axes.plot([0] * len(zeros), zeros, "o", markersize=3.5, color=LINE_COLOR)
        axes.axvline(0, color=LINE_COLOR, linewidth=0.8)
        axes.set_xlabel(label)
        _name_rows(axes, [_shorten(user) for user, _ in gains])
        return _svg(name, figure)


def _plot_many_gains(name: str, gains: Sequence[tuple[str, float]], label: str) -> str:
    values = [value for _, value in gains]
    with _figure(400, 225) as (figure, axes):
        axes.bar(range(len(values)), values, width=1.0 if len(values) > 120 else 0.8, color=_gain_colors(values))
        axes.axhline(0, color=LINE_COLOR, linewidth=0.8)
        axes.set_xticks([])
        axes.set_xlabel("users, greatest gain first")
        axes.set_ylabel(label)
        axes.spines["bottom"].set_visible(False)
        axes.grid(axis="y")
        return _svg(name, figure)


def plot_curves(name: str, curves: Mapping[str, Sequence[float]]) -> str:
    """Loss by step: a thin line for every user, the median bold while at least half of the users still train."""
    used = [np.asarray(curve, dtype=float) for _, curve in sorted(curves.items()) if len(curve)]
    with _figure(400, 235) as (figure, axes):
        for curve in _spread(used, _MAX_CURVES):
            axes.plot(*_thin(curve), color=PLAIN_COLOR, alpha=0.4, linewidth=0.7)
        middle = _median(used)
        axes.plot(*_thin(middle), "o-" if len(middle) == 1 else "-", color=PERSONAL_COLOR, linewidth=2.2, markersize=4)
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        axes.set_xlabel("step")
        axes.set_ylabel("training loss")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        axes.grid(axis="y")
        return _svg(name, figure)


def _name_rows(axes: Any, labels: Sequence[str]) -> None:
    """Rows from top to bottom with their names and no axis line."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _gain_colors(values: Sequence[float]) -> list[str]:
    return [BETTER_COLOR if value > 0 else WORSE_COLOR for value in values]


def _median(curves: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Median over the users at every step that at least half of them reach."""
    lengths = sorted((len(curve) for curve in curves), reverse=True)
    last = lengths[(len(lengths) - 1) // 2]
    table = np.full((len(curves), last), np.nan)
    for row, curve in enumerate(curves):
        table[row, : len(curve)] = curve[:last]
    table[~np.isfinite(table)] = np.nan  # a loss that diverged is a gap
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN slice")
        return np.asarray(np.nanmedian(table, axis=0))


def _thin(curve: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Steps, counted from 1, and losses; long curves as means over neighbouring steps."""
    parts = np.array_split(np.arange(len(curve)), min(len(curve), _MAX_POINTS))
    return np.array([part.mean() + 1 for part in parts]), np.array([curve[part].mean() for part in parts])


def _spread(curves: list[np.ndarray[Any, Any]], limit: int) -> list[np.ndarray[Any, Any]]:
    """At most `limit` of the curves, evenly spaced."""
    return [curves[i * len(curves) // limit] for i in range(limit)] if len(curves) > limit else curves


def _shorten(label: str) -> str:
    return label if len(label) <= 24 else label[:23] + "…"


@contextmanager
def _figure(width_px: float, height_px: float) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes; the style holds while they are drawn on and written."""
    from matplotlib import rc_context  # slow to import, and only a report needs it
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width_px / INCH, height_px / INCH), layout="constrained")
        yield figure, figure.add_subplot()


def _svg(name: str, figure: Any) -> str:
    return inline(name, svg_text(name, figure))


def svg_text(name: str, figure: Any) -> str:
    """The figure as matplotlib writes it; `name` decides the ids, so that the same values give the same text."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's own fonts draw the text
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def inline(name: str, svg: str) -> str:
    """The <svg> element alone, without namespaces and metadata, its ids and references to them prefixed by `name`."""
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(PAPER, "var(--paper)")
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'\bxlink:href="', 'href="', svg)
    svg = re.sub(r'\bhref="#([^"]*)"', rf'href="#{name}-\1"', svg)
    return re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg).strip()
