"""The ensemble of a whole search: its choice, its predictions, its files."""

import pickle
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import studies
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

import hw1jax as hw
from hw1jax import cli, progress, run, tabular
from hw1jax.core import losses, population, selection
from hw1jax.core.population import Plan
from hw1jax.core.tasks import Task
from hw1jax.results import evaluation
from hw1jax.search import networks
from hw1jax.search import study as study_
from hw1jax.search.brackets import Brackets
from hw1jax.search.observer import Observer
from hw1jax.sklearn import MLPClassifierCV

LINE = studies.LINE
ONE = {"num_devices": 1, "num_trials": 8, "num_epochs": 12, "ensemble": 3}
PADDED = ONE | {"widths": "padded"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of a regression; it is read only."""
    return hw.run_study(studies.TOY, out=tmp_path_factory.mktemp("found"), **PADDED)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Of a classification ranked by accuracy, with three programs and two repeats; it is read only."""
    out = tmp_path_factory.mktemp("deep")
    return hw.run_study(studies.DEEP, out=out, num_devices=1, num_trials=6, repeats=2, ensemble=4)


def searched(study, **settings):
    return run.search(study_.run_config(study, **settings), Observer())


def by_hand(model, folds, x):
    """{trial: outputs of its folds' networks on what they held out, a list}"""
    return {member.number: list(model.alone(member).held_out(folds, x)) for member in model.members}


# The choice


def plain_greedy(score, candidates, most):
    """The same in plain loops: score(mean of the chosen) is lowest."""
    chosen, best = [], (np.inf, [])
    for _ in range(50):
        allowed = range(len(candidates)) if len(set(chosen)) < most else sorted(set(chosen))
        scores = [score(np.mean([candidates[j] for j in [*chosen, i]], axis=0)) for i in allowed]
        chosen.append(allowed[int(np.argmin(scores))])
        if min(scores) < best[0] - 1e-9:
            best = min(scores), list(chosen)
    return np.bincount(best[1], minlength=len(candidates))


def chosen_of(name, loss, candidates, y, most, sign=1, **metrics):
    task = Task(None, None, loss, None, metrics=tuple(metrics.items()))  # pyright: ignore[reportArgumentType]
    ready = jnp.stack([selection.combinable(task, outputs) for outputs in candidates])
    weights = np.ones(len(y), np.float32)

    def scores_of(total, size):
        made = selection.scores(task)((name,), (), total, np.float32(size), ready, y, weights, None)
        return sign * np.asarray(made[name])

    return selection.greedy(scores_of, ready, most)


@pytest.mark.parametrize("most", [2, 4, 9])
def test_the_choice_is_that_of_plain_loops_for_numbers(most):
    rng = np.random.default_rng(most)
    y = rng.normal(size=(200, 2)).astype(np.float32)
    candidates = [y + rng.normal(0.1 * i, 1 + 0.1 * i, y.shape).astype(np.float32) for i in range(9)]
    counts = chosen_of("loss", losses.squared_error, candidates, y, most)
    expected = plain_greedy(lambda mean: np.mean((mean - y.astype(float)) ** 2), candidates, most)
    np.testing.assert_array_equal(counts, expected)
    assert 2 <= np.count_nonzero(counts) <= most and counts.max() > 1


def test_the_choice_is_that_of_plain_loops_for_probabilities_by_loss_and_by_a_maximized_area():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300).astype(np.int32)
    signal = np.stack([-(y - 0.5), y - 0.5], axis=1)
    candidates = [(signal + rng.normal(0, 1.5 + 0.2 * i, (300, 2))).astype(np.float32) for i in range(7)]
    probabilities = [evaluation.softmax(outputs) for outputs in candidates]
    expected = plain_greedy(lambda mean: log_loss(y, mean), probabilities, 3)
    np.testing.assert_array_equal(chosen_of("loss", losses.cross_entropy, candidates, y, 3), expected)
    expected = plain_greedy(lambda mean: -roc_auc_score(y, mean[:, 1]), probabilities, 4)
    counts = chosen_of("auc", losses.cross_entropy, candidates, y, 4, -1, auc=hw.roc_auc)
    np.testing.assert_array_equal(counts, expected)
    assert np.count_nonzero(counts) > 1


