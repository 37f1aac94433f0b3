"""Trained networks with those of their folds: predictions, and a file format that is checked when it is read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from hw1jax import environment, formatting, storage
from hw1jax.core import folds as folds_
from hw1jax.core import population, tracebacks
from hw1jax.core.folds import Fold
from hw1jax.core.tasks import Fit, Task, is_fitted, prepared_y, with_keys, without_keys
from hw1jax.results import evaluation
from hw1jax.search import networks, space_text
from hw1jax.search import study as study_
from hw1jax.search.networks import Network
from hw1jax.search.space import Draw
from hw1jax.search.study import Study

LARGEST_DIFFERENCE = 0.02  # between machines and precisions, relative to the largest output
# Of a trial's weight in the ensemble of a search. The refit knows all samples, the fold networks are several.
SHARE_OF_REFIT = 0.5
NUM_EXAMPLES = 4  # in a model's file, with their outputs


class Member(NamedTuple):
    """A trial of the search's ensemble."""

    number: int
    weight: float  # of its networks together; those of all trials sum to 1
    draw: Draw
    params: Any  # these are as in `Model`, at this trial's widths
    state: Any
    folds: tuple[tuple[Any, Any], ...]


class Model(NamedTuple):
    """A trained network at its own widths, without padding."""

    study: Study
    draw: Draw
    params: Any  # of the refit: a tree of arrays, as from the task's `init`; None without a refit
    state: Any = None  # the same of untrained arrays, with typed PRNG keys; a `tasks.Fit` with fitted preprocessing
    folds: tuple[tuple[Any, Any], ...] = ()  # (params, state) of the cross-validation's networks
    members: tuple[Member, ...] = ()  # of the search's ensemble (ensemble=)

    @property
    def fixed(self) -> dict[str, Any]:
        """The argument of the study's `task` and `activations`."""
        return self._network.fixed

    @property
    def task(self) -> Task:
        """The study's task for this network."""
        return self._network.task

    @property
    def hyperparameters(self) -> dict[str, np.ndarray]:
        """The arguments `h` of the task's functions."""
        return self._network.hyperparameters

    @property
    def _network(self) -> Network:
        return networks.own(self.study, self.draw)

    @property
    def has_refit(self) -> bool:
        """False if only the fold networks were trained (refit=False)."""
        return self.params is not None

    @property
    def is_finite(self) -> bool:
        """False if the refit diverged: `load_model` refuses such a model."""
        return _all_finite((self.params, self.state))

    @property
    def has_ensemble(self) -> bool:
        """True if the fold networks exist and are finite."""
        return bool(self.folds) and _all_finite(self.folds)

    def predict(self, x: Any, *, ensemble: bool = False) -> Any:
        """Outputs [example, ...] on examples in the format of the study's data.

        With `ensemble`, those of the search's ensemble (`members`), or without one of the fold networks, combined: the
        logarithm of their mean probabilities if the loss is `hw1jax.cross_entropy`, else the mean of their outputs. A
        trial of the search's ensemble predicts half with its refit, half with its fold networks.

        Raises:
          ValueError: an ensemble of a model without fold networks, or a prediction without a refit.
        """
        if not ensemble and not self.has_refit:
            raise ValueError(
                "ensemble=False: there is no refit (refit=False); give ensemble=True, or run the search with refit=True"
            )
        if not ensemble:
            return self._outputs([(self.params, self.state)], x)[0]
        if not self.members:
            return self.fold_ensemble(x)
        outputs, weights = [], []
        for member in self.members:
            model, num_folds = self.alone(member), len(member.folds)
            left = member.weight
            if model.has_refit:
                outputs.append(model.predict(x))
                weights.append(SHARE_OF_REFIT * member.weight)
                left -= weights[-1]
            outputs += model.fold_outputs(x)
            weights += [left / num_folds] * num_folds
        return evaluation.ensemble(self.task.loss, outputs, weights)

    def fold_ensemble(self, x: Any) -> Any:
        """As `predict` with `ensemble`, of the fold networks alone.

        Raises:
          ValueError: there are none.
        """
        if not self.folds:
            raise ValueError("ensemble=True: this model has no fold models")
        return evaluation.ensemble(self.task.loss, self.fold_outputs(x))

    def alone(self, member: Member) -> "Model":
        """The networks of a trial of the search's ensemble, as a model."""
        return Model(self.study, *member[2:])

    def losses(self, outputs: Any, y: Any) -> Any:
        """The loss of outputs in the unit of y, [example]."""
        outputs, y = jax.tree.map(jnp.asarray, (outputs, y))  # as in training: functions may use what NumPy has not
        return self.task.loss(*(prepared_y(self.task, self.statistics, values) for values in (outputs, y)))

    @property
    def statistics(self) -> Any:
        """Of fitted preprocessing, on all training data (from a file without a refit, on the first fold); or None."""
        state = self.state if self.has_refit or self.state is not None else self.folds[0][1]
        return state.statistics if isinstance(state, Fit) else None

    def fold_outputs(self, x: Any) -> list[Any]:
        """Outputs [example, ...] of each fold's network."""
        return self._outputs(self.folds, x)

    def held_out(self, folds: Sequence[Fold], x: Any, *, of_loss: bool = False) -> Iterator[Any]:
        """Outputs [sample, ...] of one fold's network after the other on the validation part of its fold.

        `of_loss`: as the loss takes them, instead of in the unit of y.
        """
        return folds_.held_out(lambda i, x: self._outputs([self.folds[i]], x, of_loss)[0], folds, x)

    def _outputs(self, networks: Sequence[tuple[Any, Any]], x: Any, of_loss: bool = False) -> list[Any]:
        task, h = self.task._replace(**({"prepare_y": None} if of_loss else {})), self.hyperparameters
        with jax.default_matmul_precision(environment.matmul_precision() or "float32"):
            return [population.predict(task, params, h, x, state=state) for params, state in networks]

    def named_parameters(self) -> dict[str, np.ndarray]:
        """Parameters by their paths in the tree, as "dense1/weights"; those of the state begin with "state/".

        Statistics of fitted preprocessing begin with "statistics/".

        Raises:
          ValueError: two have the same name.
        """
        state, statistics = self.state if isinstance(self.state, Fit) else (self.state, None)
        named = [*_by_name(self.params, ""), *_by_name(state, "state/"), *_by_name(statistics, "statistics/")]
        by_name = dict(named)
        if len(by_name) < len(named):
            raise ValueError(
                "parameters: two have the same name; rename a part of the tree that is called state or statistics"
            )
        return by_name

    def __repr__(self) -> str:
        params = self.params if self.has_refit else self.folds[0][0]
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
        folds = f"; {len(self.folds)} fold models" if self.folds else ""
        folds += f"; an ensemble of {formatting.trials(len(self.members))}" if self.members else ""
        folds += "" if self.has_refit else " without a refit"
        return f"Model({self.study.name}: {size:,} parameters, {space_text.in_words(self.draw)}{folds})"


