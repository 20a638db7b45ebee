"""The report: what is in it, what is left out with a line, and that its numbers are those of the files."""

import re
import shutil

import made_runs
import numpy as np
import pandas as pd
import pytest

from jaxneg import files
from jaxneg.evaluation import metrics
from jaxneg.evaluation import rows as results
from jaxneg.report import __main__ as report
from jaxneg.report import analysis, document, parts
from jaxneg.report import read as runs

HIT_CHANCES = {"uniform": (0.5, 0.15, 0.02), "popularity": (0.1, 0.05, 0.06), "mixed": (0.4, 0.3, 0.2)}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three methods with six seeds on a data set of the paper's name; two values of OSF; a seed failed."""
    root = tmp_path_factory.mktemp("study")
    for method, chance in HIT_CHANCES.items():
        failed = (3,) if method == "mixed" else ()
        made_runs.write_run(root / "beauty" / method, "beauty", method, hit_chance=chance, failed=failed)
    made_runs.write_run(root / "beauty/uniform/osf_1", "beauty", "uniform", osf=1.0, hit_chance=(0.3, 0.1, 0.01))
    made_runs.write_run(root / "beauty/collapsed", "beauty", "adaptive", hit_chance=(0.3, 0.02, 0.0), shown=10)
    return root


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    """The folder of that study's report."""
    return report.write([study], tmp_path_factory.mktemp("out")).parent


