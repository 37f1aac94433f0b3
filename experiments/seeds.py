"""How the results depend on the seed: full searches, and the report's best hyperparameters refitted.

The seeds were fixed beforehand, and every one is reported: searches with seeds 0-4 (regression), 0-2 (dense net) and
0 (CNN); refits of the report's best with seeds 0-2. What is in the folder already is not computed again.

    python experiments/seeds.py [--quick] [--out DIR] [--data-dir DIR]
"""

from hw1jax import signals

if __name__ == "__main__":
    signals.listen()  # before the imports that take seconds

import json
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro
from reproduce import STUDIES

from hw1jax import cli, record, results, run, storage, study
from hw1jax.progress import ConsoleObserver
from hw1jax.study import Order, Study

SEARCH_SEEDS = {"regression": range(5), "fashion_mlp": range(3), "fashion_cnn": range(1)}
REFIT_SEEDS = range(3)


@dataclass(frozen=True)
class Options:
    out: Path | None = None
    """Folder of the results; runs/seeds, or runs/quick/seeds with --quick, if not given."""
    quick: bool = False
    """Small runs with seed 0 alone, to see that everything works."""
    data_dir: Path | None = None
    """Folder with the four Fashion-MNIST files, instead of fetching them."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """Of matrix products on a GPU or TPU; a CPU computes in float32."""
    reproducible: bool = False
    """On a GPU, the same bits each time: slower."""


FLAGS = {field.name: field.name.replace("_", "-") for field in fields(Options)}  # as messages name them


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


def searches(asked: Study, options: Options, stop: threading.Event) -> list[dict[str, Any]]:
    """The full search with each seed."""
    found = []
    for seed in [0] if options.quick else SEARCH_SEEDS[asked.name]:
        order = order_of(asked, options, seed)
        if not (order.folder / "results.json").exists():
            cli.run_order(order, cli.Flags(), time.time(), stop, FLAGS)
        read = json.loads((order.folder / "results.json").read_text())
        found.append({"seed": seed, "seconds": read["timing"]["total_seconds"]} | numbers(read["test"]))
    return found


def order_of(asked: Study, options: Options, seed: int) -> Order:
    """A search with this seed, and with the options."""
    return study.order(
        asked,
        inputs={"data_dir": options.data_dir} if "data_dir" in asked.inputs else {},
        quick=options.quick,
        seed=seed,
        precision=options.precision,
        reproducible=options.reproducible,
        out=folder_of(options) / f"{asked.name}-{seed}",
    )


def numbers(test: dict[str, Any]) -> dict[str, float]:
    return {name: test[name] for name in ("loss", "accuracy") if test[name] is not None}


def compute(options: Options, stop: threading.Event) -> int:
    """Writes seeds.json after each study, and prints it."""
    everything: dict[str, Any] = {"environment": record.describe()}
    for name, asked in STUDIES.items():
        everything[name] = {"refit": refits(asked, options), "search": searches(asked, options, stop)}
        storage.write_json(folder_of(options) / "seeds.json", everything)
    print(json.dumps(everything, indent=2))
    return 0


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__, registry=cli.registry)
    cli.use_all_cores()
    if chosen.reproducible:
        record.make_reproducible()
    asked_to_stop = cli.stop_on_signals()
    cli.with_exit_code(lambda: compute(chosen, asked_to_stop), FLAGS)
