"""Trains the brackets of a search from rung to rung.

A rung begins when all jobs of the one before are done, so the trials that go on don't depend on the workers.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np

from hw1jax.core import member_states
from hw1jax.core.population import Plan
from hw1jax.search import networks as networks_
from hw1jax.search import plan, trial_score
from hw1jax.search import space as space_
from hw1jax.search.jobs import Stopped, slots
from hw1jax.search.networks import Network, Networks
from hw1jax.search.observer import Observer
from hw1jax.search.plan import Bracket, Job, Rung, SearchPlan
from hw1jax.search.rungs import num_kept
from hw1jax.search.space import Draw
from hw1jax.search.trainer import FoldNetworks, Gone, Trained, Trainer, scored
from hw1jax.search.trial_score import TrialScore, Values
from hw1jax.storage import Folder, digest

MOST_WAITING = 256  # threads that wait for workers of an executor


class Brackets:
    """Trains the brackets of a search, and refits its best trial, with files kept in `files`.

    Training stops soon after `stop` is set. The workers of `executor` train; by default, threads of this process, one a
    device.
    """

    def __init__(
        self,
        files: Folder,
        networks: Networks,
        plan: SearchPlan,
        observer: Observer,
        stop: threading.Event,
        *,
        num_trials: int,
        executor: Executor | None = None,
    ):
        self._files, self._networks, self._study, self._plan = files, networks, networks.study, plan
        self._observer, self._executor, self._stop = observer, executor, stop
        self._brackets = plan.of(num_trials)
        self._failed = False  # whether a job of the rung has raised an error, so that the others stop
        self._trainer_of = lambda own: Trainer(
            files, own, executor=executor, note=observer.note, stop=lambda: self._failed or stop.is_set()
        )
        self._trainer = self._trainer_of(networks)
        self._lock = threading.Lock()
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}  # of a bracket {trial: (epochs done, scores [fold])}
        self._undefined = list(networks.undefined.get(self._study.score, ()))  # folds without a score
        self._left: list[int] = []  # its trials that train on the current rung
        self._states: dict[int, list[np.ndarray]] = {}  # {trial: leaves of its state} that were read and not used yet
        self._last_jobs: dict[int, Job] = {}  # {trial: its job on the last rung}
        self.histories: dict[int, Trained] = {}  # by each bracket's first trial; NaN after a trial's last epoch
        self._kept: dict[int, TrialScore] = {}  # scores of trials whose files were there
        self.seconds: dict[int, float] = {}  # {end of a rung: what its jobs took}
        self.programs: set[Any] = set()  # the keys of those that were needed

    @property
    def work(self) -> int:
        """Total epochs of the search's trials."""
        return sum(map(self._plan.work, self._brackets))

    @property
    def splits(self) -> int:
        """Number of jobs that were trained in halves, after running out of memory."""
        return self._trainer.splits

    def history(self) -> Trained:
        """The histories of all trained trials, in the order of their numbers."""
        each = [self.histories[first] for first in sorted(self.histories)]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *each)

    def train(self, draws: dict[int, Draw]) -> dict[int, Values]:
        """Trains the trials {number: draw} of a bracket -> {number: "loss" and metrics by name, [fold, epoch]}.

        Values cover the epochs of each trial. Finished jobs are read from their files.
        """
        bracket = next(bracket for bracket in self._brackets if min(draws) in bracket.numbers)
        done = None
        while done is None:
            try:
                done = self._climb(bracket, draws)
            except Gone:
                continue  # it makes them again
        numbers, num_epochs = sorted(draws), self._networks.search.num_epochs
        rows, last = {number: row for row, number in enumerate(numbers)}, dict.fromkeys(numbers, 0)
        first = done[0][1]
        shape = (len(draws), len(self._networks.folds), num_epochs)
        train_loss, val = jax.tree.map(lambda a: np.full(shape, np.nan, a.dtype), (first.train_loss, first.val))
        best = {name: np.zeros((len(draws), *a.shape[1:]), a.dtype) for name, a in first.best.items()}
        whole = Trained(train_loss, val, np.zeros(len(draws)), best)
        for job, trained in done:
            places = [rows[number] for number in job.numbers]
            for to, new in zip(jax.tree.leaves(whole[:2]), jax.tree.leaves(trained[:2]), strict=True):
                to[places, :, job.first_epoch : job.rung.end_epoch] = new
            for name in best:  # that of the last rung is over all epochs
                best[name][places] = trained.best[name]
            whole.seconds[places] += trained.seconds
            last |= dict.fromkeys(job.numbers, job.rung.end_epoch)
            self._count(job, trained)
        self.histories[numbers[0]] = whole
        values: dict[int, Values] = {}
        for number in draws:
            own = {name: each[rows[number], :, : last[number]] for name, each in whole.val.items()}
            own |= {name: each[rows[number]] for name, each in best.items()}
            values[number] = self._networks.masked(own)
        trained_now = {number for job, _ in done if job.name not in self._trainer.read for number in job.numbers}
        for number in draws.keys() - trained_now:
            scored = trial_score.scored(number, draws[number], self._study, values[number], num_epochs)
            self._kept[number] = scored._replace(draw={})
        return values

    def check(self, trials: Sequence[TrialScore]) -> None:
        """Compares the scores of trials in the journal with the files of their jobs, where these were there already.

        Raises:
          ValueError: they differ, so one of the two is damaged.
        """
        for trial in trials:
            kept = self._kept.get(trial.number)
            if kept is not None and repr(kept) != repr(trial._replace(draw={})):  # repr: NaN equals itself
                raise ValueError(
                    f"trial {trial.number} has scores {trial.scores} after {trial.epochs} epochs in journal.log, and "
                    f"{kept.scores} after {kept.epochs} in its file in brackets/: one of them is damaged; give another "
                    "out=, or overwrite=True"
                )

    def fold_models(self, number: int, draw: Draw) -> FoldNetworks:
        """(params, state) of each fold's network, at its own widths, of a bracket's best trial or an ensemble's."""
        return self._trainer.networks_of(self._last_jobs[number], {number: draw})[0]

    def as_trained(self, draws: dict[int, Draw]) -> Iterator[tuple[int, Network, FoldNetworks]]:
        """(number, network, its folds' (params, state)) of an ensemble's candidates, as wide as in their programs."""
        for job in {job.name: job for job in self._last_jobs.values()}.values():
            own = {number: draws[number] for number in job.numbers if number in draws}
            kept = self._trainer.networks_of(job, own, as_trained=True) if own else []
            for (number, draw), folds in zip(own.items(), kept, strict=True):
                yield number, Network(self._study, draw, job.fixed), folds

    def refit(
        self, number: int, draw: Draw, *, num_epochs: int | None = None, padded: bool = False
    ) -> tuple[Any, Any, np.ndarray]:
        """Trains a trial's network on all training data -> (params, state, train_loss [epoch]).

        It is fold k of the cross-validation, at its own widths unless `padded`, initialized as trial number 0. It stops
        after `num_epochs`, by default after all.
        """
        name = f"refit-{number}"
        for other in self._files.names("refit-*"):
            if not other.startswith(f"{name}."):  # of a search of fewer trials
                self._files.remove(other)
        how = {"num_epochs": num_epochs, "padded": padded}
        return refit(self._trainer_of(self._networks.for_refit()), name, draw, self._observer, **how)

    def refits(self, draws: dict[int, Draw], epochs: dict[int, int | None]) -> dict[int, tuple[Any, Any]]:
        """Trains several trials' networks on all training data -> {trial: (params, state)}.

        Trials that can share a program do, and each is initialized by its number. `epochs` of each; None: all.
        """
        networks, waiting = self._networks.for_refit(), list[Job]()
        groups: dict[Any, dict[int, Draw]] = {}
        for number in sorted(draws):
            key = space_.key_of(networks_.padded(self._study, draws[number]).fixed), epochs[number]
            groups.setdefault(key, {})[number] = draws[number]
        for (_, num_epochs), own in groups.items():
            rung = plan.for_refits(networks, self._last_jobs[min(own)].rung, len(own), num_epochs)
            for job in plan.jobs_of(networks, rung, own):
                name = f"ensemble-{digest([job.numbers, job.rung.end_epoch])}"
                waiting.append(job._replace(name=name))
        for name in self._files.names("ensemble-*"):
            if name.partition(".")[0] not in {job.name for job in waiting}:  # of a search of fewer trials
                self._files.remove(name)
        trainer = self._trainer_of(networks)

        def train(i: int, device: int) -> None:
            job = waiting[i]
            show = partial(self._observer.epochs, "refits of the ensemble")
            trainer.train(job, device=device, show=lambda job, done, val: show(done, job.rung.end_epoch, None))

        side_by_side(train, len(waiting), waiting[0].rung.num_side_by_side, self._stop)
        found = {}
        for job in waiting:
            own = {number: draws[number] for number in job.numbers}
            found |= {n: folds[0] for n, folds in zip(own, trainer.networks_of(job, own), strict=True)}
        return found

    def _climb(self, bracket: Bracket, draws: dict[int, Draw]) -> list[tuple[Job, Trained]]:
        """Trains a bracket from rung to rung -> its jobs.

        Raises:
          Gone: the states of a finished job are missing; the next call trains them again.
        """
        num_scores = len(self._networks.folds) - len(self._undefined)
        self._epochs = {number: (0, np.full(num_scores, np.nan)) for number in draws}
        done: list[tuple[Job, Trained]] = []
        before: list[Job] = []
        left = draws
        for rung in bracket.rungs:
            ended = self._train_rung(rung, left, before)
            for job in before:
                self._trainer.forget_states(job)
            done += ended
            before = [job for job, _ in ended]
            left = self._survivors(ended, left)
            if not left:
                break
        return done

    def _train_rung(self, rung: Rung, left: dict[int, Draw], before: list[Job]) -> list[tuple[Job, Trained]]:
        """Trains trials up to a rung, from the jobs of the rung before -> their jobs."""
        first_epoch = before[0].rung.end_epoch if before else 0
        waiting = plan.jobs_of(self._networks, rung, left, first_epoch)
        self._left, self._states, self._failed = list(left), {}, False
        found: dict[int, Trained] = {}

        def train(i: int, device: int) -> None:
            job = waiting[i]
            state = (lambda: self._state(job, before)) if before else None
            try:
                found[i] = self._trainer.train(job, state, device=device, show=self._show)
            except BaseException:
                self._failed = True
                raise

        num_threads = rung.num_side_by_side if self._executor is None else min(len(waiting), MOST_WAITING)
        side_by_side(train, len(waiting), num_threads, self._stop)
        return [(job, found[i]) for i, job in enumerate(waiting)]

    def _state(self, job: Job, before: list[Job]) -> list[np.ndarray]:
        """The leaves of a job's state, [slot, fold, ...], from the rung before; corners if its networks are narrower.

        Each file is read once: the states of other jobs are kept.
        """
        with self._lock:
            for earlier in before:
                wanted = set(earlier.numbers) & set(job.numbers)
                if wanted - self._states.keys():
                    states = self._trainer.states(earlier)
                    self._states |= {number: states[number] for number in states if number in self._left}
            rows = [self._states.pop(number) for number in job.numbers]
        shapes = self._networks.member_shapes(Network(self._study, job.draws[0], job.fixed))
        return member_states.select(shapes, [rows[i] for i in slots(job)])

    def _survivors(self, ended: list[tuple[Job, Trained]], left: dict[int, Draw]) -> dict[int, Draw]:
        """The trials that go on after a rung: the best mean scores (the first among equals), none that diverged."""
        trials = [trial for job, trained in ended for trial in scored(self._networks, job, trained)]
        end = ended[0][0].rung.end_epoch
        self._epochs |= {trial.number: (end, trial.defined(self._study.score)) for trial in trials}
        finite = [trial for trial in trials if trial.state != "failed"]
        in_order = sorted(finite, key=lambda trial: (trial_score.sort_key(trial, self._study), trial.number))
        best = sorted(trial.number for trial in in_order[: num_kept(len(left), self._plan.factor, self._plan.fewest)])
        return {number: left[number] for number in best}

    def _count(self, job: Job, trained: Trained) -> None:
        end = self._end_of_rung(job)
        self.programs.add(space_.key_of(job.fixed))
        self.seconds[end] = self.seconds.get(end, 0) + float(trained.seconds.sum()) / job.rung.num_side_by_side
        if job.rung.end_epoch == self._networks.num_epochs(job.fixed):
            self._last_jobs |= dict.fromkeys(job.numbers, job)

    def _end_of_rung(self, job: Job) -> int:
        """The last epoch of the rung; a job ends before it if its trials have fewer epochs in the space."""
        return job.rung.end_epoch if self._plan.factor is not None else self._networks.search.num_epochs

    def _show(self, job: Job, num_epochs: int, val: dict[str, np.ndarray]) -> None:
        with self._lock:
            end = self._end_of_rung(job)
            for i, number in enumerate(job.numbers):
                scores = np.delete(val[self._study.score][i, :, -1], self._undefined)
                self._epochs[number] = num_epochs * end // job.rung.end_epoch, scores
            epochs, scores = zip(*(self._epochs[number] for number in self._left), strict=True)
            bracket = next(bracket for bracket in self._brackets if job.numbers[0] in bracket.numbers)
            what = f"trials {min(self._epochs)}-{max(self._epochs)}"
            if len(bracket.rungs) > 1:
                what += f", rung {bracket.ends.index(job.rung.end_epoch) + 1} of {len(bracket.rungs)}"
            before = [self._plan.work(b) for b in self._brackets if b.numbers.stop <= bracket.numbers.start]
            done = sum(before) + sum(epochs for epochs, _ in self._epochs.values())
            mean = sum(epochs) / len(epochs)
            self._observer.epochs(what, mean, end, np.array(scores), min(1, done / self.work))


