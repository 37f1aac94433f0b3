"""The run of a study, small: its files, and that it repeats, resumes and fails correctly."""

import csv
import json
import os
import platform
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import fields, replace

import chex
import compilations
import fashion_mlp
import homework
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest
import regression
import reproduce
import studies
from processes import contents, lasting
from studies import TOY, TOY_DATA, change_record, finished_copy, finished_run

from hw1jax import cli, environment, models, run, storage
from hw1jax.core import population
from hw1jax.core.folds import PADDING, Fold, minibatches
from hw1jax.core.losses import accuracy, cross_entropy, squared_error
from hw1jax.core.tasks import Task
from hw1jax.results import results, run_folder, trained_model
from hw1jax.results.trained_model import load_model
from hw1jax.run import run_study
from hw1jax.search import jobs, optuna_search, space_text
from hw1jax.search import space as space_
from hw1jax.search.brackets import Brackets
from hw1jax.search.observer import Observer
from hw1jax.search.space import Choice, Float, Int
from hw1jax.search.study import SearchConfig, Study, narrow, run_config

ONE = {"num_devices": 1, "widths": "padded"}  # as finished runs have it


def line(fixed):
    """A linear net, which takes a tenth of a second to compile."""
    return Task(
        init=lambda key, h: {"w": jax.random.normal(key, (1, 1)), "b": jnp.zeros(1)},
        apply=lambda params, x, h: x @ params["w"] + params["b"][None],
        loss=squared_error,
        optimizer=lambda h: optax.sgd(h["rate"]),
    )


LINE = Study(
    "line",
    task=line,
    data=TOY_DATA,
    space={"rate": Float(1e-3, 1e-2, log=True)},
    num_trials=2,
    num_epochs=2,
    batch_size=20,
)


# Ranked by accuracy, with two programs; its highest rates diverge.
CLASSES = replace(
    LINE,
    name="classes",
    task=lambda fixed: line(fixed)._replace(
        init=lambda key, h: {"w": jax.random.normal(key, (1, 3)), "b": jnp.zeros(3)},
        loss=lambda outputs, y: fixed["scale"] * cross_entropy(outputs, y),
        optimizer=lambda h: optax.sgd(jnp.where(h["rate"] > 1, jnp.inf, h["rate"])),
    ),
    data=TOY_DATA._replace(y_train=np.arange(61) % 3, y_test=np.arange(20) % 3),
    space={"rate": Float(1e-3, 1e3, log=True), "scale": Choice(1.0, 2.0, static=True)},
    metrics={"accuracy": accuracy},
    maximize="accuracy",
    classes=("a", "b", "c"),
    num_trials=6,
)


def go_on(folder, asked=TOY, observer=None, stop=None, **settings):
    """A run in a folder, as the finished ones were made; what results.json holds."""
    made = run_config(asked, out=folder, **ONE | settings)
    return run.run(made, observer or Observer(), command="hw1jax.run_study", started=0.0, stop=stop)


def rows_of(folder):
    return list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


@pytest.fixture
def toy(tmp_path, tmp_path_factory):
    """A copy of the toy's finished run."""
    return finished_copy("toy", tmp_path_factory, tmp_path)


@pytest.fixture
def done(tmp_path, tmp_path_factory):
    """A copy of the finished run of studies.LINE, which is traced in a third of the toy's time."""
    return finished_copy("line", tmp_path_factory, tmp_path)


@pytest.fixture
def trained_jobs(monkeypatch):
    """The numbers of the trials of each program that a search trains from here on; a refit has trial 0 alone."""
    numbers, resume = [], population.resume

    def noting(members, state, trials, **epochs):
        numbers.extend([] if members.config.first_fold else [trials.numbers.tolist()])
        return resume(members, state, trials, **epochs)

    monkeypatch.setattr(population, "resume", noting)
    return numbers


# What is left.


