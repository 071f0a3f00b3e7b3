"""Charts as SVG to stand inside an HTML page, drawn by matplotlib.

Every colour is a variable of the page's style, so that the same chart is light and dark; letters stay letters, in the
page's own font. What a chart shows is never told by colour alone, and its text alternative is given by the caller.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_COLORS = {f"#01020{place}": f"var(--{name})" for place, name in enumerate(("ink", "muted", "line", "one", "two"))}
_COLORS |= {f"#01021{place}": f"var(--{name})" for place, name in enumerate(("band", "mark", "p50", "p90", "p95"))}
_COLORS |= {f"#01022{place}": f"var(--heat{place})" for place in range(8)}
INK, MUTED, LINE, ONE, TWO, BAND, MARK, P50, P90, P95, *HEAT = _COLORS
"""Colours that nothing else has, each replaced by a variable of the page when the chart is drawn."""

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "path.simplify": True,
}
_STEPS = (1, 60, 3_600, 86_400)
WIDTH = 360
Format = Callable[[float], str]


def _drawn(draw: Callable[[Figure], None], height: int, alternative: str) -> str:
    """The SVG of a figure of WIDTH points; it fills the width that it is given."""
    settings: Any = {**_SETTINGS, "svg.hashsalt": alternative}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Letters that matplotlib's own font has not are drawn by the reader's browser, not here.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg [^>]*>", _opening(height, alternative), svg, count=1)
    svg = re.sub(
        r' id="(?:figure|patch|axes|matplotlib|xtick|ytick|line2d|text|PathCollection|QuadMesh)[^"]*"', "", svg
    )
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for color, variable in _COLORS.items():
        svg = svg.replace(color, variable)
    return svg


def _opening(height: int, alternative: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label={quoteattr(alternative)} '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    ).replace("\\", r"\\")


def _ticks(axes: Axes, low: float, top: float, unit: str, write: Format, most: int = 4) -> None:
    """Round values on the y axis; numbers and times from 0, times in whole seconds, minutes, hours or days."""
    top = top if np.isfinite(top) and top > 0 else 1.0
    if unit in ("rate", "score") and top - low < 0.4 * top:
        # From 0 these would be flat lines.
        least = 0.04 if unit == "rate" else 0.4
        low = max(0.0, min(low, top - least))
    else:
        low = 0.0
    step = max((s for s in _STEPS if s <= top / 2), default=1) if unit == "seconds" else 1
    locator = MaxNLocator(most, integer=unit == "count", steps=[1, 2, 5, 10] if unit == "rate" else [1, 2, 2.5, 5, 10])
    room = 0.06 * (top - low)
    found = [tick * step for tick in locator.tick_values(low / step, top / step) if low - room <= tick * step]
    if unit == "rate":
        found = [tick for tick in found if tick <= 1]
    found = [tick for tick in found if tick <= top + 2 * room]
    axes.set_yticks(found, [write(tick) for tick in found])
    axes.set_ylim(low - room if low else 0, max(top + room, *found))


def _dates(axes: Axes, days: Sequence[date], write: Callable[[date], str], every: int = 7) -> None:
    places = list(range(len(days) - 1, -1, -every))[::-1]
    axes.set_xticks(places, [write(days[place]) for place in places])
    axes.set_xlim(-0.5, len(days) - 0.5)


def _largest(*values: Any) -> float:
    return max((float(np.nanmax(v)) for v in values if len(v) and not np.all(np.isnan(v))), default=1.0)


def _least(*values: Any) -> float:
    return min((float(np.nanmin(v)) for v in values if len(v) and not np.all(np.isnan(v))), default=0.0)


def trend(
    days: Sequence[date],
    values: np.ndarray,
    usual: tuple[np.ndarray, np.ndarray],
    marked: np.ndarray,
    unit: str,
    write: Format,
    write_day: Callable[[date], str],
    alternative: str,
) -> str:
    """A line of days in the band of what is usual; unusual days are rings, the last day a dot."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(days))
        axes.fill_between(places, *usual, color=BAND, linewidth=0)
        axes.plot(places, values, color=ONE, linewidth=1.8)
        axes.plot(places[-1:], values[-1:], "o", color=ONE, markersize=5)
        axes.plot(places[marked], values[marked], "o", mfc="none", mec=MARK, mew=2, markersize=9)
        # A usual range that is far above all values would press the line flat.
        low, top = _least(values), _largest(values)
        low, top = min(low, max(_least(usual[0]), 0.7 * low)), max(top, min(_largest(usual[1]), 1.3 * top))
        _ticks(axes, low, top, unit, write)
        _dates(axes, days, write_day)

    return _drawn(draw, 150, alternative)


