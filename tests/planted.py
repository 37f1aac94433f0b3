"""Plants forty faults in copies of the package, one at a time, and counts how many the tests catch.

    python tests/planted.py [NAME-PATTERN ...] [--tests DIR_OF_CHECKOUT] [--slow] [--all-tests]

For each fault the checkout is copied to a temporary folder, one line of the package is changed there, and the quick
tests of the files that should notice run. It takes long, so it is not part of the tests.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ENOUGH = 38  # faults that the tests must catch


class Fault(NamedTuple):
    """One line of the package that is wrong."""

    name: str  # what a user suffers
    file: str  # of the package
    old: str  # occurs once
    new: str
    tests: tuple[str, ...]  # files that should notice, the most likely first


FAULTS = [
    # Optimizers.
    Fault(
        "L2 shrinks the weights beside the gradient, as in adamw, and not through the optimizer",
        "core/optimizers.py",
        "optax.chain(optax.stateless(decay), rule, ",
        "optax.chain(rule, optax.stateless(decay), ",
        ("test_optimizers.py",),
    ),
    Fault(
        "Adam and RMSprop of a search have eps inside the root, so small gradients take smaller steps",
        "core/optimizers.py",
        "jnp.sqrt(s / square_correction) + 1e-8)",
        "jnp.sqrt(s / square_correction + 1e-8))",
        ("test_optimizers.py",),
    ),
    Fault(
        "RMSprop forgets ten times sooner than torch's",
        "core/optimizers.py",
        "(0.999, 0.0, 0.99)",
        "(0.999, 0.0, 0.9)",
        ("test_optimizers.py",),
    ),
    # Networks.
    Fault(
        "Padded units of a narrow network stay at sigmoid(0) and their weights learn",
        "models.py",
        "x, num_inputs = layers.mask_units(x, widths[i]), widths[i]",
        "num_inputs = widths[i]",
        ("test_models.py", "test_equivalence.py"),
    ),
    Fault(
        "The gradient of max-pooling goes to the last winner of a tie",
        "layers.py",
        "better = z[i] > best",
        "better = z[i] >= best",
        ("test_layers.py",),
    ),
    Fault(
        "A convolution has its padding after the image alone",
        "layers.py",
        "((1, 2 * (n - 1) + kernel_size - m, 0)",
        "((0, 2 * (n - 1) + kernel_size - m + 1, 0)",
        ("test_layers.py", "test_models.py"),
    ),
    # Folds and batches.
    Fault(
        "The last fold holds out all that the division leaves over",
        "core/folds.py",
        "_hold_out(np.arange(num_samples) % num_folds, order, num_folds)",
        "_hold_out(np.minimum(np.arange(num_samples) // (num_samples // num_folds), num_folds - 1), order, num_folds)",
        ("test_folds.py",),
    ),
    Fault(
        "The examples of a short last batch count less than those of a full one",
        "core/training.py",
        "divisor = jnp.where(weight > 0, weight, 1)",
        "divisor = jnp.asarray(batch.real.size)",
        ("test_plain_loop.py", "test_trees.py"),
    ),
    Fault(
        "Sample weights count in training and not in validation",
        "core/training.py",
        "batch = gather(task, data, index, len(index))",
        "batch = gather(task, data._replace(weights=None), index, len(index))",
        ("test_plain_loop.py",),
    ),
    Fault(
        "A moving average of the parameters keeps the short memory of its first update",
        "core/training.py",
        ", average.num_updates + 1)",
        ", average.num_updates)",
        ("test_averaging.py",),
    ),
    Fault(
        "A member stops early one epoch before its patience ends",
        "core/training.py",
        "number - best.epoch <= patience",
        "number - best.epoch < patience",
        ("test_plain_loop.py", "test_cross_validation.py"),
    ),
    # Keys.
    Fault(
        "All folds of a trial begin with the same parameters",
        "core/member_states.py",
        "jax.random.fold_in(jax.random.fold_in(key, number), fold)",
        "jax.random.fold_in(key, number)",
        ("test_plain_loop.py", "test_trees.py", "test_cross_validation.py", "test_population.py"),
    ),
    Fault(
        "All trials of a fold drop out the same units",
        "core/population.py",
        "jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)",
        "jax.vmap(jax.random.fold_in, (None, 0))(key, 0 * numbers)",
        ("test_randomness_and_state.py", "test_halving.py", "test_examples.py"),
    ),
    Fault(
        "Another seed changes the folds and not the order of the minibatches",
        "search/networks.py",
        "(search.seed,), per_call",
        "(0,), per_call",
        ("test_halving.py", "test_averaging.py", "test_brackets.py", "test_run.py"),
    ),
    # Rungs.
    Fault(
        "Halving keeps the trials with the lowest loss where an accuracy is to be maximized",
        "search/brackets.py",
        "(trial_score.sort_key(trial, self._study), trial.number)",
        '(trial.mean("loss"), trial.number)',
        ("test_halving.py", "test_run.py"),
    ),
    Fault(
        "Each rung begins with a new optimizer, and forgets the moments that it had",
        "core/member_states.py",
        "    return selected\n",
        "    kept = len(jax.tree.leaves(shapes.params))\n"
        "    return selected[:kept] + [0 * leaf for leaf in selected[kept:]]\n",
        ("test_population.py", "test_halving.py"),
    ),
    Fault(
        "All trials of a search are trained with the first value of a static hyperparameter",
        "search/jobs.py",
        "return networks.population(plan, network), trials",
        "return networks.population(plan, networks.widest), trials",
        ("test_brackets.py", "test_run.py", "test_halving.py"),
    ),
    Fault(
        "The ensemble has the network of the first fold as often as there are folds",
        "search/trainer.py",
        "np.array(a[i])",
        "np.array(a[0])",
        ("test_halving.py", "test_averaging.py"),
    ),
    # Devices.
    Fault(
        "A search takes all devices though fewer are asked for",
        "core/cost.py",
        "jax.devices()[:num_devices]\n",
        "jax.devices()\n",
        ("test_plan.py", "test_brackets.py"),
    ),
    Fault(
        "On a GPU trials train in its default TF32 where float32 is asked for",
        "search/jobs.py",
        "jax.default_matmul_precision(networks.search.precision)",
        "jax.default_matmul_precision(None)",
        ("test_brackets.py", "test_run.py"),
    ),
    # Files.
    Fault(
        "A result may be empty after the machine has crashed: it got its name before it was on the disk",
        "storage.py",
        "file.flush()\n            os.fsync(file.fileno())",
        "file.flush()",
        ("test_storage.py",),
    ),
    Fault(
        "Two runs train in one folder at the same time",
        "storage.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        ("test_storage.py", "test_run.py"),
    ),
    Fault(
        "After a kill in the middle of a record the next record of the journal goes on with the line before",
        "search/optuna_search.py",
        "os.truncate(journal, len(content) - len(rest))",
        "os.truncate(journal, len(content) - len(rest) - 1)",
        ("test_search.py",),
    ),
    Fault(
        "A job that goes on from its checkpoint has its losses and epochs, and new networks",
        "search/jobs.py",
        "return Stretch(saved, num_epochs,",
        "return Stretch([0 * leaf for leaf in saved], num_epochs,",
        ("test_brackets.py",),
    ),
    # Wrong input and how a command ends.
    Fault(
        "A NaN among the data is trained on",
        "core/array_checks.py",
        'array.dtype.kind in "fc" and not np.isfinite(array).all():',
        'array.dtype.kind in "fc" and np.isinf(array).any():',
        ("test_cross_validation.py", "test_study.py", "test_mistakes.py"),
    ),
    Fault(
        "A script that calls an experiment can't tell a wrong flag's exit code from a crash",
        "cli.py",
        "    return 2\n",
        "    return 1\n",
        ("test_cli.py",),
    ),
    Fault(
        "Text of a study shows as HTML in the tables of the page",
        "report/html.py",
        "return value if isinstance(value, Markup) else escape(str(value))",
        "return value if isinstance(value, str) else escape(str(value))",
        ("test_report.py", "test_plots.py"),
    ),
    # Tables and ranks.
    Fault(
        "The column of an accuracy's deviation in trials.csv is the loss's",
        "results/trials.py",
        'f"std_val_{name}": trial.std(name)}',
        'f"std_val_{name}": trial.std("loss")}',
        ("test_results.py", "test_run.py"),
    ),
    Fault(
        "The worst trial is the best where a metric is to be maximized",
        "search/trial_score.py",
        "-mean if study.maximize else mean",
        "mean",
        ("test_results.py", "test_search.py", "test_study.py"),
    ),
    Fault(
        "A trial of which one fold diverged is complete",
        "search/trial_score.py",
        'np.isfinite(trial.defined("loss")).all() and np.isfinite(trial.defined(study.score)).all()',
        'np.isfinite(trial.defined("loss")).any() and np.isfinite(trial.defined(study.score)).any()',
        ("test_search.py", "test_halving.py", "test_run.py"),
    ),
    # The refit and the test set.
    Fault(
        "The refit leaves out the last training sample",
        "search/networks.py",
        "np.arange(len(jax.tree.leaves(self.data.x_train)[0])), np.arange(0)",
        "np.arange(len(jax.tree.leaves(self.data.x_train)[0]) - 1), np.arange(0)",
        ("test_averaging.py", "test_run.py", "test_experiments.py"),
    ),
    Fault(
        "The refit has the initial parameters and the key of the first fold, and not those of fold k",
        "search/networks.py",
        "first_fold=len(self.folds))",
        "first_fold=0)",
        ("test_averaging.py", "test_run.py", "test_experiments.py"),
    ),
    Fault(
        "The ensemble's loss and accuracy on the test set are the refit's",
        "results/testing.py",
        'trained_model.score(model, arrays["ensemble_outputs"], y_test)',
        'trained_model.score(model, arrays["test_outputs"], y_test)',
        ("test_halving.py", "test_run.py", "test_results.py"),
    ),
    Fault(
        "The confusion matrix has a row for each predicted class",
        "results/evaluation.py",
        "np.add.at(counts, (y, np.argmax(outputs, axis=1)), 1)",
        "np.add.at(counts, (np.argmax(outputs, axis=1), y), 1)",
        ("test_evaluation.py",),
    ),
    # What is asked, and drawn.
    Fault(
        "A search has as many folds as the study says, whatever num_folds is given",
        "search/study_data.py",
        "num_folds=search.num_folds if",
        "num_folds=study.num_folds if",
        ("test_study.py",),
    ),
    Fault(
        "A splitter that keeps groups together is not given them",
        "search/study_data.py",
        "        groups=data.groups,",
        "        groups=None,",
        ("test_study.py",),
    ),
    Fault(
        "A choice narrowed to sgd and rmsprop trains adam and sgd",
        "search/space.py",
        "r.values.index(value)",
        "r.among.index(value)",
        ("test_space.py", "test_search.py"),
    ),
    Fault(
        "A learning rate whose range is narrowed is no longer drawn on its logarithmic scale",
        "search/space_text.py",
        'return replace(declared, low=low, high=high, **({} if step is None else {"step": step}))',
        "return type(declared)(low, high)",
        ("test_space.py", "test_cli.py"),
    ),
    # The homework's data.
    Fault(
        "A file of Fashion-MNIST that was edited is taken where it is not gzipped",
        "data/fashion_mnist.py",
        "if (sha256 := hashlib.sha256(data).hexdigest()) != file.sha256:",
        "if is_gzip and (sha256 := hashlib.sha256(data).hexdigest()) != file.sha256:",
        ("test_fashion_mnist.py",),
    ),
    Fault(
        "A 1_0 in a CSV file is read as 10",
        "data/regression.py",
        ' or "_" in "".join(row):',
        ":",
        ("test_regression_data.py",),
    ),
]


def main() -> None:
    """Plants the faults whose names have one of the patterns in them, all if there is none."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("patterns", nargs="*", metavar="NAME-PATTERN")
    parser.add_argument("--tests", type=Path, default=Path(__file__).parent.parent, help="the checkout to copy")
    parser.add_argument("--slow", action="store_true", help="then also the slow tests of a fault's files")
    parser.add_argument("--all-tests", action="store_true", help="then also the quick tests of all files")
    asked = parser.parse_args()
    chosen = [f for f in FAULTS if not asked.patterns or any(re.search(p, f.name, re.I) for p in asked.patterns)]
    for fault in chosen:
        if (count := (asked.tests / "hw1jax" / fault.file).read_text().count(fault.old)) != 1:
            sys.exit(f"error: hw1jax/{fault.file} has {fault.old!r} {count} times, not once ({fault.name})")
    caught = 0
    for fault in chosen:
        with tempfile.TemporaryDirectory(prefix="planted-") as folder:
            begin, test = time.monotonic(), first_failure(fault, asked, Path(folder))
        caught += test is not None
        print(f"{fault.name}: {f'caught by {test}' if test else 'NOT CAUGHT'} in {time.monotonic() - begin:.0f} s")
        sys.stdout.flush()
    print(f"{caught} of {len(chosen)} faults are caught")
    sys.exit(caught < min(ENOUGH, len(chosen)))