def score(model: Model, outputs: Any, y: Any) -> dict[str, Any]:
    """Mean loss and metrics, by name, of a model's outputs [example, ...] on y.

    For class indices also "accuracy" and, unless there are many, "confusion", counts [true class][predicted class]. All
    are None if the loss is not finite; a metric that isn't is None alone.
    """
    functions = {"loss": model.losses, **model.study.metrics}
    both = jax.tree.map(jnp.asarray, (outputs, y))
    scores: dict[str, Any] = {name: _mean(function(*both)) for name, function in functions.items()}
    scores = {name: value if np.isfinite(value) else None for name, value in scores.items()}
    if scores["loss"] is None:
        scores = dict.fromkeys(scores)
    elif evaluation.are_classes(model.study.classes, outputs, y):
        scores.setdefault("accuracy", evaluation.accuracy(outputs, y))
        if evaluation.class_names(model.study.classes, outputs):
            scores["confusion"] = evaluation.confusion_matrix(outputs, y).tolist()
    return {"loss": scores["loss"], "accuracy": None, "confusion": None} | scores


def _mean(values: Any) -> float:
    """Mean, accumulated in float32 at least."""
    values = np.asarray(values)
    return float(np.mean(values, dtype=np.promote_types(values.dtype, np.float32)))


def _all_finite(tree: Any) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(without_keys(tree)))


