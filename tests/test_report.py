"""The page that a run leaves: its numbers are the run's, it needs nothing else, and nothing in it runs."""

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

import finished
import jax.numpy as jnp
import numpy as np
import pytest
import regression
import toy

from hw1jax import evaluation, run_study, storage
from hw1jax.data import Dataset
from hw1jax.report import plots, search, sections, write_comparison, write_overview, write_report
from hw1jax.report.items import Markup, Picture, grid
from hw1jax.results import load_results, read_record
from hw1jax.space import Choice, Float, Int
from hw1jax.study import Reference, Study
from hw1jax.trials import Trials

pytestmark = pytest.mark.slow  # pages with all their figures

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
STUDIES = finished.STUDIES
FIGURES = {
    "regression": {"data", "fitted_curve", "test_errors", "activations"},
    "fashion_mlp": {"classes", "confusion", "precision_recall", "calibration", "mistakes"},
    "fashion_cnn": {"classes", "confusion", "precision_recall", "calibration", "mistakes", "receptive_fields_conv1",
                    "receptive_fields_conv2", "feature_maps"},
}  # fmt: skip
EVERYWHERE = {"learning_profile", "validation_curves", "trial_scores", "slices", "learning_rate_l2", "weights", "time"}


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Coarse figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DOTS_PER_INCH", 50)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, coarse):
    """A run of each study, its page written."""
    folder = tmp_path_factory.mktemp("runs")
    for name, study in STUDIES.items():
        with pytest.MonkeyPatch.context() as patch:
            if name == "fashion_mlp":  # its kinds of figures are all among the other classifier's: save the time
                content = plots.png(plots.figure(height=1)[0])
                patch.setattr(plots, "png", lambda figure, content=content: content)
            write_report(finished.copy(name, tmp_path_factory, folder), study)
    return folder


@pytest.fixture
def run_copy(runs, tmp_path):
    """A regression's folder, with its page, to be changed."""
    return Path(shutil.copytree(runs / "regression", tmp_path / "regression"))


@pytest.fixture
def blank(monkeypatch):
    """Where the figures don't matter: none is rendered; the list grows with each that would have been."""
    rendered: list[plots.Drawing] = []
    content = plots.png(plots.figure(height=1)[0])
    monkeypatch.setattr(plots, "png", lambda figure: rendered.append(figure) or content)
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


@pytest.mark.parametrize("name", ["regression", "fashion_cnn"])
@pytest.mark.parametrize("state", ["diverged", "complete"])
def test_a_run_without_a_test_loss_gets_a_page_that_says_why(name, state, tmp_path, tmp_path_factory):
    test = {"loss": None, "accuracy": None, "confusion": None}
    folder = finished.copy(name, tmp_path_factory, tmp_path)
    refit = {"state": state, "failure": "too <large>", "warning": None, "train_loss": None, "folds_train_loss": 1.0}
    finished.change(folder, test=test, refit=refit, ensemble=None)
    if state == "diverged":
        (folder / "model.msgpack").unlink()
        arrays = storage.read_arrays(folder / "histories.npz")
        wrong = {part: arrays[part] * np.nan for part in ("test_outputs", "refit_train_loss")}
        storage.write_arrays(folder / "histories.npz", arrays | wrong)
    for path in (write_report(folder, STUDIES[name]), write_overview(tmp_path, STUDIES, [folder], {})):
        text = path.read_text()
        assert "too &lt;large&gt;" in text and 'id="' + name in text
        assert ">None<" not in text
        assert ("Histograms" in text) == (state == "complete")


@pytest.mark.parametrize("name", STUDIES)
def test_every_figure_is_on_disk_and_the_same_in_the_page(runs, name):
    figures = {path.stem: path.read_bytes() for path in (runs / name / "figures").glob("*.png")}
    assert figures.keys() == FIGURES[name] | EVERYWHERE
    sources = [image["src"] for image in Page(runs / name / "report.html").all("img")]
    shown = [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]
    assert sorted(shown) == sorted(figures.values())
    assert all(content.startswith(b"\x89PNG") for content in shown)


