"""Fills in the tables, figures and output in README.md and `docs` from the run folders of the other scripts.

Copies of the numbers and figures that they show are kept in `experiments/results`.

    python experiments/readme.py [RUNS]
"""

import contextlib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image
from reproduce import STUDIES
from seeds import WAYS

from hw1jax import storage
from hw1jax.progress import print_summary
from hw1jax.search.study import Study

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MEASURED = ("benchmark", "time_to_score", "executor_overhead")  # tables of benchmark.py
FIGURES = {  # {block: {path in the run folders: alternative text}}
    "curve figure": {
        "regression/figures/fitted_curve.png": "Regression: the refitted model over all points; band: its fold models",
    },
    "figures": {
        "regression/figures/trial_scores.png": "Regression: validation loss of each trial and of each of its folds",
        "fashion_cnn/figures/confusion.png": "Confusion matrix of the convolutional net on the test set, in percent",
    },
    "speed figure": {
        "benchmark/speed.png": "Time per training sample in each study: hw1jax in filled bars, its peers hatched",
    },
}


def collect(runs: Path) -> None:
    """Copies the numbers and figures from the run folders to `RESULTS`."""
    RESULTS.mkdir(exist_ok=True)
    if (runs / "regression" / "results.json").exists():
        shutil.copy(runs / "regression" / "results.json", RESULTS / "regression.json")
    kept = (f"{name}/{name}.json" for name in ("seeds", "estimators"))
    for source in (runs / path for path in (*kept, *(f"benchmark/{name}.md" for name in MEASURED))):
        if source.exists():
            shutil.copy(source, RESULTS / source.name)
    for source in (source for block in FIGURES.values() for source in block):
        if (runs / source).exists():
            with Image.open(runs / source) as image:  # 64 colours: same look, a third of the bytes
                image.convert("RGB").quantize(64).save(RESULTS / kept_name(source), optimize=True)


def kept_name(source: str) -> str:
    """The name of a figure's copy: regression/figures/data.png -> regression_data.png."""
    return f"{Path(source).parts[0]}_{Path(source).name}"


COLUMNS = ("seeds", "validation loss", "test loss", "ensemble loss", "accuracy", "ensemble accuracy", "wall time")


def result_rows(seeds: dict[str, Any], study: Study, *, each: bool) -> list[list[str]]:
    """One row [search, *COLUMNS] for each way to search a study: medians over the seeds; with `each`, all seeds too."""
    values, reported = _each_value if each else _median, study.reference.test
    theirs = [f"{reported['loss']:.2f}", "-", f"{reported['accuracy']:.0%}" if "accuracy" in reported else "-", "-"]
    rows = [["**the report**", "-", "-", *theirs, "-"]]
    ways = {"the report's best trial": [{"seed": run["seed"], "test": run} for run in seeds[study.name]["refit"]]}
    ways |= {what: seeds[study.name].get(way) or [] for way, what in WAYS.items()}
    letters = _machines(seeds)
    for what, runs in ((what, runs) for what, runs in ways.items() if runs):
        scores = [
            values([run.get(part, {}).get(name) for run in runs], form)
            for name, form in (("loss", "{:.3f}"), ("accuracy", "{:.1%}"))
            for part in ("test", "ensemble")
        ]
        val = values([run.get("val_loss") for run in runs], "{:.3f}")
        seconds = values([run.get("seconds") for run in runs], "{:.0f} s")
        where = ", ".join(sorted({letters[run["machine"]] for run in runs if "machine" in run}))
        named = what + (f", {runs[0]['trials']} trials" if "trials" in runs[0] else "")
        seeds_shown = "-".join(str(seed) for seed in sorted({runs[0]["seed"], runs[-1]["seed"]}))
        rows.append([named, seeds_shown, val, *scores, f"{seconds}, {where}" if each and where else seconds])
    return rows


def results_table(seeds: dict[str, Any]) -> str:
    """One table of all studies: medians over the seeds."""
    rows = [
        [study.title, *row]
        for study in STUDIES.values()
        if study.name in seeds
        for row in result_rows(seeds, study, each=False)
    ]
    return "\n".join([*table(["study", "search", *COLUMNS], rows), "", origin(seeds)])


def seeds_tables(seeds: dict[str, Any]) -> str:
    """One table for each study, with every seed and without empty columns."""
    lines = []
    for study in (study for study in STUDIES.values() if study.name in seeds):
        columns = list(zip(["search", *COLUMNS], *result_rows(seeds, study, each=True), strict=True))
        heads, *rows = zip(*[column for column in columns if set(column[1:]) != {"-"}], strict=True)
        lines += [f"**{study.title}**", "", *table(heads, rows), ""]
    return "\n".join([*lines, origin(seeds)])


