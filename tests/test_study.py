"""Settings are checked once, mistakes are reported in one line, data and folds are unchanged, tasks are cached."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from studies import TOY, TOY_DATA, TOY_X, toy_task

import hw1jax as hw
from hw1jax.core import checks
from hw1jax.core.folds import k_fold, stratified_k_fold
from hw1jax.core.losses import accuracy
from hw1jax.data import Dataset
from hw1jax.search import networks, study_data, trial_score
from hw1jax.search import study as study_
from hw1jax.search.networks import Network
from hw1jax.search.space import Choice, Float, Int
from hw1jax.search.study import Output, ProgramConfig, RunConfig, SearchConfig, Study
from hw1jax.search.trial_score import TrialScore

STUDY = replace(TOY, quick={"num_trials": 2, "num_epochs": 1}, inputs={"data_csv": "A file."})


def absolute_error(outputs, y):
    return jnp.abs(outputs - y)[:, 0]


METRICS = {"absolute": absolute_error}

# Orders.


def test_what_nobody_says_is_as_the_study_has_it():
    search = SearchConfig(4, 20, 3, 0, "random", None, None, False, None, "float32")
    assert study_.run_config(STUDY) == RunConfig(STUDY, 4, search, ProgramConfig(), Output(), {"data_csv": None})
    plain = study_.run_config(Study("small", task=toy_task, data=TOY_DATA, space=TOY.space))
    assert (plain.num_trials, plain.search) == (25, SearchConfig(num_epochs=100, batch_size=32, num_folds=3))


def test_settings_go_to_the_room_that_they_belong_to():
    search = {"num_epochs": 5, "batch_size": 3, "num_folds": 2, "seed": 2**32 - 1, "sampler": "tpe", "halving": 4}
    search |= {"first_rung": 2, "brackets": True, "averaging": 0.9, "precision": "bfloat16"}
    program = {"widths": "exact", "members_per_program": 2, "num_devices": 3, "reproducible": True}
    output = {"out": "runs/here", "overwrite": True}
    inputs = {"data_csv": "here.csv"}
    config = study_.run_config(STUDY, inputs=inputs, num_trials=7, quick=True, **search, **program, **output)
    assert config[1:6] == (
        7,
        SearchConfig(**search),
        ProgramConfig(**program),
        Output(Path("runs/here"), overwrite=True, quick=True),
        {"data_csv": Path("here.csv")},
    )
    assert config.folder == Path("runs/here")


def test_a_small_run_has_the_studys_small_numbers_unless_others_are_given_and_a_folder_of_its_own():
    config = study_.run_config(STUDY, quick=True)
    assert (config.num_trials, config.search, config.output.quick) == (2, SearchConfig(1, 20, 3), True)
    assert study_.run_config(STUDY, quick=True, num_epochs=3).search.num_epochs == 3
    assert (config.folder, study_.run_config(STUDY).folder) == (Path("runs/quick/toy"), Path("runs/toy"))


def test_averaging_is_a_setting_of_the_call_or_else_of_the_study_or_else_of_its_task():
    of_task = replace(STUDY, task=lambda fixed: STUDY.task(fixed)._replace(averaging=0.7))
    of_study = replace(of_task, averaging=0.8)
    for own, settings, expected in [
        (STUDY, {}, (None, None)),
        (STUDY, {"averaging": 0.9}, (0.9, 0.9)),
        (of_task, {}, (None, 0.7)),
        (of_task, {"averaging": 0.9}, (0.9, 0.9)),
        (of_study, {}, (0.8, 0.8)),
        (of_study, {"averaging": 0.9}, (0.9, 0.9)),
        (of_study, {"averaging": None}, (None, 0.7)),
    ]:
        config = study_.run_config(own, **settings)
        task = Network(config.study, {}, {"hidden_units": (3,)}).task
        assert (config.search.averaging, task.averaging) == expected


def test_halving_is_a_setting_of_the_call_or_else_of_the_study():
    own = replace(STUDY, halving=hw.Halving(4, first=2))
    for asked, settings, expected in [
        (STUDY, {}, (None, None, False)),
        (STUDY, {"halving": 3}, (3, None, False)),
        (STUDY, {"halving": hw.Halving(2, first=3, brackets=True)}, (2, 3, True)),
        (STUDY, {"halving": hw.Halving(3), "first_rung": 2}, (3, 2, False)),
        (own, {}, (4, 2, False)),
        (own, {"first_rung": 1}, (4, 1, False)),
        (own, {"halving": hw.Halving(2)}, (2, None, False)),  # another one, not a mixture
        (own, {"halving": None}, (None, None, False)),
    ]:
        search = study_.run_config(asked, **settings).search
        assert (search.halving, search.first_rung, search.brackets) == expected


def test_numpys_numbers_become_pythons_as_json_takes_no_others():
    config = study_.run_config(STUDY, num_trials=np.int64(3), seed=np.uint32(7), num_devices=np.int32(2))
    assert [type(n) for n in (config.num_trials, config.search.seed, config.program.num_devices)] == [int] * 3


# What can't be run.

X, Y = np.zeros((5, 2)), np.zeros(5)
DATA = Dataset(X, Y, X, Y)
DRAW = {"hidden_units": (5, 3), "learning_rate": 0.01, "l2": 0.001, "optimizer": "sgd"}


@dataclass
class Unhashable:
    """With eq, and so without a hash."""

    depth: int = 1

    def __call__(self, fixed):
        return toy_task(fixed)


RANGE = "must be an Int, a Float, a Choice or a tuple of them"
BAD_SETTINGS = [
    (
        {"colour": 3},
        "there is no setting colour; there are averaging, batch_size, brackets, callbacks, early_stopping, enqueue, "
        "ensemble, ",
    ),
    ({"epochs": 3}, "there is no setting epochs: give num_epochs="),
    ({"n_trials": 3}, "there is no setting n_trials: give num_trials="),
    ({"cv": 3}, "there is no setting cv: give num_folds= or folds="),
    ({"random_state": 3}, "there is no setting random_state: give seed="),
    ({"num_trails": 3}, "there is no setting num_trails: give num_trials="),
    ({"folds": []}, "folds= is an argument of Study, not a setting of its runs"),
    ({"inputs": {"data_dir": "x"}}, "inputs= has no data_dir; there are data_csv"),
    ({"num_trials": 0}, "num_trials= must be at least 1, got 0"),
    ({"num_epochs": -1}, "num_epochs= must be at least 1, got -1"),
    ({"batch_size": 0}, "batch_size= must be at least 1, got 0"),
    ({"num_folds": 1}, "num_folds= must be at least 2, got 1"),
    ({"num_devices": 0}, "num_devices= must be at least 1, got 0"),
    ({"members_per_program": 0}, "members_per_program= must be at least 1, got 0"),
    ({"members_per_program": 2}, "members_per_program= must be at least a trial's 3 folds"),
    ({"refit": "accuracy"}, "refit= must be True or False, got 'accuracy'; maximize= of the study names a metric"),
    ({"num_trials": True}, "num_trials= must be a whole number, got True"),
    ({"num_epochs": None}, "num_epochs= must be a whole number, got None"),
    ({"batch_size": "20"}, "batch_size= must be a whole number, got '20'"),
    ({"seed": -1}, "seed= must be at least 0, got -1"),
    ({"seed": 2**32}, "seed= must be at most 4294967295, got 4294967296"),
    ({"sampler": "grid"}, "sampler= must be one of random, tpe, got 'grid'"),
    ({"halving": 3.0}, "halving= must be a whole number, got 3.0"),
    ({"halving": hw.Halving(1)}, "halving= must be at least 2, got 1"),
    ({"averaging": 1.0}, "averaging= is a decay, above 0 and below 1; got 1.0"),
    ({"averaging": "0.9"}, "averaging= is a decay, above 0 and below 1; got '0.9'"),
    ({"halving": 3, "first_rung": 0}, "first_rung= must be at least 1, got 0"),
    ({"halving": hw.Halving(3, first=5)}, "first_rung=5 is more than the 4 epochs of a trial"),
    ({"first_rung": 2}, "first_rung= and brackets= go with halving="),
    ({"brackets": True}, "first_rung= and brackets= go with halving="),
    ({"precision": "float16"}, "precision= must be one of float32, tensorfloat32, bfloat16, got 'float16'"),
    ({"widths": None}, "widths= must be one of auto, padded, exact, got None"),
]
BAD_STUDIES = [
    ({"name": ""}, "name= must be letters, digits, _, - and ., as it names a folder; got ''"),
    *[({"name": name}, "name= must be letters, digits") for name in ("../x", ".x", "-x", "a b", "größe")],
    ({"space": {"seed": Int(0, 3)}}, "space: seed is the name of a setting; give it another"),
    ({"space": {"num_trials": Int(0, 3)}}, "space: num_trials is the name of a setting; give it another"),
    ({"space": {"rate": 0.1}}, f"rate= {RANGE}, got float: give hw.Choice(0.1)"),
    ({"space": {"rate": (1e-4, 1e-1)}}, f"rate= {RANGE}, got float: give hw.Float(0.0001, 0.1, log=True)"),
    ({"space": {"rate": [0.1, 0.9]}}, f"rate= {RANGE}, got float: give hw.Float(0.1, 0.9)"),
    ({"space": {"units": (10, 50)}}, f"units= {RANGE}, got int: give hw.Int(10, 50)"),
    ({"space": {"units": [32, 64, 128]}}, f"units= {RANGE}, got int: give hw.Choice(32, 64, 128)"),
    ({"space": {"kind": ("adam", "sgd")}}, f"kind= {RANGE}, got str: give hw.Choice('adam', 'sgd')"),
    ({"space": {"units": [(8, 8), (16,)]}}, f"units= {RANGE}, got tuple: give hw.Choice((8, 8), (16,))"),
    ({"space": {"kind": "adam"}}, f"kind= {RANGE}, got str: give hw.Choice('adam')"),
    ({"space": {"bias": (False, True)}}, f"bias= {RANGE}, got bool: give hw.Choice(False, True)"),
    ({"space": {"rank": Int(0, 3)}}, "space: rank is the name of a column of trials.csv; give it another"),
    ({"inputs": {"out": "A file."}}, "inputs: out is the name of a setting; give it another"),
    ({"inputs": {"l2": "A file."}}, "inputs: l2 is the name of a setting; give it another"),
    ({"minimize": "absolute"}, "minimize= must be one of loss, got 'absolute'"),
    ({"maximize": "accuracy", "metrics": METRICS}, "maximize= must be one of loss, absolute, got 'accuracy'"),
    ({"metrics": {"loss": absolute_error}}, "metrics: 'loss' is no name for a metric"),
    ({"metrics": {"mean error": absolute_error}}, "metrics: 'mean error' is no name for a metric"),
    (
        {"space": {"depth": Int(1, 6, static=True), "wide": Choice(1, 2, 3, static=True)}},
        "space: static hyperparameters with 18 values would need as many programs; at most 16",
    ),
    ({"epochs_per_call": 0}, "epochs_per_call= must be at least 1, got 0"),
    ({"quick": {"seed": 0}}, "quick: seed can't be smaller in a small run"),
    ({"num_folds": 1}, "num_folds= must be at least 2, got 1"),
    # tasks
    ({"task": lambda fixed: None}, "task= must return a Task, got NoneType"),
    ({"task": toy_task({"hidden_units": (3,)})}, "task= must be a function of the static hyperparameters that returns"),
    ({"task": Unhashable()}, "task= must be hashable, which Unhashable is not: wrap it"),
    (
        {"task": lambda fixed: toy_task(fixed)._replace(metrics=tuple(METRICS.items()))},
        "metrics= belong in the Study, not in its Task",
    ),
    # data
    ({"data": (X, Y, X, Y)}, "data= must be a Dataset or a function that returns one, got tuple"),
    ({"data": lambda data_csv: 3}, "data= must be a Dataset or a function that returns one, got int"),
    ({"data": DATA._replace(y_train=np.array(["a"] * 5))}, "y_train= must be numbers, got an array of <U1"),
    ({"data": DATA._replace(x_test=X * np.nan)}, "x_test= must be finite, got 10 of 10 values that are NaN or"),
    ({"data": DATA._replace(x_train={"a": X * np.nan}, x_test={"a": X})}, "x_train['a']= must be finite, got 10 of 10"),
    ({"data": DATA._replace(y_train=Y[:4])}, "x_train and y_train must have the same leading sample axis"),
    ({"data": DATA._replace(y_test=None)}, "x_test= and y_test= go together: give both, or neither"),
    ({"data": DATA._replace(y_test=Y[:4])}, "x_test and y_test must have the same leading sample axis"),
    ({"data": Dataset(X[:0], Y[:0], X, Y)}, "x_train and y_train must have the same leading sample axis, at"),
    (
        {"data": DATA._replace(x_test=X[:, :1])},
        "x_train and x_test must have examples of the same shape, got (2,) and (1,)",
    ),
    ({"data": DATA._replace(y_test=X)}, "y_train and y_test must have examples of the same shape, got () and (2,)"),
    ({"data": DATA._replace(weights=Y[:4])}, "x_train and weights must have the same leading sample axis"),
    ({"data": DATA._replace(weights=Y - 1)}, "weights= must be one number of at least 0"),
    ({"data": DATA._replace(weights=Y * np.nan)}, "weights= must be finite"),
    ({"data": DATA._replace(groups=[1, 2])}, "x_train and groups must have the same leading sample axis"),
    # folds
    ({"folds": iter([([0], [1])])}, "folds= can be gone through only once: give a list of them"),
    ({"folds": []}, "folds is empty"),
    ({"folds": [(np.arange(30), np.arange(30, 62))]}, "fold 0: validation indices must lie in 0..60"),
    (
        {"folds": [(np.arange(31), np.arange(30, 61))]},
        "fold 0: the same sample is in its training and its validation part",
    ),
]
WRONG = [(message, {}, settings) for settings, message in BAD_SETTINGS]
WRONG += [(message, changes, {}) for changes, message in BAD_STUDIES]
WRONG += [("num_folds=4 doesn't go with folds= of the study's own", {"folds": k_fold(61, 4, (0,))}, {"num_folds": 4})]


@pytest.mark.parametrize(("message", "changes", "settings"), WRONG, ids=[wrong[0] for wrong in WRONG])
def test_what_cant_be_run_is_told_in_one_line_and_nothing_is_written(message, changes, settings, tmp_path):
    with pytest.raises((TypeError, ValueError)) as caught:
        hw.run_study(replace(STUDY, **changes), out=tmp_path / "out", **settings)
    text = str(caught.value)
    assert text.startswith(message)
    assert len(text.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "name", "note"),
    [
        ({"task": lambda fixed: toy_task(fixed["units"])}, "units", "in task, called with (fixed: {hidden_units})"),
        (
            {
                "space": {**TOY.space, "depth": Int(1, 2, static=True)},
                "task": lambda fixed: toy_task(fixed)._replace(optimizer=lambda h: optax.sgd(h["depth"])),
            },
            "depth",
            "in optimizer, called with (hyperparameters: {hidden_units, learning_rate, l2, optimizer})",
        ),
    ],
)
def test_what_a_function_of_a_study_raises_has_a_note_and_nothing_is_written(changes, name, note, tmp_path):
    with pytest.raises(KeyError, match=name) as caught:
        hw.run_study(replace(STUDY, **changes), out=tmp_path / "out")
    assert checks.note_of(caught.value) == note
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_of_the_folder_is_told(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=f"^out={out}: {tmp_path / 'file'} is a file; name a folder$"):
            hw.run_study(STUDY, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_good_studies_are_not_refused():
    for change in ({"name": "a-b_c.2"}, {"space": {"depth": Int(1, 16, static=True)}}, {"folds": k_fold(61, 4, (0,))}):
        study_.run_config(replace(STUDY, **change))


# Studies.


def test_trials_are_ranked_by_what_the_study_says():
    for changes, score in [
        ({}, "loss"),
        ({"minimize": "absolute"}, "absolute"),
        ({"maximize": "absolute"}, "absolute"),
    ]:
        assert replace(STUDY, metrics=METRICS, **changes).score == score
    low, high = (TrialScore(i, {}, "complete", {"loss": (i,)}, 4) for i in (1, 2))
    later, sooner = (TrialScore(i, {}, "pruned", {"loss": (i,)}, epochs) for i, epochs in ((0, 3), (0.5, 2)))
    for study, best in [(STUDY, [low, high]), (replace(STUDY, maximize="loss"), [high, low])]:
        trials = sorted([sooner, later, high, low], key=lambda trial: trial_score.sort_key(trial, study))
        assert trials == [*best, later, sooner], "of those that were pruned the later, whatever its loss"


def test_a_trials_score_is_the_mean_over_folds_and_its_deviation_as_scikit_learns():
    score = TrialScore(3, {}, "complete", {"loss": (1.0, 2.0, 6.0), "accuracy": (0.5, 0.5, 0.5)})
    assert score.mean("loss") == 3
    assert score.std("loss") == pytest.approx(np.std([1, 2, 6]))
    assert (score.mean("accuracy"), score.std("accuracy")) == (0.5, 0)
    failed = TrialScore(3, {}, "failed", {"loss": (1.0, float("inf"), -float("inf"))})
    assert np.isnan([failed.mean("loss"), failed.std("loss")]).all()


def test_a_study_is_shown_by_its_title_and_in_a_line():
    assert (STUDY.shown, replace(STUDY, title="A toy").shown) == ("toy", "A toy")
    assert " ".join(repr(replace(STUDY, metrics=METRICS, maximize="absolute")).split()) == (
        "Study('toy': maximize absolute over hidden_units_1 2-6, hidden_units_2 2-4, learning_rate 0.001-0.1, "
        "l2 0.0001-0.1, optimizer adam, sgd, rmsprop)"
    )
    assert "minimize loss" in repr(STUDY)
    many = replace(STUDY, space={f"hyperparameter_{i}": Float(1e-3, 1e-1) for i in range(99)})
    assert len(repr(many).splitlines()) <= 12 and max(map(len, repr(many).splitlines())) <= 100


# Data.


def test_data_come_as_they_are_or_from_a_function_of_the_inputs():
    asked = []
    read = replace(STUDY, data=lambda data_csv: asked.append(data_csv) or TOY_DATA)
    for study, path in ((STUDY, None), (read, Path("x"))):
        for found, given in zip(study_data.load_data(study, {"data_csv": path})[:4], TOY_DATA[:4], strict=True):
            np.testing.assert_array_equal(found, given, strict=True)
    assert asked == [Path("x")]


def test_data_may_be_trees_and_weights_and_groups_anything_that_numpy_takes():
    x = {"a": np.zeros((4, 2)), "b": (np.zeros(4, np.int32), jnp.ones((4, 3)))}
    groups = np.array(["a", "b", "b", "a"], object)
    data = study_data.load_data(replace(STUDY, data=Dataset(x, np.zeros(4), x, np.zeros(4), [1, 2, 0, 3], groups)), {})
    assert jax.tree.structure(data.x_train) == jax.tree.structure(x)
    np.testing.assert_array_equal(data.weights, np.float32([1, 2, 0, 3]), strict=True)
    assert data.groups.tolist() == ["a", "b", "b", "a"]
    assert not data.groups.dtype.hasobject  # whose digest would be another in each process


def test_pandas_tables_are_taken_as_arrays_and_names_in_them_are_told():
    pandas = pytest.importorskip("pandas")
    x, y = pandas.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}), pandas.Series([0.0, 1.0])
    given = Dataset(x, y, x, y, weights=y, groups=pandas.Series(["a", "b"]))
    data = study_data.load_data(replace(STUDY, data=given), {})
    np.testing.assert_array_equal(data.x_train, [[1, 3], [2, 4]])
    np.testing.assert_array_equal(data.y_test, [0, 1])
    assert data.groups.tolist() == ["a", "b"]
    named = given._replace(x_train=x.assign(b=["red", "blue"]))
    with pytest.raises(TypeError, match=r"^x_train\['b'\] must be numbers, got an array of .*$"):
        study_data.load_data(replace(STUDY, data=named), {})


# Folds.


def assert_folds(study, expected, **settings):
    data = study_data.load_data(study, {"data_csv": None})
    for a, b in zip(study_data.splits_of(study, SearchConfig(1, 1, **settings), data), expected, strict=True):
        for index, own in zip(a, b, strict=True):
            np.testing.assert_array_equal(index, own)


def test_folds_are_shuffled_by_the_searchs_number_and_seed_and_stratified_where_there_are_classes():
    assert_folds(STUDY, k_fold(61, 4, (7,)), num_folds=4, seed=7)
    classes = np.arange(61) % 3
    labelled = replace(STUDY, data=TOY_DATA._replace(y_train=classes, y_test=classes[:20]))
    assert_folds(labelled, stratified_k_fold(classes, 4, (7,)), num_folds=4, seed=7)
    assert_folds(replace(labelled, stratify=False), k_fold(61, 4, (7,)), num_folds=4, seed=7)


def test_folds_of_a_studys_own_are_pairs_or_a_splitters_which_is_given_labels_and_groups():
    pairs = [(list(range(30)), list(range(30, 61))), (np.arange(30, 61), np.arange(30))]
    assert_folds(replace(STUDY, folds=pairs), pairs)
    selection = pytest.importorskip("sklearn.model_selection")
    x, classes, groups = TOY_X[:61], np.arange(61) % 3, np.arange(61) // 4
    data = TOY_DATA._replace(y_train=classes, y_test=classes[:20])
    for splitter in (selection.ShuffleSplit(3, random_state=0), selection.StratifiedKFold(3)):
        assert_folds(replace(STUDY, folds=splitter, data=data), list(splitter.split(x, classes)))
    splitter = selection.GroupKFold(3)
    grouped = replace(STUDY, folds=splitter, data=data._replace(groups=groups))
    assert_folds(grouped, list(splitter.split(x, classes, groups)))


def test_a_splitter_gets_the_first_arrays_of_trees():
    class Halves:
        def split(self, x, y, groups):
            assert (x.shape, y.shape, groups) == ((61, 1), (61,), None)
            yield np.arange(30), np.arange(30, 61)

    x, y = {"a": TOY_X[:61], "b": np.zeros((61, 3))}, {"c": np.zeros(61)}
    assert_folds(replace(STUDY, folds=Halves(), data=Dataset(x, y, x, y)), [(np.arange(30), np.arange(30, 61))])


# Tasks.


def counted(study):
    """(the study with a task that counts its calls, the calls)"""
    calls = []
    return replace(study, task=lambda fixed: calls.append(fixed) or study.task(fixed)), calls


def test_equal_tasks_are_the_same_so_that_a_program_is_compiled_once():
    study, calls = counted(STUDY)
    units = {"hidden_units": (6, 4)}
    first = Network(study, {}, units).task
    assert Network(study, {}, dict(units)).task is first
    assert Network(replace(study, name="other", num_trials=9), {}, units).task is first
    assert calls == [units]
    assert Network(study, {}, {"hidden_units": (6, 3)}).task is not first
    assert Network(replace(study, metrics=METRICS), {}, units).task is not first
    assert len(calls) == 3
    study, calls = counted(replace(STUDY, task=lambda fixed: toy_task(units)))
    for value in (1, 1.0, True):
        assert Network(study, {}, {"x": value}).task
    assert [type(fixed["x"]) for fixed in calls] == [int, float, bool], "equal, but of another type"


def test_a_task_is_given_the_studys_metrics():
    metrics = {"accuracy": accuracy, **METRICS}
    task = Network(replace(STUDY, metrics=metrics), {}, {"hidden_units": (3,)}).task
    assert [name for name, _ in task.metrics] == list(metrics)


def test_one_trial_has_no_trial_axis_and_its_network_the_parameters_of_its_own_widths():
    found = networks.own(STUDY, DRAW).hyperparameters
    shapes = {"hidden_units": (2,), "learning_rate": (), "l2": (), "optimizer": ()}
    assert {name: np.shape(value) for name, value in found.items()} == shapes
    assert found["optimizer"] == 1
    assert networks.own(STUDY, DRAW).num_parameters == 2 * 5 + 6 * 3 + 4
    shapes = jax.tree.map(lambda a: a.shape, networks.padded(STUDY, DRAW).shapes[0])
    assert {name: layer["weights"] for name, layer in shapes.items()} == {
        "dense1": (6, 2),
        "dense2": (4, 7),
        "output": (1, 5),
    }
