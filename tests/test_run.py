"""The run of a study, small: what it leaves behind, that it repeats, goes on, and fails as it should."""

import csv
import json
import threading
from dataclasses import fields, replace

import deep
import fashion_cnn
import fashion_mlp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
import reproduce
import toy

from hw1jax import brackets, checkpoint, cli, optimizers, plan, record, results, run, search, storage, trained
from hw1jax import space as space_
from hw1jax.brackets import Brackets
from hw1jax.checkpoint import Checkpoint
from hw1jax.data import Dataset
from hw1jax.losses import squared_error
from hw1jax.observer import Observer
from hw1jax.run import run_study
from hw1jax.space import Float, Int
from hw1jax.study import Halving, Output, Program, Search, Study, load_data, narrow, order, splits_of
from hw1jax.training import Task


def fake_images(**_):
    """Classes that a small net can tell apart: the brightest column."""
    rng = np.random.default_rng(0)
    y = np.arange(180, dtype=np.int32) % 10
    x = rng.integers(0, 60, (180, 28, 28), dtype=np.uint8)
    x[np.arange(180), :, 2 * y + 3] += 190
    return Dataset(x[:120], y[:120], x[120:], y[120:])


UNITS = (Int(3, 8, width=True), Int(3, 6, width=True))
IMAGES = {"num_epochs": 2, "batch_size": 20, "data": fake_images}
SMALL = {
    "regression": replace(narrow(regression.STUDY, hidden_units=UNITS), num_trials=5, num_epochs=20),
    "fashion_mlp": replace(narrow(fashion_mlp.STUDY, hidden_units=UNITS), num_trials=3, **IMAGES),
    "fashion_cnn": replace(
        narrow(fashion_cnn.STUDY, hidden_units=UNITS, channels=(Int(2, 3, width=True), Int(2, 4, width=True))),
        num_trials=2,
        **IMAGES,
    ),
}
REGRESSION = SMALL["regression"]


def execute(study, folder, observer=None, **settings):
    asked = order(study, out=folder, **settings)
    return run.run(asked, observer or Observer(), command="test", started=0.0)


def with_rates(study, low, high):
    return narrow(study, learning_rate=Float(low, high, log=True))


def read_trials(folder):
    return list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


def lasting(folder):
    """What must be the same each time: all files but times and dates."""
    record = json.loads((folder / "results.json").read_text())
    del record["timing"], record["environment"]
    for rung in record["rungs"]:
        del rung["seconds"]
    arrays = storage.read_arrays(folder / "histories.npz")
    return record, (folder / "trials.csv").read_text(), {name: a.tobytes() for name, a in arrays.items()}


def trained_jobs(monkeypatch):
    """The numbers of the trials of each job that is trained from here on."""
    trained, train = [], Brackets._train
    monkeypatch.setattr(Brackets, "_train", lambda self, *job: trained.append(job[0].job.numbers) or train(self, *job))
    return trained


# What is left.


