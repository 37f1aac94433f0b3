"""Studies and the settings of a search, with their checks. No study's hyperparameters or flags appear here.

Messages name an argument as `name=`, which the command line turns into its flag.
"""

import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from hw1jax.core import arguments, array_checks, checks
from hw1jax.core.tasks import Metric, Task
from hw1jax.data import Dataset
from hw1jax.search import space as space_
from hw1jax.search import space_text
from hw1jax.search.given import NAMES, Given, taken
from hw1jax.search.space import Space

LARGEST_SEED = 2**32 - 1  # JAX's keys use 32 bits
COLUMNS = frozenset({"number", "state", "epochs", "rank", "diverged_epoch"})  # of trials.csv, for any space
SETTINGS_IN_SPACE = ("num_epochs", "batch_size")  # that a space may have, as static hyperparameters
MOST_PROGRAMS = 16  # combinations of static hyperparameters: each is compiled and cached


@dataclass(frozen=True)
class Reference:
    """Published results to show beside a run's own.

    Attributes:
      name: short name, as in "the report".
      params: the best hyperparameters by name, a tuple for several; unlisted ones are unknown.
      test: "loss" and metrics by name, on the test set.
      about: the source in a few words: "the homework report that ..".
      data: the data of its numbers, if they differ: "its own test set, with more noise".
      notes: differences in method, a sentence each.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    about: str = ""
    data: str = ""
    notes: Sequence[str] = ()

    def __post_init__(self):
        object.__setattr__(self, "test", {name: float(value) for name, value in self.test.items()})


@dataclass(frozen=True)
class Halving:
    """Successive halving: at the end of each rung, the best trials of a bracket go on and the others are pruned.

    Attributes:
      factor: one in `factor` trials goes on, and trains `factor` times longer.
      first: least number of epochs of the first rung; default: the (factor^3)-th part of all.
      brackets: Hyperband: several brackets that start at different rungs.
    """

    factor: int = 3
    first: int | None = None
    brackets: bool = False


@dataclass(frozen=True, eq=False)
class Study:
    """A network, its data and the space to search.

    Attributes:
      name: name of its folder and its Optuna study: letters, digits, `_`, `-` and `.`.
      task: fixed -> Task; `fixed` has the static hyperparameters and the widths, by name (see `space`). Called once for
        each program.
      data: the data, or a function that reads them from the files in `inputs` (by name, each a Path or None).
      space: by name an `Int`, `Float` or `Choice`, or a tuple of them, a range a layer. A static `num_epochs` or
        `batch_size` replaces the setting: each trial has its own.
      metrics: by name a function (outputs, y) -> [batch], one value an example, whose mean is reported beside the loss;
        or a metric of a whole held-out part, such as `hw1jax.roc_auc` or `hw1jax.whole(f)`.
      minimize: "loss" or a metric, whose mean over the folds ranks the trials.
      maximize: a metric to maximize instead.
      num_trials, num_folds, num_epochs, batch_size: default settings. An epoch is a pass over a fold's training part, a
        batch has at most all of its samples.
      halving: default halving; None: all trials train to the last epoch.
      averaging: default decay of the parameters' moving average; None: as in `task`.
      ensemble: default number of trials of an ensemble of the search at most; None: no such ensemble.
      folds: list of (training indices, validation indices), or a splitter as in scikit-learn (with the data's
        `groups`), instead of shuffled `num_folds`.
      stratify: True: equal shares of each class in all shuffled folds; None: if y are classes (`folds.are_classes`).
      quick: smaller values of these settings, by name, for a small run; those in the space stay.
      title: for display; default: the name.
      loss_name: for tables and axes, with its unit.
      classes: names of the classes, if y is a class index.
      reference: published results.
      inputs: names of optional data files, each with a description.
      help: descriptions of hyperparameters, by name, for --help.
      epochs_per_call: epochs between two progress reports, at most; default: by the amount of work.
      activations: fixed -> (params, x, h) -> {layer: array [example, ...]}, in JAX's operations, for the page.
      sections: sections of the page, by heading: functions of the run's results (see `report.sections`), which replace
        the page's content under that heading or follow the others.
    """

    name: str
    task: Callable[[dict[str, Any]], Task]
    data: Dataset | Callable[..., Dataset]
    space: Space
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    minimize: str = "loss"
    maximize: str | None = None
    num_trials: int = 25
    num_folds: int = 3
    num_epochs: int = 100
    batch_size: int = 32
    halving: Halving | None = None
    averaging: float | None = None
    ensemble: int | None = None
    folds: Any = None
    stratify: bool | None = None
    quick: Mapping[str, int] = field(default_factory=lambda: {"num_trials": 4, "num_epochs": 2})
    title: str = ""
    loss_name: str = "loss"
    classes: Sequence[str] | None = None
    reference: Reference | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    help: Mapping[str, str] = field(default_factory=dict)
    epochs_per_call: int | None = None
    activations: Callable[[dict[str, Any]], Callable[..., dict[str, Any]]] | None = None
    sections: Mapping[str, Sequence[Callable[..., Any]]] = field(default_factory=dict)

    def __post_init__(self):
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(map(str, self.classes)))

    @property
    def score(self) -> str:
        """The name of the ranking score, "loss" or a metric."""
        return self.maximize or self.minimize

    @property
    def shown(self) -> str:
        """The title, or the name without one."""
        return self.title or self.name

    def __repr__(self) -> str:
        ranges = ", ".join(f"{name} {r}" for name, r in space_.columns(self.space).items())
        way = "maximize" if self.maximize else "minimize"
        text = f"Study({self.name!r}: {way} {self.score} over {ranges})"
        return textwrap.fill(text, 100, subsequent_indent="  ", max_lines=12, placeholder=" ..")


@dataclass(frozen=True)
class SearchConfig:
    """The settings that the results of a search depend on."""

    num_epochs: int
    """Passes over the training data."""
    batch_size: int
    """Samples of a training step."""
    num_folds: int = 3
    """Folds of the cross-validation, unless the study has its own."""
    seed: int = 0
    """Seed of folds, minibatches, draws and initial parameters."""
    sampler: Literal["random", "tpe"] = "random"
    """How hyperparameters are drawn."""
    halving: int | None = None
    """Successive halving: the best one in FACTOR of a rung's trials goes on, the others are pruned."""
    first_rung: int | None = None
    """Least number of epochs of the first rung; default: a FACTOR^3-th of all."""
    brackets: bool = False
    """Hyperband: several brackets that start at different rungs."""
    averaging: float | None = None
    """Decay, such as 0.99, of an exponential moving average of the parameters, which is then evaluated and kept."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """Precision of matrix products on a GPU or TPU; a CPU computes in float32."""
    repeats: int = 1
    """Trainings on each fold, with different initial parameters and minibatches."""
    early_stopping: int | None = None
    """Epochs without a better score after which a network stops; its best epoch counts."""
    ensemble: int | None = None
    """An ensemble of the search: of the last rung's trials at most so many are chosen, by their outputs out of fold."""

    def recorded(self) -> dict[str, Any]:
        """The settings as results.json and the journal have them: those that came later only if they are used."""
        return {name: value for name, value in asdict(self).items() if (name, value) not in UNUSED.items()}