@pytest.mark.parametrize("study", [TOY, LINE, CLASSES], ids=lambda study: study.name)
def test_run_leaves_consistent_files_behind(study, tmp_path, tmp_path_factory):
    folder = tmp_path
    if study is TOY:
        folder = finished_run("toy", tmp_path_factory)
    else:
        go_on(folder, study)
    found, rows = json.loads((folder / "results.json").read_text()), rows_of(folder)
    arrays = storage.read_arrays(folder / "histories.npz")
    assert arrays["val_loss"].shape == (study.num_trials, 3, study.num_epochs)
    means = []
    for i, row in enumerate(rows):
        for metric in ("loss", *study.metrics):
            splits = [float(row[f"split{j}_val_{metric}"]) for j in range(3)]
            np.testing.assert_array_equal(np.float32(splits), arrays[f"val_{metric}"][i, :, -1])
            if row["state"] == "complete":
                assert float(row[f"mean_val_{metric}"]) == pytest.approx(np.mean(splits))
                assert float(row[f"std_val_{metric}"]) == pytest.approx(np.std(splits))
        whole = np.all([np.isfinite(arrays[n][i]).all(axis=0) for n in ("train_loss", "val_loss")], axis=0)
        assert (row["state"] == "complete") == whole.all()
        assert row["diverged_epoch"] == ("" if whole.all() else str(1 + np.argmin(whole)))
        means.append(float(row[f"mean_val_{study.score}"]) if whole.all() else np.nan)
    in_order = sorted(np.flatnonzero(np.isfinite(means)), key=lambda i: -means[i] if study.maximize else means[i])
    assert [rows[i]["rank"] for i in in_order] == [str(1 + place) for place in range(len(in_order))]
    best = in_order[0]
    assert found["best"]["number"] == int(rows[best]["number"])
    assert found["best"][f"mean_val_{study.score}"] == means[best]

    model = load_model(folder / "model.msgpack", study)
    data = results.load_results(folder, study).data
    np.testing.assert_array_equal(model.predict(data.x_test), arrays["test_outputs"])
    assert found["test"] == trained_model.score(model, arrays["test_outputs"], data.y_test)
    np.testing.assert_array_equal(model.predict(data.x_test, ensemble=True), arrays["ensemble_outputs"])
    assert found["ensemble"] == trained_model.score(model, arrays["ensemble_outputs"], data.y_test)
    assert found["ensemble"]["loss"] != found["test"]["loss"]
    if study.classes:
        right = arrays["test_outputs"].argmax(1) == data.y_test
        assert found["test"]["accuracy"] == pytest.approx(np.mean(right))
        assert np.sum(found["test"]["confusion"]) == len(data.y_test)
    else:
        curve_x = arrays["curve_x"][:, None]
        np.testing.assert_array_equal(arrays["curve_outputs"], model.predict(curve_x)[:, 0])
        np.testing.assert_array_equal(arrays["curve_fold_outputs"], np.stack(model.fold_outputs(curve_x))[..., 0])
    assert found["refit"]["train_loss"] == float(arrays["refit_train_loss"][-1])
    assert found["refit"]["folds_train_loss"] == pytest.approx(arrays["train_loss"][best, :, -1].mean())
    assert arrays["refit_train_loss"].shape == (study.num_epochs,)
    failed = study.num_trials - len(in_order)
    assert (failed > 0) == (study is CLASSES)
    assert found["trials"] == {"complete": len(in_order), "pruned": 0, "failed": failed}
    (rung,) = found["rungs"]
    assert rung.pop("seconds") > 0
    assert rung == {"num_epochs": study.num_epochs, "num_trials": study.num_trials, "went_on": 0, "failed": failed}
    assert found["num_programs"] == (2 if study is CLASSES else 1)
    timing = found["timing"]
    assert min(timing.values()) >= 0 and timing.pop("resumed") is False
    assert sum(timing.values()) <= 2 * timing["total_seconds"], "the parts are disjoint"


def test_the_same_command_gives_the_same_files_and_compiles_no_training_again(tmp_path, tmp_path_factory):
    finished = finished_run("toy", tmp_path_factory)
    go_on(tmp_path / "first")
    with compilations.counted() as compiled:
        go_on(tmp_path / "second")
    assert lasting(tmp_path / "first") == lasting(tmp_path / "second") == lasting(finished)
    assert "jit(_fit)" not in compiled and "jit(_init)" not in compiled
    assert go_on(tmp_path / "first")["timing"]["resumed"]


