"""The report page: its numbers are those of the run; it is self-contained and contains no script."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import regression
from studies import DRAWS, HALVING, LINE, SMALL, STATES, TOY_DATA, TOY_X, change_record, fake_images, write_run

from hw1jax import report, storage
from hw1jax.report import classes, drawing, sections, trials, write_comparison, write_overview, write_report
from hw1jax.report.html import Figure, Markup, grid
from hw1jax.results import evaluation
from hw1jax.results.results import load_results
from hw1jax.results.run_folder import read_record, write_digests
from hw1jax.results.trials import Trials
from hw1jax.search.space import Choice, Float, Int
from hw1jax.search.study import Halving, Reference

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'


def takes_a_dict(fixed):
    """The line's task, which takes one of its two inputs."""
    task = LINE.task(fixed)
    return task._replace(apply=lambda params, x, h: task.apply(params, x["a"], h | fixed))


def greeting(results):
    """A section of the study's own, an item of each kind."""

    def draw(ax):
        ax.plot(results.trials.means["distance"])

    picture = Figure("own", "A line that I drew", "Own.", grid([draw], 1, height=1))
    return ["<plain & escaped>", Markup("<em>markup</em>"), picture]


OWN = replace(
    LINE,
    name="own",
    title="",
    task=takes_a_dict,
    data=TOY_DATA._replace(x_train={"a": TOY_X[:61], "b": TOY_X[:61]}, x_test={"a": TOY_X[61:], "b": TOY_X[61:]}),
    space={
        "rate": Float(0.1, 1.0),
        "factor": Choice(0.5, 1, 2),
        "decay": Choice(True, False),
        "units": Int(1, 2, static=True),
    },
    metrics={
        "distance": lambda outputs, y: jnp.abs(outputs - y)[:, 0],
        "high": lambda outputs, y: outputs[:, 0] > 0,
    },
    minimize="distance",
    num_folds=2,
    sections={"Greetings": [greeting], "Data": [lambda results: "only this"], "Where the time went": []},
)
NARROW = {
    name: tuple(Int(n, n, width=True) for n in DRAWS["fashion_cnn"][name]) for name in ("channels", "hidden_units")
}
CNN = SMALL["fashion_cnn"]  # with the network of `make_model`, on as few images as in `examples`
CNN = replace(CNN, space=CNN.space | NARROW, data=lambda **_: fake_images(num_test=7))
STUDIES = {"regression": HALVING, "fashion_mlp": SMALL["fashion_mlp"], "fashion_cnn": CNN}
ALL = STUDIES | {"own": OWN}
RUNS = {
    "regression": (STATES, (2, 6, 2, 2, 6)),
    "fashion_cnn": (("complete", "failed", "complete"), (2, 2, 2)),
    "own": (("complete",) * 4, (3,) * 4),
}
SEARCH = {"learning_profile", "validation_curves", "trial_scores", "slices", "weights"}
FIGURES = {
    "regression": SEARCH | {"data", "fitted_curve", "test_errors", "activations", "rungs", "learning_rate_l2", "time"},
    "fashion_cnn": SEARCH | {"classes", "confusion", "precision_recall", "calibration", "mistakes", "feature_maps"}
    | {"receptive_fields_conv1", "receptive_fields_conv2", "learning_rate_l2", "time"},
    "own": SEARCH | {"distance_by_epoch", "high_by_epoch", "own"},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Coarse figures whose parts may lie on each other: to lay them out takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "DOTS_PER_INCH", 30)
        patch.setattr(drawing.Drawing, "set_layout_engine", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, coarse):
    """A run of each of RUNS, its page written; they are read only."""
    folder = tmp_path_factory.mktemp("runs")
    for name, asked in RUNS.items():
        write_report(write_run(folder / name, ALL[name], *asked), ALL[name])
    return folder


@pytest.fixture
def copied(runs, tmp_path):
    """A function that copies a run of this name, with its page, to be changed."""
    return lambda name: Path(shutil.copytree(runs / name, tmp_path / name))


