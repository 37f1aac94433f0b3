"""The estimators of `hw1jax.sklearn` in scikit-learn's own tools."""

import copy
import pickle

import compilations
import jax
import jax.numpy as jnp
import joblib
import numpy as np
import optax
import pandas as pd
import pytest
import sklearn
from scipy import stats
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss, make_scorer, r2_score, roc_auc_score
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import hw1jax as hw
from hw1jax import sklearn_words, tabular
from hw1jax.core import folds
from hw1jax.results import evaluation
from hw1jax.results.trained_model import Model
from hw1jax.search.brackets import Brackets
from hw1jax.sklearn import SCORES, MLPClassifierCV, MLPRegressorCV, SearchCV

SMALL = {"n_iter": 4, "cv": 3, "max_iter": 6, "batch_size": 32, "random_state": 0}
CLASSIFIER = MLPClassifierCV(((4, 12),), learning_rate_init=(1e-2, 1e-1), **SMALL)
REGRESSOR = MLPRegressorCV(((4, 12),), learning_rate_init=(1e-2, 1e-1), **SMALL | {"max_iter": 20})
CANCER, IS_BENIGN = load_breast_cancer(return_X_y=True)
SUGAR, PROGRESSION = load_diabetes(return_X_y=True)


@pytest.fixture(scope="module")
def fitted():
    return clone(CLASSIFIER).fit(CANCER, IS_BENIGN)


def fold_outputs(search, X):
    """The outputs of the best trial's networks, a fold each."""
    task, space = search._network()
    study = hw.Study("search", task, hw.Dataset(X, X), space, metrics={"score": search._metric()[0]}, minimize="score")
    return Model(study, search._draw, *search._arrays).fold_outputs(np.asarray(X, np.float32))


# Results


def test_the_results_have_scikit_learns_names_and_belong_to_each_other(fitted):
    results = fitted.cv_results_
    splits = np.stack([results[f"split{i}_test_score"] for i in range(3)])
    np.testing.assert_allclose(results["mean_test_score"], splits.mean(axis=0))
    np.testing.assert_allclose(results["std_test_score"], splits.std(axis=0), atol=1e-12)
    assert fitted.best_index_ == np.argmax(results["mean_test_score"]) and results["rank_test_score"].min() == 1
    assert fitted.best_score_ == results["mean_test_score"][fitted.best_index_] == results["mean_test_score"].max()
    assert fitted.best_params_ == results["params"][fitted.best_index_]
    assert set(fitted.best_params_) == {"hidden_layer_sizes", "learning_rate_init", "alpha"}
    assert results["param_hidden_layer_sizes"][0] == results["params"][0]["hidden_layer_sizes"]
    assert results["param_alpha"].min() >= 1e-6 and results["param_alpha"].max() <= 1e-1, "scikit-learn's scale"
    assert list(results["n_resources"]) == [6] * 4 and fitted.n_splits_ == 3 and fitted.n_iter_ == 6
    assert pd.DataFrame(results).shape[0] == 4
    assert fitted.score(CANCER, IS_BENIGN) == np.mean(fitted.predict(CANCER) == IS_BENIGN) > 0.9
    assert fitted.best_estimator_ is fitted


@pytest.mark.parametrize(
    ("scoring", "computed"),
    [
        ("accuracy", lambda y, p: np.mean(y == p.argmax(axis=1))),
        ("roc_auc", lambda y, p: roc_auc_score(y, p[:, 1])),
        ("neg_log_loss", lambda y, p: -log_loss(y, p)),
    ],
)
def test_a_folds_score_is_scikit_learns_of_the_network_that_was_trained_on_the_rest(scoring, computed):
    folds = list(StratifiedKFold(3).split(CANCER, IS_BENIGN))
    search = clone(CLASSIFIER).set_params(scoring=scoring, cv=folds).fit(CANCER, IS_BENIGN)
    for i, (outputs, (_, held_out)) in enumerate(zip(fold_outputs(search, CANCER), folds, strict=True)):
        logits = outputs[held_out].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        theirs = computed(IS_BENIGN[held_out], probabilities)
        assert search.cv_results_[f"split{i}_test_score"][search.best_index_] == pytest.approx(theirs, abs=1e-5)
    assert search.score(CANCER, IS_BENIGN) == pytest.approx(computed(IS_BENIGN, search.predict_proba(CANCER)))


