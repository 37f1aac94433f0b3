"""The report's three studies as data: network, loss, ranges, defaults, and the numbers that the report gives."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hw1jax import losses, models, optimizers
from hw1jax.data import Dataset, fashion_mnist, regression
from hw1jax.losses import Array
from hw1jax.space import Draw, FloatRange, IntRange, Space
from hw1jax.training import Task, unchanged


class Hyperparameters(NamedTuple):
    """A trial's hyperparameters as arrays; a population's have a leading [trial] axis."""

    channels: Array  # int32 [convolution]
    hidden_units: Array  # int32 [hidden layer]
    learning_rate: Array  # float []
    l2: Array  # float []
    optimizer: Array  # int32 [], index into OPTIMIZERS


@dataclass(frozen=True)
class Settings:
    """What a person can choose for a study."""

    num_trials: int
    """Draws of hyperparameters."""
    num_epochs: int
    """Passes over the training data."""
    batch_size: int
    """Samples a step."""
    hidden_units: tuple[IntRange, ...]
    """Units of each hidden layer, as many ranges as layers."""
    num_folds: int = 3
    """Folds of the cross-validation."""
    seed: int = 0
    """Of folds, minibatches, draws and initial parameters."""
    sampler: Literal["random", "tpe"] = "random"
    """How hyperparameters are drawn."""
    learning_rate: FloatRange = FloatRange(1e-3, 1e-1)
    """Range of the learning rate (logarithmic)."""
    l2: FloatRange = FloatRange(1e-4, 1e-1)
    """Range of the L2 coefficient (logarithmic)."""
    optimizers: tuple[Literal["adam", "sgd", "rmsprop"], ...] = optimizers.OPTIMIZERS
    """Optimizers to choose from."""
    widths: Literal["auto", "padded", "exact"] = "auto"
    """Networks padded to the same widths in one program, or each at its own widths in its own program."""
    members_per_program: int | None = None
    """Networks (trials x folds) that one program trains at most; as many as there are, if not given."""
    num_devices: int | None = None
    """Devices to use (on a CPU, cores); all, if not given."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """Of matrix products on a GPU or TPU; a CPU computes in float32."""
    reproducible: bool = False
    """On a GPU, the same bits each time: slower, as XLA may neither reorder sums nor try out kernels."""
    distributed: bool = False
    """One program over the devices of several processes, each started with the same flags; found by themselves on
    SLURM, Kubernetes and Cloud TPU, elsewhere by the next three flags."""
    coordinator: str | None = None
    """HOST:PORT where process 0 listens."""
    num_processes: int | None = None
    """Processes in all."""
    process_id: int | None = None
    """This process's number, from 0."""
    join_timeout: int = 60
    """Seconds that the processes wait for each other at the start."""
    out: Path | None = None
    """Folder of the results; runs/STUDY, or runs/quick/STUDY with --quick, if not given."""
    storage: str | None = None
    """URL of a database for Optuna, such as postgresql+psycopg://user@host/name, instead of OUT/journal.log."""
    quick: bool = False
    """A small run on the real data: fewer trials and epochs, unless they are given."""
    quiet: bool = False
    """Show the results alone."""
    verbose: bool = False
    """Show every trial, and a line each time that the program comes back."""


@dataclass(frozen=True)
class RegressionSettings(Settings):
    train_csv: Path | None = None
    """Training data with the header input,label, instead of the embedded data."""
    test_csv: Path | None = None
    """Test data with the header input,label."""


@dataclass(frozen=True)
class ImageSettings(Settings):
    data_dir: Path | None = None
    """Folder with the four Fashion-MNIST files, instead of fetching them."""


@dataclass(frozen=True)
class ConvolutionSettings(ImageSettings):
    channels: tuple[IntRange, ...] = (IntRange(4, 10), IntRange(10, 15))
    """Channels of each convolution, as many ranges as convolutions."""


@dataclass(frozen=True)
class Reported:
    """What the homework report found."""

    best: Draw
    test_loss: float
    test_accuracy: float | None


@dataclass(frozen=True)
class Study:
    """One of the report's studies.

    Attributes:
      name: of its folder and its Optuna study.
      title: for people.
      settings: the report's own.
      quick: the same, small.
      load: reads the data.
      loss: one value an example.
      loss_name: for tables and axes, with its unit.
      classes: names of the classes, or None for a regression.
      reported: what the report found.
      epochs_per_call: epochs between two looks at the progress, at most.
    """

    name: str
    title: str
    settings: Settings
    quick: Settings
    load: Callable[[Any], Dataset]
    loss: Callable[[Array, Array], jax.Array]
    loss_name: str
    classes: tuple[str, ...] | None
    reported: Reported
    epochs_per_call: int


