"""The whole road on small synthetic data: the files of a run, and that they agree with each other."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax.traverse_util import unflatten_dict

import jaxneg
from jaxneg import files
from jaxneg.data import dataset as data
from jaxneg.errors import InputError
from jaxneg.evaluation import metrics
from jaxneg.evaluation import ranks as ranking
from jaxneg.evaluation.ranks import rank_hidden
from jaxneg.run import checkpoint, experiment, loop, outputs, signals
from jaxneg.run import config as config_lib
from jaxneg.run.capacity import fitting_plan

SMALL = {
    "dataset": "small",
    "batch_size": 32,
    "num_epochs": 30,
    "eval_every": 12,
    "learning_rate": 1e-2,
    "eval.ks": (5, 10),
    "model.width": 8,
    "model.num_blocks": 1,
    "model.max_len": 10,
    "data.format": "synthetic",
    "data.synthetic.num_rows": 3000,
    "data.synthetic.num_users": 150,
    "data.synthetic.num_items": 80,
    "sampler.num_in_batch": 4,
    "sampler.num_uniform": 4,
    "sampler.num_popularity": 4,
    "sampler.num_kept": 2,
}


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
        valid = {
            row["epoch"]: row["hr@10"]
            for row in rows
            if (row["seed"], row["split"], row["cohort"]) == (result["seed"], "valid", "all")
        }
        assert result["best_epoch"] == max(valid, key=lambda epoch: (valid[epoch], -epoch))
        assert result["valid_hr@10"] == max(valid.values())
        test = [
            row
            for row in rows
            if (row["seed"], row["split"], row["epoch"]) == (result["seed"], "test", result["best_epoch"])
        ]
        assert {row["cohort"]: row["ndcg@10"] for row in test} == {
            "all": result["ndcg@10"],
            "head": result["head_ndcg@10"],
            "mid": result["mid_ndcg@10"],
            "tail": result["tail_ndcg@10"],
        }


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
    prepared = data.load(experiment.prepare_data(config))
    plan = fitting_plan(config, finished, prepared, range(2))
    weights = np.load(finished / "model.npz", allow_pickle=False)
    assert weights["seed"].tolist() == [0, 1]
    params = unflatten_dict({name: array for name, array in weights.items() if name != "seed"}, sep="/")
    num_above = plan.programs.evaluate(params, plan.history_rows, plan.splits["test"].cases)[0]
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


def stop_evaluation(monkeypatch, number, action):
    """`action` runs before the evaluation of that number (from 1); returns the list of evaluations begun."""
    evaluate, calls = loop.evaluate_seeds, []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            action()
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate_seeds", counted)
    return calls


@pytest.fixture
def save_often(monkeypatch):
    """A checkpoint at every dispatch that finds none under way."""
    monkeypatch.setattr(checkpoint, "COST", 0)
    return {"checkpoint_seconds": 0.0, "steps_per_dispatch": 3}


def assert_same_run(folder, other):
    assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    pd.testing.assert_frame_equal(without_times(folder / "results.csv"), without_times(other / "results.csv"))
    for name in ("cases.npz", "model.npz"):
        mine, theirs = files.read_arrays(folder / name), files.read_arrays(other / name)
        assert mine.keys() == theirs.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key])


def test_the_same_config_twice_gives_the_same_numbers(finished, cache, tmp_path):
    experiment.run(small(cache, num_seeds=2), tmp_path)
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize("after_rows", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_killed_run_goes_on_to_the_same_results(finished, cache, tmp_path, monkeypatch, save_often, after_rows):
    """Stopped by an exception in the second evaluation, before or after its rows are written, then run again."""

    def die(*_):
        raise MemoryError

    config = small(cache, num_seeds=2, **save_often)
    with monkeypatch.context() as patched:
        calls = stop_evaluation(patched, 2, lambda: patched.setattr(loop, "warn_of_collapse", die))
        if not after_rows:
            calls = stop_evaluation(patched, 2, die)
        with pytest.raises(MemoryError):
            experiment.run(config, tmp_path)
    assert len(calls) == 2 and not (tmp_path / "results.csv").exists()
    assert len(rows_of(tmp_path)) == (32 if after_rows else 16)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 24, "seed"')  # a line cut short
    calls = stop_evaluation(monkeypatch, 0, None)
    experiment.run(config, tmp_path)
    assert len(calls) == 2  # the first evaluation is not repeated, the second is
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize(
    "when, number",
    [
        ("training", signal.SIGINT),
        ("evaluating", signal.SIGTERM),
        pytest.param("training", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("evaluating", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_stops(finished, cache, tmp_path, monkeypatch, number, when):
    """The first signal is acted on at the next look at it; the run then goes on where it was."""
    config = small(cache, num_seeds=2, steps_per_dispatch=3)
    with monkeypatch.context() as patched:
        if when == "evaluating":
            patched.setattr(loop, "computed_before", lambda arrays, received: not received)
            stop_evaluation(patched, 2, lambda: os.kill(os.getpid(), number))
        else:
            words = loop.loss_in_words
            stop_evaluation(
                patched,
                1,
                lambda: patched.setattr(
                    loop, "loss_in_words", lambda *arguments: (os.kill(os.getpid(), number), words(*arguments))[1]
                ),
            )
        with pytest.raises(signals.Stopped, match=f"stopped by {number.name} after step .* is saved") as stopped:
            experiment.run(config, tmp_path)
    assert stopped.value.code == 128 + number
    step = int(str(stopped.value).split(" after step ")[1].split(" ")[0])
    steps_per_epoch = 150 // 32
    assert step == 24 * steps_per_epoch if when == "evaluating" else step > 12 * steps_per_epoch
    saved = tmp_path / "checkpoints" / "seeds_0_1" / str(step)
    assert saved.is_dir()
    experiment.run(config, tmp_path)
    assert_same_run(tmp_path, finished)


def test_a_damaged_checkpoint_costs_some_steps_and_no_more(finished, cache, tmp_path, monkeypatch, save_often, capsys):
    config = small(cache, num_seeds=2, **save_often)
    with monkeypatch.context() as patched:
        patched.setattr(outputs, "write_results", stop_here)
        with pytest.raises(MemoryError):
            experiment.run(config, tmp_path)
    newest = max((tmp_path / "checkpoints" / "seeds_0_1").iterdir(), key=lambda path: int(path.name))
    for written in (newest / "state").rglob("?" * 32):  # all of the arrays' files: which one holds what varies
        written.write_bytes(written.read_bytes()[:-7])
    experiment.run(config, tmp_path)
    assert f"the checkpoint of step {newest.name} is damaged" in capsys.readouterr().err
    assert_same_run(tmp_path, finished)


def stop_here(*_):
    raise MemoryError


def test_more_seeds_only_adds_the_new_ones(finished, cache, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = rows_of(folder)
    with pytest.raises(InputError, match="num_seeds was 2 and is 3.*--extend accepts"):
        experiment.run(small(cache, num_seeds=3), folder)
    experiment.run(small(cache, num_seeds=3), folder, extend=True)
    assert rows_of(folder)[: len(before)] == before
    results = pd.read_csv(folder / "results.csv")
    assert results["seed"].tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(results.iloc[:2].dropna(axis=1), pd.read_csv(finished / "results.csv").dropna(axis=1))
    for name in ("cases.npz", "model.npz"):
        ours, first = files.read_arrays(folder / name), files.read_arrays(finished / name)
        assert ours["seed"].tolist() == [0, 1, 2]
        np.testing.assert_array_equal(ours[list(ours)[-1]][:2], first[list(ours)[-1]])
    record = json.loads((folder / "config.json").read_text())
    assert record["config"]["num_seeds"] == 3 and [run["num_seeds"] for run in record["continued"]] == [3]
    with pytest.raises(InputError, match="num_seeds was 3 and is 2"):
        experiment.run(small(cache, num_seeds=2), folder, extend=True)


def test_more_epochs_go_on_from_the_last(finished, cache, tmp_path):
    """24 epochs, then 30: what 30 at once give."""
    experiment.run(small(cache, num_seeds=2, num_epochs=24), tmp_path)
    config = small(cache, num_seeds=2)
    with pytest.raises(InputError, match="num_epochs was 24 and is 30.*--extend accepts"):
        experiment.run(config, tmp_path)
    experiment.run(config, tmp_path, extend=True)
    assert_same_run(tmp_path, finished)


def test_seeds_in_chunks_are_the_seeds_together(finished, cache, tmp_path):
    """Each chunk is its own program, so only rounding differs; and a chunk may be a part of the others' size."""
    experiment.run(small(cache, num_seeds=3, num_epochs=2, eval_every=2), tmp_path / "together")
    experiment.run(small(cache, num_seeds=3, num_epochs=2, eval_every=2, seeds_per_chunk=2), tmp_path / "chunks")
    assert sorted(path.name for path in (tmp_path / "chunks" / "checkpoints").iterdir()) == ["seeds_0_1", "seeds_2_2"]
    together, chunks = (files.read_arrays(tmp_path / name / "model.npz") for name in ("together", "chunks"))
    assert chunks["seed"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(chunks["tables/item"], together["tables/item"], atol=1e-4)
    assert [row["seed"] for row in rows_of(tmp_path / "chunks")] == 8 * [0] + 8 * [1] + 8 * [2]


def test_other_versions_are_refused_while_there_is_work_to_do(finished, cache, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    monkeypatch.setattr(jaxneg, "__version__", "99.0")
    experiment.run(small(cache, num_seeds=2), folder)  # nothing is left to do
    (folder / "results.csv").unlink()
    config = small(cache, num_seeds=2)
    with pytest.raises(InputError, match="begun with other versions: jaxneg was .* and is 99.0.*--extend"):
        experiment.run(config, folder)
    experiment.run(config, folder, extend=True)
    assert "numbers may differ in their last digits" in capsys.readouterr().err
    assert_same_run(folder, finished)
    record = json.loads((folder / "config.json").read_text())
    assert [run["versions"]["jaxneg"] for run in record["continued"]] == ["99.0"]


def test_other_data_and_other_checkpoints_are_refused(finished, cache, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with pytest.raises(InputError, match="data.synthetic.seed was 0 and is 1; fingerprint was"):
        experiment.run(small(cache, num_seeds=2, data__synthetic__seed=1), folder)
    for name in ("config.json", "results.csv"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="holds a run without its config.json"):
        experiment.run(small(cache, num_seeds=2), folder)
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(folder / "checkpoints", other / "kept")
    with pytest.raises(MemoryError), pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "train_seeds", stop_here)
        experiment.run(small(cache, num_seeds=2, learning_rate=0.5), other)
    shutil.move(other / "kept", other / "checkpoints")
    with pytest.raises(InputError, match="checkpoints of another run .its config differ"):
        experiment.run(small(cache, num_seeds=2, learning_rate=0.5), other)


def test_a_seed_that_diverges_is_frozen_and_reported(cache, tmp_path, monkeypatch, capsys):
    """Seed 1 gets a weight that makes its loss infinite; the other goes on to what it is without it."""
    start = loop.resume

    def spoilt(plan, checkpoints, about):
        state, progress = start(plan, checkpoints, about)
        params = state.params | {"tables": {"item": state.params["tables"]["item"].at[1].set(jnp.inf)}}
        return state._replace(params=params), progress

    config = small(cache, num_seeds=2, num_epochs=2, eval_every=1)
    experiment.run(config, tmp_path / "sound")
    monkeypatch.setattr(loop, "resume", spoilt)
    experiment.run(config, tmp_path / "spoilt")
    sound, results = (pd.read_csv(tmp_path / name / "results.csv") for name in ("sound", "spoilt"))
    assert results["status"].tolist() == ["ok", "failed"] and results["failed_step"].tolist()[1] == 0
    assert results["ndcg@10"][0] == pytest.approx(sound["ndcg@10"][0])
    losses = {(row["seed"], row["epoch"]): row["loss"] for row in rows_of(tmp_path / "spoilt")}
    assert losses[1, 1] is None and losses[0, 2] > 0
    out, err = capsys.readouterr()
    assert "1 of 2 seeds failed" in out
    before = (tmp_path / "spoilt" / "metrics.jsonl").read_bytes()
    experiment.run(config, tmp_path / "spoilt")  # a failed seed is done, too
    assert (tmp_path / "spoilt" / "metrics.jsonl").read_bytes() == before


def test_a_run_of_failed_seeds_ends_early_and_debug_finds_the_operation(cache, tmp_path):
    config = small(cache, num_seeds=2, num_epochs=40, eval_every=2, learning_rate=1e30)
    experiment.run(config, tmp_path / "run")
    assert pd.read_csv(tmp_path / "run" / "results.csv")["status"].tolist() == ["failed", "failed"]
    assert {row["epoch"] for row in rows_of(tmp_path / "run")} == {2}
    words = r"config.debug: step 2, seed 0 .*: nan generated by primitive: \w+, in .*\.py:\d+"
    with pytest.raises(InputError, match=words) as found:
        experiment.run(small(cache, num_seeds=2, learning_rate=1e30, debug=True), tmp_path / "debug")
    assert "\n" not in str(found.value)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adaptive_mixed", "popularity"])
def test_debug_finds_nothing_in_a_sound_run(cache, tmp_path, method):
    experiment.run(small(cache, method, num_epochs=1, debug=True), tmp_path)
    assert pd.read_csv(tmp_path / "results.csv")["status"].tolist() == ["ok"]


def test_collapse_is_warned_of_once(cache, tmp_path, capsys):
    """A learning rate of almost nothing and weights that follow popularity: the same items for all."""
    start = loop.resume
    counts = np.asarray(data.load(experiment.prepare_data(config_lib.resolve(small(cache)))).item_counts)

    def popular(plan, checkpoints, about):
        state, progress = start(plan, checkpoints, about)
        network = jax.tree.map(jnp.zeros_like, state.params["network"])
        network["final_norm"]["offset"] = network["final_norm"]["offset"].at[:, 0].set(1)
        table = jnp.zeros_like(state.params["tables"]["item"]).at[:, :, 0].set(counts)
        return state._replace(params={"tables": {"item": table}, "network": network}), progress

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "resume", popular)
        experiment.run(small(cache, num_epochs=3, eval_every=1, learning_rate=1e-9), tmp_path)
    warned = [line for line in capsys.readouterr().err.splitlines() if "collapse" in line]
    assert len(warned) == 1
    assert "seed 0, epoch 1" in warned[0] and "100% of the recommendations are the 10 most popular" in warned[0]


@pytest.mark.parametrize("method", ["popularity_cohort", "adaptive"])
def test_the_release_form_runs(cache, tmp_path, method):
    config = small(cache, method, reference=True, osf=1.5, num_epochs=1)
    experiment.run(config, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())["config"]
    assert record["sampler.pool"] == "in_batch" and record["loss.count_pads"] is True
    assert pd.read_csv(tmp_path / "results.csv")["status"].tolist() == ["ok"]


@pytest.mark.parametrize(
    "method, others",
    [
        (
            "dns",
            {
                "loss__name": "bpr",
                "sampler__dns_form": "random_one",
                "sampler__pool": "mixed",
                "sampler__mixture": ("uniform", "popularity", "in_batch"),
            },
        ),
        ("catalogue", {"loss__name": "full_softmax", "loss__chunk": 32}),
    ],
)
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


@pytest.mark.parametrize(
    "others, words",
    [
        ({"sampler__num_uniform": 81}, "at most the number of items"),
        ({"data__format": "auto"}, "config.data.path is empty"),
        (
            {
                "num_epochs": 10**6,
                "batch_size": 1,
                "data__synthetic__num_users": 2990,
                "data__synthetic__num_rows": 9000,
            },
            "config.num_epochs=1000000 is too many: ",
        ),
        ({"data__format": "auto", "data__path": "nowhere.csv"}, "nowhere.csv"),
        ({"method": "nonsense"}, "nonsense"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(cache, tmp_path, others, words):
    with pytest.raises(InputError, match=words) as refused:
        experiment.run(small(cache, **others), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("valid_fraction", [0.02, 0.2])
def test_splits_are_padded_to_one_shape_and_the_padding_counts_for_nothing(cache, tmp_path, valid_fraction):
    config = config_lib.resolve(small(cache, **{"data.valid_fraction": valid_fraction}))
    prepared = data.load(experiment.prepare_data(config))
    plan = fitting_plan(config, tmp_path, prepared, range(1))
    shapes = {name: [part.shape for part in jax.tree.leaves(split.cases)] for name, split in plan.splits.items()}
    assert shapes["valid"] == shapes["test"]
    alone = {name: data.evaluation_cases(prepared, name) for name in plan.splits}
    assert len(alone["valid"].targets) != len(alone["test"].targets)  # or nothing was padded
    table = ranking.baseline_table(np.asarray(prepared.item_counts))
    chunks = ranking.Chunks(64, 1024)
    for name, cases in alone.items():

        def rank(cases):
            hidden = jnp.ones((len(cases.history_start), 1))
            return rank_hidden(hidden, table, plan.dataset.items, cases, (1, 10), chunks, 0)

        padded, right = rank(plan.splits[name].cases), rank(cases)
        for part, other in zip(padded[:2], right[:2], strict=True):
            np.testing.assert_array_equal(part[: len(cases.targets)], other)
        np.testing.assert_array_equal(padded[2], right[2])
        assert int(right[2][-1].sum()) == 10 * len(cases.history_start)
