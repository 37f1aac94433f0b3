"""Small networks of the three studies with random parameters, as a run would leave them trained."""

import fashion_cnn
import fashion_mlp
import jax
import numpy as np
import regression

from hw1jax import study
from hw1jax.trained import Model

STUDIES = {s.name: s for s in (regression.STUDY, fashion_mlp.STUDY, fashion_cnn.STUDY)}
DRAWS = {
    "regression": {"hidden_units": (4, 3), "learning_rate": 0.016, "l2": 0.0003, "optimizer": "adam"},
    "fashion_mlp": {"hidden_units": (3, 5, 2), "learning_rate": 0.002, "l2": 0.0001, "optimizer": "sgd"},
    "fashion_cnn": {
        "channels": (2, 3),
        "hidden_units": (4, 3),
        "learning_rate": 0.008,
        "l2": 0.0001,
        "optimizer": "rmsprop",
    },
}


def studied(name: str):
    """The study with as many hidden layers as its draw has."""
    asked = STUDIES[name]
    return study.narrow(asked, hidden_units=asked.space["hidden_units"][-1:] * len(DRAWS[name]["hidden_units"]))


def make_model(name: str, num_folds: int = 0) -> Model:
    """A small network of the study with random parameters, and fold models."""
    rng = np.random.default_rng(0)
    model = Model(studied(name), DRAWS[name], {})
    shapes = study.parameter_shapes(model.task, model.hyperparameters)
    networks = [
        jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes) for _ in range(1 + num_folds)
    ]
    return model._replace(params=networks[0], folds=tuple((params, None) for params in networks[1:]))


def examples(name: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    if name == "regression":
        return rng.uniform(-5, 5, (7, 1)).astype(np.float32)
    return rng.integers(256, size=(7, 28, 28), dtype=np.uint8)