def are_close(outputs: Any, before: np.ndarray) -> bool:
    """True if the outputs are those of the same network, up to machine and precision."""
    if not isinstance(outputs, np.ndarray) or outputs.shape != before.shape:
        return False
    outputs, before = outputs.astype(np.float64), before.astype(np.float64)
    return np.allclose(outputs, before, rtol=0, atol=LARGEST_DIFFERENCE * np.abs(before).max(), equal_nan=True)


def save_model(path: Path, model: Model, x: Any = None) -> None:
    """Writes a model as MessagePack; the file appears whole or not at all.

    The first few of the examples `x` are stored with their outputs if both are plain arrays: `load_model` refuses a
    network that computes others. Without a refit they are the ensemble's.
    """
    outputs = None
    if isinstance(x, np.ndarray):
        x = x[:NUM_EXAMPLES]
        outputs = model.predict(x, ensemble=not model.has_refit)
    kept = isinstance(outputs, np.ndarray) and not any(a.dtype.isbuiltin == 2 for a in (x, outputs))
    content = {
        "format": storage.FORMAT,
        "study": model.study.name,
        "hyperparameters": space_text.draw_to_json(model.draw),
        **(_network_to_file(model.params, model.state) if model.has_refit else {"refit": False}),
        **({"statistics": _plain(model.statistics)} if not model.has_refit and is_fitted(model.task) else {}),
        "folds": [_network_to_file(*network) for network in model.folds],
        **({"members": list(map(_member_to_file, model.members))} if model.members else {}),
        "examples": {"x": x, "outputs": outputs} if kept else {},
    }
    storage.write_bytes(path, flax.serialization.msgpack_serialize(content))


@tracebacks.short
def load_model(path: Path | str, study: Study) -> Model:
    """Reads and checks a model that `save_model` wrote. The ranges of the study's space may have changed.

    Raises:
      ValueError: the file is damaged, of another format or study, its arrays don't fit its hyperparameters, or the
        study's network has changed.
    """
    return read_model(Path(path), study_.afresh(study))


def read_model(path: Path, study: Study) -> Model:
    """As `load_model`, with the networks of a study that has been used already."""
    try:
        content: Any = flax.serialization.msgpack_restore(path.read_bytes())
        if content["format"] != storage.FORMAT:
            raise ValueError(f"format {content['format']}, expected {storage.FORMAT}")
        if content["study"] != study.name:
            raise ValueError(f"of the study {content['study']!r}, not {study.name!r}")
        draw = space_text.draw_from_json(study.space, content["hyperparameters"])
        model = Model(_with_layers_of(study, draw), draw, {})
        shapes = networks.own(model.study, draw).shapes
        if not isinstance(content["folds"], list):
            raise ValueError("fold models that are no list")
        params, state = _network_from_file(content, shapes) if content.get("refit", True) else (None, None)
        if params is None and "statistics" in content:
            state = Fit(None, _from_plain(content["statistics"]))
        folds = tuple(_network_from_file(network, shapes) for network in content["folds"])
        model = model._replace(params=params, state=state, folds=folds)
        members = tuple(_member_from_file(member, model.study) for member in content.get("members", ()))
        model = model._replace(members=members)
        for each in (model, *map(model.alone, members)):
            _check_statistics(each)
        if not _all_finite((params, state, folds, [member[3:] for member in members])):
            raise ValueError("parameters that are not finite")
        if not model.has_refit and not folds:
            raise ValueError("neither a refit nor fold models")
        if examples := content["examples"]:
            outputs = model.predict(examples["x"], ensemble=not model.has_refit)
            if not are_close(outputs, examples["outputs"]):
                raise ValueError("of another network than the study's is now")
    except OSError:
        raise
    except Exception as error:  # any error of MessagePack or the checks: the file is no model
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a model of hw1jax ({reason}); run its study again") from error
    return model


def _with_layers_of(study: Study, draw: Draw) -> Study:
    """The study with as many ranges of each name as the draw has values: flags can add layers."""
    several = {name: r for name, r in study.space.items() if isinstance(r, Sequence) and len(r) != len(draw[name])}
    as_many = {name: tuple(r[min(i, len(r) - 1)] for i in range(len(draw[name]))) for name, r in several.items()}
    return study_.narrow(study, **as_many) if as_many else study


