"""benchmarks/scaling.py: the formulas agree with the programs, and the document with the formulas."""

import pathlib
import runpy
import types

import pytest

ROOT = pathlib.Path(__file__).parent.parent
scaling = types.SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks/scaling.py")))
SIZES = {
    "small": scaling.SIZES["small"],
    # Longer than a chunk of queries on CPU, an odd number of everything, several users' histories.
    "odd": scaling.Size(items=701, width=10, blocks=2, length=63, batch=5, negatives=7, history=33),
}
APPROXIMATE = {"state": 1e-3, "alive beside them": 0.3}  # scalars are left out; products' arrays stand for all others


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("size", SIZES)
def test_formulas_agree_with_the_traced_step(size, form):
    found = list(scaling.checks(SIZES[size], form))
    assert len(found) == 6 + (form == "sparse")
    for check in found:
        assert check.measured == pytest.approx(check.formula, rel=APPROXIMATE.get(check.name, 1e-12)), check


@pytest.mark.parametrize("items", [2000, 40_000])  # in one tile, and in three
def test_formulas_agree_with_the_traced_evaluation(items):
    found = list(scaling.evaluation_checks(SIZES["small"]._replace(items=items)))
    assert len(found) == 2
    for check in found:
        assert check.measured == check.formula, check


@pytest.mark.slow
def test_dense_adam_goes_through_memory_once_for_each_array_and_item():
    """The compiler's own count, for one more item: value, moments and gradient, read and written."""
    check = scaling.per_item_check(SIZES["small"], "dense")
    assert check.formula == 8 * 4 * SIZES["small"].width
    assert check.formula <= check.measured < 2 * check.formula


def test_an_all_reduce_is_as_fast_as_published():
    for name, published in (("TPU v5e", 51.2e12), ("TPU v6e", 102.4e12)):  # bytes per second of a pod, docs/scaling.md
        chip = scaling.CHIPS[name]
        assert chip.link * chip.per_node == published
    h100 = scaling.CHIPS["H100 SXM"]
    assert scaling.all_reduce_seconds(1e9, 1, h100) == 0
    assert scaling.all_reduce_seconds(8e9, 2, h100) == pytest.approx(8e9 / 450e9)  # half of it each way, twice
    between = scaling.all_reduce_seconds(8e9, 16, h100) - scaling.all_reduce_seconds(8e9, 8, h100)
    assert between == pytest.approx(1e9 / 50e9)  # a chip's eighth


@pytest.mark.parametrize("moments", scaling.MOMENT_BYTES)
@pytest.mark.parametrize("name", scaling.CHIPS)
def test_the_layouts_for_a_billion_items_fit_and_smaller_ones_do_not(name, moments):
    chip = scaling.CHIPS[name]
    layout = scaling.smallest_layout(scaling.BILLION, chip, moments)
    assert layout.chips % min(layout.model, chip.per_node) == 0

    def needed(model):
        held = scaling.chip_bytes(scaling.BILLION, scaling.Layout(1, model), moments)
        return held["tables"] + max(held["a step"], held["an evaluation"])

    assert needed(layout.model) <= scaling.MEMORY_SHARE * chip.memory < needed(layout.model // 2)
    seconds = scaling.step_seconds(scaling.BILLION, layout, chip, moments)
    assert all(each > 0 for each in seconds.values())


def test_the_document_has_the_figures_that_the_script_prints(capsys):
    scaling.print_predictions(scaling.BILLION)
    printed = capsys.readouterr().out
    assert printed.count("\n|") > 20
    document = (ROOT / "docs/scaling.md").read_text()
    for line in printed.splitlines():
        assert line in document
