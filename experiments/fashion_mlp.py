"""Fashion-MNIST with a dense net (sigmoid, cross entropy).

All folds of all trials train at once in one compiled program; then the best trial is trained again on all training
data and looks at the test set.

    python experiments/fashion_mlp.py [--quick] [--out DIR] [--help]
"""

import signals

if __name__ == "__main__":
    signals.listen()  # before the imports that take seconds

from command import main

from hw1jax.studies import FASHION_MLP

if __name__ == "__main__":
    main(FASHION_MLP, __doc__)