def test_ties_go_to_fewer_trials_and_then_to_the_first():
    candidates = np.zeros((4, 1))

    def counts(scores_of, most=4):
        return selection.greedy(lambda total, size: np.array(scores_of(size), float), candidates, most).tolist()

    assert counts(lambda size: [0, 0, 0, 0]) == [1, 0, 0, 0], "the first; larger ensembles are no better"
    # Trial 2 is the best alone; later, trials 1 and 2 would lower the score equally: the one that is there is taken.
    assert counts(lambda size: [9, 2 / size, (2 - (size == 1)) / size, np.nan]) == [0, 0, 50, 0]
    assert counts(lambda size: [np.nan, np.nan, 1, np.inf]) == [0, 0, 1, 0]
    assert counts(lambda size: [5 - size, 9, size, 9], most=1) == [0, 0, 1, 0], "trial 0 would be one too many"


@pytest.mark.parametrize("loss", [losses.cross_entropy, tabular.class_weighted((1.0, 3.0))])
def test_networks_of_the_cross_entropy_and_of_a_wrapped_one_are_combined_by_probabilities(loss):
    outputs = np.random.default_rng(0).normal(size=(3, 20, 2)).astype(np.float32)
    weights = np.array([0.5, 0.2, 0.3])
    expected = np.tensordot(weights, [evaluation.softmax(own) for own in outputs], 1)
    np.testing.assert_allclose(np.exp(evaluation.ensemble(loss, list(outputs), weights)), expected, rtol=1e-5)
    plain = evaluation.ensemble(losses.squared_error, list(outputs), weights)
    np.testing.assert_allclose(plain, np.tensordot(weights, outputs, 1), rtol=1e-5, atol=1e-6)


# A search


def test_the_weights_sum_to_one_and_the_score_out_of_fold_is_that_of_the_weighted_outputs(found):
    entry, folds, data = found.search_ensemble, found.folds, found.data
    assert sum(own["weight"] for own in entry["trials"]) == pytest.approx(1)
    assert 2 <= len(entry["trials"]) <= 3
    assert [own["number"] for own in entry["trials"]] == [member.number for member in found.model.members]
    outputs = by_hand(found.model, folds, data.x_train)
    rows = np.concatenate([fold.validation for fold in folds])
    mean = sum(m.weight * np.concatenate(outputs[m.number]) for m in found.model.members)
    own = float(np.mean((mean - data.y_train[rows]) ** 2))
    assert entry["out_of_fold"]["loss"] == pytest.approx(own, rel=1e-4)
    alone = float(np.mean((found.out_of_fold - data.y_train) ** 2))
    assert entry["best_out_of_fold"]["loss"] == pytest.approx(alone, rel=1e-4)
    assert entry["out_of_fold"]["loss"] < alone


def halves(shown, model, x):
    """The mean of what the refit predicts and of what the fold models do."""
    return (shown(model.predict(x)) + np.mean([shown(own) for own in model.fold_outputs(x)], axis=0)) / 2


def test_predictions_are_weighted_means_half_of_refits_half_of_fold_models_and_stay_so_once_loaded(found):
    model, x = found.model, found.data.x_test
    expected = sum(m.weight * halves(lambda outputs: outputs, model.alone(m), x) for m in model.members)
    np.testing.assert_allclose(model.predict(x, ensemble=True), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict(x, ensemble=True), found.histories["search_ensemble_outputs"])
    np.testing.assert_array_equal(model.fold_ensemble(x), found.histories["ensemble_outputs"])
    own = np.mean((expected - found.data.y_test) ** 2)
    assert found.search_ensemble["test"]["loss"] == pytest.approx(own, rel=1e-4)
    for member in model.members:
        shapes = networks.own(found.study, member.draw).shapes[0]
        for params, _ in (*member.folds, (member.params, member.state)):
            assert jax.tree.map(np.shape, params) == jax.tree.map(lambda a: a.shape, shapes), "own widths"
    assert model.has_refit and not np.allclose(model.predict(x), expected)


