"""The programs that JAX lowers for GPUs and TPUs, inspected without such a device."""

import re
from collections import Counter
from dataclasses import replace

import fashion_cnn
import fashion_mlp
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
import regression

from hw1jax.core import layout, population
from hw1jax.core.folds import k_fold
from hw1jax.core.losses import cross_entropy
from hw1jax.core.population import Plan, TrainConfig
from hw1jax.core.tasks import Task
from hw1jax.core.training import Data
from hw1jax.search import space
from hw1jax.search.networks import padded

TRIALS, FOLDS, SAMPLES = 10, 3, 900
KERNELS = "dot_general|convolution|scatter|while|sort|reduce_window|select_and_scatter|custom_call"
# The loops are three: over epochs, over steps and over batches of the validation part.
# Products of a dense net's step: a forward and two backward a layer, but one for the first; validation's forward ones.
EXPECTED = {
    "regression": {"while": 3, "dot_general": 4 + 7 + 4},
    "fashion_mlp": {"while": 3, "dot_general": 4 + 7 + 4, "scatter": 4},
    "fashion_cnn": {"while": 3, "dot_general": 5 + 9 + 5, "scatter": 4},
}
STUDIES = {s.name: s for s in (replace(regression.STUDY, averaging=0.99), fashion_mlp.STUDY, fashion_cnn.STUDY)}
slow = pytest.mark.slow


def lowered(task, x, y, hyperparameters, params, batch_size, platform):
    """The text of a call's program over 10 trials x 3 folds, laid out as an accelerator gets it."""
    one = jax.tree.map(lambda a: a[0], hyperparameters)
    chosen = layout.choose(task.apply, params, x, one, batch_size, platform)
    assert chosen.microbatch_size is None and not chosen.sequential
    config = TrainConfig(2, batch_size, (0,), 2)
    placed = population.make_population(
        task, Plan(TRIALS, 1, TRIALS, chosen), config, Data(x, y), k_fold(len(x), FOLDS, (0,))
    )
    return population.lowered(placed, hyperparameters, platform).as_text()


def kernels(text):
    """How many of each kind of operation that becomes a kernel, or many, of its own; no product is of one member."""
    for shape in re.findall(r"dot_general.*-> tensor<([\dx]+)xf32>", text):
        assert {TRIALS, FOLDS} <= set(map(int, shape.split("x")[:3])), f"a product of {shape}"
    return Counter(re.findall(rf"stablehlo\.({KERNELS})\b", text))


@pytest.mark.parametrize(
    ("name", "platform"),
    [
        ("regression", "cuda"),
        ("fashion_mlp", "tpu"),
        ("fashion_cnn", "cuda"),
        pytest.param("regression", "tpu", marks=slow),
        pytest.param("fashion_mlp", "cuda", marks=slow),
        pytest.param("fashion_cnn", "tpu", marks=slow),
    ],
)
def test_a_studys_members_train_at_once_in_few_kernels(name, platform):
    study, rng = STUDIES[name], np.random.default_rng(0)
    widest = space.widest(study.space)
    if study.classes:
        x, y = rng.integers(0, 256, (SAMPLES, 28, 28), np.uint8), rng.integers(0, 10, SAMPLES, np.int32)
    else:
        x = y = rng.uniform(-5, 5, (SAMPLES, 1)).astype(np.float32)
    network = padded(study, widest)
    task, shapes = network.task, network.shapes[0]
    hyperparameters = space.as_arrays(study.space, [widest] * TRIALS)
    text = lowered(task, x, y, hyperparameters, shapes, study.batch_size, platform)
    assert kernels(text) == EXPECTED[name]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(7, (3, 3))(x))
        return nn.Dense(4)(x.reshape(len(x), -1))


@pytest.mark.parametrize("platform", ["cuda", pytest.param("tpu", marks=slow)])
def test_a_users_convolutions_are_one_grouped_convolution_over_all_members(platform):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 8, 8, 3)).astype(np.float32), rng.integers(0, 4, 90, np.int32)
    net = Net()
    task = Task(lambda key, h: net.init(key, x[:1]), lambda p, x, h: net.apply(p, x), cross_entropy, optax.adam)
    shapes = jax.eval_shape(task.init, jax.random.key(0), 0.1)
    text = lowered(task, x, y, np.full(TRIALS, 0.1, np.float32), shapes, 20, platform)
    found = kernels(text)
    assert found["while"] == 3
    # A forward and two backward each, but one for the first, and validation's forward ones.
    assert found["convolution"] == 2 + 3 + 2
    groups = re.findall(r"stablehlo\.convolution.*?feature_group_count = (\d+)", text, re.DOTALL)
    assert {int(n) for n in groups} <= {FOLDS, TRIALS * FOLDS}