def test_a_run_traces_and_compiles_its_networks_few_times(tmp_path):
    """Each check that needs a trace or a program of its own costs every run a tenth of a second or more."""
    traced = Counter()

    def task(fixed):
        net = models.MLP((fixed["units"],), num_outputs=1)

        def init(key, h):
            traced["init"] += 1
            return net.init(key, jnp.zeros((1, 1)), (h["units"],))["params"]

        def apply(params, x, h):
            traced["apply"] += 1
            return net.apply({"params": params}, x, (h["units"],))

        return line(fixed)._replace(init=init, apply=apply)

    space = LINE.space | {"units": Int(2, 3, width=True)}
    with compilations.counted() as compiled:
        run_study(replace(LINE, task=task, space=space), out=tmp_path, widths="padded")
    assert traced["init"] <= 8 and traced["apply"] <= 14
    own = {name: count for name, count in Counter(compiled).items() if name.startswith("jit(_")}
    programs = {"jit(_init)": 1, "jit(_try_out)": 1, "jit(_first_step)": 2, "jit(_fit)": 2}
    assert {name: own.get(name, 0) for name in programs} == programs


def test_the_refit_is_fold_k_of_trial_0_on_all_training_data_as_a_plain_loop_has_it(tmp_path):
    found = run_study(LINE, out=tmp_path)
    everything, rate = Fold(np.arange(61), np.arange(0)), found.best.params["rate"]
    batches = minibatches([everything], range(2), batch_size=20, seed=(0,), first_fold=3)[0]  # [epoch, step, batch]

    @plain.compiled
    def step(params, x, y):
        def loss(params):
            return jnp.mean((x @ params["w"] + params["b"][None] - y) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda a, g: a - rate * g, params, gradient)

    params, losses = line({}).init(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 3), {}), []
    for epoch in batches:
        total = 0.0
        for index in (padded[padded != PADDING] for padded in epoch):
            value, params = step(params, TOY_DATA.x_train[index], TOY_DATA.y_train[index])
            total += float(value) * len(index)
        losses.append(total / 61)
    np.testing.assert_allclose(found.histories["refit_train_loss"], losses, rtol=1e-5)
    chex.assert_trees_all_close(found.model.params, params, rtol=1e-5)


# Going on, and asking for more or fewer.


def test_what_is_finished_is_not_trained_again_and_more_trials_extend_it(toy, trained_jobs):
    before, rows, told = lasting(toy), rows_of(toy), []

    class Told(Observer):
        def start(self, study, *numbers):
            told.append((study.name, *numbers))

        def trials(self, trials, study):
            told.append(([trial.number for trial in trials], study.name))

        def finish(self, results, folder):
            told.append((results["study"], folder))

    go_on(toy, observer=Told(), reproducible=True)  # which belongs to no search
    assert lasting(toy) == before
    assert trained_jobs == []
    assert told == [("toy", 4, 3, 4, 16), ([0, 1, 2, 3], "toy"), ("toy", toy)]
    go_on(toy, num_trials=5)
    assert trained_jobs == [[4, 4, 4, 4]]
    unranked = [{**row, "rank": ""} for row in rows_of(toy)]
    assert len(unranked) == 5
    assert unranked[:4] == [{**row, "rank": ""} for row in rows]
    go_on(toy, num_trials=2)
    assert [{**row, "rank": ""} for row in rows_of(toy)] == unranked[:2]


def test_a_search_of_fewer_trials_whose_best_is_another_has_the_networks_of_its_own_best(tmp_path):
    line = {"out": tmp_path, "widths": "padded", "num_devices": 1}
    three = run_study(studies.LINE, **line)
    two = run_study(studies.LINE, num_trials=2, **line)
    assert three.best.number == 2 and two.best.number < 2
    alone = run_study(studies.LINE, num_trials=2, **line | {"out": tmp_path / "alone"})
    np.testing.assert_allclose(two.out_of_fold, alone.out_of_fold, rtol=1e-5)
    assert run_study(studies.LINE, **line).test == three.test