def test_a_classification_with_several_programs_and_repeats_means_probabilities(deep):
    folds, y, entry = deep.folds, deep.data.y_train, deep.search_ensemble
    outputs, total = by_hand(deep.model, folds, deep.data.x_train), 0
    assert len(entry["trials"]) > 1 and len({m.draw["depth"] for m in deep.model.members}) > 1
    for member in deep.model.members:
        each = [evaluation.softmax(own) for own in outputs[member.number]]
        total += member.weight * np.concatenate([(a + b) / 2 for a, b in zip(each[:3], each[3:], strict=True)])
    own = y[np.concatenate([fold.validation for fold in folds[:3]])]
    assert entry["out_of_fold"]["loss"] == pytest.approx(log_loss(own, total), rel=1e-4)
    assert entry["out_of_fold"]["accuracy"] == pytest.approx(np.mean(total.argmax(axis=1) == own))
    assert entry["out_of_fold"]["accuracy"] >= entry["best_out_of_fold"]["accuracy"]
    x = deep.data.x_test
    expected = sum(m.weight * halves(evaluation.softmax, deep.model.alone(m), x) for m in deep.model.members)
    np.testing.assert_allclose(np.exp(deep.model.predict(x, ensemble=True)), expected, rtol=1e-4)


def test_the_test_set_takes_no_part_in_the_choice(found):
    x, y, *_ = studies.TOY_DATA
    for data in (hw.Dataset(x, y), hw.Dataset(x, y, x[:9] + 1, y[:9] - 50)):
        chosen = searched(replace(studies.TOY, data=data), **PADDED).chosen
        assert [(m.number, m.weight) for m in chosen.members] == [(m.number, m.weight) for m in found.model.members]
        assert chosen.scores["loss"] == found.search_ensemble["out_of_fold"]["loss"]


def test_networks_at_their_own_widths_give_the_same_ensemble():
    padded, exact = (searched(LINE, **ONE, widths=widths, refit=False).chosen for widths in ("padded", "exact"))
    assert [(m.number, m.weight) for m in padded.members] == [(m.number, m.weight) for m in exact.members]
    assert padded.scores["loss"] == pytest.approx(exact.scores["loss"], rel=1e-5)


def test_with_halving_as_many_trials_reach_the_last_rung_of_each_bracket():
    settings = PADDED | {"num_trials": 12, "halving": 3, "brackets": True, "ensemble": 3, "refit": False}
    found = searched(LINE, **settings)
    first = [trial.state for trial in found.trials if trial.number < 5]
    assert sorted(first) == ["complete"] * 3 + ["pruned"] * 2, "one without an ensemble"
    complete = {trial.number for trial in found.trials if trial.state == "complete"}
    assert {m.number for m in found.chosen.members} <= complete and 3 < len(complete) < 12


def test_a_trial_of_the_ensemble_is_its_network_trained_alone_on_all_samples():
    padded, exact = (searched(LINE, **ONE, widths=widths) for widths in ("padded", "exact"))
    x = LINE.data.x_train
    for found in (padded, exact):
        for member in found.chosen.members:
            own = found.networks.for_refit()
            members = own.population(Plan(1, layout=own.layout), networks.padded(LINE, member.draw))
            *_, last = population.train(members, own.trials([member.number], [member.draw]))
            params = jax.tree.map(lambda a: a[0, 0], last.state.params)
            network = networks.padded(LINE, member.draw)
            expected = population.predict(network.task, params, network.hyperparameters, x)
            np.testing.assert_allclose(found.model.alone(member).predict(x), expected, rtol=1e-4, atol=1e-5)


