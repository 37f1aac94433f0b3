"""How whole searches grow: more trials, more folds, study by study.

It is `benchmark.py --growth`, which says what is measured. Each search is `hw1jax.run` in a process of its own, without
a compilation cache, on the study's first samples for a few epochs: short, so that what a program takes to compile, and
a trial to be asked for and kept, is seen beside what its training takes.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speed import forms, peers

NUM_TRIALS, NUM_FOLDS = (10, 100, 1000), (3, 10)
SAMPLES = {"regression": 100, "fashion_mlp": 6000, "fashion_cnn": 1200}
EPOCHS = {"regression": 100, "fashion_mlp": 2, "fashion_cnn": 1}


def search_work(name: str, num_folds: int, options: argparse.Namespace) -> peers.Work:
    """The samples, folds and epochs of a study's searches; it has no trials, as a search draws its own."""
    asked = forms.study_of(name)
    data = forms.data_of(asked, options.data_dir, synthetic=options.synthetic)
    count, epochs = SAMPLES[name], EPOCHS[name]
    if options.quick:
        count, epochs = min(count, 600), min(epochs, 5)
    x, y = data.x_train[:count], data.y_train[:count]
    return forms.order_work(name, x, y, [], num_folds=num_folds, num_epochs=epochs, batch_size=asked.batch_size)


def table(result: dict[str, Any]) -> list[str]:
    """A study's searches as lines of markdown."""
    lines = [
        "| trials | folds | networks | programs | s in all | training s | ms a network | µs a sample | peak MB "
        "| MB of files |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in (row for row in result["rows"] if "skipped" not in row):
        networks = row["trials"] * row["folds"]
        seconds, samples = row["train_seconds"], networks * row["samples"]
        lines.append(
            f"| {row['trials']:,} | {row['folds']} | {networks:,} | {row['num_programs']} "
            f"| {row['total_seconds']:.1f} | {seconds:.1f} "
            f"| {1e3 * seconds / networks:.3g} | {1e6 * seconds / samples:.3g} | {row['peak_rss_mb']:.0f} "
            f"| {row['files_mb']:.1f} |"
        )
    skipped = [row for row in result["rows"] if "skipped" in row]
    return [*lines, *(f"- skipped: {r['trials']} trials of {r['folds']} folds: {r['skipped']}" for r in skipped)]


def report(results: dict[str, Any]) -> str:
    machine = results["environment"]
    lines = [
        f"{machine['date']}, {machine['device']}, {machine['cores']} cores, Python {machine['python']}, "
        f"jax {machine['packages']['jax']}; each search once, without a compilation cache. A network is a fold "
        "of a trial; training leaves compiling out."
    ]
    for name, result in results["studies"].items():
        title = f"### {name}"
        if "skipped" in result:
            lines += ["", title, "", f"- skipped: {result['skipped']}"]
            continue
        title += f" ({result['samples']:,} samples, epochs: {result['epochs']})"
        lines += ["", title, "", *table(result)]
    return "\n".join(lines) + "\n"


def measure_study(
    name: str, options: argparse.Namespace, folder: Path, run_form: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """A study's searches, as search_growth.json holds them."""
    rows: list[dict[str, Any]] = []
    works = {num_folds: search_work(name, num_folds, options) for num_folds in NUM_FOLDS}
    for num_folds, work in works.items():
        file = folder / f"{name}.npz"
        peers.save_work(file, work)
        for num_trials in (3, 6) if options.quick else NUM_TRIALS:
            forms.say(name, f"{num_trials} trials of {num_folds} folds")
            found = run_form(["--form", forms.WHOLE, "--work", str(file), "--trials", str(num_trials)])
            rows.append({"trials": num_trials, "folds": num_folds, **found})
            forms.say(f"  {found.get('skipped') or '{:.1f} s'.format(found['total_seconds'])}")
    work = works[NUM_FOLDS[0]]
    return {"samples": len(work.x), "epochs": work.train_order.shape[1], "rows": rows}


def measure(options: argparse.Namespace, run_form: Callable[..., dict[str, Any]]) -> None:
    """Writes search_growth.json and search_growth.md after each study, and prints the tables."""
    from hw1jax import record, storage

    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
    results: dict[str, Any] = {"environment": record.describe(), "settings": settings, "studies": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.studies:
            try:
                result = measure_study(name, options, Path(folder), run_form)
            except ValueError as error:  # no data: the other studies don't need them
                result = {"skipped": str(error)}
            results["studies"][name] = result
            storage.write_json(options.out / "search_growth.json", results)
            storage.write_bytes(options.out / "search_growth.md", report(results).encode())
    print(report(results))
