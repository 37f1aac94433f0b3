"""The peers of the benchmark: PyTorch, scikit-learn and a simple JAX loop, at the same work as hw1jax.

The work is a plain file (`Work`). Each peer runs in fresh processes (`run_peer`), which may use another interpreter.
This file needs only NumPy; torch, scikit-learn and JAX are imported where a peer trains. docs/speed.md has the rules.
"""

import functools
import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

torch: Any = None  # imported by `child` in the processes that train, not by the benchmark

STUDIES = ("regression", "fashion_mlp", "fashion_cnn")
VALIDATION_BATCH = {"regression": 1000, "fashion_mlp": 2000, "fashion_cnn": 500}  # the fastest sizes tried
OPTUNA = "Optuna + PyTorch eager, HyperbandPruner"  # a whole search: `search_optuna`


class Work(NamedTuple):
    """One search: data, order of all minibatches, trials. Short batches and short folds are filled up with -1."""

    study: str  # one of STUDIES
    x: np.ndarray  # float32 [n, 1] or uint8 [n, 28, 28]
    y: np.ndarray  # float32 [n, 1] or int32 [n]
    train_order: np.ndarray  # int32 [fold, epoch, step, batch], indices into x
    val_order: np.ndarray  # int32 [fold, n_val_max]
    trials: list[dict[str, Any]]  # hidden_units, channels (CNN only), learning_rate, l2, optimizer: adam, sgd, rmsprop
    search_epochs: int  # epochs of a trial in the whole search of the study


def save_work(path: Path, work: Work) -> None:
    """Write `work` as one .npz file, the trials as JSON text."""
    np.savez(path, **work._asdict() | {"trials": np.array(json.dumps(work.trials))})


def load_work(path: str | Path) -> Work:
    """Read what `save_work` wrote."""
    with np.load(path, allow_pickle=False) as file:
        values = {name: file[name] if file[name].ndim else file[name].item() for name in Work._fields}
    return Work(**values | {"trials": json.loads(values["trials"])})


