"""Trains jobs and stores each in files, so that none is trained twice.

The files of a finished job are the losses of its trials, and the states of those that may go on. An unfinished job has
a checkpoint.
"""

import json
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from hw1jax import storage
from hw1jax.core import member_states, tasks
from hw1jax.search import executors, jobs, networks, plan, space_text, trial_score
from hw1jax.search.jobs import Losses, Show, Stretch, damaged
from hw1jax.search.networks import Networks
from hw1jax.search.plan import Job
from hw1jax.search.space import Draw
from hw1jax.search.trial_score import BEST, BEST_EPOCH, TrialScore
from hw1jax.storage import Folder, Memory

LOSSES, MEMBERS = "npz", "members.npz"  # kinds of a job's files


FoldNetworks = tuple[tuple[Any, Any], ...]  # (params, state) of each fold's network of a trial


class Gone(Exception):
    """The states of a finished job are missing: their file was removed. The job will be trained again."""


class Trained(NamedTuple):
    """Trials after some epochs."""

    train_loss: np.ndarray  # float32 [trial, fold, epoch]
    val: dict[str, np.ndarray]  # "loss" and metrics by name: float32 [trial, fold, epoch]
    seconds: np.ndarray  # float [trial], share of the program's time
    best: dict[str, np.ndarray]  # with early stopping, as in `trial_score.Values`: [trial, fold]


