"""The simulation against all rankings of a small case, against what is known in closed form, and against the paper."""

import itertools

import numpy as np
import pandas as pd
import pytest

from jaxneg.evaluation import opauc

# Shi et al. (WWW 2023, arXiv 2302.03472): metric, K -> the highest correlation with OPAUC(beta), and that beta
PUBLISHED = {("Recall", 10): (0.931, 0.015), ("Recall", 50): (0.938, 0.074), ("NDCG", 10): (0.956, 0.011)}
PUBLISHED_AUC = {("Recall", 10): 0.179, ("Recall", 50): 0.379, ("NDCG", 10): 0.162}


def all_rankings(num_positives, num_negatives, k):
    """{metric: values}, and {beta: areas}, over every ranking, by the pairs of a positive and a negative."""
    length = num_positives + num_negatives
    metrics, areas = {"Recall": [], "NDCG": []}, {depth: [] for depth in range(1, num_negatives + 1)}
    for chosen in itertools.combinations(range(length), num_positives):
        metrics["Recall"].append(sum(rank < k for rank in chosen) / num_positives)
        metrics["NDCG"].append(sum(1 / np.log2(rank + 2) for rank in chosen if rank < k))
        negatives = [rank for rank in range(length) if rank not in chosen]
        for depth, values in areas.items():
            values.append(sum(rank < other for rank in chosen for other in negatives[:depth]))
    return metrics, areas


def test_a_small_case_against_every_ranking():
    frame = opauc.correlations(40_000, 4, 6, ks=(3,))
    metrics, areas = all_rankings(4, 6, 3)
    for metric, of_metric in metrics.items():
        rows = frame[frame["metric"] == metric]
        assert rows["beta"].tolist() == pytest.approx([depth / 6 for depth in areas])
        exact = [np.corrcoef(of_metric, values)[0, 1] for values in areas.values()]
        np.testing.assert_allclose(rows["correlation"], exact, atol=0.02)  # four standard errors of a zero correlation
    assert (
        frame[frame["metric"] == "Precision"]["correlation"].tolist()
        == frame[frame["metric"] == "Recall"]["correlation"].tolist()
    )


def assert_as_published(num_rankings, tolerance):
    frame = opauc.correlations(num_rankings, ks=(10, 50))
    found = opauc.peaks(frame).set_index(["metric", "k"])
    for case, (correlation, beta) in PUBLISHED.items():
        assert found.loc[case, "correlation"] == pytest.approx(correlation, abs=0.01)
        at_published = frame[(frame["metric"] == case[0]) & (frame["k"] == case[1])].set_index("beta")["correlation"]
        nearest = at_published.index[np.abs(at_published.index - beta).argmin()]
        assert at_published[nearest] == pytest.approx(correlation, abs=0.01)
        assert found.loc[case, "beta"] == pytest.approx(beta, rel=0.15)
        assert found.loc[case, "auc"] == pytest.approx(PUBLISHED_AUC[case], abs=tolerance)
    # AUC and the two metrics are sums over the positives' ranks: their correlation is that of the summands.
    rank = np.arange(1000)
    for (metric, k), row in found.iterrows():
        gain = (rank < k) / (np.log2(rank + 2) if metric == "NDCG" else 1.0)
        assert row["auc"] == pytest.approx(np.corrcoef(gain, -rank)[0, 1], abs=tolerance)


def test_peaks_are_the_published_ones():
    assert_as_published(8_000, tolerance=0.04)


@pytest.mark.slow
def test_peaks_are_the_published_ones_at_full_size():
    assert_as_published(100_000, tolerance=0.01)


def test_the_command_writes_a_table_and_a_picture(tmp_path, capsys):
    arguments = ["--rankings=1000", "--positives=5", "--negatives=20", "--ks", "3", "8", f"--out={tmp_path}/out"]
    assert opauc.main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"{metric}@{k}" in printed for metric in ("Recall", "Precision", "NDCG") for k in (3, 8))
    frame = pd.read_csv(tmp_path / "out/opauc.csv")
    assert len(frame) == 6 * 20 and frame["correlation"].between(-1, 1).all() and frame["beta"].max() == 1
    assert (tmp_path / "out/opauc.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--rankings=1"], "--rankings is 1; allowed: 2 or more"),
        (["--positives=0"], "--positives is 0; allowed: 1 or more"),
        (["--ks", "10", "1000"], "--ks is 10 1000; allowed: 1 to 999"),
        (["--ks", "0"], "--ks is 0; allowed: 1 to"),
    ],
)
def test_bad_numbers_get_one_line(arguments, says, tmp_path, capsys):
    assert opauc.main([*arguments, f"--out={tmp_path}/out"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jaxneg: ") and says in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
