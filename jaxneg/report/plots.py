"""The pictures of a report: plain arrays in, a matplotlib figure out. No global state, no display."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator

DPI = 140
FRONT_COLOUR = "#999999"
# One colour and marker for a method in every picture; colours that the colour-blind can tell apart, markers besides.
METHODS = {
    "uniform": ("#0072b2", "o"),
    "popularity": ("#d55e00", "s"),
    "inverse_popularity": ("#e69f00", "v"),
    "popularity_cohort": ("#8c564b", "^"),
    "in_batch": ("#009e73", "D"),
    "mixed": ("#56b4e9", "P"),
    "adaptive": ("#cc79a7", "X"),
    "adaptive_mixed": ("#7b5fc7", "*"),
}
OTHER_COLOURS = ("#222222", "#b15928", "#1b9e77", "#e7298a", "#66a61e", "#a6761d", "#377eb8", "#999933", "#882255")
OTHER_MARKERS = "ph<>8dH"
COHORT_COLOURS = {"head": "#d55e00", "mid": "#e69f00", "tail": "#0072b2"}


class Look(NamedTuple):
    colour: str
    marker: str

    @property
    def size(self) -> float:
        """Points that look equally large: a star and a cross fill less of their square."""
        return {"*": 14.0, "P": 10.0, "X": 10.0}.get(self.marker, 8.5)


class Point(NamedTuple):
    """A method in the plane of accuracy and balance; the errors are distances below and above."""

    label: str
    x: float
    y: float
    x_error: tuple[float, float]
    y_error: tuple[float, float]
    on_front: bool


class Curve(NamedTuple):
    """A line with a band, over the same places."""

    label: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """{label: colour and marker}. A method has its own in every report; other labels share out the rest by name."""
    others = sorted(set(labels) - set(METHODS))
    rest = zip(others, itertools.cycle(OTHER_COLOURS), itertools.cycle(OTHER_MARKERS), strict=False)
    return {label: Look(*look) for label, look in METHODS.items() if label in labels} | {
        label: Look(colour, marker) for label, colour, marker in rest
    }


def method_order(label: str) -> tuple[int, str]:
    """Sort key: methods in the order of METHODS, then others by name; variants of a method follow it."""
    name = label.split(" ")[0]
    return (list(METHODS).index(name) if name in METHODS else len(METHODS), label)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a PNG without the date and the version, so that the same data gives the same file."""
    figure.savefig(path, format="png", metadata={"Software": None})


def pareto(points: Sequence[Point], baselines: Mapping[str, tuple[float, float]], styles: Mapping[str, Look]) -> Figure:
    """NDCG@10 against Balance with error bars, the front as a line, every point labelled."""
    figure = _figure(8, 5.6)
    axes = figure.subplots()
    for point in points:
        look = styles[point.label]
        errors = {"xerr": np.array([point.x_error]).T, "yerr": np.array([point.y_error]).T}
        axes.errorbar(
            point.x,
            point.y,
            **errors,
            color=look.colour,
            marker=look.marker,
            markersize=look.size,
            capsize=3,
            elinewidth=1.2,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=3,
        )
    for x, y in baselines.values():
        axes.plot(x, y, marker="o", markersize=7, color="white", markeredgecolor="#777777", linestyle="none", zorder=3)
    front = sorted(((point.x, point.y) for point in points if point.on_front), reverse=True)
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=FRONT_COLOUR, linestyle="--", linewidth=1.2, zorder=1)
    axes.set_xlabel("NDCG@10 (accuracy)")
    axes.set_ylabel("Balance (1: head, mid and tail alike)")
    axes.margins(0.12)
    _grid(axes)
    _no_offset(axes)
    names = {point.label: (point.x, point.y) for point in points} | dict(baselines)
    colours = {label: styles[label].colour if label in styles else "#777777" for label in names}
    lines = [((p.x - p.x_error[0], p.y), (p.x + p.x_error[1], p.y)) for p in points]
    lines += [((p.x, p.y - p.y_error[0]), (p.x, p.y + p.y_error[1])) for p in points]
    lines += itertools.pairwise(front)
    place_labels(axes, names, colours, lines)
    return figure