def test_without_a_refit_and_where_one_diverges_fold_models_predict(monkeypatch):
    found = searched(LINE, **PADDED, refit=False)
    x = LINE.data.x_train
    for member in found.chosen.members:
        assert not found.model.alone(member).has_refit
    expected = sum(m.weight * np.mean(found.model.alone(m).fold_outputs(x), axis=0) for m in found.model.members)
    np.testing.assert_allclose(found.model.predict(x, ensemble=True), expected, rtol=1e-5, atol=1e-6)
    trained = Brackets.refits

    def diverged(*args):
        return {number: jax.tree.map(lambda a: a * np.nan, own) for number, own in trained(*args).items()}

    monkeypatch.setattr(Brackets, "refits", diverged)
    model = searched(LINE, **PADDED).model
    assert model.has_refit and not any(model.alone(member).has_refit for member in model.members)
    np.testing.assert_allclose(model.predict(x, ensemble=True), expected, rtol=1e-5, atol=1e-6)


def test_fitted_preprocessing_is_each_folds_own():
    def task(fixed):
        return studies.line_task(fixed)._replace(prepare=hw.standardize, prepare_y=hw.standardize)

    x, y = LINE.data.x_train, 40 * LINE.data.y_train + 3
    found = searched(replace(LINE, task=task, data=hw.Dataset(x, y)), **PADDED, refit=False)
    folds, each, values = found.networks.folds, by_hand(found.model, found.networks.folds, x), []
    for i, fold in enumerate(folds):
        mean = sum(m.weight * each[m.number][i] for m in found.model.members)
        values.append((mean - y[fold.validation]) ** 2 / y[fold.train].var())
    assert found.chosen.scores["loss"] == pytest.approx(float(np.mean(np.concatenate(values))), rel=1e-3)


# Files


def test_without_an_ensemble_files_are_what_they_were_and_with_one_the_trials_are(found, tmp_path):
    alone = hw.run_study(studies.TOY, out=tmp_path, **{**PADDED, "ensemble": None})
    assert (tmp_path / "trials.csv").read_bytes() == (found.folder / "trials.csv").read_bytes()
    assert "ensemble" not in alone.record["config"] and "search_ensemble" not in alone.record
    assert (
        alone.search_ensemble is None and alone.model.members == () and "search_ensemble_outputs" not in alone.histories
    )
    kept, of_all = (np.load(next(folder.glob("brackets/*/*.members.npz"))) for folder in (tmp_path, found.folder))
    assert kept["number"].shape == () and kept["leaf_0"].shape[0] == 3
    assert of_all["number"].tolist() == list(range(8)) and of_all["leaf_0"].shape[:2] == (8, 3)
    for name in kept.files:
        np.testing.assert_array_equal(kept[name], of_all[name][int(kept["number"])])
    assert found.ensemble == alone.ensemble and found.test == alone.test
    with pytest.raises(ValueError, match="holds a search with ensemble = None, not 3: give the old settings"):
        hw.run_study(studies.TOY, out=tmp_path, **PADDED)


def test_a_search_that_was_extended_and_one_that_lost_its_results_end_with_the_same_ensemble(tmp_path):
    at_once = hw.run_study(LINE, out=tmp_path / "at_once", **PADDED)
    small = hw.run_study(LINE, out=tmp_path / "more", **PADDED | {"num_trials": 4}, refit=False)
    assert {m.number for m in small.model.members} <= set(range(4)) and not small.model.has_refit
    for path in (tmp_path / "more").glob("brackets/*/*.members.npz"):
        path.unlink()  # as of a process that was killed
    (tmp_path / "more" / "results.json").unlink()
    more = hw.run_study(LINE, out=tmp_path / "more", **PADDED)
    assert more.search_ensemble == at_once.search_ensemble
    for name in ("trials.csv", "model.msgpack", "histories.npz"):
        assert (more.folder / name).read_bytes() == (at_once.folder / name).read_bytes(), name


