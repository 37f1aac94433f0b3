"""Brackets of a search's trials: trained together from rung to rung, and kept on disk once they are.

A *job* is what one program trains: a rung's trials that share it, or one trial at its own widths. Its files appear when
it is done: what became of its trials, and what those need that may go on. Until then a checkpoint appears beside them
now and then. So a search that was stopped trains nothing again that it has finished. No rung begins before all jobs of
the one before are done: which trials go on doesn't depend on the order of the jobs.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from hw1jax import plan, population, record, storage, study, training
from hw1jax import space as space_
from hw1jax.checkpoint import Checkpoint, damaged, in_one
from hw1jax.observer import Observer
from hw1jax.plan import Bracket, Job, Rung, SearchPlan
from hw1jax.population import Population, Progress, Trials
from hw1jax.space import Draw
from hw1jax.study import Search, Study, TrialScore
from hw1jax.training import State

LOSSES, MEMBERS = "npz", "members.npz"  # kinds of a job's files
Work = TypeVar("Work")
Members = dict[str, np.ndarray]  # the leaves of a tree of members, [trial, fold, ...]


class Stopped(Exception):
    """Training was asked to stop, and has put down where it was."""


class Trained(NamedTuple):
    """Trials after some epochs."""

    train_loss: np.ndarray  # float32 [trial, fold, epoch]
    val: dict[str, np.ndarray]  # "loss" and metrics by name: float32 [trial, fold, epoch]
    seconds: np.ndarray  # float [trial], each its share of what its program took


class Part(NamedTuple):
    """A job on a rung of its bracket."""

    job: Job
    bracket: Bracket
    i: int  # the rung
    before: list[Job]  # those of the rung before

    @property
    def rung(self) -> Rung:
        """Up to which it trains."""
        return self.bracket.rungs[self.i]

    @property
    def first_epoch(self) -> int:
        """How many epochs its trials have trained before."""
        return self.bracket.rungs[self.i - 1].num_epochs if self.i else 0

    @property
    def is_last(self) -> bool:
        """Whether nobody goes on after it."""
        return self.i == len(self.bracket.rungs) - 1


class Brackets:
    """Trains brackets of trials, each job kept as files, so that none is trained twice."""

    def __init__(
        self,
        folder: Path,
        study: Study,
        plan: SearchPlan,
        wide: Population,
        seed: int,
        observer: Observer,
        stop: threading.Event,
        *,
        num_trials: int,
    ):
        """`wide`: the study's widest networks, whose program and task become each job's."""
        self._folder, self._study, self._plan, self._wide, self._stop = folder, study, plan, wide, stop
        self._key, self._observer = jax.random.key(seed), observer
        self._stretches = plan.stretches(num_trials)
        self._places: dict[tuple[Bracket, int], list[Population]] = {}
        self._jobs: dict[tuple[Rung, tuple[int, ...]], list[Job]] = {}
        self._lock = threading.Lock()
        self._done: dict[int, tuple[int, np.ndarray]] = {}  # of a bracket {trial: (epochs done, scores [fold])}
        self._left: list[int] = []  # of its trials, those that train on the rung it is at
        self.splits = 0  # how often a job was too large for the memory, and was trained in halves
        self.programs: set[Any] = set()  # the keys of those that were needed
        self._seconds: dict[Path, tuple[int, float]] = {}  # of what was read: {file: (end of its rung, spent on it)}

    @cached_property
    def _in_corners(self) -> bool:
        return _can_be_in_corners(self._study, self._wide)

    @property
    def work(self) -> int:
        """Epochs of all trials of the search together."""
        return sum(map(self._plan.work, self._stretches))

    @property
    def seconds(self) -> dict[int, float]:
        """What the rungs took that end at these epochs, of the trials that were read."""
        ends = {end for end, _ in self._seconds.values()}
        return {end: sum(spent for own, spent in self._seconds.values() if own == end) for end in ends}

    def train(self, draws: dict[int, Draw]) -> dict[int, dict[str, np.ndarray]]:
        """{trial number: draw} -> {trial number: validation loss and metrics by name, [fold, epoch]}.

        The draws are all of a bracket, the epochs those that the trial was trained.
        """
        found: dict[int, list[dict[str, np.ndarray]]] = {number: [] for number in draws}
        for part in chain(*self._climb(draws)):
            val = self._read(part).val
            for i, number in enumerate(part.job.numbers):
                found[number].append({name: values[i] for name, values in val.items()})
        return {number: jax.tree.map(lambda *a: np.concatenate(a, axis=1), *each) for number, each in found.items()}

    def read(self, draws: dict[int, Draw]) -> Trained:
        """All trials of a bracket in the order of their numbers, once they are trained; NaN after a trial's last."""
        rungs = self._climb(draws)
        rows = {number: row for row, number in enumerate(sorted(draws))}

        def empty(like: np.ndarray, length: int) -> np.ndarray:
            return np.full((len(draws), like.shape[1], length), np.nan, like.dtype)

        first = self._read(rungs[0][0])
        num_epochs = self._wide.spec.num_epochs
        train_loss, val = jax.tree.map(lambda a: empty(a, num_epochs), (first.train_loss, first.val))
        whole = Trained(train_loss, val, np.zeros(len(draws)))
        for part in chain(*rungs):
            self.programs.add(space_.key_of(part.job.fixed))
            own = [rows[number] for number in part.job.numbers]
            trained = self._read(part)
            for to, new in zip(jax.tree.leaves(whole[:2]), jax.tree.leaves(trained[:2]), strict=True):
                to[own, :, part.first_epoch : part.rung.num_epochs] = new
            whole.seconds[own] += trained.seconds
            side_by_side = part.rung.program.num_devices if part.rung.own_widths else 1
            spent = float(trained.seconds.sum()) / side_by_side
            self._seconds[self._path(part, LOSSES)] = part.rung.num_epochs, spent
        return whole

    def fold_models(self, trial: int, draws: dict[int, Draw]) -> tuple[tuple[Any, Any], ...]:
        """(params, state) of each fold's network of a bracket's best trial, at its own widths."""
        *_, last = self._climb(draws)
        part = next(part for part in last if trial in part.job.numbers)
        arrays = storage.read_arrays(self._path(part, MEMBERS))
        task = study.make_task(self._study, space_.fixed(self._study.space, draws[trial], widest=False))
        leaves, tree = jax.tree.flatten(study.variable_shapes(task, study.one_trial(self._study, draws[trial])))
        try:
            if int(arrays["number"]) != trial:
                raise ValueError("another trial's networks")
            wide = [storage.restored(arrays[f"leaf_{i}"], leaf.dtype) for i, leaf in enumerate(leaves)]
            own = [population.corner(a, leaf.shape, num_leading=1) for a, leaf in zip(wide, leaves, strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self._path(part, MEMBERS), error) from error
        folds = range(len(self._wide.folds))
        networks = [jax.tree.unflatten(tree, [np.array(a[fold]) for a in own]) for fold in folds]
        return tuple(training.with_keys(network) for network in networks)

    def _climb(self, draws: dict[int, Draw]) -> list[list[Part]]:
        """Trains a bracket from rung to rung -> the jobs of each rung."""
        bracket = next(stretch.bracket for stretch in self._stretches if min(draws) in stretch.numbers)
        self._done = {number: (0, np.full(len(self._wide.folds), np.nan)) for number in draws}
        rungs: list[list[Part]] = []
        left = draws
        for i, rung in enumerate(bracket.rungs):
            before = [part.job for part in rungs[-1]] if rungs else []
            parts = [Part(job, bracket, i, before) for job in self._jobs_of(rung, left)]
            self._left = list(left)
            todo = [part for part in parts if not self._is_kept(part)]
            if todo:
                self._restore(rungs, draws)
                self._train_all(todo, draws)
            for part in rungs[-1] if rungs else []:
                self._path(part, MEMBERS).unlink(missing_ok=True)
            rungs.append(parts)
            left = self._survivors(parts, left)
            if not left:
                break
        return rungs

    def _restore(self, rungs: list[list[Part]], draws: Mapping[int, Draw]) -> None:
        """Trains the jobs of the last rung again whose networks are gone, so that trials can go on from them.

        Networks are removed as soon as the next rung is done; a file of that rung may have been lost since.
        """
        gone = [part for part in rungs[-1] if not self._path(part, MEMBERS).exists()] if rungs else []
        if gone:
            self._restore(rungs[:-1], draws)
            self._train_all(gone, draws)

    def _train_all(self, parts: list[Part], draws: Mapping[int, Draw]) -> None:
        """Trains jobs of one rung."""
        places = self._places_of(parts[0].bracket, parts[0].i)
        side_by_side(lambda part, place: self._do(part, draws, place), parts, places, self._stop)

    def _jobs_of(self, rung: Rung, left: dict[int, Draw]) -> list[Job]:
        """Those of a rung, looked up once: their order asks for the size of each network."""
        key = rung, tuple(left)
        if key not in self._jobs:
            self._jobs[key] = plan.jobs_of(self._study, rung, left)
        return self._jobs[key]

    def _survivors(self, parts: list[Part], left: dict[int, Draw]) -> dict[int, Draw]:
        """Who goes on after a rung: the best by the mean over the folds (the first of equals), none that diverged."""
        trials = [trial for part in parts for trial in self._scored(part, self._read(part))]
        end = parts[0].rung.num_epochs
        self._done |= {trial.number: (end, np.array(trial.scores[self._study.score])) for trial in trials}
        finite = [trial for trial in trials if trial.state != "failed"]
        in_order = sorted(finite, key=lambda trial: (study.place(trial, self._study), trial.number))
        best = sorted(trial.number for trial in in_order[: self._plan.num_kept(len(left))])
        return {number: left[number] for number in best}

    def _scored(self, part: Part, trained: Trained) -> list[TrialScore]:
        """A job's trials after its rung."""
        num_epochs = part.rung.num_epochs - part.first_epoch
        values = [{name: folds[i] for name, folds in trained.val.items()} for i in range(len(part.job.numbers))]
        return [
            study.scored(number, {}, self._study, own, num_epochs)
            for number, own in zip(part.job.numbers, values, strict=True)
        ]

    def _places_of(self, bracket: Bracket, i: int) -> list[Population]:
        """Where jobs of a rung train side by side."""
        if (bracket, i) not in self._places:
            rung = bracket.rungs[i]
            place = population.rearranged(self._wide, rung.program)
            self._places[bracket, i] = population.one_trial_each(place) if rung.own_widths else [place]
        return self._places[bracket, i]

    def _path(self, part: Part, kind: str) -> Path:
        """Of a part's file, by the part's first trial and its last epoch."""
        return self._folder / f"{part.job.numbers[0]:06d}-{part.rung.num_epochs}.{kind}"

    def _read(self, part: Part) -> Trained:
        path = self._path(part, LOSSES)
        arrays = storage.read_arrays(path)
        names = ("loss", *self._study.metrics)
        expected = {"train_loss", "seconds", *(f"val_{name}" for name in names)}
        if set(arrays) != expected or len({len(a) for a in arrays.values()}) != 1:
            raise damaged(path, "not the losses of trials")
        arrays = {name: array[: len(part.job.numbers)] for name, array in arrays.items()}
        val = {name: arrays[f"val_{name}"] for name in names}
        return Trained(arrays["train_loss"], val, arrays["seconds"])

    def _is_kept(self, part: Part) -> bool:
        """Whether the job is done. A last one that was smaller is trained again when more trials are asked for."""
        if not self._path(part, LOSSES).exists() or (part.is_last and not self._path(part, MEMBERS).exists()):
            return False
        return len(self._read(part).train_loss) >= len(part.job.numbers)

    def _do(self, part: Part, draws: Mapping[int, Draw], place: Population) -> None:
        """Trains a job, and keeps what comes of it."""
        trained, members = self._train(part, draws, place)
        if part.is_last:
            members = self._best_of(part, trained, members)
        storage.write_arrays(self._path(part, MEMBERS), members, compressed=False)  # first, as they are needed
        named = {f"val_{name}": values for name, values in trained.val.items()}
        kept = {"train_loss": trained.train_loss, "seconds": trained.seconds} | named
        storage.write_arrays(self._path(part, LOSSES), kept)
        for checkpoint in self._folder.glob(self._path(part, "*.checkpoint").name):
            checkpoint.unlink(missing_ok=True)

    def _best_of(self, part: Part, trained: Trained, members: Members) -> Members:
        """The job's best trial alone: the search's best is one of these."""
        trials = self._scored(part, trained)
        finite = [trial for trial in trials if trial.state != "failed"]
        best = min(finite, key=lambda trial: study.place(trial, self._study), default=trials[0])
        row = part.job.numbers.index(best.number)
        return {name: leaf[row] for name, leaf in members.items()} | {"number": np.array(best.number)}

    def _train(self, part: Part, draws: Mapping[int, Draw], place: Population) -> tuple[Trained, Members]:
        """As one program; in halves where the device has not memory enough for all at once."""
        numbers = part.job.numbers
        try:
            return self._train_job(part, draws, place)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or len(numbers) == 1:
                raise
        self.splits += 1
        half = -(-len(numbers) // 2)
        self._observer.note(f"out of memory with {len(numbers)} trials at once: going on with {half}")
        smaller = place._replace(plan=plan.narrower(place.plan, half))
        halves = [part._replace(job=Job(part.job.fixed, some)) for some in (numbers[:half], numbers[half:])]
        return jax.tree.map(lambda *a: np.concatenate(a), *[self._train(each, draws, smaller) for each in halves])

    def _train_job(self, part: Part, draws: Mapping[int, Draw], place: Population) -> tuple[Trained, Members]:
        numbers, last_epoch, begun = part.job.numbers, part.rung.num_epochs, time.perf_counter()
        members, trials, slots = _in_slots(self._study, self._key, part.job, draws, place)
        if part.i:
            state = self._selected(part, members, trials, slots)
        else:
            in_corners = part.rung.own_widths and self._in_corners
            state = _new(self._study, part.job, draws, members, trials, in_corners=in_corners)
        # Named by its trials: a job that more trials fill up must not go on with the dummies that held their slots.
        kind = f"{place.plan.slots}.{len(numbers)}.checkpoint"
        checkpoint = Checkpoint(self._path(part, kind))
        state, done, losses = checkpoint.read(state, part.first_epoch)
        state = population.put(members, state)
        for step in population.resume(members, state, trials, first_epoch=done, last_epoch=last_epoch):
            state, done = step.state, step.num_epochs
            assert step.val is not None  # every fold has a validation part
            losses.append((step.train_loss, step.val))
            self._show(part, step)
            stopped = self._stop.is_set()
            if (stopped or checkpoint.is_due()) and done < last_epoch:
                checkpoint.write(step.state, done, losses)
            if stopped:
                raise Stopped
        train_loss, val = in_one(losses)
        share = (time.perf_counter() - begun) / len(numbers)
        whole = Trained(train_loss, val, np.full(len(train_loss), share))
        kept = population.final_variables(members.task, state) if part.is_last else state
        return jax.tree.map(lambda a: a[: len(numbers)], (whole, _on_host(kept)))

    def _selected(self, part: Part, members: Population, trials: Trials, slots: list[int]) -> State:
        """The state of trials that go on, from the files of the rung before."""
        rows: dict[int, list[np.ndarray]] = {}
        for job in part.before:
            if set(job.numbers).isdisjoint(slots):
                continue
            earlier = Part(job, part.bracket, part.i - 1, [])
            path = self._path(earlier, MEMBERS)
            try:
                arrays = storage.read_arrays(path)
                leaves = [arrays[f"leaf_{i}"] for i in range(len(arrays))]
                own = {number: [leaf[row] for leaf in leaves] for row, number in enumerate(job.numbers)}
                rows |= {number: own[number] for number in own if number in slots}
            except (KeyError, IndexError) as error:
                raise damaged(path, "not the networks of its trials") from error
        try:
            return population.select(members, [rows[number] for number in slots], trials)
        except ValueError as error:
            raise damaged(self._folder, error) from error

    def _show(self, part: Part, step: Progress) -> None:
        """How far the bracket is on average, and the scores of its members."""
        assert step.val is not None
        with self._lock:
            for i, number in enumerate(part.job.numbers):
                self._done[number] = step.num_epochs, step.val[self._study.score][i, :, -1]
            epochs, scores = zip(*(self._done[number] for number in self._left), strict=True)
            first, several = min(self._done), len(part.bracket.rungs) > 1
            what = f"trials {first}-{max(self._done)}"
            what += f", rung {part.i + 1} of {len(part.bracket.rungs)}" if several else ""
            before = [self._plan.work(s) for s in self._stretches if s.numbers.stop <= first]
            done = sum(before) + sum(epochs for epochs, _ in self._done.values())
            self._observer.epochs(
                what, sum(epochs) / len(epochs), part.rung.num_epochs, np.array(scores), min(1, done / self.work)
            )


def side_by_side(
    train: Callable[[Work, Population], object],
    parts: Iterable[Work],
    places: Sequence[Population],
    stop: threading.Event,
) -> None:
    """train(part, place) for every part of some work: a thread a place, which takes the next part after each.

    The first error keeps the threads from taking more, and is raised here. An interrupt (Ctrl-C in a notebook) sets
    `stop`, and is raised when they have ended: nothing writes files in the background.
    """
    waiting: queue.SimpleQueue[Work] = queue.SimpleQueue()
    for part in parts:
        waiting.put(part)
    errors: list[BaseException] = []
    working: list[threading.Event] = []  # of each thread that has begun, set when it has ended
    precision = record.matmul_precision()  # each thread has its own

    def work(place: Population) -> None:
        ended = threading.Event()
        working.append(ended)
        try:
            with jax.default_matmul_precision(precision):
                while not errors:
                    train(waiting.get_nowait(), place)
        except queue.Empty:
            pass
        except BaseException as error:
            errors.append(error)  # raised again in the main thread
        finally:
            ended.set()

    # Daemons, as a process that is to end doesn't wait for a program that is at its epoch.
    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in places]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:
        errors.append(error)
        stop.set()
        for ended in working:  # an interrupted `join` takes its thread for one that has ended (Python 3.11)
            ended.wait()
        raise
    if errors:
        raise errors[0]


def begin(
    study_: Study, key: jax.Array, job: Job, draws: Mapping[int, Draw], place: Population, *, own_widths: bool
) -> tuple[Population, Trials, State]:
    """A job before its first epoch: (the place with the job's task, its trials one a slot, their new members)."""
    members, trials, _ = _in_slots(study_, key, job, draws, place)
    in_corners = own_widths and _can_be_in_corners(study_, place)
    return members, trials, _new(study_, job, draws, members, trials, in_corners=in_corners)


def _in_slots(
    study_: Study, key: jax.Array, job: Job, draws: Mapping[int, Draw], place: Population
) -> tuple[Population, Trials, list[int]]:
    """(the place with the job's task, its trials one a slot, their numbers)."""
    filled = np.minimum(np.arange(place.plan.slots), len(job.numbers) - 1)  # empty slots train the last trial too
    slots = [job.numbers[i] for i in filled]
    trials = trials_of(study_, key, slots, [draws[number] for number in slots])
    return place._replace(task=study.make_task(study_, job.fixed)), trials, slots


def _can_be_in_corners(study_: Study, place: Population) -> bool:
    """Whether a narrow network can begin in a corner of the widest one's parameters."""
    if training.has_state(place.task):
        return False
    search = Search(place.spec.num_epochs, place.spec.batch_size, seed=place.spec.seed[0])
    return plan.changed_by_padding(study_, search, place.data, place.folds) is None


def _new(
    study_: Study, job: Job, draws: Mapping[int, Draw], members: Population, trials: Trials, *, in_corners: bool
) -> State:
    """New members of a job."""
    if in_corners:
        wide = space_.fixed(study_.space, draws[job.numbers[0]], widest=True)
        widened = members._replace(task=study.make_task(study_, wide))
        return population.start_narrow(widened, members, trials)
    return population.start(members, trials)


def _on_host(kept: Any) -> Members:
    """What is kept of members, [trial, fold, ...]: all that training needs to go on, or the networks alone."""
    return {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(kept))}


def trials_of(study_: Study, key: jax.Array, numbers: list[int], draws: list[Draw]) -> Trials:
    """These trials as a population takes them, one a slot."""
    return Trials(key, np.array(numbers), space_.as_arrays(study_.space, draws))


def joined(parts: list[Trained]) -> Trained:
    """The trials of several brackets as those of one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