def _network_to_file(params: Any, state: Any) -> dict[str, Any]:
    if isinstance(state, Fit):
        return {**_network_to_file(params, state.state), "statistics": _plain(state.statistics)}
    return {"params": by_path(params), "state": by_path(state)}


def _network_from_file(content: Any, shapes: tuple[Any, Any]) -> tuple[Any, Any]:
    params, state = _from_paths(content["params"], shapes[0]), with_keys(_from_paths(content["state"], shapes[1]))
    return params, Fit(state, _from_plain(content["statistics"])) if "statistics" in content else state


def _member_to_file(member: Member) -> dict[str, Any]:
    return {
        "number": member.number,
        "weight": member.weight,
        "hyperparameters": space_text.draw_to_json(member.draw),
        **({} if member.params is None else _network_to_file(member.params, member.state)),
        "folds": [_network_to_file(*network) for network in member.folds],
    }


def _member_from_file(content: Any, study: Study) -> Member:
    draw = space_text.draw_from_json(study.space, content["hyperparameters"])
    shapes = networks.own(study, draw).shapes
    if not 0 < content["weight"] <= 1 or not content["folds"]:
        raise ValueError("a trial of the ensemble without weight or networks")
    folds = tuple(_network_from_file(network, shapes) for network in content["folds"])
    refit = _network_from_file(content, shapes) if "params" in content else (None, None)
    return Member(int(content["number"]), content["weight"], draw, *refit, folds)


def _plain(tree: Any) -> dict[str, Any]:
    """A tree of dicts, tuples and arrays as MessagePack has it, with the kind of each node."""
    if isinstance(tree, dict):
        return {"dict": {name: _plain(value) for name, value in tree.items()}}
    if isinstance(tree, tuple | list):
        return {type(tree).__name__: [_plain(value) for value in tree]}
    return {} if tree is None else {"array": np.asarray(tree)}


def _from_plain(content: Any) -> Any:
    """Inverse of `_plain`; raises a ValueError if it is something else."""
    if content == {}:
        return None
    ((kind, value),) = content.items()
    if kind == "dict":
        return {name: _from_plain(part) for name, part in value.items()}
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(map(_from_plain, value))
    if kind != "array" or not isinstance(value, np.ndarray):
        raise ValueError(f"statistics of an unknown kind {kind}")
    return value


def _check_statistics(model: Model) -> None:
    """Raises a ValueError unless all networks have statistics of the same shapes, or the task has none."""
    whole = [model.state] if model.has_refit or model.state is not None else []
    states = [*whole, *(state for _, state in model.folds)]
    if any(isinstance(state, Fit) != is_fitted(model.task) for state in states):
        raise ValueError("prepare or prepare_y is fitted, and was not, or the other way round")
    if not is_fitted(model.task):
        return
    shapes = [jax.tree.map(lambda a: (a.dtype, a.shape), state.statistics) for state in states]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("statistics of other shapes")


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """A tree's arrays by their `keystr` paths."""
    return {
        jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(without_keys(tree))
    }


def _by_name(tree: Any, prefix: str) -> list[tuple[str, np.ndarray]]:
    """A tree's arrays by readable paths; a single array is called "parameters"."""
    leaves = jax.tree.leaves_with_path(without_keys(tree))
    return [
        (prefix + (jax.tree_util.keystr(path, simple=True, separator="/") or "parameters"), np.asarray(leaf))
        for path, leaf in leaves
    ]


def _from_paths(arrays: Any, shapes: Any) -> Any:
    """Inverse of `by_path`; raises a ValueError unless shapes and dtypes are these."""
    if not isinstance(arrays, dict):
        raise ValueError(f"arrays by name, got {type(arrays).__name__}")
    expected = {jax.tree_util.keystr(path): f"{a.dtype} {a.shape}" for path, a in jax.tree.leaves_with_path(shapes)}
    found = {n: f"{a.dtype} {a.shape}" if isinstance(a, np.ndarray) else str(type(a)) for n, a in arrays.items()}
    if found != expected:
        raise ValueError(f"parameters {found}, expected {expected}")
    return jax.tree.unflatten(jax.tree.structure(shapes), [arrays[name] for name in expected])
