"""Preprocessing fitted on each fold's training part: scikit-learn's, without a leak, in predictions and model files."""

import concurrent.futures
from dataclasses import replace

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_diabetes
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler

import hw1jax as hw
from hw1jax.core import cost, fitting, preprocessing, tasks
from hw1jax.core.layout import Layout
from hw1jax.core.training import Data

X, Y = load_diabetes(return_X_y=True, scaled=False)
Y = Y[:, None]
WEIGHTS = np.random.default_rng(1).integers(0, 3, len(X)).astype(float)
HOLES = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
FOLDS = hw.k_fold(len(X), 3, (0,))
LINEAR = {
    "init": lambda key, h: {"w": jnp.zeros((10, 1)), "b": jnp.zeros(1)},
    "apply": lambda params, x, h: x @ params["w"] + params["b"][None],
    "loss": hw.squared_error,
    "optimizer": lambda h: optax.sgd(h["rate"]),
}
BOTH = {"prepare": hw.standardize, "prepare_y": hw.standardize}


def cross_validated(**more):
    given = {"x": X, "y": Y, "folds": FOLDS, "num_epochs": 3, "batch_size": 32, "return_params": True}
    given["hyperparameters"] = {"rate": np.array([0.01, 0.05], np.float32)}
    return hw.cross_validate(**LINEAR | given | more, key=jax.random.key(0))


