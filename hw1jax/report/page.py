"""The page that a run leaves behind, `report.html` in one self-contained file, and figures/*.png."""

import base64
import struct
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from hw1jax import storage
from hw1jax.core import tracebacks
from hw1jax.report import comparison, network, sections, trials
from hw1jax.report.html import Figure, Item, Markup, duration, escape, number, score, theirs, words
from hw1jax.results import evaluation
from hw1jax.results.results import Results, load_results, study_of
from hw1jax.search.study import Reference, Study, halving_settings

Section = tuple[str, Sequence[Item]]  # heading, content
OUT_OF_FOLD = "Confusion matrix, out of fold"
BEFORE = "Where the time went"  # what a study adds comes before this heading


@tracebacks.short
def write_report(folder: Path | str, study: Study) -> Path:
    """Draws the figures of a run and writes its page, from what is on disk alone.

    Args:
      folder: with results.json, trials.csv, histories.npz and model.msgpack of a finished run.
      study: whose run it was.

    Returns:
      The path of report.html.

    Raises:
      ValueError: a file is missing or damaged, or the data are not those of the run; the message is one line.
    """
    from hw1jax.report import drawing

    folder = Path(folder)
    results = load_results(folder, study)
    content = _sections(results)
    pngs = {}
    for figure in _figures(content):
        file = folder / "figures" / f"{figure.name}.png"
        try:
            with drawing.style():
                pngs[figure.name] = drawing.png(figure.draw())
        except Exception:  # somebody's own, perhaps: it costs this figure, not the page
            file.unlink(missing_ok=True)
        else:
            storage.write_bytes(file, pngs[figure.name])
    path = folder / "report.html"
    body = _study_html(results, content, pngs, level=1)
    storage.write_bytes(path, _page(results.record["title"], body).encode())
    return path


def write_overview(
    folder: Path | str, studies: Mapping[str, Study], run_folders: Sequence[Path], failures: Mapping[str, str]
) -> Path:
    """Writes one page over several studies.

    Figures that `write_report` has drawn are taken as they are; a run without them is drawn first.

    Args:
      folder: of the page.
      studies: all of them, by name.
      run_folders: of the runs that have ended.
      failures: {study's name: why it failed}. Studies that neither ended nor failed are said not to have run yet.

    Returns:
      The path of report.html.
    """
    titles = {name: study.shown for name, study in studies.items()}
    shown: dict[str, tuple[dict[str, Any], Markup]] = {}
    problems = dict(failures)
    for run_folder in run_folders:
        try:
            study = study_of(run_folder, studies)
            results = load_results(run_folder, study)
            content = _sections(results)
            pngs = _read_pngs(run_folder, study, _figures(content))
        except ValueError as error:
            problems.setdefault(run_folder.name, str(error))
            continue
        titles[study.name] = results.record["title"]
        shown[study.name] = results.record, _study_html(results, content, pngs, level=2)
    references = [study.reference for study in studies.values() if study.reference]
    parts, links, others = [], [], []
    for name in [*titles, *(name for name in problems if name not in titles)]:
        title = titles.get(name, name)
        links.append(f'<li><a href="#{escape(name)}">{escape(title)}</a></li>')
        if name in problems:
            parts.append(f'<p class="notice"><strong>{escape(title)} failed.</strong> {escape(problems[name])}</p>')
        if name in shown:
            parts.append(shown[name][1])
        else:
            others.append((title, "failed" if name in problems else "has not run yet"))
            parts.append(f'<h2 id="{escape(name)}">{escape(title)}</h2><p>This study {others[-1][1]}.</p>')
    body = f"<h1>hw1jax: results</h1>{_introduction(references)}<nav><ul>{''.join(links)}</ul></nav>"
    ended = [(record["title"], record) for record, _ in shown.values()]
    body += comparison.headlines(ended, others=others) + "".join(parts) + _notes(references)
    path = Path(folder) / "report.html"
    storage.write_bytes(path, _page("hw1jax: results", body).encode())
    return path


@tracebacks.short
def write_comparison(folders: Sequence[Path | str], out: Path | str) -> Path:
    """Writes one page over runs side by side, of one study or of several: scores, settings that differ, curves.

    It needs nothing but the runs' folders. Losses of runs on other data, or with other folds, are shown beside each
    other as well: the page says where these differ.

    Args:
      folders: of finished runs.
      out: the file of the page.

    Returns:
      Its path.

    Raises:
      ValueError: fewer than two folders, one twice, or a file is missing or damaged; the message is one line.
    """
    from hw1jax.report import drawing

    if len(folders) < 2:
        raise ValueError("a comparison needs the folders of at least two runs")
    runs, out = comparison.read_runs(folders), Path(out)
    links, parts = [], []
    for heading, content in comparison.sections(runs):
        anchor = heading.lower().replace(" ", "-")
        links.append(f'<li><a href="#{anchor}">{escape(heading)}</a></li>')
        with drawing.style():
            pngs = {item.name: drawing.png(item.draw()) for item in content if isinstance(item, Figure)}
        parts.append(_section_html(heading, anchor, content, pngs, level=2))
    body = f"<h1>{len(runs)} runs side by side</h1><nav><ul>{''.join(links)}</ul></nav>{''.join(parts)}"
    out.parent.mkdir(parents=True, exist_ok=True)
    storage.write_bytes(out, _page(f"hw1jax: {len(runs)} runs side by side", body).encode())
    return out