@pytest.mark.parametrize(
    "name", ["regression", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fashion_mlp", "fashion_cnn"))]
)
def test_run_leaves_consistent_files_behind(name, tmp_path):
    study = SMALL[name]
    found = execute(study, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(found))
    rows = read_trials(tmp_path)
    arrays = storage.read_arrays(tmp_path / "histories.npz")
    trials, folds, epochs = arrays["val_loss"].shape
    assert (trials, folds, epochs) == (study.num_trials, 3, study.num_epochs)
    for row, losses in zip(rows, arrays["val_loss"], strict=True):
        splits = [float(row[f"split{i}_val_loss"]) for i in range(3)]
        np.testing.assert_array_equal(np.float32(splits), losses[:, -1])
        assert float(row["mean_val_loss"]) == pytest.approx(np.mean(splits))
    first = min(rows, key=lambda row: float(row["mean_val_loss"]))
    assert first["rank"] == "1"
    assert int(first["number"]) == found["best"]["number"]

    data, model = load_data(study, {}), trained.load_model(tmp_path / "model.msgpack", study)
    np.testing.assert_array_equal(model.predict(data.x_test), arrays["test_outputs"])
    assert found["test"] == results.score(model, arrays["test_outputs"], data.y_test)
    np.testing.assert_array_equal(model.predict(data.x_test, ensemble=True), arrays["ensemble_outputs"])
    assert found["ensemble"] == results.score(model, arrays["ensemble_outputs"], data.y_test)
    assert found["refit"]["train_loss"] == float(arrays["refit_train_loss"][-1])
    assert found["refit"]["folds_train_loss"] == pytest.approx(arrays["train_loss"][int(first["number"]), :, -1].mean())
    (rung,) = found["rungs"]
    assert rung.pop("seconds") > 0
    assert rung == {"num_epochs": epochs, "num_trials": trials, "went_on": 0, "failed": 0}
    assert found["trials"] == {"complete": trials, "pruned": 0, "failed": 0}
    assert {row["epochs"] for row in rows} == {str(epochs)}
    assert arrays["refit_train_loss"].shape == (epochs,)
    if study.classes:
        assert np.sum(found["test"]["confusion"]) == len(data.y_test)
    else:
        for name, outputs in (("outputs", model.predict), ("fold_outputs", model.fold_outputs)):
            curve = np.asarray(outputs(arrays["curve_x"][:, None]))[..., 0]
            np.testing.assert_array_equal(arrays[f"curve_{name}"], curve)
    assert min(found["timing"].values()) >= 0


@pytest.mark.parametrize("widths", ["padded", pytest.param("exact", marks=pytest.mark.slow)])
def test_same_command_twice_gives_the_same_files(widths, tmp_path):
    for folder in ("first", "second"):
        execute(REGRESSION, tmp_path / folder, widths=widths)
    assert lasting(tmp_path / "first") == lasting(tmp_path / "second")


@pytest.mark.slow
def test_own_widths_agree_with_padded_ones_at_first(tmp_path):
    found = []
    for widths in ("padded", "exact"):
        execute(with_rates(REGRESSION, 0.001, 0.01), tmp_path / widths, widths=widths, num_epochs=2)  # 8 steps
        found.append(storage.read_arrays(tmp_path / widths / "histories.npz")["val_loss"])
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.slow
def test_finished_search_is_not_trained_again_and_more_trials_extend_it(tmp_path, monkeypatch):
    execute(REGRESSION, tmp_path / "once", num_trials=4)
    before = lasting(tmp_path / "once")
    trained = trained_jobs(monkeypatch)
    execute(REGRESSION, tmp_path / "once", num_trials=4)
    assert lasting(tmp_path / "once") == before
    assert trained == []
    execute(REGRESSION, tmp_path / "once", num_trials=7)
    assert trained == [[4, 5, 6]]
    rows = (tmp_path / "once" / "trials.csv").read_text().splitlines()
    old = before[1].splitlines()
    ranked = slice(-2)  # all but the rank and the epoch of divergence
    assert [row.split(",")[ranked] for row in rows[:5]] == [row.split(",")[ranked] for row in old]


@pytest.mark.slow
def test_a_bracket_that_is_filled_up_does_not_go_on_from_the_checkpoint_of_a_smaller_one(tmp_path, monkeypatch):
    """The slots of trials that were not asked for yet held copies of the last one."""
    padded = {"widths": "padded", "num_epochs": 100}
    execute(REGRESSION, tmp_path / "whole", num_trials=5, **padded)
    with monkeypatch.context() as patched:
        patched.setattr(search, "search", lambda *_, **__: pytest.fail("begun"))  # a plan of five slots
        with pytest.raises(pytest.fail.Exception, match="begun"):
            execute(REGRESSION, tmp_path / "stopped", num_trials=5, **padded)
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    write, stop = Checkpoint.write, threading.Event()
    monkeypatch.setattr(Checkpoint, "write", lambda *args: write(*args) or stop.set())
    asked = order(REGRESSION, out=tmp_path / "stopped", num_trials=3, **padded)
    with pytest.raises(brackets.Stopped):
        run.run(asked, Observer(), command="test", started=0.0, stop=stop)
    execute(REGRESSION, tmp_path / "stopped", num_trials=5, **padded)
    assert lasting(tmp_path / "stopped") == lasting(tmp_path / "whole")


@pytest.mark.parametrize("halving", [Halving(3, first=2), 3])
def test_a_search_with_halving_leaves_the_rungs_and_each_trials_epochs(halving, tmp_path):
    """`Halving(3)` and 3 are the same, here or in the study."""
    first_rung = {} if isinstance(halving, Halving) else {"first_rung": 2}
    study = narrow(replace(toy.STUDY, num_epochs=6, num_trials=5), learning_rate=Float(1e-3, 1e-2, log=True))
    found = run_study(study, out=tmp_path, widths="padded", num_devices=1, halving=halving, **first_rung)
    assert found.record["config"]["halving"] == 3 and found.record["config"]["first_rung"] == 2
    assert [{name: rung[name] for name in rung if name != "seconds"} for rung in found.record["rungs"]] == [
        {"num_epochs": 2, "num_trials": 5, "went_on": 2, "failed": 0},
        {"num_epochs": 6, "num_trials": 2, "went_on": 0, "failed": 0},
    ]
    assert found.record["trials"] == {"complete": 2, "pruned": 3, "failed": 0}
    assert sorted(found.trials.epochs) == [2, 2, 2, 6, 6]
    np.testing.assert_array_equal(found.trials.pruned, found.trials.epochs == 2)
    losses = found.histories["val_loss"]
    assert (np.isnan(losses).sum(axis=2) == (6 - found.trials.epochs)[:, None]).all()
    assert found.trials.epochs[found.best.number] == 6 and found.ensemble["loss"] is not None
    with pytest.raises(ValueError, match=r"num_trials=7: a search with halving has whole brackets; give 5 or 10"):
        run_study(study, out=tmp_path, num_trials=7, widths="padded", num_devices=1, halving=halving, **first_rung)


# What a folder belongs to.


def test_changed_settings_in_the_same_folder_are_refused(tmp_path):
    execute(REGRESSION, tmp_path)
    before = lasting(tmp_path)
    with pytest.raises(ValueError, match="num_epochs = 20, not 21"):
        execute(REGRESSION, tmp_path, num_epochs=21)
    with pytest.raises(ValueError, match=r"metrics = \[\], not \['far'\]"):
        execute(replace(REGRESSION, metrics={"far": lambda outputs, y: outputs[:, 0]}), tmp_path)
    assert lasting(tmp_path) == before


def config_of(study, **settings):
    asked = order(study, **settings)
    data = load_data(study, asked.inputs)
    return run._config(asked, data, splits_of(study, asked.search, data))


def test_what_belongs_to_a_search_is_all_that_its_results_depend_on():
    config = config_of(REGRESSION)
    settings = {field.name for field in fields(Search)}
    study_and_data = {"own_folds", "space", "metrics", "score", "direction", "data_sha256", "stratify"}
    assert set(config) == settings | study_and_data | {"plan", "format"}
    others = {field.name for room in (Program, Output) for field in fields(room)} | {"num_trials"}
    assert not others & set(config)  # the plan stands for those that matter


def test_where_results_go_and_how_orphans_no_folder_and_a_setting_that_belongs_does():
    config = config_of(REGRESSION)
    assert config_of(REGRESSION, out="elsewhere", quick=False, storage="sqlite://", reproducible=True) == config
    assert run._digest(config) == run._digest(json.loads(json.dumps(config)))
    others = [config_of(REGRESSION, precision="bfloat16"), config_of(with_rates(REGRESSION, 0.001, 0.2))]
    assert len({run._digest(other) for other in (config, *others)}) == 3


def as_another_version(folder, number):
    """Writes another number of the format into a folder's files; the first version had none."""
    record = json.loads((folder / "results.json").read_text())
    assert record.pop("format") == record["config"].pop("format") == storage.FORMAT
    if number:
        record["format"] = record["config"]["format"] = number
    storage.write_json(folder / "results.json", record)
    arrays = storage.read_arrays(folder / "histories.npz")
    del arrays["format"]
    storage.write_arrays(folder / "histories.npz", arrays | ({"format": np.array(number)} if number else {}))
    journal = folder / "journal.log"
    lines = journal.read_text().splitlines()
    assert sum('"format"' in line for line in lines) == 1
    for i, line in enumerate(lines):
        if '"format"' in line:
            entry = json.loads(line)
            del entry["user_attr"]["config"]["format"]
            entry["user_attr"]["config"] |= {"format": number} if number else {}
            lines[i] = json.dumps(entry, separators=(",", ":"))
    journal.write_text("\n".join(lines) + "\n")


def test_records_reach_the_disk_together_before_the_results_do(tmp_path, monkeypatch):
    append, sync, write, events = search.Journal.append_logs, storage.sync, results.write, []
    monkeypatch.setattr(search.Journal, "append_logs", lambda *args: (events.append("record"), append(*args))[1])
    monkeypatch.setattr(storage, "sync", lambda path: (events.append(path.name), sync(path))[1])
    monkeypatch.setattr(results, "write", lambda *args: (events.append("results"), write(*args))[1])
    execute(REGRESSION, tmp_path)
    assert events[-2:] == ["journal.log", "results"]
    assert events.count("journal.log") == 2, "once for what was asked, once for what was told"
    assert events.count("record") > 50
    storage.sync(tmp_path / "none")


@pytest.mark.parametrize("share", [0.5, 0.75, 0.99])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_records_that_a_machine_has_lost_are_told_again(tmp_path, monkeypatch, sampler, share):
    execute(REGRESSION, tmp_path, sampler=sampler)
    table, journal = (tmp_path / "trials.csv").read_bytes(), tmp_path / "journal.log"
    content = journal.read_bytes()
    first_told = content.index(b"\n", content.rindex(b'"param_name"'))  # of the last bracket: those before are synced
    journal.write_bytes(content[: first_told + int(share * (len(content) - first_told))])
    (tmp_path / "results.json").unlink()
    monkeypatch.setattr(brackets.population, "resume", lambda *_, **__: pytest.fail("trained again"))
    execute(REGRESSION, tmp_path, sampler=sampler)
    assert (tmp_path / "trials.csv").read_bytes() == table


@pytest.mark.parametrize("number", [None, 2, 3, storage.FORMAT + 1])
def test_a_folder_of_another_version_is_refused_in_one_line_and_left_as_it_is(tmp_path, monkeypatch, number):
    execute(REGRESSION, tmp_path)
    as_another_version(tmp_path, number)
    before = lasting(tmp_path)
    monkeypatch.setattr(Brackets, "_train", lambda *_: pytest.fail("trained"))
    words = f"has the format {number or 1}, this version .* reads {storage.FORMAT}: .* give another out="
    for use in (lambda: results.load_results(tmp_path, REGRESSION), lambda: execute(REGRESSION, tmp_path)):
        with pytest.raises(storage.FormatError, match=words) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert lasting(tmp_path) == before


# How exactly it computes.


@pytest.mark.slow
@pytest.mark.parametrize("widths", ["padded", "exact"])
def test_everything_is_computed_in_the_precision_that_is_recorded(widths, tmp_path, monkeypatch):
    """Search, refit and test, in whichever thread; and a second precision is compiled anew."""
    seen, before = set(), jax.config.jax_default_matmul_precision

    def loss(outputs, y):
        seen.add(jax.config.jax_default_matmul_precision)
        return squared_error(outputs, y)

    study = replace(REGRESSION, task=lambda fixed: regression.task(fixed)._replace(loss=loss))
    check = plan.check_networks  # which tries a network beforehand, as exactly as it can
    monkeypatch.setattr(plan, "check_networks", lambda *args: check(*args) or seen.clear())
    for precision in ("bfloat16", "tensorfloat32"):
        found = execute(study, tmp_path / precision, widths=widths, precision=precision, num_trials=2, num_epochs=2)
        assert seen == {precision}
        assert found["config"]["precision"] == precision
        assert found["environment"]["matmul_precision"] == "float32"  # a CPU takes no notice
        seen.clear()
    asked = order(study, precision="bfloat16", num_epochs=2)
    run.refit(asked, load_data(study, asked.inputs), 3, space_.widest(study.space), Observer())
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
    assert record.numerics()["reproducible"] == expected
    record.make_reproducible()
    assert record.numerics()["reproducible"]


# What goes wrong.


def test_search_in_which_all_trials_diverge_is_an_error_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="every trial diverged"):
        execute(with_rates(REGRESSION, 1e30, 1e31), tmp_path)
    states = [row["state"] for row in read_trials(tmp_path)]
    assert states == ["failed"] * 5
    assert not (tmp_path / "model.msgpack").exists()


