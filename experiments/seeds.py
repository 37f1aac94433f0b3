"""What a search finds, and how that depends on the seed: the report's settings, halving with averaged parameters, and
beyond the report's space.

The seeds were fixed beforehand, and every one is reported: 0-4 for the regression's searches in the report's space, 0-2
for all else. The searches of a seed follow one another, so that their times can be compared. What is in the folder
already is not computed again.

    python experiments/seeds.py [--quick] [--studies STUDY ..] [--ways WAY ..] [--out DIR] [--data-dir DIR]
"""

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tyro
from homework import HALVING, HALVING_TRIALS
from reproduce import BEYOND, STUDIES

from hw1jax import cli, record, results, run, storage, study
from hw1jax.progress import ConsoleObserver
from hw1jax.study import Order, Study

REFIT_SEEDS = range(3)
Name = Literal["regression", "fashion_mlp", "fashion_cnn"]
Way = Literal["report", "halving", "beyond"]


@dataclass(frozen=True)
class Options:
    out: Path | None = None
    """Folder of the results; runs/seeds, or runs/quick/seeds with --quick, if not given."""
    quick: bool = False
    """Small runs with seed 0 alone, to see that everything works."""
    studies: tuple[Name, ...] = get_args(Name)
    """Which of the studies."""
    ways: tuple[Way, ...] = get_args(Way)
    """The report's own settings, the same space with halving and averaged parameters, or what lies beyond it."""
    data_dir: Path | None = None
    """Folder with the four Fashion-MNIST files, instead of fetching them."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """Of matrix products on a GPU or TPU; a CPU computes in float32."""
    reproducible: bool = False
    """On a GPU, the same bits each time: slower."""


def folder_of(options: Options) -> Path:
    return options.out or Path("runs", *(["quick"] if options.quick else []), "seeds")


def refits(asked: Study, options: Options) -> list[dict[str, Any]]:
    """The report's best hyperparameters, trained on all training data with each seed."""
    assert asked.reference is not None
    found = []
    for seed in [0] if options.quick else REFIT_SEEDS:
        order = order_of(asked, options, seed)
        data = study.load_data(asked, order.inputs)
        num_folds = order.search.num_folds
        model, _ = run.refit(order, data, num_folds, dict(asked.reference.params), ConsoleObserver())
        found.append({"seed": seed} | numbers(results.score(model, model.predict(data.x_test), data.y_test)))
    return found


def seeds_of(name: str, way: str, options: Options) -> range:
    """The seeds of a study's searches."""
    if options.quick:
        return range(1)
    return range(5 if name == "regression" and way != "beyond" else 3)


def search(name: str, way: str, seed: int, options: Options, stop: threading.Event) -> dict[str, Any]:
    """A full search -> its numbers."""
    asked, settings = BEYOND[name] if way == "beyond" else STUDIES[name], {}
    if way == "halving":
        settings = HALVING | ({} if options.quick else {"num_trials": HALVING_TRIALS[name]})
    order = order_of(asked, options, seed, folder_of(options) / f"{name}-{way}-{seed}", **settings)
    if not (order.folder / "results.json").exists():
        cli.run_order(order, cli.Flags(quiet=True), time.time(), stop)
    read = json.loads((order.folder / "results.json").read_text())
    found = {"seed": seed, "seconds": read["timing"]["total_seconds"], "val_loss": read["best"]["mean_val_loss"]}
    where = f"{read['environment']['cores']} cores of {read['environment']['device']}"
    found |= {"machine": where, "trials": read["config"]["num_trials"], "test": numbers(read["test"])}
    return found | ({"ensemble": numbers(read["ensemble"])} if read["ensemble"] else {})


def order_of(asked: Study, options: Options, seed: int, folder: Path | None = None, **settings: Any) -> Order:
    """A search with this seed, and with the options."""
    return study.order(
        asked,
        inputs={"data_dir": options.data_dir} if "data_dir" in asked.inputs else {},
        quick=options.quick,
        seed=seed,
        precision=options.precision,
        reproducible=options.reproducible,
        out=folder,
        **settings,
    )


def numbers(test: dict[str, Any]) -> dict[str, float]:
    return {name: test[name] for name in ("loss", "accuracy") if test[name] is not None}


def compute(options: Options, stop: threading.Event) -> int:
    """Writes seeds.json after each search, and prints it in the end."""
    path = folder_of(options) / "seeds.json"
    everything: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    everything["environment"] = record.describe()
    for name in options.studies:
        found = everything.setdefault(name, {})
        if "refit" not in found:
            found["refit"] = refits(STUDIES[name], options)
        found |= {way: [] for way in options.ways}
        most = max(len(seeds_of(name, way, options)) for way in options.ways)
        for seed in range(most):
            for way in options.ways:
                if seed in seeds_of(name, way, options):
                    found[way].append(search(name, way, seed, options, stop))
                    storage.write_json(path, everything)
    print(json.dumps(everything, indent=2))
    return 0


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    cli.use_all_cores()
    if chosen.reproducible:
        record.make_reproducible()
    asked_to_stop = cli.stop_on_signals()
    cli.with_exit_code(lambda: compute(chosen, asked_to_stop))