def _read_pngs(folder: Path, study: Study, figures: Sequence[Figure]) -> dict[str, bytes]:
    paths = {figure.name: folder / "figures" / f"{figure.name}.png" for figure in figures}
    ended = (folder / "results.json").stat().st_mtime
    if not all(path.exists() and path.stat().st_mtime >= ended for path in paths.values()):
        write_report(folder, study)
    return {name: path.read_bytes() for name, path in paths.items() if path.exists()}


# What a study's page shows


def _sections(results: Results) -> list[Section]:
    """Headings, tables and figures of a study, in the order of the page."""
    with jax.default_matmul_precision(results.record["config"]["precision"]):
        missing = [Markup(f'<p class="notice">{escape(results.failure)}.</p>')] if results.failure else []
        makers = {
            "Summary": [],  # a study's own
            "Hyperparameters": [sections.hyperparameters, sections.repeats],
            "Data": [sections.data],
            "Learning": [sections.learning],
            "Test set": [sections.test_set],
            "Ensemble of the search": [sections.search_ensemble],
            OUT_OF_FOLD: [] if results.data.has_test_set else [sections.classification],
            "All trials": [trials.all_trials],
            "What matters": [trials.what_matters],
            "Inside the network": [network.weights],
        }
        last = {BEFORE: [sections.timing], "How to repeat it": [sections.repeat]}
        makers |= {name: own for name, own in results.study.sections.items() if name not in last}
        makers |= {name: results.study.sections.get(name, default) for name, default in last.items()}
        found: list[Section] = []
        if not (results.test or results.ensemble):
            del makers["Test set"]
        for heading, functions in makers.items():
            empty = heading == "Test set" or (heading == "Inside the network" and results.model is None)
            found.append((heading, missing if missing and empty else _items(functions, results)))
        return [(heading, items) for heading, items in found if items]


def _items(functions: Sequence[Any], results: Results) -> list[Item]:
    """The items that a heading's functions return; a function that fails becomes a line of text."""
    content: list[Item] = []
    for function in functions:
        try:
            items = function(results)
        except Exception as error:  # somebody's own, perhaps: it costs this section, not the page
            name, reason = getattr(function, "__name__", "a section"), " ".join(str(error).split())
            items = f"{name} could not be shown: {type(error).__name__}: {reason}"
        content += [items] if isinstance(items, Figure | str) else items
    return content


def _figures(content: Sequence[Section]) -> list[Figure]:
    """All figures; a ValueError where two would have the same file."""
    figures = [item for _, items in content for item in items if isinstance(item, Figure)]
    names = [figure.name for figure in figures]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"sections: two figures are called {name!r}")
    return figures


# Tables


def _cards(results: Results) -> Markup:
    """The numbers that count, of one study, the reference's beside them."""
    best, test, reference = results.record["best"], results.test, results.record["reference"]

    def beside(name: str) -> str:
        if not reference:
            return ""
        other = results.study.reference.data if results.study.reference else ""
        whose = f"{reference['name']} on {other}" if other else reference["name"]
        return f"{escape(whose)}: {theirs(name, reference['test'])}"

    folds = results.trials.folds["loss"][results.row]
    notes, cards, names = [escape(results.study.loss_name), beside("loss")], [], []
    if tested := test or results.ensemble:
        has_accuracy = tested["accuracy"] is not None
        names = ["accuracy"] * has_accuracy + [n for n in results.study.metrics if n != "accuracy"]
    if test:
        cards = [("test loss", number(test["loss"]), "; ".join(filter(None, notes)))]
        cards += [(f"test {words(name)}", score(name, test[name]), beside(name)) for name in names]
    if results.ensemble:
        of = f"ensemble of the {results.num_folds} fold models"
        ensemble, loss = results.ensemble["loss"], test["loss"] if test else None
        refit_fails = (
            loss is not None and ensemble is not None and ensemble < loss and evaluation.is_far_above(loss, folds)
        )
        of += ", better than the refit by more than its folds differ" if refit_fails else ""
        own = [(f"ensemble&rsquo;s test {words(n)}", score(n, results.ensemble[n]), of) for n in ("loss", *names)]
        cards = [*own, *cards] if refit_fails else [*cards, *own]
    elif results.classified and not test:
        right = score("accuracy", results.classified.accuracy)
        cards.append(("accuracy out of fold", right, f"trial {number(best['number'], '{}')}"))
    for name in ("loss", *results.study.metrics):
        std = f"± {score(name, best[f'std_val_{name}'])} over the folds, trial {number(best['number'], '{}')}"
        cards.append((f"validation {words(name)}", score(name, best[f"mean_val_{name}"]), std))
    counts = {state: number(count, "{}") for state, count in results.record["trials"].items()}
    pruned = f", {counts['pruned']} pruned" if results.record["trials"]["pruned"] else ""
    cards.append(("trials", counts["complete"], f"complete{pruned}, {counts['failed']} failed"))
    begin = "when it was resumed" if results.record["timing"].get("resumed") else "start"
    cards.append(("time", duration(results.record["timing"]["total_seconds"]), f"from {begin} to results"))
    items = (f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in cards)
    return Markup(f'<dl class="cards">{"".join(items)}</dl>')


