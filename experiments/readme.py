"""Fills the README's tables from what the other scripts have left in `runs`.

Small copies of the numbers and figures that the README shows are kept in `experiments/results`.

    python experiments/readme.py [RUNS]
"""

import json
import re
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from hw1jax import storage
from hw1jax.studies import STUDIES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"


def collect(runs: Path) -> None:
    """Copies what the README shows from the runs' folders."""
    RESULTS.mkdir(exist_ok=True)
    for study in STUDIES:
        results = runs / study.name / "results.json"
        if results.exists():
            shutil.copy(results, RESULTS / f"{study.name}.json")
    for source in (
        runs / "seeds" / "seeds.json",
        runs / "benchmark" / "benchmark.md",
        runs / "benchmark" / "speed.png",
    ):
        if source.exists():
            shutil.copy(source, RESULTS / source.name)


def results_table(results: list[dict[str, Any]]) -> str:
    """Ours beside the report's."""
    lines = [
        "| study | search | best validation loss | test loss | the report's | accuracy | the report's | wall time |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in results:
        config, test, reported = r["config"], r["test"], r["reported"]
        search = f"{config['num_trials']} trials x {config['num_folds']} folds x {config['num_epochs']} epochs"
        ours, theirs = (
            "-" if value is None else f"{value:.1%}" for value in (test["accuracy"], reported["test_accuracy"])
        )
        lines.append(
            f"| {r['title']} | {search} | {r['best']['mean_val_loss']:.3f} ± {r['best']['std_val_loss']:.3f} "
            f"| {test['loss']:.3f} | {reported['test_loss']:.2f} | {ours} | {theirs} "
            f"| {r['timing']['total_seconds']:.0f} s |"
        )
    where = results[-1]["environment"]
    packages = where["packages"]
    lines += [
        "",
        f"From one run of `{results[-1]['command']}` on {where['date'][:10]}: {where['cores']} cores of "
        f"{where['device']}, Python {where['python']}, jax {packages['jax']}, flax {packages['flax']}, "
        f"optax {packages['optax']}, optuna {packages['optuna']}. Wall time is a study's "
        "whole run with its data, compiling, refit and test; the first one's counts from the start of the process.",
    ]
    return "\n".join(lines)


def seeds_table(seeds: dict[str, Any]) -> str:
    """All seeds that were fixed beforehand."""
    lines = ["| study | what | seeds | test loss | accuracy |", "|---|---|---|---|---|"]
    for study in STUDIES:
        for what, name in (("refit", "the report's best, refitted"), ("search", "full search")):
            runs = seeds[study.name][what]
            row = [f"{study.title} | {name} | {', '.join(str(run['seed']) for run in runs)}"]
            for key, form in (("loss", "{:.3f}"), ("accuracy", "{:.1%}")):
                values = [run[key] for run in runs if key in run]
                each = ", ".join(form.format(value) for value in values)
                middle = f" (median {form.format(statistics.median(values))})" if len(values) > 1 else ""
                row.append(each + middle if values else "-")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def blocks() -> dict[str, str]:
    """The text of each of the README's blocks that there are numbers for."""
    found = {}
    results = [RESULTS / f"{study.name}.json" for study in STUDIES]
    if all(path.exists() for path in results):
        found["results"] = results_table([json.loads(path.read_text()) for path in results])
    if (RESULTS / "seeds.json").exists():
        found["seeds"] = seeds_table(json.loads((RESULTS / "seeds.json").read_text()))
    if (RESULTS / "benchmark.md").exists():
        found["benchmark"] = (RESULTS / "benchmark.md").read_text().strip()
    return found


def fill(text: str) -> str:
    """The README with its blocks written anew."""
    for name, block in blocks().items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda match: f"{match[1]}{block}\n{match[2]}", text)  # noqa: B023
    return text


if __name__ == "__main__":
    collect(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
    readme = ROOT / "README.md"
    storage.write_bytes(readme, fill(readme.read_text()).encode())
