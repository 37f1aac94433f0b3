"""Runs a script with a few small images for Fashion-MNIST: python tests/small_data.py SCRIPT [FLAG ...]"""

import runpy
import sys
from pathlib import Path

import numpy as np

from hw1jax.data import Dataset, fashion_mnist

X, Y = np.random.RandomState(0).randint(0, 256, (620, 28, 28)).astype(np.uint8), np.arange(620, dtype=np.int32) % 10
fashion_mnist.load = lambda *_, **__: Dataset(X[:600], Y[:600], X[600:], Y[600:])  # before the studies take it
del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