@pytest.fixture
def blank(monkeypatch):
    """Where the figures don't matter: none is rendered; the list grows with each that would have been."""
    rendered: list[drawing.Drawing] = []
    content = drawing.png(drawing.figure(height=1)[0])
    monkeypatch.setattr(drawing, "png", lambda figure: rendered.append(figure) or content)
    return rendered


class Page(HTMLParser):
    """What is in a page; tags must be closed in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.values: list[str] = []
        self.text, self._open = "", []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "data":
            self.values.append(dict(attributes)["value"])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize("name", RUNS)
def test_the_page_is_whole_and_needs_nothing_from_elsewhere(runs, name):
    path = runs / name / "report.html"
    page, text = Page(path), path.read_text(encoding="utf-8")
    assert not page.all("script") and not page.all("iframe") and not page.all("object")
    for _, attributes in page.tags:
        assert not any(attribute.startswith("on") for attribute in attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style and "default-src 'none'" in text
    places = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(places)) == len(places) and {link["href"][1:] for link in page.all("a")} <= set(places)
    figures = {path.stem: path.read_bytes() for path in (runs / name / "figures").glob("*.png")}
    assert figures.keys() == FIGURES[name]
    sources = [image["src"].removeprefix("data:image/png;base64,") for image in page.all("img")]
    shown = [base64.b64decode(source, validate=True) for source in sources]
    assert sorted(shown) == sorted(figures.values()) and all(content.startswith(b"\x89PNG") for content in shown)
    alternatives = [image["alt"] for image in page.all("img")]
    assert all(len(text) > 15 for text in alternatives) and len(set(alternatives)) == len(alternatives)


@pytest.mark.parametrize("name", ["regression", "fashion_cnn"])
def test_the_pages_numbers_are_those_of_the_results_beside_the_reports(runs, name):
    page, results = Page(runs / name / "report.html"), read_record(runs / name)
    best, test, theirs = results["best"], results["test"], results["reference"]["test"]
    numbers = [test["loss"], theirs["loss"], best["mean_val_loss"], best["std_val_loss"], best["number"]]
    numbers += [results["timing"]["total_seconds"], best["params"]["learning_rate"], *results["trials"].values()][:-1]
    if test["accuracy"] is not None:
        numbers += [test["accuracy"], theirs["accuracy"], results["ensemble"]["accuracy"]]
        numbers += evaluation.precision_and_recall(np.array(test["confusion"]))[1].tolist()
        assert f"{test['accuracy']:.1%}" in page.text
    assert {repr(number) for number in numbers if number} <= set(page.values)
    assert page.values.count(repr(results["ensemble"]["loss"])) >= 2  # a card and a table
    assert f"{test['loss']:.3f}" in page.text and results["command"] in page.text
    assert "ensemble of the 3 fold models" in page.text and "ensemble’s test loss" in page.text
    assert "the report's best" in page.text and "Where the report and this project differ" in page.text
    assert "“The report” is the homework report that hw1jax reproduces." in page.text
    assert ("to epoch" in page.text) == (name == "regression")


@pytest.mark.parametrize("name, state", [("regression", "diverged"), ("fashion_cnn", "complete")])
def test_a_run_without_a_test_loss_gets_a_page_that_says_why(name, state, copied, blank):
    folder = copied(name)
    refit = {"state": state, "failure": "too <large>", "warning": None, "train_loss": None, "folds_train_loss": 1.0}
    change_record(folder, test={"loss": None, "accuracy": None, "confusion": None}, refit=refit, ensemble=None)
    if state == "diverged":
        (folder / "model.msgpack").unlink()
        arrays = storage.read_arrays(folder / "histories.npz")
        wrong = {part: arrays[part] * np.nan for part in ("test_outputs", "refit_train_loss")}
        storage.write_arrays(folder / "histories.npz", arrays | wrong)
        write_digests(folder)
    for path in (write_report(folder, STUDIES[name]), write_overview(folder.parent, STUDIES, [folder], {})):
        text = path.read_text()
        assert "too &lt;large&gt;" in text and f'id="{name}' in text and ">None<" not in text
        assert ("Histograms" in text) == (state == "complete")
        assert "Confusion matrix" not in text and "The curve of the refitted" not in text


def test_notices_say_what_is_less_or_wrong_and_durations_are_as_people_say_them(copied, blank):
    folder, like = copied("regression"), replace(HALVING, num_trials=5, num_epochs=6, halving=Halving(3))
    page = Page(write_report(folder, replace(like, num_trials=25, averaging=0.9)))
    less = "trials 5 instead of 25, averaging none instead of 0.9"
    assert f"Not the study's amount of work: {less}." in page.text
    refit = read_record(folder)["refit"] | {"warning": "the refit ended <far> off"}
    page = Page(write_report(change_record(folder, ensemble=None, refit=refit), like))
    assert "amount of work" not in page.text and "ensemble" not in page.text
    assert "the refit ended <far> off." in page.text
    assert page.text.count("23 min 37 s") == 1 and "1416.9" in page.values  # the card; the figure is a picture
    alternatives = " ".join(image["alt"] for image in page.all("img"))
    assert "search (training and validation): 1 min 2 s" in alternatives


def test_errors_inside_and_outside_the_gaps_add_up_to_the_test_loss(runs):
    page, results = Page(runs / "regression" / "report.html"), load_results(runs / "regression", HALVING)
    inside = sections.inside_gaps(results.data.x_test[:, 0], ((-3, -1), (1.75, 3.1)))
    values = [float(value) for value in page.values]
    for part, tested in (("test", results.test), ("ensemble", results.ensemble)):
        squares = ((results.histories[f"{part}_outputs"] - results.data.y_test) ** 2)[:, 0]
        parts = [squares[inside].mean(), squares[~inside].mean()]
        assert all(np.isclose(values, part, rtol=1e-5).any() for part in parts)
        total = np.average(parts, weights=[inside.sum(), (~inside).sum()])
        assert total == pytest.approx(tested["loss"], rel=1e-5)


def test_own_data_have_no_gaps(runs, copied, tmp_path, blank):
    data, folder = regression.STUDY.data(), copied("regression")
    for part, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        rows = "".join(f"{a!r},{b!r}\n" for a, b in zip(x[:, 0].tolist(), y[:, 0].tolist(), strict=True))
        (tmp_path / f"{part}.csv").write_text("input,label\n" + rows)
    page = Page(runs / "regression" / "report.html")
    assert "inside the gaps" in page.text and "The shaded intervals hold no training input" in page.text
    change_record(folder, inputs={f"{part}_csv": str(tmp_path / f"{part}.csv") for part in ("train", "test")})
    page = Page(write_report(folder, HALVING))
    assert "inside the gaps" not in page.text and "part of the test set" not in page.text
    assert "The shaded intervals" not in page.text


def test_inside_gaps_are_the_open_intervals_and_classes_without_examples_have_no_first_one():
    x = np.array([-3, -2, -1, 0, 2, 5.0])
    np.testing.assert_array_equal(sections.inside_gaps(x, ((-3, -1), (1, 3))), [0, 1, 0, 0, 1, 0])
    assert not sections.inside_gaps(x, ()).any()
    assert classes.first_of_each_class(np.array([2, 0, 2, 0]), 4) == {0: 1, 2: 0}


def test_text_from_outside_shows_as_text(copied, runs, blank):
    folder = copied("regression")
    change_record(folder, title=EVIL, command=f"python {EVIL}", environment={"device": EVIL, EVIL: "x"},
                  inputs={"data_dir": EVIL})  # fmt: skip
    page = Page(write_report(folder, HALVING))
    assert page.text.count(EVIL) == 6  # page title, heading, command, both sides of the environment, input
    overview = write_overview(folder.parent, STUDIES, [folder], {"fashion_mlp": EVIL, EVIL: EVIL})
    assert Page(overview).text.count(EVIL) >= 6
    compared = write_comparison([folder, runs / "own"], folder / "side.html")
    for path in (folder / "report.html", overview, compared):
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text and "<img src=x" not in text


HOSTILE = r"a $\frac$ b [/s] " "\x1b[31m"


def test_names_that_look_like_formulas_or_escapes_are_drawn_and_written_as_they_are(tmp_path):
    names = tuple(f"{HOSTILE}{i}" for i in range(10))
    like = SMALL["fashion_mlp"]
    theirs = Reference(HOSTILE, test={"loss": 1.0}, about=HOSTILE, notes=(HOSTILE,))
    study = replace(like, title=HOSTILE, classes=names, loss_name=HOSTILE, reference=theirs)
    study = replace(study, space=like.space | {"kind": Choice(HOSTILE, "b")})
    page = Page(write_report(write_run(tmp_path / "run", study, ("complete",) * 3, (2,) * 3), study))
    assert "could not be" not in page.text and "\x1b" not in page.text
    shown = HOSTILE.replace("\x1b", r"\x1b")
    assert page.text.count(shown) > 20


# Trials


def named(items, name):
    """The one picture with this name."""
    [found] = [item for item in items if isinstance(item, Figure) and item.name == name]
    return found


def changed(results, **columns):
    """The results with other columns of trials."""
    trials = results.trials
    return results._replace(trials=Trials({**trials, **columns}, trials.rows, trials.params, trials.means))


def test_rungs_are_a_figure_and_a_table_and_no_trial_is_lost(runs):
    page, results = Page(runs / "regression" / "report.html"), load_results(runs / "regression", HALVING)
    [alternative] = [image["alt"] for image in page.all("img") if image["alt"].startswith("to epoch")]
    for rung in results.record["rungs"]:
        assert f"to epoch {rung['num_epochs']}: {rung['num_trials']} trials, " in alternative
        assert repr(rung["seconds"]) in page.values and f"to epoch {rung['num_epochs']}" in page.text
    ax = named(trials.all_trials(results), "rungs").draw().axes[0]
    assert sum(patch.get_width() for patch in ax.patches) == sum(r["num_trials"] for r in results.record["rungs"])
    ended = [patch.get_width() for bars in ax.containers for patch in bars if bars.get_label() in ("pruned", "failed")]
    assert sum(ended) == len(results.trials.rows) - results.trials.complete.sum()


def test_pruned_and_failed_trials_are_counted_shown_and_never_the_best(runs):
    page, results = Page(runs / "regression" / "report.html"), load_results(runs / "regression", HALVING)
    assert "complete, 2 pruned, 2 failed" in page.text and "Crosses: 2 failed" in page.text
    assert page.text.count("pruned after") == 2 and "A ring ends the line of a pruned one." in page.text
    table = page.text[page.text.index("All trials, the best first") :]
    assert table.count("failed in epoch") == 2 and table.index("failed in epoch") > table.rindex("pruned after")
    low = results.trials.means["loss"].copy()
    low[results.trials.pruned] = 0.001
    slices = named(trials.all_trials(changed(results, mean_val_loss=low)), "slices").draw().axes[0]
    assert slices.collections[-1].get_offsets()[0, 1] == pytest.approx(low[results.row])


def test_trials_that_never_learned_are_counted_pruned_ones_too(runs):
    results = load_results(runs / "regression", HALVING)
    constant = evaluation.constant_loss(results.task.loss, results.data.y_train)
    for low, text in ((2 * constant, "3 of 3 trials never learned"), (0.5 * constant, "All trials learned")):
        means = np.where(results.trials["state"] == "failed", np.nan, low)
        assert text in named(trials.all_trials(changed(results, mean_val_loss=means)), "trial_scores").caption


def test_where_no_constant_is_known_to_compare_with_the_median_is(runs):
    results = load_results(runs / "own", OWN)
    far = results.trials.means["distance"].copy()
    far[(results.row + 1) % len(far)] = 1e6
    results = changed(results, mean_val_distance=far)
    caption = named(trials.all_trials(results), "trial_scores").caption
    assert "Crosses: 0 failed, 1 beyond 5 times the median." in caption and "dashed line" not in caption
    highest = results._replace(study=replace(results.study, maximize="distance"))
    assert "Crosses" not in named(trials.all_trials(highest), "trial_scores").caption  # no value is too good
    far[results.row] = 1e9
    assert trials.on_one_scale(changed(results, mean_val_distance=far), "distance")[results.row], "always the best"


def test_hyperparameters_of_all_kinds_are_drawn(runs):
    rate, factor, decay, units = named(trials.all_trials(load_results(runs / "own", OWN)), "slices").draw().axes
    assert [ax.get_xlabel() for ax in (rate, factor, decay, units)] == ["rate", "factor", "decay", "units"]
    assert [tick.get_text() for tick in factor.get_xticklabels()] == ["0.5", "1", "2"]
    assert [tick.get_text() for tick in decay.get_xticklabels()] == ["True", "False"]
    assert rate.get_xscale() == units.get_xscale() == "linear"


def repeated(results, times: int):
    """Results with its trials several times, as if there were more; the copies' scores differ a little."""
    t = results.trials
    columns = {name: np.concatenate([column] * times) for name, column in t.items()}
    for name in t.means:
        columns[f"mean_val_{name}"] = columns[f"mean_val_{name}"] * np.repeat(1 + 0.01 * np.arange(times), len(t.rows))
    histories = results.histories | {"val_loss": np.concatenate([results.histories["val_loss"]] * times)}
    return results._replace(trials=Trials(columns, t.rows * times, t.params, t.means), histories=histories)