UNUSED = {
    "repeats": 1,
    "early_stopping": None,
    "ensemble": None,
}  # defaults that are not recorded, as in folders of earlier versions


@dataclass(frozen=True)
class ProgramConfig:
    """The layout of a search on the devices."""

    widths: Literal["auto", "padded", "exact"] = "auto"
    """padded: all networks in one program; exact: each width in its own program; auto: the faster one."""
    members_per_program: int | None = None
    """Networks (trials x folds) of one program at most; default: all."""
    workers: int = 1
    """Workers of an executor to split the jobs for; any number may connect."""
    num_devices: int | None = None
    """Devices to use (on a CPU, cores); default: all."""
    reproducible: bool = False
    """The same bits each time on a GPU; slower, since XLA may neither reorder sums nor autotune kernels."""
    timeout: float | None = None
    """Seconds after which no more trials are drawn; those in training are finished. The same command goes on."""


@dataclass(frozen=True)
class Output:
    """What is left of a search, and where."""

    out: Path | None = None
    """Folder of the results; default: runs/STUDY, or runs/quick/STUDY with --quick."""
    refit: bool = True
    """Train the best trial's network on all training data after the search; a later run can add it."""
    overwrite: bool = False
    """Start over: remove the folder's search and results."""
    quick: bool = False
    """A small run on the real data: fewer trials and epochs by default."""


class RunConfig(NamedTuple):
    """The settings of a run, for `run.run`."""

    study: Study
    num_trials: int
    search: SearchConfig
    program: ProgramConfig
    output: Output
    inputs: dict[str, Path | None]
    given: Given = Given()

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return self.output.out or Path("runs", *(["quick"] if self.output.quick else []), self.study.name)


