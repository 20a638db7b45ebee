"""Pictures: labels that cover nothing, one look per method, and scales that show what is there."""

import itertools

import numpy as np
import pytest

from jaxneg.report import plots

LABELS = [*plots.METHODS, "dns", "uniform (learning_rate=0.01)"]


def boxes_of(figure, texts):
    renderer = figure.canvas.get_renderer()
    return [text.get_window_extent(renderer) for text in texts]


def scattered(kind, rng):
    """Points of a data set: in clusters, all in one place, or along a line."""
    middle = {"clusters": rng.choice([0.01, 0.02], len(LABELS)), "one place": 0.01, "line": np.linspace(0.0, 0.03, 10)}
    x = middle[kind] + rng.normal(0, 0.0002, len(LABELS))
    y = (0.5 + rng.normal(0, 0.01, len(LABELS))) if kind != "line" else np.linspace(0.9, 0.3, 10)
    return [
        plots.Point(label, float(a), float(b), (0.001, 0.002), (0.02, 0.01), bool(a > 0.015))
        for label, a, b in zip(LABELS, x, y, strict=True)
    ]


@pytest.mark.parametrize("kind", ["clusters", "one place", "line"])
def test_labels_cover_no_label_and_no_point(kind):
    points = scattered(kind, np.random.default_rng(0))
    baselines = {"popularity_baseline": (0.0101, 0.34), "popularity_last_7_days": (0.0102, 0.34)}
    figure = plots.pareto(points, baselines, plots.looks(LABELS))
    (axes,) = figure.axes
    texts = [text for text in axes.texts if text.get_text()]
    assert {text.get_text() for text in texts} == {*LABELS, *baselines}
    boxes = boxes_of(figure, texts)
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    places = axes.transData.transform([(point.x, point.y) for point in points] + list(baselines.values()))
    for box in boxes:
        assert not any(box.contains(*place) for place in places)
        assert axes.get_window_extent().contains(box.x0, box.y0) and axes.get_window_extent().contains(box.x1, box.y1)


def test_labels_stay_where_they_were_measured(tmp_path):
    """The saved picture has the same layout as the one that the labels were placed in."""
    figure = plots.pareto(scattered("clusters", np.random.default_rng(1)), {}, plots.looks(LABELS))
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    before = [box.bounds for box in boxes_of(figure, texts)]
    plots.save(figure, tmp_path / "a.png")
    np.testing.assert_allclose([box.bounds for box in boxes_of(figure, texts)], before, atol=1)
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_method_looks_the_same_in_every_picture():
    alone, together = plots.looks(["mixed"]), plots.looks(LABELS)
    assert alone["mixed"] == together["mixed"]
    assert len({look.colour for look in together.values()}) == len(LABELS)
    assert len({(look.colour, look.marker) for look in together.values()}) == len(LABELS)
    curve = [plots.Curve("mixed", np.array([1, 2]), np.array([0.1, 0.2]), np.array([0.1, 0.1]), np.array([0.2, 0.3]))]
    line = plots.learning_curves({"HR@10": curve}, together).axes[0].lines[0]
    values = {"mixed": {"head": (0.1, 0, 0), "tail": (0.2, 0, 0)}}
    bar = plots.cohort_bars(values, together, "NDCG@10").axes[0].patches[0]
    assert line.get_color() == together["mixed"].colour
    assert tuple(round(255 * part) for part in bar.get_facecolor()[:3]) == tuple(
        bytes.fromhex(together["mixed"].colour[1:])
    )


def test_bars_and_curves_show_the_values():
    styles = plots.looks(["mixed", "uniform"])
    bars = {
        "uniform": {"head": (0.3, 0.1, 0.2), "tail": (0.001, 0, 0)},
        "mixed": {"head": (0.2, 0, 0), "tail": (0.1, 0, 0)},
    }
    head, tail = plots.cohort_bars(bars, styles, "NDCG@10").axes
    assert [patch.get_width() for patch in head.patches] == [0.3, 0.2] and tail.get_xlim()[1] < head.get_xlim()[1]
    assert [label.get_text() for label in head.get_yticklabels()] == ["uniform", "mixed"]
    curve = plots.Curve("mixed", np.array([0, 1]), np.array([0.1, 0.2]), np.array([0.1, 0.1]), np.array([0.2, 0.3]))
    figure = plots.against_osf(["1", "inf"], {"NDCG@10": [curve], "seconds": [curve]}, styles)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["1", "inf"]
    assert figure.axes[0].get_ylim()[0] == 0
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mixed"]


def test_the_lines_between_cohorts():
    counts, cohorts = np.array([1, 50, 9, 0, 30, 2]), np.array([2, 0, 1, 2, 0, 2])
    (axes,) = plots.popularity(counts, cohorts, ("head", "mid", "tail")).axes
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [2.5, 3.5]
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words[0] == "head: 2 items (33.3%), 87% of the training rows" and "0 drawn at 0.5" in axes.get_ylabel()


def test_an_evaluation_right_before_the_last_has_no_marker_of_its_own():
    epochs, value = np.array([25.0, 50.0, 200.0, 201.0]), np.arange(4.0)
    curve = {"HR@10": [plots.Curve("uniform", epochs, value, value, value)]}
    line = plots.learning_curves(curve, plots.looks(["uniform"])).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_markevery(), [True, True, False, True])
    np.testing.assert_array_equal(line.get_xdata(), epochs)