def estimators(found: dict[str, Any]) -> dict[str, str]:
    """Three blocks of medians over the seeds: all numbers, the seconds alone, and a sentence on the README's search."""
    forms = {"seconds": "{:.0f} s", "cpu_seconds": "{:.0f} s", "cv_score": "{:.3f}", "test_score": "{:.3f}"}
    lines, seconds, loads, took = [], [], [], {}
    for name, data in found["data"].items():
        searches = data["runs"]
        rows = [
            [search, *(_median([run[key] for run in runs], form) for key, form in forms.items())]
            for search, runs in searches.items()
        ]
        work = "{samples:,} samples x {features}, {trials} trials x {folds} folds x {epochs} epochs".format(**data)
        heads = ["search", "time", "processor time", "validation score", "test score"]
        lines += [f"**{name}**: {work}, median of {len(searches['scikit-learn'])}", "", *table(heads, rows), ""]
        seconds.append([name, *(row[1] for row in rows[:3])])
        took = took or {search: time for search, time, *_ in rows}  # of the digits, which are first
        loads += [run["load"] for runs in searches.values() for run in runs]
    where = found["environment"]
    busy = f"{where['cores']} cores of {where['device']}, load average {min(loads):.0f} to {max(loads):.0f}"
    versions = f"jax {where['packages']['jax']}, scikit-learn {found['sklearn']}"
    versions += f", pytabkit {found['pytabkit']}" if found["pytabkit"] != "none" else ""
    return {
        "estimators": "\n".join([*lines, f"`experiments/estimators.py`, {where['date'][:10]}: {busy}, {versions}."]),
        "estimators short": "\n".join(table(["data", *list(took)[:3]], seconds)),
        "first search": (
            f"This takes {took['hw1jax']}, or {took['hw1jax, nothing compiled yet']} the first time; scikit-learn's "
            f"`RandomizedSearchCV` of its `MLPClassifier` takes {took['scikit-learn']} ({busy})."
        ),
    }


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown; columns of numbers are aligned right."""
    sides = ["---" if head in ("study", "search", "seeds", "data") else "--:" for head in heads]
    return [f"| {' | '.join(row)} |" for row in (heads, sides, *rows)]


def origin(seeds: dict[str, Any]) -> str:
    """Date, machines and versions of the measurements."""
    where = seeds["environment"]
    packages = where["packages"]
    machines = "; ".join(f"{letter}: {machine}" for machine, letter in _machines(seeds).items())
    return (
        f"From `experiments/seeds.py` on {where['date'][:10]}. Machine {machines}. "
        f"Python {where['python']}, jax {packages['jax']}, flax {packages['flax']}, optax {packages['optax']}, "
        f"optuna {packages['optuna']}. Wall time covers the whole run: loading data, compiling, search, refit and test."
    )


def _machines(seeds: dict[str, Any]) -> dict[str, str]:
    """{machine: its letter} for all machines that ran a search."""
    runs = [run for study in STUDIES for way in WAYS for run in seeds.get(study, {}).get(way, [])]
    return dict(zip(sorted({run["machine"] for run in runs}), ascii_uppercase, strict=False))


def _median(values: list[float | None], form: str) -> str:
    found = [value for value in values if value is not None]
    return form.format(statistics.median(found)) if found else "-"


def _each_value(values: list[float | None], form: str) -> str:
    """The median, then each value in brackets."""
    found = [form.format(value).removesuffix(" s").removesuffix("%") for value in values if value is not None]
    return f"**{_median(values, form)}** ({', '.join(found)})" if len(found) > 1 else _median(values, form)


def images(block: dict[str, str], page: Path) -> str:
    """The figures of a block {path in the run folders: alternative text}, one below the other."""
    shown = {os.path.relpath(RESULTS / kept_name(source), page.parent): alt for source, alt in block.items()}
    if page.name == "README.md":  # Markdown can't set a width
        return "\n\n".join(f'<img src="{path}" alt="{alt}" width="640">' for path, alt in shown.items())
    return "\n\n".join(f"![{alt}]({path})" for path, alt in shown.items())


def end_of_run(results: dict[str, Any]) -> str:
    """The summary that an experiment prints on standard output."""
    folder = Path("runs", results["study"])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_summary([results], folder)
        print(f"Report: {folder / 'report.html'}")
    return code(printed.getvalue())


@cache
def help_text() -> str:
    """The output of `--help`, folded away."""
    script = "experiments/regression.py"
    plain = {"COLUMNS": "110", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, script, "--help"]
    shown = subprocess.run(command, cwd=ROOT, env=os.environ | plain, stdout=subprocess.PIPE, check=True, timeout=120)
    text = code(shown.stdout.decode())
    return f"<details>\n<summary><code>python {script} --help</code></summary>\n\n{text}\n\n</details>"


def code(text: str) -> str:
    """A program's output as a Markdown block, without trailing spaces."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "\n".join(["```text", *lines, "```"])


def blocks(page: Path) -> dict[str, str]:
    """The text of each block for which there are results."""
    found = {"help": help_text()}
    for name, block in FIGURES.items():
        if all((RESULTS / kept_name(source)).exists() for source in block):
            found[name] = images(block, page)
    if (RESULTS / "regression.json").exists():
        found["end of a run"] = end_of_run(json.loads((RESULTS / "regression.json").read_text()))
    if (RESULTS / "seeds.json").exists():
        seeds = json.loads((RESULTS / "seeds.json").read_text())
        found |= {"results": results_table(seeds), "seeds": seeds_tables(seeds)}
    if (RESULTS / "estimators.json").exists():
        found |= estimators(json.loads((RESULTS / "estimators.json").read_text()))
    for name in (name for name in MEASURED if (RESULTS / f"{name}.md").exists()):
        text = (RESULTS / f"{name}.md").read_text().strip()
        found[name] = text.replace("\n### ", "\n## ") if name == "benchmark" else text  # sections of docs/speed.md
    return found


def fill(text: str, page: Path) -> str:
    """The text of a page with its blocks replaced."""
    for name, block in blocks(page).items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda match: f"{match[1]}{block}\n{match[2]}", text)  # noqa: B023
    return text


if __name__ == "__main__":
    collect(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
    for each in PAGES:
        storage.write_bytes(each, fill(each.read_text(), each).encode())
