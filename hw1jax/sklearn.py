"""Estimators with scikit-learn's interface that search hyperparameters by cross-validation, all networks at once.

They stand where `RandomizedSearchCV(MLPClassifier(), ...)` stands: in a `Pipeline`, in `cross_val_score`, under
`TransformedTargetRegressor`, in `clone` and in joblib's files.
"""

import copy
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import get_scorer
from sklearn.model_selection import check_cv
from sklearn.utils import ClassifierTags, RegressorTags, check_random_state, get_tags
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from hw1jax import environment, run, sklearn_words, tabular
from hw1jax.core import losses, metrics, tasks
from hw1jax.core.array_checks import as_arrays, check_number
from hw1jax.core.tasks import Metric
from hw1jax.data import Dataset
from hw1jax.progress import Progress
from hw1jax.results import evaluation
from hw1jax.results import trials as trials_
from hw1jax.results.trained_model import Model
from hw1jax.search import study
from hw1jax.search.space import Space
from hw1jax.search.study import Halving, Study

SCORES: dict[str, tuple[Metric, bool]] = {  # scikit-learn's names: (metric, True if it is maximized)
    "accuracy": (losses.accuracy, True),
    "balanced_accuracy": (metrics.balanced_accuracy, True),
    "roc_auc": (metrics.roc_auc, True),
    "roc_auc_ovr": (metrics.roc_auc, True),
    "average_precision": (metrics.average_precision, True),
    "f1": (metrics.f1, True),
    "f1_macro": (metrics.f1_macro, True),
    "f1_micro": (metrics.f1_micro, True),
    "f1_weighted": (metrics.f1_weighted, True),
    "neg_log_loss": (losses.cross_entropy, False),
    "r2": (metrics.r2, True),
    "neg_mean_squared_error": (losses.squared_error, False),
    "neg_root_mean_squared_error": (metrics.rmse, False),
}
OF_NUMBERS = ("r2", "neg_mean_squared_error", "neg_root_mean_squared_error")  # the others are of classes


