"""The test of a run's networks: outputs on what the folds held out and on the test set, and scores in the record."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hw1jax.core import folds, tasks
from hw1jax.data import Dataset
from hw1jax.results import evaluation, run_folder, trained_model
from hw1jax.results.ensembles import Chosen
from hw1jax.results.trained_model import Model
from hw1jax.search import space_text
from hw1jax.search.networks import Networks
from hw1jax.search.trial_score import TrialScore

SCORED_AGAIN = 0.02  # relative tolerance between a network's loss in the search and alone, in any precision
LARGEST_KEPT = 2**24  # bytes of out-of-fold outputs in histories.npz; larger ones are computed where they are needed


def out_of_fold(model: Model, best: TrialScore, networks: Networks) -> dict[str, Any]:
    """The fold networks' outputs on what they held out, for histories.npz; nothing for trees and large arrays.

    Raises:
      ValueError: the losses of these outputs aren't those of the search.
    """
    splits, x, kept = networks.folds, networks.data.x_train, []
    num_samples = len(jax.tree.leaves(x)[0])
    of_loss = model.held_out(splits, x, of_loss=True) if model.task.prepare_y else None
    for i, outputs in enumerate(model.held_out(splits, x)):  # all of them may not fit into the memory
        _check(model, best, networks, i, next(of_loss) if of_loss else outputs)
        if isinstance(outputs, np.ndarray) and num_samples * outputs[:1].nbytes <= LARGEST_KEPT:
            kept.append(outputs)
    return {"out_of_fold_outputs": folds.out_of_fold(splits, kept, num_samples)} if kept else {}


def outputs(model: Model, data: Dataset) -> dict[str, Any]:
    """Outputs on the test set by names of histories.npz: of the refit, the fold networks, and along a scalar input."""
    arrays = {}
    if model.has_refit:
        arrays["test_outputs"] = model.predict(data.x_test)
    if model.has_refit and len(curve_x := evaluation.curve_inputs(data, arrays["test_outputs"])):
        arrays |= {"curve_x": curve_x, "curve_outputs": model.predict(curve_x[:, None])[:, 0]}
        arrays["curve_fold_outputs"] = np.stack(model.fold_outputs(curve_x[:, None]))[:, :, 0]
    if model.is_finite and model.has_ensemble:
        arrays["ensemble_outputs"] = model.fold_ensemble(data.x_test)
    if model.members:
        arrays["search_ensemble_outputs"] = model.predict(data.x_test, ensemble=True)
    return arrays


def scores(
    model: Model, y_test: Any, best: TrialScore, arrays: Mapping[str, Any], train_loss: np.ndarray
) -> dict[str, Any]:
    """The entries "refit", "test" and "ensemble" of the record.

    `arrays` are those of `outputs` and the refit's losses, `train_loss` [fold] the best trial's last.
    """
    test, ensemble, warning = None, None, None
    if "test_outputs" in arrays:
        test = trained_model.score(model, arrays["test_outputs"], y_test)
    if "ensemble_outputs" in arrays:
        ensemble = trained_model.score(model, arrays["ensemble_outputs"], y_test)
    refit_loss = float(arrays["refit_train_loss"][-1]) if model.has_refit else np.nan
    if model.has_refit and model.is_finite:
        warning = evaluation.refit_warning(refit_loss, train_loss)
        warning = warning or evaluation.test_warning(test["loss"] if test else None, best.defined("loss"))
    refit = {
        "state": "skipped" if not model.has_refit else "complete" if model.is_finite else "diverged",
        "failure": _failure(model, test),
        "train_loss": run_folder.finite(refit_loss),
        "folds_train_loss": run_folder.finite(train_loss.mean()),
        "warning": warning,
    }
    if best.refit_epochs is not None and model.has_refit:
        refit["num_epochs"] = best.refit_epochs
    return {"refit": refit, "test": test, "ensemble": ensemble}


def of_search(chosen: Chosen, model: Model, y_test: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The entry "search_ensemble" of the record; arguments as of `scores`."""
    tested = None
    if "search_ensemble_outputs" in arrays:
        tested = trained_model.score(model, arrays["search_ensemble_outputs"], y_test)
    trials = [
        {"number": member.number, "weight": member.weight, "params": space_text.draw_to_json(member.draw)}
        for member in chosen.members
    ]
    both = {"out_of_fold": chosen.scores, "best_out_of_fold": chosen.of_best}
    finite = {key: {name: run_folder.finite(value) for name, value in own.items()} for key, own in both.items()}
    return {"trials": trials, **finite, "test": tested}


def _check(model: Model, best: TrialScore, networks: Networks, fold: int, outputs: Any) -> None:
    """Raises a ValueError unless the outputs of a fold's network have the loss of the search.

    It may be cut out of a wider network, and is evaluated in another program. `outputs`: as the loss takes them.
    """
    data, expected, state = networks.data, best.defined("loss")[fold], model.folds[fold][1]
    y, weights = jax.tree.map(lambda a: a[networks.folds[fold].validation], (data.y_train, data.weights))
    y, outputs = jax.tree.map(jnp.asarray, (y, outputs))
    y = tasks.prepared_y(model.task, state.statistics if isinstance(state, tasks.Fit) else None, y)
    loss = float(np.average(np.asarray(model.task.loss(outputs, y), np.float64), weights=weights))
    if np.isfinite(loss) and not np.isclose(loss, expected, rtol=SCORED_AGAIN, atol=1e-5):
        raise ValueError(
            f"trial {best.number} has a validation loss of {expected:.6g} in fold {fold}, and the network that is kept "
            f"of it {loss:.6g}: it depends on more than parameters, state and inputs"
        )


def _failure(model: Model, test: dict[str, Any] | None) -> str | None:
    """The reason why there is no refitted model or its test loss isn't finite; None if nothing failed."""
    if not model.is_finite:
        return "the refit of the best trial diverged; search smaller learning rates"
    finite = test is None or test["loss"] is not None
    return None if finite else "the test loss is not finite: outputs or labels are too large"