def place_labels(
    axes,
    points: Mapping[str, tuple[float, float]],
    colours: Mapping[str, str],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> list[Annotation]:
    """Writes each name near its point {name: (x, y)}, where it covers no other name, no point and no line.

    Tries places around the point, farther and farther out, and takes the first that is free; if none is, the one that
    covers least. A name that is not next to its point gets a thin line to it.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is measured from here on must stay where it is
    renderer, inside = figure.canvas.get_renderer(), axes.get_window_extent().extents
    at = {name: axes.transData.transform(point) for name, point in points.items()}
    taken = [_box(place, 11) for place in at.values()]  # boxes as left, bottom, right, top in pixels
    for ends in lines:
        start, end = axes.transData.transform(ends)
        steps = np.linspace(0, 1, 2 + int(np.hypot(*(end - start)) / 6))[:, None]  # a line as a row of dots
        taken += [_box(place, 3) for place in start + steps * (end - start)]
    written = []
    for name, place in at.items():
        text = axes.annotate(
            name,
            points[name],
            xytext=(0, 0),
            textcoords="offset pixels",
            color=colours[name],
            fontsize=9.5,
            ha="center",
            va="center",
            zorder=4,
        )
        half = text.get_window_extent(renderer).size / 2
        obstacles = np.array(taken)

        def cost(middle, half=half, obstacles=obstacles):
            box = _box(middle, half + 2)
            outside = np.prod(box[2:] - box[:2]) - _overlaps(box, inside[None]).sum()
            return _overlaps(box, obstacles).sum() + 10 * outside

        directions = [np.array([np.cos(angle), np.sin(angle)]) for angle in np.radians(range(0, 360, 30))]
        tried = [
            place + direction * (half + 15 + away)
            for away in (0, 12, 26, 42, 60, 80, 110, 140)
            for direction in directions
        ]
        middle = next((middle for middle in tried if cost(middle) <= 0), None)
        middle = min(tried, key=cost) if middle is None else middle
        text.set_position(tuple(middle - place))
        taken.append(_box(middle, half + 2))
        if np.hypot(*(np.abs(middle - place) - half).clip(0)) > 22:
            edge = np.clip(place, middle - half, middle + half)  # the nearest point of the text's box
            line = {"arrowstyle": "-", "color": colours[name], "linewidth": 0.7}
            axes.annotate("", points[name], xytext=tuple(edge - place), textcoords="offset pixels", arrowprops=line)
        written.append(text)
    return written


def _box(middle: np.ndarray, half: np.ndarray | float) -> np.ndarray:
    return np.concatenate([middle - half, middle + half])


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area that a box [4] shares with each of the others [n, 4]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return np.prod(sides.clip(0), axis=1)


def cohort_bars(
    bars: Mapping[str, Mapping[str, tuple[float, float, float]]], styles: Mapping[str, Look], metric: str
) -> Figure:
    """Head, mid and tail side by side, each with its own scale: {label: {cohort: (mean, distance below, above)}}."""
    cohorts = list(next(iter(bars.values())))
    figure = _figure(9, 1.3 + 0.34 * len(bars))
    panels = figure.subplots(1, len(cohorts), sharey=True)
    places = np.arange(len(bars))[::-1]
    for axes, cohort in zip(panels, cohorts, strict=True):
        values = np.array([each[cohort] for each in bars.values()])
        axes.barh(
            places,
            values[:, 0],
            xerr=values[:, 1:].T,
            height=0.7,
            capsize=2.5,
            ecolor="#111111",
            error_kw={"elinewidth": 1},
            color=[styles[label].colour for label in bars],
        )
        axes.set_title(f"{cohort} items", fontsize=11)
        axes.set_xlabel(metric)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(_few_ticks())
        _grid(axes, "x")
        _no_offset(axes)
    panels[0].set_yticks(places, list(bars))
    return figure


def learning_curves(panels: Mapping[str, Sequence[Curve]], styles: Mapping[str, Look]) -> Figure:
    """One panel for each {name: curves}, side by side over epochs, the legend below them."""
    figure = _figure(4.1 * len(panels), 4.2)
    for axes, (name, curves) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for curve in curves:
            look = styles[curve.label]
            axes.plot(
                curve.x,
                curve.mean,
                color=look.colour,
                marker=look.marker,
                markersize=look.size / 1.8,
                markevery=_apart(curve.x),
                linewidth=1.5,
                label=curve.label,
                markeredgecolor="white",
                markeredgewidth=0.3,
            )
            axes.fill_between(curve.x, curve.low, curve.high, color=look.colour, alpha=0.12, linewidth=0)
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(_few_ticks(integer=True))
        _grid(axes)
        _no_offset(axes)
    handles, labels = _each_once(figure)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9.5)
    return figure


def popularity(counts: np.ndarray, cohorts: np.ndarray, names: Sequence[str]) -> Figure:
    """Training users of every item by rank, both on a log scale, with the lines between the cohorts.

    counts [V]; cohorts [V]: the index of each item's cohort in `names`.
    """
    figure = _figure(8, 4.6)
    axes = figure.subplots()
    order = np.lexsort((-counts, cohorts))
    counts, cohorts = counts[order], cohorts[order]
    ranks = np.arange(1, len(counts) + 1)
    for index, name in enumerate(names):
        own = cohorts == index
        if own.any():
            share = counts[own].sum() / counts.sum()
            axes.plot(
                ranks[own],
                np.maximum(counts[own], 0.5),
                color=COHORT_COLOURS[name],
                linewidth=2.5,
                label=f"{name}: {own.sum():,} items ({own.mean():.1%}), {share:.0%} of the training rows",
            )
    for line in np.flatnonzero(np.diff(cohorts)) + 1.5:
        axes.axvline(line, color="#777777", linestyle=":", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("items, most popular first")
    axes.set_ylabel("training users" + (" (0 drawn at 0.5)" if counts.min() == 0 else ""))
    axes.legend(loc="lower left", frameon=True, fontsize=9.5)
    _grid(axes)
    return figure


def against_osf(places: Sequence[str], panels: Mapping[str, Sequence[Curve]], styles: Mapping[str, Look]) -> Figure:
    """One panel for each {name: curves}; a curve's x are indices into `places`, the names of the OSF values."""
    figure = learning_curves(panels, styles)
    for axes in figure.axes:
        axes.set_xticks(range(len(places)), places)
        axes.set_xlim(-0.4, len(places) - 0.6)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("OSF (oversampling factor)")
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _grid(axes, axis: str = "both") -> None:
    axes.grid(axis=axis, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _no_offset(axes) -> None:
    axes.ticklabel_format(useOffset=False, axis="both", style="plain")


def _apart(places: np.ndarray) -> np.ndarray:
    """Which of the places have room for a marker: those that do not all but touch the next one."""
    return np.append(np.diff(places) > 0.02 * np.ptp(places), True)


def _few_ticks(integer: bool = False) -> MaxNLocator:
    return MaxNLocator(nbins=4, integer=integer)


def _each_once(figure: Figure):
    found = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = sorted(found, key=method_order)
    return [found[label] for label in labels], labels
