"""A trained model that outlives its run: to bytes and back, without pickle, and its predictions."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import numpy as np

from hw1jax import population, storage, studies
from hw1jax.space import Draw

FORMAT = 2  # of the file; another format is refused, not guessed at


class Model(NamedTuple):
    """A trained network at its own widths, without padding.

    Attributes:
      study: name of the study it belongs to.
      draw: its hyperparameters.
      params: {layer: {"weights": float32 [units, 1 + inputs]}}, the first column the bias.
    """

    study: str
    draw: Draw
    params: dict[str, dict[str, np.ndarray]]

    @property
    def is_finite(self) -> bool:
        """False for a network whose training has diverged: `load_model` refuses it."""
        return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(self.params))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Outputs, float32 [example, output], of x float32 [example, 1] or uint8 [example, 28, 28]."""
        task = studies.make_task(studies.by_name(self.study), self.draw.channels, self.draw.hidden_units)
        hyperparameters = jax.tree.map(lambda a: a[0], studies.as_arrays([self.draw]))
        return population.predict(task, self.params, hyperparameters, x)


def save_model(path: Path, model: Model) -> None:
    """Writes a model as MessagePack; the file appears whole or not at all."""
    content = {
        "format": FORMAT,
        "study": model.study,
        "hyperparameters": model.draw.as_dict(),
        "params": jax.tree.map(np.asarray, model.params),
    }
    storage.write_bytes(path, flax.serialization.msgpack_serialize(content))


def load_model(path: Path | str) -> Model:
    """Reads a model that `save_model` wrote, checked before it is trusted.

    Raises:
      ValueError: the file is damaged, of another format, or its arrays don't fit its hyperparameters.
    """
    try:
        content: Any = flax.serialization.msgpack_restore(Path(path).read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        draw = Draw.from_dict(content["hyperparameters"])
        model = Model(str(content["study"]), draw, content["params"])
        _check_params(model)
    except OSError:
        raise
    except Exception as error:  # whatever MessagePack or the checks choke on, the file is not a model
        raise ValueError(f"{path} is not a model of hw1jax ({error}); run its study again") from error
    return model


def _check_params(model: Model) -> None:
    """Raises a ValueError unless the arrays have the shapes that the hyperparameters call for, and are finite."""
    shapes = studies.parameter_shapes(studies.by_name(model.study), model.draw)
    expected = jax.tree.map(lambda a: f"float32 {a.shape}", shapes)
    found = jax.tree.map(lambda a: f"{np.asarray(a).dtype} {np.shape(a)}", model.params)
    if found != expected:
        raise ValueError(f"parameters {found}, expected {expected}")
    if not model.is_finite:
        raise ValueError("parameters that are not finite")