def test_what_matters_is_shown_where_there_are_trials_enough(runs, monkeypatch):
    few = load_results(runs / "own", OWN)
    assert trials.what_matters(few) == []
    lines, shares = trials.what_matters(repeated(few, 13))
    assert [lines.name, shares.name] == ["parallel_coordinates", "importances"]
    ax = lines.draw().axes[0]
    every = [line for line in ax.lines if len(line.get_xdata()) == len(few.trials.params) + 1]
    assert len(every) == 52 + 1  # the best once more
    places = np.array([line.get_ydata() for line in every])
    assert places.min() >= 0 and places.max() <= 1
    assert {"True", "False", "0.5", "1", "2"} <= {text.get_text() for text in ax.texts}
    assert "(fANOVA, Hutter et al. 2014), from 52 complete trials." in shares.caption
    assert [item.name for item in trials.what_matters(repeated(few, 12))] == ["parallel_coordinates"], "48 are too few"
    assert len(shares.draw().axes[0].patches) == 4
    failing = repeated(load_results(runs / "regression", HALVING), 4)
    assert "8 failed or off the scale are left out" in trials.what_matters(failing)[0].caption
    forest = sys.modules["optuna.importance._fanova._fanova"]
    monkeypatch.setattr(forest._imports, "_deferred", (ImportError("no sklearn"), "no sklearn"))
    _, shares = trials.what_matters(repeated(few, 13))
    assert "(PED-ANOVA, Watanabe et al. 2023), from 52 complete trials." in shares.caption
    assert "share of the importance" in shares.draw().axes[0].get_xlabel()


