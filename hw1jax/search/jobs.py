"""Jobs: trials that one program trains together, advanced by pure functions that any process can run.

The process that runs the study decides what to train and alone writes files. A job runs for some seconds at a time in a
thread of this process, or on a worker of an executor, and returns its checkpoint. So a dead worker costs these seconds,
and workers share no folder.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from hw1jax import storage
from hw1jax.core import population
from hw1jax.core.population import Plan, Population, Trials
from hw1jax.core.training import Best, State
from hw1jax.search import networks as networks_
from hw1jax.search.networks import Network, Networks
from hw1jax.search.plan import Job
from hw1jax.search.trial_score import BEST, BEST_EPOCH

SECONDS = 20  # between checkpoints

Losses = tuple[np.ndarray, dict[str, np.ndarray]]  # (training loss, validation by name), [trial, fold, epoch] each


class Stopped(Exception):
    """Training was asked to stop, and has written its checkpoint."""


class Stretch(NamedTuple):
    """A job after some more epochs."""

    state: list[np.ndarray]  # leaves of its members' state, [slot, fold, ...] each
    num_epochs: int  # epochs trained, from the trials' start
    losses: Losses  # of these epochs, a row a slot
    seconds: float  # duration of these epochs


# Called after some epochs: (job, epochs done, validation by name [slot, fold, epoch])
Show = Callable[[Job, int, dict[str, np.ndarray]], None]
# (job, state or None for new members, epochs done, device, show) -> Stretch
Advance = Callable[[Job, list[np.ndarray] | None, int, int, Show], Stretch]


def advance(
    networks: Networks,
    job: Job,
    state: list[np.ndarray] | None,
    first_epoch: int,
    *,
    device: int = 0,
    seconds: float,
    show: Show = lambda job, num_epochs, val: None,
    stop: Callable[[], bool] = lambda: False,
) -> Stretch:
    """Trains a job for some seconds, or to the end of its rung.

    `state` is that of the stretch before (None: new members), after `first_epoch` epochs. `device` is the index for a
    job with its own widths; others use the devices of their plan. `show` is called after each call of the program;
    `stop` returns True to stop soon.
    """
    begun, losses = time.perf_counter(), []
    with jax.default_matmul_precision(networks.search.precision):  # each thread has its own
        members, trials = members_of(networks, job, device)
        if state is None:
            now, best = new_state(networks, job, members, trials), None
        else:
            now, best = population.shard(members, _unflattened(networks, job, state))
        last_epoch = job.rung.end_epoch
        for step in population.resume(members, now, trials, first_epoch=first_epoch, last_epoch=last_epoch, best=best):
            now, best, first_epoch = step.state, step.best, step.num_epochs
            losses.append((step.train_loss, step.val or {}))
            show(job, first_epoch, step.val or {})
            if best is not None and population.have_stopped(members.config, best.epoch, first_epoch).all():
                break
            if time.perf_counter() - begun > seconds or stop():
                break
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((now, best))]
    return Stretch(leaves, first_epoch, concatenate(losses), time.perf_counter() - begun)


def concatenate(losses: list[Losses]) -> Losses:
    """Joins the losses of consecutive calls."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=2), *losses)


def slots(job: Job) -> list[int]:
    """The index of the trial in each slot of the job's program: empty slots train the last trial again."""
    num_slots = 1 if job.rung.own_widths else job.rung.plan.num_slots
    return np.minimum(np.arange(num_slots), len(job.numbers) - 1).tolist()


def state_shapes(networks: Networks, job: Job) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the leaves of the job's state, [slot, fold, ...] each."""
    leading = (len(slots(job)), len(networks.folds))
    leaves = jax.tree.leaves(networks.member_shapes(_network(networks, job)))
    return [jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype) for leaf in leaves]


def final_variables(networks: Networks, job: Job, state: list[np.ndarray]) -> list[np.ndarray]:
    """The leaves of (params, state) to evaluate and keep, from the leaves of the members' state."""
    now, best = _unflattened(networks, job, state)
    kept = population.final_variables(_network(networks, job).task, now if best is None else best.state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(kept)]


def best_values(networks: Networks, job: Job, state: list[np.ndarray]) -> dict[str, np.ndarray]:
    """With early stopping, the members' best epochs and the values then, as in `trial_score.Values`, [trial, fold]."""
    _, best = _unflattened(networks, job, state)
    if best is None:
        return {}
    named = {BEST_EPOCH: best.epoch} | {BEST + name: array for name, array in best.values.items()}
    return {name: np.asarray(array) for name, array in named.items()}


def _unflattened(networks: Networks, job: Job, state: list[np.ndarray]) -> tuple[State, Best | None]:
    """(state, best epoch) of a job's members from the leaves."""
    shapes = networks.member_shapes(_network(networks, job))
    both = jax.tree.unflatten(jax.tree.structure(shapes), state)
    return (both, None) if networks.search.early_stopping is None else both


def _network(networks: Networks, job: Job) -> Network:
    return Network(networks.study, job.draws[0], job.fixed)


def members_of(networks: Networks, job: Job, device: int) -> tuple[Population, Trials]:
    """The population of the job's program, and its trials, one a slot."""
    plan, network = job.rung.plan, _network(networks, job)
    if "batch_size" in job.fixed:
        plan = replace(plan, layout=networks.layout_of(job.fixed["batch_size"]))
    if job.rung.own_widths:
        # All threads of a CPU use its first device, so that each finds the program in the compilation cache.
        plan = Plan(
            1, layout=plan.layout, first_device=0 if jax.default_backend() == "cpu" else device % len(jax.devices())
        )
    if plan.num_devices > len(jax.devices()):
        raise ValueError(
            f"this search was begun on {plan.num_devices} devices, a worker has {len(jax.devices())}: give its workers "
            "as many, or begin it anew with num_devices=1"
        )
    index = slots(job)
    trials = networks.trials([job.numbers[i] for i in index], [job.draws[i] for i in index])
    return networks.population(plan, network), trials


