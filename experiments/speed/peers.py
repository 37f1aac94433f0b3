"""The peers of the benchmark: PyTorch and scikit-learn at the same work as hw1jax, in their strongest forms.

    python experiments/speed/peers.py --work FILE --peer 'torch eager 2 threads' --repeats 5 --seconds 5

prints one line of JSON (`run_peer` says what is in it). The work is a plain file, so that every peer runs in fresh
processes with thread settings of its own. The same work means: the same samples in the same batches, as many epochs,
each fold's validation part evaluated after each epoch inside the clock, float32, the same networks, L2 on all
parameters (torch's `weight_decay`). Each trial has its own widths: torch has no need of padding.

Where torch finds a GPU its peers use it, one process then does best, and what is said of processes and threads here is
for a CPU. What makes the strong forms strong: data resident as float32 tensors, batches by `index_select` in the given
order, fused optimizers (`foreach` for RMSprop, which has no fused one), no `.item()` in the loop, validation in large
batches without gradients, and a malloc that keeps freed memory. Needs numpy alone; torch and scikit-learn are imported
where a peer trains.
"""

import signal

if __name__ in ("__main__", "__mp_main__"):  # and in the processes that it starts
    # Ctrl-C ends it whatever it is at.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

torch: Any = None  # a process that trains imports it (`child`); the benchmark, which imports this file, must not

STUDIES = ("regression", "fashion_mlp", "fashion_cnn")
EPOCHS_PER_PIECE = {"regression": 10, "fashion_mlp": 1, "fashion_cnn": 1}
PIECES_PER_EPOCH = {"regression": 1, "fashion_mlp": 4, "fashion_cnn": 20}
VALIDATION_BATCH = {"regression": 1000, "fashion_mlp": 2000, "fashion_cnn": 500}  # the fastest of those tried


class Work(NamedTuple):
    """One search: the data, the order of all minibatches and the trials.

    An epoch's last batch may be short: its missing entries are -1, as are those at the end of a shorter fold.
    """

    study: str  # one of STUDIES
    x: np.ndarray  # float32 [n, 1] or uint8 [n, 28, 28]
    y: np.ndarray  # float32 [n, 1] or int32 [n]
    train_order: np.ndarray  # int32 [fold, epoch, step, batch], indices into x
    val_order: np.ndarray  # int32 [fold, n_val_max]
    trials: list[dict[str, Any]]  # hidden_units, channels (CNN only), learning_rate, l2, optimizer: adam, sgd, rmsprop
    search_epochs: int | None = None  # a trial's in the whole search, in epochs of this work; None: as many as these


class Peer(NamedTuple):
    """How a peer runs: its trainer (a class below), the processes that share the work, the threads of each."""

    trainer: str
    processes: int
    threads: int
    note: str
    studies: tuple[str, ...] = STUDIES


EAGER = "resident tensors, fused optimizers, no DataLoader"
COMPILED = "gather, forward, backward and optimizer in one graph, symbolic widths: a compilation an optimizer"
PEERS = {
    "torch eager 2 threads": Peer("Eager", 1, 2, EAGER),
    "torch eager 2 processes x 1 thread": Peer("Eager", 2, 1, EAGER),
    "torch eager channels_last 2 threads": Peer("ChannelsLast", 1, 2, EAGER, ("fashion_cnn",)),
    "torch eager channels_last 2 processes x 1 thread": Peer("ChannelsLast", 2, 1, EAGER, ("fashion_cnn",)),
    "torch.compile": Peer("Compiled", 2, 1, COMPILED),
    "torch.compile channels_last": Peer(
        "ChannelsLastCompiled", 2, 1, "static widths: a compilation a trial; fused optimizers", ("fashion_cnn",)
    ),
    "torch.func vmap over folds": Peer("Vmapped", 2, 1, "the folds of a trial stacked, fused optimizers"),
    "torch.compile of vmap over folds": Peer("CompiledFolds", 2, 1, COMPILED + "; the folds of a trial stacked"),
    "scikit-learn MLP": Peer(
        "ScikitLearn", 2, 1, "no RMSprop trials; no L2 on biases, more L2 in a short batch; its own initial parameters"
    ),
    "homework style": Peer("Homework", 1, 2, "Dataset, DataLoader, modules, default optimizers, loss.item() each step"),
}