@pytest.mark.parametrize("name", STUDIES)
def test_the_pages_numbers_are_those_of_the_results(runs, name):
    page, results = Page(runs / name / "report.html"), json.loads((runs / name / "results.json").read_text())
    theirs = results["reference"]["test"]
    numbers = [
        results["test"]["loss"], theirs["loss"], results["best"]["mean_val_loss"],
        results["best"]["std_val_loss"], results["timing"]["total_seconds"], results["best"]["params"]["learning_rate"],
        results["trials"]["complete"], results["trials"]["failed"], results["best"]["number"],
    ]  # fmt: skip
    if results["test"]["accuracy"] is not None:
        numbers += [results["test"]["accuracy"], theirs["accuracy"]]
        recalls = evaluation.precision_and_recall(np.array(results["test"]["confusion"]))[1]
        numbers += recalls.tolist()
        assert f"{results['test']['accuracy']:.1%}" in page.text
    assert {repr(number) for number in numbers} <= set(page.values)
    assert f"{results['test']['loss']:.3f}" in page.text
    assert results["command"] in page.text
    assert "the report's best" in page.text and "Where the report and this project differ" in page.text
    assert "“The report” is the homework report that hw1jax reimplements." in page.text


def test_a_run_says_where_it_did_less_than_the_report(tmp_path, tmp_path_factory, blank):
    folder = finished.copy("regression", tmp_path_factory, tmp_path)
    for num_trials, notice in ((25, "trials 5 instead of 25."), (5, None)):
        path = write_report(folder, replace(STUDIES["regression"], num_trials=num_trials))
        assert (notice is None) == ("Not the report's amount of work" not in Page(path).text)
        assert notice is None or f"Not the report's amount of work: {notice}" in Page(path).text
    path = write_report(folder, replace(STUDIES["regression"], num_trials=5, averaging=0.9))
    assert "Not the report's amount of work: averaging none instead of 0.9." in Page(path).text


def test_errors_inside_and_outside_the_gaps_add_up_to_the_test_loss(runs):
    page, results = (
        Page(runs / "regression" / "report.html"),
        json.loads((runs / "regression/results.json").read_text()),
    )
    data, outputs = regression.STUDY.data(), storage.read_arrays(runs / "regression/histories.npz")["test_outputs"]
    inside = sections.inside_gaps(data.x_test[:, 0], ((-3, -1), (1.75, 3.1)))
    squares = ((outputs - data.y_test) ** 2)[:, 0]
    parts = [squares[inside].mean(), squares[~inside].mean()]
    values = [float(value) for value in page.values]
    assert all(np.isclose(values, part, rtol=1e-5).any() for part in parts)
    total = np.average(parts, weights=[inside.sum(), (~inside).sum()])
    assert total == pytest.approx(results["test"]["loss"], rel=1e-5)


def test_inside_gaps_are_the_open_intervals():
    x = np.array([-3, -2, -1, 0, 2, 5.0])
    np.testing.assert_array_equal(sections.inside_gaps(x, ((-3, -1), (1, 3))), [0, 1, 0, 0, 1, 0])
    assert not sections.inside_gaps(x, ()).any()


def test_first_of_each_class_leaves_out_a_class_without_examples():
    assert sections.first_of_each_class(np.array([2, 0, 2, 0]), 4) == {0: 1, 2: 0}


@pytest.mark.parametrize("name", STUDIES)
def test_every_image_says_what_it_shows(runs, name):
    alternatives = [image["alt"] for image in Page(runs / name / "report.html").all("img")]
    assert all(len(text) > 20 for text in alternatives)
    assert len(set(alternatives)) == len(alternatives)


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_needs_nothing_from_elsewhere(runs, name):
    path = runs / name / "report.html"
    page, text = Page(path), path.read_text(encoding="utf-8")
    assert not page.all("script") and not page.all("iframe") and not page.all("object")
    for _, attributes in page.tags:
        assert not any(attribute.startswith("on") for attribute in attributes)
        assert attributes.get("src", "data:").startswith("data:image/png;base64,") or "src" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    (style,) = (text.split("<style>")[1].split("</style>")[0],)
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in text


@pytest.mark.parametrize("name", STUDIES)
def test_links_lead_to_places_in_the_page(runs, name):
    page = Page(runs / name / "report.html")
    places = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(places)) == len(places)
    assert {link["href"][1:] for link in page.all("a")} <= set(places)


