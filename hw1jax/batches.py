"""Batches of a search's trials: trained together or each at its own widths, and kept on disk once they are."""

from pathlib import Path
from threading import Lock
from typing import NamedTuple

import jax
import numpy as np

from hw1jax import population, storage, studies
from hw1jax.population import Problem, Progress
from hw1jax.progress import Observer
from hw1jax.search import Draw
from hw1jax.studies import Study
from hw1jax.training import Task


class Trained(NamedTuple):
    """A batch of trials after its last epoch."""

    train_loss: np.ndarray  # float32 [trial, fold, epoch]
    val_loss: np.ndarray  # float32 [trial, fold, epoch]
    curve_fold_outputs: np.ndarray  # float32 [trial, fold, point]: what a regression predicts along its inputs


class Batches:
    """Trains batches of trials, each kept as a file, so that none is trained twice."""

    def __init__(
        self, folder: Path, study: Study, problem: Problem, seed: int, curve_x: np.ndarray, observer: Observer
    ):
        self._folder, self._study, self._problem = folder, study, problem
        self._key, self._curve_x, self._observer = jax.random.key(seed), curve_x, observer

    def train(self, draws: dict[int, Draw]) -> dict[int, np.ndarray]:
        """{trial number: draw} -> {trial number: validation losses, [fold, epoch]}."""
        path = self._path(min(draws))
        trained = self.read(min(draws)) if path.exists() else None
        if trained is None or len(trained.val_loss) < len(draws):
            trained = self._train(draws)
            storage.write_arrays(path, trained._asdict())
        return {number: trained.val_loss[i] for i, number in enumerate(draws)}

    def read(self, first: int) -> Trained:
        """The batch whose first trial has this number."""
        return Trained(**storage.read_arrays(self._path(first)))

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:06d}.npz"

    def _train(self, draws: dict[int, Draw]) -> Trained:
        train = self._train_each if self._problem.plan.own_widths else self._train_together
        return train(list(draws), list(draws.values()))

    def _train_together(self, numbers: list[int], draws: list[Draw]) -> Trained:
        """All in one program, padded to the same widths."""
        num_trials, slots = len(numbers), self._problem.plan.slots
        filled = np.minimum(np.arange(slots), num_trials - 1)  # empty slots train the last trial once more
        hyperparameters = studies.as_arrays([draws[i] for i in filled])
        steps = []
        for step in population.train(self._problem, self._key, np.array(numbers)[filled], hyperparameters):
            steps.append(step)
            self._tell(numbers, step.num_epochs, step.val_loss[:num_trials, :, -1])
        trained = self._trained(self._problem.task, steps, hyperparameters)
        return Trained(*(part[:num_trials] for part in trained))

    def _train_each(self, numbers: list[int], draws: list[Draw]) -> Trained:
        """Each in a program of its own, at its own widths, the longest first."""
        order = sorted(range(len(draws)), key=lambda i: -studies.num_parameters(self._study, draws[i]))
        draws = [draws[i] for i in order]
        tasks = [studies.make_task(self._study, draw.channels, draw.hidden_units) for draw in draws]
        hyperparameters = studies.as_arrays(draws)
        steps: list[list[Progress]] = [[] for _ in draws]
        losses = np.full((len(draws), len(self._problem.folds)), np.nan)
        lock = Lock()

        def watch(place: int, step: Progress) -> None:
            with lock:
                steps[place].append(step)
                losses[place] = step.val_loss[0, :, -1]
                self._tell(numbers, sum(s[-1].num_epochs for s in steps if s) / len(draws), losses)

        population.train_each(self._problem, tasks, self._key, np.array(numbers)[order], hyperparameters, watch)
        parts = [
            self._trained(task, own, jax.tree.map(lambda a: a[i : i + 1], hyperparameters))  # noqa: B023
            for i, (task, own) in enumerate(zip(tasks, steps, strict=True))
        ]
        return Trained(*(np.concatenate(part)[np.argsort(order)] for part in zip(*parts, strict=True)))

    def _trained(self, task: Task, steps: list[Progress], hyperparameters: studies.Hyperparameters) -> Trained:
        train_loss, val_loss = (
            np.concatenate([getattr(s, name) for s in steps], axis=2) for name in ("train_loss", "val_loss")
        )
        curves = np.zeros((*val_loss.shape[:2], 0), np.float32)
        if len(self._curve_x):
            x = self._curve_x[:, None]
            curves = np.asarray(population.predict_all(task, steps[-1].state.params, hyperparameters, x)[..., 0])
        return Trained(train_loss, val_loss, curves)

    def _tell(self, numbers: list[int], num_epochs: float, val_loss: np.ndarray) -> None:
        what = f"trials {numbers[0]}-{numbers[-1]}"
        self._observer.epochs(what, num_epochs, self._problem.spec.num_epochs, val_loss)
