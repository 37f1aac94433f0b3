"""Checks of a user's data and hyperparameters, and their conversion to arrays."""

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hw1jax.core.folds import Fold

LARGEST_ROUNDING = 0.01  # of JAX's dtype, relative to the values' standard deviation
NUMBERS = "biufcV"  # numpy's dtype kinds; V: bfloat16 and similar


def as_arrays(tree: Any, name: str, *, nan: bool = False) -> Any:
    """Converts a tree of arrays, or of objects that numpy converts (pandas' tables and columns too), to numpy arrays.

    `nan`: whether NaN is allowed.

    Raises:
      TypeError: a list, or a leaf that isn't numeric.
      ValueError: values that are not finite, are masked, or overflow the dtype in which JAX computes; an empty tree.
    """
    if not isinstance(tree, np.ndarray | jax.Array) and hasattr(tree, "to_numpy"):
        return _table(tree, name, nan)
    if isinstance(tree, list) or _is_tuple_of_scalars(tree):
        raise TypeError(f"{name}= must be an array, or a dict or tuple of arrays, not a list: give np.asarray({name})")
    if isinstance(tree, Mapping | tuple) and not tree:
        raise ValueError(f"{name}= is empty")
    if isinstance(tree, Mapping):
        return {key: as_arrays(value, f"{name}[{key!r}]", nan=nan) for key, value in tree.items()}
    if isinstance(tree, tuple):
        parts = [as_arrays(value, f"{name}[{i}]", nan=nan) for i, value in enumerate(tree)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if tree is not None and jax.tree.structure(tree) != jax.tree.structure(0):  # a registered pytree
        return jax.tree.map(lambda leaf: _numbers(leaf, f"{name}=", nan), tree)
    return _numbers(tree, f"{name}=", nan)


def _table(table: Any, name: str, nan: bool) -> np.ndarray:
    """A data frame as [sample, column], a column as [sample]."""
    if not hasattr(table, "columns"):
        return _column(table, f"{name}=", nan)
    if len(set(table.columns)) < len(table.columns):  # their names are ambiguous
        return _numbers(table.to_numpy(), f"{name}=", nan)
    columns = [_column(table[column], f"{name}[{column!r}]", nan) for column in table.columns]
    return np.stack(columns, axis=1).astype(np.result_type(*columns))


def _column(column: Any, name: str, nan: bool) -> np.ndarray:
    values = np.asarray(column.to_numpy())
    if values.dtype.kind == "O":  # pandas' nullable or Arrow dtypes
        with suppress(TypeError, ValueError):  # not numeric
            values = np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return _numbers(values, name, nan)


def _is_tuple_of_scalars(tree: Any) -> bool:
    return isinstance(tree, tuple) and any(isinstance(value, bool | int | float | np.generic) for value in tree)


def _numbers(values: Any, name: str, nan: bool = False) -> np.ndarray:
    try:
        array = np.asarray(values)
    except Exception as error:  # for example another library's array on a GPU
        raise TypeError(f"{name} can't be made an array by np.asarray: {textwrap.shorten(str(error), 300)}") from error
    if array.dtype.kind not in NUMBERS:
        kinds = sorted({type(value).__name__ for value in array.flat}) if array.dtype.kind == "O" else ()
        what = f"an array of {array.dtype}" + (f" ({', '.join(kinds)})" if kinds else "")
        way = ": give its .toarray()" if hasattr(values, "toarray") else ""
        if name[:1] in "xX" and (array.dtype.kind in "UST" or "str" in kinds):
            way = ": encode names as numbers, as scikit-learn's OneHotEncoder does"
        if name.startswith("y") and (array.dtype.kind in "UST" or kinds == ["str"]):
            way = f": give np.unique({name[:-1]}, return_inverse=True)[1], or use hw1jax.sklearn"
        raise TypeError(f"{name} must be numbers, got {what}{way}")
    if array.dtype.names is not None:
        raise TypeError(f"{name} is a structured array with {', '.join(array.dtype.names)}: give one array of numbers")
    if np.ma.is_masked(values):
        raise ValueError(
            f"{name} has {np.ma.count_masked(values)} masked values: leave those samples out, or fill them"
        )
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        count = np.count_nonzero(~np.isfinite(array) & ~(nan & np.isnan(array)))
    else:
        count = 0
    if count:
        raise ValueError(f"{name} must be finite, got {count} of {array.size} values that are NaN or infinite")
    return _representable(array, name)


def _representable(array: np.ndarray, name: str) -> np.ndarray:
    """Returns the array; raises a ValueError if JAX's dtype overflows or rounds away more than 1% of the signal."""
    native = np.float64 if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
    array = array.astype(native, copy=False)
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype or not array.ndim:
        return array
    with np.errstate(over="ignore"):
        computed = array.astype(dtype)
    lost = computed.astype(array.dtype) != array if array.dtype.kind in "iu" else np.isinf(computed)
    way = "give smaller numbers, or set jax_enable_x64"
    if lost.any():
        raise ValueError(f"{name} has values that {dtype}, in which JAX computes, can't hold ({array[lost][0]}): {way}")
    if array.dtype.kind == "f" and len(array):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a column of NaN alone
            rounded, deviation = (np.nanstd(a.astype(np.float64), axis=0) for a in (computed - array, array))
        if (rounded > LARGEST_ROUNDING * deviation).any():
            largest = np.nanmax(np.abs(array))
            raise ValueError(
                f"{name} loses its signal in {dtype}, in which JAX computes: values around {largest:.3g} "
                "differ by little more than they are rounded; subtract their mean, or set jax_enable_x64"
            )
    return array


def as_groups(groups: Any) -> np.ndarray:
    """Converts group labels [sample] to an array of numbers or strings; raises a ValueError if some are masked."""
    if np.ma.is_masked(groups):
        raise ValueError("groups= has masked values: leave those samples out")
    groups = np.asarray(groups)
    return groups.astype(str) if groups.dtype.hasobject else groups  # the digest of an object is that of its address


def check_outside(*trees: Any) -> None:
    """Raises a TypeError while JAX is tracing: `cross_validate` compiles programs itself."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((jnp.zeros(()), *trees))):
        raise TypeError(
            "cross_validate can't be called within jax.jit, vmap or grad: it compiles a program itself; call it outside"
        )


def common_length(tree: Any, name: str, axis: str) -> int:
    """Returns the length of the leading axis that all arrays of a tree share; raises a ValueError if they differ."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) != 1 or not shapes[0][0]:
        raise ValueError(f"{name} must have the same leading {axis} axis, at least 1 long, got shapes {shapes}")
    return shapes[0][0]


def check_number(value: Any, name: str) -> None:
    """Raises a ValueError unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}= must be a whole number, at least 1, got {value!r}")


def check_averaging(decay: Any) -> None:
    """Raises a ValueError if something is no decay of a moving average."""
    if not (isinstance(decay, float) and 0 < decay < 1):
        raise ValueError(f"averaging= is a decay, above 0 and below 1; got {decay!r}")


def check_key(key: Any) -> None:
    """Raises a TypeError unless the key is a single PRNG key."""
    try:
        is_one = jax.random.fold_in(key, 0).shape == key.shape
    except (TypeError, ValueError, AttributeError):
        is_one = False
    if not is_one:
        raise TypeError(f"key= must be a PRNG key, such as jax.random.key(0), got {type(key).__name__}")


def check_calls(num_folds: Any, folds: Any, metrics: Any, progress: Any) -> None:
    """Raises a TypeError if one of these arguments of `cross_validate` is of another type."""
    if folds is None and (isinstance(num_folds, bool) or not isinstance(num_folds, int | np.integer)):
        where = ": splits are given as folds=" if hasattr(num_folds, "split") or isinstance(num_folds, Sequence) else ""
        raise TypeError(f"num_folds= must be a whole number, got {type(num_folds).__name__}{where}")
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(f"metrics= must be a dict of functions by name, got {type(metrics).__name__}")
    if not isinstance(progress, bool | None) and not callable(progress):
        raise TypeError(f"progress= must be True, False or a function, got {type(progress).__name__}")


def as_weights(weights: Any) -> np.ndarray:
    """Weights as floating-point numbers, scaled if they are so large or small that float32 can't hold their sums.

    The scale is a power of two, which changes no mean.
    """
    array = as_arrays(np.asanyarray(weights), "weights").astype(np.float64)
    largest = np.max(array, where=np.isfinite(array), initial=0)
    if largest > 0 and not 2**-20 < largest < 2**20:
        array = np.ldexp(array, -int(np.frexp(largest)[1]))
    return array.astype(jax.dtypes.canonicalize_dtype(float))


def check_weights(weights: np.ndarray | None, folds: Sequence[Fold] = ()) -> None:
    """Raises a ValueError unless weights are at least 0, one a sample, and not all 0 in a part of a fold."""
    if weights is None:
        return
    if weights.ndim != 1 or not (weights >= 0).all() or not np.isfinite(weights).all() or not weights.any():
        raise ValueError(f"weights= must be one number of at least 0 a sample, not all 0, got shape {weights.shape}")
    for i, fold in enumerate(folds):
        for part, index in fold._asdict().items():
            if len(index) and not weights[index].any():
                raise ValueError(f"weights= are all 0 in the {part} part of fold {i}")


def check_hyperparameters(hyperparameters: Any) -> Any:
    """Converts a tree of arrays or lists, one value a trial, to arrays with a leading trial axis.

    Raises:
      TypeError, ValueError: an entry that isn't numeric or has another length; the message names it.
    """
    if isinstance(hyperparameters, list) and any(isinstance(value, Mapping) for value in hyperparameters):
        raise TypeError("hyperparameters= must be a dict of lists, one value a trial each, not a list of dicts")
    paths, structure = jax.tree.flatten_with_path(hyperparameters, is_leaf=_is_list_of_values)
    arrays = {f"hyperparameters{jax.tree_util.keystr(path)}": value for path, value in paths}
    for name, value in arrays.items():
        try:
            arrays[name] = np.asarray(value)
        except ValueError:
            raise ValueError(f"{name} is a list of lists of several lengths") from None
        if arrays[name].dtype.kind in "US" or (
            arrays[name].dtype.kind == "O" and all(map(callable, arrays[name].flat))
        ):
            what = "functions" if arrays[name].dtype.kind == "O" else "names"
            raise TypeError(f"{name} must be numbers, got {what}: give the index of each in a list of them")
        arrays[name] = _numbers(arrays[name], name)
    if not arrays:
        raise ValueError("hyperparameters= is empty: give at least one array, [trial]")
    lengths = [array.shape[:1] for array in arrays.values()]
    usual = max(lengths, key=lengths.count)
    for name, length in zip(arrays, lengths, strict=True):
        if not length or not length[0] or length != usual:
            has = "one value" if not length else f"{length[0]} values"
            others = f", others {usual[0]}" if usual and usual != length else ""
            raise ValueError(f"{name} has {has}{others}: give one a trial, on a leading trial axis")
    return jax.tree.unflatten(structure, arrays.values())


def _is_list_of_values(tree: Any) -> bool:
    """Returns True if the tree stands for one array, not for several hyperparameters."""
    if isinstance(tree, list):
        return not any(isinstance(value, np.ndarray | jax.Array) and value.ndim for value in tree)
    return _is_tuple_of_scalars(tree) and not hasattr(tree, "_fields")
