"""Regression of a noisy scalar function with a dense net (sigmoid, mean squared error).

All folds of all trials train at once in one compiled program; then the best trial is trained again on all training
data and looks at the test set.

    python experiments/regression.py [--quick] [--out DIR] [--help]
"""

import signals

if __name__ == "__main__":
    signals.listen()  # before the imports that take seconds

from command import main

from hw1jax.studies import REGRESSION

if __name__ == "__main__":
    main(REGRESSION, __doc__)