def new_state(networks: Networks, job: Job, members: Population, trials: Trials) -> State:
    """Initializes the members of a job."""
    if job.rung.own_widths and networks.starts_in_corners:
        wide = networks_.padded(networks.study, job.draws[0])
        return population.init_narrow(members._replace(task=wide.task), members, trials)
    return population.init(members, trials)


# Files


def write_checkpoint(path: Path, stretch: Stretch) -> None:
    """Writes a job's state and the losses of all its epochs so far."""
    leaves = {f"state_{i}": leaf for i, leaf in enumerate(stretch.state)}
    train_loss, val = stretch.losses
    progress = {"num_epochs": np.array(stretch.num_epochs), "seconds": np.array(stretch.seconds)}
    named = {f"val_{name}": values for name, values in val.items()}
    storage.write_arrays(path, leaves | progress | {"train_loss": train_loss} | named)


def read_checkpoint(path: Path, shapes: list[jax.ShapeDtypeStruct], first_epoch: int) -> Stretch:
    """Reads a checkpoint for a job with these leaves of its state, whose losses begin after `first_epoch`.

    Raises:
      ValueError: the file is damaged or doesn't fit; the message says what to do.
    """
    arrays = storage.read_arrays(path)
    try:
        saved = [storage.restored(arrays[f"state_{i}"], leaf.dtype) for i, leaf in enumerate(shapes)]
        num_epochs, train_loss, seconds = int(arrays["num_epochs"]), arrays["train_loss"], float(arrays["seconds"])
        val = {name.removeprefix("val_"): values for name, values in arrays.items() if name.startswith("val_")}
        fits = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(saved, shapes, strict=True))
        expected = (*shapes[0].shape[:2], num_epochs - first_epoch)
        if not fits or any(a.shape != expected for a in (train_loss, *val.values())):
            raise ValueError("arrays of other shapes")
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
    return Stretch(saved, num_epochs, (train_loss, val), seconds)


def damaged(path: Path, reason: object) -> ValueError:
    """The error for a damaged file, with the remedy."""
    return ValueError(f"{path} is damaged ({reason}): remove it and run the same command again")


def train(
    networks: Networks,
    job: Job,
    state: list[np.ndarray] | None = None,
    *,
    checkpoint: Path | None = None,
    device: int = 0,
    go_on: Advance | None = None,
    show: Show = lambda job, num_epochs, val: None,
    stop: Callable[[], bool] = lambda: False,
) -> Stretch:
    """Trains a job to the end of its rung: the one training loop of a study.

    `state` is that after the rung before (None: new members). `go_on` trains for some seconds, by default in this
    thread; between its calls a file `checkpoint` is written, from which a job resumes. `device`, `show` and `stop` as
    in `advance`.

    Raises:
      Stopped: `stop` returned True.
    """
    done = Stretch(state or [], job.first_epoch, (np.zeros(0), {}), 0.0)
    parts: list[Losses] = []
    if checkpoint is not None and checkpoint.exists():
        done = read_checkpoint(checkpoint, state_shapes(networks, job), job.first_epoch)
        parts = [done.losses]
    assert done.state or not job.first_epoch, "trials that go on have a state"
    go_on = go_on or here(networks, stop)
    while done.num_epochs < job.rung.end_epoch and not _all_have_stopped(networks, job, done):
        if stop():
            raise Stopped
        new = go_on(job, done.state or None, done.num_epochs, device, show)
        parts.append(new.losses)
        done = Stretch(new.state, new.num_epochs, concatenate(parts), done.seconds + new.seconds)
        if checkpoint is not None and done.num_epochs < job.rung.end_epoch:
            write_checkpoint(checkpoint, done)
    return _without_stopped(networks, job, done)


def _all_have_stopped(networks: Networks, job: Job, done: Stretch) -> bool:
    if networks.search.early_stopping is None or not done.state:
        return False
    best, config = best_values(networks, job, done.state), networks.train_config(_network(networks, job))
    return bool(population.have_stopped(config, best[BEST_EPOCH], done.num_epochs).all())


def _without_stopped(networks: Networks, job: Job, done: Stretch) -> Stretch:
    """The job at the end of its rung: with early stopping, losses are NaN after a member has stopped."""
    if networks.search.early_stopping is None:
        return done
    best, config = best_values(networks, job, done.state), networks.train_config(_network(networks, job))
    numbers = np.arange(job.first_epoch, job.rung.end_epoch)
    have_stopped = population.have_stopped(config, best[BEST_EPOCH][:, :, None], numbers)

    def whole(values: np.ndarray) -> np.ndarray:
        filled = np.full(have_stopped.shape, np.nan, values.dtype)
        filled[:, :, : values.shape[2]] = values
        return np.where(have_stopped, np.nan, filled)

    losses = done.losses
    if done.num_epochs == job.first_epoch:  # all had stopped before
        nothing = best[BEST + "loss"][:, :, None][:, :, :0]
        losses = nothing, dict.fromkeys(("loss", *networks.study.metrics), nothing)
    return done._replace(num_epochs=job.rung.end_epoch, losses=jax.tree.map(whole, losses))


def here(networks: Networks, stop: Callable[[], bool]) -> Advance:
    """`advance` in the calling thread."""
    return lambda job, state, first_epoch, device, show: advance(
        networks, job, state, first_epoch, device=device, seconds=SECONDS, show=show, stop=stop
    )
