"""Measures the estimators of `hw1jax.sklearn` beside searches of scikit-learn's networks and of pytabkit's RealMLP.

    python experiments/estimators.py [--quick] [--data NAME ..] [--out DIR] [--help]

Both sides get the same samples in float32, folds, distributions, numbers of trials and epochs, and batches; their draws
differ. A search runs in a process of its own, whose seconds include imports, the refit and the test. hw1jax runs first
with an empty cache of compiled programs, then with what that process has left in it. RealMLP is skipped where pytabkit
is not installed.
"""

import argparse
import importlib.util
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
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import (
    HalvingRandomSearchCV,
    KFold,
    ParameterSampler,
    RandomizedSearchCV,
    StratifiedKFold,
    train_test_split,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.parallel import Parallel, delayed

SPACE = {  # one hidden layer
    "hidden_layer_sizes": randint(10, 101),
    "alpha": loguniform(1e-6, 1e-1),
    "learning_rate_init": loguniform(1e-4, 1e-1),
}
SMALL = {"trials": 27, "epochs": 81, "folds": 5, "seeds": [0, 1, 2]}
DATA: dict[str, dict[str, Any]] = dict.fromkeys(("digits", "breast_cancer", "diabetes"), SMALL)
DATA |= {"diamonds": {"trials": 27, "epochs": 9, "folds": 3, "seeds": [0]}}
QUICK = {"trials": 4, "epochs": 2, "seeds": [0]}
SKLEARN, COLD, WARM, REALMLP = "scikit-learn", "hw1jax, nothing compiled yet", "hw1jax", "RealMLP of pytabkit, seed 0"


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


class RealMLPSearch:
    """A random search of RealMLP, which trains the folds of one configuration at once; a process for each core.

    Its network embeds each number, and keeps the epoch with the best score of a fold. There is no refit: the ensemble
    of the best configuration's folds predicts.
    """

    def __init__(self, classes: bool, halving: bool, trials: int, epochs: int, *, cv: Any, random_state: int):
        assert not halving, "RealMLP can't go on with a network"
        self.classes, self.trials, self.epochs, self.cv, self.random_state = classes, trials, epochs, cv, random_state

    def _fitted(self, draw: dict[str, Any], held_out: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, Any]:
        """(score on what the folds hold out, model) of one configuration."""
        from pytabkit import RealMLP_TD_Classifier, RealMLP_TD_Regressor

        model: Any = (RealMLP_TD_Classifier if self.classes else RealMLP_TD_Regressor)(
            hidden_sizes=[int(draw["hidden_layer_sizes"])],
            wd=draw["alpha"],
            lr=draw["learning_rate_init"],
            n_cv=len(held_out),
            n_epochs=self.epochs,
            batch_size=200,
            random_state=self.random_state,
            device="cpu",
            n_threads=1,
        )
        model.fit(x, y, val_idxs=held_out)
        score = accuracy_score if self.classes else r2_score
        outputs = zip(model.predict_ensemble(x), held_out, strict=True)
        return float(np.mean([score(y[own], fold[own]) for fold, own in outputs])), model

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        held_out = [own for _, own in self.cv.split(x, y)]
        equal = np.stack([own[: min(map(len, held_out))] for own in held_out])  # it takes no others
        draws = ParameterSampler(SPACE, self.trials, random_state=self.random_state)
        found = Parallel(n_jobs=-1)(delayed(self._fitted)(draw, equal, x, y) for draw in draws)
        self.best_score_, self._best = max(found, key=lambda one: one[0])

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        return self._best.score(x, y)


SEARCHES: dict[str, Any] = {SKLEARN: their_search, COLD: our_search, WARM: our_search, REALMLP: RealMLPSearch}


def forms(halving: bool, seed: int) -> list[str]:
    """The forms that run: RealMLP with one seed, without halving, and where it is installed."""
    has_realmlp = not halving and seed == 0 and importlib.util.find_spec("pytabkit") is not None
    return [form for form in SEARCHES if form != REALMLP or has_realmlp]


def run(file: str, form: str, halving: bool, seed: int, trials: int, epochs: int, folds: int) -> dict[str, float]:
    """Searches and tests, in the process that calls it."""
    with np.load(file, allow_pickle=False) as data:
        x, y = data["x"], data["y"]
    classes = y.dtype.kind == "i"
    x, x_test, y, y_test = train_test_split(x, y, random_state=0, stratify=y if classes else None)
    splitter = (StratifiedKFold if classes else KFold)(folds, shuffle=True, random_state=seed)
    search = SEARCHES[form](classes, halving, trials, epochs, cv=splitter, random_state=seed)
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

    if REALMLP not in forms(False, 0):
        print("skipped: RealMLP: pytabkit is not installed: pip install '.[peers]' brings it", file=sys.stderr)
    found = {name: DATA[name] | (QUICK if options.quick else {}) | {"runs": {}} for name in options.data}
    for seed, name in itertools.product(range(3), found):
        (x, y), work = load(name), found[name]
        work |= {"samples": len(x), "features": x.shape[1]}
        for halving in (False, True) if seed in work["seeds"] else ():
            with tempfile.TemporaryDirectory() as folder:
                np.savez(Path(folder, "data.npz"), x=x, y=y)
                how = (halving, seed, *(work[size] for size in ("trials", "epochs", "folds")))
                for form in forms(halving, seed):
                    print(f"{name}: {form}, {halving=}, {seed=}", file=sys.stderr)
                    runs = work["runs"].setdefault(form + ", halving" * halving, [])
                    runs.append(measure(folder, f"{folder}/data.npz", form, *how))
            versions = {"sklearn": sklearn.__version__, "pytabkit": environment.version_of("pytabkit")}
            results = {"environment": environment.describe(), **versions, "data": found}
            storage.write_json(options.out / "estimators.json", results)


if __name__ == "__main__":
    print(json.dumps(run(*json.loads(sys.argv[1])))) if sys.argv[1:2] and sys.argv[1][0] == "[" else main()
