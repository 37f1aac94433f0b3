"""Networks of a study: the one module that makes trainable tasks from hyperparameters."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Traced

from hw1jax.core import (
    array_checks,
    checks,
    cost,
    fitting,
    identity,
    member_states,
    metric_checks,
    population,
    probe,
    selection,
    tasks,
)
from hw1jax.core.folds import Fold
from hw1jax.core.layout import Layout
from hw1jax.core.population import Plan, Population, TrainConfig, Trials
from hw1jax.core.tasks import Metric, Task
from hw1jax.core.training import Best, Data
from hw1jax.data import Dataset
from hw1jax.search import rungs, space
from hw1jax.search.space import Draw
from hw1jax.search.study import SETTINGS_IN_SPACE, SearchConfig, Study
from hw1jax.search.trial_score import BEST, Values

NUM_EXAMPLES = 8  # for comparing a padded network with the unpadded one


@dataclass(frozen=True)
class Network:
    """The network of one trial."""

    study: Study
    draw: Draw
    fixed: dict[str, Any]  # static hyperparameters and the widths of its layers, which select the program

    @property
    def task(self) -> Task:
        """The study's task for `fixed`, with the study's metrics; equal networks share one object.

        Raises:
          TypeError: the study's `task` doesn't return a Task.
          ValueError: the Task has its own metrics.
        """
        metrics = tuple(self.study.metrics.items())
        return _make_task(self.study.task, metrics, self.study.averaging, space.key_of(self.fixed))

    @property
    def hyperparameters(self) -> dict[str, np.ndarray]:
        """The arguments `h` of the task's functions: arrays without a trial axis."""
        return {name: array[0] for name, array in space.as_arrays(self.study.space, [self.draw]).items()}

    @property
    def shapes(self) -> tuple[Any, Any]:
        """Shapes and dtypes of (params, state)."""
        return member_states.variable_shapes(self.task, self.hyperparameters)

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes[0]))


def own(study: Study, draw: Draw) -> Network:
    """The network at the draw's own widths."""
    return Network(study, draw, space.fixed(study.space, draw, widest=False))


def padded(study: Study, draw: Draw) -> Network:
    """The network with the widest layers of the space, of which the draw's widths are used."""
    return Network(study, draw, space.fixed(study.space, draw, widest=True))


@lru_cache(maxsize=64)  # equal networks share one task, so that a program is compiled once
def _make_task(
    function: Callable[..., Task], metrics: tuple[tuple[str, Metric], ...], averaging: float | None, key: tuple
) -> Task:
    fixed = {name: value for name, _, value in key}
    with checks.in_function("task", function, fixed=fixed):
        task = function(fixed)
    if not isinstance(task, Task):
        raise TypeError(f"task= must return a Task, got {type(task).__name__}")
    if task.metrics:
        raise ValueError("metrics= belong in the Study, not in its Task")
    task = task._replace(metrics=metrics, averaging=task.averaging if averaging is None else averaging)
    return tasks.fresh_task(task)


