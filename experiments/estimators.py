"""Measures the estimators of `hw1jax.sklearn` beside scikit-learn's searches of its own networks.

    python experiments/estimators.py [--quick] [--data NAME ..] [--out DIR] [--help]

Both sides get the same samples in float32, folds, distributions, numbers of trials and epochs, and batches; their draws
differ. A search runs in a process of its own, whose seconds include imports, the refit and the test. hw1jax runs first
with an empty cache of compiled programs, then with what that process has left in it.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from scipy.stats import loguniform, randint
from sklearn import datasets
from sklearn.compose import TransformedTargetRegressor
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import HalvingRandomSearchCV, KFold, RandomizedSearchCV, StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

SPACE = {  # one hidden layer
    "hidden_layer_sizes": randint(10, 101),
    "alpha": loguniform(1e-6, 1e-1),
    "learning_rate_init": loguniform(1e-4, 1e-1),
}
SMALL = {"trials": 27, "epochs": 81, "folds": 5, "seeds": [0, 1, 2]}
DATA: dict[str, dict[str, Any]] = dict.fromkeys(("digits", "breast_cancer", "diabetes"), SMALL)
DATA |= {"diamonds": {"trials": 27, "epochs": 9, "folds": 3, "seeds": [0]}}
QUICK = {"trials": 4, "epochs": 2, "seeds": [0]}
FORMS = {"scikit-learn": False, "hw1jax, nothing compiled yet": True, "hw1jax": True}  # {name: True if it is ours}


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(x float32 [sample, feature], y: int classes or float numbers)."""
    if name != "diamonds":
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        return x.astype(np.float32), y
    try:
        from plotnine.data import diamonds
    except ImportError:
        sys.exit("error: the diamonds are in a package of the extra peers: pip install '.[peers]'")
    table = diamonds.assign(**{name: diamonds[name].cat.codes for name in ("cut", "color", "clarity")})
    return table.drop(columns="price").to_numpy(np.float32), table["price"].to_numpy(np.float32)


def their_search(classes: bool, halving: bool, trials: int, epochs: int, **shared: Any) -> Any:
    """scikit-learn's search, with a process for each core."""
    net: Any = MLPClassifier() if classes else MLPRegressor()
    net.set_params(max_iter=epochs, tol=0, n_iter_no_change=epochs, random_state=shared["random_state"])
    prefix = "net__" if classes else "net__regressor__"
    net = net if classes else TransformedTargetRegressor(net, transformer=StandardScaler())
    pipeline = Pipeline([("scale", StandardScaler()), ("net", net)])
    space, shared = {prefix + name: values for name, values in SPACE.items()}, shared | {"n_jobs": -1}
    if not halving:
        return RandomizedSearchCV(pipeline, space, n_iter=trials, **shared)
    shared |= {"resource": f"{prefix}max_iter", "min_resources": max(1, epochs // 27), "max_resources": epochs}
    return HalvingRandomSearchCV(pipeline, space, n_candidates=trials, return_train_score=False, **shared)


def our_search(classes: bool, halving: bool, trials: int, epochs: int, **shared: Any) -> Any:
    from hw1jax.sklearn import MLPClassifierCV, MLPRegressorCV  # scikit-learn's process doesn't import JAX

    search = MLPClassifierCV if classes else MLPRegressorCV
    return search(**SPACE, n_iter=trials, max_iter=epochs, halving=3 if halving else None, **shared)


def run(file: str, ours: bool, halving: bool, seed: int, trials: int, epochs: int, folds: int) -> dict[str, float]:
    """Searches and tests, in the process that calls it."""
    with np.load(file, allow_pickle=False) as data:
        x, y = data["x"], data["y"]
    classes = y.dtype.kind == "i"
    x, x_test, y, y_test = train_test_split(x, y, random_state=0, stratify=y if classes else None)
    splitter = (StratifiedKFold if classes else KFold)(folds, shuffle=True, random_state=seed)
    search = (our_search if ours else their_search)(classes, halving, trials, epochs, cv=splitter, random_state=seed)
    search.fit(x, y)
    return {"cv_score": search.best_score_, "test_score": search.score(x_test, y_test)}


def measure(cache: str, *how: Any) -> dict[str, float]:
    """`run` in a process of its own -> its results, and the seconds of the process and of the processors."""
    own = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    own |= {"XDG_CACHE_HOME": cache, "PYTHONWARNINGS": "ignore"}  # scikit-learn's: not converged
    before = np.array(os.times())
    done = subprocess.run([sys.executable, __file__, json.dumps(how)], env=own, stdout=subprocess.PIPE, check=True)
    *_, user, system, seconds = (np.array(os.times()) - before).tolist()  # user and system: of processes that ended
    spent = {"seconds": seconds, "cpu_seconds": user + system, "load": os.getloadavg()[0]}
    return spent | json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures the searches in turn, and writes estimators.json after each seed of a data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--out", type=Path, default=Path("runs", "estimators"), help="results folder")
    parser.add_argument("--quick", action="store_true", help="four trials of two epochs with one seed")
    options = parser.parse_args()
    from hw1jax import environment, storage

    found = {name: DATA[name] | (QUICK if options.quick else {}) | {"runs": {}} for name in options.data}
    for seed, name in itertools.product(range(3), found):
        (x, y), work = load(name), found[name]
        work |= {"samples": len(x), "features": x.shape[1]}
        for halving in (False, True) if seed in work["seeds"] else ():
            with tempfile.TemporaryDirectory() as folder:
                np.savez(Path(folder, "data.npz"), x=x, y=y)
                how = (halving, seed, *(work[size] for size in ("trials", "epochs", "folds")))
                for form, ours in FORMS.items():
                    print(f"{name}: {form}, {halving=}, {seed=}", file=sys.stderr)
                    runs = work["runs"].setdefault(form + ", halving" * halving, [])
                    runs.append(measure(folder, f"{folder}/data.npz", ours, *how))
            results = {"environment": environment.describe(), "sklearn": sklearn.__version__, "data": found}
            storage.write_json(options.out / "estimators.json", results)


if __name__ == "__main__":
    print(json.dumps(run(*json.loads(sys.argv[1])))) if sys.argv[1:2] and sys.argv[1][0] == "[" else main()