class Skip(Exception):
    """A peer cannot do this work; the message is the reason."""


def save_work(path: str | os.PathLike, work: Work) -> None:
    """Write `work` as one .npz file: the arrays, and the rest as JSON text."""
    text = json.dumps({name: getattr(work, name) for name in ("study", "trials", "search_epochs")})
    arrays = {name: getattr(work, name) for name in ("x", "y", "train_order", "val_order")}
    with open(path, "wb") as file:
        np.savez(file, text=np.array(text), **arrays)


def load_work(path: str | os.PathLike) -> Work:
    """Read what `save_work` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("x", "y", "train_order", "val_order")}
        return Work(**json.loads(file["text"].item()), **arrays)


def list_peers(study: str) -> list[str]:
    """The names of a study's peers, installed or not. Raises ValueError for an unknown study."""
    if study not in STUDIES:
        raise ValueError(f"there is no study {study!r}: choose one of {', '.join(STUDIES)}")
    return [name for name, peer in PEERS.items() if study in peer.studies]


def run_peer(
    work_file: str | os.PathLike,
    name: str,
    *,
    python: str = sys.executable,
    repeats: int = 5,
    seconds: float = 5.0,
    full: bool = False,
) -> dict[str, Any]:
    """Run a peer in a fresh process of the interpreter `python` and return what it measured.

    A repeat trains warm for at least `seconds`: all trials in turn (fold 0, or all folds where they are stacked), a
    counted part of an epoch each with as large a part of the validation, in whole rounds. `full` runs the whole search
    once instead.

    Returns a dict: peer, study; compile_seconds (outside the clock); us_per_sample (one a repeat: wall-clock
    microseconds, validation included, for each training sample) and samples_timed (training samples, one a repeat);
    final_train_loss (mean over the last epoch's batches as they are trained) and final_val_loss, [trial][fold] after a
    full run, else None, and None for a member that is not finite or not trained; threads (of each process); processes;
    peak_rss_mb (all processes together); versions (of torch or sklearn); note. A peer that cannot run here gives
    {peer, skipped: the reason}. Raises ValueError for an unknown peer.
    """
    if name not in PEERS:
        raise ValueError(f"there is no peer {name!r}: choose one of {', '.join(PEERS)}")
    command = [python, __file__, "--work", os.fspath(work_file), "--peer", name]
    command += ["--full"] if full else ["--repeats", str(repeats), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"peer": name, "skipped": f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


# The same networks and losses in torch. `params` is [weight, bias, weight, bias, ...].


def network(work: Work, trial: int, fold: int):
    """The trial's network as an nn.Sequential, with torch's own initialisation: the same for every peer."""
    torch.manual_seed(1000 * trial + fold)
    nn, settings = torch.nn, work.trials[trial]
    layers, features, side = [], 1, 28
    for channels in settings.get("channels", []):
        kernel = 5 if layers else 4
        layers += [nn.Conv2d(features, channels, kernel, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        features, side = channels, (side + 3 - kernel) // 2
    inputs = features * side**2 if layers else work.x[0].size
    layers.append(nn.Flatten())
    for units in settings["hidden_units"]:
        layers += [nn.Linear(inputs, units), nn.Sigmoid()]
        inputs = units
    return nn.Sequential(*layers, nn.Linear(inputs, 1 if work.study == "regression" else 10)).to(device())


def forward(params, x):
    """The same network as a function of its parameters: 5 % quicker than modules, and what vmap needs."""
    nn = torch.nn.functional
    *hidden, last = zip(params[::2], params[1::2], strict=True)
    for weight, bias in hidden:
        if weight.dim() == 4:
            x = nn.max_pool2d(nn.relu(nn.conv2d(x, weight, bias, padding=1)), 2)
        else:
            x = torch.sigmoid(nn.linear(x.flatten(1), weight, bias))
    return nn.linear(x, *last)


def mean_loss(outputs, y):
    """Mean squared error for numbers, cross entropy for classes."""
    nn = torch.nn.functional
    return nn.mse_loss(outputs, y) if y.is_floating_point() else nn.cross_entropy(outputs, y)


def weighted_loss(params, x, y, weight):
    """The mean loss over the examples of weight 1; those of weight 0 are padding."""
    outputs = forward(params, x)
    if y.is_floating_point():
        losses = (outputs - y).square().squeeze(-1)
    else:
        losses = torch.nn.functional.cross_entropy(outputs, y, reduction="none")
    return (losses * weight).sum() / weight.sum()


def stacked_losses(params, x, y, index, weight):
    """Mean losses [fold] of params stacked over folds, on the batches index [fold, batch] with weight [fold, batch]."""
    return torch.func.vmap(weighted_loss)(params, *gather(x, y, index), weight)


def stacked_gradients(params, x, y, index, weight):
    """The gradients of the same, stacked as the params are, and the losses."""
    return torch.func.vmap(torch.func.grad_and_value(weighted_loss))(params, *gather(x, y, index), weight)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def on_device(array: np.ndarray):
    """A tensor where the networks are: on the GPU if there is one."""
    return torch.from_numpy(array).to(device())


def on_host(values) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def gather(x, y, index):
    return (part.index_select(0, index.flatten()).unflatten(0, index.shape) for part in (x, y))


@functools.cache
def compiled_loss():
    def loss(params, x, y):
        return mean_loss(forward(params, x), y)

    allow_many_graphs()
    return torch.compile(loss, fullgraph=True, dynamic=False)


def allow_many_graphs():
    torch._dynamo.config.recompile_limit = 64  # 8 otherwise, fewer than a search has trials


@functools.cache
def compiled_losses():
    return torch.compile(stacked_losses, fullgraph=True, dynamic=True)


@functools.cache
def compiled_step(optimizer: str):
    """A training step as one graph, the update written out: torch.optim's holds the learning rate as a constant."""

    def step(params, first, second, count, learning_rate, l2, *batch):
        gradients, losses = stacked_gradients(params, *batch)
        count.add_(1)
        for param, gradient, m, v in zip(params, gradients, first, second, strict=True):
            gradient = gradient + l2 * param
            if optimizer == "sgd":
                param.sub_(learning_rate * gradient)
            elif optimizer == "rmsprop":
                v.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
                param.sub_(learning_rate * gradient / (v.sqrt() + 1e-8))
            else:
                m.lerp_(gradient, 0.1)
                v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                param.sub_(learning_rate / (1 - 0.9**count) * m / ((v / (1 - 0.999**count)).sqrt() + 1e-8))
        return losses

    allow_many_graphs()  # widths that happen to be equal get one of their own
    # Static widths are a fifth faster in the regression, and cost 8 s of compiling a trial, more than its training.
    return torch.compile(step, fullgraph=True, dynamic=True)


def make_optimizer(params, settings: dict[str, Any], *, fast: bool):
    make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}[settings["optimizer"]]
    options = {"foreach" if settings["optimizer"] == "rmsprop" else "fused": True} if fast else {}
    return make(params, lr=settings["learning_rate"], weight_decay=settings["l2"], **options)


# The trainers. Each trains the given folds of one trial: `train` takes some steps of an epoch, order int32
# [fold, step, batch]; `validate` evaluates some samples, order int32 [fold, n]; both return summed losses [fold].


class Eager:
    """One member at a time in PyTorch's eager mode."""

    optimizers, folds_together, compiles = ("adam", "sgd", "rmsprop"), False, False

    @staticmethod
    def prepare(work: Work):
        """What all members share, resident: x as float32, classes as int64."""
        x, y = on_device(work.x), on_device(work.y)
        if work.study == "regression":
            return x, y
        x = x.float().div_(255)
        return x.unsqueeze(1) if work.study == "fashion_cnn" else x.flatten(1), y.long()

    def __init__(self, work: Work, data, trial: int, folds: list[int]):
        self.work, self.data = work, data
        self.params = self.parameters([network(work, trial, fold) for fold in folds])
        self.optimizer = make_optimizer(self.params, work.trials[trial], fast=True)

    def parameters(self, networks):
        return list(networks[0].parameters())

    def train(self, order: np.ndarray):
        index, batch, total = on_device(order[order >= 0]), order.shape[2], torch.zeros(1, device=device())
        # One gather for all steps is best for the regression's short rows; images are best gathered step by step.
        for rows in index.split(len(index) if self.work.study == "regression" else batch):
            for x, y in zip(*(part.index_select(0, rows).split(batch) for part in self.data), strict=True):
                loss = self.loss(x, y)
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                total.add_(loss.detach(), alpha=len(y))
        return total

    def validate(self, order: np.ndarray):
        total = torch.zeros(1, device=device())
        with torch.inference_mode():
            for rows in on_device(order[order >= 0]).split(VALIDATION_BATCH[self.work.study]):
                x, y = (part.index_select(0, rows) for part in self.data)
                total.add_(self.loss(x, y), alpha=len(rows))
        return total

    def loss(self, x, y):
        return mean_loss(forward(self.params, x), y)


class ChannelsLast(Eager):
    """The same with weights, and so all activations of the convolutions, in channels_last."""

    def parameters(self, networks):
        return list(networks[0].to(memory_format=torch.channels_last).parameters())


class ChannelsLastCompiled(ChannelsLast):
    """torch.compile of the loss, and so of its gradient, for each trial's own widths."""

    compiles = True

    def loss(self, x, y):
        return compiled_loss()(self.params, x, y)


class Vmapped(Eager):
    """The folds of a trial at once: stacked parameters, vmap of the gradient, one optimizer for all."""

    folds_together = True

    def parameters(self, networks):
        return [torch.stack(same).detach() for same in zip(*(net.parameters() for net in networks), strict=True)]

    def step(self, *batch):
        gradients, losses = stacked_gradients(self.params, *batch)
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = gradient
        self.optimizer.step()
        return losses

    def losses(self, *batch):
        return stacked_losses(self.params, *batch)

    def sum_losses(self, function, batches):  # batches: int32 [fold, batch] each
        total = 0
        with torch.no_grad():
            for index in batches:
                index = index.clone(memory_format=torch.contiguous_format)  # other strides would compile anew
                weight = (index >= 0).float()
                total = total + function(*self.data, index.clamp_(min=0), weight) * weight.sum(1)
        return total

    def train(self, order: np.ndarray):
        return self.sum_losses(self.step, on_device(order).unbind(1))

    def validate(self, order: np.ndarray):
        return self.sum_losses(self.losses, on_device(order).split(VALIDATION_BATCH[self.work.study], dim=1))


class CompiledFolds(Vmapped):
    """torch.compile of the whole step, and of the validation, of stacked folds."""

    compiles = True

    def __init__(self, work: Work, data, trial: int, folds: list[int]):
        super().__init__(work, data, trial, folds)
        settings = work.trials[trial]
        moments = [[torch.zeros_like(param) for param in self.params] for _ in range(2)]
        self.state = (
            *moments,
            *(torch.tensor(number, device=device()) for number in (0.0, settings["learning_rate"], settings["l2"])),
        )
        self.compiled_step = compiled_step(settings["optimizer"])

    def step(self, *batch):
        return self.compiled_step(self.params, *self.state, *batch)

    def losses(self, *batch):
        return compiled_losses()(self.params, *batch)


class Compiled(CompiledFolds):
    """The same, a fold at a time."""

    folds_together = False


class ScikitLearn:
    """MLPRegressor or MLPClassifier with `partial_fit` in the given order, set so that its gradients are ours."""

    optimizers, folds_together, compiles = ("adam", "sgd"), False, False

    @staticmethod
    def prepare(work: Work):
        if work.study == "fashion_cnn":
            raise Skip("scikit-learn has no convolutions")
        if work.study == "regression":
            return work.x, work.y[:, 0]
        return work.x.reshape(len(work.x), -1) / np.float32(255), work.y

    def __init__(self, work: Work, data, trial: int, folds: list[int]):
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        self.data, self.regression = data, work.study == "regression"
        self.model = (MLPRegressor if self.regression else MLPClassifier)(
            **scikit_learn_settings(work, trial), shuffle=False, random_state=1000 * trial + folds[0]
        )

    def train(self, order: np.ndarray) -> np.ndarray:
        x, y = (part[order[order >= 0]] for part in self.data)
        self.model.partial_fit(x, y, **({} if self.regression else {"classes": np.arange(10)}))
        return np.array([np.nan])  # it tells its loss with the penalty only

    def validate(self, order: np.ndarray) -> np.ndarray:
        x, y = (part[order[order >= 0]] for part in self.data)
        return np.array([scikit_learn_loss(self.model, x, y) * len(y)])


def scikit_learn_settings(work: Work, trial: int) -> dict[str, Any]:
    """What makes its gradients ours."""
    settings, batch = work.trials[trial], work.train_order.shape[3]
    scale = 0.5 if work.study == "regression" else 1.0  # its loss is half the squared error, its gradients half of ours
    return {
        "hidden_layer_sizes": settings["hidden_units"],
        "activation": "logistic",
        "solver": settings["optimizer"],
        "alpha": scale * batch * settings["l2"],  # which it divides by the batch
        "learning_rate_init": settings["learning_rate"] / (scale if settings["optimizer"] == "sgd" else 1),
        "momentum": 0.0,
        "epsilon": scale * 1e-8,
        "batch_size": batch,
    }


def scikit_learn_loss(model, x: np.ndarray, y: np.ndarray) -> float:
    """The mean loss of its outputs, as ours."""
    if y.dtype.kind == "f":
        return float(np.square(model.predict(x) - y).mean())
    return float(-np.log(model.predict_proba(x)[np.arange(len(y)), y]).mean())


class Samples:
    """A map-style data set that converts each sample when it is asked for."""

    def __init__(self, work: Work, index: np.ndarray):
        self.work, self.index = work, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int):
        x, y = self.work.x[self.index[position]], self.work.y[self.index[position]]
        if self.work.study == "regression":
            return torch.tensor(x), torch.tensor(y)
        return torch.tensor(x).unsqueeze(0).float() / 255, int(y)


class Homework:
    """The loop of a notebook."""

    optimizers, folds_together, compiles = ("adam", "sgd", "rmsprop"), False, False

    @staticmethod
    def prepare(work: Work) -> None:
        return None

    def __init__(self, work: Work, data, trial: int, folds: list[int]):
        self.work, self.net = work, network(work, trial, folds[0])
        self.optimizer = make_optimizer(self.net.parameters(), work.trials[trial], fast=False)

    def losses(self, order: np.ndarray):
        samples = Samples(self.work, order[order >= 0])
        for x, y in torch.utils.data.DataLoader(samples, batch_size=self.work.train_order.shape[3]):
            yield mean_loss(self.net(x.to(device())), y.to(device())), len(y)

    def train(self, order: np.ndarray) -> np.ndarray:
        total = []
        for loss, count in self.losses(order):
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total.append(loss.item() * count)
        return np.array([sum(total)])

    def validate(self, order: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.array([sum(loss.item() * count for loss, count in self.losses(order))])


# The clock.


def train_piece(trainer, work: Work, folds: list[int], number: int) -> int:
    """Train piece `number` of a member's search and as large a part of the validation; returns the samples."""
    _, num_epochs, num_steps, _ = work.train_order.shape
    pieces, repeats = min(PIECES_PER_EPOCH[work.study], num_steps), EPOCHS_PER_PIECE[work.study]
    samples = 0
    for position in range(number * repeats, (number + 1) * repeats):
        epoch, piece = divmod(position, pieces)
        step, val = (
            slice(n * piece // pieces, n * (piece + 1) // pieces) for n in (num_steps, work.val_order.shape[1])
        )
        order = work.train_order[folds, epoch % num_epochs, step]
        trainer.train(order)
        trainer.validate(work.val_order[folds, val])
        samples += int((order >= 0).sum())
    return samples


def train_search(trainer, work: Work, folds: list[int]) -> tuple[list[float], list[float]]:
    """Train all epochs; returns the mean training and validation losses of the last one, each [fold]."""
    val_order = work.val_order[folds]
    for epoch in range(work.train_order.shape[1]):
        order = work.train_order[folds, epoch]
        train, val = trainer.train(order), trainer.validate(val_order)
    train, val = on_host(train) / (order >= 0).sum((1, 2)), on_host(val) / (val_order >= 0).sum(1)
    return train.tolist(), val.tolist()


def measure(options: argparse.Namespace, counter, barrier) -> dict[str, Any]:
    """One process of a peer: warm up, then take numbered parts of the work until none is left or time is over."""
    work, peer = load_work(options.work), PEERS[options.peer]
    trainer_class = globals()[peer.trainer]
    trials = [n for n, trial in enumerate(work.trials) if trial["optimizer"] in trainer_class.optimizers]
    if work.study not in peer.studies:
        raise Skip(f"it is for {', '.join(peer.studies)} alone")
    if not trials:
        raise Skip("it has none of the optimizers of these trials")
    num_steps = (work.train_order >= 0).any(3).sum(2)
    if trainer_class.folds_together and (num_steps != num_steps[0]).any():
        raise Skip("the folds differ in their numbers of steps")
    folds = list(range(len(work.train_order)))
    groups = [folds] if trainer_class.folds_together else [[fold] for fold in folds]
    make = functools.partial(trainer_class, work, trainer_class.prepare(work))

    with counter.get_lock():  # one process after the other: the second finds what the first compiled
        start = time.monotonic()
        trainers = [make(trial, groups[0]) for trial in trials]
        for trainer in trainers:
            trainer.train(work.train_order[groups[0], 0, :1])
            trainer.validate(work.val_order[groups[0], : VALIDATION_BATCH[work.study]])
        first_seconds = time.monotonic() - start

    spans, losses, jobs = [], [], list(itertools.product(trials, groups))
    for repeat in range(1 if options.full else 1 + options.repeats):
        barrier.wait()
        start, samples = time.monotonic(), 0
        if options.full:
            for trial, group in (jobs[number] for number in take(counter, len(jobs).__eq__)):
                losses.append((trial, group, *train_search(make(trial, group), work, group)))
                samples += int((work.train_order[group] >= 0).sum())
        else:
            deadline = start + (options.seconds if repeat else 0.1)  # the first, of a round, is for warming up
            for number in take(counter, functools.partial(round_is_over, len(trials), deadline)):
                samples += train_piece(trainers[number % len(trials)], work, groups[0], number // len(trials))
        if torch is not None and torch.cuda.is_available():
            torch.cuda.synchronize()
        spans.append((start, time.monotonic(), samples))
        barrier.wait()
    return {
        "compile_seconds": first_seconds if trainer_class.compiles else 0.0,
        "spans": spans if options.full else spans[1:],
        "losses": losses,
        "peak_rss_mb": peak_rss_mb(),
        "versions": {name: sys.modules[name].__version__ for name in ("torch", "sklearn") if name in sys.modules},
    }


def take(counter, stop: Callable[[int], bool]) -> Iterator[int]:
    """The next number that no process has yet, until `stop` of it is true."""
    while True:
        with counter.get_lock():
            number = counter.value
            if stop(number):
                return
            counter.value += 1
        yield number


def round_is_over(num_trials: int, deadline: float, number: int) -> bool:
    return number % num_trials == 0 and time.monotonic() >= deadline


def peak_rss_mb() -> float:
    """The largest resident memory of this process; getrusage's is inherited from the parent that forked it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def child(pipe, options: argparse.Namespace, counter, barrier) -> None:
    """What a process runs: `measure`, its result or the reason for none sent through the pipe."""
    global torch
    try:
        if PEERS[options.peer].trainer != "ScikitLearn":
            import torch

            torch.set_num_threads(PEERS[options.peer].threads)
        pipe.send(measure(options, counter, barrier))
    except threading.BrokenBarrierError:
        pipe.send({})  # the other process says why
    except Exception as error:
        barrier.abort()
        reason = str(error) if isinstance(error, Skip) else f"{type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, ImportError):
            reason = f"{error}: pip install '.[peers]' brings it"
        elif not isinstance(error, Skip):
            traceback.print_exc()
        pipe.send({"skipped": reason})


def run_processes(options: argparse.Namespace) -> dict[str, Any]:
    """Start a peer's processes, let them share the work, and put their measurements together."""
    peer, context, pipes, parts = PEERS[options.peer], multiprocessing.get_context("spawn"), [], []
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(peer.threads)))
    # Threads that spin at a barrier lose a time slice when another program takes their core: 4 times slower or more.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # glibc returns freed blocks of some MB to the system and faults them in again: 5 % of the CNN's time.
    os.environ.update(MALLOC_MMAP_THRESHOLD_=str(1 << 32), MALLOC_TRIM_THRESHOLD_=str(1 << 33))
    counter, barrier = context.Value("q", 0), context.Barrier(peer.processes)
    with tempfile.TemporaryDirectory() as cache:  # compile_seconds is that of a first run
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for _ in range(peer.processes):
            receiver, sender = context.Pipe(duplex=False)
            context.Process(target=child, args=(sender, options, counter, barrier), daemon=True).start()
            sender.close()
            pipes.append(receiver)
        try:
            while pipes:
                for pipe in connection.wait(pipes):
                    parts.append(pipe.recv())
                    pipes.remove(pipe)
        except EOFError:
            parts = [{"skipped": "a process died: was there enough memory?"}]
    for part in parts:
        if "skipped" in part:
            return {"peer": options.peer, **part}

    work = load_work(options.work)
    train_loss, val_loss = ([[None] * len(work.train_order) for _ in work.trials] for _ in range(2))
    for trial, folds, *losses in itertools.chain(*(part["losses"] for part in parts)):
        for table, values in zip((train_loss, val_loss), losses, strict=True):
            for fold, value in zip(folds, values, strict=True):
                table[trial][fold] = value if math.isfinite(value) else None
    spans = [tuple(zip(*repeat, strict=True)) for repeat in zip(*(part["spans"] for part in parts), strict=True)]
    return {
        "peer": options.peer,
        "study": work.study,
        "compile_seconds": sum(part["compile_seconds"] for part in parts),
        "us_per_sample": [1e6 * (max(ends) - min(starts)) / sum(samples) for starts, ends, samples in spans],
        "samples_timed": [sum(samples) for _, _, samples in spans],
        "final_train_loss": train_loss if options.full else None,
        "final_val_loss": val_loss if options.full else None,
        "threads": peer.threads,
        "processes": peer.processes,
        "peak_rss_mb": sum(part["peak_rss_mb"] for part in parts),
        "versions": parts[0]["versions"],
        "note": peer.note,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one peer; prints one line of JSON.")
    parser.add_argument("--work", required=True, help="a file that save_work wrote")
    parser.add_argument("--peer", required=True, choices=list(PEERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="the least duration of a repeat")
    parser.add_argument("--full", action="store_true", help="the whole search, once")
    print(json.dumps(run_processes(parser.parse_args())))


if __name__ == "__main__":
    main()
