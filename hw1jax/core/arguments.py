"""Arguments that there are not: what is meant by their names."""

from collections.abc import Collection
from difflib import get_close_matches

ELSEWHERE = (  # names in scikit-learn, Optuna, Keras and PyTorch, and those that they have here
    ({"n_trials", "n_iter", "trials"}, ("num_trials",)),
    ({"cv", "n_splits", "n_folds", "k"}, ("num_folds", "folds")),
    ({"epochs", "n_epochs", "max_epochs", "max_iter"}, ("num_epochs",)),
    ({"random_state", "rng"}, ("seed", "key")),
    ({"n_jobs"}, ("num_devices",)),
    ({"scoring"}, ("metrics",)),
    ({"sample_weight"}, ("weights",)),
)


def meant(name: str, known: Collection[str], others: Collection[str] = ()) -> str:
    """The rest of a message on an argument `name` that isn't among the `known` ones: what to give instead.

    `others` are arguments of a related function, which may be meant.
    """
    every = {*known, *others}
    close = [ours for theirs, names in ELSEWHERE if name in theirs for ours in names if ours in every]
    close = close or get_close_matches(name, sorted(every), n=1)
    return f": give {' or '.join(f'{each}=' for each in close)}" if close else f"; there are {', '.join(sorted(known))}"