def run_config(
    study: Study, *, inputs: Mapping[str, Any] | None = None, quick: bool = False, **settings: Any
) -> RunConfig:
    """Combines the study's settings with the given ones, by the names of `SearchConfig`, `ProgramConfig` and `Output`.

    Settings that only Python can give are those of `given.taken`.

    Raises:
      TypeError: unknown settings or inputs.
      ValueError: invalid settings or an invalid study; one line that names the argument.
    """
    config = unchecked_run_config(study, inputs=inputs, quick=quick, **settings)
    check(config)
    return config


def unchecked_run_config(
    study: Study, *, inputs: Mapping[str, Any] | None = None, quick: bool = False, **settings: Any
) -> RunConfig:
    """As `run_config`, without checking the values."""
    names = ("num_trials", "num_folds", "num_epochs", "batch_size", "averaging", "ensemble")
    settings = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    chosen = {name: getattr(study, name) for name in names} | (dict(study.quick) if quick else {}) | settings
    parts: dict[type, dict[str, Any]] = {SearchConfig: {}, ProgramConfig: {}, Output: {"quick": quick}}
    for name in SETTINGS_IN_SPACE:
        if values := space_.static_values(study.space, name):
            if name in settings:
                raise ValueError(f"{name}={settings[name]} doesn't go with {name} in the space: narrow its range there")
            chosen[name] = max((value for value in values if type(value) is int), default=1)
    num_trials = chosen.pop("num_trials")
    chosen = halving_settings(chosen.pop("halving", study.halving)) | chosen
    given = taken(chosen, study.space)
    for name, value in chosen.items():
        part = next((part for part in parts if name in {f.name for f in fields(part)}), None)
        if part is None:
            known = {f.name for part in parts for f in fields(part)} | {"num_trials", *NAMES}
            of_study = {f.name for f in fields(Study)} - known
            if name in of_study:
                raise TypeError(f"{name}= is an argument of Study, not a setting of its runs")
            raise TypeError(f"there is no setting {name}{arguments.meant(name, known, of_study)}")
        parts[part][name] = value
    out = parts[Output].get("out")
    parts[Output]["out"] = None if out is None else Path(os.path.expanduser(out))
    if unknown := sorted(set(inputs or {}) - set(study.inputs)):
        raise TypeError(f"inputs= has no {', '.join(unknown)}; there are {', '.join(study.inputs) or 'none'}")
    paths = dict.fromkeys(study.inputs) | {
        name: Path(os.path.expanduser(path)) for name, path in (inputs or {}).items() if path
    }
    if study.folds is not None and "num_folds" in settings:
        raise ValueError(f"num_folds={settings['num_folds']} doesn't go with folds= of the study's own")
    if study.averaging != (averaging := parts[SearchConfig]["averaging"]):
        study = replace(study, averaging=averaging)
    search, program = SearchConfig(**parts[SearchConfig]), ProgramConfig(**parts[ProgramConfig])
    return RunConfig(study, num_trials, search, program, Output(**parts[Output]), paths, given)


def halving_settings(halving: Halving | int | None) -> dict[str, Any]:
    """The search settings of a `Halving` or of its factor."""
    if not isinstance(halving, Halving):
        return {"halving": halving}
    return {"halving": halving.factor, "first_rung": halving.first, "brackets": halving.brackets}


def check(config: RunConfig) -> None:
    """Raises a ValueError of one line if settings or study are invalid; reads and writes nothing."""
    study, num_trials, search, program, output = config[:5]
    optional = ("num_devices", "members_per_program", "halving", "first_rung", "early_stopping", "ensemble")
    values = {"num_trials": num_trials, **vars(search), **vars(program)}
    for name in ("num_trials", "num_epochs", "batch_size", "num_folds", "repeats", "seed", "workers", *optional):
        value, least = values[name], {"num_folds": 2, "seed": 0, "halving": 2, "ensemble": 2}.get(name, 1)
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name}= must be a whole number, got {value!r}")
        if value < least:
            raise ValueError(f"{name}= must be at least {least}, got {value}")
    if search.halving is not None and "num_epochs" in study.space:
        raise ValueError("halving= doesn't go with num_epochs in the space: its rungs are numbers of epochs")
    if (seconds := program.timeout) is not None and not (isinstance(seconds, int | float) and seconds > 0):
        raise ValueError(f"timeout= must be a number of seconds above 0, got {seconds!r}")
    if search.halving is None and (search.first_rung is not None or search.brackets):
        raise ValueError("first_rung= and brackets= go with halving=")
    if search.averaging is not None:
        array_checks.check_averaging(search.averaging)
    if search.first_rung is not None and search.first_rung > search.num_epochs:
        raise ValueError(f"first_rung={search.first_rung} is more than the {search.num_epochs} epochs of a trial")
    if not isinstance(output.refit, bool):
        raise ValueError(f"refit= must be True or False, got {output.refit!r}; maximize= of the study names a metric")
    if search.seed > LARGEST_SEED:
        raise ValueError(f"seed= must be at most {LARGEST_SEED}, got {search.seed}")
    for part, name in ((search, "sampler"), (search, "precision"), (program, "widths")):
        words = get_args({f.name: f.type for f in fields(part)}[name])
        if getattr(part, name) not in words and not (name == "sampler" and config.given.sampler):
            raise ValueError(f"{name}= must be one of {', '.join(words)}, got {getattr(part, name)!r}")
    num_folds = search.repeats * (search.num_folds if study.folds is None else 1)
    num_members = program.members_per_program
    if num_members is not None and num_members < num_folds:  # `make_plan` checks a study's own folds
        raise ValueError(f"members_per_program= must be at least a trial's {num_folds} folds")
    check_study(study)
    taken = next((path for path in (config.folder, *config.folder.absolute().parents) if path.exists()), None)
    if taken is not None and not taken.is_dir():
        raise ValueError(f"out={config.folder}: {taken} is a file; name a folder")