@dataclass(eq=False, repr=False, kw_only=True)
class _Search(BaseEstimator):
    """The settings of a search, its results and its predictions; subclasses give the network and the space."""

    n_iter: int = 25
    cv: Any = None
    scoring: Any = None
    refit: bool = True
    max_iter: int = 50
    batch_size: int | str = "auto"
    halving: Halving | int | None = None
    averaging: float | None = None
    early_stopping: int | None = None
    ensemble: bool | int = False
    random_state: Any = None
    verbose: int = 0
    out: Any = None

    _words = sklearn_words.ARGUMENTS

    def _network(self) -> tuple[Any, Space]:
        """(task, space) for the data that were given to `fit`."""
        raise NotImplementedError

    def _named(self, draw: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's hyperparameters in the estimator's own words."""
        return dict(draw)

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Any:
        """Searches, and trains the best network on all samples.

        Args:
          X: numbers [sample, feature], also a data frame.
          y: [sample], classes of any kind or numbers; numbers [sample, target].
          sample_weight: [sample], at least 0: weights in training and in the scores.
          groups: [sample], for a splitter in `cv` that keeps groups together.
        """
        numeric = {} if is_classifier(self) else {"y_numeric": True, "multi_output": True}
        vars(self).pop("_settings", None)  # it is not fitted, until this fit has ended
        sklearn_words.check_labels(y)
        X, y = self._validated(X, y=y, ensure_min_samples=2, **numeric)
        X = as_arrays(X, "X", nan=True)
        if X.dtype.kind in "iu" and isinstance(self, _MLP):
            as_arrays(X.astype(np.float64), "X")  # is checked as what the network computes with
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        return self._search(X, self._targets(y, weights), weights, groups)

    def _validated(self, X: Any, **more: Any) -> Any:
        """scikit-learn's `validate_data`; of a data frame, errors name the column."""
        if hasattr(X, "columns"):
            as_arrays(X, "X", nan=True)
        finite = "allow-nan" if get_tags(self).input_tags.allow_nan else True
        return validate_data(self, X, ensure_all_finite=finite, **more)

    def _targets(self, y: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """y as the network's loss takes it: indices of classes, int [sample], or numbers [sample, target]."""
        if not is_classifier(self):
            self._is_column = y.ndim == 1
            if y.dtype.kind not in "biuf":
                raise ValueError(f"y must be numbers, got {y.dtype}: classes are for a classifier")
            y = y.reshape(len(y), -1)
            self._num_outputs = y.shape[1]
            checked = as_arrays(y if y.dtype.kind == "f" else y.astype(np.float64), "y")
            return checked if y.dtype.kind == "f" else checked.astype(jax.dtypes.canonicalize_dtype(float))
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        self._num_outputs = len(self.classes_)
        if self._num_outputs < 2 or (weights is not None and len(np.unique(index[weights > 0])) < 2):
            raise ValueError("y has a single class among the samples that count: a classifier needs two")
        self._class_weights = None
        if (given := getattr(self, "class_weight", None)) is not None:  # `SearchCV` has none: its task has the loss
            each = compute_class_weight(given, classes=self.classes_, y=y)
            if (each < 0).any():
                raise ValueError(f"class_weight= must be at least 0, got {given}")
            self._class_weights = tuple(map(float, each))
        if self.scoring in ("f1", "average_precision") and self._num_outputs == 2 and self.classes_[1] != 1:
            raise ValueError(f"scoring={self.scoring!r} is of class 1, which must be the second of {self.classes_}")
        return index.astype(np.int32)

    def _search(self, X: np.ndarray, y: np.ndarray, weights: Any, groups: Any) -> Any:
        environment.use_all_cores()
        seed = int(check_random_state(self.random_state).randint(2**31))
        settings: dict[str, Any] = {"num_trials": self.n_iter, "num_epochs": self.max_iter, "seed": seed}
        same = ("halving", "averaging", "early_stopping", "refit", "out")
        settings |= {name: getattr(self, name) for name in same}
        settings["ensemble"] = None if isinstance(self.ensemble, bool) else self.ensemble
        folds, num_folds = None, 5 if self.cv is None else self.cv
        if isinstance(num_folds, int | np.integer):  # shuffled and, of classes, stratified
            settings["num_folds"] = int(num_folds)
        elif isinstance(self.cv, type):
            raise TypeError(f"cv= is a class: give cv={self.cv.__name__}(), say")
        else:
            splitter: Any = check_cv(cast(Any, self.cv), y, classifier=is_classifier(self))
            folds = list(splitter.split(X, y, groups))
            groups = None
        self._batch_size: Any = 200 if self.batch_size == "auto" else self.batch_size
        check_number(self._batch_size, "batch_size")
        settings["batch_size"] = self._batch_size = min(self._batch_size, len(X))
        notes = sklearn_words.Notes()
        observer = Progress(verbose=self.verbose > 1) if self.verbose else notes
        with closing(observer), sklearn_words.in_messages(self._words):
            asked = self._study(Dataset(X, y, weights=weights, groups=groups), folds)
            for name in set(study.SETTINGS_IN_SPACE) & set(asked.space):
                del settings[name]
            config = study.run_config(asked, **settings)
            check = callable(self.scoring) or not isinstance(self, _MLP)
            searched = run.search(config, observer, check=check)
        notes.kept += [searched.refit_problem] if searched.refit_problem else []
        for note in notes.kept:
            warnings.warn(note, stacklevel=3)
        self._keep(searched, asked)
        return self

    def _study(self, data: Dataset, folds: Any = None) -> Study:
        task, space = self._network()
        metric, maximized = self._metric()
        goal: Any = {"maximize" if maximized else "minimize": "score"}
        classes = tuple(map(str, self.classes_)) if is_classifier(self) else None
        goal |= {"stratify": True} if classes and folds is None else {}
        return Study("search", task, data, space, metrics={"score": metric}, folds=folds, classes=classes, **goal)

    def _metric(self) -> tuple[Metric, bool]:
        """(metric that ranks the trials, True if it is maximized)."""
        if callable(self.scoring) and not _is_scikit_learns(self.scoring):
            for name, (metric, maximized) in SCORES.items():
                if metric is self.scoring and not maximized:
                    raise ValueError(f"scoring= is maximized, and of this metric less is better: give {name!r}")
            return self.scoring, True
        scoring: Any = self.scoring or ("accuracy" if is_classifier(self) else "r2")
        known = [name for name in SCORES if (name in OF_NUMBERS) != is_classifier(self)]
        if scoring not in known:
            raise ValueError(f"scoring= must be a metric of hw1jax or one of {', '.join(known)}, got {scoring!r}")
        return SCORES[scoring]

    def _keep(self, found: run.Searched, asked: Study) -> None:
        """Sets the attributes of a fitted search."""
        name, sign, trials = asked.score, 1 if asked.maximize else -1, found.trials
        draws = [self._named(trial.draw) for trial in trials]
        scores = sign * np.array([trial.scores[name] for trial in trials], float)  # NaN: undefined in the fold
        results: dict[str, Any] = {
            f"param_{key}": sklearn_words.column([draw[key] for draw in draws]) for key in draws[0]
        }
        results |= {"params": draws} | {f"split{i}_test_score": column for i, column in enumerate(scores.T)}
        results["mean_test_score"] = sign * np.array([trial.mean(name) for trial in trials])
        results["std_test_score"] = np.array([trial.std(name) for trial in trials])
        ranks = trials_.ranks(trials, asked)
        results["rank_test_score"] = np.array([len(trials) if rank is None else rank for rank in ranks], np.int32)
        results["n_resources"] = np.array([trial.epochs for trial in trials])
        self.cv_results_, self.n_splits_ = results, len(found.networks.folds)
        self.best_index_ = [trial.number for trial in trials].index(found.best.number)
        self.best_params_, self.best_score_ = draws[self.best_index_], float(sign * found.best.mean(name))
        self.n_iter_, self._draw = found.best.epochs, found.best.draw
        self._arrays = found.model[2:]  # of the trained networks, without functions: they can be pickled
        self._settings = self.get_params(deep=False)  # of the trained networks, whatever `set_params` does later
        if "task" in self._settings:
            self._settings["task"] = found.networks.study.task  # made anew for this search

    def _outputs(self, X: Any) -> np.ndarray:
        """Outputs of the network, [sample, output]."""
        check_is_fitted(self)
        if not (self.refit or self.ensemble):
            raise NotFittedError("refit=False leaves no network to predict with: give ensemble=True, or refit=True")
        if not isinstance(self.ensemble, bool) and isinstance(self._settings["ensemble"], bool):
            raise NotFittedError(f"ensemble={self.ensemble}: fit again, as the search chooses the ensemble's trials")
        X = np.asarray(self._validated(X, reset=False))
        fitted = copy.copy(self)
        fitted.__dict__ |= self._settings
        model = Model(fitted._study(Dataset(X, X)), self._draw, *self._arrays)
        model = model._replace(members=()) if self.ensemble is True else model
        if not self.ensemble and not model.is_finite:
            raise ValueError("the refit diverged: give ensemble=True, or search smaller learning rates")
        # In JAX's dtype at once: rows to predict may be more alike than it can tell, other than those of a fit.
        X = X.astype(jax.dtypes.canonicalize_dtype(X.dtype)) if X.dtype.kind == "f" else X
        X = as_arrays(X, "X", nan=tasks.fits_x(model.task.prepare))
        outputs = np.asarray(model.predict(X, ensemble=bool(self.ensemble)), np.float64)
        if np.isnan(outputs).any() and np.isnan(X).any():
            raise ValueError("X has NaN that the task's prepare= does not fill")
        return evaluation.logits(outputs, len(self.classes_)) if is_classifier(self) else outputs

    def predict(self, X: Any) -> np.ndarray:
        """The most probable classes [sample]; the numbers [sample] or [sample, target] of a regression."""
        outputs = self._outputs(X)
        if is_classifier(self):
            return self.classes_[outputs.argmax(axis=1)]
        return outputs[:, 0] if self._is_column else outputs

    @available_if(is_classifier)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, float [sample, class]."""
        return evaluation.softmax(self._outputs(X))

    @available_if(is_classifier)
    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities of the classes, float [sample, class]."""
        return np.log(self.predict_proba(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The score by `scoring`; by default accuracy, of a regression R2."""
        check_is_fitted(self)
        if callable(self.scoring):
            raise TypeError("scoring= is a metric of hw1jax, which takes outputs: give scikit-learn's name of a score")
        name = self.scoring or ("accuracy" if is_classifier(self) else "r2")
        name = "roc_auc_ovr" if name == "roc_auc" and len(self.classes_) > 2 else name
        return get_scorer(name)(self, X, y, **({} if sample_weight is None else {"sample_weight": sample_weight}))

    @property
    def best_estimator_(self) -> Any:
        """The search itself, which predicts with its best network."""
        check_is_fitted(self)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_settings")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = not isinstance(self, ClassifierMixin)
        return tags


def _is_scikit_learns(scoring: Any) -> bool:
    return (getattr(scoring, "__module__", None) or "").startswith("sklearn")


@dataclass(eq=False, repr=False, kw_only=True)
class _MLP(_Search):
    """A dense network."""

    hidden_layer_sizes: Any = field(default=((10, 100),), kw_only=False)
    activation: str = "relu"
    solver: Any = "adam"
    alpha: Any = (1e-6, 1e-1)
    learning_rate_init: Any = (1e-4, 1e-1)
    standardize: bool = True

    _words = sklearn_words.ARGUMENTS | {f"{ours}=": f"{theirs}=" for ours, theirs in sklearn_words.OF_MLP.items()}

    def _network(self) -> tuple[Any, Space]:
        loss = losses.squared_error
        if is_classifier(self):
            loss = tabular.class_weighted(self._class_weights) if self._class_weights else losses.cross_entropy
        return tabular.mlp(
            cast(Any, self).n_features_in_,
            self._num_outputs,
            loss,
            layers=sklearn_words.layers(self.hidden_layer_sizes),
            learning_rate=sklearn_words.as_range(self.learning_rate_init, "learning_rate_init"),
            l2=sklearn_words.scaled(sklearn_words.as_range(self.alpha, "alpha"), 1 / self._batch_size),
            optimizer=self.solver,
            activation="sigmoid" if self.activation == "logistic" else self.activation,
            standardize=self.standardize,
        )

    def _named(self, draw: Mapping[str, Any]) -> dict[str, Any]:
        named = {sklearn_words.OF_MLP[name]: value for name, value in draw.items()}
        # Rounded, so that a value of a list is the one that was given.
        return named | ({"alpha": float(f"{named['alpha'] * self._batch_size:.14g}")} if "alpha" in named else {})


@dataclass(eq=False, repr=False, kw_only=True)
class MLPClassifierCV(ClassifierMixin, _MLP):
    """Dense networks for classes, searched by cross-validation, all at once.

    Like `RandomizedSearchCV(MLPClassifier(), ...)`. `hidden_layer_sizes`, `solver`, `alpha` and `learning_rate_init`
    are searched if they are given as a pair (low, high), a list of values, a distribution of scipy.stats (loguniform,
    uniform, randint) or a range of hw1jax; a number is fixed.

    Args:
      hidden_layer_sizes: numbers of units or ranges, one a layer; or a list of tuples to choose from.
      activation: relu, tanh, logistic, silu or identity.
      solver: "adam", "sgd" or "rmsprop"; several are searched.
      alpha: L2 penalty, which is divided by the batch size; a pair is drawn on a logarithmic scale.
      learning_rate_init: learning rate; a pair is drawn on a logarithmic scale.
      standardize: scales the features to mean 0 and standard deviation 1, fitted on each fold's training part.
      class_weight: "balanced", or weights by class: factors of the loss in training, not of the scores.
      n_iter: trials, each a draw of hyperparameters.
      cv: number of folds, shuffled and stratified; a splitter of scikit-learn's; or a list of (training indices,
        validation indices). None: 5 folds.
      scoring: ranks the trials: a name in `SCORES`, or a metric of hw1jax of which more is better. None:
        accuracy.
      refit: train the best network on all samples in the end.
      max_iter: epochs of a trial.
      batch_size: samples a step; "auto": 200, or all if there are fewer.
      halving: successive halving: `hw1jax.Halving`, or its factor.
      averaging: decay of an exponential moving average of the parameters, which is evaluated and kept.
      early_stopping: epochs without a better score after which a network stops; its best epoch counts. None: it never
        does.
      ensemble: True: predict with the mean of the best trial's fold networks; a number from 2: with an ensemble of at
        most so many trials, chosen by what their fold networks predict out of fold, and their refits.
      random_state: seed of folds, draws, initial parameters and minibatches.
      verbose: 1: progress; 2: also each trial's score.
      out: folder for the files of `hw1jax.run_study`, from which `fit` resumes. None: no files.

    Attributes:
      best_params_, best_score_, best_index_: the best trial.
      cv_results_: a dict of columns [trial], as scikit-learn's; n_resources are epochs.
      n_splits_, n_iter_: folds, and epochs of the best trial.
      classes_, n_features_in_, feature_names_in_: of the data.
    """

    class_weight: Any = None
    score = cast(Any, _Search.score)  # the mixin's takes no `scoring`


@dataclass(eq=False, repr=False, kw_only=True)
class MLPRegressorCV(RegressorMixin, _MLP):
    """Dense networks for numbers, [sample] or [sample, target], searched by cross-validation, all at once.

    As `MLPClassifierCV`, without `class_weight`; `standardize` scales the targets as well; `scoring` is R2 by default.
    """

    score = cast(Any, _Search.score)  # the mixin's takes no `scoring`


@dataclass(eq=False, repr=False, kw_only=True)
class SearchCV(_Search):
    """A network of one's own, searched by cross-validation, all trials at once.

    Args:
      task, space: as of `hw1jax.Study`. For classes, y are their indices and the outputs [sample, class] logits, or
        one, the log-odds of the second of two; for numbers, y are [sample, target].
      estimator_type: "classifier" or "regressor".
      others: see `MLPClassifierCV`.
    """

    task: Any = field(kw_only=False)
    space: Space = field(kw_only=False)
    estimator_type: str = "classifier"

    def _network(self) -> tuple[Any, Space]:
        return self.task, self.space

    def __sklearn_tags__(self) -> Any:
        if self.estimator_type not in ("classifier", "regressor"):
            raise ValueError(f"estimator_type= must be classifier or regressor, got {self.estimator_type!r}")
        tags = super().__sklearn_tags__()
        tags.estimator_type = self.estimator_type
        if self.estimator_type == "classifier":
            tags.classifier_tags = ClassifierTags()
        else:
            tags.regressor_tags = RegressorTags()
        tags.target_tags.required = True
        tags.input_tags.allow_nan = True  # `fit` refuses it unless the task's `prepare` fills it
        return tags