def test_a_diverged_trial_is_in_the_table_and_last(runs):
    page = Page(runs / "regression" / "report.html")
    assert page.text.index("failed in epoch", page.text.index("All trials, the best first")) > page.text.rindex(
        "complete"
    )
    assert "Crosses: 1 failed." in page.text


def test_text_from_outside_shows_as_text(tmp_path, tmp_path_factory, blank):
    folder = finished.copy("regression", tmp_path_factory, tmp_path)
    finished.change(folder, title=EVIL, command=f"python {EVIL}", environment={"device": EVIL, EVIL: "x"},
                    inputs={"data_dir": EVIL})  # fmt: skip
    path = write_report(folder, STUDIES["regression"])
    page = Page(path)
    assert "<script" not in path.read_text(encoding="utf-8")
    assert not page.all("script") and all(image["src"].startswith("data:") for image in page.all("img"))
    assert page.text.count(EVIL) == 6  # page title, heading, command, both sides of the environment, input
    overview = write_overview(tmp_path, STUDIES, [folder], {"fashion_mlp": EVIL, EVIL: EVIL})
    assert "<script" not in overview.read_text(encoding="utf-8")
    assert Page(overview).text.count(EVIL) >= 6


def test_own_data_have_no_gaps(tmp_path, tmp_path_factory, blank):
    data = regression.STUDY.data()
    for part, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        rows = "".join(f"{a!r},{b!r}\n" for a, b in zip(x[:, 0].tolist(), y[:, 0].tolist(), strict=True))
        (tmp_path / f"{part}.csv").write_text("input,label\n" + rows)
    inputs = {"train_csv": str(tmp_path / "train.csv"), "test_csv": str(tmp_path / "test.csv")}
    folder = finished.copy("regression", tmp_path_factory, tmp_path)
    page = Page(write_report(folder, STUDIES["regression"]))
    assert "inside the gaps" in page.text and "The shaded intervals hold no training input" in page.text
    page = Page(write_report(finished.change(folder, inputs=inputs), STUDIES["regression"]))
    assert "inside the gaps" not in page.text and "part of the test set" not in page.text
    assert "The shaded intervals" not in page.text


def test_a_damaged_run_keeps_the_page_that_it_has(run_copy):
    (run_copy / "results.json").write_text("{")
    before = (run_copy / "report.html").read_bytes()
    with pytest.raises(ValueError, match="results.json is damaged"):
        write_report(run_copy, STUDIES["regression"])
    assert (run_copy / "report.html").read_bytes() == before


def test_the_overview_has_all_studies_and_their_numbers(runs):
    path = write_overview(runs, STUDIES, [runs / name for name in STUDIES], {})
    page = Page(path)
    assert len(page.all("img")) == sum(len(names | EVERYWHERE) for names in FIGURES.values())
    for study in STUDIES.values():
        results = json.loads((runs / study.name / "results.json").read_text())
        assert page.values.count(repr(results["test"]["loss"])) >= 2  # in the first table, and in the study's part
        assert f"#{study.name}" in [link["href"] for link in page.all("a")]
    places = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(places)) == len(places) and {link["href"][1:] for link in page.all("a")} <= set(places)


def test_the_overview_is_honest_about_what_failed_and_what_has_not_run(runs, tmp_path):
    path = write_overview(tmp_path, STUDIES, [runs / "regression"], {"fashion_mlp": "no data & no network"})
    page = Page(path)
    assert "Fashion-MNIST, dense net failed. no data & no network" in page.text
    assert page.text.count("has not run yet") == 2  # in the first table, and in its place
    assert len(page.all("img")) == len(FIGURES["regression"] | EVERYWHERE)


def test_the_overview_shows_the_others_beside_a_damaged_run(runs, run_copy, tmp_path):
    damaged = run_copy.rename(tmp_path / "fashion_mlp")
    (damaged / "results.json").write_text("{")
    page = Page(write_overview(tmp_path, STUDIES, [runs / "regression", damaged], {}))
    assert "results.json is damaged" in page.text and page.all("img")


def test_an_overview_before_anything_has_ended_is_a_page_too(tmp_path):
    assert Page(write_overview(tmp_path, STUDIES, [], {})).text.count("has not run yet") == 6