def test_r2_ranks_the_trials_of_a_regression_and_targets_may_be_several():
    folds = list(KFold(3).split(SUGAR))
    both = np.stack([PROGRESSION, -2 * PROGRESSION + 5], axis=1)
    search = clone(REGRESSOR).set_params(cv=folds).fit(SUGAR, both)
    assert search.predict(SUGAR).shape == both.shape
    for i, (outputs, (_, held_out)) in enumerate(zip(fold_outputs(search, SUGAR), folds, strict=True)):
        theirs = r2_score(both[held_out], outputs[held_out])
        assert search.cv_results_[f"split{i}_test_score"][search.best_index_] == pytest.approx(theirs, abs=1e-4)
    assert clone(REGRESSOR).fit(SUGAR, PROGRESSION).predict(SUGAR).shape == PROGRESSION.shape


def test_a_search_in_memory_is_the_search_that_a_folder_keeps_and_resumes(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clone(CLASSIFIER).fit(CANCER, IS_BENIGN)
    assert not list(tmp_path.iterdir()), "no file"
    kept = clone(CLASSIFIER).set_params(out="kept").fit(CANCER, IS_BENIGN)
    assert (tmp_path / "kept" / "results.json").exists()
    for name, values in fitted.cv_results_.items():
        np.testing.assert_array_equal(values, kept.cv_results_[name], err_msg=name)
    np.testing.assert_array_equal(kept.predict_proba(CANCER), fitted.predict_proba(CANCER))
    more = clone(CLASSIFIER).set_params(out="kept", n_iter=6).fit(CANCER, IS_BENIGN)
    np.testing.assert_array_equal(more.cv_results_["mean_test_score"][:4], fitted.cv_results_["mean_test_score"])


def test_the_second_fit_of_like_shape_compiles_nothing(fitted):
    with compilations.counted() as names:
        search = clone(CLASSIFIER).set_params(random_state=1).fit(CANCER[::-1], IS_BENIGN[::-1])
    assert names == [], "also if another width is the best"
    assert search.best_params_["hidden_layer_sizes"] != fitted.best_params_["hidden_layer_sizes"]


def test_halving_prunes_and_its_resources_are_epochs():
    search = clone(CLASSIFIER).set_params(n_iter=9, max_iter=9, halving=3, ensemble=True).fit(CANCER, IS_BENIGN)
    assert sorted(search.cv_results_["n_resources"]) == [1] * 6 + [3] * 2 + [9] * 1
    assert search.cv_results_["n_resources"][search.best_index_] == 9


def test_a_fold_that_leaves_the_score_undefined_is_nan_and_does_not_count():
    x, y = CANCER[np.argsort(-IS_BENIGN, kind="stable")], np.sort(IS_BENIGN)[::-1]  # first those of class 1
    search = clone(CLASSIFIER).set_params(cv=KFold(3), scoring="roc_auc")
    with pytest.warns(UserWarning, match="score in fold"), pytest.warns(UserWarning, match="no sample of class 0"):
        search.fit(x, y)
    splits = np.stack([search.cv_results_[f"split{i}_test_score"] for i in range(3)])
    assert np.isnan(splits).any(axis=1).tolist() == [True, False, True]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], np.nanmean(splits, axis=0))
    assert search.best_score_ == splits[1].max()


def test_a_network_stops_early_and_the_refit_too(fitted):
    search = clone(CLASSIFIER).set_params(early_stopping=3).fit(CANCER, IS_BENIGN)
    assert search.best_score_ >= fitted.best_score_ and search.score(CANCER, IS_BENIGN) > 0.9


# Data


