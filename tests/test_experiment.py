"""The whole road on small synthetic data: the files of a run, and that they agree with each other."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from flax.traverse_util import unflatten_dict

from jaxneg import config as config_lib
from jaxneg import experiment, metrics
from jaxneg.data import dataset as data
from jaxneg.errors import InputError

SMALL = {
    "dataset": "small", "batch_size": 32, "num_epochs": 30, "eval_every": 12, "learning_rate": 1e-2, "eval.ks": (5, 10),
    "model.width": 8, "model.num_blocks": 1, "model.max_len": 10, "data.format": "synthetic",
    "data.synthetic.num_rows": 3000, "data.synthetic.num_users": 150, "data.synthetic.num_items": 80,
    "sampler.num_in_batch": 4, "sampler.num_uniform": 4, "sampler.num_popularity": 4, "sampler.num_kept": 2,
}  # fmt: skip


def small(cache, method="uniform", **others):
    settings = SMALL | {"data.cache_dir": str(cache)}
    settings |= {name.replace("__", "."): value for name, value in others.items()}
    return config_lib.use_method(config_lib.base(), method, settings)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    """The folder of a finished run with two seeds."""
    folder = tmp_path_factory.mktemp("run")
    experiment.run(small(cache, num_seeds=2), folder)
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_have_a_row_for_each_evaluation_seed_split_and_cohort(finished):
    rows = rows_of(finished)
    places = {(row["epoch"], row["seed"], row["split"], row["cohort"]) for row in rows}
    cohorts = ("all", "head", "mid", "tail")
    assert places == {(e, s, p, c) for e in (12, 24, 30) for s in (0, 1) for p in ("valid", "test") for c in cohorts}
    assert len(rows) == len(places)
    assert all(row["step"] == row["epoch"] * (150 // 32) for row in rows)


def test_results_are_the_best_epochs_rows(finished):
    results, rows = pd.read_csv(finished / "results.csv"), rows_of(finished)
    assert results["seed"].tolist() == [0, 1] and results["status"].tolist() == ["ok", "ok"]
    for _, result in results.iterrows():
        valid = {row["epoch"]: row["hr@10"] for row in rows
                 if (row["seed"], row["split"], row["cohort"]) == (result["seed"], "valid", "all")}  # fmt: skip
        assert result["best_epoch"] == max(valid, key=lambda epoch: (valid[epoch], -epoch))
        assert result["valid_hr@10"] == max(valid.values())
        test = [row for row in rows if (row["seed"], row["split"], row["epoch"]) ==
                (result["seed"], "test", result["best_epoch"])]  # fmt: skip
        assert {row["cohort"]: row["ndcg@10"] for row in test} == {
            "all": result["ndcg@10"], "head": result["head_ndcg@10"], "mid": result["mid_ndcg@10"],
            "tail": result["tail_ndcg@10"],
        }  # fmt: skip


def test_case_ranks_give_the_results(finished):
    results, cases = pd.read_csv(finished / "results.csv"), np.load(finished / "cases.npz", allow_pickle=False)
    assert cases["num_above"].shape == (2, len(cases["user"]))
    for seed, result in results.iterrows():
        hits = metrics.hit_rate(cases["num_above"][seed], cases["num_tied"][seed], 10)
        gains = metrics.ndcg(cases["num_above"][seed], cases["num_tied"][seed], 5)
        assert hits.mean() == pytest.approx(result["hr@10"]) and gains.mean() == pytest.approx(result["ndcg@5"])
        assert hits[cases["cohort"] == 2].mean() == pytest.approx(result["tail_hr@10"])
    assert results["cases"].tolist() == 2 * [len(cases["user"])]


def test_the_kept_weights_are_those_of_the_best_epoch(finished, cache):
    """Ranked again from model.npz alone, they give the ranks of cases.npz."""
    config = config_lib.resolve(small(cache, num_seeds=2))
    plan = experiment.make_plan(config, finished, data.load(experiment.prepare_data(config)))
    weights = np.load(finished / "model.npz", allow_pickle=False)
    params = unflatten_dict(dict(weights), sep="/")
    num_above = plan.programs.evaluate(params, plan.dataset.items, plan.splits["test"].cases)[0]
    np.testing.assert_array_equal(num_above, np.load(finished / "cases.npz")["num_above"])


def test_the_popularity_baseline_is_what_counting_gives(finished, cache):
    prepared = data.load(experiment.prepare_data(config_lib.resolve(small(cache))))
    targets = data.evaluation_cases(prepared, "test").targets
    counts = np.asarray(prepared.item_counts)
    above = (counts[None, 1:] > counts[targets][:, None]).sum(axis=1)
    tied = (counts[None, 1:] == counts[targets][:, None]).sum(axis=1) - 1
    row = pd.read_csv(finished / "baselines.csv").set_index("method").loc["popularity_baseline"]
    assert row["hr@10"] == pytest.approx(metrics.hit_rate(above, tied, 10).mean())
    assert row["cases"] == len(targets)


def test_training_beats_popularity(finished):
    baseline = pd.read_csv(finished / "baselines.csv")["valid_hr@10"].max()
    assert pd.read_csv(finished / "results.csv")["valid_hr@10"].min() > 1.2 * baseline


def test_config_json_tells_how_it_was_made(finished):
    record = json.loads((finished / "config.json").read_text())
    assert record["config"]["batch_size"] == 32 and record["config"]["sampler.pool"] == "uniform"
    assert record["data"]["num_users"] == 150 and {"jax", "python", "jaxneg"} <= record["versions"].keys()
    assert "cpu" in record["device"]


def test_a_finished_run_is_only_shown(finished, cache, capsys):
    before = (finished / "results.csv").read_bytes(), (finished / "metrics.jsonl").read_bytes()
    experiment.run(small(cache, num_seeds=2), finished)
    assert "popularity_baseline" in capsys.readouterr().out
    assert before == ((finished / "results.csv").read_bytes(), (finished / "metrics.jsonl").read_bytes())


def test_another_run_in_the_same_folder_is_refused(finished, cache):
    with pytest.raises(InputError, match="learning_rate was 0.01 and is 0.02"):
        experiment.run(small(cache, num_seeds=2, learning_rate=0.02), finished)


def without_times(path):
    frame = pd.read_csv(path)
    return frame[[name for name in frame if "second" not in name and "time" not in name]]


def test_a_killed_run_goes_on_to_the_same_results(finished, cache, tmp_path, monkeypatch):
    """Stopped by an exception after a checkpoint and some more rows, then run again."""
    monkeypatch.setattr(experiment, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(experiment, "CHECKPOINT_COST", 0.0)
    evaluate, calls = experiment.evaluate_seeds, []

    def stop_in_the_second(*arguments):
        calls.append(arguments)
        result = evaluate(*arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(experiment, "evaluate_seeds", stop_in_the_second)
    config = small(cache, num_seeds=2, steps_per_dispatch=3)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path)
    assert not (tmp_path / "results.csv").exists() and len(rows_of(tmp_path)) == 32
    experiment.run(config, tmp_path)
    assert len(calls) == 4  # the first evaluation was not repeated, the second was
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    pd.testing.assert_frame_equal(without_times(tmp_path / "results.csv"), without_times(finished / "results.csv"))


@pytest.mark.parametrize("method", ["popularity_cohort", "adaptive"])
def test_the_release_form_runs(cache, tmp_path, method):
    config = small(cache, method, reference=True, osf=1.5, num_epochs=1)
    experiment.run(config, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())["config"]
    assert record["sampler.pool"] == "in_batch" and record["loss.count_pads"] is True
    assert pd.read_csv(tmp_path / "results.csv")["status"].tolist() == ["ok"]


@pytest.mark.parametrize("method, others", [
    ("dns", {"loss__name": "bpr", "sampler__dns_form": "random_one", "sampler__pool": "mixed",
             "sampler__mixture": ("uniform", "popularity", "in_batch")}),
    ("catalogue", {"loss__name": "full_softmax", "loss__chunk": 32}),
])  # fmt: skip
def test_other_samplers_and_losses_run_by_config_and_are_named(cache, tmp_path, method, others):
    experiment.run(small(cache, method, num_epochs=16, eval__opauc_betas=(0.1, 1), **others), tmp_path)
    row = pd.read_csv(tmp_path / "results.csv").loc[0]
    assert (row["method"], row["status"]) == (f"{method}+{others['loss__name']}", "ok")
    assert row["valid_hr@10"] > pd.read_csv(tmp_path / "baselines.csv")["valid_hr@10"].max()
    cases = np.load(tmp_path / "cases.npz", allow_pickle=False)
    others_in_catalogue = json.loads((tmp_path / "config.json").read_text())["data"]["num_items"] - 1
    auc = 1 - (cases["num_above"][0] + cases["num_tied"][0] / 2) / others_in_catalogue
    assert row["opauc@1"] == pytest.approx(auc.mean()) and 0 < row["opauc@0.1"] < row["opauc@1"]


def test_seen_items_filtered_and_rolling_histories(cache, finished, tmp_path):
    config = small(cache, num_seeds=2, eval__filter_seen=True, eval__rolling_history=True)
    experiment.run(config, tmp_path)
    plain, other = (np.load(folder / "cases.npz", allow_pickle=False) for folder in (finished, tmp_path))
    assert np.array_equal(plain["item"], other["item"])
    assert other["num_above"].mean() < plain["num_above"].mean()  # fewer items compete


@pytest.mark.parametrize("others, words", [
    ({"sampler__num_uniform": 81}, "at most the number of items"),
    ({"data__format": "auto"}, "config.data.path is empty"),
    ({"data__format": "auto", "data__path": "nowhere.csv"}, "nowhere.csv"),
    ({"method": "nonsense"}, "nonsense"),
])  # fmt: skip
def test_bad_input_is_named_and_leaves_nothing(cache, tmp_path, others, words):
    with pytest.raises(InputError, match=words) as refused:
        experiment.run(small(cache, **others), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_killed_at_any_moment_goes_on(finished, cache, tmp_path):
    """SIGKILL at random times until the run comes through."""
    shutil.rmtree(tmp_path)
    flags = [f"--config.{name}={value}" for name, value in (SMALL | {"data.cache_dir": cache}).items()]
    command = [sys.executable, "-m", "jaxneg.main", "--config=configs/quickstart.py:uniform", f"--workdir={tmp_path}",
               "--config.num_seeds=2", "--config.steps_per_dispatch=1", *flags]  # fmt: skip
    rng, kills = np.random.default_rng(0), 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(timeout=rng.uniform(5, 25) if kills < 5 else None) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            time.sleep(0.1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
