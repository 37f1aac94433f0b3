"""The page that a run leaves behind, `report.html` in one self-contained file, and figures/*.png."""

import base64
import html
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hw1jax import evaluation, figures, inspection, plots, storage, studies
from hw1jax.figures import Picture, words
from hw1jax.inspection import Run


class Markup(str):
    """Text that is HTML already; any other is escaped."""


Section = tuple[str, Sequence[Picture | Markup]]  # heading, content


def write(folder: Path) -> Path:
    """Draws the figures of a run and writes its page, from what is on disk alone.

    Args:
      folder: with results.json, trials.csv, histories.npz and model.msgpack of a finished run.

    Returns:
      The path of report.html.

    Raises:
      ValueError: a file is missing or damaged, or the data are not those of the run; the message is one line.
    """
    with storage.results_lock(folder):
        return _write(folder)


def _write(folder: Path) -> Path:
    run = inspection.read_run(folder)
    precision = run.results["config"].get("precision", "float32")
    if precision not in ("float32", "tensorfloat32", "bfloat16"):
        raise ValueError(f"{folder / 'results.json'} is damaged (there is no such precision): repeat the run's command")
    with jax.default_matmul_precision(precision):
        return _draw(folder, run)


def _draw(folder: Path, run: Run) -> Path:
    sections = _sections(run)
    pngs = {}
    for _, items in sections:
        for picture in items:
            if isinstance(picture, Picture):
                with plots.style():
                    pngs[picture.name] = plots.png(picture.draw())
                storage.write_bytes(folder / "figures" / f"{picture.name}.png", pngs[picture.name])
    path = folder / "report.html"
    body = _study_html(run, sections, pngs, level=1)
    storage.write_bytes(path, _page(run.results["title"], body).encode())
    return path


def write_overview(folder: Path, run_folders: Sequence[Path], failures: dict[str, str]) -> Path:
    """Writes one page over several studies.

    Figures that `write` has drawn are taken as they are; a run without them is drawn first.

    Args:
      folder: of the page.
      run_folders: of the runs that have ended.
      failures: {study name: why it failed}. Studies that neither ended nor failed are said not to have run yet.

    Returns:
      The path of report.html.
    """
    titles = {study.name: study.title for study in studies.STUDIES}
    shown: dict[str, tuple[dict[str, Any], Markup]] = {}
    problems = dict(failures)
    for run_folder in run_folders:
        try:
            run = inspection.read_run(run_folder)
            sections = _sections(run)
            pngs = _read_pngs(run_folder, sections)
        except ValueError as error:
            problems.setdefault(run_folder.name, str(error))
            continue
        titles[run.study.name] = run.results["title"]
        shown[run.study.name] = run.results, _study_html(run, sections, pngs, level=2)
    parts, links, others = [], [], {}
    for name in [*titles, *(name for name in problems if name not in titles)]:
        title = titles.get(name, name)
        links.append(f'<li><a href="#{_e(name)}">{_e(title)}</a></li>')
        if name in problems:
            parts.append(f'<p class="notice"><strong>{_e(title)} failed.</strong> {_e(problems[name])}</p>')
        if name in shown:
            parts.append(shown[name][1])
        else:
            others[title] = "failed" if name in problems else "has not run yet"
            parts.append(f'<h2 id="{_e(name)}">{_e(title)}</h2><p>This study {others[title]}.</p>')
    links.append('<li><a href="#differences">Where the report and this project differ</a></li>')
    body = f"<h1>hw1jax: results</h1>{_INTRODUCTION}<nav><ul>{''.join(links)}</ul></nav>"
    body += _headlines([results for results, _ in shown.values()], others) + "".join(parts) + _differences()
    path = folder / "report.html"
    storage.write_bytes(path, _page("hw1jax: results", body).encode())
    return path


def _read_pngs(folder: Path, sections: list[Section]) -> dict[str, bytes]:
    names = [item.name for _, items in sections for item in items if isinstance(item, Picture)]
    paths = {name: folder / "figures" / f"{name}.png" for name in names}
    ended = (folder / "results.json").stat().st_mtime
    if not all(path.exists() and path.stat().st_mtime >= ended for path in paths.values()):
        write(folder)
    return {name: path.read_bytes() for name, path in paths.items()}


# What a study's page shows