def test_a_file_of_other_networks_is_damaged_and_named(tmp_path):
    hw.run_study(LINE, out=tmp_path, **PADDED)
    path = next(tmp_path.glob("brackets/*/*.members.npz"))
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"number": arrays["number"] + 100})
    with pytest.raises(ValueError, match=rf"{re.escape(path.name)} is damaged"):
        hw.run_study(LINE, out=tmp_path, **PADDED)


def test_page_and_printed_results_show_trials_weights_and_scores(found, deep, capsys):
    for results in (found, deep):
        page, entry = hw.write_report(results.folder, results.study).read_text(), results.search_ensemble
        text = re.sub("<[^>]*>", " ", page)
        for own in entry["trials"]:
            assert f"{own['weight']:.0%}" in text
        values = [entry[part][name] for part in ("out_of_fold", "best_out_of_fold", "test") for name in entry[part]]
        assert all(f'value="{value!r}"' in page for value in values if isinstance(value, float))
        assert f"ensemble of {len(entry['trials'])} trials: out of fold loss" in repr(results)
    progress.print_summary([found.record], found.folder)
    assert f"ensemble of {len(found.search_ensemble['trials'])} trials" in capsys.readouterr().out


def test_the_flag_and_its_mistakes():
    assert cli.parse(studies.TOY, None, ["--ensemble", "5"])[0].search.ensemble == 5
    for wrong, message in ((1, "ensemble= must be at least 2, got 1"), (True, "must be a whole number, got True")):
        with pytest.raises(ValueError, match=message):
            study_.run_config(studies.TOY, ensemble=wrong)


def smoothed(outputs, y):
    return losses.cross_entropy(outputs, y) - 0.1 * jax.nn.log_softmax(outputs).mean(axis=-1)


@pytest.mark.parametrize(
    "changed",
    [
        lambda task: task._replace(loss=smoothed),
        lambda task: task._replace(apply=lambda params, x, h: task.apply(params, x, h) @ jnp.ones((3, 4))),
    ],
    ids=["loss", "outputs"],
)
def test_trials_whose_outputs_can_not_be_combined_are_refused_at_once(changed, tmp_path):
    make, space = tabular.mlp(4, 3, layers=((4, 8),))
    x, y = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    study = hw.Study(
        "mixed",
        lambda fixed: changed(make(fixed)) if fixed["other"] else make(fixed),
        hw.Dataset(x, y),
        space | {"other": hw.Choice(False, True, static=True)},
        metrics={"accuracy": losses.accuracy},
        maximize="accuracy",
    )
    with pytest.raises(ValueError, match="^ensemble= can't combine the trials: a static hyperparameter changes"):
        hw.run_study(study, num_trials=4, num_epochs=1, ensemble=2, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Estimators

X, Y = load_breast_cancer(return_X_y=True)
X = StandardScaler().fit_transform(X)


def test_an_estimator_predicts_with_the_ensemble_of_its_search_and_can_be_pickled():
    given = {"n_iter": 6, "cv": 3, "max_iter": 6, "batch_size": 32, "random_state": 0, "refit": False}
    search = MLPClassifierCV(((4, 12),), learning_rate_init=(1e-3, 1e-1), scoring="neg_log_loss", ensemble=4, **given)
    search.fit(X, Y)
    probabilities = search.predict_proba(X)
    assert 1 < len(search._arrays[-1]) <= 4
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(search)).predict_proba(X), probabilities)
    of_best = search.set_params(ensemble=True).predict_proba(X)
    assert not np.allclose(of_best, probabilities, atol=1e-4)
    same = MLPClassifierCV(((4, 12),), learning_rate_init=(1e-3, 1e-1), scoring="neg_log_loss", ensemble=True, **given)
    np.testing.assert_allclose(same.fit(X, Y).predict_proba(X), of_best, rtol=1e-5)