def run_peer(python: str, file: Path, name: str, **how: Any) -> dict[str, Any]:
    """Run a peer in fresh processes of the interpreter `python` and return its measurements.

    A peer of PEERS takes `repeats` and `seconds`. A repeat trains warm, in whole rounds, for at least `seconds`; a
    round trains each trial (fold 0, or all folds if stacked) for an epoch, in the regression for ten. Returns
    compile_seconds (not in the clock), us_per_sample (of each repeat, validation included), peak_rss_mb (all processes
    together) and versions. With `repeats=0` it trains the whole work once; returns final_val_loss [trial][fold], None
    if not trained.

    OPTUNA takes `seed`, `trials` and `started` (the time.time() at which its seconds start): see `search_optuna`.
    Returns seconds and loss as `running_minimum` does, epochs (of all trials together) and versions.

    A peer that can't run returns {skipped: the reason}.
    """
    command = [python, __file__, json.dumps({"file": str(file), "name": name} | how)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"skipped": f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


def running_minimum(points: Iterable[tuple[float, float]], end: float) -> dict[str, list[float]]:
    """(seconds, loss) of a search's trials -> seconds and losses of each new best one, and of the end."""
    seconds, losses = [], []
    for second, loss in sorted(points):
        if math.isfinite(loss) and (not losses or loss < losses[-1]):
            seconds.append(second)
            losses.append(loss)
    return {"seconds": [*seconds, end], "loss": [*losses, losses[-1]]}


# The same networks and losses in torch. `params` is [weight, bias, weight, bias, ...].


def network(work: Work, x, trial: int, fold: int):
    """The trial's network as an nn.Sequential with torch's initialisation; equal for all peers in torch."""
    torch.manual_seed(1000 * trial + fold)
    nn, settings, layers = torch.nn, work.trials[trial], []
    for channels in settings.get("channels", []):
        layers += [nn.LazyConv2d(channels, 5 if layers else 4, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers.append(nn.Flatten())
    for units in settings["hidden_units"]:
        layers += [nn.LazyLinear(units), nn.Sigmoid()]
    net = nn.Sequential(*layers, nn.LazyLinear(1 if work.study == "regression" else 10)).to(x.device)
    net(x[:1])  # creates the parameters
    return net


def forward(params, x):
    """The same network as a function of its parameters: 5 % faster than modules, and vmap needs it."""
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
    """The mean loss over the examples with weight 1; those with weight 0 are padding."""
    outputs, cross_entropy = forward(params, x), torch.nn.functional.cross_entropy
    numbers = y.is_floating_point()
    losses = (outputs - y).square().squeeze(-1) if numbers else cross_entropy(outputs, y, reduction="none")
    return (losses * weight).sum() / weight.sum()


def gather(x, y, index):
    return (part.index_select(0, index.flatten()).unflatten(0, index.shape) for part in (x, y))


def on_device(array: np.ndarray):
    """A tensor on the GPU if there is one; torch's default device would slow down every call."""
    return torch.from_numpy(array).to("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def compiled_losses():
    """Mean losses [fold] of params stacked over folds, on the batches index [fold, batch] with weight [fold, batch]."""

    def losses(params, x, y, index, weight):
        return torch.func.vmap(weighted_loss)(params, *gather(x, y, index), weight)

    return torch.compile(losses, fullgraph=True, dynamic=True)


@functools.cache
def compiled_step(optimizer: str):
    """A training step as one graph; the update is written out because torch.optim compiles in the learning rate."""

    def step(params, first, second, count, learning_rate, l2, x, y, index, weight):
        differentiate = torch.func.vmap(torch.func.grad_and_value(weighted_loss))
        gradients, losses = differentiate(params, *gather(x, y, index), weight)
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

    torch._dynamo.config.recompile_limit = 64  # each set of equal widths gets its own graph
    # Static widths make the regression a fifth faster, but compile 8 s per trial, longer than its training.
    return torch.compile(step, fullgraph=True, dynamic=True)


# The trainers. Each trains the given folds of one trial. `train` takes the steps order int32 [fold, step, batch];
# `validate` evaluates the samples order int32 [fold, n] and returns summed losses [fold].


class Eager:
    """PyTorch's eager mode, one member at a time."""

    optimizers, folds_together, compiles = ("adam", "sgd", "rmsprop"), False, False

    @staticmethod
    def prepare(work: Work):
        """The data of all members on the device: x as float32, classes as int64."""
        x, y = on_device(work.x), on_device(work.y)
        if work.study == "regression":
            return x, y
        x = x.float().div_(255)
        return x.unsqueeze(1) if work.study == "fashion_cnn" else x.flatten(1), y.long()

    def __init__(self, work: Work, data, trial: int, folds: list[int]):
        self.work, self.data, settings = work, data, work.trials[trial]
        # channels_last weights give channels_last activations; only convolutions have this format.
        self.params = list(network(work, data[0], trial, folds[0]).to(memory_format=torch.channels_last).parameters())
        make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
        fast = {"foreach" if settings["optimizer"] == "rmsprop" else "fused": True}
        numbers = {"lr": settings["learning_rate"], "weight_decay": settings["l2"]}
        self.optimizer = make[settings["optimizer"]](self.params, **numbers, **fast)

    def train(self, order: np.ndarray):
        index, batch, total = on_device(order[order >= 0]), order.shape[2], torch.zeros(1, device=self.data[0].device)
        # One gather for all steps is fastest for the regression's short rows, one per step for images.
        for rows in index.split(len(index) if self.work.study == "regression" else batch):
            for x, y in zip(*(part.index_select(0, rows).split(batch) for part in self.data), strict=True):
                loss = mean_loss(forward(self.params, x), y)
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                total.add_(loss.detach(), alpha=len(y))

    def validate(self, order: np.ndarray) -> np.ndarray:
        total = torch.zeros(1, device=self.data[0].device)
        with torch.inference_mode():
            for rows in on_device(order[order >= 0]).split(VALIDATION_BATCH[self.work.study]):
                x, y = (part.index_select(0, rows) for part in self.data)
                total.add_(mean_loss(forward(self.params, x), y), alpha=len(rows))
        return total.cpu().numpy()


class CompiledFolds:
    """torch.compile of the training step and of the validation, vmapped over the folds of a trial."""

    optimizers, folds_together, compiles = Eager.optimizers, True, True
    prepare = Eager.prepare

    def __init__(self, work: Work, data, trial: int, folds: list[int]):
        self.data, self.val_batch, settings = data, VALIDATION_BATCH[work.study], work.trials[trial]
        networks = [network(work, data[0], trial, fold) for fold in folds]
        self.params = [torch.stack(same).detach() for same in zip(*(n.parameters() for n in networks), strict=True)]
        moments = [[torch.zeros_like(param) for param in self.params] for _ in range(2)]
        numbers = (0.0, settings["learning_rate"], settings["l2"])
        self.state = (*moments, *(torch.tensor(number, device=data[0].device) for number in numbers))
        self.step = compiled_step(settings["optimizer"])

    def sum_losses(self, function, state, batches):  # batches: int32 [fold, batch] each
        total = 0
        with torch.no_grad():
            for index in batches:
                index = index.clone(memory_format=torch.contiguous_format)  # other strides would recompile
                weight = (index >= 0).float()
                losses = function(self.params, *state, *self.data, index.clamp_(min=0), weight)
                total = total + losses * weight.sum(1)
        return total

    def train(self, order: np.ndarray):
        self.sum_losses(self.step, self.state, on_device(order).unbind(1))

    def validate(self, order: np.ndarray) -> np.ndarray:
        batches = on_device(order).split(self.val_batch, dim=1)
        return self.sum_losses(compiled_losses(), (), batches).cpu().numpy()


class ScikitLearn:
    """MLPRegressor or MLPClassifier, `partial_fit` in the given order, with gradients equal to those of hw1jax."""

    optimizers, folds_together, compiles = ("adam", "sgd"), False, False

    @staticmethod
    def prepare(work: Work):
        if work.study == "fashion_cnn":
            raise NotImplementedError("scikit-learn has no convolutions")
        if work.study == "regression":
            return work.x, work.y[:, 0]
        return work.x.reshape(len(work.x), -1) / np.float32(255), work.y

    def __init__(self, work: Work, data, trial: int, folds: list[int]):
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        self.data, self.regression = data, work.study == "regression"
        settings, batch = work.trials[trial], work.train_order.shape[3]
        scale = 0.5 if self.regression else 1.0  # it minimises half the squared error
        same = {"activation": "logistic", "momentum": 0.0, "batch_size": batch, "shuffle": False}
        self.model = (MLPRegressor if self.regression else MLPClassifier)(
            hidden_layer_sizes=settings["hidden_units"],
            solver=settings["optimizer"],
            learning_rate_init=settings["learning_rate"] / (scale if settings["optimizer"] == "sgd" else 1),
            alpha=scale * batch * settings["l2"],  # it divides alpha by the batch size
            epsilon=scale * 1e-8,
            random_state=1000 * trial + folds[0],
            **same,
        )

    def train(self, order: np.ndarray):
        x, y = (part[order[order >= 0]] for part in self.data)
        self.model.partial_fit(x, y, **({} if self.regression else {"classes": np.arange(10)}))

    def validate(self, order: np.ndarray) -> np.ndarray:
        x, y = (part[order[order >= 0]] for part in self.data)
        if self.regression:
            return np.array([np.square(self.model.predict(x) - y).sum()])
        return np.array([-np.log(self.model.predict_proba(x)[np.arange(len(y)), y]).sum()])


class Notebook:
    """A simple JAX loop: a jitted step of one network for each batch, whose loss is read after each step."""

    optimizers, folds_together, compiles = Eager.optimizers, False, True

    @staticmethod
    def prepare(work: Work):
        return work.x if work.study == "regression" else work.x[..., None] / np.float32(255), work.y

    def __init__(self, work: Work, data, trial: int, folds: list[int]):
        import flax.linen as nn
        import jax
        import optax

        self.data, self.batch, settings, layers = data, work.train_order.shape[3], work.trials[trial], []
        for channels in settings.get("channels", []):
            kernel = (5, 5) if layers else (4, 4)
            layers += [nn.Conv(channels, kernel, padding=1), nn.relu, lambda x: nn.max_pool(x, (2, 2), (2, 2))]
        layers.append(lambda x: x.reshape(len(x), -1))
        for units in settings["hidden_units"]:
            layers += [nn.Dense(units), nn.sigmoid]
        net = nn.Sequential([*layers, nn.Dense(1 if work.study == "regression" else 10)])
        make_optimizer = {"adam": optax.adam, "sgd": optax.sgd, "rmsprop": optax.rmsprop}[settings["optimizer"]]
        optimizer = optax.chain(optax.add_decayed_weights(settings["l2"]), make_optimizer(settings["learning_rate"]))

        @jax.jit
        def loss(params, x, y):
            if work.study == "regression":
                return ((net.apply(params, x) - y) ** 2).mean()
            return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()

        @jax.jit
        def step(params, state, x, y):
            value, gradient = jax.value_and_grad(loss)(params, x, y)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        self.loss, self.step = loss, step
        self.params = net.init(jax.random.key(1000 * trial + folds[0]), data[0][:1])
        self.state = optimizer.init(self.params)

    def batches(self, order: np.ndarray):
        index = order[order >= 0]
        for first in range(0, len(index), self.batch):
            yield [part[index[first : first + self.batch]] for part in self.data]

    def train(self, order: np.ndarray):
        total = 0.0
        for x, y in self.batches(order):
            self.params, self.state, loss = self.step(self.params, self.state, x, y)
            total += float(loss) * len(x)

    def validate(self, order: np.ndarray) -> np.ndarray:
        return np.array([sum(float(self.loss(self.params, x, y)) * len(x) for x, y in self.batches(order))])


EAGER, COMPILED = "torch eager 2 processes x 1 thread", "torch.compile of vmap over folds"
SKLEARN, NOTEBOOK = "scikit-learn MLP", "a notebook's loop in JAX"
PEERS: dict[str, Any] = {EAGER: Eager, COMPILED: CompiledFolds, SKLEARN: ScikitLearn, NOTEBOOK: Notebook}

# The clock.


def train(trainer, work: Work, folds: list[int], epochs: Iterable[int]) -> list[float]:
    """Train and validate the epochs -> mean validation losses [fold] after the last one."""
    for epoch in epochs:
        trainer.train(work.train_order[folds, epoch])
        sums = trainer.validate(work.val_order[folds])
    return (sums / (work.val_order[folds] >= 0).sum(1)).tolist()


def measure(work: Work, name: str, counter, barrier, *, repeats: int, seconds: float = 0.0) -> dict[str, Any]:
    """One process of a peer: warms up, then takes numbered parts of the work until none is left or time is over."""
    trainer_class = PEERS[name]
    trials = [n for n, trial in enumerate(work.trials) if trial["optimizer"] in trainer_class.optimizers]
    num_folds, num_epochs, *_ = work.train_order.shape
    folds, at_once = list(range(num_folds)), 10 if work.study == "regression" else 1  # epochs
    groups = [folds] if trainer_class.folds_together else [[fold] for fold in folds]
    make = functools.partial(trainer_class, work, trainer_class.prepare(work))
    if not repeats:
        jobs = list(itertools.product(trials, groups))
        taken = (jobs[number] for number in take(counter, len(jobs).__eq__))
        every = range(num_epochs)
        return {"losses": [(trial, group, train(make(trial, group), work, group, every)) for trial, group in taken]}

    with counter.get_lock():  # one process after the other: the second uses the first one's compiled code
        start = time.monotonic()
        trainers = [make(trial, groups[0]) for trial in trials]
        for trainer in trainers:
            trainer.train(work.train_order[groups[0], 0, :1])
            trainer.validate(work.val_order[groups[0], : VALIDATION_BATCH[work.study]])
        first_seconds = time.monotonic() - start

    num_samples = int((work.train_order[groups[0], 0] >= 0).sum())  # per epoch

    def train_rounds(seconds: float) -> tuple[float, float, int]:
        """Trains whole rounds for at least `seconds` -> (start, end, samples)."""
        barrier.wait()
        start, samples = time.monotonic(), 0
        for number in take(counter, lambda number: number % len(trials) == 0 and time.monotonic() >= start + seconds):
            first = number // len(trials) * at_once
            epochs = [epoch % num_epochs for epoch in range(first, first + at_once)]
            train(trainers[number % len(trials)], work, groups[0], epochs)
            samples += at_once * num_samples
        if torch is not None and torch.cuda.is_available():
            torch.cuda.synchronize()
        end = time.monotonic()
        barrier.wait()
        return start, end, samples

    train_rounds(0.1)  # warms up
    return {
        "spans": [train_rounds(seconds) for _ in range(repeats)],
        "compile_seconds": first_seconds if trainer_class.compiles else 0.0,
        "peak_rss_mb": peak_rss_mb(),
    }


def take(counter, stop: Callable[[int], bool]) -> Iterator[int]:
    """Yields numbers that no other process has taken, until `stop(number)` is true."""
    while True:
        with counter.get_lock():
            number = counter.value
            if stop(number):
                return
            counter.value += 1
        yield number


def peak_rss_mb() -> float:
    """The peak resident memory of this process (getrusage would include the parent that forked it)."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else 0.0


def together(work: Work, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Combines the measurements of a peer's processes."""
    if "losses" in parts[0]:
        val_loss: list[list[float | None]] = [[None] * len(work.train_order) for _ in work.trials]
        for trial, folds, losses in itertools.chain(*(part["losses"] for part in parts)):
            for fold, loss in zip(folds, losses, strict=True):
                val_loss[trial][fold] = loss
        return {"final_val_loss": val_loss}
    if "points" in parts[0]:
        points = itertools.chain(*(part["points"] for part in parts))
        found = running_minimum(points, max(part["end"] for part in parts))
        return found | {"epochs": sum(part["epochs"] for part in parts)}
    repeats = [tuple(zip(*spans, strict=True)) for spans in zip(*(part["spans"] for part in parts), strict=True)]
    sums = {name: sum(part[name] for part in parts) for name in ("compile_seconds", "peak_rss_mb")}
    return sums | {"us_per_sample": [1e6 * (max(end) - min(start)) / sum(samples) for start, end, samples in repeats]}


def search_optuna(work: Work, folder: str, counter, *, seed: int, trials: int, started: float) -> dict[str, Any]:
    """One process of an Optuna search with PyTorch; HyperbandPruner prunes by the mean loss over the folds.

    Reports losses only at multiples of the least resource: Optuna prunes only there, and writes each report to disk.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    num_folds, num_epochs, *_ = work.train_order.shape
    resource = max(1, num_epochs // 27)  # 27 = 3 ** 3, as in hw1jax
    data, points = Eager.prepare(work), []
    journal = optuna.storages.journal.JournalFileBackend(str(Path(folder, "journal.log")))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(journal),
        study_name=f"seed {seed}",  # the name determines the trials' brackets
        load_if_exists=True,
        pruner=optuna.pruners.HyperbandPruner(resource, num_epochs, reduction_factor=3),
    )

    def objective(trial) -> float:
        trainers = [Eager(work, data, trial.number, [fold]) for fold in range(num_folds)]
        for epoch in range(num_epochs):
            loss = np.mean([train(trainer, work, [fold], [epoch]) for fold, trainer in enumerate(trainers)])
            points.append((time.time() - started, float(loss)))
            if not math.isfinite(loss):
                return math.nan  # Optuna records a failed trial
            if (epoch + 1) % resource == 0:
                trial.report(loss, epoch + 1)
                if trial.should_prune():
                    raise optuna.TrialPruned
        return loss

    for _ in take(counter, trials.__eq__):
        study.optimize(objective, n_trials=1)
    return {"points": points, "end": time.time() - started, "epochs": len(points)}


# Processes.


def child(pipe, file: str, name: str, how: dict[str, Any], folder: str, counter, barrier) -> None:
    """Runs in each process; sends its result, or the reason for having none, through the pipe."""
    global torch
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once
    try:
        if name == OPTUNA or PEERS[name] in (Eager, CompiledFolds):
            import torch

            torch.set_num_threads(1)
        work = load_work(file)
        search = functools.partial(search_optuna, work, folder, counter)
        own = search(**how) if name == OPTUNA else measure(work, name, counter, barrier, **how)
        packages = {"torch", "sklearn", "optuna"} & set(sys.modules)
        pipe.send(own | {"versions": {package: sys.modules[package].__version__ for package in packages}})
    except threading.BrokenBarrierError:
        pipe.send({})  # the other process reports the reason
    except Exception as error:
        barrier.abort()
        kind = "" if isinstance(error, NotImplementedError | ImportError) else f"failed: {type(error).__name__}: "
        hint = ": pip install '.[peers]' brings it" if isinstance(error, ImportError) else ""
        pipe.send({"skipped": f"{kind}{error}{hint}"})


def run_processes(file: str, name: str, **how: Any) -> dict[str, Any]:
    """Start a peer's processes, which share the work, and combine their measurements (see `run_peer`)."""
    context, pipes, parts = multiprocessing.get_context("spawn"), [], []
    num_processes = 1 if name == NOTEBOOK else 2  # JAX has its own threads
    if num_processes > 1:
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    # glibc returns freed blocks of some MB to the system and page-faults them again: 5 % of the CNN's time.
    os.environ.update(MALLOC_MMAP_THRESHOLD_=str(1 << 32), MALLOC_TRIM_THRESHOLD_=str(1 << 33))
    counter, barrier = context.Value("q", 0), context.Barrier(num_processes)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # empty: compile_seconds is that of a first run
        for _ in range(num_processes):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, file, name, how, folder, counter, barrier)
            context.Process(target=child, args=arguments, daemon=True).start()
            sender.close()
            pipes.append(receiver)
        try:
            while pipes:
                for pipe in connection.wait(pipes):
                    parts.append(pipe.recv())
                    pipes.remove(pipe)
        except EOFError:
            return {"skipped": "a process died; the memory may be too small"}
    skipped = next((part for part in parts if "skipped" in part), None)
    return skipped or together(load_work(file), parts) | {"versions": parts[0]["versions"]}


if __name__ == "__main__":
    print(json.dumps(run_processes(**json.loads(sys.argv[1]))))