@pytest.mark.slow
def test_a_refit_that_diverges_leaves_results_without_a_test_loss_and_the_same_at_the_next_start(
    tmp_path, monkeypatch, capsys
):
    execute(REGRESSION, tmp_path, num_trials=2)  # its best model must not stay as that of five trials
    refit = run.refit

    def diverging(*args):
        model, train_loss = refit(*args)
        return model._replace(params=jax.tree.map(lambda a: a * np.nan, model.params)), train_loss * np.nan

    monkeypatch.setattr(run, "refit", diverging)
    monkeypatch.setattr(results, "kept_refit", lambda *_: None)
    assert execute(REGRESSION, tmp_path)["test"] == {"loss": None, "accuracy": None, "confusion": None}
    assert len(read_trials(tmp_path)) == 5 and not (tmp_path / "model.msgpack").exists()
    monkeypatch.setattr(cli, "command_line", lambda: "test")
    before = lasting(tmp_path)
    assert before[0]["refit"]["state"] == "diverged"
    assert before[0]["refit"]["train_loss"] is None and before[0]["ensemble"] is None
    with pytest.raises(SystemExit) as caught:
        asked = order(REGRESSION, out=tmp_path)
        cli.with_exit_code(lambda: cli.run_order(asked, cli.Flags(), 0.0, threading.Event()))
    assert caught.value.code == 2
    assert lasting(tmp_path) == before
    out, err = capsys.readouterr()
    assert "the refit of the best trial diverged" in out and "none (0.27)" in out
    assert err.splitlines()[-1].startswith("error: Regression: the refit of the best trial diverged; search smaller ")
    assert "the refit of the best trial diverged" in (tmp_path / "report.html").read_text()
    assert reproduce.report_only(tmp_path) == 0


