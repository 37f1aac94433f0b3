"""What a search finds, and how that depends on the seed: the report's settings, halving with averaged parameters, and
beyond the report's space.

The seeds were fixed beforehand, and every one is reported: 0-4 for the regression's searches in the report's space, 0-2
for all else. The searches of a seed follow one another, so that their times can be compared. What is in the folder
already is not computed again.

    python experiments/seeds.py [--quick] [--studies STUDY ..] [--ways WAY ..] [--out DIR] [--data-dir DIR]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from homework import HALVING, HALVING_TRIALS
from reproduce import BEYOND, STUDIES

import hw1jax as hw
from hw1jax import cli, record, run, storage, study, trained
from hw1jax.observer import Observer

WAYS = ("report", "halving", "beyond")


def seeds_of(name: str, way: str, *, quick: bool) -> range:
    """Those of a study's searches."""
    return range(1 if quick else 5 if name == "regression" and way != "beyond" else 3)


def refit(name: str, seed: int, *, quick: bool, data_dir: Path | None) -> dict[str, Any]:
    """The report's best hyperparameters, trained on all training data."""
    order = study.order(STUDIES[name], inputs=inputs_of(name, data_dir), quick=quick, seed=seed)
    networks = run.load(order)
    model, _ = run.refit(networks, dict(order.study.reference.params), Observer())
    data = networks.data
    return {"seed": seed} | numbers(trained.score(model, model.predict(data.x_test), data.y_test))


def search(name: str, way: str, seed: int, out: Path, *, quick: bool, data_dir: Path | None) -> dict[str, Any]:
    """A full search -> its numbers."""
    asked, settings = BEYOND[name] if way == "beyond" else STUDIES[name], {}
    if way == "halving":
        settings = HALVING | ({} if quick else {"num_trials": HALVING_TRIALS[name]})
    if not (out / "results.json").exists():
        hw.run_study(asked, inputs=inputs_of(name, data_dir), quick=quick, seed=seed, out=out, **settings)
    read = json.loads((out / "results.json").read_text())
    found = {"seed": seed, "seconds": read["timing"]["total_seconds"], "val_loss": read["best"]["mean_val_loss"]}
    where = f"{read['environment']['cores']} cores of {read['environment']['device']}"
    found |= {"machine": where, "trials": read["config"]["num_trials"], "test": numbers(read["test"])}
    return found | ({"ensemble": numbers(read["ensemble"])} if read["ensemble"] else {})


def inputs_of(name: str, data_dir: Path | None) -> dict[str, Path | None]:
    return {"data_dir": data_dir} if "data_dir" in STUDIES[name].inputs else {}


def numbers(test: dict[str, Any]) -> dict[str, float]:
    return {name: test[name] for name in ("loss", "accuracy") if test[name] is not None}


def main() -> None:
    """Writes seeds.json after each search, and prints it in the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=STUDIES)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--out", type=Path, help="runs/seeds, or runs/quick/seeds with --quick, if not given")
    parser.add_argument("--data-dir", type=Path, help="folder with the four Fashion-MNIST files")
    parser.add_argument("--quick", action="store_true", help="small runs with seed 0 alone")
    options = parser.parse_args()
    folder = options.out or Path("runs", *(["quick"] if options.quick else []), "seeds")
    given = {"quick": options.quick, "data_dir": options.data_dir}
    cli.use_all_cores()
    path = folder / "seeds.json"
    everything: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    everything["environment"] = record.describe()
    for name in options.studies:
        found = everything.setdefault(name, {})
        if "refit" not in found:
            found["refit"] = [refit(name, seed, **given) for seed in seeds_of(name, "beyond", quick=options.quick)]
        found |= {way: [] for way in options.ways}
        for seed in range(5):
            for way in options.ways:
                if seed in seeds_of(name, way, quick=options.quick):
                    found[way].append(search(name, way, seed, folder / f"{name}-{way}-{seed}", **given))
                    storage.write_json(path, everything)
    print(json.dumps(everything, indent=2))


if __name__ == "__main__":
    main()
