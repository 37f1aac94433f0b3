"""The test of a run's networks: their outputs on the test set, and the scores in its record."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hw1jax.data import Dataset
from hw1jax.results import evaluation, run_folder, trained_model
from hw1jax.results.trained_model import Model
from hw1jax.search.trial_score import TrialScore


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
    return {"refit": refit, "test": test, "ensemble": ensemble}


def _failure(model: Model, test: dict[str, Any] | None) -> str | None:
    """The reason why there is no refitted model or its test loss isn't finite; None if nothing failed."""
    if not model.is_finite:
        return "the refit of the best trial diverged; search smaller learning rates"
    finite = test is None or test["loss"] is not None
    return None if finite else "the test loss is not finite: outputs or labels are too large"