def test_features_and_targets_are_scaled_within_each_fold():
    plain = clone(REGRESSOR).fit(SUGAR, PROGRESSION)
    moved = clone(REGRESSOR).fit(1000 * SUGAR - 7, 50 * PROGRESSION + 3)
    np.testing.assert_allclose(moved.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"], atol=2e-3)
    np.testing.assert_allclose(moved.predict(1000 * SUGAR - 7), 50 * plain.predict(SUGAR) + 3, rtol=0.02)
    assert plain.score(SUGAR, PROGRESSION) > 0.4
    raw = clone(REGRESSOR).set_params(standardize=False).fit(1000 * SUGAR - 7, 50 * PROGRESSION + 3)
    assert raw.best_score_ < plain.best_score_ - 0.1


def test_labels_columns_and_missing_kinds_are_scikit_learns(fitted):
    iris = load_iris(as_frame=True)
    names = iris.target_names[iris.target]
    search = clone(CLASSIFIER).set_params(max_iter=20).fit(iris.data, names)
    assert list(search.classes_) == ["setosa", "versicolor", "virginica"]
    assert search.score(iris.data, names) > 0.8
    assert list(search.feature_names_in_) == list(iris.data.columns)
    np.testing.assert_allclose(search.predict_proba(iris.data).sum(axis=1), 1)
    np.testing.assert_allclose(np.exp(search.predict_log_proba(iris.data)), search.predict_proba(iris.data))


def test_weights_of_samples_and_classes_change_what_is_learned():
    rng = np.random.default_rng(0)
    x = rng.normal(size=CANCER.shape).astype(np.float32)  # so the search without weights compiles nothing
    y = (x[:, 0] + rng.normal(size=len(x)) > 1.5).astype(int)  # one in seven

    def recall(search):
        return np.mean(search.predict(x)[y == 1])

    plain = clone(CLASSIFIER).fit(x, y)
    assert recall(clone(CLASSIFIER).set_params(class_weight="balanced").fit(x, y)) > recall(plain) + 0.1
    assert recall(clone(CLASSIFIER).fit(x, y, sample_weight=np.where(y == 1, 6.0, 1.0))) > recall(plain) + 0.1
    ones = clone(CLASSIFIER).set_params(class_weight={0: 1.0, 1: 1.0}).fit(x, y)
    np.testing.assert_array_equal(ones.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])
    ones, plain = (search.set_params(ensemble=True).predict_proba(x) for search in (ones, plain))
    np.testing.assert_allclose(ones, plain, atol=1e-5, err_msg="the ensemble has the mean of the probabilities")


def test_groups_stay_together_also_when_they_are_routed():
    groups = np.arange(len(CANCER)) % 7
    search = clone(CLASSIFIER).set_params(cv=GroupKFold(3))
    alone = clone(search).fit(CANCER, IS_BENIGN, groups=groups)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = make_pipeline(StandardScaler(), search.set_fit_request(groups=True))
        routed.fit(CANCER, IS_BENIGN, groups=groups)
    assert alone.n_splits_ == routed[-1].n_splits_ == 3
    with pytest.raises(ValueError, match="groups"):
        clone(CLASSIFIER).set_params(cv=GroupKFold(3)).fit(CANCER, IS_BENIGN)


# In scikit-learn's tools