# A user's own study


def test_a_study_without_a_reference_classes_or_activations_has_no_places_for_them(runs):
    page = Page(runs / "own" / "report.html")
    for word in ("report", "reference", "amount of work", "accuracy", "onfusion", "activation", "differ", "to epoch"):
        assert word not in page.text.replace("report.html", ""), word
    assert any("weights of slopes" in image["alt"] for image in page.all("img"))


def test_metrics_have_cards_columns_and_curves(runs):
    page, record = Page(runs / "own" / "report.html"), read_record(runs / "own")
    for name in ("distance", "high"):
        assert f"test {name}" in page.text and f"validation {name}" in page.text
        numbers = {record["test"][name], record["best"][f"mean_val_{name}"], record["best"][f"std_val_{name}"]}
        numbers |= {*load_results(runs / "own", OWN).trials.folds[name].ravel().tolist()}
        assert {repr(value) for value in numbers} <= set(page.values)
    assert "Validation distance of each of 4 trials" in " ".join(image["alt"] for image in page.all("img"))


def test_own_sections_replace_a_heading_or_come_before_where_the_time_went(runs, copied, blank):
    page, folder = Page(runs / "own" / "report.html"), copied("own")
    assert "<plain & escaped>" in page.text and "markup" in page.text and len(page.all("em")) == 1
    assert "only this" in page.text and "Where the time went" not in page.text
    names = ("hyperparameters", "data", "learning", "test-set", "all-trials", "inside-the-network", "greetings",
             "how-to-repeat-it")  # fmt: skip
    assert [link["href"] for link in page.all("a")] == [f"#own-{name}" for name in names]
    page = Page(write_report(folder, replace(OWN, sections={"Greetings": [greeting]})))
    assert "['a'] float32 [1], ['b'] float32 [1]" in page.text and "Where the time went" in page.text
    with pytest.raises(ValueError, match="sections: two figures are called 'own'"):
        write_report(folder, replace(OWN, sections={"Twice": [greeting, greeting]}))