def panels(
    days: Sequence[date],
    channels: Mapping[str, np.ndarray],
    unit: str,
    write: Format,
    write_day: Callable[[date], str],
    alternative: str,
) -> str:
    """A small line for each channel under its name; on one scale, but for times, which differ too much."""
    rows = -(-len(channels) // 2)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, 2, sharex=True, squeeze=False).ravel()
        for axes, (name, values) in zip(grid, channels.items(), strict=False):
            axes.plot(np.arange(len(days)), values, color=ONE, linewidth=1.4)
            axes.set_title(name if len(name) <= 24 else f"{name[:23]}…", loc="left", fontsize=10, color=INK, pad=2)
            scale = (values,) if unit == "seconds" else tuple(channels.values())
            _ticks(axes, _least(*scale), _largest(*scale), unit, write, most=2)
            _dates(axes, days, write_day, every=14)
        for axes in grid[len(channels) :]:
            axes.remove()

    return _drawn(draw, 30 + 72 * rows, alternative)


def two_lines(
    days: Sequence[date],
    lines: Mapping[str, np.ndarray],
    write: Format,
    write_day: Callable[[date], str],
    alternative: str,
) -> str:
    """Two lines of numbers, one solid and one dashed, named by a legend."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, values), color, style in zip(lines.items(), (ONE, TWO), ("-", "--"), strict=False):
            axes.plot(np.arange(len(days)), values, color=color, linestyle=style, linewidth=1.8, label=name)
        _ticks(axes, 0, _largest(*lines.values()), "count", write)
        _dates(axes, days, write_day)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK)

    return _drawn(draw, 170, alternative)


def bars(
    counts: Sequence[int],
    labels: Sequence[str],
    lines: Mapping[str, float],
    write: Format,
    alternative: str,
) -> str:
    """Bars with a label under each, and lines at places between them.

    Args:
      counts: height of each bar.
      labels: what stands under each, or nothing.
      lines: name of a line -> its place on the axis; 0 is the left edge of the first bar.
      write: numbers as the reader writes them.
      alternative: text for those who do not see it.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(np.arange(len(counts)) + 0.5, counts, width=0.86, color=BAND, edgecolor=ONE, linewidth=0.7)
        _ticks(axes, 0, float(max(counts, default=1)), "count", write)
        edges = [place for place, label in enumerate(labels) if label]
        axes.set_xticks(edges, [labels[place] for place in edges])
        axes.set_xlim(0, len(counts))
        styles = zip(lines.items(), (P50, P90, P95), ("-", "--", ":"), strict=False)
        for (name, place), color, style in styles:
            axes.axvline(place, color=color, linestyle=style, linewidth=2, label=name)
        if lines:
            figure.legend(
                loc="outside upper left", ncols=3, frameon=False, labelcolor=INK, columnspacing=1, handlelength=2
            )

    return _drawn(draw, 190, alternative)


def heat(values: np.ndarray, weekdays: Sequence[str], write: Format, alternative: str) -> str:
    """Seven rows of 24 hours, the more the stronger, with a scale below."""

    def draw(figure: Figure) -> None:
        low, top = _least(values.ravel()), _largest(values.ravel())
        # What is never near 0 would have one colour only.
        low = low if low > 0.5 * top else 0.0
        steps = np.linspace(low, top if top > low else low + 1, len(HEAT) + 1)
        colors = matplotlib.colors.ListedColormap(HEAT)
        norm = matplotlib.colors.BoundaryNorm(steps, len(HEAT))
        axes = figure.subplots()
        axes.grid(False)
        mesh = axes.pcolormesh(np.arange(25), np.arange(8), np.ma.masked_invalid(values), cmap=colors, norm=norm)
        axes.invert_yaxis()
        axes.set_yticks(np.arange(7) + 0.5, weekdays)
        axes.set_xticks(np.arange(0, 24, 3) + 0.5, [f"{hour:02}" for hour in range(0, 24, 3)])
        for spine in axes.spines.values():
            spine.set_visible(False)
        scale = figure.colorbar(mesh, ax=axes, orientation="horizontal", aspect=40, pad=0.02, shrink=0.7)
        places = steps[[0, 4, 8]].tolist()
        scale.set_ticks(places, labels=[write(place) for place in places])
        scale.outline.set_visible(False)

    return _drawn(draw, 190, alternative)


def columns(counts: Sequence[int], names: Sequence[str], write: Format, alternative: str) -> str:
    """Bars with their numbers on them and a name under each."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(np.arange(len(counts)), counts, width=0.7, color=BAND, edgecolor=ONE, linewidth=0.7)
        for place, count in enumerate(counts):
            axes.annotate(
                write(count), (place, count), (0, 3), textcoords="offset points", ha="center", va="bottom", color=INK
            )
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks([])
        axes.set_ylim(0, 1.15 * max(counts, default=1))

    return _drawn(draw, 150, alternative)