def first_failure(fault: Fault, asked: argparse.Namespace, copy: Path) -> str | None:
    """The test that fails in a copy of the checkout with the fault; None if all pass."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=asked.tests, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (asked.tests / name).is_file():  # else it was removed since the last commit
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(asked.tests / name, copy / name)
    changed = copy / "hw1jax" / fault.file
    changed.write_text(changed.read_text().replace(fault.old, fault.new))
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    where = [sys.executable, "-c", "import hw1jax; print(hw1jax.__file__)"]
    found = subprocess.run(where, cwd=copy / "tests", env=environment, check=True, capture_output=True, text=True)
    if not Path(found.stdout).is_relative_to(copy):
        sys.exit(f"error: the tests would import {found.stdout.strip()}, which has no fault")
    files = [f"tests/{name}" for name in fault.tests if (copy / "tests" / name).exists()]
    runs = [(files, "not slow")] if files else []
    runs += [(files, "slow")] if files and asked.slow else []
    runs += [([], "not slow")] if asked.all_tests else []
    for paths, marked in runs:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-m", marked, "-n", "0", *paths]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        if done.returncode not in (0, 5):  # 5: no test is chosen
            failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - |$)", done.stdout, re.MULTILINE)
            return failed[1] if failed else f"pytest, which ends with {done.returncode}: {done.stderr[-200:]}"
    return None


if __name__ == "__main__":
    main()