# Pages of several runs


def test_the_overview_has_all_studies_and_their_numbers_and_what_failed_or_has_not_run(runs, tmp_path):
    folders = [runs / "regression", runs / "fashion_cnn"]
    page = Page(write_overview(tmp_path, STUDIES, folders, {"fashion_mlp": "no data & no network"}))
    assert "Fashion-MNIST, dense net failed. no data & no network" in page.text
    assert len(page.all("img")) == len(FIGURES["regression"]) + len(FIGURES["fashion_cnn"])
    assert "ensemble's accuracy" in page.text and page.text.count("23 min 37 s") == 4  # a table and cards
    for folder in folders:
        record = read_record(folder)
        assert page.values.count(repr(record["test"]["loss"])) >= 2  # in the first table, and in the study's part
        assert page.values.count(repr(record["ensemble"]["loss"])) >= 3
        assert f"#{folder.name}" in [link["href"] for link in page.all("a")]
    places = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(places)) == len(places) and {link["href"][1:] for link in page.all("a")} <= set(places)
    assert Page(write_overview(tmp_path, STUDIES, [], {})).text.count("has not run yet") == 6


def test_a_damaged_run_keeps_its_page_and_the_overview_shows_the_others(runs, copied, tmp_path):
    damaged = copied("regression").rename(tmp_path / "fashion_mlp")
    (damaged / "results.json").write_text("{")
    before = (damaged / "report.html").read_bytes()
    with pytest.raises(ValueError, match="results.json differs from its digest"):
        write_report(damaged, HALVING)
    assert (damaged / "report.html").read_bytes() == before
    page = Page(write_overview(tmp_path, STUDIES, [runs / "regression", damaged], {}))
    assert "results.json differs from its digest" in page.text and page.all("img")