@pytest.mark.slow
def test_test_labels_too_large_for_a_finite_loss_leave_a_model_and_no_test_loss(tmp_path):
    data = load_data(REGRESSION, dict.fromkeys(REGRESSION.inputs))
    large = data._replace(y_test=np.full_like(data.y_test, 3e38))
    found = execute(replace(REGRESSION, data=large), tmp_path)
    assert found["test"]["loss"] is None
    assert found["refit"]["state"] == "complete"
    assert found["refit"]["failure"] == "the test loss is not finite: outputs or labels are too large"
    trained.load_model(tmp_path / "model.msgpack", REGRESSION)


def test_batch_larger_than_a_training_fold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="batch_size=67 is more than a fold's 66"):
        execute(REGRESSION, tmp_path / "new", batch_size=67)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"task": lambda fixed: None}, TypeError, "task= must return a Task, got NoneType"),
        (
            {"task": lambda fixed: toy.task(fixed)._replace(metrics=(("far", squared_error),))},
            ValueError,
            "metrics= of a Task .*: give them to the Study",
        ),
        (
            {"task": lambda fixed: toy.task(fixed)._replace(loss=lambda outputs, y: jnp.mean(outputs - y))},
            ValueError,
            "loss must return one value an example",
        ),
        ({"metrics": {"far": lambda outputs, y: outputs - y}}, ValueError, "metric far must return one value an"),
        ({"maximize": "accuracy"}, ValueError, "maximize= must be one of loss, got 'accuracy'"),
        ({"space": toy.STUDY.space | {"l2": Float(0.1, 0.01)}}, ValueError, "l2=: a range goes from a low number"),
        ({"data": toy.DATA._replace(x_train=[[1.0], [2.0]])}, TypeError, "x_train= must be an array"),
    ],
)
def test_a_wrong_study_is_told_in_one_line_before_anything_is_written(tmp_path, wrong, error, message):
    with pytest.raises(error, match=message) as caught:
        execute(replace(toy.STUDY, **wrong), tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_more_slots_than_trials_change_no_draw(tmp_path):
    draws = []
    for number in (3, 5):
        opened = search.open_storage(tmp_path / f"{number}.log", REGRESSION, sampler="random", seed=0)
        draws.append([search.suggest(opened.ask(), REGRESSION) for _ in range(number)])
    assert draws[1][:3] == draws[0]


@pytest.mark.slow
def test_reproduce_goes_on_after_a_study_that_fails(tmp_path, monkeypatch, capsys):
    def no_data(**_):
        raise ValueError("no images today")

    broken = replace(SMALL["fashion_mlp"], data=no_data)
    monkeypatch.setattr(reproduce, "STUDIES", SMALL | {"fashion_mlp": broken})
    assert reproduce.reproduce(reproduce.Options(out=tmp_path, quiet=True), threading.Event()) == 1
    assert "failed: fashion_mlp: no images today" in capsys.readouterr().err
    assert (tmp_path / "regression" / "results.json").exists()
    assert (tmp_path / "fashion_cnn" / "results.json").exists()
    assert "no images today" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_where_memory_runs_out_the_job_is_split_and_the_results_say_so(tmp_path, monkeypatch):
    notes, tried = [], []
    train = Brackets._train_job

    def little_memory(self, part, draws, place):
        tried.append(len(part.job.numbers))
        if len(part.job.numbers) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return train(self, part, draws, place)

    class Notes(Observer):
        def note(self, text):
            notes.append(text)

    slow, padded = with_rates(REGRESSION, 0.001, 0.01), {"num_epochs": 2, "widths": "padded"}
    assert execute(slow, tmp_path / "enough", **padded)["splits"] == 0
    monkeypatch.setattr(Brackets, "_train_job", little_memory)
    found = execute(slow, tmp_path / "little", Notes(), **padded)
    assert tried == [5, 3, 2, 1, 2]
    assert notes == [
        "out of memory with 5 trials at once: going on with 3",
        "out of memory with 3 trials at once: going on with 2",
    ]
    assert found["splits"] == 2
    found = [storage.read_arrays(tmp_path / name / "histories.npz")["val_loss"] for name in ("enough", "little")]
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_other_errors_of_the_device_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(Brackets, "_train_job", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        execute(REGRESSION, tmp_path)


@pytest.mark.slow
def test_a_failed_trial_says_in_which_epoch_it_diverged(tmp_path):
    execute(with_rates(REGRESSION, 1e-3, 1e30), tmp_path, num_trials=8)
    rows, losses = read_trials(tmp_path), storage.read_arrays(tmp_path / "histories.npz")
    assert {row["state"] for row in rows} == {"complete", "failed"}
    for row, train_loss, val_loss in zip(rows, losses["train_loss"], losses["val_loss"], strict=True):
        if row["state"] == "complete":
            assert row["diverged_epoch"] == ""
        else:
            epoch = int(row["diverged_epoch"])
            assert np.isfinite(train_loss[:, : epoch - 1]).all() and np.isfinite(val_loss[:, : epoch - 1]).all()
            assert not (np.isfinite(train_loss[:, epoch - 1]) & np.isfinite(val_loss[:, epoch - 1])).all()


def test_the_kept_files_of_a_bracket_may_be_removed_and_a_damaged_one_is_refused(tmp_path):
    execute(REGRESSION, tmp_path)
    before = lasting(tmp_path)
    members, losses = sorted(tmp_path.glob("brackets/*/*.npz"))
    assert (losses.name, members.name) == ("000000-20.npz", "000000-20.members.npz")
    for kept in (losses, members):
        kept.unlink()
        execute(REGRESSION, tmp_path)
        assert lasting(tmp_path) == before
    model = (tmp_path / "model.msgpack").read_bytes()
    (tmp_path / "model.msgpack").unlink()  # as it has the networks of the folds as well
    execute(REGRESSION, tmp_path)
    assert (tmp_path / "model.msgpack").read_bytes() == model
    (tmp_path / "model.msgpack").unlink()
    for kept in (members, losses):
        kept.write_bytes(kept.read_bytes()[:-40])
        with pytest.raises(ValueError, match="damaged .*: remove it and run the same command again"):
            execute(REGRESSION, tmp_path)


def test_more_devices_than_a_search_was_begun_with_are_needed(tmp_path, monkeypatch):
    execute(REGRESSION, tmp_path, widths="padded")
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    with pytest.raises(ValueError, match="was begun on 2 devices, here are 1"):
        execute(REGRESSION, tmp_path, widths="padded")


# Studies of other kinds.

SIX = {"members_per_program": 18, "num_devices": 2}  # trials a bracket of `deep`


def test_a_metric_that_is_maximized_ranks_the_trials_and_comes_back(tmp_path):
    found = run_study(deep.STUDY, out=tmp_path, **SIX)
    means = found.trials.means["accuracy"]
    assert found.best.mean == means.max() and found.best.number == found.trials.numbers[means.argmax()]
    assert sorted(found.trials.numbers, key=lambda n: -means[n]) == sorted(
        found.trials.numbers, key=lambda n: found.trials.ranks[n]
    )
    assert found.record["config"]["direction"] == "maximize" and found.record["config"]["score"] == "accuracy"
    assert found.record["num_programs"] == 3
    assert found.histories["val_accuracy"].shape == (9, 3, 4)
    outputs = found.model.predict(deep.DATA.x_test)
    assert found.test["accuracy"] == pytest.approx(np.mean(outputs.argmax(1) == deep.DATA.y_test))
    assert np.sum(found.test["confusion"]) == len(deep.DATA.y_test)


@pytest.mark.slow
def test_more_trials_of_several_programs_give_what_all_at_once_would(tmp_path, monkeypatch):
    run_study(deep.STUDY, out=tmp_path / "once", num_trials=9, **SIX)
    run_study(deep.STUDY, out=tmp_path / "more", num_trials=7, **SIX)
    trained = trained_jobs(monkeypatch)
    run_study(deep.STUDY, out=tmp_path / "more", num_trials=9, **SIX)
    assert lasting(tmp_path / "more") == lasting(tmp_path / "once")
    assert trained and all({7, 8} & set(numbers) for numbers in trained)
    fewer = run_study(deep.STUDY, out=tmp_path / "more", num_trials=7, **SIX)
    assert len(fewer.trials.rows) == 7


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_fails_a_trial_whose_accuracy_is_one(tmp_path):
    """The class of the largest of outputs that are not numbers is the first."""
    study = narrow(deep.STUDY, rate=Float(1e-3, 1e14, log=True), depth=Int(1, 1, static=True))
    found = run_study(study, out=tmp_path, num_trials=12)
    failed = ~found.trials.complete
    assert failed.any() and not failed.all()
    assert np.isfinite(found.trials.folds["accuracy"]).all()
    assert np.isnan(found.trials.ranks[failed]).all()
    assert not failed[found.best.number]
    rows = read_trials(tmp_path)
    assert all((row["state"] == "failed") == (row["diverged_epoch"] != "") for row in rows)


@pytest.mark.slow
def test_a_narrowed_choice_trains_what_it_names(tmp_path):
    """The index of what is left would be another optimizer's."""

    def plain(fixed):
        return toy.task(fixed)._replace(optimizer=lambda h: optimizers.rmsprop_l2(h["learning_rate"], h["l2"]))

    only = narrow(toy.STUDY, optimizer=space_.narrowed(toy.STUDY.space["optimizer"], among=("rmsprop",)))
    found = run_study(only, out=tmp_path / "narrowed", num_epochs=1)
    without = {name: r for name, r in toy.STUDY.space.items() if name != "optimizer"}
    expected = run_study(replace(toy.STUDY, task=plain, space=without), out=tmp_path / "plain", num_epochs=1)
    assert set(found.trials.params["optimizer"]) == {"rmsprop"}
    np.testing.assert_array_equal(found.trials.params["l2"], expected.trials.params["l2"])
    np.testing.assert_allclose(found.trials.folds["loss"], expected.trials.folds["loss"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_study_of_the_homework_under_another_name_runs_to_its_end(name, tmp_path):
    other = replace(SMALL[name], name="other", title="Another one", reference=None, num_trials=2)
    found = run_study(other, out=tmp_path)
    assert found.record["study"] == "other" and found.record["reference"] is None
    assert found.test["loss"] is not None
    assert trained.load_model(tmp_path / "model.msgpack", other).draw == found.best.params
    assert reproduce.report.write_report(tmp_path, other).exists()


def test_folds_of_ones_own_are_used_and_belong_to_the_search(tmp_path):
    own = [(np.arange(20, 61), np.arange(20)), (np.arange(30), np.arange(30, 61))]
    found = run_study(replace(toy.STUDY, folds=own), out=tmp_path, num_epochs=1)
    assert found.num_folds == 2 and found.histories["val_loss"].shape == (4, 2, 1)
    assert found.record["config"]["num_folds"] == 2
    again = run_study(replace(toy.STUDY, folds=own), out=tmp_path, num_epochs=1)
    assert again.record["best"] == found.record["best"]
    with pytest.raises(ValueError, match="own_folds = .*, not "):
        run_study(replace(toy.STUDY, folds=own[::-1]), out=tmp_path, num_epochs=1)
    with pytest.raises(ValueError, match="num_folds = 2, not 3"):
        run_study(toy.STUDY, out=tmp_path, num_epochs=1)
    overlapping = [(np.arange(61), np.arange(20))]
    with pytest.raises(ValueError, match="fold 0: the same sample is in its training and its validation part"):
        run_study(replace(toy.STUDY, folds=overlapping), out=tmp_path / "new", num_epochs=1)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_splitter_of_scikit_learn_gives_the_folds_with_the_datas_groups(tmp_path):
    model_selection = pytest.importorskip("sklearn.model_selection")
    groups = np.arange(61) % 5
    data = toy.DATA._replace(groups=groups)
    study = replace(toy.STUDY, data=data, folds=model_selection.GroupKFold(5))
    found = run_study(study, out=tmp_path, num_epochs=1)
    assert found.num_folds == 5
    splits = splits_of(study, order(study).search, load_data(study, {}))
    assert all(not set(groups[fold.train]) & set(groups[fold.validation]) for fold in splits)


@pytest.mark.slow
def test_a_net_with_widths_of_its_own_making_is_refitted_at_the_best_one(tmp_path):
    """Int(width=True) needs none of the homework's layers."""

    def task(fixed):
        units = fixed["units"]

        def init(key, h):
            a, b = jax.random.split(key)
            return {"in": jax.random.normal(a, (1, units)), "out": jax.random.normal(b, (units, 1)) / units}

        def apply(params, x, h):
            return jnp.tanh(x @ params["in"]) @ params["out"]

        return Task(init, apply, squared_error, lambda h: optax.sgd(h["rate"]))

    space = {"units": Int(2, 9, width=True), "rate": Float(1e-3, 1e-1, log=True)}
    study = Study("own", task=task, data=toy.DATA, space=space, num_trials=4, num_epochs=2, batch_size=20)
    found = run_study(study, out=tmp_path)
    assert found.record["config"]["plan"]["brackets"][0]["rungs"][0]["own_widths"]
    assert found.record["num_programs"] == len(set(found.trials.params["units"])) > 1
    assert found.model.params["in"].shape == (1, found.best.params["units"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_net_of_few_bits_leaves_files_that_are_read_back(dtype, tmp_path):
    """Files of arrays know no bfloat16."""

    def task(fixed):
        def init(key, h):
            return {"w": jax.random.normal(key, (1, 4), dtype), "b": jnp.zeros(4, dtype)}

        def apply(params, x, h):
            return jnp.sum(jnp.tanh(x.astype(dtype) @ params["w"] + params["b"][None]), axis=1, keepdims=True)

        return Task(
            init, apply, lambda outputs, y: squared_error(outputs, y.astype(dtype)), lambda h: optax.sgd(h["rate"])
        )

    space = {"rate": Float(0.005, 0.01)}
    study = Study("few-bits", task=task, data=toy.DATA, space=space, num_trials=2, num_epochs=2, batch_size=20)
    stop = threading.Event()
    stop.set()
    asked = order(replace(study, epochs_per_call=1), out=tmp_path)
    with pytest.raises(brackets.Stopped):
        run.run(asked, Observer(), command="test", started=0.0, stop=stop)
    found = run_study(asked.study, out=tmp_path)
    assert found.model.params["w"].dtype == dtype
    assert found.trials.complete.all()
    np.testing.assert_array_equal(
        np.float32(found.histories["test_outputs"]), np.float32(found.model.predict(toy.DATA.x_test))
    )


def test_a_second_run_of_the_same_study_compiles_no_training(tmp_path):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, fun_name="", **__: event.endswith("backend_compile_duration") and compiled.append(fun_name)
    )
    run_study(toy.STUDY, out=tmp_path / "a", num_epochs=1)
    compiled.clear()
    found = run_study(toy.STUDY, out=tmp_path / "b", num_epochs=1)
    assert "jit(_fit)" not in compiled and "jit(_init)" not in compiled
    assert found.folder == tmp_path / "b"


def test_an_observer_is_told_of_the_study_its_brackets_and_its_end(tmp_path):
    told = []

    class Told(Observer):
        def start(self, study, num_trials, num_folds, num_epochs, work=None):
            told.append((study.name, num_trials, num_folds, num_epochs, work))

        def trials(self, trials, study):
            told.append(([trial.number for trial in trials], study.name))

        def finish(self, results, folder):
            told.append((results["study"], folder))

    run_study(deep.STUDY, out=tmp_path, observer=Told(), **SIX)
    assert told == [
        ("deep", 9, 3, 4, 36),
        (list(range(6)), "deep"),
        (list(range(9)), "deep"),
        ("deep", tmp_path),
    ]