def refit(
    trainer: Trainer, name: str, draw: Draw, observer: Observer, *, num_epochs: int | None = None, padded: bool = False
) -> tuple[Any, Any, np.ndarray]:
    """Trains a draw's network on all training data -> (params, state, train_loss [epoch]).

    It is initialized as trial number 0, so that hyperparameters without a trial (the report's best) can be refitted.
    `trainer` is that of `Networks.for_refit()`, `name` that of the files. With `num_epochs` it stops after so many; a
    schedule's steps are still those of all epochs. All draws of a space share a program if the network is `padded`.
    """
    networks = trainer.networks
    fixed = (networks_.padded if padded else networks_.own)(networks.study, draw).fixed
    num_epochs = num_epochs or networks.num_epochs(fixed)
    rung = Rung(num_epochs, Plan(1, layout=networks.layout), own_widths=True)
    job = Job(name, fixed, [0], [draw], rung, 0)

    trained = trainer.train(
        job, show=lambda job, done, val: observer.epochs("refit of the best trial", done, num_epochs, None)
    )
    (((params, state),),) = trainer.networks_of(job, {0: draw})
    return params, state, trained.train_loss[0, 0]


def side_by_side(work: Callable[[int, int], None], num_jobs: int, num_threads: int, stop: threading.Event) -> None:
    """work(job, thread) for each job, by number: each thread takes the next job after the one it has done.

    The first error keeps the threads from taking more, and is raised here. An interrupt (Ctrl-C in a notebook) sets
    `stop`, and is raised when they have ended: nothing writes files in the background.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(num_jobs):
        waiting.put(i)
    errors: list[BaseException] = []
    working: list[threading.Event] = []  # of each thread that has begun, set when it has ended
    config: Any = jax.config  # its stubs lack the attribute
    x64 = config.jax_enable_x64

    def take(thread: int) -> None:
        ended = threading.Event()
        working.append(ended)
        try:
            # A thread doesn't know the caller's `with jax.enable_x64`.
            with nullcontext() if config.jax_enable_x64 == x64 else jax.enable_x64(x64):
                while not errors:
                    work(waiting.get_nowait(), thread)
        except queue.Empty:
            pass
        except BaseException as error:
            errors.append(error)  # raised again in the main thread
        finally:
            ended.set()

    # Daemons, as a process that is to end doesn't wait for a program that is at its epoch.
    threads = [threading.Thread(target=take, args=(i,), daemon=True) for i in range(num_threads)]
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
    if errors:  # others may have stopped because of it
        raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])