def test_the_overview_takes_figures_as_they_are_and_draws_missing_or_old_ones(copied, blank):
    folder, number = copied("own"), len(FIGURES["own"])
    write_overview(folder.parent, {"own": OWN}, [folder], {})
    assert len(blank) == 0
    (folder / "figures" / "slices.png").unlink()
    write_overview(folder.parent, {"own": OWN}, [folder], {})
    assert len(blank) == number
    os.utime(folder / "figures" / "slices.png", (0, 0))
    write_overview(folder.parent, {"own": OWN}, [folder], {})
    assert len(blank) == 2 * number


def test_the_overview_has_columns_for_what_its_studies_have(runs, copied, tmp_path, blank):
    alone = Page(write_overview(tmp_path, {"own": OWN}, [runs / "own"], {}))
    assert "test loss" in alone.text and "distance" in alone.text
    assert "somebody" not in alone.text and "accuracy" not in alone.text and "differ" not in alone.text
    somebody = Reference("somebody", test={"loss": 0.5, "high": 0.25}, notes=("They count otherwise.", "They shuffle."))
    theirs = {"name": "somebody", "params": {}, "test": dict(somebody.test), "data": ""}
    folder = change_record(copied("own"), reference=theirs)
    compared = Page(write_overview(tmp_path, {"own": replace(OWN, reference=somebody)}, [folder], {}))
    assert "somebody's test loss" in compared.text and "Where somebody and this project differ" in compared.text
    assert compared.text.count("They count otherwise.") == 1


