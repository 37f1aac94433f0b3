"""Searches each study in three ways with several seeds, and writes all results to seeds.json.

The seeds were fixed beforehand and all are reported: 0-4 for the regression's searches in the report's space, 0-2 for
all others. The searches of one seed follow one another, so that their times are comparable. A finished search is kept.

    python experiments/seeds.py [--quick] [--studies STUDY ..] [--ways WAY ..] [--out DIR] [--data-dir DIR]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from homework import BETTER
from reproduce import BEYOND, STUDIES

import hw1jax as hw
from hw1jax import environment, run, storage
from hw1jax.results import trained_model
from hw1jax.search import study
from hw1jax.search.observer import Observer

WAYS = {
    "report": "the report's search",
    "halving": "the report's space, halving and an ensemble",
    "beyond": "beyond the report",
}


def refit(name: str, seed: int, **given: Any) -> dict[str, Any]:
    """Trains the report's best hyperparameters on all training data; `given`: arguments of `study.run_config`."""
    config = study.run_config(STUDIES[name], seed=seed, **given)
    networks = run.load(config)
    model, _ = run.refit(networks, dict(config.study.reference.params), Observer())
    test = trained_model.score(model, model.predict(networks.data.x_test), networks.data.y_test)
    return {"seed": seed} | numbers(test)


def search(name: str, way: str, seed: int, out: Path, **given: Any) -> dict[str, Any]:
    """Runs a search, unless its folder has results, and returns its numbers."""
    asked, settings = BEYOND[name] if way == "beyond" else STUDIES[name], {}
    if way == "halving":
        settings = dict(BETTER[name])
        if given["quick"]:
            del settings["num_trials"]
    if not (out / "results.json").exists():
        hw.run_study(asked, seed=seed, out=out, **settings, **given)
    read = json.loads((out / "results.json").read_text())
    found = {"seed": seed, "val_loss": read["best"]["mean_val_loss"]}
    if not read["timing"].get("resumed"):  # else the time is of the last start alone
        found["seconds"] = read["timing"]["total_seconds"]
    where = f"{read['environment']['cores']} cores of {read['environment']['device']}"
    found |= {"machine": where, "trials": read["config"]["num_trials"], "test": numbers(read["test"])}
    ensemble = read["search_ensemble"]["test"] if "search_ensemble" in read else read["ensemble"]
    return found | ({"ensemble": numbers(ensemble)} if ensemble else {})


def numbers(test: dict[str, Any]) -> dict[str, float]:
    return {name: test[name] for name in ("loss", "accuracy") if test[name] is not None}


def main() -> None:
    """Writes seeds.json after each search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--studies", nargs="+", choices=STUDIES, default=STUDIES, help="studies to search (default: all)"
    )
    about = "; ".join(f"{way}: {what}" for way, what in WAYS.items())
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help=f"{about} (default: all)")
    parser.add_argument("--out", type=Path, help="results folder (default: runs/seeds; with --quick: runs/quick/seeds)")
    parser.add_argument("--data-dir", type=Path, help="folder with the four Fashion-MNIST files")
    parser.add_argument("--quick", action="store_true", help="small runs with seed 0 only")
    options = parser.parse_args()
    folder = options.out or Path("runs", *(["quick"] if options.quick else []), "seeds")
    environment.use_all_cores()
    path = folder / "seeds.json"
    everything: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    everything["environment"] = environment.describe()
    for name in options.studies:
        inputs = {"data_dir": options.data_dir} if "data_dir" in STUDIES[name].inputs else {}
        given, found = {"inputs": inputs, "quick": options.quick}, everything.setdefault(name, {})
        own_space = 5 if name == "regression" else 3
        num_seeds = {way: 1 if options.quick else 3 if way == "beyond" else own_space for way in WAYS}
        if "refit" not in found:
            found["refit"] = [refit(name, seed, **given) for seed in range(num_seeds["beyond"])]
        found |= {way: [] for way in options.ways}
        for seed in range(5):
            for way in options.ways:
                if seed < num_seeds[way]:
                    found[way].append(search(name, way, seed, folder / f"{name}-{way}-{seed}", **given))
                    storage.write_json(path, everything)


if __name__ == "__main__":
    main()