def test_the_overview_takes_figures_as_they_are_and_draws_missing_or_old_ones(run_copy, tmp_path, blank):
    number = len(FIGURES["regression"] | EVERYWHERE)
    write_overview(tmp_path, STUDIES, [run_copy], {})
    assert len(blank) == 0
    (run_copy / "figures" / "time.png").unlink()
    write_overview(tmp_path, STUDIES, [run_copy], {})
    assert len(blank) == number
    os.utime(run_copy / "figures" / "time.png", (0, 0))
    write_overview(tmp_path, STUDIES, [run_copy], {})
    assert len(blank) == 2 * number


@pytest.fixture(scope="module")
def halved(tmp_path_factory, coarse):
    """A run that has pruned trials, its page written."""
    folder = finished.copy("halving", tmp_path_factory, tmp_path_factory.mktemp("halved"))
    write_report(folder, finished.HALVING)
    return folder


def test_rungs_are_a_figure_and_a_table_with_their_numbers(halved, runs):
    page, results = Page(halved / "report.html"), load_results(halved, finished.HALVING)
    [alternative] = [image["alt"] for image in page.all("img") if image["alt"].startswith("to epoch")]
    for rung in results.record["rungs"]:
        text = f"to epoch {rung['num_epochs']}: {rung['num_trials']} trials, "
        assert text in alternative and repr(rung["seconds"]) in page.values
        assert f"to epoch {rung['num_epochs']}" in page.text
    assert (halved / "figures" / "rungs.png").exists()
    assert "to epoch" not in Page(runs / "regression" / "report.html").text


def test_no_trial_of_a_rung_is_lost(halved):
    results = load_results(halved, finished.HALVING)
    ax = named(search.all_trials(results), "rungs").draw().axes[0]
    assert sum(patch.get_width() for patch in ax.patches) == sum(r["num_trials"] for r in results.record["rungs"])
    ended = [patch.get_width() for bars in ax.containers for patch in bars if bars.get_label() in ("pruned", "failed")]
    assert sum(ended) == len(results.trials.rows) - results.trials.complete.sum()


def changed(trials: Trials, **columns) -> Trials:
    """The trials with other columns."""
    return Trials({**trials, **columns}, trials.rows, trials.params, trials.means)


def test_pruned_trials_are_counted_shown_and_never_the_best(halved):
    page, results = Page(halved / "report.html"), load_results(halved, finished.HALVING)
    counts = results.record["trials"]
    assert counts["pruned"] > 0
    assert f"complete, {counts['pruned']} pruned, {counts['failed']} failed" in page.text
    assert page.text.count("pruned after") == counts["pruned"] and repr(counts["pruned"]) in page.values
    assert "A ring ends the line of a pruned one." in page.text
    low = results.trials.means["loss"].copy()
    low[results.trials.pruned] = 0.001
    trials = changed(results.trials, mean_val_loss=low)
    slices = named(search.all_trials(results._replace(trials=trials)), "slices").draw().axes[0]
    assert slices.collections[-1].get_offsets()[0, 1] == pytest.approx(low[results.row])


def test_trials_that_never_learned_are_counted_pruned_ones_too(halved):
    results = load_results(halved, finished.HALVING)
    constant = evaluation.constant_loss(results.task.loss, results.data.y_train)
    for low, text in ((2 * constant, "never learned"), (0.5 * constant, "All trials learned")):
        means = np.where(results.trials.states == "failed", np.nan, low)
        trials = changed(results.trials, mean_val_loss=means)
        assert text in named(search.all_trials(results._replace(trials=trials)), "trial_scores").caption
        num_scored = np.isfinite(means).sum()
        assert (
            low < constant
            or f"{num_scored} of {num_scored} trials"
            in named(search.all_trials(results._replace(trials=trials)), "trial_scores").caption
        )


@pytest.mark.parametrize("name", ["regression", "fashion_mlp"])
def test_the_ensemble_stands_beside_the_refit(runs, name):
    path, record = runs / name / "report.html", json.loads((runs / name / "results.json").read_text())
    page = Page(path)
    assert "ensemble of the 3 fold models" in page.text and "ensemble’s test loss" in page.text
    assert page.values.count(repr(record["ensemble"]["loss"])) >= 2  # a card and a table
    if record["ensemble"]["accuracy"] is not None:
        assert page.values.count(repr(record["ensemble"]["accuracy"])) >= 2
    overview = Page(write_overview(runs, STUDIES, [runs / name for name in STUDIES], {}))
    assert "ensemble of its 3 folds" in overview.text
    assert overview.values.count(repr(record["ensemble"]["loss"])) >= 3