def _sections(run: Run) -> list[Section]:
    """Headings, tables and figures of a study, in the order of the page."""
    classes_or_errors = _classes_table if run.study.classes else _errors_table
    missing = [Markup(f'<p class="notice">{_e(run.failure)}.</p>')] if run.failure else []
    return [
        ("Hyperparameters", [_hyperparameters(run.results)]),
        ("Data", [figures.data(run)]),
        ("Learning", figures.learning(run)),
        ("Test set", missing or [*figures.test_set(run), classes_or_errors(run)]),
        ("All trials", [*figures.search(run), _trials_table(run)]),
        ("Inside the network", figures.network(run) or missing),
        ("Where the time went", [figures.timing(run)]),
        ("How to repeat it", [_repeat(run.results)]),
    ]


# Tables


def _headlines(all_results: Iterable[dict[str, Any]], others: dict[str, str]) -> Markup:
    """The numbers that count, a row a study, the report's beside them; others: {title: why there are no numbers}."""
    rows = []
    for r in all_results:
        accuracy, reported = r["test"]["accuracy"], r["reported"]["test_accuracy"]
        rows.append(
            [
                r["title"],
                _number(r["test"]["loss"]),
                _number(r["reported"]["test_loss"], "{:.2f}"),
                "-" if accuracy is None else _number(accuracy, "{:.1%}"),
                "-" if reported is None else _number(reported, "{:.0%}"),
                Markup(f"{_number(r['best']['mean_val_loss'])} ± {_number(r['best']['std_val_loss'])}"),
                Markup(f"{_number(r['trials']['complete'], '{}')} + {_number(r['trials']['failed'], '{}')} failed"),
                _number(r["timing"]["total_seconds"], "{:.0f} s"),
            ]
        )
    rows += [[title, why, *["-"] * 6] for title, why in others.items()]
    headings = ["study", "test loss", "report's test loss", "accuracy", "report's accuracy"]
    return _table([*headings, "validation loss", "trials", "time"], rows)


def _cards(results: dict[str, Any], loss_name: str) -> Markup:
    """The numbers that count, of one study, the report's beside them."""
    best, test, reported = results["best"], results["test"], results["reported"]
    beside = f"{loss_name}; the report: {_number(reported['test_loss'], '{:.2f}')}"
    cards = [("test loss", _number(test["loss"]), beside)]
    if test["accuracy"] is not None and reported["test_accuracy"] is not None:
        beside = f"the report: {_number(reported['test_accuracy'], '{:.0%}')}"
        cards.append(("test accuracy", _number(test["accuracy"], "{:.1%}"), beside))
    spread = f"± {_number(best['std_val_loss'])} over the folds, trial {_number(best['number'], '{}')}"
    cards.append(("validation loss", _number(best["mean_val_loss"]), spread))
    counts = [_number(results["trials"][name], "{}") for name in ("complete", "failed")]
    cards.append(("trials", counts[0], f"complete, {counts[1]} failed"))
    cards.append(("time", _number(results["timing"]["total_seconds"], "{:.0f} s"), "from start to results"))
    items = (f"<div><dt>{name}</dt><dd>{number}<small>{beside}</small></dd></div>" for name, number, beside in cards)
    return Markup(f'<dl class="cards">{"".join(items)}</dl>')


def _hyperparameters(results: dict[str, Any]) -> Markup:
    """Ranges and best values, the report's beside them."""
    best, reported = (inspection.by_column(results[name]["params"]) for name in ("best", "reported"))
    choices, rows = inspection.choices(results["config"]), []
    for name, value in best.items():
        among = ", ".join(choices[name]) if name == "optimizer" else "{:g} - {:g}".format(*choices[name])
        if name in ("learning_rate", "l2"):
            among += ", log scale"
        rows.append([words(name), among, _value(reported.get(name)), _value(value)])
    return _table(["hyperparameter", "range", "the report's best", "best of this run"], rows)


def _errors_table(run: Run) -> Markup:
    rows = [[name, count, _number(error)] for name, (count, error) in figures.errors_by_part(run).items()]
    return _table(["part of the test set", "points", run.study.loss_name], rows)