class Networks:
    """All networks that a search can draw, on the search's data and folds."""

    def __init__(self, study: Study, search: SearchConfig, data: Dataset, folds: Sequence[Fold], first_fold: int = 0):
        """`first_fold`: the number of the first fold, on which keys depend."""
        self.study, self.search, self.data, self.folds, self.first_fold = study, search, data, list(folds), first_fold
        self._populations: dict[Plan, Population] = {}
        self._layouts: dict[int, Layout] = {}  # by batch size
        self._statistics: dict[Any, Any] = {}  # by `prepare` and `prepare_y`

    def __reduce__(self) -> Any:
        """Pickles the arguments alone: another process makes its own programs and device arrays."""
        return Networks, (self.study, self.search, self.data, self.folds, self.first_fold)

    @property
    def key(self) -> jax.Array:
        """The PRNG key of the search."""
        return jax.random.key(self.search.seed)

    @cached_property
    def widest(self) -> Network:
        """The widest network of the space."""
        return padded(self.study, space.widest(self.study.space))

    @cached_property
    def of_each_program(self) -> list[Network]:
        """The widest networks, one for each combination of static hyperparameters."""
        return [padded(self.study, draw) for draw in space.static_draws(self.study.space)]

    @cached_property
    def largest_params(self) -> Any:
        """Shapes of the parameters of the largest network."""
        each = [network.shapes[0] for network in self.of_each_program]
        return max(each, key=lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree)))

    @cached_property
    def layout(self) -> Layout:
        """The layout of a step of the widest network on this machine's devices."""
        return self.layout_of(self.batch_size(self.widest.fixed))

    def layout_of(self, batch_size: int) -> Layout:
        """The same for one of the batch sizes in the space."""
        if batch_size not in self._layouts:
            params, state = self.widest.shapes
            self._layouts[batch_size] = cost.choose_layout(
                self.widest.task,
                params,
                state,
                self.data.x_train,
                self.widest.hyperparameters,
                batch_size=batch_size,
                statistics=self.samples(self.widest.task).statistics,
            )
            if any(tasks.takes_whole_batches(network.task) for network in self.of_each_program):
                self._layouts[batch_size] = self._layouts[batch_size]._replace(microbatch_size=None)
        return self._layouts[batch_size]

    def statistics(self, task: Task) -> Any:
        """The task's statistics [fold, ...] of fitted preprocessing; computed once for all tasks with the same one."""
        checks.check_prepare(task)
        functions, structure = jax.tree.flatten((task.prepare, task.prepare_y))
        key = structure, *map(tasks.original, functions)
        if key not in self._statistics:
            self._statistics[key] = fitting.statistics(task, self._data, self.folds)
        return self._statistics[key]

    def samples(self, task: Task) -> Data:
        """The training data, with the task's statistics of the first fold."""
        return fitting.of_fold(self._data._replace(statistics=self.statistics(task)), 0)

    def statistics_of_all(self, task: Task) -> Any:
        """The task's statistics of all training data, as the refit has them."""
        each = fitting.statistics(task, self._data, [self._everything])
        return jax.tree.map(lambda a: a[0], each)

    @property
    def _everything(self) -> Fold:
        return Fold(np.arange(len(jax.tree.leaves(self.data.x_train)[0])), np.arange(0))

    @property
    def _data(self) -> Data:
        return Data(self.data.x_train, self.data.y_train, self.data.weights)

    def num_epochs(self, fixed: Mapping[str, Any]) -> int:
        """The epochs of a network's training, which the space may have as a static hyperparameter."""
        return fixed.get("num_epochs", self.search.num_epochs)

    def batch_size(self, fixed: Mapping[str, Any]) -> int:
        """The samples of a network's step, which the space may have as a static hyperparameter."""
        return fixed.get("batch_size", self.search.batch_size)

    @cached_property
    def changed_by_padding(self) -> str | None:
        """Which part of the narrowest network padding changes, over all static hyperparameters; None if nothing."""
        if not space.varying_widths(self.study.space):
            return None
        x, y = jax.tree.map(lambda a: np.asarray(a[:NUM_EXAMPLES]), (self.data.x_train, self.data.y_train))
        for network, values in product(self.of_each_program, self._traced_values):
            draw = space.narrowest(self.study.space, network.draw | values)
            wide, narrow = padded(self.study, draw), own(self.study, draw)
            steps, few = self._num_steps(wide), Data(x, y, statistics=self.samples(wide.task).statistics)
            changed = probe.padding_changes(wide.task, narrow.task, steps, self.key, wide.hyperparameters, few)
            if changed:
                return changed
        return None

    @property
    def _traced_values(self) -> list[dict[str, Any]]:
        """Values of the hyperparameters that are arrays: each of a choice and both ends of a range are in one dict."""
        widths, ranges = space.widths(self.study.space), space.ranges_of(self.study.space)
        traced = {n: self.study.space[n] for n in ranges if not space.is_static(ranges[n]) and n not in widths}
        choices = [r for name in traced for r in ranges[name] if isinstance(r, space.Choice)]

        def value(r: space.Range, i: int) -> Any:
            return r.among[i % len(r.among)] if isinstance(r, space.Choice) else (r.low, r.high)[i % 2]

        count = max([2, *(len(r.among) for r in choices)]) if traced else 1
        return [{n: space.for_each_layer(r, partial(value, i=i)) for n, r in traced.items()} for i in range(count)]

    @cached_property
    def starts_in_corners(self) -> bool:
        """True if a narrow network's initial parameters are corners of the widest one's."""
        has_state = any(tasks.has_state(network.task) for network in self.of_each_program)
        return not has_state and self.changed_by_padding is None

    def flops_of_an_epoch(self, draw: Draw) -> float:
        """Floating-point operations of an epoch of all folds, at the draw's own widths."""
        x, y = jax.tree.map(lambda a: a[:200], (self.data.x_train, self.data.y_train))
        network = own(self.study, draw)
        few = Data(x, y, statistics=self.samples(network.task).statistics)
        flops = cost.flops(network.task, few, network.hyperparameters)
        return flops / len(jax.tree.leaves(x)[0]) * sum(len(fold.train) for fold in self.folds)

    def for_refit(self) -> "Networks":
        """The same networks with one more fold, which trains on all training data."""
        alone = {"halving": None, "first_rung": None, "brackets": False, "early_stopping": None, "ensemble": None}
        search = replace(self.search, **alone)
        networks = Networks(self.study, search, self.data, [self._everything], first_fold=len(self.folds))
        networks.__dict__ |= {"layout": self.layout, "starts_in_corners": self.starts_in_corners}
        networks._layouts = self._layouts
        return networks

    def population(self, plan: Plan, network: Network) -> Population:
        """The population of a program; the data are put on each plan's devices once."""
        task, config = network.task, self.train_config(network)
        if plan not in self._populations:
            if self._populations:
                other = next(iter(self._populations.values()))
                self._populations[plan] = population.with_plan(other, plan)
            else:
                self._populations[plan] = population.make_population(task, plan, config, self._data, self.folds)
        made = self._populations[plan]._replace(task=task, config=config)
        return population.with_statistics(made, self.statistics(task)) if tasks.is_fitted(task) else made

    def member_shapes(self, network: Network) -> Any:
        """Shapes and dtypes of a member's `State`; with early stopping of (`State`, `Best`)."""
        task = network.task
        state = member_states.member_shapes(task, self._num_steps(network), network.hyperparameters)
        if self.search.early_stopping is None:
            return state
        value: Any = jax.ShapeDtypeStruct((), jnp.result_type(float))
        epoch: Any = jax.ShapeDtypeStruct((), np.int32)
        values: Any = dict.fromkeys(("loss", *self.study.metrics), value)
        return state, Best(state, value, epoch, values)

    def trials(self, numbers: Sequence[int], draws: Sequence[Draw]) -> Trials:
        """Converts trials for a population, one a slot."""
        return Trials(self.key, np.array(numbers), space.as_arrays(self.study.space, draws))

    @cached_property
    def undefined(self) -> metric_checks.Undefined:
        """The folds in which a metric is undefined, by its name; checks the metrics of a whole held-out part."""
        task, score = self.widest.task, self.study.score
        undefined = metric_checks.undefined(task, self.widest.hyperparameters, self.samples(task), self.folds)
        if self.search.early_stopping is not None and score in undefined:
            raise ValueError(
                f"early_stopping= needs {score} in each fold, and it is undefined in some: give other folds="
            )
        return undefined

    def masked(self, values: Values) -> Values:
        """A trial's values with a mask over the folds in which a metric is undefined."""
        masked = {}
        for name, folds in self.undefined.items():
            for key in {name, BEST + name} & set(values):
                masked[key] = np.ma.array(values[key])
                masked[key][list(folds)] = np.ma.masked
        return {**values, **masked}

    def train_config(self, network: Network) -> TrainConfig:
        """The settings of a network's training."""
        search = replace(self.search, num_epochs=self.num_epochs(network.fixed))
        longest = max(len(fold.train) for fold in self.folds)
        most = self.study.epochs_per_call or cost.enough_epochs(len(self.folds) * longest)
        per_call = cost.epochs_of_a_call(rungs.lengths(search), most)
        batch_size = min(self.batch_size(network.fixed), longest)  # as cross_validate does
        stopping = {"patience": search.early_stopping, "monitor": self.study.score}
        stopping |= {"maximize": self.study.maximize is not None}
        return TrainConfig(search.num_epochs, batch_size, (search.seed,), per_call, self.first_fold, **stopping)

    def _num_steps(self, network: Network) -> tuple[int, ...] | None:
        fixed = network.fixed
        return population.num_updates(network.task, self.folds, self.num_epochs(fixed), self.batch_size(fixed))

    def check(self) -> str:
        """Checks the networks on the data -> sha256 of all that they compute, which identifies the task of a folder.

        Raises:
          ValueError, TypeError: they can't be trained, or a hyperparameter has no effect; one line.
        """
        if not all(tasks.fits_x(network.task.prepare) for network in self.of_each_program):
            parts = ("x_train", "x_test") if self.data.has_test_set else ("x_train",)
            _ = [array_checks.as_arrays(getattr(self.data, part), part) for part in parts]  # without NaN
        programs = []
        for network in self.of_each_program:
            task, h, steps = network.task, network.hyperparameters, self._num_steps(network)
            samples = self.samples(task)
            checks.check_task(task, h, samples, steps)
            programs.append(identity.traced(task, h, samples, self.batch_size(network.fixed), steps))
        if self.search.ensemble is not None:
            self._check_combinable()
        digests = list(map(identity.digest, programs))
        by_task = {space.key_of(_without_settings(network.fixed)): network for network in self.of_each_program}
        for network in by_task.values():
            task, h, steps = network.task, network.hyperparameters, self._num_steps(network)
            checks.check_examples(task, self.key, h, self.samples(task), steps)
            fitting.check_test_set(task, self.samples(task).statistics, *self.data[2:4])
        _ = self.undefined
        self._check_used(programs, digests)
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def _check_combinable(self) -> None:
        """Raises a ValueError if outputs of trials can't be combined: static hyperparameters change what they are."""

        def kind(network: Network) -> Any:
            task, samples = network.task, self.samples(network.task)
            arguments = *network.shapes, samples.x, network.hyperparameters, samples.statistics
            outputs = jax.eval_shape(partial(tasks.evaluated, task), *arguments)
            return selection.combines_probabilities(task.loss), task.prepare_y is None, str(outputs)

        if len(set(map(kind, self.of_each_program))) > 1:
            raise ValueError(
                "ensemble= can't combine the trials: a static hyperparameter changes the shape or the unit of the "
                "outputs, or whether the loss is cross_entropy"
            )

    def _check_used(self, programs: Sequence[Traced], digests: Sequence[str]) -> None:
        """Raises a ValueError if a hyperparameter, misspelt or forgotten, has no effect in the programs."""
        names = self._unused_arrays(programs) + self._unused_statics(digests)
        if not names:
            return
        r = space.ranges_of(self.study.space)[names[0]][0]
        where = f"{'fixed' if space.is_static([r]) else 'h'}[{names[0]!r}]"
        hint = ""
        if isinstance(r, space.Choice) and r.is_named and not r.static:
            hint = (
                f", the index of one of {', '.join(map(str, r.values))}, which never equals a name: choose by "
                f"jax.lax.switch({where}, ...) or hw1jax.chosen_l2(.., names=..), or declare Choice(..., static=True)"
            )
        raise ValueError(
            f"space: {names[0]} has no effect: neither initial parameters nor training nor evaluation depend on "
            f"it. The task has it as {where}{hint}"
        )

    def _unused_arrays(self, programs: Sequence[Traced]) -> list[str]:
        """Traced hyperparameters and widths without effect."""
        unused = set.intersection(*(set(identity.unused(program)) for program in programs))
        widths, varying = space.widths(self.study.space), space.varying_widths(self.study.space)
        widest = self.widest.draw
        lowest = space.narrowest(self.study.space, widest)

        def shapes(draw: Draw) -> list[tuple[int, ...]]:
            return [leaf.shape for leaf in jax.tree.leaves(own(self.study, draw).shapes)]

        def shapes_a_network(name: str) -> bool:
            return name not in varying or shapes({**widest, name: lowest[name]}) != shapes(widest)

        names = [name for name in self.study.space if f"['{name}']" in unused]
        return [name for name in names if name not in widths or not shapes_a_network(name)]

    def _unused_statics(self, digests: Sequence[str]) -> list[str]:
        """Static hyperparameters whose values all give the same programs."""
        statics = space.statics(self.study.space)
        draws = [network.draw for network in self.of_each_program]
        names = []
        for name in (name for name in statics if name not in SETTINGS_IN_SPACE):
            others = [space.key_of({other: draw[other] for other in statics if other != name}) for draw in draws]
            several = len({repr(draw[name]) for draw in draws}) > 1
            if several and len(set(zip(others, digests, strict=True))) == len(set(others)):
                names.append(name)
        return names


def _without_settings(fixed: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fixed.items() if name not in SETTINGS_IN_SPACE}
