"""How the results depend on the seed: full searches, and the report's best hyperparameters refitted.

The seeds were fixed beforehand, and every one is reported: searches with seeds 0-4 (regression), 0-2 (dense net) and
0 (CNN); refits of the report's best with seeds 0-2. What is in the folder already is not computed again.

    python experiments/seeds.py [--quick] [--out DIR] [--data-dir DIR]
"""

import signals

if __name__ == "__main__":
    signals.listen()  # before the imports that take seconds

import json
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import command
import tyro

from hw1jax import environment, run, storage, studies
from hw1jax.progress import ConsoleObserver
from hw1jax.studies import Study

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


def folder_of(options: Options) -> Path:
    return options.out or Path("runs", *(["quick"] if options.quick else []), "seeds")


def refits(study: Study, options: Options) -> list[dict[str, Any]]:
    """The report's best hyperparameters, trained on all training data with each seed."""
    found = []
    for seed in [0] if options.quick else REFIT_SEEDS:
        settings = settings_of(study, options, seed)
        data = study.load(settings)
        model, _ = run.refit(study, settings, data, study.reported.best, ConsoleObserver())
        found.append({"seed": seed} | numbers(run.score(study, model.predict(data.x_test), data.y_test)))
    return found


def searches(study: Study, options: Options, stop: threading.Event) -> list[dict[str, Any]]:
    """The full search with each seed."""
    found = []
    for seed in [0] if options.quick else SEARCH_SEEDS[study.name]:
        folder = folder_of(options) / f"{study.name}-{seed}"
        results = folder / "results.json"
        if not results.exists():
            settings = replace(settings_of(study, options, seed), out=folder)
            command.run_study(study, settings, time.time(), stop)
        read = json.loads(results.read_text())
        found.append({"seed": seed, "seconds": read["timing"]["total_seconds"]} | numbers(read["test"]))
    return found


def settings_of(study: Study, options: Options, seed: int):
    data_dir = {"data_dir": options.data_dir} if study.classes else {}
    numerics = {"precision": options.precision, "reproducible": options.reproducible}
    return replace(study.quick if options.quick else study.settings, seed=seed, **numerics, **data_dir)


def numbers(test: dict[str, Any]) -> dict[str, float]:
    return {name: test[name] for name in ("loss", "accuracy") if test[name] is not None}


def compute(options: Options, stop: threading.Event) -> int:
    """Writes seeds.json after each study, and prints it."""
    everything: dict[str, Any] = {"environment": environment.describe()}
    for study in studies.STUDIES:
        everything[study.name] = {"refit": refits(study, options), "search": searches(study, options, stop)}
        storage.write_json(folder_of(options) / "seeds.json", everything)
    print(json.dumps(everything, indent=2))
    return 0


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__, registry=command.ranges)
    command.use_all_cores()
    if chosen.reproducible:
        environment.make_reproducible()
    asked = command.stop_on_signals()
    command.with_exit_code(lambda: compute(chosen, asked))