def _classes_table(run: Run) -> Markup:
    confusion = evaluation.confusion_matrix(run.histories["test_outputs"], run.data.y_test)
    counts, (precision, recall) = confusion.sum(axis=1), evaluation.precision_and_recall(confusion)
    numbers = zip(run.study.classes or (), counts.tolist(), precision.tolist(), recall.tolist(), strict=True)
    rows = [[name, count, _number(p), _number(r)] for name, count, p, r in numbers]
    return _table(["class", "test images", "precision", "recall"], rows)


def _trials_table(run: Run) -> Markup:
    rows = []
    for i in np.argsort(run.trials.ranks, kind="stable"):
        cells = [_value(_parsed(text)) for text in run.trials.rows[i].values()]
        rows.append([Markup(f"<strong>{_cell(cell)}</strong>") for cell in cells] if i == run.best else cells)
    return _table([words(name) for name in run.trials.rows[0]], rows, caption="All trials, the best first")


def _repeat(results: dict[str, Any]) -> Markup:
    """The command, the settings, and on what it ran."""
    config = {words(name): _setting(value) for name, value in results["config"].items()}
    inputs = {words(name): value for name, value in (results.get("inputs") or {}).items() if value}
    environment = {words(name): _setting(value) for name, value in results["environment"].items()}
    settings, environment = (list(map(list, pairs.items())) for pairs in (config | inputs, environment))
    return Markup(
        f"<p>From the root of the checkout:</p><pre><code>{_e(results['command'])}</code></pre>"
        f"{_table(['setting', 'value'], settings, caption='Settings')}"
        f"{_table(['what', 'value'], environment, caption='Environment')}"
    )


def _smaller(run: Run) -> str:
    """Says how the run differs from the report's amount of work; empty where it does not."""
    config, usual = run.results["config"], run.study.settings
    names = ("num_trials", "num_folds", "num_epochs", "batch_size")
    other = [f"{words(n)} {config[n]} instead of {getattr(usual, n)}" for n in names if config[n] != getattr(usual, n)]
    return f"Not the report's amount of work: {', '.join(other)}." if other else ""


_INTRODUCTION = (
    "<p>A hyperparameter search with cross-validation; the best trial, trained again on all training data, has then "
    "looked at the test set once. &ldquo;The report&rdquo; is the homework report that hw1jax reimplements.</p>"
)


def _differences() -> Markup:
    return Markup(
        '<h2 id="differences">Where the report and this project differ</h2><ul>'
        "<li>The report prints a sum of squares for what is a mean; losses here are means over the examples.</li>"
        "<li>Its tables list activations on the rows of the inputs; here an activation follows a hidden layer.</li>"
        "<li>Its learning profiles plot the test loss of each epoch. Here the test set is looked at once, by the "
        "refitted best trial; profiles show the training and validation losses of the best trial's folds and the "
        "refit's training loss.</li>"
        "<li>Its table of the convolutional net names no pooling, but its activation profile of the second convolution "
        "is 11 x 11, which only 2 x 2 max-pooling after each convolution gives (28, 27, 13, 11, 5).</li></ul>"
    )


# HTML


def _study_html(run: Run, sections: list[Section], pngs: dict[str, bytes], *, level: int) -> Markup:
    """A study's part of a page, its title a heading of this level."""
    name, parts = run.study.name, []
    anchors = {heading: f"{name}-{heading.lower().replace(' ', '-')}" for heading, _ in sections}
    links = "".join(f'<li><a href="#{anchor}">{_e(heading)}</a></li>' for heading, anchor in anchors.items())
    parts.append(f'<h{level} id="{name}">{_e(run.results["title"])}</h{level}>{_INTRODUCTION if level == 1 else ""}')
    if smaller := _smaller(run):
        parts.append(f'<p class="notice">{_e(smaller)}</p>')
    if run.failure:
        parts.append(f'<p class="notice"><strong>No test loss:</strong> {_e(run.failure)}.</p>')
    parts.append(_cards(run.results, run.study.loss_name))
    parts.append(f"<nav><ul>{links}</ul></nav>")
    for heading, items in sections:
        parts.append(f'<h{level + 1} id="{anchors[heading]}">{_e(heading)}</h{level + 1}><div class="items">')
        for item in items:
            parts.append(_image(item, pngs[item.name]) if isinstance(item, Picture) else f"<div>{item}</div>")
        parts.append("</div>")
    if level == 1:
        parts.append(_differences())
    return Markup("".join(parts))