def test_without_an_ensemble_there_is_no_place_for_it(tmp_path, tmp_path_factory, blank):
    folder = finished.copy("regression", tmp_path_factory, tmp_path)
    page = Page(write_report(finished.change(folder, ensemble=None), STUDIES["regression"]))
    assert "ensemble" not in page.text


def test_a_refit_far_off_is_said(tmp_path, tmp_path_factory, blank):
    folder = finished.copy("regression", tmp_path_factory, tmp_path)
    refit = json.loads((folder / "results.json").read_text())["refit"]
    finished.change(folder, refit=refit | {"warning": "the refit ended <far> off"})
    assert "the refit ended <far> off." in Page(write_report(folder, STUDIES["regression"])).text


def test_durations_are_as_people_say_them(tmp_path, tmp_path_factory, blank):
    folder = finished.copy("regression", tmp_path_factory, tmp_path)
    timing = json.loads((folder / "results.json").read_text())["timing"]
    finished.change(folder, timing=timing | {"train_seconds": 62.3, "total_seconds": 1416.9})
    page = Page(write_report(folder, STUDIES["regression"]))
    assert page.text.count("23 min 37 s") == 1 and "1416.9" in page.values  # the card; the figure is a picture
    alternatives = " ".join(image["alt"] for image in page.all("img"))
    assert "search (training and validation): 1 min 2 s" in alternatives
    overview = Page(write_overview(tmp_path, STUDIES, [folder], {}))
    assert overview.text.count("23 min 37 s") == 2


def distance(outputs, y):
    """A metric of the study below."""
    return jnp.abs(outputs - y)[:, 0]