def test_runs_of_any_studies_are_compared_from_their_folders_alone(runs, tmp_path, blank):
    folders = [runs / name for name in RUNS]
    page = Page(write_comparison(folders, tmp_path / "new" / "side.html"))
    for folder in folders:
        record = read_record(folder)
        assert {repr(record["best"]["mean_val_loss"]), repr(record["test"]["loss"])} <= set(page.values)
    for word in ("3 runs side by side", "validation loss", "validation distance", "halving", "digest of the data"):
        assert word in page.text
    alternatives = [image["alt"] for image in page.all("img")]
    assert len(alternatives) == 4  # training and validation loss, the two metrics of one study
    assert all(alternatives) and "regression: validation loss ends at" in alternatives[1]


def test_runs_of_one_study_say_only_what_differs(runs, tmp_path, blank):
    other = Path(shutil.copytree(runs / "regression", tmp_path / "x" / "regression"))
    config = read_record(other)["config"]
    change_record(other, config=config | {"seed": 7})
    cells = Page(write_comparison([runs / "regression", other], tmp_path / "side.html")).text
    assert "x/regression" in cells and "seed07" in cells
    assert "batch size" not in cells and "learning rate" in cells  # the best trials'
    change_record(other, config=config | {"own_folds": "0123abc"})
    cells = Page(write_comparison([runs / "regression", other], tmp_path / "side.html")).text
    assert "digest of the study's own folds-0123abc" in cells and "(resumed)" not in cells
    change_record(other, timing=read_record(other)["timing"] | {"resumed": True})
    assert "23 min 37 s (resumed)" in Page(write_comparison([runs / "regression", other], tmp_path / "side.html")).text
    same = write_comparison([runs / "regression", change_record(other, config=config)], tmp_path / "side.html")
    assert "All of them were asked the same." in same.read_text()


def test_a_comparison_of_what_is_no_two_runs_is_refused(runs, tmp_path):
    for folders, told in (
        ([runs / "own"], "at least two runs"),
        ([runs / "own"] * 2, "is named twice"),
        ([runs / "own", tmp_path], r"results\.json is missing"),
    ):
        with pytest.raises(ValueError, match=told):
            write_comparison(folders, tmp_path / "side.html")
    assert not (tmp_path / "side.html").exists()


# Results in a notebook


def test_the_pages_figures_are_drawn_alone_and_say_where_they_cannot(runs):
    regressed = load_results(runs / "regression", HALVING)
    classified = load_results(runs / "fashion_cnn", CNN)
    titles = {
        report.learning_curves: (regressed, "Learning profile of the best trial"),
        report.trial_scores: (regressed, "Score of each trial, the best first"),
        report.parallel_coordinates: (regressed, "Each trial a line through its hyperparameters"),
        report.importances: (repeated(classified, 26), "Importance of hyperparameters"),
        report.fitted_curve: (regressed, "Fitted curve"),
        report.confusion_matrix: (classified, "Confusion on the test set: % of each true class"),
    }
    for draw, (results, title) in titles.items():
        figure = draw(results)
        assert isinstance(figure, drawing.Drawing) and figure.axes[0].get_title(loc="left") == title
    assert len(report.learning_curves(regressed).axes) == 2
    with pytest.raises(ValueError, match="^importances need at least 50 trials with different scores, got 2$"):
        report.importances(classified)
    with pytest.raises(ValueError, match="fitted_curve: only where one number"):
        report.fitted_curve(classified)
    with pytest.raises(ValueError, match="confusion_matrix: only where y are class indices"):
        report.confusion_matrix(regressed)


