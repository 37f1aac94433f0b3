"""What is asked: settings unpacked once, mistakes told in one line, data and folds as they were given, tasks cached."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

import hw1jax as hw
from hw1jax import study as study_
from hw1jax.data import Dataset
from hw1jax.folds import k_fold
from hw1jax.losses import accuracy, squared_error
from hw1jax.space import Choice, Float, Int, fixed
from hw1jax.study import Order, Output, Program, Search, Study, TrialScore
from hw1jax.training import Task

STUDY = replace(toy.STUDY, quick={"num_trials": 2, "num_epochs": 1}, inputs={"data_csv": "A file."})


def absolute_error(outputs, y):
    return jnp.abs(outputs - y)[:, 0]


# Orders.


def test_what_nobody_says_is_as_the_study_has_it():
    assert study_.order(STUDY) == Order(
        STUDY, 4, Search(num_epochs=4, batch_size=20, num_folds=3), Program(), Output(), {"data_csv": None}
    )
    assert study_.order(STUDY).search == Search(4, 20, num_folds=3, seed=0, sampler="random", precision="float32")


def test_settings_go_to_the_room_that_they_belong_to():
    order = study_.order(
        STUDY,
        inputs={"data_csv": "here.csv"},
        num_trials=7,
        num_epochs=5,
        batch_size=3,
        num_folds=2,
        seed=2**32 - 1,
        sampler="tpe",
        halving=4,
        first_rung=2,
        brackets=True,
        averaging=0.9,
        precision="bfloat16",
        widths="exact",
        members_per_program=2,
        num_devices=3,
        reproducible=True,
        out="runs/here",
        storage="sqlite:///x",
    )
    assert order.num_trials == 7
    assert order.search == Search(
        5, 3, 2, 2**32 - 1, "tpe", halving=4, first_rung=2, brackets=True, averaging=0.9, precision="bfloat16"
    )
    assert order.program == Program("exact", 2, 3, True)
    assert order.output == Output(Path("runs/here"), "sqlite:///x", False)
    assert order.inputs == {"data_csv": Path("here.csv")}
    assert order.folder == Path("runs/here")


def test_averaging_is_a_setting_of_the_call_or_else_of_the_study_or_else_of_its_task():
    def averaging(own, **settings):
        order = study_.order(own, **settings)
        return order.search.averaging, study_.make_task(order.study, {"hidden_units": (3,)}).averaging

    of_task = replace(STUDY, task=lambda fixed: STUDY.task(fixed)._replace(averaging=0.7))
    of_study = replace(of_task, averaging=0.8)
    assert averaging(STUDY) == (None, None)
    assert averaging(STUDY, averaging=0.9) == (0.9, 0.9)
    assert averaging(of_task) == (None, 0.7)
    assert averaging(of_task, averaging=0.9) == (0.9, 0.9)
    assert averaging(of_study) == (0.8, 0.8)
    assert averaging(of_study, averaging=0.9) == (0.9, 0.9)
    assert averaging(of_study, averaging=None) == (None, 0.7)


def test_halving_is_a_setting_of_the_call_or_else_of_the_study():
    def rungs(order):
        return order.search.halving, order.search.first_rung, order.search.brackets

    assert rungs(study_.order(STUDY)) == (None, None, False)
    assert rungs(study_.order(STUDY, halving=3)) == (3, None, False)
    assert rungs(study_.order(STUDY, halving=hw.Halving(2, first=3, brackets=True))) == (2, 3, True)
    assert rungs(study_.order(STUDY, halving=hw.Halving(3), first_rung=2)) == (3, 2, False)
    own = replace(STUDY, halving=hw.Halving(4, first=2))
    assert rungs(study_.order(own)) == (4, 2, False)
    assert rungs(study_.order(own, first_rung=1)) == (4, 1, False)
    assert rungs(study_.order(own, halving=hw.Halving(2))) == (2, None, False), "another one, not a mixture"
    assert rungs(study_.order(own, halving=None)) == (None, None, False)


def test_a_small_run_has_the_studys_small_numbers_unless_others_are_given():
    order = study_.order(STUDY, quick=True)
    assert (order.num_trials, order.search.num_epochs, order.search.batch_size) == (2, 1, 20)
    assert order.output.quick
    assert study_.order(STUDY, quick=True, num_epochs=3).search.num_epochs == 3
    assert study_.order(STUDY).num_trials == 4


def test_results_go_to_a_folder_of_the_studys_name():
    assert study_.order(STUDY).folder == Path("runs/toy")
    assert study_.order(STUDY, quick=True).folder == Path("runs/quick/toy")


def test_numpys_numbers_become_pythons_as_json_takes_no_others():
    order = study_.order(STUDY, num_trials=np.int64(3), seed=np.uint32(7), num_devices=np.int32(2))
    assert [type(n) for n in (order.num_trials, order.search.seed, order.program.num_devices)] == [int] * 3


@pytest.mark.parametrize(("name", "error", "message"), [
    ("epochs", TypeError, "there is no setting epochs; there are averaging, batch_size, brackets, first_rung, "),
    ("learning_rate", TypeError, "there is no setting learning_rate; there are "),
])  # fmt: skip
def test_an_unknown_setting_is_told_with_those_that_there_are(name, error, message):
    with pytest.raises(error) as caught:
        study_.order(STUDY, **{name: 3})
    assert str(caught.value).startswith(message)
    assert "num_trials" in str(caught.value)


BAD_SETTINGS = [
    ({"num_trials": 0}, "num_trials= must be at least 1, got 0"),
    ({"num_epochs": -1}, "num_epochs= must be at least 1, got -1"),
    ({"batch_size": 0}, "batch_size= must be at least 1, got 0"),
    ({"num_folds": 1}, "num_folds= must be at least 2, got 1"),
    ({"num_devices": 0}, "num_devices= must be at least 1, got 0"),
    ({"members_per_program": 0}, "members_per_program= must be at least 1, got 0"),
    ({"members_per_program": 2}, "members_per_program= must be at least a trial's 3 folds"),
    ({"num_trials": 2.0}, "num_trials= must be a whole number, got 2.0"),
    ({"num_trials": True}, "num_trials= must be a whole number, got True"),
    ({"num_epochs": None}, "num_epochs= must be a whole number, got None"),
    ({"batch_size": "20"}, "batch_size= must be a whole number, got '20'"),
    ({"members_per_program": "all"}, "members_per_program= must be a whole number, got 'all'"),
    ({"seed": -1}, "seed= must be at least 0, got -1"),
    ({"seed": 2**32}, "seed= must be at most 4294967295, got 4294967296"),
    ({"sampler": "grid"}, "sampler= must be one of random, tpe, got 'grid'"),
    ({"halving": 1}, "halving= must be at least 2, got 1"),
    ({"halving": 3.0}, "halving= must be a whole number, got 3.0"),
    ({"halving": hw.Halving(1)}, "halving= must be at least 2, got 1"),
    ({"averaging": 1.0}, "averaging= is a decay, above 0 and below 1; got 1.0"),
    ({"averaging": "0.9"}, "averaging= is a decay, above 0 and below 1; got '0.9'"),
    ({"halving": 3, "first_rung": 0}, "first_rung= must be at least 1, got 0"),
    ({"halving": 3, "first_rung": 5}, "first_rung=5 is more than the 4 epochs of a trial"),
    ({"halving": hw.Halving(3, first=5)}, "first_rung=5 is more than the 4 epochs of a trial"),
    ({"first_rung": 2}, "first_rung= and brackets= go with halving="),
    ({"brackets": True}, "first_rung= and brackets= go with halving="),
    ({"precision": "float16"}, "precision= must be one of float32, tensorfloat32, bfloat16, got 'float16'"),
    ({"widths": None}, "widths= must be one of auto, padded, exact, got None"),
    ({"inputs": {"data_dir": "x"}}, "inputs= has no data_dir; there are data_csv"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS, ids=lambda value: str(value)[:30])
def test_settings_that_cant_be_carried_out_are_told_in_one_line(settings, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        study_.order(STUDY, **settings)
    assert str(caught.value) == message


def test_a_file_in_the_way_of_the_folder_is_told(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=f"^out={out}: {tmp_path / 'file'} is a file; name a folder$"):
            study_.order(STUDY, out=out)
    study_.order(STUDY, out=tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing is made


def test_a_number_of_folds_doesnt_go_with_own_folds():
    own = replace(STUDY, folds=k_fold(61, 4, (0,)))
    assert study_.order(own).study is own
    with pytest.raises(ValueError, match="^num_folds=4 doesn't go with folds= of the study's own$"):
        study_.order(own, num_folds=4)


# Studies.

METRICS = {"absolute": absolute_error}
BAD_STUDIES = [
    ({"name": ""}, "name= must be letters, digits, _, - and ., as it names a folder; got ''"),
    ({"name": "../x"}, "name= must be letters, digits"),
    ({"name": ".x"}, "name= must be letters, digits"),
    ({"name": "-x"}, "name= must be letters, digits"),
    ({"name": "a b"}, "name= must be letters, digits"),
    ({"name": "größe"}, "name= must be letters, digits"),
    ({"space": {"l2": Float(1, 0)}}, "l2=: a range goes from a low number up, got 1-0"),
    ({"space": {"l2": 0.1}}, "l2= must be an Int, a Float, a Choice or a tuple of them, got float"),
    ({"space": {"seed": Int(0, 3)}}, "space: seed is the name of a setting; give it another"),
    ({"space": {"num_trials": Int(0, 3)}}, "space: num_trials is the name of a setting; give it another"),
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
    ({"folds": iter([([0], [1])])}, "folds= can be gone through only once: give a list of them"),
    ({"quick": {"seed": 0}}, "quick: seed can't be smaller in a small run"),
    ({"num_folds": 1}, "num_folds= must be at least 2, got 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD_STUDIES, ids=[message for _, message in BAD_STUDIES])
def test_a_wrong_study_is_told_in_one_line_that_names_the_argument(change, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        study_.order(replace(STUDY, **change))
    text = str(caught.value)
    assert text.startswith(message)
    assert len(text.splitlines()) == 1


def test_good_studies_pass():
    for change in (
        {"name": "a-b_c.2"},
        {"metrics": METRICS, "minimize": "absolute"},
        {"metrics": METRICS, "maximize": "absolute"},
        {"space": {"depth": Int(1, 16, static=True)}},
    ):
        study_.check_study(replace(STUDY, **change))


def test_trials_are_ranked_by_what_the_study_says():
    assert STUDY.score == "loss"
    assert replace(STUDY, metrics=METRICS, minimize="absolute").score == "absolute"
    assert replace(STUDY, metrics=METRICS, maximize="absolute").score == "absolute"


def test_a_study_is_shown_by_its_title_and_in_a_line():
    assert STUDY.shown == "toy"
    assert replace(STUDY, title="A toy").shown == "A toy"
    assert " ".join(repr(replace(STUDY, metrics=METRICS, maximize="absolute")).split()) == (
        "Study('toy': maximize absolute over hidden_units_1 2-6, hidden_units_2 2-4, learning_rate 0.001-0.1, "
        "l2 0.0001-0.1, optimizer adam, sgd, rmsprop)"
    )
    assert "minimize loss" in repr(STUDY)
    many = replace(STUDY, space={f"hyperparameter_{i}": Float(1e-3, 1e-1) for i in range(99)})
    assert len(repr(many).splitlines()) <= 12 and max(map(len, repr(many).splitlines())) <= 100


def test_narrowing_changes_the_ranges_that_are_given_alone():
    narrow = study_.narrow(STUDY, l2=Float(0.1, 0.2))
    assert narrow.space == {**STUDY.space, "l2": Float(0.1, 0.2)}
    assert narrow.task is STUDY.task
    assert STUDY.space["l2"] == Float(1e-4, 1e-1, log=True)


def test_a_trials_score_is_the_mean_over_folds_and_its_deviation_as_scikit_learns():
    score = TrialScore(3, {}, "complete", {"loss": (1.0, 2.0, 6.0), "accuracy": (0.5, 0.5, 0.5)})
    assert score.mean("loss") == 3
    assert score.std("loss") == pytest.approx(np.std([1, 2, 6]))
    assert (score.mean("accuracy"), score.std("accuracy")) == (0.5, 0)
    failed = TrialScore(3, {}, "failed", {"loss": (1.0, float("inf"), -float("inf"))})
    assert np.isnan(failed.mean("loss"))
    assert np.isnan(failed.std("loss"))


# Data.


def test_data_come_as_they_are_or_from_a_function_of_the_inputs():
    data = study_.load_data(STUDY, {"data_csv": None})
    for found, given in zip(data[:4], toy.DATA[:4], strict=True):
        np.testing.assert_array_equal(found, given, strict=True)
    asked = []
    read = replace(STUDY, data=lambda data_csv: asked.append(data_csv) or toy.DATA)
    np.testing.assert_array_equal(study_.load_data(read, {"data_csv": Path("x")}).x_train, toy.X[:61])
    assert asked == [Path("x")]


def test_data_may_be_trees_and_weights_and_groups_anything_that_numpy_takes():
    x = {"a": np.zeros((4, 2)), "b": (np.zeros(4, np.int32), jnp.ones((4, 3)))}
    groups = np.array(["a", "b", "b", "a"], object)
    data = study_.load_data(replace(STUDY, data=Dataset(x, np.zeros(4), x, np.zeros(4), [1, 2, 0, 3], groups)), {})
    assert jax.tree.structure(data.x_train) == jax.tree.structure(x)
    np.testing.assert_array_equal(data.weights, np.float32([1, 2, 0, 3]), strict=True)
    assert data.groups.tolist() == ["a", "b", "b", "a"]
    assert not data.groups.dtype.hasobject  # whose digest would be another in each process


def test_pandas_tables_are_taken_as_arrays():
    pandas = pytest.importorskip("pandas")
    x, y = pandas.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}), pandas.Series([0.0, 1.0])
    data = study_.load_data(replace(STUDY, data=Dataset(x, y, x, y, weights=y, groups=pandas.Series(["a", "b"]))), {})
    np.testing.assert_array_equal(data.x_train, [[1, 3], [2, 4]])
    np.testing.assert_array_equal(data.y_test, [0, 1])
    assert data.groups.tolist() == ["a", "b"]


X, Y = np.zeros((5, 2)), np.zeros(5)
BAD_DATA = {
    "no Dataset": (lambda: (X, Y, X, Y), "data= must be a Dataset or a function that returns one, got tuple"),
    "lists": (lambda: Dataset([[1.0]], Y, X, Y), "x_train= must be an array, or a dict or tuple of arrays, not a list"),
    "words": (lambda: Dataset(X, np.array(["a"] * 5), X, Y), "y_train= must be numbers, got an array of <U1"),
    "NaN": (lambda: Dataset(X, Y, X * np.nan, Y), "x_test= must be finite, got 10 of 10 values that are NaN or"),
    "NaN in a dict": (lambda: Dataset({"a": X * np.nan}, Y, {"a": X}, Y), "x_train['a']= must be finite, got 10 of 10"),
    "lengths": (lambda: Dataset(X, Y[:4], X, Y), "x_train and y_train must have the same leading sample axis"),
    "test lengths": (lambda: Dataset(X, Y, X, Y[:4]), "x_test and y_test must have the same leading sample axis"),
    "empty": (lambda: Dataset(X[:0], Y[:0], X, Y), "x_train and y_train must have the same leading sample axis, at"),
    "no array": (lambda: Dataset(None, Y, X, Y), "x_train= must be numbers, got an array of object"),
    "features": (
        lambda: Dataset(X, Y, X[:, :1], Y),
        "x_train and x_test must have examples of the same shape, got (2,) and (1,)",
    ),
    "targets": (
        lambda: Dataset(X, Y, X, X),
        "y_train and y_test must have examples of the same shape, got () and (2,)",
    ),
    "trees": (lambda: Dataset({"a": X}, Y, {"b": X}, Y), "x_train and x_test must have examples of the same shape"),
    "number of weights": (
        lambda: Dataset(X, Y, X, Y, weights=Y[:4]),
        "x_train and weights must have the same leading sample axis",
    ),
    "negative weights": (lambda: Dataset(X, Y, X, Y, weights=Y - 1), "weights= must be one number of at least 0"),
    "weights of 0": (lambda: Dataset(X, Y, X, Y, weights=Y), "weights= must be one number of at least 0"),
    "NaN weights": (lambda: Dataset(X, Y, X, Y, weights=Y * np.nan), "weights= must be finite"),
    "weights of words": (lambda: Dataset(X, Y, X, Y, weights=["a"] * 5), "weights= must be numbers, got an array of"),
    "number of groups": (
        lambda: Dataset(X, Y, X, Y, groups=[1, 2]),
        "x_train and groups must have the same leading sample axis",
    ),
}


@pytest.mark.parametrize(("data", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_data_that_cant_be_used_are_told_in_one_line(data, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        study_.load_data(replace(STUDY, data=data), {})
    text = str(caught.value)
    assert text.startswith(message)
    assert len(text.splitlines()) == 1


# Folds.


def splits(study, num_folds=3, seed=0):
    return study_.splits_of(study, Search(1, 1, num_folds, seed), study_.load_data(study, {"data_csv": None}))


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        for index, own in zip(a, b, strict=True):
            np.testing.assert_array_equal(index, own)


def test_folds_are_shuffled_ones_by_the_searchs_number_and_seed():
    assert_same(splits(STUDY, 4, 7), k_fold(61, 4, (7,)))


def test_a_studys_own_pairs_are_its_folds_whatever_the_number():
    pairs = [(list(range(30)), list(range(30, 61))), (np.arange(30, 61), np.arange(30))]
    assert_same(splits(replace(STUDY, folds=pairs)), pairs)


def test_scikit_learns_splitters_make_the_folds():
    selection = pytest.importorskip("sklearn.model_selection")
    for splitter in (
        selection.KFold(4),
        selection.ShuffleSplit(3, random_state=0),
        selection.TimeSeriesSplit(3),
    ):
        assert_same(splits(replace(STUDY, folds=splitter)), list(splitter.split(toy.X[:61])))
    classes = np.arange(61) % 3
    labelled = replace(
        STUDY, folds=selection.StratifiedKFold(3), data=toy.DATA._replace(y_train=classes, y_test=classes[:20])
    )
    assert_same(splits(labelled), list(selection.StratifiedKFold(3).split(toy.X[:61], classes)))


def test_splitters_keep_groups_together():
    selection = pytest.importorskip("sklearn.model_selection")
    groups = np.arange(61) // 4
    grouped = replace(STUDY, folds=selection.GroupKFold(3), data=toy.DATA._replace(groups=groups))
    found = splits(grouped)
    assert_same(found, list(selection.GroupKFold(3).split(toy.X[:61], groups=groups)))
    assert all(np.intersect1d(groups[fold.train], groups[fold.validation]).size == 0 for fold in found)


def test_a_splitter_gets_the_first_arrays_of_trees():
    class Halves:
        def split(self, x, y, groups):
            assert (x.shape, y.shape, groups) == ((61, 1), (61,), None)
            yield np.arange(30), np.arange(30, 61)

    x, y = {"a": toy.X[:61], "b": np.zeros((61, 3))}, {"c": np.zeros(61)}
    (fold,) = splits(replace(STUDY, folds=Halves(), data=Dataset(x, y, x, y)))
    assert_same([fold], [(np.arange(30), np.arange(30, 61))])


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (3, "folds= must be a list of .* or a splitter with a method split, got int; their number is num_folds="),
        ("kfold", "folds= must be a list of"),
        ([], "folds is empty"),
        ([(np.arange(30), np.arange(30, 62))], "fold 0: validation indices must lie in 0..60"),
        ([(np.arange(31), np.arange(30, 61))], "fold 0: the same sample is in its training and its validation part"),
    ],
)
def test_folds_that_are_none_are_told_in_one_line(folds, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        splits(replace(STUDY, folds=folds))
    assert "\n" not in str(caught.value)


# Tasks.


def counted(study):
    """(the study with a task that counts its calls, the calls)"""
    calls = []
    return replace(study, task=lambda fixed: calls.append(fixed) or study.task(fixed)), calls


def test_equal_tasks_are_the_same_so_that_a_program_is_compiled_once():
    study, calls = counted(STUDY)
    fixed = {"hidden_units": (6, 4)}
    first = study_.make_task(study, fixed)
    assert study_.make_task(study, dict(fixed)) is first
    assert study_.make_task(replace(study, name="other", num_trials=9), fixed) is first
    assert calls == [fixed]
    assert study_.make_task(study, {"hidden_units": (6, 3)}) is not first
    assert study_.make_task(replace(study, metrics=METRICS), fixed) is not first
    assert len(calls) == 3


def test_values_that_are_equal_but_of_another_type_are_other_tasks():
    study, calls = counted(replace(STUDY, task=lambda fixed: Task(None, None, None, None)))
    for value in (1, 1.0, True):
        study_.make_task(study, {"x": value})
    assert [type(fixed["x"]) for fixed in calls] == [int, float, bool]


def test_a_task_is_given_the_studys_metrics_and_has_none_of_its_own():
    plain = Task(None, None, squared_error, None)
    study = replace(STUDY, task=lambda fixed: plain, metrics={"accuracy": accuracy, **METRICS})
    assert study_.make_task(study, {}).metrics == (("accuracy", accuracy), ("absolute", absolute_error))
    own = plain._replace(metrics=(("own", absolute_error),))
    with pytest.raises(ValueError, match="^metrics= of a Task are for who trains it without a study: give them to the"):
        study_.make_task(replace(study, task=lambda fixed: own), {})


def test_what_is_no_task_is_told():
    with pytest.raises(TypeError, match="^task= must return a Task, got NoneType$"):
        study_.make_task(replace(STUDY, task=lambda fixed: None), {})


def test_numbers_of_parameters_are_those_of_a_networks_own_widths():
    draw = {"hidden_units": (5, 3), "learning_rate": 0.01, "l2": 0.001, "optimizer": "sgd"}
    assert study_.num_parameters(STUDY, draw) == 2 * 5 + 6 * 3 + 4
    task = study_.make_task(STUDY, fixed(STUDY.space, draw, widest=True))
    shapes = study_.parameter_shapes(task, study_.one_trial(STUDY, draw))
    assert {name: layer["weights"].shape for name, layer in shapes.items()} == {
        "dense1": (6, 2),
        "dense2": (4, 7),
        "output": (1, 5),
    }


def test_shapes_of_what_is_not_trained_stand_beside_the_parameters():
    task = Task(
        init=lambda key, h: ({"w": jnp.ones(3)}, {"mean": jnp.zeros((), jnp.int32)}),
        apply=lambda params, x, h, state: (x, state),
        loss=squared_error,
        optimizer=None,
    )
    params, state = study_.variable_shapes(task, {})
    assert (params["w"].shape, state["mean"].dtype) == ((3,), np.int32)
    assert study_.parameter_shapes(task, {}) == params


def test_one_trial_has_no_trial_axis():
    draw = {"hidden_units": (5, 3), "learning_rate": 0.01, "l2": 0.001, "optimizer": "sgd"}
    found = study_.one_trial(STUDY, draw)
    assert {name: np.shape(value) for name, value in found.items()} == {
        "hidden_units": (2,),
        "learning_rate": (),
        "l2": (),
        "optimizer": (),
    }
    assert found["optimizer"] == 1


def test_a_study_without_options_is_enough():
    study = Study("small", task=toy.task, data=toy.DATA, space=toy.STUDY.space)
    order = study_.order(study)
    assert (order.num_trials, order.search) == (25, Search(num_epochs=100, batch_size=32, num_folds=3))
