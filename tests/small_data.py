"""Runs a script with a few small images for Fashion-MNIST: python tests/small_data.py SCRIPT [FLAG ...]"""

import runpy
import sys
from pathlib import Path

import numpy as np

from hw1jax.data import Dataset, fashion_mnist


def load(*_, **__):
    random = np.random.RandomState(0)
    x, y = random.randint(0, 256, (620, 28, 28)).astype(np.uint8), np.arange(620, dtype=np.int32) % 10
    return Dataset(x[:600], y[:600], x[600:], y[600:])


fashion_mnist.load = load
del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