def _load_regression(settings: RegressionSettings) -> Dataset:
    if settings.train_csv is None and settings.test_csv is None:
        return regression.embedded()
    if settings.train_csv is None or settings.test_csv is None:
        raise ValueError("--train-csv and --test-csv go together: give both, or neither for the embedded data")
    return regression.from_csv(settings.train_csv, settings.test_csv)


def _load_images(settings: ImageSettings) -> Dataset:
    return fashion_mnist.load(settings.data_dir)


LARGEST_SEED = 2**32 - 1  # JAX's keys take no more bits of it
LARGEST_WIDTH = 10_000  # of a layer; more is a slip of the finger, and fills the memory

_UNITS = (IntRange(10, 50), IntRange(10, 50), IntRange(3, 30))
_CONVOLUTION_UNITS = (IntRange(20, 50), IntRange(20, 50))

REGRESSION = Study(
    name="regression",
    title="Regression",
    settings=RegressionSettings(num_trials=25, num_epochs=1000, batch_size=20, hidden_units=_UNITS),
    quick=RegressionSettings(num_trials=6, num_epochs=200, batch_size=20, hidden_units=_UNITS, quick=True),
    load=_load_regression,
    loss=losses.squared_error,
    loss_name="mean squared error",
    classes=None,
    reported=Reported(Draw((), (45, 21, 23), 0.016, 0.0003, "adam"), 0.27, None),
    epochs_per_call=50,
)
FASHION_MLP = Study(
    name="fashion_mlp",
    title="Fashion-MNIST, dense net",
    settings=ImageSettings(num_trials=10, num_epochs=20, batch_size=200, hidden_units=_UNITS),
    quick=ImageSettings(num_trials=4, num_epochs=2, batch_size=200, hidden_units=_UNITS, quick=True),
    load=_load_images,
    loss=losses.cross_entropy,
    loss_name="cross entropy (nats)",
    classes=fashion_mnist.CLASSES,
    reported=Reported(Draw((), (49, 26, 24), 0.002, 0.0001, "adam"), 0.35, 0.87),
    epochs_per_call=1,
)
FASHION_CNN = Study(
    name="fashion_cnn",
    title="Fashion-MNIST, convolutional net",
    settings=ConvolutionSettings(num_trials=10, num_epochs=20, batch_size=200, hidden_units=_CONVOLUTION_UNITS),
    quick=ConvolutionSettings(num_trials=2, num_epochs=1, batch_size=200, hidden_units=_CONVOLUTION_UNITS, quick=True),
    load=_load_images,
    loss=losses.cross_entropy,
    loss_name="cross entropy (nats)",
    classes=fashion_mnist.CLASSES,
    reported=Reported(Draw((4, 12), (38, 28), 0.008, 0.0001, "adam"), 0.30, 0.89),
    epochs_per_call=1,
)
STUDIES = (REGRESSION, FASHION_MLP, FASHION_CNN)


@lru_cache  # equal tasks are the same task, so that a program is compiled once
def make_task(study: Study, channels: tuple[int, ...], hidden_units: tuple[int, ...]) -> Task:
    """The study's network with these maximum widths, as a task whose hyperparameters are `Hyperparameters`."""
    num_outputs = len(study.classes) if study.classes else 1
    image = (fashion_mnist.IMAGE_SIZE, fashion_mnist.IMAGE_SIZE)
    if channels:
        network, prepare = models.CNN(channels, hidden_units, num_outputs), models.images_last
    else:
        network = models.MLP(hidden_units, num_outputs)
        prepare = models.scale_pixels if study.classes else unchanged

    def widths(hyperparameters: Hyperparameters):
        both = (hyperparameters.channels, hyperparameters.hidden_units)
        return both if channels else both[1:]

    def init(key, hyperparameters):
        # Made here, in the precision of the moment: what is cached must hold no array.
        example = jnp.zeros((1, *image), jnp.uint8) if study.classes else jnp.zeros((1, 1))
        return network.init(key, prepare(example), *widths(hyperparameters))["params"]

    def apply(params, x, hyperparameters) -> Any:  # of what a Flax module may return, its outputs alone
        return network.apply({"params": params}, x, *widths(hyperparameters))

    def optimizer(hyperparameters):
        return optimizers.chosen_l2(hyperparameters.optimizer, hyperparameters.learning_rate, hyperparameters.l2)

    return Task(init, apply, study.loss, optimizer, prepare)


def by_name(name: str) -> Study:
    """The study of this name; a ValueError if there is none."""
    for study in STUDIES:
        if study.name == name:
            return study
    raise ValueError(f"unknown study {name!r}; there are {', '.join(study.name for study in STUDIES)}")


