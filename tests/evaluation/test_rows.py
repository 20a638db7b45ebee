"""Rows, the best epoch, the table and the files, by values worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from jaxneg import files
from jaxneg.evaluation import rows as results
from jaxneg.report import table as table_lib

LOG3 = 1 / math.log2(3)


def rows_of_five_cases(**changes):
    """Targets: head at rank 0; head at 1; mid at 0 or 1 (a tie); mid at 30; a cold tail at rank 3."""
    arguments = {
        "num_above": np.int32([0, 1, 0, 30, 3]),
        "num_tied": np.int32([0, 0, 1, 0, 0]),
        "case_cohorts": np.int8([0, 0, 1, 1, 2]),
        "case_cold": np.array([False, False, False, False, True]),
        "exposure": np.int32([[0, 2, 0, 0, 0], [0, 2, 2, 2, 2]]),
        "item_counts": np.int64([0, 10, 20, 30, 0]),
        "ks": (1, 10),
        "epoch": 25,
        "step": 400,
        "seed": 3,
        "split": "test",
    }
    return results.evaluation_rows(**(arguments | changes))


def test_rows_of_one_evaluation():
    everything, head, mid, tail = rows_of_five_cases(extra={"loss": 0.5})
    assert [row["cohort"] for row in (everything, head, mid, tail)] == ["all", "head", "mid", "tail"]
    assert [row["cases"] for row in (everything, head, mid, tail)] == [5, 2, 2, 1]
    for row in (everything, head, mid, tail):
        named = [row[name] for name in ("epoch", "step", "seed", "split", "loss")]
        assert named == [25, 400, 3, "test", 0.5]
    assert head["hr@1"] == pytest.approx(0.5) and head["hr@10"] == pytest.approx(1)
    assert head["ndcg@10"] == pytest.approx((1 + LOG3) / 2)
    assert mid["hr@1"] == pytest.approx(0.25) and mid["ndcg@10"] == pytest.approx((1 + LOG3) / 4)
    assert mid["mrr@10"] == pytest.approx(0.375)
    assert tail["ndcg@10"] == pytest.approx(1 / math.log2(5)) and tail["mrr@1"] == 0
    assert everything["hr@10"] == pytest.approx(0.8) and everything["hr@1"] == pytest.approx(0.3)
    assert everything["cold_cases"] == 1 and everything["cold_share"] == pytest.approx(0.2)
    assert everything["warm_hr@10"] == pytest.approx(0.75)
    assert everything["warm_ndcg@1"] == pytest.approx(1.5 / 4)
    # |1 - 1/2| + |1 - 1| + |1 - 1/2|, twice, over 2 * 3 * (1 + 1/2 + 1)
    assert everything["balance_hr"] == pytest.approx(1 - 2 / 15, abs=1e-6)
    assert 1 / 3 < everything["balance"] < 1
    assert [everything[f"coverage@{k}"] for k in (1, 10)] == [0.25, 1]
    assert [everything[f"arp@{k}"] for k in (1, 10)] == [10, 15]
    assert [everything[f"exposure_gini@{k}"] for k in (1, 10)] == pytest.approx([0.75, 0])
    assert "balance" not in head and "coverage@10" not in mid


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, ""),
        ({"balance": 0.49}, ""),
        ({"tail_hr@10": 0.0009}, ""),
        ({"balance": 0.49, "tail_hr@10": 0.0009}, "Balance is 0.49 and tail items are not found"),
        ({"popular_share@10": 0.51}, "51% of the recommendations are the 10 most popular items"),
        ({"balance": math.nan, "tail_hr@10": math.nan, "popular_share@10": math.nan}, ""),
    ],
)
def test_collapse_is_told_by_the_rule(changes, words):
    row = {"balance": 0.8, "popular_share@10": 0.5, "head_hr@10": 0.02, "mid_hr@10": 0.02, "tail_hr@10": 0.02}
    assert results.collapse(row | changes) == words


def test_nothing_hit_and_an_empty_cohort_leave_no_balance():
    missed = {"num_above": np.full(5, 99), "num_tied": np.zeros(5, int)}
    assert math.isnan(rows_of_five_cases(**missed)[0]["balance"])
    assert rows_of_five_cases(**missed, reference=True)[0]["balance"] == 1
    everything, _, mid, _ = rows_of_five_cases(case_cohorts=np.int8([0, 0, 0, 0, 2]))
    assert mid["cases"] == 0 and math.isnan(mid["hr@10"])
    assert math.isnan(everything["balance"]) and math.isnan(everything["balance_hr"])


def test_no_case_at_all():
    none = {name: np.zeros(0, int) for name in ("num_above", "num_tied", "case_cohorts", "case_cold")}
    everything = rows_of_five_cases(**none)[0]
    assert everything["cases"] == 0
    assert math.isnan(everything["hr@10"]) and math.isnan(everything["cold_share"])


def test_ten_is_always_among_the_ks():
    assert results.metric_ks([50, 5, 5]) == (5, 10, 50)
    assert results.metric_ks([]) == (10,)
    with pytest.raises(ValueError, match="metric_ks"):
        rows_of_five_cases(ks=(1, 5))


@pytest.mark.parametrize(
    ("hit_rates", "best"),
    [([0.1, 0.3, 0.3, 0.2], 1), ([0.0, 0.0], 0), ([math.nan, 0.0, 0.1], 2), ([math.nan] * 3, 2), ([None, 0.0], 1)],
)
def test_the_first_strictly_largest_validation_hit_rate_is_the_best(hit_rates, best):
    assert results.best_evaluation(hit_rates) == best


def result(**changes):
    valid, test = rows_of_five_cases(split="valid", num_above=np.full(5, 2)), rows_of_five_cases()
    arguments = {"dataset": "toy", "method": "uniform", "status": "ok", "train_seconds": 1.5}
    return results.result_row(valid, test, **arguments) | changes


def test_result_row_has_the_promised_columns_in_order():
    row = result()
    assert tuple(row)[: len(results.RESULT_COLUMNS)] == results.RESULT_COLUMNS
    assert (row["seed"], row["best_epoch"], row["valid_hr@10"], row["hr@10"]) == (3, 25, 1.0, 0.8)
    assert (row["cases"], row["head_cases"], row["mid_cases"], row["tail_cases"]) == (5, 2, 2, 1)
    assert row["head_ndcg@10"] == pytest.approx((1 + LOG3) / 2) and row["tail_hr@10"] == 1
    assert row["warm_hr@10"] == 0.75 and row["mrr@1"] == pytest.approx(0.3) and row["valid_cases"] == 5
    assert row["step"] == 400 and "cohort" not in row and "split" not in row


def test_table_shows_mean_and_deviation_over_seeds_aligned():
    rows = [result(**{"hr@10": 0.1}), result(**{"hr@10": 0.3}), result(method="popularity baseline")]
    header, rule, uniform, baseline = table_lib.results_table(rows).splitlines()
    assert "0.2000 +- 0.1414" in uniform and "0.8000" in baseline and "+-" not in baseline
    assert "coverage" in header and set(rule) == {"-"}
    assert len(header) == len(rule) == len(uniform) == len(baseline)  # the last column is right-aligned
    assert uniform.index("0.1414") + 6 == header.index("HR@10") + 5
    assert "toy" not in uniform
    two = table_lib.results_table([result(), result(dataset="other")]).splitlines()
    assert two[0].startswith("dataset") and two[2].startswith("toy") and two[3].startswith("other")


def test_table_says_in_words_why_a_balance_is_missing():
    rows = [result(seed=0), result(seed=1, balance=math.nan), result(seed=2, balance=math.nan, mid_cases=0)]
    table = table_lib.results_table(rows)
    assert "uniform, seed 1: Balance is undefined, because no test case is hit at 10." in table
    assert "uniform, seed 2: Balance is undefined, because no test case has a mid target." in table
    assert "nan" not in table
    none = table_lib.results_table([result(balance=math.nan), result(method="mixed")])
    assert "undefined" in none.splitlines()[2]


def test_table_counts_failed_seeds_and_leaves_them_out():
    rows = [result(seed=0), result(seed=1, status="failed", balance=math.nan, **{"hr@10": 0.9})]
    _, _, line, note = table_lib.results_table(rows).splitlines()
    assert "1 of 2" in line and "0.9" not in line and "+-" not in line
    assert note == "uniform: 1 of 2 seeds failed (not finite); the means leave them out."


def test_results_are_read_as_they_were_written(tmp_path):
    numbers = np.random.default_rng(0).random(100).tolist()
    rows = [result(dataset="NA", balance=math.nan)]
    rows += [result(seed=seed, **{"hr@10": number}) for seed, number in enumerate(numbers)]
    files.write_csv(tmp_path / "results.csv", rows)
    back = results.read_results(tmp_path / "results.csv")
    pd.testing.assert_frame_equal(back, pd.DataFrame(rows), check_dtype=False, check_exact=True)
    assert back["dataset"][0] == "NA" and table_lib.results_table(back) == table_lib.results_table(rows)


def write_run(folder, dataset, method):
    folder.mkdir(parents=True)
    rows = rows_of_five_cases()
    for name, called in (("results.csv", method), ("baselines.csv", "popularity_baseline")):
        row = results.result_row(rows, rows, dataset=dataset, method=called, status="ok", train_seconds=1.0)
        files.write_csv(folder / name, [row])


def test_the_command_gathers_runs_and_shows_each_baseline_once(tmp_path, capsys):
    for dataset, method in (("b", "uniform"), ("a", "uniform"), ("a", "mixed")):
        write_run(tmp_path / dataset / method, dataset, method)
    assert table_lib.main([str(tmp_path)]) == 0
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    baseline = "popularity_baseline"
    assert lines == [["a", baseline], ["a", "mixed"], ["a", "uniform"], ["b", baseline], ["b", "uniform"]]


def test_a_folder_without_a_finished_run_is_refused(tmp_path, capsys):
    assert table_lib.main([str(tmp_path)]) == 2
    assert f"{tmp_path}: no results.csv" in capsys.readouterr().err
