"""The test of a run's networks: outputs on what the folds held out and on the test set, and scores in the record."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hw1jax.core import folds, tasks
from hw1jax.data import Dataset
from hw1jax.results import evaluation, run_folder, trained_model
from hw1jax.results.trained_model import Model
from hw1jax.search.networks import Networks
from hw1jax.search.trial_score import TrialScore

SCORED_AGAIN = 0.02  # relative tolerance between a network's loss in the search and alone, in any precision
LARGEST_KEPT = 2**26  # bytes of out-of-fold outputs in histories.npz; larger ones are computed where they are needed


def out_of_fold(model: Model, best: TrialScore, networks: Networks) -> dict[str, Any]:
    """The fold networks' outputs on what they held out, for histories.npz; nothing for trees and large arrays.

    Raises:
      ValueError: the losses of these outputs aren't those of the search.
    """
    x = networks.data.x_train
    outputs = model.held_out(networks.folds, x)
    _check(model, best, networks, model.held_out(networks.folds, x, of_loss=True) if model.task.prepare_y else outputs)
    together = folds.out_of_fold(networks.folds, outputs, len(jax.tree.leaves(x)[0]))
    small = isinstance(together, np.ndarray) and together.nbytes <= LARGEST_KEPT
    return {"out_of_fold_outputs": together} if small else {}


def outputs(model: Model, data: Dataset) -> dict[str, Any]:
    """Outputs on the test set by names of histories.npz: of the refit, the fold networks, and along a scalar input."""
    arrays = {}
    if model.has_refit:
        arrays["test_outputs"] = model.predict(data.x_test)
    if model.has_refit and len(curve_x := evaluation.curve_inputs(data, arrays["test_outputs"])):
        arrays |= {"curve_x": curve_x, "curve_outputs": model.predict(curve_x[:, None])[:, 0]}
        arrays["curve_fold_outputs"] = np.stack(model.fold_outputs(curve_x[:, None]))[:, :, 0]
    if model.is_finite and model.has_ensemble:
        arrays["ensemble_outputs"] = model.predict(data.x_test, ensemble=True)
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


def _check(model: Model, best: TrialScore, networks: Networks, outputs: Sequence[Any]) -> None:
    """Raises a ValueError unless the best trial's fold networks have the losses of the search.

    They may be cut out of wider networks, and are evaluated in another program. `outputs`: of each on what it held
    out, as the loss takes them.
    """
    data, losses = networks.data, best.defined("loss")
    for i, (fold, own, (_, state)) in enumerate(zip(networks.folds, outputs, model.folds, strict=True)):
        y, weights = jax.tree.map(lambda a: a[fold.validation], (data.y_train, data.weights))  # noqa: B023
        y = tasks.prepared_y(model.task, state.statistics if isinstance(state, tasks.Fit) else None, y)
        loss = float(np.average(np.asarray(model.task.loss(own, y), np.float64), weights=weights))
        if np.isfinite(loss) and not np.isclose(loss, losses[i], rtol=SCORED_AGAIN, atol=1e-5):
            raise ValueError(
                f"trial {best.number} has a validation loss of {losses[i]:.6g} in fold {i}, and the "
                f"network that is kept of it {loss:.6g}: it depends on more than parameters, state and inputs"
            )


def _failure(model: Model, test: dict[str, Any] | None) -> str | None:
    """The reason why there is no refitted model or its test loss isn't finite; None if nothing failed."""
    if not model.is_finite:
        return "the refit of the best trial diverged; search smaller learning rates"
    finite = test is None or test["loss"] is not None
    return None if finite else "the test loss is not finite: outputs or labels are too large"