def part(folder, title, level=3):
    """The text of a part of report.md."""
    text = (folder / "report.md").read_text()
    return re.search(rf"^{'#' * level} {title}\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.DOTALL | re.MULTILINE)[1]


def table_of(text, header):
    """{first cell: {column: cell}} of the first table of a part that has that column."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    start = next(index for index, line in enumerate(lines) if header in line)
    rows = {}
    for line in lines[start + 2 :]:
        if len(line) != len(lines[start]):
            break
        rows.setdefault(line[0].strip("`"), dict(zip(lines[start], line, strict=True)))
    return rows


def test_all_files_are_there_and_the_page_stands_alone(written):
    pictures = {path.name for path in written.glob("*.png")}
    assert pictures == {f"{name}_beauty.png" for name in ("pareto", "cohorts", "curves", "popularity", "osf")}
    assert all((written / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    assert {path.name for path in written.iterdir()} == pictures | {"report.md", "report.html", "report.csv"}
    page = (written / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures) and 'src="http' not in page
    links = re.findall(r"!\[.*?\]\((.*?)\)", (written / "report.md").read_text())
    assert set(links) == pictures


def test_the_table_holds_the_means_of_the_files(study, written):
    table = table_of(part(written, "Results"), "NDCG@10")
    assert list(table) == ["popularity_baseline", "uniform", "popularity", "mixed", "adaptive"]
    rows = results.read_results(study / "beauty/mixed/results.csv").query("status == 'ok'")
    mixed = table["mixed"]
    assert mixed["seeds"] == "5 (+1 failed)" and mixed["training s per run"] == "12.5"
    assert mixed["NDCG@10"].strip("*") == f"{rows['ndcg@10'].mean():.4f} ± {rows['ndcg@10'].std():.4f}"
    assert mixed["Balance"].strip("*") == f"{rows['balance'].mean():.3f} ± {rows['balance'].std():.3f}"
    assert mixed["NDCG@10"].startswith("**") and not table["uniform"]["NDCG@10"].startswith("**")
    assert "nan" not in (written / "report.md").read_text()


def test_intervals_of_the_files(study, written):
    table = pd.read_csv(written / "report.csv")
    row = table.query("method == 'uniform' and metric == 'ndcg@10' and osf > 1").iloc[0]
    folder = study / "beauty/uniform"
    cases, rows = np.load(folder / "cases.npz"), results.read_results(folder / "results.csv")
    assert row["mean"] == pytest.approx(rows["ndcg@10"].mean()) and row["n"] == 6
    for kind in ("seeds", "users", "both"):
        assert row[f"{kind}_low"] < row["mean"] < row[f"{kind}_high"]
    # The spread over users, by the formula for a ratio of sums.
    gains = metrics.ndcg(cases["num_above"], cases["num_tied"], 10).mean(axis=0)
    left_over = np.bincount(cases["user"], weights=gains - gains.mean())
    error = np.sqrt((left_over**2).sum()) / len(gains)
    assert (row["users_high"] - row["users_low"]) / (2 * 1.96) == pytest.approx(error, rel=0.15)
    coverage = table.query("method == 'uniform' and metric == 'coverage@10' and osf > 1").iloc[0]
    assert np.isnan(coverage["users_low"]) and coverage["mean"] == pytest.approx(200 / 300)


def test_resampled_means_are_those_of_the_results():
    """With every user drawn once, the resampled columns are the columns of results.csv."""
    cases = runs.Cases(*made_runs.cases(), *np.random.default_rng(0).integers(0, 20, (2, 3, len(made_runs.cases()[0]))))
    once = lambda rng, sums, number: np.repeat(sums.sum(axis=0)[None], number, axis=0)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis.statistics, "resample_users", once)
        over_users, sums = analysis.resample_cases(cases, np.random.default_rng(0))
    rows = [
        results.evaluation_rows(
            above,
            tied,
            cases.cohort,
            cases.item < 0,
            made_runs.exposure(5),
            made_runs.COUNTS,
            ks=(10,),
            epoch=1,
            step=1,
            seed=0,
            split="test",
        )
        for above, tied in zip(cases.num_above, cases.num_tied, strict=True)
    ]
    assert over_users["hr@10"][0] == pytest.approx(np.mean([row[0]["hr@10"] for row in rows]))
    assert over_users["tail_ndcg@10"][0] == pytest.approx(np.mean([row[3]["ndcg@10"] for row in rows]))
    assert over_users["balance"][0] == pytest.approx(np.mean([row[0]["balance"] for row in rows]))
    assert sums.sum() / len(cases.user) == pytest.approx(np.mean([row[0]["ndcg@10"] for row in rows]))


def test_the_tests_are_one_family(study, written):
    text = part(written, "Tests between methods")
    pairs = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(pairs) == 6 and " of 6 differences" in text and pairs[0].startswith("| `mixed` | `uniform` |")
    lines = [analysis.line(variant) for variant in runs.studies(runs.find_runs([study])[0])[0].variants]
    found = {(pair.a, pair.b): pair for pair in analysis.pairs(lines)}
    smallest = min(pair.welch for pair in found.values())
    assert min(pair.welch_holm for pair in found.values()) == pytest.approx(6 * smallest)
    pair = found["mixed", "uniform"]
    assert pair.difference > 0 and pair.cliffs_delta > 0 and pair.interval.low < pair.difference < pair.interval.high
    assert all(np.isfinite(pair.paired_holm) for pair in found.values())


def test_collapse_and_failure_are_counted(written):
    text = part(written, "Collapsed and failed seeds")
    table = table_of(text, "collapsed")
    assert table["adaptive"]["collapsed"] == "6" and table["adaptive"]["NDCG@10 without them"] == "none left"
    assert table["mixed"]["failed"] == "1" and table["mixed"]["collapsed"] == "0"
    assert "uniform" not in table
    assert "`adaptive`, seeds 0, 1, 2, 3, 4 and 5. Of seed 0: 100% of the recommendations are the 10 most" in text


def test_some_collapsed_seeds_leave_a_mean_of_the_others(tmp_path):
    folder = made_runs.write_run(tmp_path / "run", "toy", "uniform")
    rows = results.read_results(folder / "results.csv")
    rows.loc[[0, 1], "popular_share@10"] = 0.9
    files.write_csv(folder / "results.csv", rows.to_dict("records"))
    report.write([tmp_path])
    row = table_of(part(tmp_path, "Collapsed and failed seeds"), "collapsed")["uniform"]
    assert row["collapsed"] == "2"
    assert row["HR@10 without them"] == f"{rows['hr@10'][2:].mean():.4f} (all: {rows['hr@10'].mean():.4f})"


def test_osf_has_its_own_part_and_stays_out_of_the_others(written):
    text = part(written, "Oversampling factor")
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    assert [[cell.strip() for cell in row] for row in rows] == [["`uniform`", "1"], ["`uniform`", "inf"]]
    assert "about the runs at OSF inf" in text
    assert "osf" not in part(written, "Results").lower()


def test_published_results_stand_beside_ours(written):
    text = part(written, "Beside the published results")
    assert "21,976 = 4,992 + 5,838 + 11,146 in the paper" in text and "not the paper's test cases" in text
    table = table_of(text, "n paper")
    assert set(table) == {"uniform", "popularity", "mixed", "adaptive"}
    assert table["uniform"]["n paper"] == "10"
    assert "0.0144 ± 0.0006" in "".join(line for line in text.splitlines() if line.startswith("| `uniform`"))


def test_the_published_file_is_whole():
    table = pd.read_csv(parts.pathlib.Path(parts.__file__).with_name("published.csv"), comment="#")
    assert table.groupby("dataset").size().to_dict() == {"beauty": 6, "ml10m": 6, "retailrocket": 6}
    assert (table["cases"] == table[["head_cases", "mid_cases", "tail_cases"]].sum(axis=1)).all()
    assert sorted(table["n"].value_counts().to_dict().items()) == [(10, 7), (17, 2), (20, 9)]
    best = table.set_index(["dataset", "method"]).loc[("beauty", "adaptive_mixed")]
    assert best["hr@10_mean"] == pytest.approx(0.0233254) and best["balance_mean"] == pytest.approx(0.506205)
    # The mean over all cases is the cohorts' means by their numbers of cases, or the columns are mixed up.
    by_cohort = sum(table[f"{name}_hr@10_mean"] * table[f"{name}_cases"] for name in results.COHORTS) / table["cases"]
    np.testing.assert_allclose(by_cohort, table["hr@10_mean"], rtol=0.01)


def test_the_recommendation_has_numbers(study, written):
    text = part(written, "Recommendation")
    rows = results.read_results(study / "beauty/mixed/results.csv").query("status == 'ok'")
    assert f"Most accurate: `mixed`, NDCG@10 {rows['ndcg@10'].mean():.4f}" in text
    assert "Pareto-best in NDCG@10 and Balance: " in text and "of the resamples" in text
    assert "of 6 differences in NDCG@10 (Welch, Holm)" in text
    assert "strong head bias, Balance under 0.5: " in text and "`adaptive` (6 of 6 seeds collapsed" in text
    assert "very low accuracy with popularity sampling: `popularity` has NDCG@10" in text
    assert "`mixed` (1 of 6 seeds failed" in text
    sentences = [line for line in text.splitlines() if line.startswith("- ")]
    assert all(re.search(r"\d", sentence) for sentence in sentences)


def test_a_single_old_run_leaves_parts_out(tmp_path):
    """One seed, results.csv and baselines.csv only, without the columns that older versions lacked."""
    folder = made_runs.write_run(
        tmp_path / "run",
        "toy",
        "uniform",
        num_seeds=1,
        leave_out=("config.json", "metrics.jsonl", "cases.npz", "items.npz"),
    )
    for name in ("results.csv", "baselines.csv"):
        rows = results.read_results(folder / name).drop(columns=["popular_share@10"])
        files.write_csv(folder / name, rows.to_dict("records"))
    report.write([tmp_path])
    text = (tmp_path / "report.md").read_text()
    for words in (
        "a test needs two methods",
        "no run has cases.npz",
        "no metrics.jsonl",
        "no run has items.npz",
        "no method was run with several values of OSF",
        "the paper (arXiv 2410.17276) has no such data set",
        "Few repeats".lower(),
        "None of the 1 seeds failed or collapsed",
    ):
        assert words in text, words
    assert {path.name for path in tmp_path.glob("*.png")} == {"pareto_toy.png", "cohorts_toy.png"}
    assert "nan" not in text


def test_the_results_that_are_committed(tmp_path):
    """They are older than cases.npz, items.npz and popular_share."""
    path = report.write([made_runs.pathlib.Path(__file__).parents[2] / "results/eight_methods"], tmp_path)
    text = path.with_name("report.md").read_text()
    assert "16 finished runs with 32 seeds in all: 8 methods on beauty and ml1m." in text
    assert text.count("Left out: no run has items.npz.") == 2 and "nan" not in text


def test_nothing_hit_is_no_crash(tmp_path):
    made_runs.write_run(tmp_path / "a", "toy", "uniform", hit_chance=(0, 0, 0))
    made_runs.write_run(tmp_path / "b", "toy", "mixed", hit_chance=(0, 0, 0), failed=range(6))
    report.write([tmp_path])
    text = (tmp_path / "report.md").read_text()
    assert "Left out: no method has a Balance." in text and "nan" not in text


def test_the_same_files_give_the_same_report(study, written, tmp_path):
    report.write([study], tmp_path)
    for path in written.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_runs_of_the_same_settings_and_other_seeds_are_pooled(tmp_path):
    made_runs.write_run(tmp_path / "a", "toy", "uniform", num_seeds=3)
    made_runs.write_run(tmp_path / "b", "toy", "uniform", num_seeds=4, seed=7)
    made_runs.write_run(tmp_path / "c", "toy", "uniform", num_seeds=2)  # the first two seeds of a, again
    made_runs.write_run(tmp_path / "d", "toy", "uniform", num_seeds=2, learning_rate=0.1)
    made_runs.write_run(tmp_path / "e", "toy", "uniform", num_seeds=2, eval__filter_seen=True)
    shutil.copytree(tmp_path / "a", tmp_path / "unfinished")
    (tmp_path / "unfinished/results.csv").unlink()
    found, unfinished = runs.find_runs([tmp_path, tmp_path / "a"])
    assert len(found) == 5 and [path.name for path in unfinished] == ["unfinished"]
    plain, filtered = runs.studies(found)
    assert {variant.label: len(variant.rows) for variant in plain.variants} == {
        "uniform (learning_rate=0.001)": 7,
        "uniform (learning_rate=0.1)": 2,
    }
    assert plain.notes == (f"`{tmp_path / 'c'}` repeats the seeds of another run and is left out.",)
    assert filtered.name == "toy (data of-toy, eval.filter_seen)"
    pooled = runs.read_cases(plain.variants[0])
    assert pooled.num_above.shape == (7, len(pooled.user))


def test_runs_that_differ_in_where_they_ran_are_one_variant(tmp_path):
    """On other devices, streamed or not, under another path; and an older run, which names neither model nor L2."""
    newer = {"model__name": "sasrec", "loss__l2": 0.0, "loss__l2_rows": 0.0, "optimizer__weight_decay": 0.0}
    shared = newer | {"mesh__model": 1, "data__stream": "auto", "data__path": "x"}
    made_runs.write_run(tmp_path / "a", "toy", "uniform", num_seeds=2, mesh__data=0, **shared)
    made_runs.write_run(tmp_path / "b", "toy", "uniform", num_seeds=3, seed=7, mesh__data=4, **shared)
    streamed = shared | {"data__stream": "on", "data__path": "y", "mesh__model": 2, "checkpoint_seconds": 60.0}
    made_runs.write_run(tmp_path / "c", "toy", "uniform", num_seeds=4, seed=8, mesh__data=0, **streamed)
    (study,) = runs.studies(runs.find_runs([tmp_path])[0])
    assert {variant.label: len(variant.rows) for variant in study.variants} == {"uniform": 9}
    made_runs.write_run(tmp_path / "old", "toy", "uniform", num_seeds=5, seed=9)
    (study,) = runs.studies(runs.find_runs([tmp_path])[0])
    assert {variant.label: len(variant.rows) for variant in study.variants} == {"uniform": 14}
    assert not study.notes


def test_runs_that_differ_in_a_new_field_are_two_variants(tmp_path):
    for name, l2 in (("a", 0.0), ("b", 0.01)):
        made_runs.write_run(tmp_path / name, "toy", "uniform", num_seeds=2, model__name="sasrec", loss__l2=l2)
    (study,) = runs.studies(runs.find_runs([tmp_path])[0])
    assert {variant.label for variant in study.variants} == {"uniform (l2=0)", "uniform (l2=0.01)"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("results.csv", b"", "results.csv: is not a table as a run writes it"),
        ("results.csv", b"a,b\n1,2\n", "no column dataset, method"),
        ("config.json", b"{", "config.json: is not the config of a run"),
        ("config.json", b"[]", "config.json: is not the config of a run"),
        ("metrics.jsonl", b"{}\n", "metrics.jsonl: is not the metrics of a run"),
        ("cases.npz", b"PK", "cases.npz: is not a file of a run's arrays"),
        ("items.npz", b"", "items.npz: is not a file of a run's arrays"),
    ],
)
def test_broken_files_are_named(tmp_path, capsys, name, content, words):
    folder = made_runs.write_run(tmp_path / "run", "toy", "uniform", num_seeds=2)
    (folder / name).write_bytes(content)
    assert report.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxneg: ") and error.count("\n") == 1 and words in error
    assert not (tmp_path / "out/report.md").exists()


def test_folders_that_are_not_there_or_hold_nothing(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2 and report.main([str(tmp_path / "no")]) == 2
    assert "no results.csv in or below it" in (error := capsys.readouterr().err) and "no such folder" in error


def test_markdown_and_page_say_the_same():
    blocks = [
        document.Heading(2, "A"),
        document.Text("`x` is **1** & <b>"),
        document.Bullets(["one", "two"]),
        document.Table(["method", "n"], [["`a|b`", "1"]], folded="more"),
    ]
    text, page = document.markdown(blocks), document.webpage("T", blocks, made_runs.pathlib.Path("."))
    assert "## A\n\n`x` is **1** & <b>\n\n- one\n- two\n\n<details><summary>more" in text and "a\\|b" in text
    assert "<h2>A</h2>" in page and "<code>x</code> is <strong>1</strong> &amp; &lt;b&gt;" in page
    assert '<td class="number">1</td>' in page and "<li>two</li>" in page
