"""Fills the README and the pages of `docs`: tables, figures and output, from what other scripts have left in `runs`.

Small copies of the numbers and figures that they show are kept in `experiments/results`.

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
MEASURED = ("benchmark", "time_to_score")  # by benchmark.py, each a block of its own
FIGURES = {  # of each block: where in the runs, and what it shows
    "curve figure": {
        "regression/figures/fitted_curve.png": "The regression's refitted model over all points, its folds' as a band",
    },
    "figures": {
        "regression/figures/trial_scores.png": "Validation loss of each of the regression's trials with its folds",
        "fashion_cnn/figures/confusion.png": "Confusion matrix of the convolutional net on the test set, in percent",
    },
    "speed figure": {
        "benchmark/speed.png": "Time per training sample, study by study: our forms as full bars, the peers' hatched",
    },
}


def collect(runs: Path) -> None:
    """Copies what the README shows from the runs' folders."""
    RESULTS.mkdir(exist_ok=True)
    if (runs / "regression" / "results.json").exists():
        shutil.copy(runs / "regression" / "results.json", RESULTS / "regression.json")
    for source in (runs / "seeds" / "seeds.json", *(runs / "benchmark" / f"{name}.md" for name in MEASURED)):
        if source.exists():
            shutil.copy(source, RESULTS / source.name)
    for source in (source for block in FIGURES.values() for source in block):
        if (runs / source).exists():
            with Image.open(runs / source) as image:  # 64 colours: a third of the bytes, and it looks the same
                image.convert("RGB").quantize(64).save(RESULTS / kept_name(source), optimize=True)


def kept_name(source: str) -> str:
    """regression/figures/data.png -> regression_data.png."""
    return f"{Path(source).parts[0]}_{Path(source).name}"


COLUMNS = ("seeds", "validation loss", "test loss", "ensemble's", "accuracy", "ensemble's", "wall time")


def found_rows(seeds: dict[str, Any], study: Study, *, each: bool) -> list[list[str]]:
    """What each way of searching a study finds, [what, *COLUMNS]: medians over the seeds, with `each` all of them."""
    values, reported = _each_value if each else _median, study.reference.test
    theirs = [f"{reported['loss']:.2f}", "-", f"{reported['accuracy']:.0%}" if "accuracy" in reported else "-", "-"]
    rows = [["**the report**", "-", "-", *theirs, "-"]]
    ways = {"the report's best, refitted": [{"seed": run["seed"], "test": run} for run in seeds[study.name]["refit"]]}
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
    """Medians, all studies in one table."""
    rows = [
        [study.title, *row]
        for study in STUDIES.values()
        if study.name in seeds
        for row in found_rows(seeds, study, each=False)
    ]
    return "\n".join([*table(["study", "what", *COLUMNS], rows), "", origin(seeds)])


def seeds_tables(seeds: dict[str, Any]) -> str:
    """Every seed, a table a study, without the columns that it has nothing in."""
    lines = []
    for study in (study for study in STUDIES.values() if study.name in seeds):
        columns = list(zip(["what", *COLUMNS], *found_rows(seeds, study, each=True), strict=True))
        heads, *rows = zip(*[column for column in columns if set(column[1:]) != {"-"}], strict=True)
        lines += [f"**{study.title}**", "", *table(heads, rows), ""]
    return "\n".join([*lines, origin(seeds)])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown; what has no words is set to the right."""
    sides = ["---" if head in ("study", "what", "seeds") else "--:" for head in heads]
    return [f"| {' | '.join(row)} |" for row in (heads, sides, *rows)]


def origin(seeds: dict[str, Any]) -> str:
    """Where and when the numbers were found."""
    where = seeds["environment"]
    packages = where["packages"]
    machines = "; ".join(f"{letter}: {machine}" for machine, letter in _machines(seeds).items())
    return (
        f"From `experiments/seeds.py` on {where['date'][:10]}. Machine {machines}. "
        f"Python {where['python']}, jax {packages['jax']}, flax {packages['flax']}, optax {packages['optax']}, "
        f"optuna {packages['optuna']}. Wall time is a study's whole run with its data, compiling, refit and test."
    )


def _machines(seeds: dict[str, Any]) -> dict[str, str]:
    """Those on which there was a search, each with a letter."""
    runs = [run for study in STUDIES for way in WAYS for run in seeds.get(study, {}).get(way, [])]
    return dict(zip(sorted({run["machine"] for run in runs}), ascii_uppercase, strict=False))


def _median(values: list[float | None], form: str) -> str:
    found = [value for value in values if value is not None]
    return form.format(statistics.median(found)) if found else "-"


def _each_value(values: list[float | None], form: str) -> str:
    """The median, and all of them."""
    found = [form.format(value).removesuffix(" s").removesuffix("%") for value in values if value is not None]
    return f"**{_median(values, form)}** ({', '.join(found)})" if len(found) > 1 else _median(values, form)


def images(block: dict[str, str], page: Path) -> str:
    """Figures, one below the other; block: {source: what it shows}."""
    shown = {os.path.relpath(RESULTS / kept_name(source), page.parent): alt for source, alt in block.items()}
    if page.name == "README.md":  # Markdown has no widths
        return "\n\n".join(f'<img src="{path}" alt="{alt}" width="640">' for path, alt in shown.items())
    return "\n\n".join(f"![{alt}]({path})" for path, alt in shown.items())


def end_of_run(results: dict[str, Any]) -> str:
    """What an experiment prints on standard output."""
    folder = Path("runs", results["study"])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_summary([results], folder)
        print(f"Report: {folder / 'report.html'}")
    return code(printed.getvalue())


@cache
def help_text() -> str:
    """What `--help` prints, to be unfolded."""
    script = "experiments/regression.py"
    plain = {"COLUMNS": "110", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, script, "--help"]
    shown = subprocess.run(command, cwd=ROOT, env=os.environ | plain, stdout=subprocess.PIPE, check=True, timeout=120)
    text = code(shown.stdout.decode())
    return f"<details>\n<summary><code>python {script} --help</code></summary>\n\n{text}\n\n</details>"


def code(text: str) -> str:
    """Output as a block of its own, without the blanks that its lines end with."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "\n".join(["```text", *lines, "```"])


def blocks(page: Path) -> dict[str, str]:
    """The text of each block that there is something for."""
    found = {"help": help_text()}
    for name, block in FIGURES.items():
        if all((RESULTS / kept_name(source)).exists() for source in block):
            found[name] = images(block, page)
    if (RESULTS / "regression.json").exists():
        found["end of a run"] = end_of_run(json.loads((RESULTS / "regression.json").read_text()))
    if (RESULTS / "seeds.json").exists():
        seeds = json.loads((RESULTS / "seeds.json").read_text())
        found |= {"results": results_table(seeds), "seeds": seeds_tables(seeds)}
    for name in (name for name in MEASURED if (RESULTS / f"{name}.md").exists()):
        text = (RESULTS / f"{name}.md").read_text().strip()
        found[name] = text.replace("\n### ", "\n## ") if name == "benchmark" else text  # it is most of its page
    return found


def fill(text: str, page: Path) -> str:
    """A page's text with its blocks written anew."""
    for name, block in blocks(page).items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda match: f"{match[1]}{block}\n{match[2]}", text)  # noqa: B023
    return text


if __name__ == "__main__":
    collect(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
    for each in PAGES:
        storage.write_bytes(each, fill(each.read_text(), each).encode())