def two_inputs(fixed):
    """A net of a dict of inputs, in plain JAX."""

    def init(key, h):
        return {"layers": [{"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}] * fixed["depth"]}

    def apply(params, x, h):
        for layer in params["layers"]:
            out = jnp.concatenate([x["a"], x["b"]], axis=1) @ layer["kernel"] + layer["bias"][None]
            x = {"a": out, "b": x["b"]}
        return h["factor"] * out

    return toy.task({"hidden_units": (2,)})._replace(
        init=init, apply=apply, optimizer=lambda h: toy.chosen_l2(0, h["rate"], jnp.where(h["decay"], 0.1, 0))
    )


def greeting(results):
    """A section of the study's own, an item of each kind."""

    def draw(ax):
        ax.plot(results.trials.means["distance"])

    return [
        "<plain & escaped>",
        Markup("<em>markup</em>"),
        Picture("own", "A line that I drew", "Own.", grid([draw], 1, height=1)),
    ]


def inputs_of(x):
    return {"a": x, "b": -x}


OWN = Study(
    "own",
    task=two_inputs,
    data=Dataset(inputs_of(toy.X[:60]), toy.X[:60], inputs_of(toy.X[60:]), toy.X[60:]),
    space={
        "rate": Float(0.1, 1.0),
        "factor": Choice(0.5, 1, 2),
        "decay": Choice(True, False),
        "depth": Int(1, 2, static=True),
    },
    metrics={"distance": distance, "high": lambda outputs, y: outputs[:, 0] > 0},
    minimize="distance",
    num_trials=4,
    num_epochs=3,
    batch_size=20,
    num_folds=2,
    sections={"Greetings": [greeting], "Data": [lambda results: "only this"], "Where the time went": []},
)


@pytest.fixture(scope="module")
def own(tmp_path_factory, coarse):
    """A run of somebody's own study, its page written."""
    folder = tmp_path_factory.mktemp("own")
    run_study(OWN, out=folder, num_devices=1)
    write_report(folder, OWN)
    return folder


def test_a_study_without_a_reference_classes_or_activations_has_no_places_for_them(own):
    page = Page(own / "report.html")
    for word in ("report", "reference", "amount of work", "accuracy", "Confusion", "confusion", "activation", "differ"):
        assert word not in page.text.replace("report.html", ""), word
    names = {path.stem for path in (own / "figures").glob("*.png")}
    assert names == {"learning_profile", "validation_curves", "distance_by_epoch", "high_by_epoch", "trial_scores",
                     "slices", "weights", "own"}  # fmt: skip
    alternatives = [image["alt"] for image in page.all("img")]
    assert any("layers/0/bias, layers/0/kernel" in text for text in alternatives)


def test_metrics_have_cards_columns_and_curves(own):
    page, record = Page(own / "report.html"), read_record(own)
    for name in ("distance", "high"):
        assert f"test {name}" in page.text and f"validation {name}" in page.text
        for value in (record["test"][name], record["best"][f"mean_val_{name}"], record["best"][f"std_val_{name}"]):
            assert page.values.count(repr(value)) >= 1
    for value in load_results(own, OWN).trials.folds["high"].ravel().tolist():
        assert repr(value) in page.values
    assert f"Validation distance of each of {OWN.num_trials} trials" in " ".join(i["alt"] for i in page.all("img"))


def test_own_sections_replace_a_heading_or_come_before_where_the_time_went(own):
    page = Page(own / "report.html")
    assert "<plain & escaped>" in page.text and "markup" in page.text and len(page.all("em")) == 1
    assert "only this" in page.text and "Where the time went" not in page.text
    names = ("hyperparameters", "data", "learning", "test-set", "all-trials", "inside-the-network", "greetings",
             "how-to-repeat-it")  # fmt: skip
    assert [link["href"] for link in page.all("a")] == [f"#own-{name}" for name in names]


def test_sections_that_a_study_does_not_give_show_what_the_data_are(own, tmp_path, blank):
    folder = Path(shutil.copytree(own, tmp_path / "own"))
    page = Page(write_report(folder, replace(OWN, sections={"Greetings": [greeting]})))
    assert "['a'] float32 [1], ['b'] float32 [1]" in page.text and "Where the time went" in page.text


def test_two_figures_of_a_name_are_refused(own, tmp_path, blank):
    folder = Path(shutil.copytree(own, tmp_path / "own"))
    with pytest.raises(ValueError, match="sections: two figures are called 'own'"):
        write_report(folder, replace(OWN, sections={"Twice": [greeting, greeting]}))


def test_the_overview_has_columns_for_what_its_studies_have(own, tmp_path, blank):
    alone = Page(write_overview(tmp_path, {"own": OWN}, [own], {}))
    assert "test loss" in alone.text and "distance" in alone.text
    assert "somebody" not in alone.text and "accuracy" not in alone.text and "differ" not in alone.text
    somebody = Reference("somebody", test={"loss": 0.5, "high": 0.25}, notes=("They count otherwise.", "They shuffle."))
    compared = Page(write_overview(tmp_path, {"own": replace(OWN, reference=somebody)}, [own], {}))
    assert "somebody's test loss" in compared.text and "Where somebody and this project differ" in compared.text
    assert compared.text.count("They count otherwise.") == 1


def named(items, name):
    """The one picture with this name."""
    [found] = [item for item in items if isinstance(item, Picture) and item.name == name]
    return found


def test_hyperparameters_of_all_kinds_are_drawn(own):
    rate, factor, decay, depth = named(search.all_trials(load_results(own, OWN)), "slices").draw().axes
    assert [ax.get_xlabel() for ax in (rate, factor, decay, depth)] == ["rate", "factor", "decay", "depth"]
    assert [tick.get_text() for tick in factor.get_xticklabels()] == ["0.5", "1", "2"]
    assert [tick.get_text() for tick in decay.get_xticklabels()] == ["True", "False"]
    assert rate.get_xscale() == depth.get_xscale() == "linear"


def test_where_no_constant_is_known_to_compare_with_the_median_is(own):
    results = load_results(own, OWN)
    far = results.trials.means["distance"].copy()
    row = (results.row + 1) % len(far)
    far[row] = 1e6
    trials = changed(results.trials, mean_val_distance=far)
    found = named(search.all_trials(results._replace(trials=trials)), "trial_scores")
    assert "Crosses: 0 failed, 1 beyond 5 times the median." in found.caption and "dashed line" not in found.caption
    highest = results._replace(trials=trials, study=replace(results.study, maximize="distance"))
    assert "Crosses" not in named(search.all_trials(highest), "trial_scores").caption  # no value is too good


def repeated(results, times: int):
    """Results with its trials several times, as if there were more; the copies' scores differ a little."""
    t = results.trials
    columns = {name: np.concatenate([column] * times) for name, column in t.items()}
    for name in t.means:
        columns[f"mean_val_{name}"] = columns[f"mean_val_{name}"] * np.repeat(1 + 0.01 * np.arange(times), len(t.rows))
    histories = results.histories | {"val_loss": np.concatenate([results.histories["val_loss"]] * times)}
    return results._replace(trials=Trials(columns, t.rows * times, t.params, t.means), histories=histories)


def test_what_matters_is_shown_where_there_are_trials_enough(own, runs):
    few = load_results(own, OWN)
    assert search.what_matters(few) == []
    many = repeated(few, 4)
    lines, shares = search.what_matters(many)
    assert [lines.name, shares.name] == ["parallel_coordinates", "importances"]
    ax = lines.draw().axes[0]
    axes = len(few.trials.params) + 1
    trials = [line for line in ax.lines if len(line.get_xdata()) == axes]
    assert len(trials) == 16 + 1  # the best once more
    places = np.array([line.get_ydata() for line in trials])
    assert places.min() >= 0 and places.max() <= 1
    assert {"True", "False", "0.5", "1", "2"} <= {text.get_text() for text in ax.texts}
    assert "16 complete trials" in shares.caption and set(shares.alt.split(": ")[0]) <= set("ratefcodpyhn")
    assert len(shares.draw().axes[0].patches) == 4
    failing = repeated(load_results(runs / "regression", STUDIES["regression"]), 3)
    assert "3 failed or off the scale are left out" in search.what_matters(failing)[0].caption


def test_without_scikit_learn_a_line_says_what_to_install(own, monkeypatch):
    def missing(*_, **__):
        raise ImportError("importances need scikit-learn: pip install scikit-learn")

    monkeypatch.setattr("hw1jax.search.importances", missing)
    _, said = search.what_matters(repeated(load_results(own, OWN), 4))
    assert said == "No importances of hyperparameters: importances need scikit-learn: pip install scikit-learn."


def test_results_draw_the_pages_figures_alone_and_say_where_they_cannot(runs):
    regressed = load_results(runs / "regression", STUDIES["regression"])
    classified = load_results(runs / "fashion_mlp", STUDIES["fashion_mlp"])
    titles = {
        regressed.plot_learning_curves: "Learning profile of the best trial",
        regressed.plot_trials: "Score of each trial, the best first",
        regressed.plot_parallel_coordinates: "Each trial a line through its hyperparameters",
        regressed.plot_importances: "Importance of hyperparameters",
        regressed.plot_fit: "Fitted curve",
        classified.plot_confusion: "Confusion on the test set: % of each true class",
    }
    for plot, title in titles.items():
        figure = plot()
        assert isinstance(figure, plots.Drawing) and figure.axes[0].get_title(loc="left") == title
    assert len(regressed.plot_learning_curves().axes) == 2
    with pytest.raises(ValueError, match="plot_fit: only where one number"):
        classified.plot_fit()
    with pytest.raises(ValueError, match="plot_confusion: only of a study with classes="):
        regressed.plot_confusion()


def test_a_notebook_shows_results_as_numbers_a_table_and_curves(runs):
    results = load_results(runs / "regression", STUDIES["regression"])
    shown = results._repr_html_()
    assert shown.count("<tr>") == 6 and "All trials, the best first" in shown and "data:image/png;base64," in shown
    assert f"test: loss {results.test['loss']:.4g}" in shown and "folder" not in shown
    assert "The 8 best trials" in repeated(results, 3)._repr_html_()
    page = replace(results.study, name="x", sections={})
    assert EVIL not in results._replace(study=replace(page, name=EVIL))._repr_html_()


@pytest.mark.parametrize(
    "shape, dtype, are_images",
    [
        ((4, 5), np.uint8, True),
        ((4, 5, 1), np.uint8, True),
        ((4, 5, 3), np.uint8, True),
        ((4, 5, 2), np.uint8, False),
        ((4, 5), np.float32, False),
        ((4,), np.uint8, False),
    ],
)
def test_images_may_have_colours_and_floats_are_none(runs, shape, dtype, are_images):
    results, x = load_results(runs / "fashion_mlp", STUDIES["fashion_mlp"]), np.zeros((20, *shape), dtype)
    found = results._replace(data=results.data._replace(x_train=x, x_test=x))
    assert sections.has_images(found) == are_images
    if are_images:
        assert named(sections.data(found), "classes").draw().axes
    else:
        assert "<table" in sections.data(found)[0]


def test_runs_of_any_studies_are_compared_from_their_folders_alone(runs, halved, own, tmp_path):
    folders = [runs / "regression", halved, own, runs / "fashion_mlp"]
    page = Page(write_comparison(folders, tmp_path / "new" / "side.html"))
    for folder in folders:
        record = read_record(folder)
        assert {repr(record["best"]["mean_val_loss"]), repr(record["test"]["loss"])} <= set(page.values)
    for word in ("4 runs side by side", "validation loss", "validation distance", "halving", "digest of the data"):
        assert word in page.text
    assert len(page.all("img")) == 4  # training and validation loss, the two metrics of one study
    assert all(image["alt"] for image in page.all("img"))
    assert "regression: validation loss ends at" in page.all("img")[1]["alt"]


def test_runs_of_one_study_say_only_what_differs(runs, tmp_path):
    other = Path(shutil.copytree(runs / "regression", tmp_path / "x" / "regression"))
    config = read_record(other)["config"] | {"seed": 7}
    finished.change(other, config=config, title=EVIL)
    page = write_comparison([runs / "regression", other], tmp_path / "side.html")
    text, cells = page.read_text(), Page(page).text
    assert EVIL not in text and "x/regression" in cells
    assert "seed07" in cells and "batch size" not in cells and "learning rate" in cells  # the best trials'
    same = write_comparison([runs / "regression", finished.change(other, config=config | {"seed": 0})], page)
    assert "All of them were asked the same." in same.read_text()


def test_a_comparison_of_what_is_no_two_runs_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="at least two runs"):
        write_comparison([runs / "regression"], tmp_path / "side.html")
    with pytest.raises(ValueError, match="is named twice"):
        write_comparison([runs / "regression"] * 2, tmp_path / "side.html")
    with pytest.raises(ValueError, match=r"results\.json is missing"):
        write_comparison([runs / "regression", tmp_path], tmp_path / "side.html")
    assert not (tmp_path / "side.html").exists()


def test_a_browser_shows_a_comparison_without_sideways_scrolling(runs, halved, browser, tmp_path):
    path = write_comparison([runs / "regression", halved], tmp_path / "side.html")
    for width in (400, 1200):
        browser.open(path, width)
        assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_report_is_imported_when_a_page_is_written_not_before():
    code = "import sys, hw1jax.report; print('matplotlib' in sys.modules); hw1jax.report.write_report"
    done = subprocess.run([sys.executable, "-c", code + "; print('matplotlib' in sys.modules)"], capture_output=True)
    assert done.stdout.split() == [b"False", b"True"]


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


@pytest.mark.parametrize("width", [400, 1200, 2000])
def test_a_browser_shows_the_page_without_complaint_request_or_sideways_scrolling(runs, browser, width):
    path = write_overview(runs, STUDIES, [runs / name for name in STUDIES], {"fashion_cnn": "x" * 500})
    browser.open(path, width)
    assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.value("document.images.length") == sum(len(names | EVERYWHERE) for names in FIGURES.values())
    assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    methods = [event["method"] for event in browser.events]
    assert not {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"} & set(methods)
    requests = [event["params"]["request"]["url"] for event in browser.events
                if event["method"] == "Network.requestWillBeSent"]  # fmt: skip
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]


def test_the_table_of_trials_fits_a_narrow_screen(runs, halved, browser):
    for path in (runs / "fashion_cnn" / "report.html", halved / "report.html"):
        browser.open(path, 1200)
        assert browser.value("document.querySelectorAll('.scroll').length") > 3
        assert browser.value("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")


def test_a_browser_shows_a_script_in_a_title_as_text(tmp_path, tmp_path_factory, browser, blank):
    folder = finished.copy("regression", tmp_path_factory, tmp_path)
    path = write_report(finished.change(folder, title=EVIL), STUDIES["regression"])
    browser.open(path, 400)
    assert browser.value("document.querySelector('h1').textContent") == EVIL
    assert browser.value("document.scripts.length") == 0
    assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert not any(event["method"] == "Page.javascriptDialogOpening" for event in browser.events)