def test_a_notebook_shows_results_as_numbers_and_a_table(runs):
    results = load_results(runs / "regression", HALVING)
    results.record["refit"]["warning"] = "the refit has jumped"
    shown = results._repr_html_()
    assert shown.count("<tr>") == 1 + 5 and "validation loss" in shown and f"{results.best.mean:.4g}" in shown
    assert f"test: loss {results.test['loss']:.4g}" in shown and "folder" not in shown
    assert "warning: the refit has jumped" in shown
    evil = repeated(results, 3)._replace(study=replace(results.study, name=EVIL))._repr_html_()
    assert evil.count("<tr>") == 1 + 8 and EVIL not in evil


@pytest.mark.parametrize(
    "shape, are_images",
    [((4, 5), True), ((4, 5, 1), True), ((4, 5, 3), True), ((4, 5, 2), False), ((4,), False)],
)
def test_images_may_have_colours_and_floats_are_none(runs, shape, are_images):
    results, x = load_results(runs / "fashion_cnn", CNN), np.zeros((20, *shape), np.uint8)
    floats = results._replace(data=results.data._replace(x_test=x.astype(np.float32)))
    assert not classes.has_images(floats)
    found = results._replace(data=results.data._replace(x_train=x, x_test=x))
    assert classes.has_images(found) == are_images
    if are_images:
        assert named(sections.data(found), "classes").draw().axes
    else:
        assert "<table" in sections.data(found)[0]


# In a browser


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Browser:
    """Headless Chromium, spoken to through a pipe in its DevTools protocol."""

    def __init__(self, profile: Path):
        (answers, child_out), (child_in, commands) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        command = [CHROMIUM, *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        # It reads commands at file descriptor 3 and answers at 4.
        launch = (
            "import fcntl, os, sys; i, o = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]); "
            "os.dup2(i, 3); os.dup2(o, 4); os.execv(sys.argv[3], sys.argv[3:])"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", launch, str(child_in), str(child_out), *command],
            pass_fds=(child_in, child_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        self._answers, self._commands = os.fdopen(answers, "rb"), os.fdopen(commands, "wb")
        self._timer = threading.Timer(60, self._process.kill)
        self._timer.start()
        self._number, self._session, self._rest = 0, None, b""
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            more = self._answers.read1(1 << 20)
            assert more, "Chromium has ended"
            self._rest += more
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **params) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, width: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, expression: str):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def close(self) -> None:
        self._commands.close()  # Chromium ends with the pipe
        self._process.wait()
        self._timer.cancel()
        self._answers.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.slow
def test_a_browser_shows_pages_without_complaint_request_or_sideways_scrolling(runs, browser, copied, tmp_path, blank):
    evil = write_report(change_record(copied("own"), title=EVIL), OWN)
    folders = [runs / "regression", runs / "fashion_cnn"]
    overview = write_overview(tmp_path, STUDIES, folders, {"fashion_cnn": "x" * 500})
    side = write_comparison(folders, tmp_path / "side.html")
    for path, width in [(side, 400), (side, 1200), (evil, 400), *((overview, width) for width in (400, 1200, 2000))]:
        browser.open(path, width)
        assert browser.value("document.documentElement.scrollWidth <= window.innerWidth"), (path, width)
        assert browser.value("document.scripts.length") == 0
        assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        methods = {event["method"] for event in browser.events}
        assert not {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"} & methods
        assert "Page.javascriptDialogOpening" not in methods
        requests = [event["params"]["request"]["url"] for event in browser.events
                    if event["method"] == "Network.requestWillBeSent"]  # fmt: skip
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
        if path == evil:
            assert browser.value("document.querySelector('h1').textContent") == EVIL
    assert browser.value("document.images.length") == len(FIGURES["regression"]) + len(FIGURES["fashion_cnn"])
    for folder in folders:  # the table of trials fits a narrow screen
        browser.open(folder / "report.html", 1200)
        assert browser.value("document.querySelectorAll('.scroll').length") > 3
        assert browser.value("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")