def test_a_search_is_cloned_configured_and_kept_by_joblib(fitted, tmp_path):
    assert clone(fitted).get_params() == fitted.get_params() and not hasattr(clone(fitted), "classes_")
    joblib.dump(fitted, tmp_path / "search.joblib")
    for again in (joblib.load(tmp_path / "search.joblib"), pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(again.predict_proba(CANCER), fitted.predict_proba(CANCER))
        np.testing.assert_array_equal(again.cv_results_["mean_test_score"], fitted.cv_results_["mean_test_score"])


def test_a_search_works_after_a_column_transformer_and_within_a_nested_cross_validation():
    table = pd.DataFrame({"a": CANCER[:, 0], "b": CANCER[:, 1], "c": np.where(CANCER[:, 2] > 90, "large", "small")})
    columns = ColumnTransformer([("numbers", StandardScaler(), ["a", "b"]), ("words", OneHotEncoder(), ["c"])])
    pipeline = make_pipeline(columns, clone(CLASSIFIER))
    scores = cross_val_score(pipeline, table[:568], IS_BENIGN[:568], cv=KFold(2))  # halves, which share programs
    assert scores.shape == (2,) and scores.mean() > 0.8


def test_targets_may_be_transformed_around_a_search():
    search = TransformedTargetRegressor(clone(REGRESSOR), transformer=StandardScaler())
    assert search.fit(SUGAR, PROGRESSION).score(SUGAR, PROGRESSION) > 0.3


@pytest.mark.parametrize("changed", [{"activation": "tanh"}, {"standardize": False}, {"hidden_layer_sizes": [(7,)]}])
def test_settings_that_change_after_a_fit_are_those_of_the_next_one(fitted, changed):
    again = copy.deepcopy(fitted).set_params(**changed)
    np.testing.assert_array_equal(again.predict_proba(CANCER), fitted.predict_proba(CANCER))


def test_rows_that_are_all_but_equal_are_predicted_alike(fitted):
    rows = np.repeat(CANCER[:1], 2, axis=0)
    rows[1] *= 1 + 1e-10
    np.testing.assert_array_equal(*fitted.predict_proba(rows))
    with pytest.raises(ValueError, match="X= must be finite, got 30 of 30"), np.errstate(over="ignore"):
        fitted.predict(CANCER[:1] * 1e300)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the refit ended at a training loss")  # on a few samples
@pytest.mark.parametrize("search", [CLASSIFIER, REGRESSOR], ids=["classifier", "regressor"])
def test_scikit_learns_own_checks_pass(search):
    # A sample of weight 0 keeps its place in folds and minibatches, and one of weight 2 is drawn once.
    expected = {"check_sample_weight_equivalence_on_dense_data": "weights are not repetitions in minibatches"}
    usual = clone(search).set_params(n_iter=3, max_iter=20)
    found = check_estimator(usual, on_fail=None, on_skip=None, expected_failed_checks=expected)
    wrong = [(check["check_name"], str(check["exception"])) for check in found if check["status"] == "failed"]
    assert wrong == []


# A network of one's own, and settings


def test_a_network_of_ones_own_is_searched_by_its_task_and_space():
    task, space = hw.mlp(30, 2, layers=((4, 8),), learning_rate=(1e-2, 1e-1))
    search = SearchCV(task, space, **SMALL).fit(CANCER, np.where(IS_BENIGN, "benign", "malignant"))
    assert set(search.best_params_) == {"layers", "learning_rate", "l2"}
    assert search.score(CANCER, np.where(IS_BENIGN, "benign", "malignant")) > 0.8
    task, space = hw.mlp(10, 1, hw.squared_error, layers=(8,), learning_rate=(1e-2, 1e-1))
    numbers = SearchCV(task, space, estimator_type="regressor", **SMALL).fit(SUGAR, PROGRESSION)
    assert numbers.predict(SUGAR).shape == PROGRESSION.shape


def test_one_output_is_the_log_odds_of_the_second_class():
    scaled, labels = StandardScaler().fit_transform(CANCER), np.where(IS_BENIGN, "benign", "malignant")
    net = hw.Task(
        init=lambda key, h: {"w": jnp.zeros((30, 1))},
        apply=lambda params, x, h: x @ params["w"],
        loss=lambda outputs, y: optax.sigmoid_binary_cross_entropy(outputs[:, 0], y),
        optimizer=lambda h: optax.adam(h["rate"]),
    )
    search = SearchCV(lambda fixed: net, {"rate": hw.Float(1e-2, 1e-1)}, **SMALL).fit(scaled, labels)
    assert search.score(scaled, labels) == np.mean(search.predict(scaled) == labels) > 0.9
    assert search.best_score_ > 0.9 and search.predict_proba(scaled).shape == (len(scaled), 2)
    three = net._replace(init=lambda key, h: {"w": jnp.zeros((30, 3))}, loss=hw.cross_entropy)
    search = SearchCV(lambda fixed: three, {"rate": hw.Float(1e-2, 1e-1)}, **SMALL).fit(scaled, labels)
    assert search.predict_proba(scaled).shape == (len(scaled), 2), "a third class is not in y"
    with pytest.raises(ValueError, match=r"^outputs have the shape \(5, 2\): 3 classes need \[sample, 3\]$"):
        evaluation.logits(np.zeros((5, 2)), 3)


def test_a_network_whose_task_fills_nan_takes_them_and_another_refuses_them():
    task, space = hw.mlp(30, 2, layers=((4, 8),), learning_rate=(1e-2, 1e-1))
    fills = lambda fixed: task(fixed)._replace(prepare=(hw.impute_mean, hw.standardize))  # noqa: E731
    holes = np.where(np.random.default_rng(0).random(CANCER.shape) < 0.05, np.nan, CANCER)
    search = SearchCV(fills, space, **SMALL).fit(holes, IS_BENIGN)
    assert search.score(holes, IS_BENIGN) > 0.8
    for other in (task, lambda fixed: task(fixed)._replace(prepare=lambda x: x)):
        with pytest.raises(ValueError, match=r"^prepare= gives values in fold 0 that are NaN|^X= must be finite"):
            SearchCV(other, space, **SMALL).fit(holes, IS_BENIGN)
    whole = SearchCV(task, space, **SMALL | {"n_iter": 1, "max_iter": 1}).fit(CANCER, IS_BENIGN)
    with pytest.raises(ValueError, match="^X has NaN that the task's prepare= does not fill"):
        whole.predict(holes)


def test_hyperparameters_are_numbers_pairs_lists_distributions_or_ranges():
    search = MLPClassifierCV(
        hidden_layer_sizes=[(4,), (4, 4)],
        solver=["adam", "sgd"],
        alpha=np.array([1e-4, 1e-2]),
        batch_size=200,
        learning_rate_init=stats.loguniform(1e-3, 1e-1),
        **{name: value for name, value in SMALL.items() if name != "batch_size"} | {"n_iter": 8, "max_iter": 2},
    ).fit(CANCER, IS_BENIGN)
    found = search.cv_results_
    assert set(found["param_hidden_layer_sizes"]) == {(4,), (4, 4)} and set(found["param_solver"]) == {"adam", "sgd"}
    assert set(found["param_alpha"]) <= {1e-4, 1e-2}
    assert all(1e-3 <= rate <= 1e-1 for rate in found["param_learning_rate_init"])
    steps = clone(CLASSIFIER).set_params(hidden_layer_sizes=hw.Int(4, 12, step=4), n_iter=9, max_iter=1)
    widths = steps.fit(CANCER, IS_BENIGN).cv_results_["param_hidden_layer_sizes"]
    assert {units for (units,) in widths} <= {4, 8, 12}
    fixed = MLPClassifierCV((4, stats.randint(3, 6)), learning_rate_init=0.01, alpha=0, **SMALL).fit(CANCER, IS_BENIGN)
    assert set(fixed.best_params_) == {"hidden_layer_sizes"} and fixed.best_params_["hidden_layer_sizes"][0] == 4


@pytest.mark.parametrize("values", [(None, (64,)), ((64,), None), (1, "auto")])
def test_a_column_of_several_kinds_of_values_keeps_them(values):
    column = sklearn_words.column(values)
    assert column.dtype == object and tuple(column) == values
    assert sklearn_words.column((1, 2.5)).dtype == float and sklearn_words.column((True, False)).dtype == bool


def test_a_choice_of_alpha_keeps_what_it_is_among_and_whole_numbers_are_refused():
    few = clone(CLASSIFIER).set_params(alpha=hw.Choice(1e-4, 1e-2, 1.0, among=(1e-4,)), max_iter=1)
    np.testing.assert_allclose(few.fit(CANCER, IS_BENIGN).cv_results_["param_alpha"].astype(float), 1e-4)
    for wrong in (hw.Int(1, 3), stats.randint(1, 4)):
        with pytest.raises(ValueError, match="^alpha= must be a number or a range of numbers, got whole numbers"):
            few.set_params(alpha=wrong).fit(CANCER, IS_BENIGN)


def test_after_a_fit_that_failed_nothing_is_predicted(fitted):
    labels = np.where(IS_BENIGN, "benign", "malignant")
    for search in (copy.deepcopy(fitted), clone(CLASSIFIER)):
        with pytest.raises(ValueError, match="^scoring="):
            search.set_params(scoring="nonsense").fit(CANCER, labels)
        with pytest.raises(NotFittedError):
            search.predict(CANCER)


def test_a_refit_that_diverges_is_told_and_the_folds_may_predict_instead(monkeypatch):
    refit = Brackets.refit

    def diverging(*args, **settings):
        params, state, train_loss = refit(*args, **settings)
        return jax.tree.map(lambda a: a * np.nan, params), state, train_loss * np.nan

    monkeypatch.setattr(Brackets, "refit", diverging)
    with pytest.warns(UserWarning, match="^the refit of the best trial diverged$"):
        search = clone(CLASSIFIER).fit(CANCER, IS_BENIGN)
    with pytest.raises(ValueError, match="^the refit diverged: give ensemble=True, or search smaller"):
        search.predict(CANCER)
    assert search.set_params(ensemble=True).score(CANCER, IS_BENIGN) > 0.9


def test_a_refit_far_above_its_folds_is_a_warning(monkeypatch):
    refit = Brackets.refit
    monkeypatch.setattr(Brackets, "refit", lambda *a, **k: (*refit(*a, **k)[:2], np.full(6, 1e3, np.float32)))
    with pytest.warns(UserWarning, match="^the refit ended at a training loss of 1e.03"):
        clone(CLASSIFIER).fit(CANCER, IS_BENIGN)


def test_an_ensemble_of_trials_is_chosen_by_a_fit(fitted):
    with pytest.raises(NotFittedError, match="^ensemble=5: fit again"):
        copy.deepcopy(fitted).set_params(ensemble=5).predict(CANCER)


def test_epochs_and_batch_sizes_may_be_in_a_searchs_space():
    task, space = hw.mlp(30, 2, layers=((4, 8),), learning_rate=(1e-2, 1e-1))
    space |= {"num_epochs": hw.Choice(1, 2, static=True), "batch_size": hw.Choice(50, 100, static=True)}
    search = SearchCV(task, space, n_iter=4, cv=3, random_state=0).fit(CANCER, IS_BENIGN)
    assert set(search.best_params_) == {"layers", "learning_rate", "l2", "num_epochs", "batch_size"}
    assert set(search.cv_results_["n_resources"]) <= {1, 2}


def test_without_a_refit_the_fold_networks_predict():
    search = clone(CLASSIFIER).set_params(refit=False).fit(CANCER, IS_BENIGN)
    with pytest.raises(NotFittedError, match="refit=False"):
        search.predict(CANCER)
    assert search.set_params(ensemble=True).score(CANCER, IS_BENIGN) > 0.9


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scoring": "silhouette"}, r"scoring= must be a metric of hw1jax or one of accuracy, .*, got 'silhouette'"),
        ({"solver": "lbfgs"}, "^solver= must be of adam, sgd, rmsprop, got 'lbfgs'"),
        ({"activation": "step"}, "activation= must be one of relu, .*, got 'step'"),
        ({"solver": None}, "^solver= must be of adam"),
        ({"activation": ["relu", "tanh"]}, "activation= must be one of relu"),
        ({"scoring": "r2"}, "^scoring= must be a metric of hw1jax or one of accuracy, .*, got 'r2'"),
        ({"scoring": ["accuracy"]}, "^scoring= must be a metric"),
        ({"scoring": hw.rmse}, "^scoring= is maximized, .* less is better: give 'neg_root_mean_squared_error'"),
        ({"scoring": make_scorer(log_loss)}, "^scoring= must be a metric"),
        ({"class_weight": {0: -1, 1: 1}}, "^class_weight= must be at least 0"),
        ({"alpha": None}, r"^alpha= must be a number of at least 0, a pair \(low, high\), .*, got None"),
        ({"alpha": (1e-1, 1e-6)}, r"^alpha= is searched on a logarithmic scale, .*, got \(0.1, 1e-06\)"),
        ({"learning_rate_init": (1e-3, 1e-2, 1e-1)}, "^learning_rate_init= must be a number"),
        ({"learning_rate_init": "adaptive"}, "^learning_rate_init= must be a number of at least 0, .*'adaptive'"),
        ({"hidden_layer_sizes": [((4, 8),)]}, "^hidden_layer_sizes= in a list must be numbers of units"),
        ({"batch_size": 0}, "^batch_size= must be a whole number, at least 1, got 0"),
        ({"alpha": stats.loguniform(1e-3, 1, loc=1)}, "alpha= has scipy's loguniform with loc="),
        ({"alpha": stats.norm()}, "alpha= has scipy's norm: give uniform, loguniform or randint"),
        ({"n_iter": 0}, "^n_iter= must be at least 1"),
        ({"cv": 1}, "^cv= must be at least 2"),
        ({"max_iter": 0}, "^max_iter= must be at least 1"),
        ({"halving": 1}, "halving= must be at least 2"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(changed, message):
    with pytest.raises(ValueError, match=message):
        clone(CLASSIFIER).set_params(**changed).fit(CANCER, IS_BENIGN)


MISSING = {
    "None": lambda y: np.where(np.arange(len(y)) == 3, None, y.astype(object)),
    "NaN": lambda y: np.where(np.arange(len(y)) == 3, np.nan, y.astype(object)),
    "pandas' NA": lambda y: pd.Series(y, dtype="string").where(np.arange(len(y)) != 3),
    "a list": lambda y: [label if i != 3 else float("nan") for i, label in enumerate(y)],
}


@pytest.mark.parametrize("make", MISSING.values(), ids=MISSING)
def test_a_missing_label_is_no_class(make):
    labels = np.where(IS_BENIGN, "benign", "malignant")
    with pytest.raises(ValueError, match=r"^y has missing labels \(1 of 569, the first in row 3\)"):
        clone(CLASSIFIER).fit(CANCER, make(labels))


def test_wrong_data_are_one_line_that_names_them():
    table = pd.DataFrame(CANCER[:, :2], columns=["a", "b"])
    with pytest.raises(TypeError, match=r"^X\['c'\] must be numbers, got .*: encode names as numbers"):
        clone(CLASSIFIER).fit(table.assign(c=pd.Categorical(np.where(IS_BENIGN, "x", "y"))), IS_BENIGN)
    with pytest.raises(ValueError, match=r"^y must be numbers, got <U9: classes are for a classifier"):
        clone(REGRESSOR).fit(CANCER, np.where(IS_BENIGN, "benign", "malignant"))
    with pytest.raises(ValueError, match="^Negative values in data passed to `sample_weight`"):
        clone(CLASSIFIER).fit(CANCER, IS_BENIGN, sample_weight=-np.ones(len(CANCER)))
    with pytest.raises(TypeError, match=r"^cv= is a class: give cv=KFold\(\)"):
        clone(CLASSIFIER).set_params(cv=KFold).fit(CANCER, IS_BENIGN)
    with pytest.raises(ValueError, match="^estimator_type= must be classifier or regressor, got 'classifer'"):
        SearchCV(*hw.mlp(30, 2), estimator_type="classifer").fit(CANCER, IS_BENIGN)
    with pytest.raises(NotFittedError):
        clone(CLASSIFIER).score(CANCER, IS_BENIGN)
    with pytest.raises(ValueError, match="^scoring= is NaN in every fold"):
        clone(REGRESSOR).set_params(cv=5).fit(SUGAR[:5], PROGRESSION[:5])


def test_a_classifiers_folds_are_stratified_however_many_classes_there_are(monkeypatch):
    made, usual = [], folds.stratified_k_fold
    monkeypatch.setattr(folds, "stratified_k_fold", lambda *given: made.append(usual(*given)) or made[-1])
    labels = np.repeat(np.arange(20), [7] * 10 + [2] * 10)
    clone(CLASSIFIER).set_params(cv=5, n_iter=1, max_iter=1).fit(CANCER[:90], labels)
    for fold in made[0]:
        assert np.isin(np.bincount(labels[fold.validation], minlength=20)[:10], [1, 2]).all()


def test_scores_of_class_1_are_refused_by_fit_where_scikit_learn_has_none_and_several_classes_have_their_auc():
    for labels in (np.where(IS_BENIGN, "benign", "malignant"), 2 * IS_BENIGN):
        with pytest.raises(ValueError, match="^scoring='f1' is of class 1, which must be the second"):
            clone(CLASSIFIER).set_params(scoring="f1").fit(CANCER, labels)
    search = clone(CLASSIFIER).set_params(scoring="roc_auc").fit(*load_iris(return_X_y=True))
    assert 0.5 < search.score(*load_iris(return_X_y=True)) <= 1


def test_a_class_that_a_fold_lacks_is_a_warning_that_names_it(fitted):
    y = np.where(np.arange(len(CANCER)) == 7, "rare", np.where(IS_BENIGN, "benign", "malignant"))
    with pytest.warns(UserWarning, match=r"no sample of class rare \(1 samples\)") as caught:
        clone(CLASSIFIER).set_params(max_iter=1, n_iter=1).fit(CANCER, y)
    assert {warning.filename for warning in caught} == {__file__}


def test_a_score_of_class_1_is_never_that_of_another_class_than_scikit_learns():
    with pytest.raises(ValueError, match="'f1' is of class 1, which must be the second of"):
        clone(CLASSIFIER).set_params(scoring="f1").fit(CANCER, IS_BENIGN + 1)


def test_weights_that_leave_a_fold_nothing_are_no_divergence():
    weights = np.arange(len(CANCER)) % 3 > 0
    folds = [(np.flatnonzero(weights), np.flatnonzero(~weights))]
    with pytest.raises(ValueError, match="^sample_weight= are all 0 in the validation part of fold 0"):
        clone(CLASSIFIER).set_params(cv=folds).fit(CANCER, IS_BENIGN, sample_weight=weights)


def test_each_score_can_rank(fitted):
    assert set(SCORES) <= set(sklearn.metrics.get_scorer_names())
    with pytest.raises(ValueError, match="single class"):
        clone(CLASSIFIER).fit(CANCER, np.ones(len(CANCER)))
    assert tabular.mlp(3, 2)[0] is tabular.mlp(3, 2)[0], "an equal network is the same object"
