"""Brackets of a search's trials: trained together, and kept on disk once they are.

A *job* is what one program trains: a bracket's trials that share it, or one trial at its own widths. Its file appears
when it is done; until then a checkpoint appears beside it now and then, and whoever trains it holds a lock that dies
with the process. So several processes can share a folder, and none trains again what one of them has finished.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from hw1jax import hosts, plan, population, record, storage, study, training
from hw1jax import space as space_
from hw1jax.observer import Observer
from hw1jax.plan import Job, SearchPlan
from hw1jax.population import Population, Progress, Trials
from hw1jax.space import Draw
from hw1jax.study import Study
from hw1jax.training import State

SECONDS_BETWEEN_CHECKPOINTS = 20
SECONDS_BETWEEN_LOOKS = 0.5  # at what another process is training
Part = TypeVar("Part")
Losses = list[tuple[np.ndarray, dict[str, np.ndarray]]]  # (training loss, validation by name), of some epochs each


class Stopped(Exception):
    """Training was asked to stop, and has put down where it was."""


class Trained(NamedTuple):
    """A job after its last epoch."""

    train_loss: np.ndarray  # float32 [trial, fold, epoch]
    val: dict[str, np.ndarray]  # "loss" and metrics by name: float32 [trial, fold, epoch]
    curves: np.ndarray  # float32 [trial, fold, point]: what a scalar regression predicts along its inputs


class Brackets:
    """Trains brackets of trials, each job kept as a file, so that none is trained twice."""

    def __init__(
        self,
        folder: Path,
        study: Study,
        plan: SearchPlan,
        wide: Population,
        seed: int,
        curve_x: np.ndarray,
        observer: Observer,
        stop: threading.Event,
    ):
        """`wide`: any of the study's populations, whose task is replaced by each job's; `curve_x`: [point]."""
        self._folder, self._study, self._plan, self._wide, self._stop = folder, study, plan, wide, stop
        self._key, self._curve_x, self._observer = jax.random.key(seed), curve_x, observer
        self._populations = population.one_trial_each(wide) if plan.own_widths else [wide]
        self._lock = threading.Lock()
        self._done: dict[int, tuple[int, np.ndarray]] = {}  # {trial: (epochs done, scores [fold])}
        self.splits = 0  # how often a job was too large for the memory, and was trained in halves
        self.programs: set[Any] = set()  # the keys of those that were needed

    def train(self, draws: dict[int, Draw]) -> dict[int, dict[str, np.ndarray]] | None:
        """{trial number: draw} -> {trial number: validation loss and metrics by name, [fold, epoch]}.

        None if a part of the bracket is in the hands of another process: ask again later.
        """
        jobs = plan.jobs_of(self._study, self._plan, draws)
        self._done = {number: (0, np.full(len(self._wide.folds), np.nan)) for number in draws}
        try:
            side_by_side(lambda job, place: self._do(job, draws, place), jobs, self._populations)
        except Exception as error:
            if hosts.are_several() and not isinstance(error, Stopped):
                raise hosts.LostError(f"training with the other processes has failed: {error}") from error
            raise
        if not all(map(self._is_kept, jobs)):
            return None
        found = {}
        for job in jobs:
            val = self._read(job).val
            found |= {n: {name: val[name][i] for name in val} for i, n in enumerate(job.numbers)}
        return {number: found[number] for number in draws}

    def read(self, draws: dict[int, Draw]) -> Trained:
        """All of these trials, in the order of their numbers, once they are trained."""
        jobs = plan.jobs_of(self._study, self._plan, draws)
        while not all(map(self._is_kept, jobs)):  # somebody has tidied up
            if self.train(draws) is None:
                time.sleep(SECONDS_BETWEEN_LOOKS)
        self.programs |= {space_.key_of(job.fixed) for job in jobs}
        whole = joined([self._read(job) for job in jobs])
        order = np.argsort([number for job in jobs for number in job.numbers])
        return jax.tree.map(lambda a: a[order], whole)

    def _path(self, job: Job) -> Path:
        return self._folder / f"{job.numbers[0]:06d}.npz"

    def _read(self, job: Job) -> Trained:
        path = self._path(job)
        arrays = storage.read_arrays(path)
        names = ("loss", *self._study.metrics)
        expected = {"train_loss", "curves", *(f"val_{name}" for name in names)}
        if set(arrays) != expected or len({len(a) for a in arrays.values()}) != 1:
            raise ValueError(f"{path} is damaged (not the losses of trials): remove it and run the same command again")
        arrays = {name: array[: len(job.numbers)] for name, array in arrays.items()}
        val = {name: arrays[f"val_{name}"] for name in names}
        return Trained(arrays["train_loss"], val, arrays["curves"])

    def _is_kept(self, job: Job) -> bool:
        """Whether the job is done. A last one that was smaller is trained again when more trials are asked for."""
        return self._path(job).exists() and len(self._read(job).train_loss) >= len(job.numbers)

    def _do(self, job: Job, draws: Mapping[int, Draw], place: Population) -> None:
        """Trains a job, unless it is done or another process is at it."""
        path = self._path(job)
        lock = path.with_suffix(".lock")
        if self._is_kept(job):
            return
        with storage.try_lock(lock) as ours:
            if not ours or self._is_kept(job):
                return
            train_loss, val, curves = self._train(job, draws, place)
            named = {f"val_{name}": values for name, values in val.items()}
            storage.write_arrays(path, {"train_loss": train_loss, "curves": curves} | named)
            for left_over in (*path.parent.glob(f"{path.stem}.*.checkpoint"), lock):
                left_over.unlink(missing_ok=True)

    def _train(self, job: Job, draws: Mapping[int, Draw], place: Population) -> Trained:
        """As one program; in halves where the device has not memory enough for all at once."""
        numbers = job.numbers
        try:
            return self._train_job(job, draws, place)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or len(numbers) == 1 or hosts.are_several():
                raise
        self.splits += 1
        half = -(-len(numbers) // 2)
        self._observer.note(f"out of memory with {len(numbers)} trials at once: going on with {half}")
        smaller = place._replace(plan=plan.narrower(place.plan, half))
        parts = [Job(job.fixed, part) for part in (numbers[:half], numbers[half:])]
        return joined([self._train(part, draws, smaller) for part in parts])

    def _train_job(self, job: Job, draws: Mapping[int, Draw], place: Population) -> Trained:
        numbers = job.numbers
        members, trials, state = begin(self._study, self._key, job, draws, place, own_widths=self._plan.own_widths)
        # Named by its trials: a job that more trials fill up must not go on with the dummies that held their slots.
        kind = f"{place.plan.slots}.{len(numbers)}"
        checkpoint = Checkpoint(self._path(job).with_suffix(f".{kind}.checkpoint"))
        state, done, losses = checkpoint.read(state)
        state = _resumed(members, state, done)
        num_epochs = members.spec.num_epochs
        for step in population.resume(members, state, trials, first_epoch=done):
            state, done = step.state, step.num_epochs
            assert step.val is not None  # every fold has a validation part
            losses.append((step.train_loss, step.val))
            self._show(numbers, step)
            stopped = self._stop.is_set()
            due = (stopped or checkpoint.is_due()) and done < num_epochs
            if done < num_epochs:
                hosts.send({"checkpoint": due})
            if due:
                checkpoint.write(step.state, done, losses)
            if stopped:
                raise Stopped
        train_loss, val = in_one(losses)
        whole = Trained(train_loss, val, fold_curves(members, state, trials, self._curve_x))
        return jax.tree.map(lambda a: a[: len(numbers)], whole)

    def _show(self, numbers: list[int], step: Progress) -> None:
        """How far the bracket is on average, and the scores of its members."""
        assert step.val is not None
        with self._lock:
            for i, number in enumerate(numbers):
                self._done[number] = step.num_epochs, step.val[self._study.score][i, :, -1]
            epochs, scores = zip(*self._done.values(), strict=True)
            what = f"trials {min(self._done)}-{max(self._done)}"
            self._observer.epochs(what, sum(epochs) / len(epochs), self._wide.spec.num_epochs, np.array(scores))


def side_by_side(
    train: Callable[[Part, Population], object], parts: Iterable[Part], places: Sequence[Population]
) -> None:
    """train(part, place) for every part of some work: a thread a place, which takes the next part after each.

    The first error keeps the threads from taking more, and is raised here.
    """
    waiting: queue.SimpleQueue[Part] = queue.SimpleQueue()
    for part in parts:
        waiting.put(part)
    errors: list[BaseException] = []
    precision = record.matmul_precision()  # each thread has its own

    def work(place: Population) -> None:
        try:
            with jax.default_matmul_precision(precision):
                while not errors:
                    train(waiting.get_nowait(), place)
        except queue.Empty:
            pass
        except BaseException as error:
            errors.append(error)  # raised again in the main thread

    # Daemons, as a process that is to end doesn't wait for a program that is at its epoch.
    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def begin(
    study_: Study, key: jax.Array, job: Job, draws: Mapping[int, Draw], place: Population, *, own_widths: bool
) -> tuple[Population, Trials, State]:
    """A job before its first epoch: (the place with the job's task, its trials one a slot, their new members)."""
    filled = np.minimum(np.arange(place.plan.slots), len(job.numbers) - 1)  # empty slots train the last trial too
    numbers = [job.numbers[i] for i in filled]
    in_slots = [draws[number] for number in numbers]
    trials = trials_of(study_, key, numbers, in_slots)
    members = place._replace(task=study.make_task(study_, job.fixed))
    in_corner = own_widths and not training.has_state(members.task) and plan.takes_padding(study_, place.data.x)
    if in_corner:
        wide = space_.fixed(study_.space, in_slots[0], widest=True)
        widened = place._replace(task=study.make_task(study_, wide))
        return members, trials, population.start_narrow(widened, members, trials)
    hosts.send({"numbers": trials.numbers.tolist(), "draws": list(map(space_.draw_to_json, in_slots))})
    return members, trials, population.start(members, trials)


def trials_of(study_: Study, key: jax.Array, numbers: list[int], draws: list[Draw]) -> Trials:
    """These trials as a population takes them, one a slot."""
    return Trials(key, np.array(numbers), space_.as_arrays(study_.space, draws))


def joined(parts: list[Trained]) -> Trained:
    """The trials of several jobs as those of one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def in_one(losses: Losses) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The epochs of several calls as those of one: [trial, fold, epoch]."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=2), *losses)


def follow(study_: Study, wide: Population, seed: int, curve_x: np.ndarray) -> None:
    """What the other processes do while process 0 searches: their part of each job."""
    try:
        while message := hosts.receive():
            draws = [space_.draw_from_json(study_.space, values) for values in message["draws"]]
            fixed = space_.fixed(study_.space, draws[0], widest=True)
            members = wide._replace(task=study.make_task(study_, fixed))
            trials = trials_of(study_, jax.random.key(seed), message["numbers"], draws)
            state = population.start(members, trials)
            done = hosts.receive()["first_epoch"]
            state = _resumed(members, state, done)
            for step in population.resume(members, state, trials, first_epoch=done):
                state = step.state
                if step.num_epochs < members.spec.num_epochs and hosts.receive()["checkpoint"]:
                    jax.tree.map(population.on_host, state)  # process 0 writes it
            fold_curves(members, state, trials, curve_x)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise hosts.LostError(f"training with the other processes has failed: {error}") from error


def _resumed(members: Population, state: State, first_epoch: int) -> State:
    """The state in which training goes on; from a checkpoint, which process 0 alone has read, it goes to all."""
    hosts.send({"first_epoch": first_epoch})
    if first_epoch and hosts.are_several():
        state = hosts.share(state)
    return population.put(members, state)


def fold_curves(members: Population, state: State, trials: Trials, x: np.ndarray) -> np.ndarray:
    """What each member of a scalar regression predicts along x [point]: float32 [trial, fold, point]."""
    if not len(x):
        return np.zeros((*jax.tree.leaves(state)[0].shape[:2], 0), np.float32)
    outputs = population.predict_all(members.task, state, trials.hyperparameters, x[:, None])
    return population.on_host(outputs[..., 0])


class Checkpoint:
    """The state of a job between two epochs, as a file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self._path, self._clock, self._last = path, clock, clock()

    def is_due(self) -> bool:
        """Whether enough time has gone since the last one to be worth the writing."""
        return self._clock() - self._last >= SECONDS_BETWEEN_CHECKPOINTS

    def write(self, state: State, num_epochs: int, losses: Losses) -> None:
        """The state after so many epochs, and the losses of all of them."""
        leaves = {f"state_{i}": population.on_host(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        train_loss, val = in_one(losses)
        progress = {"num_epochs": np.array(num_epochs), "train_loss": train_loss}
        named = {f"val_{name}": values for name, values in val.items()}
        storage.write_arrays(self._path, leaves | progress | named)
        self._last = self._clock()

    def read(self, start: State) -> tuple[State, int, Losses]:
        """(state, epochs done, losses) of the file, or of the beginning where there is none.

        Raises:
          ValueError: the file is damaged or doesn't fit; the message says what to do.
        """
        if not self._path.exists():
            return start, 0, []
        arrays = storage.read_arrays(self._path)
        leaves, tree = jax.tree.flatten(start)
        try:
            saved = [storage.restored(arrays[f"state_{i}"], leaf.dtype) for i, leaf in enumerate(leaves)]
            num_epochs, train_loss = int(arrays["num_epochs"]), arrays["train_loss"]
            val = {name.removeprefix("val_"): values for name, values in arrays.items() if name.startswith("val_")}
            fits = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(saved, leaves, strict=True))
            expected = (*leaves[0].shape[:2], num_epochs)
            if not fits or any(a.shape != expected for a in (train_loss, *val.values())):
                raise ValueError("arrays of other shapes")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._path} is damaged ({error}): remove it and run the same command again") from error
        return jax.tree.unflatten(tree, saved), num_epochs, [(train_loss, val)]