def parameter_shapes(study: Study, draw: Draw) -> Any:
    """The tree of a network's parameters at its own widths, as shapes and dtypes."""
    task = make_task(study, draw.channels, draw.hidden_units)
    hyperparameters = jax.tree.map(lambda a: a[0], as_arrays([draw]))
    return jax.eval_shape(task.init, jax.random.key(0), hyperparameters)


def widest(settings: Settings) -> Draw:
    """The widest network that the settings can draw."""
    space = space_of(settings)
    channels, hidden_units = (tuple(r.high for r in ranges) for ranges in (space.channels, space.hidden_units))
    return Draw(channels, hidden_units, space.learning_rate.low, space.l2.low, space.optimizers[0])


def inputs(settings: Settings) -> dict[str, Path | None]:
    """The files that the user names instead of the usual data."""
    names = ("data_dir", "train_csv", "test_csv")
    return {name: getattr(settings, name) for name in names if hasattr(settings, name)}


def folder(study: Study, settings: Settings) -> Path:
    """Where the study's results go."""
    return settings.out or Path("runs", *(["quick"] if settings.quick else []), study.name)


def num_parameters(study: Study, draw: Draw) -> int:
    """Parameters of a network at its own widths."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(study, draw)))


def space_of(settings: Settings) -> Space:
    """What the settings say is searched."""
    channels = getattr(settings, "channels", ())
    return Space(settings.hidden_units, channels, settings.learning_rate, settings.l2, settings.optimizers)


def as_arrays(draws: list[Draw]) -> Hyperparameters:
    """Draws as arrays with a leading [trial] axis."""
    return Hyperparameters(
        np.array([draw.channels for draw in draws], np.int32),
        np.array([draw.hidden_units for draw in draws], np.int32),
        np.array([draw.learning_rate for draw in draws], np.float32),
        np.array([draw.l2 for draw in draws], np.float32),
        np.array([optimizers.OPTIMIZERS.index(draw.optimizer) for draw in draws], np.int32),
    )


def check(study: Study, settings: Settings) -> None:
    """Raises a ValueError of one line if the settings can't be run, before anything is read or written."""
    for name, least in (("num_trials", 1), ("num_epochs", 1), ("batch_size", 1), ("num_folds", 2), ("seed", 0)):
        if getattr(settings, name) < least:
            raise ValueError(f"{_flag(name)} must be at least {least}, got {getattr(settings, name)}")
    if settings.num_devices is not None and settings.num_devices < 1:
        raise ValueError(f"--num-devices must be at least 1, got {settings.num_devices}")
    if settings.quiet and settings.verbose:
        raise ValueError("--quiet and --verbose don't go together")
    if settings.members_per_program is not None and settings.members_per_program < settings.num_folds:
        raise ValueError(f"--members-per-program must be at least a trial's {settings.num_folds} folds")
    if settings.seed > LARGEST_SEED:
        raise ValueError(f"--seed must be at most {LARGEST_SEED}, got {settings.seed}")
    space = space_of(settings)
    for name, ranges in (("hidden_units", space.hidden_units), ("channels", space.channels)):
        for low, high in ranges:
            if not 1 <= low <= high:
                raise ValueError(f"{_flag(name)}: a range goes from a low number of at least 1 up, got {low}-{high}")
            if high > LARGEST_WIDTH:
                raise ValueError(f"{_flag(name)}: a layer has at most {LARGEST_WIDTH} units, got {low}-{high}")
    for name, (low, high) in (("learning_rate", space.learning_rate), ("l2", space.l2)):
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"{_flag(name)}: a range goes from a low number above 0 up, got {low:g}-{high:g}")
    if not space.hidden_units:
        raise ValueError("--hidden-units needs a range for each hidden layer, for example --hidden-units 10-50 10-50")
    if not space.optimizers:
        raise ValueError(f"--optimizers needs at least one of {', '.join(optimizers.OPTIMIZERS)}")
    if isinstance(settings, ConvolutionSettings):
        most = models.most_convolutions(fashion_mnist.IMAGE_SIZE)
        if not 1 <= len(space.channels) <= most:
            raise ValueError(
                f"--channels needs 1 to {most} ranges, as the image is pooled away after {most} convolutions"
            )


def check_folder(folder: Path) -> None:
    """Raises a ValueError if results can't go there because a file is in the way."""
    taken = next((path for path in (folder, *folder.absolute().parents) if path.exists()), None)
    if taken is not None and not taken.is_dir():
        raise ValueError(f"--out {folder}: {taken} is a file; name a folder")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
