"""The figure of a study: panels, each drawn twice, alone for the page and together as one SVG file.

In the page each panel is a figure that wraps on a narrow screen; the file carries its own colours for light and dark.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oppu.errors import DataError
from oppu.evaluate.reports.fit import Line
from oppu.evaluate.reports.plots import INCH, LINE_COLOR, STYLE, inline, svg_text

COLORS = ("#3b82c4", "#d07c2e", "#3d9a6b", "#a268c4", "#8b919a", "#c4504f")
"""Middle tones that read on light and dark, in the order of their use."""
MARKERS = ("o", "s", "^", "D", "v", "P")
"""A shape for each, for those to whom the colours look alike."""

_PANEL_PX = (400, 270)
_IN_A_ROW = 4
"""Most entries of a legend."""
_LEGEND_CHARACTERS = 56
"""What a panel's legend has room for, with _BESIDE_TEXT for each entry's line or dot and the space before the next."""
_BESIDE_TEXT = 6
_APART = 0.14
"""Between dots at one place, where places are 1 apart."""
_IN_FILE = """<style>
svg { --paper: #fdfdfb; color: #1f2328; background: var(--paper); }
@media (prefers-color-scheme: dark) { svg { --paper: #15171a; color: #e3e4e3; } }
text { fill: currentColor; }
</style>"""

_FOREIGN = re.compile(
    r"<script|<foreignObject|<[^>]*(\son\w+|(href|src))\s*=\s*[\"'](?!#|data:image/png;)", re.IGNORECASE
)
"""What runs or fetches something; a picture that lies in the figure itself does neither."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of a figure."""

    title: str
    draw: Callable[[Any], None]
    """Draws on matplotlib's axes."""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points with their ranges, joined by lines or with a fitted one."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    ranges: tuple[tuple[float, float], ...] = ()
    """(least, greatest) of each y; empty: none are drawn."""
    fit: Line | None = None
    """Drawn in place of the lines from point to point."""


def lines_of(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    top: float | None = None,
    level: float | None = None,
    level_name: str = "",
    from_zero: bool = True,
) -> Callable[[Any], None]:
    """Draws series from zero on, or from below where a value is.

    `top`: the greatest y of the axis. `level`: a thin line across, in the legend if it has a name. `from_zero`:
    False for values that lie close together: the axis then shows their span.
    """

    def draw(axes: Any) -> None:
        for place, each in enumerate(series):
            color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
            for x, (low, high) in zip(each.x, each.ranges, strict=False):
                axes.plot([x, x], [low, high], color=color, linewidth=1.4, alpha=0.7)
            if each.fit is None:
                axes.plot(each.x, each.y, color=color, linewidth=1.4)
            else:
                ends = [min(each.x), max(each.x)]
                axes.plot(ends, [each.fit.at(x) for x in ends], color=color, linewidth=1.2, linestyle=(0, (4, 2)))
            axes.plot(each.x, each.y, marker, markersize=5, color=color, label=each.label)
        if level is not None:
            axes.axhline(level, color=LINE_COLOR, linewidth=0.8, label=level_name)
        ticks = sorted({x for each in series for x in each.x})
        if log_x:
            _log_axis(axes, ticks)
        elif all(float(x).is_integer() for x in ticks):  # half an item is none
            axes.locator_params(axis="x", integer=True)
        if from_zero:
            values = [y for each in series for y in (*each.y, *(end for pair in each.ranges for end in pair))]
            axes.set_ylim(1.08 * min(0.0, *values), top if top is not None else 1.08 * max(0.0, *values) or 1.0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(axis="y")
        legend_above(axes)

    return draw


def marks_of(
    series: Sequence[Series],
    names: Sequence[str],
    y_label: str,
    *,
    level: float | None = None,
    level_name: str = "",
) -> Callable[[Any], None]:
    """Draws series over named places, an x of 0 being the first: dots with their ranges, side by side at a place.

    `level`: a thin line across, in the legend if it has a name. The axis begins at zero, or below where a value does.
    """

    def draw(axes: Any) -> None:
        for place, each in enumerate(series):
            color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
            beside = [x + _APART * (place - (len(series) - 1) / 2) for x in each.x]
            for x, (low, high) in zip(beside, each.ranges, strict=False):
                axes.plot([x, x], [low, high], color=color, linewidth=1.4, alpha=0.7)
            axes.plot(beside, each.y, marker, markersize=5.5, color=color, label=each.label)
        if level is not None:
            axes.axhline(level, color=LINE_COLOR, linewidth=0.8, label=level_name)
        values = [y for each in series for y in (*each.y, *(end for pair in each.ranges for end in pair))]
        lowest, highest = min(0.0, *values), max(0.0, *values, *([] if level is None else [level]))
        axes.set_ylim(1.08 * lowest, 1.08 * highest or 1.0)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylabel(y_label)
        axes.grid(axis="y")
        legend_above(axes)

    return draw


def panel_svg(name: str, panel: Panel) -> str:
    """One panel as an <svg> inside a page; `name` makes its ids its own."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(_PANEL_PX[0] / INCH, _PANEL_PX[1] / INCH), layout="constrained")
        panel.draw(figure.add_subplot())
        return inline(name, svg_text(name, figure))


def figure_svg(name: str, panels: Sequence[Panel]) -> str:
    """All panels, two in a row, as an SVG file."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with rc_context(STYLE):
        size = (columns * _PANEL_PX[0] / INCH, rows * (_PANEL_PX[1] + 30) / INCH)
        figure = Figure(figsize=size, layout="constrained")
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, place + 1)
            panel.draw(axes)
            legend = axes.get_legend()
            labels = [] if legend is None else [text.get_text() for text in legend.get_texts()]
            rows_above = math.ceil(len(labels) / legend_columns(labels)) if labels else 0
            axes.set_title(panel.title, loc="left", fontsize=9.5, fontweight="bold", pad=6 + 13 * rows_above)
        text = inline(name, svg_text(name, figure))
    return re.sub(r"<svg([^>]*)>", rf'<svg xmlns="http://www.w3.org/2000/svg"\1>\n{_IN_FILE}', text, count=1) + "\n"


def within_page(name: str, file: str, where: Path) -> str:
    """What `figure_svg` wrote, as an <svg> inside a page; `name` makes its ids its own. DataError for anything else."""
    head, own_style, rest = file.partition(_IN_FILE)
    if not own_style or _FOREIGN.search(file):
        raise DataError(["its figure is not one that a study wrote"], where=str(where), fix="run the study again")
    return inline(name, head + rest)


def legend_above(axes: Any) -> None:
    """A legend above the plot, where no line runs; none where nothing has a label."""
    from matplotlib.patches import Patch

    handles, labels = axes.get_legend_handles_labels()
    if labels:
        are_wide = any(isinstance(each, Patch) for each in handles)  # and not dots with room around them
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=legend_columns(labels),
            frameon=False,
            handletextpad=0.5 if are_wide else 0.1,
            columnspacing=1.2,
            borderaxespad=0,
            borderpad=0.3,
        )


def legend_columns(labels: Sequence[str]) -> int:
    """How many entries stand in a row: as many as the panel has room for, else its axes would shrink."""
    for columns in range(min(_IN_A_ROW, len(labels)), 1, -1):
        rows, longer = divmod(len(labels), columns)  # filled column by column, the first ones with one more
        sizes = [rows + (place < longer) for place in range(columns)]
        starts = [sum(sizes[:place]) for place in range(columns)]
        widths = [max(map(len, labels[start : start + size])) for start, size in zip(starts, sizes, strict=True)]
        if sum(widths) + _BESIDE_TEXT * columns <= _LEGEND_CHARACTERS:
            return columns
    return 1


def _log_axis(axes: Any, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.minorticks_off()
