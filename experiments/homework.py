"""The homework report that the three studies reproduce, and how they differ from it."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hw1jax import Halving, Reference, Results, Study
from hw1jax.report import comparison, html
from hw1jax.results import run_folder

SEEDS = Path(__file__).parent / "results" / "seeds.json"
# Halving searches the report's spaces with more trials in about the time that the report's own numbers of trials take.
NUM_TRIALS = {"regression": 150, "fashion_mlp": 54, "fashion_cnn": 48}
SETTINGS = {"halving": Halving(3), "averaging": 0.99, "ensemble": 3}
BETTER = {name: {**SETTINGS, "num_trials": n} for name, n in NUM_TRIALS.items()}


def report(params: Mapping[str, Any], test: Mapping[str, float], data: str = "") -> Reference:
    """The report's results in one of its studies: its best hyperparameters, and their loss and accuracy.

    `data` describes the report's data if they differ from the study's.
    """
    return Reference(
        "the report",
        params=params,
        test=test,
        about="the homework report that hw1jax reproduces",
        data=data,
        notes=(
            "The report prints a sum of squares where a mean is meant; losses here are means over the examples.",
            "Its tables list activations on the input rows; here an activation follows a hidden layer.",
            "Its learning profiles plot the test loss of each epoch. Here only the refitted best trial is evaluated on "
            "the test set, once; profiles show the training and validation losses of the best trial's folds and the "
            "refit's training loss.",
            "Its table of the convolutional net lists no pooling, but its activation profile of the second convolution "
            "is 11 x 11. Only 2 x 2 max-pooling after each convolution gives that size (28, 27, 13, 11, 5).",
        ),
    )


def noise(results: Results) -> str | list[str]:
    """The least expected loss of any network on the embedded data, as text for the page."""
    if any(results.record["inputs"].values()):
        return []  # the user's own data
    return (
        "The targets have normal noise with standard deviation 0.5 in the training set and 0.1 in the test set. So on "
        "average no network has a mean squared error below 0.25 on the validation parts of its folds, or below 0.01 on "
        "the test set, and the two are not comparable."
    )


def ways(study: Study) -> list[Study]:
    """The searches that answer a study's three questions, see `questions`; its own is the last."""
    name, title = study.name, study.shown
    reported = replace(study, name=f"{name}_as_reported", title=f"{title}, the report's hyperparameters")
    halving = replace(study, name=f"{name}_halving", title=f"{title}, halving and an ensemble", **BETTER[name])
    return [reported, halving, study]


QUESTIONS = {
    "_as_reported": "Is it reproduced? The report's hyperparameters, trained here",
    "": "How lucky was it? Its search",
    "_halving": "What should one do instead? Halving and an ensemble",
}


def questions(results: Results) -> list[html.Item]:
    """Three questions on a study, and the runs of `reproduce.py` that answer them, if there are any beside this one."""
    name, runs = results.study.name, []
    if name not in NUM_TRIALS:  # one of the searches that answer them
        return []
    for suffix, question in QUESTIONS.items():
        with contextlib.suppress(ValueError):  # it hasn't run
            record = run_folder.read_record(results.folder.parent / f"{name}{suffix}")
            if record["config"]["data_sha256"] == results.record["config"]["data_sha256"]:
                runs.append((question, record))
    tests = [seed["test"] for seed in json.loads(SEEDS.read_text())[name]["report"]]
    shown = [f"{t['accuracy']:.1%}" if "accuracy" in t else f"{t['loss']:.3f}" for t in tests]
    what = "accuracy" if "accuracy" in tests[0] else "loss"
    luck = f"With seeds 0 to {len(tests) - 1}, the report's search ends at a test {what} of {', '.join(shown)}."
    return [comparison.headlines(runs), *([luck] if results.has_usual_data else [])] if len(runs) > 1 else []
