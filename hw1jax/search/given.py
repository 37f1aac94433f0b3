"""Arguments of Optuna's kinds, and checks of hyperparameters that the user or a sampler gives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hw1jax.search import seeding
from hw1jax.search import space as space_
from hw1jax.search.space import Choice, Float, Int, Range, Space

NAMES = ("callbacks", "enqueue")


class Given(NamedTuple):
    """Arguments that only Python can give."""

    sampler: Callable[[], Any] | None = None  # makes one of Optuna's; None: `SearchConfig.sampler` says all
    enqueued: Sequence[Mapping[str, Any]] = ()  # hyperparameters of the first trials, by column
    callbacks: Sequence[Callable[..., Any]] = ()  # (study, trial), as of Optuna's `optimize`

    @property
    def identity(self) -> dict[str, Any]:
        """What the results depend on, besides the name of the sampler."""
        return {"enqueue": list(self.enqueued)} if self.enqueued else {}


def taken(settings: dict[str, Any], space: Space) -> Given:
    """Takes the arguments of Optuna's kinds out of a run's settings; a sampler leaves its name.

    Raises:
      ValueError, TypeError: an invalid argument; one line that names it.
    """
    sampler, seed = settings.get("sampler", ""), settings.get("seed", 0)
    new_sampler = None
    if not isinstance(sampler, str):
        settings["sampler"], new_sampler = seeding.seeded(sampler, seed)
    callbacks = settings.pop("callbacks", ())
    if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
        raise TypeError("callbacks= must be a list of functions (study, trial)")
    return Given(new_sampler, tuple(enqueued(space, settings.pop("enqueue", ()))), tuple(callbacks))


def enqueued(space: Space, enqueue: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Converts hyperparameters of trials (as in `results.best.params`, some may be missing) to columns.

    Raises:
      ValueError, TypeError: a name or value that the space doesn't have; one line that names both.
    """
    if not isinstance(enqueue, list | tuple) or not all(isinstance(draw, Mapping) for draw in enqueue):
        raise TypeError("enqueue= must be a list of dicts, each with the hyperparameters of a trial by name")
    rows = []
    if enqueue:
        space_.check(space)
    for draw in enqueue:
        for name, value in draw.items():
            if name not in space:
                raise ValueError(f"enqueue= has {name!r}, which is no hyperparameter; there are {', '.join(space)}")
            ranges, num_values = space[name], len(value) if isinstance(value, tuple | list) else None
            if isinstance(ranges, Sequence) and num_values != len(ranges):
                raise ValueError(f"enqueue= has {name} = {value!r}, which must be a tuple of {len(ranges)}")
            if isinstance(ranges, Int | Float) and num_values is not None:
                raise ValueError(f"enqueue= has {name} = {value!r}, which must be one value")
        rows.append(check_columns(space, space_.flatten(draw, space), "enqueue= has"))
    return rows


def check_columns(space: Space, params: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The values by column, as Python's; raises a ValueError that begins with `what` if one is outside of its range."""
    ranges = space_.columns(space)
    return {column: _fitting(column, ranges[column], space_.plain(value), what) for column, value in params.items()}


def _fitting(column: str, r: Range, value: Any, what: str) -> Any:
    if isinstance(r, Choice):
        fits = [v for v in r.among if v == value and isinstance(v, bool) == isinstance(value, bool)]
    elif isinstance(r, Float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = [float(value)] if is_number and r.low <= value <= r.high else []
    else:
        fits = [value] if isinstance(value, int) and not isinstance(value, bool) and value in r.values else []
    if not fits:
        raise ValueError(f"{what} {column} = {value!r}, which is not in {r}")
    return fits[0]