def test_standardize_is_scikit_learns_with_weights_and_constant_columns():
    x = np.concatenate([X, np.full((len(X), 1), 0.1)], axis=1).astype(np.float32)
    for weights in (None, WEIGHTS):
        known = StandardScaler().fit(np.float64(x), sample_weight=weights)
        own = hw.standardize.fit(x, None, jnp.ones(len(x)) if weights is None else jnp.float32(weights))
        made = hw.standardize.transform(own, x)
        np.testing.assert_allclose(made, known.transform(np.float64(x)), atol=1e-5)
        np.testing.assert_allclose(hw.standardize.inverse(own, made), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unit", [2.0**-80, 2.0**80])
def test_standardize_is_the_same_in_a_unit_whose_square_float32_has_not(unit):
    x, weights = X.astype(np.float32), jnp.ones(len(X))
    own, large = (hw.standardize.fit(values, None, weights) for values in (x, np.float32(unit) * x))
    np.testing.assert_array_equal(
        hw.standardize.transform(large, np.float32(unit) * x), hw.standardize.transform(own, x)
    )


def test_impute_mean_is_scikit_learns():
    own = hw.impute_mean.fit(np.float32(HOLES), None, jnp.ones(len(X)))
    known = SimpleImputer().fit_transform(HOLES)
    np.testing.assert_allclose(hw.impute_mean.transform(own, np.float32(HOLES)), known, rtol=1e-5)


@pytest.mark.parametrize("values", [X, HOLES], ids=["whole", "holes"])
def test_quantiles_are_scikit_learns(values):
    known = QuantileTransformer(n_quantiles=100, output_distribution="normal", subsample=None).fit(values)
    new = np.concatenate([values, 1.2 * values - 3])  # ties (the column of sexes), and values beyond the highest
    normal = np.random.default_rng(2).normal(size=(50, 10))
    with jax.enable_x64(True):
        own = hw.quantiles.fit(values, None, jnp.ones(len(values)))
        np.testing.assert_allclose(hw.quantiles.transform(own, new), known.transform(new), atol=1e-7)
        np.testing.assert_allclose(hw.quantiles.inverse(own, normal), known.inverse_transform(normal), rtol=1e-9)
        weights = np.append(np.ones(len(values)), np.zeros(5))
        more = hw.quantiles.fit(np.concatenate([values, 9 * values[:5]]), None, jnp.asarray(weights))
        np.testing.assert_array_equal(more[0]["quantiles"], own[0]["quantiles"])
    narrow = hw.quantiles.transform(
        hw.quantiles.fit(np.float32(values), None, jnp.ones(len(values))), np.float32(values)
    )
    near = np.abs(known.transform(values)) < 2
    np.testing.assert_allclose(np.asarray(narrow)[near], known.transform(values)[near], atol=1e-4)


@pytest.mark.parametrize("last", [0, 1, 98, 99, 1234, 2**31 - 2])
def test_the_places_of_quantiles_are_exact_among_any_number_of_values(last):
    below, rest = map(np.int64, map(np.asarray, preprocessing._places(jnp.int32([last, 5]))))
    np.testing.assert_array_equal(99 * below + rest, np.arange(100)[:, None] * np.int64([last, 5]))
    assert (rest < 99).all()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weights"])
def test_each_fold_is_as_trained_on_data_that_its_own_pipeline_prepared(weights):
    found = cross_validated(**BOTH, weights=weights)
    for i, fold in enumerate(FOLDS):
        own = None if weights is None else weights[fold.train]
        of_x, of_y = (StandardScaler().fit(a[fold.train], sample_weight=own) for a in (X, Y))
        alone = cross_validated(x=of_x.transform(X), y=of_y.transform(Y), weights=weights)
        np.testing.assert_allclose(found.val_loss[:, i], alone.val_loss[:, i], rtol=1e-4)
        np.testing.assert_allclose(found.train_loss[:, i], alone.train_loss[:, i], rtol=1e-4)


def test_steps_are_fitted_in_order_on_what_the_ones_before_give():
    steps = (hw.impute_mean, lambda x: x * 2, hw.standardize)
    task = hw.Task(**LINEAR, prepare=steps)
    data = Data(HOLES, Y)
    found = fitting.statistics(task, data, FOLDS)
    for i, fold in enumerate(FOLDS):
        pipeline = make_pipeline(SimpleImputer(), StandardScaler()).fit(HOLES[fold.train])
        own = fitting.of_fold(data._replace(statistics=found), i).statistics
        made = tasks.prepared(task, own, jnp.float32(HOLES))
        np.testing.assert_allclose(made, pipeline.transform(HOLES), atol=1e-5)
    assert np.isfinite(cross_validated(x=HOLES, prepare=steps, prepare_y=hw.standardize).scores.mean).all()


def test_scaling_beforehand_leaks_what_a_fold_holds_out_and_a_fitted_step_does_not():
    # The mean of each group's y, as a feature: known from all samples, it tells a held-out sample's y.
    rng = np.random.default_rng(0)
    groups, y = np.arange(240) // 2, rng.normal(size=(240, 1)).astype(np.float32)

    def fit(values, y, weights):
        total = jnp.zeros(120).at[values[:, 0]].add(weights * y[:, 0])
        return total / jnp.maximum(jnp.zeros(120).at[values[:, 0]].add(weights), 1)

    encode = hw.Fitted(fit, lambda means, values: means[values[:, 0]][:, None])
    x, folds = groups[:, None], hw.k_fold(240, 3, (0,))
    beforehand = np.asarray(encode.transform(fit(x, y, jnp.ones(240)), x))
    one = {
        "init": lambda key, h: jnp.zeros((1, 1)),
        "apply": lambda params, x, h: x @ params,
        "folds": folds,
        "num_epochs": 60,
    }
    leaking = cross_validated(x=beforehand, y=y, **one).scores.mean.min()
    honest = cross_validated(x=x, y=y, prepare=encode, **one).scores.mean.min()
    assert leaking < 0.7 * np.var(y) and honest > 0.95 * np.var(y)


def test_metrics_predictions_and_out_of_fold_are_in_the_unit_of_y():
    found = cross_validated(**BOTH, metrics={"r2": hw.r2, "error": lambda o, y: jnp.abs(o - y)[:, 0]}, num_epochs=30)
    out_of_fold = found.out_of_fold()
    for i, fold in enumerate(FOLDS):
        of_x, of_y = (StandardScaler().fit(a[fold.train]) for a in (X, Y))
        params = jax.tree.map(lambda a: a[found.best, i], found.params)  # noqa: B023
        scaled = of_x.transform(X) @ params["w"] + params["b"]
        outputs = of_y.inverse_transform(scaled)
        np.testing.assert_allclose(out_of_fold[fold.validation], outputs[fold.validation], rtol=1e-4)
        error = np.abs(outputs - Y)[fold.validation]
        assert found.metrics["error"][found.best, i, -1] == pytest.approx(error.mean(), rel=1e-4)
        y = Y[fold.validation]
        r2 = 1 - np.sum((outputs[fold.validation] - y) ** 2) / np.sum((y - y.mean()) ** 2)
        assert found.metrics["r2"][found.best, i, -1] == pytest.approx(r2, rel=1e-3)
        loss = np.mean((scaled - of_y.transform(Y))[fold.validation] ** 2)
        assert found.val_loss[found.best, i, -1] == pytest.approx(loss, rel=1e-4)
    assert 0.3 < found.table()["mean_val_r2"].max() < 0.6
    assert np.corrcoef(found.predict(X)[:, 0], Y[:, 0])[0, 1] > 0.6


@pytest.mark.parametrize("layout", [Layout(None, 7, sequential=True), Layout(5, 50)])
def test_the_layout_of_a_step_changes_nothing(layout, monkeypatch):
    given = {**BOTH, "metrics": {"r2": hw.r2}, "x": {"all": X[:, :9], "sex": X[:, 9]}}
    given["apply"] = lambda params, x, h: jnp.append(x["all"], x["sex"][:, None], axis=1) @ params["w"]
    known = cross_validated(**given)
    monkeypatch.setattr(cost, "choose_layout", lambda *args, **more: layout)
    found = cross_validated(**given)
    np.testing.assert_allclose(found.val_loss, known.val_loss, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["r2"], known.metrics["r2"], rtol=1e-4)


def test_quantiles_of_y_with_ties_can_be_predicted(tmp_path):
    y = np.round(Y, -1)  # the outputs of the loss can't be recovered from predictions
    asked = a_study(prepare=hw.standardize, prepare_y=hw.quantiles)
    asked = replace(asked, data=hw.Dataset(X[:342], y[:342], X[342:], y[342:]), num_trials=2, num_epochs=30)
    results = hw.run_study(asked, out=tmp_path)
    assert results.test["r2"] > 0.2 and 0 < results.test["loss"] < 1
    assert y.min() <= results.out_of_fold.min() and results.out_of_fold.max() <= y.max()


NO_INVERSE = hw.Fitted(hw.standardize.fit, hw.standardize.transform)
WRONG = [
    ({"prepare_y": NO_INVERSE}, ValueError, r"^prepare_y= needs an inverse"),
    ({"prepare_y": lambda y: y}, TypeError, r"^prepare_y= must be a hw1jax.Fitted, got function"),
    ({"prepare": (hw.standardize, 3)}, TypeError, r"^prepare\[1\]= must be a function, got int"),
    ({"prepare": hw.Fitted(None, lambda s, x: x)}, TypeError, r"^fit of prepare= must be a function, got NoneType"),
    (
        {"prepare": hw.Fitted(lambda v, y, w: jnp.where(jnp.any(v == X[0, 2]), jnp.nan, 1), lambda s, x: x)},
        ValueError,
        r"^prepare=: fit returns NaN or infinite values in fold \d",
    ),
    (
        {"prepare": hw.Fitted(lambda v, y, w: v[:, 0], lambda s, x: x)},
        ValueError,
        r"^prepare=: fit returns shapes \(295,\) in fold 1 and \(294,\) in fold 0",
    ),
    ({"x": HOLES}, ValueError, r"^x= must be finite"),
    ({"x": HOLES, "prepare": hw.standardize}, ValueError, r"^prepare= gives values in fold 0 that are NaN"),
    ({"x": np.where(X > 200, np.inf, X), "prepare": hw.impute_mean}, ValueError, r"^x= must be finite"),
]


@pytest.mark.parametrize(("more", "kind", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_an_error_of_one_line_names_the_argument(more, kind, message):
    with pytest.raises(kind, match=message) as raised:
        cross_validated(**more)
    assert "\n" not in str(raised.value)


def a_study(**changes):
    given = {"prepare": (hw.impute_mean, hw.standardize), "prepare_y": hw.standardize} | changes
    data = hw.Dataset(HOLES[:342], Y[:342], HOLES[342:], Y[342:])
    return hw.Study(
        "fitted", lambda fixed: hw.Task(**LINEAR | given), data, {"rate": hw.Float(1e-3, 0.1, log=True)},
        metrics={"r2": hw.r2}, maximize="r2", num_trials=3, num_epochs=10,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted")
    return hw.run_study(a_study(), out=out)


def test_a_studys_refit_is_fitted_on_all_training_data_and_its_scores_are_in_the_unit_of_y(finished):
    model = finished.model
    pipeline = make_pipeline(SimpleImputer(), StandardScaler()).fit(HOLES[:342])
    of_y = StandardScaler().fit(Y[:342])
    scaled = pipeline.transform(HOLES[342:]) @ model.params["w"] + model.params["b"]
    outputs, y = of_y.inverse_transform(scaled), Y[342:]
    np.testing.assert_allclose(model.predict(HOLES[342:]), outputs, rtol=1e-4)
    r2 = 1 - np.sum((outputs - y) ** 2) / np.sum((y - y.mean()) ** 2)
    assert finished.test["r2"] == pytest.approx(r2, rel=1e-3) and finished.test["r2"] > 0.2
    assert finished.test["loss"] == pytest.approx(np.mean((scaled - of_y.transform(y)) ** 2), rel=1e-4)
    for fold, (_, state) in zip(hw.k_fold(342, 3, (0,)), model.folds, strict=True):
        known = StandardScaler().fit(Y[:342][fold.train])
        assert float(state.statistics[1][0]["mean"][0]) == pytest.approx(known.mean_[0], rel=1e-5)
    ensemble = np.mean(model.fold_outputs(HOLES[342:]), axis=0)
    np.testing.assert_allclose(model.predict(HOLES[342:], ensemble=True), ensemble, rtol=1e-5)


def test_without_a_refit_the_ensembles_test_loss_is_in_the_unit_of_a_refits(finished, tmp_path):
    without = hw.run_study(a_study(), out=tmp_path, refit=False)
    assert without.ensemble["loss"] == pytest.approx(finished.ensemble["loss"], rel=1e-6)
    assert without.test is None and not without.model.has_refit
    outputs = without.model.predict(HOLES[342:], ensemble=True)
    assert without.model.losses(outputs, Y[342:]).mean() == pytest.approx(without.ensemble["loss"], rel=1e-5)
    content = flax.serialization.msgpack_restore((tmp_path / "model.msgpack").read_bytes())
    content["statistics"] = {"array": np.ones(3)}
    refused(content, tmp_path, a_study())


def test_a_models_file_has_the_statistics_and_refuses_wrong_ones(finished):
    again = hw.load_model(finished.folder / "model.msgpack", a_study())
    assert jax.tree.structure(again.state) == jax.tree.structure(finished.model.state)
    assert "statistics/0/1/0/mean" in again.named_parameters()
    content = flax.serialization.msgpack_restore((finished.folder / "model.msgpack").read_bytes())
    kept = content["folds"][0]["statistics"]
    for other in ({"array": np.ones(3)}, {"array": 3}, {}, {"set": []}, [], None):
        content["folds"][0]["statistics"] = other
        refused(content, finished.folder, a_study())
    content["folds"][0]["statistics"] = kept
    path = kept["tuple"][1]["tuple"][0]["dict"]["mean"]
    path["array"] = np.full_like(path["array"], np.nan)
    refused(content, finished.folder, a_study())
    refused(None, finished.folder, a_study(prepare=tasks.unchanged, prepare_y=None))


def refused(content, folder, study):
    path = folder / "model.msgpack"
    if content is not None:
        path = folder.parent / "wrong.msgpack"
        path.write_bytes(flax.serialization.msgpack_serialize(content))
    with pytest.raises(ValueError, match="is not a model of hw1jax"):
        hw.load_model(path, study)


def test_a_folder_belongs_to_one_preprocessing(finished):
    other = hw.Fitted(hw.standardize.fit, lambda s, v: 1.5 * hw.standardize.transform(s, v))
    for changes in ({"prepare": (hw.impute_mean, other)}, {"prepare": hw.impute_mean}, {"prepare_y": None}):
        with pytest.raises(ValueError, match="another network, loss or optimizer"):
            hw.run_study(a_study(**changes), out=finished.folder)


def test_a_transformation_of_y_that_mixes_examples_is_refused():
    same, mixed = (lambda s, y: y), (lambda s, y: y - y.mean(axis=0)[None])
    for transform, inverse in ((mixed, same), (same, mixed)):
        with pytest.raises(ValueError, match="^loss or prepare_y mixes examples: an example's value changes"):
            cross_validated(prepare_y=hw.Fitted(lambda y, own_y, weights: (), transform, inverse))


def test_a_study_with_nan_that_nothing_fills_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^x_train= must be finite"):
        hw.run_study(a_study(prepare=lambda x: x), out=tmp_path)
    with pytest.raises(ValueError, match=r"^prepare= gives values in fold 0"):
        hw.run_study(a_study(prepare=hw.standardize), out=tmp_path)
    assert not any(tmp_path.iterdir())


def test_workers_of_an_executor_fit_the_same(finished, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        found = hw.run_study(a_study(), out=tmp_path, executor=executor)
    here = hw.run_study(a_study(), out=tmp_path / "here", num_devices=1)
    assert (tmp_path / "trials.csv").read_bytes() == (tmp_path / "here" / "trials.csv").read_bytes()
    np.testing.assert_array_equal(found.histories["test_outputs"], here.histories["test_outputs"])


def test_statistics_are_computed_once_for_all_trials_of_a_fold(monkeypatch, tmp_path):
    calls = []
    fit = fitting.statistics

    def counted(task, data, folds):
        calls.append(len(folds))
        return fit(task, data, folds)

    monkeypatch.setattr(fitting, "statistics", counted)
    hw.run_study(replace(a_study(), num_trials=5), out=tmp_path, members_per_program=6)
    assert calls == [3, 1], "of the folds, and of the refit"