def afresh(study: Study) -> Study:
    """The study with networks that are made anew: what they use may have changed since they were made."""
    return replace(study, task=partial(study.task))


def check_study(study: Study) -> None:
    """Raises a ValueError or TypeError of one line if a study is invalid, whatever the settings."""
    plain = study.name.replace("_", "").replace("-", "").replace(".", "")
    if not plain.isascii() or not plain.isalnum() or study.name.startswith((".", "-")):
        raise ValueError(f"name= must be letters, digits, _, - and ., as it names a folder; got {study.name!r}")
    space_text.check_ranges(study.space)
    space_.check(study.space)
    if not isinstance(study.metrics, Mapping):
        raise TypeError(f"metrics= must be a dict of functions by name, got {type(study.metrics).__name__}")
    for name, function in (("task", study.task), *((f"metrics[{n!r}]", metric) for n, metric in study.metrics.items())):
        if not callable(function):
            of = " of the static hyperparameters that returns a Task" if name == "task" else ""
            raise TypeError(f"{name}= must be a function{of}, got {type(function).__name__}")
        checks.check_hashable(function, name)
    if not callable(study.data) and not isinstance(study.data, Dataset):
        raise TypeError(f"data= must be a Dataset or a function that returns one, got {type(study.data).__name__}")
    reserved = {f.name for part in (SearchConfig, ProgramConfig, Output) for f in fields(part)} | {"num_trials", "loss"}
    scores = {name for name in study.space if re.match(r"(mean|std|split\d+)_val_|split\d+_best_epoch", str(name))}
    for name in SETTINGS_IN_SPACE:
        if not all(type(value) is int and value > 0 for value in space_.static_values(study.space, name)):
            raise ValueError(f"space: {name} must be static, a Choice or an Int of whole numbers of at least 1")
    if taken := (reserved.difference(SETTINGS_IN_SPACE) | COLUMNS | scores) & set(study.space):
        what = "a setting" if taken & reserved else "a column of trials.csv"
        raise ValueError(f"space: {', '.join(sorted(taken))} is the name of {what}; give it another")
    if taken := (reserved | set(study.space)) & set(study.inputs):
        raise ValueError(f"inputs: {', '.join(sorted(taken))} is the name of a setting; give it another")
    if study.score not in ("loss", *study.metrics):
        way = "maximize" if study.maximize else "minimize"
        raise ValueError(f"{way}= must be one of {', '.join(('loss', *study.metrics))}, got {study.score!r}")
    if bad := [name for name in study.metrics if not str(name).isidentifier() or name == "loss"]:
        raise ValueError(f"metrics: {bad[0]!r} is no name for a metric")
    if (count := space_.num_programs(study.space)) > MOST_PROGRAMS:
        raise ValueError(f"space: static hyperparameters with {count} values would need as many programs; at most "
                         f"{MOST_PROGRAMS}, let the others be traced")  # fmt: skip
    if isinstance(study.folds, Iterator):
        raise TypeError("folds= can be gone through only once: give a list of them")
    if study.epochs_per_call is not None and study.epochs_per_call < 1:
        raise ValueError(f"epochs_per_call= must be at least 1, got {study.epochs_per_call}")
    unknown = set(study.quick) - {"num_trials", "num_folds", "num_epochs", "batch_size"}
    if unknown:
        raise ValueError(f"quick: {', '.join(sorted(unknown))} can't be smaller in a small run")


def narrow(study: Study, **space: Any) -> Study:
    """The study with other ranges of some hyperparameters."""
    return replace(study, space={**study.space, **space})