class Trainer:
    """Trains the jobs of a search, and keeps their arrays in `files`.

    The workers of `executor` train, by default the calling thread. `own` are the search's networks; `note` is called
    with notes for the user; `stop` returns True to stop soon.
    """

    def __init__(
        self,
        files: Folder,
        own: Networks,
        *,
        executor: Executor | None = None,
        note: Callable[[str], None] = lambda text: None,
        stop: Callable[[], bool] = lambda: False,
    ):
        self._files, self.networks, self._note, self._stop = files, own, note, stop
        self._go_on = jobs.here(own, stop) if executor is None else executors.on_executor(executor, own, stop)
        self.read: set[str] = set()  # names of jobs whose files were there
        self.splits = 0  # how often a job was too large for the memory, and was trained in halves

    def train(
        self,
        job: Job,
        state: Callable[[], list[np.ndarray]] | None = None,
        *,
        device: int = 0,
        show: Show = lambda job, num_epochs, val: None,
    ) -> Trained:
        """Returns the losses of a job's trials, from its files or by training it; other arguments as in `jobs.train`.

        `state` loads the members' state after the rung before, [slot, fold, ...], if needed. The last job of a search
        is trained again if its files have fewer trials, or more of which one that is not asked for is the best.

        Raises:
          jobs.Stopped: training was asked to stop.
        """
        if self._has(job, LOSSES) and (not self._is_last(job) or self._has(job, MEMBERS)):
            trained = self._read(job)
            more = len(trained.train_loss) - len(job.numbers)
            if more == 0 or (more > 0 and not self._has_another_best(job)):
                self.read.add(job.name)
                return jax.tree.map(lambda a: a[: len(job.numbers)], trained)
        done = self._train(job, state, device, show)
        train_loss, val = done.losses
        best = jobs.best_values(self.networks, job, done.state)
        trained = Trained(train_loss, val, np.full(len(job.numbers), done.seconds / len(job.numbers)), best)
        members = self._kept_of(job, trained, done.state) if self._is_last(job) else _by_index(done.state)
        self._files.write(_name(job, MEMBERS), members, compressed=False)  # first, as they are needed
        named = {f"val_{name}": values for name, values in val.items()}
        kept = {"train_loss": train_loss, "seconds": trained.seconds, "draws": _draws_as_text(job)}
        self._files.write(_name(job, LOSSES), kept | named | best)
        self._files.remove(f"{job.name}.*.checkpoint")
        return trained

    def states(self, job: Job) -> dict[int, list[np.ndarray]]:
        """{trial: leaves [fold, ...] of its state} after a job on an earlier rung.

        Raises:
          Gone: the file is missing; the job will be trained again.
          ValueError: it is damaged.
        """
        name = _name(job, MEMBERS)
        try:
            arrays = self._files.read(name)
            leaves = [arrays[f"leaf_{i}"] for i in range(len(arrays))]
            return {number: [leaf[row] for leaf in leaves] for row, number in enumerate(job.numbers)}
        except FileNotFoundError:
            self._files.remove(_name(job, LOSSES))
            raise Gone from None
        except (KeyError, IndexError) as error:
            raise damaged(self._files.path(name), "not the networks of its trials") from error

    def forget_states(self, job: Job) -> None:
        """Removes the states of a job whose successors are done."""
        self._files.remove(_name(job, MEMBERS))

    def networks_of(self, job: Job, draws: dict[int, Draw], *, as_trained: bool = False) -> list[FoldNetworks]:
        """The fold networks of some trials {number: draw} that a last job has kept: its best, or those of an ensemble.

        They are at the trials' own widths; `as_trained`: at those of the job's program.

        Raises:
          ValueError: the file is damaged, or of other trials.
        """
        arrays = self._files.read(_name(job, MEMBERS))
        found = []
        for number, draw in draws.items():
            network = networks.own(self.networks.study, draw)
            network = replace(network, fixed=job.fixed) if as_trained else network
            leaves, tree = jax.tree.flatten(network.shapes)
            try:
                row = np.atleast_1d(arrays["number"]).tolist().index(number)
                stored = [storage.restored(arrays[f"leaf_{i}"], leaf.dtype) for i, leaf in enumerate(leaves)]
                wide = [leaf[row] if arrays["number"].ndim else leaf for leaf in stored]
                own = [member_states.corner(a, leaf.shape, num_leading=1) for a, leaf in zip(wide, leaves, strict=True)]
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise damaged(self._files.path(_name(job, MEMBERS)), error) from error
            each = [jax.tree.unflatten(tree, [np.array(a[i]) for a in own]) for i in range(len(self.networks.folds))]
            fitted, kept = self.networks.statistics(network.task), [tasks.with_keys(network) for network in each]
            found.append(tuple((params, _with_statistics(state, fitted, i)) for i, (params, state) in enumerate(kept)))
        return found

    def _is_last(self, job: Job) -> bool:
        is_refit = not self._val_names()
        return is_refit or job.rung.end_epoch == self.networks.num_epochs(job.fixed)

    def _has_another_best(self, job: Job) -> bool:
        """True if the job's files keep the networks of a trial that isn't asked for any more."""
        kept = self._files.read(_name(job, MEMBERS)) if self._is_last(job) else {}
        return "number" in kept and kept["number"].ndim == 0 and int(kept["number"]) not in job.numbers

    def _has(self, job: Job, kind: str) -> bool:
        return self._files.exists(_name(job, kind))

    def _read(self, job: Job) -> Trained:
        path, arrays = self._files.path(_name(job, LOSSES)), self._files.read(_name(job, LOSSES))
        names, best = self._val_names(), []
        if self.networks.search.early_stopping is not None:
            best = [BEST_EPOCH, *(BEST + name for name in names)]
        expected = {"train_loss", "seconds", "draws", *(f"val_{name}" for name in names), *best}
        if set(arrays) != expected or len({len(a) for a in arrays.values()}) != 1:
            raise damaged(path, "not the losses of trials")
        trained, asked = arrays["draws"].tolist(), _draws_as_text(job).tolist()
        for one, other in zip(trained, asked, strict=False):  # of as many trials as both have
            if one != other:
                raise ValueError(
                    f"{path} has a trial of {one}, and the journal has it with {other}: one of them is damaged; give "
                    "another out=, or overwrite=True"
                )
        val = {name: arrays[f"val_{name}"] for name in names}
        return Trained(arrays["train_loss"], val, arrays["seconds"], {name: arrays[name] for name in best})

    def _val_names(self) -> tuple[str, ...]:
        """Names of the validation values; empty for folds without validation samples."""
        held_out = all(len(fold.validation) for fold in self.networks.folds)
        return ("loss", *self.networks.study.metrics) if held_out else ()

    def _kept_of(self, job: Job, trained: Trained, state: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The networks of the job's best trial, which may be the search's best; of all trials for an ensemble."""
        if not trained.val:
            numbers = job.numbers
        else:
            trials = scored(self.networks, job, trained)
            finite = [trial for trial in trials if trial.state != "failed"]
            if self.networks.search.ensemble is None:
                best = min(finite, key=lambda each: trial_score.sort_key(each, self.networks.study), default=trials[0])
                finite = [best]
            numbers = [trial.number for trial in finite]
        leaves = self._variables_of(job, state, [job.numbers.index(number) for number in numbers])
        if self.networks.search.ensemble is None and len(numbers) == 1:
            return _by_index([leaf[0] for leaf in leaves]) | {"number": np.array(numbers[0])}
        return _by_index(leaves) | {"number": np.array(numbers, int)}

    def _variables_of(self, job: Job, state: list[np.ndarray], rows: list[int]) -> list[np.ndarray]:
        return jobs.final_variables(self.networks, job, [leaf[rows] for leaf in state])

    def _train(
        self,
        job: Job,
        state: Callable[[], list[np.ndarray]] | None,
        device: int,
        show: Show,
    ) -> Stretch:
        """Trains in one program, or in halves if the device's memory is too small; one row a trial."""
        # Named by its trials: a job that more trials fill up must not go on with the dummies that held their slots.
        checkpoint = _name(job, f"{len(jobs.slots(job))}.{len(job.numbers)}.checkpoint")
        begin = state() if state is not None and not self._files.exists(checkpoint) else None
        try:
            done = jobs.train(
                self.networks,
                job,
                begin,
                checkpoint=None if isinstance(self._files, Memory) else self._files.path(checkpoint),
                device=device,
                go_on=self._go_on,
                show=show,
                stop=self._stop,
            )
            return _rows(done, slice(len(job.numbers)))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or len(job.numbers) == 1:
                raise
        if begin is None and state is not None:
            begin = state()  # the checkpoint is of the program that is too large
        self.splits += 1
        half = -(-len(job.numbers) // 2)
        self._note(f"out of memory with {len(job.numbers)} trials at once: going on with {half}")
        halves = []
        for own in (slice(half), slice(half, len(job.numbers))):
            rung = replace(job.rung, plan=plan.narrower(job.rung.plan, half))
            name = f"{job.name}.{job.numbers[own][0]:06d}"  # of its own checkpoint
            part = job._replace(name=name, numbers=job.numbers[own], draws=job.draws[own], rung=rung)
            halves.append(self._train(part, _some_of(begin, own, len(jobs.slots(part))), device, show))
        return _concatenated(*halves)


def scored(own: Networks, job: Job, trained: Trained) -> list[TrialScore]:
    """The scores of a job's trials after its rung."""
    num_epochs = job.rung.end_epoch - job.first_epoch
    named = trained.val | trained.best
    values = [{name: folds[i] for name, folds in named.items()} for i in range(len(job.numbers))]
    return [
        trial_score.scored(number, draw, own.study, own.masked(each), num_epochs)
        for number, draw, each in zip(job.numbers, job.draws, values, strict=True)
    ]


def _name(job: Job, kind: str) -> str:
    return f"{job.name}.{kind}"


def _with_statistics(state: Any, statistics: Any, fold: int) -> Any:
    """A network's state with the statistics of its fold, if there are any."""
    return state if statistics is None else tasks.Fit(state, jax.tree.map(lambda a: a[fold], statistics))


def _draws_as_text(job: Job) -> np.ndarray:
    return np.array([json.dumps(space_text.draw_to_json(draw), sort_keys=True) for draw in job.draws])


def _by_index(leaves: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)}


def _rows(stretch: Stretch, rows: slice) -> Stretch:
    losses: Losses = jax.tree.map(lambda a: a[rows], stretch.losses)
    return stretch._replace(state=[leaf[rows] for leaf in stretch.state], losses=losses)


def _some_of(leaves: list[np.ndarray] | None, rows: slice, num_slots: int) -> Callable[[], list[np.ndarray]] | None:
    """Gives some rows of leaves, if there are any, the last one again and again in the slots that are left."""
    if leaves is None:
        return None
    parts = [leaf[rows] for leaf in leaves]
    filled = [np.concatenate([part, part[-1:].repeat(num_slots - len(part), axis=0)]) for part in parts]
    return lambda: filled


def _concatenated(first: Stretch, second: Stretch) -> Stretch:
    losses = jax.tree.map(lambda a, b: np.concatenate([a, b]), first.losses, second.losses)
    state = [np.concatenate(leaves) for leaves in zip(first.state, second.state, strict=True)]
    return Stretch(state, first.num_epochs, losses, first.seconds + second.seconds)
