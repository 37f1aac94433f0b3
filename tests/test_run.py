"""The run of a study, small: what it leaves behind, that it repeats, goes on, and fails as it should."""

import csv
import json
import threading
from dataclasses import dataclass, fields, replace

import jax
import numpy as np
import pytest
import reproduce

from hw1jax import batches, environment, folds, inspection, planning, population, run, search, storage, studies
from hw1jax.data import Dataset
from hw1jax.model_file import load_model
from hw1jax.progress import Observer
from hw1jax.space import FloatRange, IntRange


def fake_images(settings):
    """Classes that a small net can tell apart: the brightest column."""
    rng = np.random.default_rng(0)
    y = np.arange(180, dtype=np.int32) % 10
    x = rng.integers(0, 60, (180, 28, 28), dtype=np.uint8)
    x[np.arange(180), :, 2 * y + 3] += 190
    return Dataset(x[:120], y[:120], x[120:], y[120:])


UNITS = (IntRange(3, 8), IntRange(3, 6))
SMALL = {
    "regression": replace(
        studies.REGRESSION,
        settings=replace(studies.REGRESSION.settings, num_trials=5, num_epochs=20, hidden_units=UNITS),
    ),
    "fashion_mlp": replace(
        studies.FASHION_MLP,
        settings=replace(studies.FASHION_MLP.settings, num_trials=3, num_epochs=2, batch_size=20, hidden_units=UNITS),
        load=fake_images,
    ),
    "fashion_cnn": replace(
        studies.FASHION_CNN,
        settings=replace(
            studies.FASHION_CNN.settings,
            num_trials=2,
            num_epochs=2,
            batch_size=20,
            hidden_units=UNITS,
            channels=(IntRange(2, 3), IntRange(2, 4)),
        ),
        load=fake_images,
    ),
}


@pytest.fixture(autouse=True)
def small_studies(monkeypatch):
    monkeypatch.setattr(studies, "STUDIES", tuple(SMALL.values()))


def execute(study, folder, **settings):
    return run.run(study, replace(study.settings, out=folder, **settings), Observer(), command="test", started=0.0)


def read_trials(folder):
    return list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


def lasting(folder):
    """What must be the same each time: all files but times and dates."""
    results = json.loads((folder / "results.json").read_text())
    del results["timing"], results["environment"]
    arrays = storage.read_arrays(folder / "histories.npz")
    return results, (folder / "trials.csv").read_text(), {name: a.tobytes() for name, a in arrays.items()}


