"""Cross-validated training of many small networks at once: all folds of all trials in one compiled program."""

from hw1jax.cross_validation import CrossValidation as CrossValidation
from hw1jax.cross_validation import cross_validate as cross_validate
from hw1jax.folds import Fold as Fold
from hw1jax.folds import k_fold as k_fold
from hw1jax.folds import stratified_k_fold as stratified_k_fold
from hw1jax.losses import cross_entropy as cross_entropy
from hw1jax.losses import squared_error as squared_error
from hw1jax.optimizers import adam_l2 as adam_l2
from hw1jax.optimizers import chosen_l2 as chosen_l2
from hw1jax.optimizers import rmsprop_l2 as rmsprop_l2
from hw1jax.optimizers import sgd_l2 as sgd_l2