def test_a_bracket_that_is_filled_up_does_not_go_on_from_the_checkpoint_of_a_smaller_one(tmp_path):
    """The slots of trials that were not asked for yet held copies of the last one."""
    calls = replace(LINE, num_trials=3, epochs_per_call=1)
    go_on(tmp_path / "whole", calls)

    class Stopping(Observer):
        def epochs(self, *_):
            stop.set()

    for num_trials in (3, 2):
        stop = threading.Event()
        with pytest.raises(jobs.Stopped):
            go_on(tmp_path / "stopped", calls, Stopping(), num_trials=num_trials, stop=stop)
        if num_trials == 3:  # a plan of three slots is all that is left
            [left] = (tmp_path / "stopped").rglob("*.checkpoint")
            left.unlink()
    assert len(list((tmp_path / "stopped").rglob("*.checkpoint"))) == 1
    go_on(tmp_path / "stopped", calls)
    assert lasting(tmp_path / "stopped") == lasting(tmp_path / "whole")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_run_on_a_folder_is_refused_in_one_line_and_touches_nothing(done, overwrite):
    expected, told = lasting(done), []

    class Second(Observer):
        def trials(self, trials, study):
            before = contents(done)
            with ThreadPoolExecutor() as threads:  # in this process as in another one
                told.append(threads.submit(go_on, done, studies.LINE, overwrite=overwrite).exception())
            assert contents(done) == before

    (done / "results.json").unlink()
    go_on(done, studies.LINE, observer=Second())
    (error,) = told
    assert type(error) is ValueError
    assert str(error).startswith(f"{done} is in use by process {os.getpid()} on {platform.node()} since 20")
    assert str(error).endswith(": wait for its end, or give another out=")
    assert lasting(done) == expected
    go_on(done, studies.LINE)


def test_results_that_are_read_while_a_run_writes_them_fit_each_other(toy, monkeypatch):
    readers, write = ThreadPoolExecutor(), storage.write_arrays
    reading = []

    def slowly(path, *args, **more):
        if path.name == "histories.npz":  # trials.csv is that of three trials, results.json that of four
            reading.append(readers.submit(results.load_results, toy, TOY))
            assert not wait(reading, timeout=0.5).done
        write(path, *args, **more)

    monkeypatch.setattr(storage, "write_arrays", slowly)
    go_on(toy, num_trials=3)
    assert len(reading[0].result().trials["number"]) == 3


def test_an_interrupt_in_a_notebook_leaves_nothing_running_and_the_run_goes_on(tmp_path):
    calls, seen = replace(LINE, epochs_per_call=1), []

    class Interrupting(Observer):
        def epochs(self, what, done, num_epochs, scores, search_done=None):
            seen.append(done)
            if len(seen) == 50:  # by then the main thread waits
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs don't have
    try:
        with pytest.raises(KeyboardInterrupt):
            go_on(tmp_path / "interrupted", calls, Interrupting(), num_epochs=1000)
    finally:
        signal.signal(signal.SIGINT, handler)
    before = len(seen)
    time.sleep(0.2)
    assert len(seen) == before < 1000
    assert list(tmp_path.rglob("*.checkpoint"))
    go_on(tmp_path / "interrupted", calls, num_epochs=1000)
    go_on(tmp_path / "whole", calls, num_epochs=1000)
    assert lasting(tmp_path / "interrupted") == lasting(tmp_path / "whole")


@pytest.mark.parametrize("share", [0.5, 0.75, 0.99])
def test_records_that_a_machine_has_lost_are_told_again(done, trained_jobs, share):
    table, journal = (done / "trials.csv").read_bytes(), done / "journal.log"
    content = journal.read_bytes()
    first_told = content.index(b"\n", content.rindex(b'"param_name"'))
    journal.write_bytes(content[: first_told + int(share * (len(content) - first_told))])
    (done / "results.json").unlink()
    go_on(done, studies.LINE)
    assert (done / "trials.csv").read_bytes() == table
    assert trained_jobs == []