@pytest.mark.parametrize(
    "name", ["regression", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fashion_mlp", "fashion_cnn"))]
)
def test_run_leaves_consistent_files_behind(name, tmp_path):
    study = SMALL[name]
    results = execute(study, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    rows = read_trials(tmp_path)
    arrays = storage.read_arrays(tmp_path / "histories.npz")
    trials, folds, epochs = arrays["val_loss"].shape
    assert (trials, folds, epochs) == (study.settings.num_trials, 3, study.settings.num_epochs)
    for row, losses in zip(rows, arrays["val_loss"], strict=True):
        splits = [float(row[f"split{i}_val_loss"]) for i in range(3)]
        np.testing.assert_array_equal(np.float32(splits), losses[:, -1])
        assert float(row["mean_val_loss"]) == pytest.approx(np.mean(splits))
    first = min(rows, key=lambda row: float(row["mean_val_loss"]))
    assert first["rank"] == "1"
    assert int(first["number"]) == results["best"]["number"]

    data, model = study.load(study.settings), load_model(tmp_path / "model.msgpack")
    np.testing.assert_array_equal(model.predict(data.x_test), arrays["test_outputs"])
    assert results["test"] == run.score(study, arrays["test_outputs"], data.y_test)
    assert arrays["refit_train_loss"].shape == (epochs,)
    if study.classes:
        assert np.sum(results["test"]["confusion"]) == len(data.y_test)
    assert min(results["timing"].values()) >= 0


@pytest.mark.parametrize("widths", ["padded", pytest.param("exact", marks=pytest.mark.slow)])
def test_same_command_twice_gives_the_same_files(widths, tmp_path):
    for folder in ("first", "second"):
        execute(SMALL["regression"], tmp_path / folder, widths=widths)
    assert lasting(tmp_path / "first") == lasting(tmp_path / "second")


@pytest.mark.slow
def test_own_widths_agree_with_padded_ones_at_first(tmp_path):
    found = []
    for widths in ("padded", "exact"):
        slow = {"learning_rate": FloatRange(0.001, 0.01), "num_epochs": 2}  # 8 steps
        execute(SMALL["regression"], tmp_path / widths, widths=widths, **slow)
        found.append(storage.read_arrays(tmp_path / widths / "histories.npz")["val_loss"])
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.slow
def test_finished_search_is_not_trained_again_and_more_trials_extend_it(tmp_path, monkeypatch):
    study = SMALL["regression"]
    execute(study, tmp_path / "once", num_trials=4)
    before = lasting(tmp_path / "once")
    trained = []
    train = batches.Batches._train
    monkeypatch.setattr(batches.Batches, "_train", lambda self, *job: trained.append(job[0]) or train(self, *job))
    execute(study, tmp_path / "once", num_trials=4)
    assert lasting(tmp_path / "once") == before
    assert trained == []
    execute(study, tmp_path / "once", num_trials=7)
    assert trained == [[4, 5, 6]]
    rows = (tmp_path / "once" / "trials.csv").read_text().splitlines()
    old = before[1].splitlines()
    ranked = slice(-2)  # all but the rank and the epoch of divergence
    assert [row.split(",")[ranked] for row in rows[:5]] == [row.split(",")[ranked] for row in old]


@pytest.mark.slow
def test_a_batch_that_is_filled_up_does_not_go_on_from_the_checkpoint_of_a_smaller_one(tmp_path, monkeypatch):
    """The slots of trials that were not asked for yet held copies of the last one."""
    study = SMALL["regression"]
    padded = {"widths": "padded", "num_epochs": 100}
    execute(study, tmp_path / "whole", num_trials=5, **padded)
    with monkeypatch.context() as patched:
        patched.setattr(search, "search", lambda *_, **__: pytest.fail("claimed"))  # a plan of five slots
        with pytest.raises(pytest.fail.Exception, match="claimed"):
            execute(study, tmp_path / "stopped", num_trials=5, **padded)
    monkeypatch.setattr(batches, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    write, stop = batches.Checkpoint.write, threading.Event()
    monkeypatch.setattr(batches.Checkpoint, "write", lambda *args: write(*args) or stop.set())
    settings = replace(study.settings, out=tmp_path / "stopped", num_trials=3, **padded)
    with pytest.raises(batches.Stopped):
        run.run(study, settings, Observer(), command="test", started=0.0, stop=stop)
    execute(study, tmp_path / "stopped", num_trials=5, **padded)
    assert lasting(tmp_path / "stopped") == lasting(tmp_path / "whole")


def test_changed_settings_in_the_same_folder_are_refused(tmp_path):
    execute(SMALL["regression"], tmp_path)
    before = lasting(tmp_path)
    with pytest.raises(ValueError, match="num_epochs = 20, not 21"):
        execute(SMALL["regression"], tmp_path, num_epochs=21)
    assert lasting(tmp_path) == before


NOT_IDENTITY = {  # what no result depends on, and what the plan or the data's digest stands for
    *("num_trials", "out", "quick", "widths", "members_per_program", "num_devices", "reproducible", "distributed"),
    *(
        "coordinator",
        "num_processes",
        "process_id",
        "join_timeout",
        "storage",
        "quiet",
        "verbose",
        "data_dir",
        "train_csv",
        "test_csv",
    ),
}


def test_every_setting_is_known_to_belong_to_a_search_or_not():
    names = {field.name for study in SMALL.values() for field in fields(study.settings)}
    assert not names & NOT_IDENTITY & set(run.IDENTITY)
    assert set(run.IDENTITY) <= names <= NOT_IDENTITY | set(run.IDENTITY)


def test_a_new_flag_orphans_no_folder_and_a_setting_that_belongs_does():
    study = SMALL["regression"]
    data = study.load(study.settings)
    splits = folds.k_fold(len(data.x_train), 3, (0,))
    config = run._config(study, study.settings, data, splits)

    @dataclass(frozen=True)
    class Later(studies.RegressionSettings):
        harmless: bool = False

    later = Later(**vars(study.settings), harmless=True)
    assert run._config(study, later, data, splits) == config
    assert run._digest(config) == run._digest(config | {"format": 3})
    other = run._config(study, replace(study.settings, precision="bfloat16"), data, splits)
    assert run._digest(other) != run._digest(config)


def as_the_version_before(folder):
    """Takes the numbers of the formats out of a folder's files."""
    journal, results = folder / "journal.log", json.loads((folder / "results.json").read_text())
    assert results.pop("format") == results["config"].pop("format") == storage.FORMAT
    storage.write_json(folder / "results.json", results)
    arrays = storage.read_arrays(folder / "histories.npz")
    del arrays["format"]
    storage.write_arrays(folder / "histories.npz", arrays)
    text = journal.read_text()
    assert text.count(f', "format": {storage.FORMAT}') + text.count(f',"format":{storage.FORMAT}') == 1
    journal.write_text(text.replace(f', "format": {storage.FORMAT}', "").replace(f',"format":{storage.FORMAT}', ""))


def test_a_folder_of_the_version_before_goes_on_and_is_read(tmp_path, monkeypatch):
    execute(SMALL["regression"], tmp_path)
    before = (tmp_path / "trials.csv").read_text()
    as_the_version_before(tmp_path)
    inspection.read_run(tmp_path)
    monkeypatch.setattr(batches.Batches, "_train", lambda *_: pytest.fail("trained again"))
    execute(SMALL["regression"], tmp_path)
    assert (tmp_path / "trials.csv").read_text() == before
    assert json.loads((tmp_path / "results.json").read_text())["format"] == storage.FORMAT


def test_what_a_later_version_has_written_is_refused_in_one_line(tmp_path, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(storage, "FORMAT", 3)
        execute(SMALL["regression"], tmp_path)
    for use in (inspection.read_run, lambda folder: execute(SMALL["regression"], folder)):
        with pytest.raises(storage.FormatError, match="has the format 3, this version .* give another --out") as caught:
            use(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("widths", ["padded", "exact"])
def test_everything_is_computed_in_the_precision_that_is_recorded(widths, tmp_path):
    """Search, refit and test, in whichever thread; and a second precision is compiled anew."""
    seen, before = set(), jax.config.jax_default_matmul_precision

    def loss(outputs, y):
        seen.add(jax.config.jax_default_matmul_precision)
        return studies.REGRESSION.loss(outputs, y)

    study = replace(SMALL["regression"], loss=loss)
    for precision in ("bfloat16", "tensorfloat32"):
        results = execute(study, tmp_path / precision, widths=widths, precision=precision, num_trials=2, num_epochs=2)
        assert seen == {precision}
        assert results["config"]["precision"] == precision
        assert results["environment"]["matmul_precision"] == "float32"  # a CPU takes no notice
        seen.clear()
    run.refit(study, replace(study.settings, precision="bfloat16", num_epochs=2), study.load(study.settings),
              studies.REGRESSION.reported.best, Observer())  # fmt: skip
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


def test_search_in_which_all_trials_diverge_is_an_error_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="every trial diverged"):
        execute(SMALL["regression"], tmp_path, learning_rate=FloatRange(1e30, 1e31))
    states = [row["state"] for row in read_trials(tmp_path)]
    assert states == ["failed"] * 5
    assert not (tmp_path / "model.msgpack").exists()


@pytest.mark.slow
def test_a_refit_that_diverges_leaves_results_without_a_test_loss_and_the_same_at_the_next_start(
    tmp_path, monkeypatch, capsys
):
    execute(SMALL["regression"], tmp_path, num_trials=2)  # its best model must not stay as that of five trials
    refit, study = run.refit, SMALL["regression"]

    def diverging(*args):
        model, train_loss = refit(*args)
        return model._replace(params=jax.tree.map(lambda a: a * np.nan, model.params)), train_loss * np.nan

    monkeypatch.setattr(run, "refit", diverging)
    monkeypatch.setattr(run, "_kept_refit", lambda *_: None)
    assert execute(study, tmp_path)["test"] == {"loss": None, "accuracy": None, "confusion": None}
    assert len(read_trials(tmp_path)) == 5 and not (tmp_path / "model.msgpack").exists()
    monkeypatch.setattr(reproduce.command, "command_line", lambda: "test")
    before = lasting(tmp_path)
    assert before[0]["refit"]["state"] == "diverged"
    with pytest.raises(SystemExit) as caught:
        settings = replace(study.settings, out=tmp_path)
        reproduce.command.with_exit_code(
            lambda: reproduce.command.run_study(study, settings, 0.0, threading.Event()),
        )
    assert caught.value.code == 2
    assert lasting(tmp_path) == before
    out, err = capsys.readouterr()
    assert "the refit of the best trial diverged" in out and "none (0.27)" in out
    assert err.splitlines()[-1].startswith("error: Regression: the refit of the best trial diverged; give a lower ")
    assert "the refit of the best trial diverged" in (tmp_path / "report.html").read_text()
    assert reproduce.report_only(tmp_path) == 0


@pytest.mark.slow
def test_test_labels_too_large_for_a_finite_loss_leave_a_model_and_no_test_loss(tmp_path):
    def labels(settings):
        data = SMALL["regression"].load(settings)
        return data._replace(y_test=np.full_like(data.y_test, 3e38))

    results = execute(replace(SMALL["regression"], load=labels), tmp_path)
    assert results["test"]["loss"] is None
    assert results["refit"] == {
        "state": "complete",
        "failure": "the test loss is not finite: outputs or labels are too large",
    }
    load_model(tmp_path / "model.msgpack")


def test_batch_larger_than_a_training_fold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="--batch-size 67 is more than a fold's 66"):
        execute(SMALL["regression"], tmp_path / "new", batch_size=67)
    assert not (tmp_path / "new").exists()


def test_more_slots_than_trials_change_no_draw(tmp_path):
    study = SMALL["regression"]
    space = studies.space_of(study.settings)
    draws = []
    for number in (3, 5):
        optuna_study = search.open_study(tmp_path / f"{number}.log", "s", sampler="random", seed=0)
        draws.append([search.suggest(optuna_study.ask(), space) for _ in range(number)])
    assert draws[1][:3] == draws[0]


@pytest.mark.slow
def test_reproduce_goes_on_after_a_study_that_fails(tmp_path, monkeypatch, capsys):
    def no_data(settings):
        raise ValueError("no images today")

    broken = replace(SMALL["fashion_mlp"], load=no_data)
    monkeypatch.setattr(studies, "STUDIES", (SMALL["regression"], broken, SMALL["fashion_cnn"]))
    monkeypatch.setattr(reproduce.command, "ConsoleObserver", lambda **_: Observer())
    assert reproduce.reproduce(reproduce.Options(out=tmp_path), threading.Event()) == 1
    assert "failed: fashion_mlp: no images today" in capsys.readouterr().err
    assert (tmp_path / "regression" / "results.json").exists()
    assert (tmp_path / "fashion_cnn" / "results.json").exists()
    assert "no images today" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_where_memory_runs_out_the_batch_is_halved_and_the_results_say_so(tmp_path, monkeypatch):
    study, notes, tried = SMALL["regression"], [], []
    train = batches.Batches._train_job

    def little_memory(self, numbers, draws, problem):
        tried.append(len(numbers))
        if len(numbers) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return train(self, numbers, draws, problem)

    class Notes(Observer):
        def note(self, text):
            notes.append(text)

    slow = {"learning_rate": FloatRange(0.001, 0.01), "num_epochs": 2, "widths": "padded"}
    execute(study, tmp_path / "enough", **slow)
    monkeypatch.setattr(batches.Batches, "_train_job", little_memory)
    settings = replace(study.settings, out=tmp_path / "little", **slow)
    results = run.run(study, settings, Notes(), command="test", started=0.0)
    assert tried == [5, 3, 2, 1, 2]
    assert notes == [
        "out of memory with 5 trials at once: going on with 3",
        "out of memory with 3 trials at once: going on with 2",
    ]
    assert results["halvings"] == 2
    found = [storage.read_arrays(tmp_path / name / "histories.npz")["val_loss"] for name in ("enough", "little")]
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_other_errors_of_the_device_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(batches.Batches, "_train_job", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        execute(SMALL["regression"], tmp_path)


@pytest.mark.slow
def test_members_of_a_program_are_as_many_as_the_devices_memory_holds(monkeypatch):
    study = SMALL["regression"]
    data, settings = study.load(study.settings), replace(study.settings, num_trials=64, widths="padded")
    splits = folds.k_fold(len(data.x_train), 3, (0,))

    def plan_with(free):
        monkeypatch.setattr(planning, "_free_bytes", lambda: free)
        return planning.make_plan(study, settings, data, splits)

    everything = plan_with(None)
    assert everything.slots == plan_with(10**12).slots == 64
    problem = planning.make_problem(study, settings, everything, data, splits)
    needed = population.bytes_needed(problem, studies.as_arrays([studies.widest(settings)] * 64))
    assert needed > 64 * 3 * 4 * studies.num_parameters(study, studies.widest(settings)) / everything.num_devices
    assert 8 <= plan_with(needed // 2).slots < 64
    assert plan_with(1).slots == 1


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_members_per_program_are_never_more_than_asked_for(num_devices, sampler):
    study = SMALL["regression"]
    data = study.load(study.settings)
    splits = folds.k_fold(len(data.x_train), 3, (0,))
    for members in (3, 9, 10, 21, 50, 299, 300):
        settings = replace(study.settings, num_trials=100, widths="padded", sampler=sampler)
        settings = replace(settings, members_per_program=members, num_devices=num_devices)
        plan = planning.make_plan(study, settings, data, splits)
        assert 3 * plan.slots <= members
        assert sampler == "tpe" or 3 * plan.slots > members / 3  # and not many fewer


@pytest.mark.slow
def test_a_failed_trial_says_in_which_epoch_it_diverged(tmp_path):
    execute(SMALL["regression"], tmp_path, learning_rate=FloatRange(1e-3, 1e30), num_trials=8)
    rows, losses = read_trials(tmp_path), storage.read_arrays(tmp_path / "histories.npz")
    assert {row["state"] for row in rows} == {"complete", "failed"}
    for row, train_loss, val_loss in zip(rows, losses["train_loss"], losses["val_loss"], strict=True):
        if row["state"] == "complete":
            assert row["diverged_epoch"] == ""
        else:
            epoch = int(row["diverged_epoch"])
            assert np.isfinite(train_loss[:, : epoch - 1]).all() and np.isfinite(val_loss[:, : epoch - 1]).all()
            assert not (np.isfinite(train_loss[:, epoch - 1]) & np.isfinite(val_loss[:, epoch - 1])).all()


def test_the_kept_files_of_a_batch_may_be_removed_and_a_damaged_one_is_refused(tmp_path):
    execute(SMALL["regression"], tmp_path)
    before = lasting(tmp_path)
    (kept,) = tmp_path.glob("batches/*/*.npz")
    kept.unlink()
    execute(SMALL["regression"], tmp_path)
    assert lasting(tmp_path) == before
    kept.write_bytes(kept.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged .*: remove it and run the same command again"):
        execute(SMALL["regression"], tmp_path)


def test_more_devices_than_a_search_was_begun_with_are_needed(tmp_path, monkeypatch):
    execute(SMALL["regression"], tmp_path, widths="padded")
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    with pytest.raises(ValueError, match="was begun on 5 devices, here are 1"):
        execute(SMALL["regression"], tmp_path, widths="padded")