def _image(picture: Picture, png: bytes) -> str:
    width, height = struct.unpack(">2I", png[16:24])  # of the PNG's header
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{_e(picture.alt)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_e(picture.caption)}</figcaption></figure>"
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "") -> Markup:
    head = "".join(f'<th scope="col">{_e(heading)}</th>' for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    above = f"<caption>{_e(caption)}</caption>" if caption else ""
    kind = "pairs" if len(headings) == 2 else "wide" if len(headings) > 5 else "small"
    return Markup(
        f'<div class="scroll" tabindex="0"><table class="{kind}">{above}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    return value if isinstance(value, Markup) else _e(str(value))


def _number(value: float | None, form: str = "{:.3f}") -> Markup:
    """A number as people read it, and exactly for programs; a loss that is missing is not finite."""
    if value is None:
        return Markup("none")
    if form == "{:.3f}" and abs(value) >= 1e6:
        form = "{:.4g}"
    return Markup(f'<data value="{_e(repr(value))}">{_e(form.format(value))}</data>')


def _value(value: Any) -> Any:
    if value is None:
        return "-"
    return _number(value, "{:.4g}") if isinstance(value, float) else value


def _parsed(text: str) -> Any:
    """A cell of trials.csv as a float where it is one that is not whole."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text


def _setting(value: Any) -> str:
    """A setting as a line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{words(name)} {_setting(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        ranges = all(isinstance(inner, list) for inner in value)
        numbers = all(isinstance(inner, int | float) for inner in value)
        return (", " if ranges or not numbers else " - ").join(map(_setting, value))
    return "-" if value is None else str(value)


def _e(text: str) -> str:
    return html.escape(text, quote=True)


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<link rel="icon" href="data:,"><title>{_e(title)}</title><style>{_STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


_STYLE = """
:root { --ink: #1b1d21; --soft: #5b616b; --paper: #fff; --card: #f4f5f7; --line: #d9dce1; --link: #0a58a8;
  --notice: #fff4e0; --edge: #d98200; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --soft: #a3a9b4; --paper: #15171b; --card: #1f2227;
  --line: #363b44; --link: #7ab8ff; --notice: #33270f; --edge: #d98200; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 100rem; margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 3rem) 4rem; overflow-wrap: anywhere; }
h1, h2, h3, h4 { line-height: 1.2; margin: 2rem 0 .75rem; }
h1 { font-size: 1.9rem; margin-top: 1rem; }
h2 { font-size: 1.5rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; margin-top: 3rem; }
p, li, figcaption { max-width: 46rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: 1rem 0; }
.items { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1.25rem; }
.items > div { min-width: 0; grid-column: 1 / -1; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10rem), 1fr)); gap: .75rem;
  margin: 1rem 0; max-width: 80rem; }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; }
.cards dt { color: var(--soft); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.6rem; font-weight: 600; line-height: 1.25; }
.cards small { display: block; color: var(--soft); font-size: .85rem; font-weight: 400; }
figure { margin: 0; min-width: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .6rem; align-self: start; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .9rem; padding: .5rem .2rem 0; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem; overflow-x: auto; }
.notice { background: var(--notice); border-left: 4px solid var(--edge); padding: .6rem .9rem; white-space: pre-wrap; }
caption { text-align: left; font-weight: 600; padding: .6rem 0 .2rem; }
.wide td { white-space: nowrap; }
.wide th, .wide td { font-size: .85rem; padding-right: .7rem; }
.pairs td { overflow-wrap: anywhere; }
.pairs td:first-child { overflow-wrap: normal; }
@media print { :root { --ink: #000; --soft: #333; --paper: #fff; --card: #fff; --line: #bbb; --link: #000;
  --notice: #fff; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } nav { display: none; }
  .items { display: block; } figure { break-inside: avoid; margin: 0 0 1rem; max-width: 6.5in; border: 0; padding: 0; }
  h2, h3, h4 { break-after: avoid; } tr { break-inside: avoid; } .scroll { overflow: visible; }
  table { font-size: 7.5pt; } th, td, .wide th, .wide td { font-size: 7.5pt; padding-right: .4rem; }
  .cards { grid-template-columns: repeat(5, 1fr); } .cards dd { font-size: 1.2rem; } }
"""
