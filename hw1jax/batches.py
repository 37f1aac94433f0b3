"""Batches of a search's trials: trained together or each at its own widths, and kept on disk once they are.

A *job* is what one program trains: a whole batch, or one trial at its own widths. Its file appears when it is done;
until then a checkpoint appears beside it now and then, and whoever trains it holds a lock that dies with the process.
So several processes can share a folder, and none trains again what one of them has finished.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from hw1jax import environment, hosts, population, storage, studies
from hw1jax.population import Problem, Progress
from hw1jax.progress import Observer
from hw1jax.space import Draw
from hw1jax.studies import Study
from hw1jax.training import State, Task

SECONDS_BETWEEN_CHECKPOINTS = 20
SECONDS_BETWEEN_LOOKS = 0.5  # at what another process is training


class Stopped(Exception):
    """Training was asked to stop, and has put down where it was."""


class Trained(NamedTuple):
    """A job after its last epoch."""

    train_loss: np.ndarray  # float32 [trial, fold, epoch]
    val_loss: np.ndarray  # float32 [trial, fold, epoch]
    curve_fold_outputs: np.ndarray  # float32 [trial, fold, point]: what a regression predicts along its inputs


class Batches:
    """Trains batches of trials, each job kept as a file, so that none is trained twice."""

    def __init__(
        self,
        folder: Path,
        study: Study,
        problem: Problem,
        seed: int,
        curve_x: np.ndarray,
        observer: Observer,
        stop: threading.Event,
    ):
        self._folder, self._study, self._wide, self._stop = folder, study, problem, stop
        self._key, self._curve_x, self._observer = jax.random.key(seed), curve_x, observer
        own_widths = problem.plan.own_widths
        self._problems = population.one_trial_each(problem) if own_widths else [problem]
        self._lock = threading.Lock()
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}  # {trial: (epochs done, validation losses [fold])}
        self.halvings = 0  # how often a batch was too large for the memory

    def train(self, draws: dict[int, Draw]) -> dict[int, np.ndarray] | None:
        """{trial number: draw} -> {trial number: validation losses, [fold, epoch]}.

        None if a part of the batch is in the hands of another process: ask again later.
        """
        jobs: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for job in self.jobs(draws):
            jobs.put(job)
        self._epochs = {number: (0, np.full(len(self._wide.folds), np.nan)) for number in draws}
        errors: list[BaseException] = []
        precision = environment.matmul_precision()  # each thread has its own

        def work(problem: Problem) -> None:
            try:
                with jax.default_matmul_precision(precision):
                    while not errors:
                        self._do(jobs.get_nowait(), draws, problem)
            except queue.Empty:
                pass
            except BaseException as error:
                errors.append(error)  # raised again in the main thread

        # Daemons, as a process that is to end doesn't wait for a program that is at its epoch.
        threads = [threading.Thread(target=work, args=(problem,), daemon=True) for problem in self._problems]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors and hosts.are_several() and not isinstance(errors[0], Stopped):
            raise hosts.LostError(f"training with the other processes has failed: {errors[0]}") from errors[0]
        if errors:
            raise errors[0]
        if not all(self._is_kept(job) for job in self.jobs(draws)):
            return None
        losses = {}
        for job in self.jobs(draws):
            losses |= dict(zip(job, self._read(job[0]).val_loss, strict=False))
        return {number: losses[number] for number in draws}

    def read(self, draws: dict[int, Draw]) -> Trained:
        """All of these trials, in the order of their numbers, once they are trained."""
        jobs = sorted(self.jobs(draws))
        while not all(self._is_kept(job) for job in jobs):  # somebody has tidied up
            if self.train(draws) is None:
                time.sleep(SECONDS_BETWEEN_LOOKS)
        parts = [Trained(*(a[: len(job)] for a in self._read(job[0]))) for job in jobs]
        return Trained(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def jobs(self, draws: dict[int, Draw]) -> list[list[int]]:
        """The numbers of the trials that train together; trials with programs of their own, the longest first."""
        if not self._wide.plan.own_widths:
            return [sorted(draws)]
        costs = {number: studies.num_parameters(self._study, draw) for number, draw in draws.items()}
        return [[number] for number in sorted(draws, key=lambda number: -costs[number])]

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:06d}.npz"

    def _read(self, first: int) -> Trained:
        path = self._path(first)
        arrays = storage.read_arrays(path)
        if set(arrays) != set(Trained._fields) or len({len(a) for a in arrays.values()}) != 1:
            raise ValueError(f"{path} is damaged (not the losses of trials): remove it and run the same command again")
        return Trained(**arrays)

    def _is_kept(self, job: list[int]) -> bool:
        """Whether the job is done. A last batch that was smaller is trained again when more trials are asked for."""
        return self._path(job[0]).exists() and len(self._read(job[0]).val_loss) >= len(job)

    def _do(self, job: list[int], draws: dict[int, Draw], problem: Problem) -> None:
        """Trains a job, unless it is done or another process is at it."""
        path = self._path(job[0])
        lock = path.with_suffix(".lock")
        if self._is_kept(job):
            return
        with storage.try_lock(lock) as ours:
            if not ours or self._is_kept(job):
                return
            storage.write_arrays(path, self._train(job, [draws[number] for number in job], problem)._asdict())
            for left_over in (*path.parent.glob(f"{path.stem}.*.checkpoint"), lock):
                left_over.unlink(missing_ok=True)

    def _train(self, numbers: list[int], draws: list[Draw], problem: Problem) -> Trained:
        """As one program; in halves where the device has not memory enough for all at once."""
        try:
            return self._train_job(numbers, draws, problem)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or len(numbers) == 1 or hosts.are_several():
                raise
        self.halvings += 1
        half = -(-len(numbers) // 2)
        self._observer.note(f"out of memory with {len(numbers)} trials at once: going on with {half}")
        plan = problem.plan
        slots = -(-half // plan.num_devices) * plan.num_devices
        smaller = problem._replace(plan=replace(plan, slots=slots, trials_at_once=slots // plan.num_devices))
        halves = [self._train(numbers[part], draws[part], smaller) for part in (slice(half), slice(half, None))]
        return Trained(*(np.concatenate(part) for part in zip(*halves, strict=True)))

    def _train_job(self, numbers: list[int], draws: list[Draw], problem: Problem) -> Trained:
        filled = np.minimum(np.arange(problem.plan.slots), len(numbers) - 1)  # empty slots train the last trial too
        hyperparameters = studies.as_arrays([draws[i] for i in filled])
        if self._wide.plan.own_widths:
            task = studies.make_task(self._study, draws[0].channels, draws[0].hidden_units)
            state = population.start_narrow(problem, task, self._key, numbers[0], hyperparameters)
            problem = problem._replace(task=task)
        else:
            hosts.tell({"numbers": [numbers[i] for i in filled], "draws": [draws[i].as_dict() for i in filled]})
            state = population.start(problem, self._key, np.array(numbers)[filled], hyperparameters)
        # Named by its trials: a batch that more trials fill up must not go on with the dummies that held their slots.
        trials = f"{problem.plan.slots}.{len(numbers)}"
        checkpoint = Checkpoint(self._path(numbers[0]).with_suffix(f".{trials}.checkpoint"))
        state, done, losses = checkpoint.read(state)
        state = _resumed(problem, state, done)
        for step in population.resume(problem, state, hyperparameters, first_epoch=done):
            state, done = step.state, step.num_epochs
            assert step.val_loss is not None  # every fold has a validation part
            losses.append((step.train_loss, step.val_loss))
            self._tell(numbers, step)
            stopped = self._stop.is_set()
            due = (stopped or checkpoint.is_due()) and done < problem.spec.num_epochs
            if done < problem.spec.num_epochs:
                hosts.tell({"checkpoint": due})
            if due:
                checkpoint.write(step.state, done, losses)
            if stopped:
                raise Stopped
        train_loss, val_loss = (np.concatenate(part, axis=2) for part in zip(*losses, strict=True))
        curves = fold_curves(problem.task, state, hyperparameters, self._curve_x)
        return Trained(*(part[: len(numbers)] for part in (train_loss, val_loss, curves)))

    def _tell(self, numbers: list[int], step: Progress) -> None:
        assert step.val_loss is not None
        with self._lock:
            for i, number in enumerate(numbers):
                self._epochs[number] = step.num_epochs, step.val_loss[i, :, -1]
            epochs, losses = zip(*self._epochs.values(), strict=True)
            what = f"trials {min(self._epochs)}-{max(self._epochs)}"
            self._observer.epochs(what, sum(epochs) / len(epochs), self._wide.spec.num_epochs, np.array(losses))


def follow(study: Study, problem: Problem, seed: int, curve_x: np.ndarray) -> None:
    """What the other processes do while process 0 searches: their part of each batch."""
    try:
        while message := hosts.hear():
            draws = [Draw.from_dict(values) for values in message["draws"]]
            hyperparameters, numbers = studies.as_arrays(draws), np.array(message["numbers"])
            state = population.start(problem, jax.random.key(seed), numbers, hyperparameters)
            done = hosts.hear()["first_epoch"]
            state = _resumed(problem, state, done)
            for step in population.resume(problem, state, hyperparameters, first_epoch=done):
                state = step.state
                if step.num_epochs < problem.spec.num_epochs and hosts.hear()["checkpoint"]:
                    jax.tree.map(population.on_host, state)  # process 0 writes it
            fold_curves(problem.task, state, hyperparameters, curve_x)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise hosts.LostError(f"training with the other processes has failed: {error}") from error


def _resumed(problem: Problem, state: State, first_epoch: int) -> State:
    """The state in which training goes on; from a checkpoint, which process 0 alone has read, it goes to all."""
    hosts.tell({"first_epoch": first_epoch})
    if first_epoch and hosts.are_several():
        state = hosts.share(state)
    return population.put(problem, state)


def fold_curves(task: Task, state: State, hyperparameters: studies.Hyperparameters, x: np.ndarray) -> np.ndarray:
    """What each member of a regression predicts along x [point]: float32 [trial, fold, point]."""
    if not len(x):
        return np.zeros((*jax.tree.leaves(state)[0].shape[:2], 0), np.float32)
    return population.on_host(population.predict_all(task, state.params, hyperparameters, x[:, None])[..., 0])


class Checkpoint:
    """The state of a job between two epochs, as a file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self._path, self._clock, self._last = path, clock, clock()

    def is_due(self) -> bool:
        """Whether enough time has gone since the last one to be worth the writing."""
        return self._clock() - self._last >= SECONDS_BETWEEN_CHECKPOINTS

    def write(self, state: State, num_epochs: int, losses: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """`losses` are (training, validation), [trial, fold, epoch] of some epochs each."""
        leaves = {f"state_{i}": population.on_host(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        train_loss, val_loss = (np.concatenate(part, axis=2) for part in zip(*losses, strict=True))
        progress = {"num_epochs": np.array(num_epochs), "train_loss": train_loss, "val_loss": val_loss}
        storage.write_arrays(self._path, leaves | progress)
        self._last = self._clock()

    def read(self, start: State) -> tuple[State, int, list[tuple[np.ndarray, np.ndarray]]]:
        """(state, epochs done, losses) of the file, or of the beginning where there is none.

        Raises:
          ValueError: the file is damaged or doesn't fit; the message says what to do.
        """
        if not self._path.exists():
            return start, 0, []
        arrays = storage.read_arrays(self._path)
        leaves, tree = jax.tree.flatten(start)
        try:
            saved = [arrays[f"state_{i}"] for i in range(len(leaves))]
            num_epochs, losses = int(arrays["num_epochs"]), (arrays["train_loss"], arrays["val_loss"])
            fits = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(saved, leaves, strict=True))
            if not fits or any(a.shape != (*leaves[0].shape[:2], num_epochs) for a in losses):
                raise ValueError("arrays of other shapes")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._path} is damaged ({error}): remove it and run the same command again") from error
        return jax.tree.unflatten(tree, saved), num_epochs, [losses]