def test_records_reach_the_disk_together_before_the_results_do(done, monkeypatch):
    append, sync, write, events = optuna_search.Journal.append_logs, storage.sync, run_folder.write, []
    monkeypatch.setattr(optuna_search.Journal, "append_logs", lambda *args: (events.append("record"), append(*args))[1])
    monkeypatch.setattr(storage, "sync", lambda path: (events.append(path.name), sync(path))[1])
    monkeypatch.setattr(run_folder, "write", lambda *args: (events.append("results"), write(*args))[1])
    (done / "journal.log").unlink()  # Optuna gets all trials again
    go_on(done, studies.LINE)
    assert events[-2:] == ["journal.log", "results"]
    assert events.count("journal.log") == 1, "once for a bracket"
    assert events.count("record") > 30
    storage.sync(done / "none")


@pytest.mark.parametrize("where", ["scores", "hyperparameters"])
def test_a_digit_of_the_journal_that_has_changed_is_refused_in_one_line_that_names_both(done, where):
    before = lasting(done)
    journal = (done / "journal.log").read_text()
    value = repr(results.load_results(done, studies.LINE).trials.folds["loss"][2, 1].item())
    if where == "hyperparameters":
        value = repr(results.load_results(done, studies.LINE).trials.params["learning_rate"][2].item())
    assert value in journal
    (done / "journal.log").write_text(journal.replace(value, value[:5] + str((int(value[5]) + 1) % 10) + value[6:]))
    with pytest.raises(ValueError, match="[^\n]*journal[^\n]*one of them is damaged[^\n]*"):
        go_on(done, studies.LINE)
    assert lasting(done) == before


def test_kept_files_may_be_removed_and_a_damaged_one_is_refused(done):
    before = lasting(done)
    members, losses, *refit = sorted(done.glob("brackets/*/*.npz"))
    number = results.load_results(done, studies.LINE).best.number
    names = [path.name for path in (members, losses, *refit)]
    assert names == [f"{job}.{kind}" for job in ("000000-2", f"refit-{number}") for kind in ("members.npz", "npz")]
    for kept in (losses, members, *refit, done / "model.msgpack"):
        kept.unlink()
        go_on(done, studies.LINE)
        assert lasting(done) == before
    for kept in (*refit, members, losses):
        kept.write_bytes(kept.read_bytes()[:-40])
        with pytest.raises(ValueError, match="damaged .*: remove it and run the same command again"):
            go_on(done, studies.LINE)


# What a folder belongs to.


OWN_FOLDS = [(np.arange(20, 61), np.arange(20)), (np.arange(30), np.arange(30, 61))]


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"num_epochs": 5}, "num_epochs = 2, not 5"),
        ({"space": studies.LINE.space | {"learning_rate": Float(1e-3, 1, log=True)}}, {}, "learning_rate = .*, not "),
        ({"folds": OWN_FOLDS}, {}, "num_folds = 3, not 2"),
        ({"data": TOY_DATA._replace(x_test=TOY_DATA.x_test + 1)}, {}, "data_sha256 = .*, not "),
    ],
)
def test_changed_settings_in_the_same_folder_are_refused(done, changes, settings, message):
    before = lasting(done)
    with pytest.raises(ValueError, match=f"{message}.*: give the old settings to go on with it, or another out="):
        go_on(done, replace(studies.LINE, **changes), **settings)
    assert lasting(done) == before


def test_what_belongs_to_a_search_is_all_that_its_results_depend_on(tmp_path_factory):
    config = json.loads((finished_run("toy", tmp_path_factory) / "results.json").read_text())["config"]
    settings = {field.name for field in fields(SearchConfig)}
    study = {"own_folds", "stratify", "space", "metrics", "score", "direction", "task_sha256", "task_versions"}
    # Of the settings of the program and the output there are none: the plan stands for those that matter. These
    # are recorded where they are used.
    settings -= {"repeats", "early_stopping", "ensemble"}
    assert set(config) == settings | study | {"data_sha256", "plan", "plan_sha256", "format", "num_trials"}


