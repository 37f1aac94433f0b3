"""The homework report that the three studies reimplement, and where they differ from it."""

from collections.abc import Mapping
from typing import Any

from hw1jax import Reference

# How the report's spaces are searched in about the time that its own numbers of trials take.
HALVING = {"halving": 3, "averaging": 0.99}
HALVING_TRIALS = {"regression": 150, "fashion_mlp": 54, "fashion_cnn": 48}


def report(params: Mapping[str, Any], test: Mapping[str, float]) -> Reference:
    """What the report found in one of its studies: its best hyperparameters, and their loss and accuracy."""
    return Reference(
        "the report",
        params=params,
        test=test,
        about="the homework report that hw1jax reimplements",
        notes=(
            "The report prints a sum of squares for what is a mean; losses here are means over the examples.",
            "Its tables list activations on the rows of the inputs; here an activation follows a hidden layer.",
            "Its learning profiles plot the test loss of each epoch. Here the test set is looked at once, by the "
            "refitted best trial; profiles show the training and validation losses of the best trial's folds and the "
            "refit's training loss.",
            "Its table of the convolutional net names no pooling, but its activation profile of the second convolution "
            "is 11 x 11, which only 2 x 2 max-pooling after each convolution gives (28, 27, 13, 11, 5).",
        ),
    )