def _smaller(results: Results) -> str:
    """A sentence on how the run's amount of work differs from the study's, which has a reference; or nothing."""
    config, study = results.record["config"], results.study
    names = ("num_trials", "num_epochs", "batch_size", "averaging", *(["num_folds"] if study.folds is None else []))
    own = {name: getattr(study, name) for name in names} | {"halving": halving_settings(study.halving)["halving"]}
    other = [
        f"{words(n)} {config[n] or 'none'} instead of {value or 'none'}"
        for n, value in own.items()
        if config[n] != value and n not in study.space
    ]
    return f"Not the study's amount of work: {', '.join(other)}." if other and study.reference else ""


def _introduction(references: Sequence[Reference], results: Results | None = None) -> Markup:
    """A sentence on what a run is, of several studies or of one, and on who the references are."""
    text, then = "A hyperparameter search with cross-validation", "has then looked at the test set once"
    if results is None or results.test:
        text += f"; the best trial, trained again on all training data, {then}"
    elif results.ensemble:
        text += f"; the ensemble of the best trial's fold models {then}"
    elif results.record["refit"]["state"] != "skipped":
        text += "; then the best trial was trained again on all training data"
    about = {r.name: r.about for r in references if r.about}
    who = "".join(f" &ldquo;{escape(name[:1].upper() + name[1:])}&rdquo; is {escape(a)}." for name, a in about.items())
    return Markup(f"<p>{text}.{who}</p>")


def _notes(references: Sequence[Reference]) -> Markup:
    """The notes of the references: where they and this project differ."""
    parts = []
    for name in dict.fromkeys(r.name for r in references if r.notes):
        notes = dict.fromkeys(note for r in references if r.name == name for note in r.notes)
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        parts.append(f"<h2>{escape(f'Where {name} and this project differ')}</h2><ul>{items}</ul>")
    return Markup("".join(parts))


# HTML


def _study_html(results: Results, content: Sequence[Section], pngs: dict[str, bytes], *, level: int) -> Markup:
    """A study's part of a page, its title a heading of this level."""
    name, parts = results.study.name, []
    references = [results.study.reference] if results.study.reference else []
    anchors = {heading: escape(f"{name}-{heading.lower().replace(' ', '-')}") for heading, _ in content}
    links = "".join(f'<li><a href="#{anchor}">{escape(heading)}</a></li>' for heading, anchor in anchors.items())
    parts.append(f'<h{level} id="{name}">{escape(results.record["title"])}</h{level}>')
    if level == 1:
        parts.append(_introduction(references, results))
    if smaller := _smaller(results):
        parts.append(f'<p class="notice">{escape(smaller)}</p>')
    if results.stopped:
        parts.append(f'<p class="notice">The search was {escape(results.stopped)}.</p>')
    if results.failure:
        what = "No test loss" if results.test else "No model"
        parts.append(f'<p class="notice"><strong>{what}:</strong> {escape(results.failure)}.</p>')
    if results.warning:
        notice = f"<strong>The model is not what its folds are:</strong> {escape(results.warning)}."
        parts.append(f'<p class="notice">{notice}</p>')
    parts.append(_cards(results))
    parts.append(f"<nav><ul>{links}</ul></nav>")
    for heading, items in content:
        parts.append(_section_html(heading, anchors[heading], items, pngs, level=level + 1))
    if level == 1:
        parts.append(_notes(references))
    return Markup("".join(parts))


def _section_html(heading: str, anchor: str, content: Sequence[Item], pngs: dict[str, bytes], *, level: int) -> str:
    items = [_item_html(item, pngs) for item in content]
    return f'<h{level} id="{anchor}">{escape(heading)}</h{level}><div class="items">{"".join(items)}</div>'


def _item_html(item: Item, pngs: dict[str, bytes]) -> str:
    if not isinstance(item, Figure):
        return _text(item)
    if item.name not in pngs:
        return _text(f"The figure {item.name} could not be drawn.")
    return _image(item, pngs[item.name])


def _text(item: str) -> str:
    return f"<div>{item}</div>" if isinstance(item, Markup) else f"<div><p>{escape(item)}</p></div>"


def _image(figure: Figure, png: bytes) -> str:
    width, height = struct.unpack(">2I", png[16:24])  # of the PNG's header
    data = base64.b64encode(png).decode()
    return (
        f'<figure><div class="scroll" tabindex="0"><img alt="{escape(figure.alt)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}"></div><figcaption>{escape(figure.caption)}</figcaption></figure>'
    )


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>\n{_css()}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def _css() -> str:
    return resources.files("hw1jax.report").joinpath("page.css").read_text(encoding="utf-8")