@pytest.mark.parametrize("number", [None, 2, storage.FORMAT + 1])
def test_a_folder_of_another_version_is_refused_in_one_line_and_left_as_it_is(done, number):
    """The first version had no number."""
    config = json.loads((done / "results.json").read_text())["config"]
    version = {} if number is None else {"format": number}
    journal = (done / "journal.log").read_text()
    assert journal.count(f'"format":{storage.FORMAT}') == 1
    journal = journal.replace(f',"format":{storage.FORMAT}', "" if number is None else f',"format":{number}')
    (done / "journal.log").write_text(journal)
    del config["format"]
    change_record(done, config=config | version, format=number or 1)
    before = lasting(done)
    words = f"has the format {number or 1}, this version .* reads {storage.FORMAT}: .* give another out="
    for use in (results.load_results, go_on):
        with pytest.raises(storage.FormatError, match=words) as caught:
            use(done, studies.LINE)
        assert "\n" not in str(caught.value)
    assert lasting(done) == before


# How exactly it computes.


def test_everything_is_computed_in_the_precision_that_is_recorded(tmp_path):
    """Search, refit and test, in whichever thread; and a second precision is compiled anew."""
    seen, before = set(), jax.config.jax_default_matmul_precision

    def net(fixed):  # of some width, so that it can have its own
        def apply(params, x, h):
            seen.add(jax.config.jax_default_matmul_precision)
            return jnp.where((jnp.arange(fixed["units"]) < h["units"])[None], x, 0) @ params

        def init(key, h):
            return jnp.where((jnp.arange(fixed["units"]) < h["units"])[:, None], 1.0, 0.0)

        return Task(init, apply, squared_error, lambda h: optax.sgd(0.01))

    class Begun(Observer):
        def start(self, *numbers):
            seen.clear()  # of what was tried beforehand, as exactly as can be

    study = replace(LINE, task=net, space={"units": Int(1, 2, width=True)})
    for precision in ("bfloat16", "tensorfloat32"):
        found = go_on(tmp_path / precision, study, Begun(), widths="exact", precision=precision)
        assert seen == {precision}
        assert found["config"]["precision"] == precision
        assert found["environment"]["matmul_precision"] == "float32"  # a CPU takes no notice
    with pytest.raises(ValueError, match="precision = tensorfloat32, not bfloat16"):
        go_on(tmp_path / "tensorfloat32", study, widths="exact", precision="bfloat16")
    loaded = run.load(run_config(study, precision="bfloat16", batch_size=10))
    loaded.for_refit()  # which tries what padding changes, as exactly as can be
    seen.clear()
    run.refit(loaded, space_.widest(study.space), Observer())
    assert seen == {"bfloat16"}
    assert jax.config.jax_default_matmul_precision == before


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("", False),
        ("--xla_gpu_deterministic_ops=true", False),
        ("--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0", True),
        ("--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0 --xla_gpu_deterministic_ops=false", False),
    ],
)
def test_reproducible_is_recorded_as_it_is_in_force(monkeypatch, flags, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert environment.numerics()["reproducible"] == expected
    environment.make_reproducible()
    assert environment.numerics()["reproducible"]


# What goes wrong.


def test_a_refit_that_diverges_leaves_results_without_a_test_loss_and_the_same_at_the_next_start(
    done, monkeypatch, capsys
):
    refit, drawn = Brackets.refit, []

    def diverging(*args, **settings):
        params, state, train_loss = refit(*args, **settings)
        return jax.tree.map(lambda a: a * np.nan, params), state, train_loss * np.nan

    monkeypatch.setattr(Brackets, "refit", diverging)
    monkeypatch.setattr(cli.report, "write_report", lambda folder, study: drawn.append(folder))
    assert go_on(done, studies.LINE)["test"] == {"loss": None, "accuracy": None, "confusion": None}
    assert len(rows_of(done)) == 3 and not (done / "model.msgpack").exists()
    monkeypatch.setattr(cli.environment, "command_line", lambda: "hw1jax.run_study")
    before = lasting(done)
    assert before[0]["refit"]["state"] == "diverged"
    assert before[0]["refit"]["train_loss"] is None and before[0]["ensemble"] is None
    with pytest.raises(SystemExit) as caught:
        cli.with_exit_code(
            lambda: cli.run_and_report(run_config(studies.LINE, out=done, **ONE), cli.Flags(), 0.0, threading.Event())
        )
    assert caught.value.code == 2
    assert drawn == [done]
    assert lasting(done) == before
    out, err = capsys.readouterr()
    assert "the refit of the best trial diverged" in out
    assert err.splitlines()[-1].startswith("error: line: the refit of the best trial diverged; search smaller ")


def test_a_report_that_cannot_be_written_costs_a_line_and_not_the_exit_code(done, monkeypatch, capsys):
    def full(folder, study):
        raise OSError(28, "No space left on device", str(folder / "report.html"))

    monkeypatch.setattr(cli.report, "write_report", full)
    with pytest.raises(SystemExit) as caught:
        cli.with_exit_code(
            lambda: cli.run_and_report(run_config(studies.LINE, out=done, **ONE), cli.Flags(), 0.0, threading.Event())
        )
    assert caught.value.code == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("the report could not be written (OSError: ") and line.endswith(f"the results are in {done}")


def test_test_labels_too_large_for_a_finite_loss_leave_a_model_and_no_test_loss(tmp_path):
    large = TOY_DATA._replace(y_test=np.full_like(TOY_DATA.y_test, 3e38))
    found = go_on(tmp_path, replace(LINE, data=large))
    assert found["test"]["loss"] is None
    assert found["refit"]["state"] == "complete"
    assert found["refit"]["failure"] == "the test loss is not finite: outputs or labels are too large"
    load_model(tmp_path / "model.msgpack", LINE)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"task": lambda fixed: None}, {}, "task= must return a Task, got NoneType"),
        ({"maximize": "accuracy"}, {}, "maximize= must be one of loss, got 'accuracy'"),
        ({"folds": [(np.arange(61), np.arange(20))]}, {}, "fold 0: the same sample is in its training and its val"),
        ({"data": TOY_DATA._replace(x_train=[[1.0], [2.0]])}, {}, "x_train= must be an array"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line_before_anything_is_written(tmp_path, changes, settings, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        go_on(tmp_path / "new", replace(TOY, **changes), **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_reproduce_goes_on_after_a_study_that_fails(toy, monkeypatch, capsys):
    def no_data(**_):
        raise ValueError("no images today")

    told = []
    asked = {"toy": TOY, "classes": replace(CLASSES, data=no_data), "line": LINE}
    monkeypatch.setattr(reproduce, "STUDIES", asked)
    monkeypatch.setattr(reproduce.homework, "ways", lambda study: [study])
    monkeypatch.setattr(cli.report, "write_report", lambda *_: None)
    monkeypatch.setattr(reproduce.report, "write_overview", lambda *args: told.append(args))
    folder, orders, shown = reproduce.parse(["--out", str(toy.parent), "--quiet", "--num-devices", "1"])
    assert reproduce.reproduce(folder, orders, shown, threading.Event()) == 1
    assert "failed: classes: no images today" in capsys.readouterr().err
    assert told[-1][2:] == ([toy, toy.parent / "line"], {"classes": "no images today"})


def test_the_overview_of_reproduce_has_the_last_search_of_each_study_that_has_ended(tmp_path):
    for study in (regression.STUDY, fashion_mlp.STUDY):
        first, second, own = homework.ways(study)
        assert reproduce.last_search(tmp_path, study) is study
        for search in (first, second, own):
            (tmp_path / search.name).mkdir()
            (tmp_path / search.name / "results.json").touch()
            assert reproduce.last_search(tmp_path, study).name == search.name


def test_where_memory_runs_out_the_job_is_split_and_the_results_say_so(tmp_path, tmp_path_factory, monkeypatch):
    notes, tried, resume = [], [], population.resume

    def little_memory(members, state, trials, **epochs):
        tried.append(len(set(trials.numbers.tolist())))  # the last one fills empty slots too
        if tried[-1] > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return resume(members, state, trials, **epochs)

    class Notes(Observer):
        def note(self, text):
            notes.append(text)

    whole = replace(LINE, num_trials=5)
    assert go_on(tmp_path / "enough", whole)["splits"] == 0
    monkeypatch.setattr(population, "resume", little_memory)
    assert go_on(tmp_path / "little", whole, Notes())["splits"] == 2
    assert tried == [5, 3, 2, 1, 2, 1]  # the last one is the refit
    assert notes == [
        "out of memory with 5 trials at once: going on with 3",
        "out of memory with 3 trials at once: going on with 2",
    ]
    found = [storage.read_arrays(tmp_path / name / "histories.npz")["val_loss"] for name in ("enough", "little")]
    np.testing.assert_allclose(*found, rtol=1e-5)


def at_most(num_trials):
    """A `population.resume` whose device has memory for so many trials."""
    resume = population.resume

    def little_memory(members, state, trials, **epochs):
        if len(set(trials.numbers.tolist())) > num_trials:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return resume(members, state, trials, **epochs)

    return little_memory


def test_halves_of_a_job_go_on_from_checkpoints_of_their_own(tmp_path, monkeypatch):
    whole = replace(LINE, num_trials=4, num_epochs=3, epochs_per_call=1)
    go_on(tmp_path / "enough", whole)
    monkeypatch.setattr(jobs, "SECONDS", 0)
    monkeypatch.setattr(population, "resume", at_most(2))
    assert go_on(tmp_path / "little", whole)["splits"] == 1
    found = [storage.read_arrays(tmp_path / name / "histories.npz")["val_loss"] for name in ("enough", "little")]
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_a_job_that_went_on_from_a_rung_is_split_where_its_checkpoint_is_too_large(tmp_path, monkeypatch):
    asked = {"num_trials": 6, "num_epochs": 8, "halving": 2, "first_rung": 2}
    calls = replace(LINE, epochs_per_call=1)
    go_on(tmp_path / "enough", calls, **asked)

    class Stopping(Observer):
        def epochs(self, what, *_):
            if "rung 2" in what:
                stop.set()

    stop = threading.Event()
    with pytest.raises(jobs.Stopped):
        go_on(tmp_path / "little", calls, Stopping(), stop=stop, **asked)
    assert list(tmp_path.rglob("*.checkpoint"))
    monkeypatch.setattr(population, "resume", at_most(2))
    assert go_on(tmp_path / "little", calls, **asked)["splits"] >= 1
    found = [storage.read_arrays(tmp_path / name / "histories.npz")["val_loss"] for name in ("enough", "little")]
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_other_errors_of_the_device_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(population, "resume", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        go_on(tmp_path, LINE)


# Studies of other kinds.


def test_a_narrowed_choice_trains_what_it_names(tmp_path, tmp_path_factory):
    """The indices of the optimizers stay the same: trials that drew one of the others train as before."""
    whole = results.load_results(finished_run("toy", tmp_path_factory), TOY)
    only = str(whole.trials.params["optimizer"][-1])
    assert only != TOY.space["optimizer"].values[0], "an index of 0 would be right by chance"
    narrowed = narrow(TOY, optimizer=space_text.narrowed(TOY.space["optimizer"], among=(only,)))
    found = run_study(narrowed, out=tmp_path, **ONE)
    assert set(found.trials.params["optimizer"]) == {only}
    same = whole.trials.params["optimizer"] == only
    assert 0 < same.sum() < len(same)
    np.testing.assert_array_equal(found.trials.params["l2"], whole.trials.params["l2"])
    equal = (found.histories["val_loss"] == whole.histories["val_loss"]).all(axis=(1, 2))
    np.testing.assert_array_equal(equal, same)


def test_folds_of_ones_own_are_used_and_belong_to_the_search(tmp_path):
    own = replace(LINE, folds=OWN_FOLDS)
    found = run_study(own, out=tmp_path)
    assert found.num_folds == found.record["config"]["num_folds"] == 2
    assert found.histories["val_loss"].shape == (2, 2, 2)
    held_out = OWN_FOLDS[1][1]
    params, _ = found.model.folds[1]
    outputs = found.model.task.apply(params, TOY_DATA.x_train[held_out], {})
    loss = float(np.mean(squared_error(outputs, TOY_DATA.y_train[held_out])))
    assert found.trials.folds["loss"][found.row, 1] == pytest.approx(loss, rel=1e-5)
    assert run_study(own, out=tmp_path).record["best"] == found.record["best"]
    with pytest.raises(ValueError, match="own_folds = .*, not "):
        run_study(replace(LINE, folds=OWN_FOLDS[::-1]), out=tmp_path)
