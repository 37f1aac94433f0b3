"""The page that a run leaves: its numbers are the run's, it needs nothing else, and nothing in it runs."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hw1jax import evaluation, inspection, plots, report, storage, studies
from hw1jax.data import Dataset
from hw1jax.model_file import Model, save_model
from hw1jax.space import Draw

pytestmark = pytest.mark.slow  # pages with all their figures

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
NUM_TRIALS, NUM_FOLDS, NUM_EPOCHS = 5, 3, 4
DRAWS = {
    "regression": Draw((), (4, 3, 3), 0.01, 0.001, "adam"),
    "fashion_mlp": Draw((), (4, 3, 3), 0.01, 0.001, "adam"),
    "fashion_cnn": Draw((2, 3), (4, 3), 0.01, 0.001, "adam"),
}
FIGURES = {
    "regression": {"data", "fitted_curve", "test_errors", "activations"},
    "fashion_mlp": {"classes", "confusion", "precision_recall", "calibration", "mistakes"},
    "fashion_cnn": {"classes", "confusion", "precision_recall", "calibration", "mistakes", "receptive_fields_conv1",
                    "receptive_fields_conv2", "feature_maps"},
}  # fmt: skip
EVERYWHERE = {"learning_profile", "validation_curves", "trial_scores", "slices", "learning_rate_l2", "weights", "time"}


def tiny_data(name: str) -> Dataset:
    if name == "regression":
        return studies.REGRESSION.load(studies.REGRESSION.settings)
    random = np.random.RandomState(0)
    x = random.randint(0, 256, (50, 28, 28)).astype(np.uint8)
    y = np.tile(np.arange(10, dtype=np.int32), 5)
    return Dataset(x[:20], y[:20], x[20:], y[20:])


def fake_run(folder: Path, name: str, **changes) -> Path:
    """The files of a run of five trials, of which trial 3 has diverged and trial 1 is the best."""
    study, data, draw, random = studies.by_name(name), tiny_data(name), DRAWS[name], np.random.RandomState(1)
    shapes = studies.parameter_shapes(study, draw)
    params = {
        layer: {"weights": random.normal(0, 0.3, parts["weights"].shape).astype(np.float32)}
        for layer, parts in shapes.items()
    }
    model = Model(name, draw, params)
    save_model(folder / "model.msgpack", model)

    losses = random.uniform(0.5, 2, (2, NUM_TRIALS, NUM_FOLDS, NUM_EPOCHS)).astype(np.float32)
    losses[:, 1] -= 0.4
    losses[:, 3, 2, 1:] = np.inf
    arrays = {"train_loss": losses[0], "val_loss": losses[1], "refit_train_loss": losses[0, 1, 0]}
    arrays["test_outputs"] = inspection.activations(model, data.x_test)["output"]
    arrays["curve_fold_outputs"] = np.zeros((NUM_TRIALS, NUM_FOLDS, 0), np.float32)
    if not study.classes:
        arrays["curve_x"] = np.linspace(-5, 5, 20, dtype=np.float32)
        arrays["curve_outputs"] = inspection.activations(model, arrays["curve_x"][:, None])["output"][:, 0]
        arrays["curve_fold_outputs"] = random.normal(size=(NUM_TRIALS, NUM_FOLDS, 20)).astype(np.float32)
    storage.write_arrays(folder / "histories.npz", arrays)

    scores = losses[1, :, :, -1].astype(float)
    means, stds = scores.mean(axis=1), np.append(np.std(scores[:3], axis=1), [np.nan, np.std(scores[4])])
    ranks = np.argsort(np.argsort(means)) + 1
    columns = {"number": range(NUM_TRIALS), "state": ["complete" if i != 3 else "failed" for i in range(NUM_TRIALS)]}
    columns |= {column: [value] * NUM_TRIALS for column, value in draw.columns().items()}
    columns |= {"learning_rate": [0.001, 0.01, 0.02, 0.1, 0.05], "optimizer": ["sgd", "adam", "sgd", "rmsprop", "adam"]}
    columns |= {f"split{i}_val_loss": scores[:, i] for i in range(NUM_FOLDS)}
    columns |= {
        "mean_val_loss": means,
        "std_val_loss": stds,
        "rank": [r if i != 3 else "" for i, r in enumerate(ranks)],
    }
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    storage.write_bytes(folder / "trials.csv", ("\n".join(lines) + "\n").encode())

    test_losses = np.asarray(study.loss(arrays["test_outputs"], data.y_test))
    test = {"loss": float(test_losses.mean()), "accuracy": None, "confusion": None}
    if study.classes:
        test["accuracy"] = evaluation.accuracy(arrays["test_outputs"], data.y_test)
        test["confusion"] = evaluation.confusion_matrix(arrays["test_outputs"], data.y_test).tolist()
    widths = {"hidden_units": [[2, 9]] * len(draw.hidden_units)}
    widths |= {"channels": [[1, 9]] * len(draw.channels)} if draw.channels else {}
    results = {
        "study": name,
        "title": study.title,
        "command": f"python experiments/{name}.py --out somewhere",
        "config": {
            **widths, "num_epochs": NUM_EPOCHS, "batch_size": 20, "num_folds": NUM_FOLDS, "seed": 0,
            "sampler": "random", "learning_rate": [0.001, 0.1], "l2": [0.0001, 0.1],
            "optimizers": ["adam", "sgd", "rmsprop"], "num_trials": NUM_TRIALS,
            "data_sha256": hashlib.sha256(b"".join(data)).hexdigest(), "plan": {"slots": 6, "layout": {"x": None}},
        },
        "environment": {"date": "2026-01-02 03:04 UTC", "packages": {"jax": "0.10.2"}, "device": "CPU", "cores": 2},
        "inputs": {"data_dir": None},
        "best": {"number": 1, "params": draw.as_dict(), "mean_val_loss": means[1], "std_val_loss": stds[1]},
        "test": test,
        "reported": {
            "params": study.reported.best.as_dict(),
            "test_loss": study.reported.test_loss,
            "test_accuracy": study.reported.test_accuracy,
        },
        "trials": {"complete": 4, "failed": 1},
        "timing": {"compile_seconds": 3.25, "train_seconds": 4.5, "refit_seconds": 0.5, "test_seconds": 0.125,
                   "total_seconds": 9.75},
    }  # fmt: skip
    storage.write_json(folder / "results.json", results | changes)
    return folder


@pytest.mark.parametrize("name", ["regression", "fashion_cnn"])
@pytest.mark.parametrize("state", ["diverged", "complete"])
def test_a_run_without_a_test_loss_gets_a_page_that_says_why(name, state, tmp_path):
    test = {"loss": None, "accuracy": None, "confusion": None}
    folder = fake_run(tmp_path / name, name, test=test, refit={"state": state, "failure": "too <large>"})
    if state == "diverged":
        (folder / "model.msgpack").unlink()
        arrays = storage.read_arrays(folder / "histories.npz")
        wrong = {part: arrays[part] * np.nan for part in ("test_outputs", "refit_train_loss")}
        storage.write_arrays(folder / "histories.npz", arrays | wrong)
    for page in (report.write(folder), report.write_overview(tmp_path, [folder], {})):
        text = page.read_text()
        assert "too &lt;large&gt;" in text and 'id="' + name in text
        assert ">None<" not in text


def test_results_without_a_test_loss_or_a_reason_are_damaged(tmp_path):
    fake_run(tmp_path, "regression", test={"loss": None, "accuracy": None, "confusion": None})
    with pytest.raises(ValueError, match="a test loss, or why there is none"):
        report.write(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fashion-MNIST of 50 random images, and coarse figures."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = [
            replace(study, load=lambda settings, study=study: tiny_data(study.name)) if study.classes else study
            for study in studies.STUDIES
        ]
        patch.setattr(studies, "STUDIES", tuple(tiny))
        patch.setattr(plots, "DOTS_PER_INCH", 50)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small):
    """A fake run of each study, its page written."""
    folder = tmp_path_factory.mktemp("runs")
    for name in DRAWS:
        with pytest.MonkeyPatch.context() as patch:
            if name == "fashion_mlp":  # its kinds of figures are all among the other classifier's: save the time
                content = plots.png(plots.figure(height=1)[0])
                patch.setattr(plots, "png", lambda figure, content=content: content)
            report.write(fake_run(folder / name, name))
    return folder


@pytest.fixture
def run_copy(runs, tmp_path):
    """A regression's folder to be damaged."""
    return Path(shutil.copytree(runs / "regression", tmp_path / "regression"))


@pytest.fixture
def blank(monkeypatch):
    """Where the figures don't matter: none is rendered; the list grows with each that would have been."""
    rendered: list[plots.Figure] = []
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


@pytest.mark.parametrize("name", DRAWS)
def test_every_figure_is_on_disk_and_the_same_in_the_page(runs, name):
    figures = {path.stem: path.read_bytes() for path in (runs / name / "figures").glob("*.png")}
    assert figures.keys() == FIGURES[name] | EVERYWHERE
    sources = [image["src"] for image in Page(runs / name / "report.html").all("img")]
    shown = [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]
    assert sorted(shown) == sorted(figures.values())
    assert all(content.startswith(b"\x89PNG") for content in shown)


@pytest.mark.parametrize("name", DRAWS)
def test_the_pages_numbers_are_those_of_the_results(runs, name):
    page, results = Page(runs / name / "report.html"), json.loads((runs / name / "results.json").read_text())
    numbers = [
        results["test"]["loss"], results["reported"]["test_loss"], results["best"]["mean_val_loss"],
        results["best"]["std_val_loss"], results["timing"]["total_seconds"], results["best"]["params"]["learning_rate"],
        results["trials"]["complete"], results["trials"]["failed"], results["best"]["number"],
    ]  # fmt: skip
    if results["test"]["accuracy"] is not None:
        numbers += [results["test"]["accuracy"], results["reported"]["test_accuracy"]]
        recalls = evaluation.precision_and_recall(np.array(results["test"]["confusion"]))[1]
        numbers += recalls.tolist()
        assert f"{results['test']['accuracy']:.1%}" in page.text
    assert {repr(number) for number in numbers} <= set(page.values)
    assert f"{results['test']['loss']:.3f}" in page.text
    assert results["command"] in page.text
    assert "trials 5 instead of" in page.text  # not the report's amount of work


def test_errors_inside_and_outside_the_gaps_add_up_to_the_test_loss(runs):
    page, results = (
        Page(runs / "regression" / "report.html"),
        json.loads((runs / "regression/results.json").read_text()),
    )
    data, outputs = tiny_data("regression"), storage.read_arrays(runs / "regression/histories.npz")["test_outputs"]
    inside = inspection.inside_gaps(data.x_test[:, 0], ((-3, -1), (1.75, 3.1)))
    squares = ((outputs - data.y_test) ** 2)[:, 0]
    parts = [squares[inside].mean(), squares[~inside].mean()]
    values = [float(value) for value in page.values]
    assert all(np.isclose(values, part, rtol=1e-5).any() for part in parts)
    total = np.average(parts, weights=[inside.sum(), (~inside).sum()])
    assert total == pytest.approx(results["test"]["loss"], rel=1e-5)


@pytest.mark.parametrize("name", DRAWS)
def test_every_image_says_what_it_shows(runs, name):
    alternatives = [image["alt"] for image in Page(runs / name / "report.html").all("img")]
    assert all(len(text) > 20 for text in alternatives)
    assert len(set(alternatives)) == len(alternatives)


@pytest.mark.parametrize("name", DRAWS)
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


@pytest.mark.parametrize("name", DRAWS)
def test_links_lead_to_places_in_the_page(runs, name):
    page = Page(runs / name / "report.html")
    places = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(places)) == len(places)
    assert {link["href"][1:] for link in page.all("a")} <= set(places)


def test_a_diverged_trial_is_in_the_table_and_last(runs):
    page = Page(runs / "regression" / "report.html")
    assert page.text.index("failed", page.text.index("All trials, the best first")) > page.text.rindex("complete")
    assert "Crosses: 1 failed." in page.text


def test_text_from_outside_shows_as_text(tmp_path, blank):
    results = {"title": EVIL, "command": f"python {EVIL}", "environment": {"device": EVIL, EVIL: "x"},
               "inputs": {"data_dir": EVIL}}  # fmt: skip
    path = report.write(fake_run(tmp_path / "regression", "regression", **results))
    page = Page(path)
    assert "<script" not in path.read_text(encoding="utf-8")
    assert not page.all("script") and all(image["src"].startswith("data:") for image in page.all("img"))
    assert page.text.count(EVIL) == 6  # page title, heading, command, both sides of the environment, input
    overview = report.write_overview(tmp_path, [tmp_path / "regression"], {"fashion_mlp": EVIL, EVIL: EVIL})
    assert "<script" not in overview.read_text(encoding="utf-8")
    assert Page(overview).text.count(EVIL) >= 6


def test_own_data_have_no_gaps(tmp_path, blank):
    data = tiny_data("regression")
    for part, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        rows = "".join(f"{a!r},{b!r}\n" for a, b in zip(x[:, 0].tolist(), y[:, 0].tolist(), strict=True))
        (tmp_path / f"{part}.csv").write_text("input,label\n" + rows)
    inputs = {"train_csv": str(tmp_path / "train.csv"), "test_csv": str(tmp_path / "test.csv")}
    folder = fake_run(tmp_path / "regression", "regression", inputs=inputs)
    assert inspection.read_run(folder).gaps == ()
    page = Page(report.write(folder))
    assert "inside the gaps" not in page.text and "all test points" in page.text
    (tmp_path / "test.csv").write_text("input,label\n0,0\n")
    with pytest.raises(ValueError, match=r"other data than .*test\.csv") as error:
        report.write(folder)
    assert "\n" not in str(error.value)


def test_a_run_without_inputs_used_the_usual_data(run_copy):
    results = json.loads((run_copy / "results.json").read_text())
    del results["inputs"]
    storage.write_json(run_copy / "results.json", results)
    assert len(inspection.read_run(run_copy).gaps) == 2


DAMAGES = {
    "results.json": [
        b"", b"[]", b"{", b"\xff\xfe", b'{"study": "regression"}', b"[" * 100_000, b"null", b'{"study": 3}'
    ],
    "trials.csv": [b"", b"number,state\n1,complete\n", b"\xff", b'"'],
    "histories.npz": [b"", b"PK\x03\x04", b"not a zip"],
    "model.msgpack": [b"", b"x", b"\x80"],
}  # fmt: skip


@pytest.mark.parametrize("name, content", [(name, content) for name, all in DAMAGES.items() for content in all])
def test_a_damaged_file_is_named_in_one_line(run_copy, name, content):
    (run_copy / name).write_bytes(content)
    before = (run_copy / "report.html").read_bytes()
    with pytest.raises(ValueError, match=name) as error:
        report.write(run_copy)
    assert "\n" not in str(error.value) and str(run_copy) in str(error.value)
    assert (run_copy / "report.html").read_bytes() == before


@pytest.mark.parametrize("name", DAMAGES)
def test_a_missing_file_is_named_in_one_line(run_copy, name):
    (run_copy / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        report.write(run_copy)


def test_a_truncated_file_is_damaged(run_copy):
    for name in ("results.json", "trials.csv", "histories.npz", "model.msgpack"):
        content = (run_copy / name).read_bytes()
        (run_copy / name).write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(ValueError, match=name):
            report.write(run_copy)
        (run_copy / name).write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        {"timing": {}}, {"best": {"number": 1}}, {"config": []}, {"test": {"loss": "low"}}, {"study": "poetry"},
        {"best": {"number": 3, "params": DRAWS["regression"].as_dict(), "mean_val_loss": 1.0, "std_val_loss": 0.0}},
    ],
    ids=str,
)  # fmt: skip
def test_results_that_do_not_fit_are_refused(run_copy, change):
    results = json.loads((run_copy / "results.json").read_text()) | change
    storage.write_json(run_copy / "results.json", results)
    with pytest.raises(ValueError) as error:
        report.write(run_copy)
    assert "\n" not in str(error.value)
    assert str(run_copy) in str(error.value) or change == {"study": "poetry"}


def test_histories_of_another_run_are_refused(run_copy):
    arrays = storage.read_arrays(run_copy / "histories.npz")
    storage.write_arrays(run_copy / "histories.npz", arrays | {"val_loss": arrays["val_loss"][:-1]})
    with pytest.raises(ValueError, match=r"histories\.npz is damaged \(val_loss has the shape"):
        report.write(run_copy)


def test_a_model_of_another_run_is_refused(run_copy):
    model = inspection.read_run(run_copy).model
    save_model(run_copy / "model.msgpack", model._replace(draw=model.draw._replace(l2=0.5)))
    with pytest.raises(ValueError, match="not the best model"):
        report.write(run_copy)


def test_the_overview_has_all_studies_and_their_numbers(runs):
    path = report.write_overview(runs, [runs / study.name for study in studies.STUDIES], {})
    page = Page(path)
    assert len(page.all("img")) == sum(len(names | EVERYWHERE) for names in FIGURES.values())
    for study in studies.STUDIES:
        results = json.loads((runs / study.name / "results.json").read_text())
        assert page.values.count(repr(results["test"]["loss"])) >= 2  # in the first table, and in the study's part
        assert f"#{study.name}" in [link["href"] for link in page.all("a")]
    places = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(places)) == len(places) and {link["href"][1:] for link in page.all("a")} <= set(places)


def test_the_overview_is_honest_about_what_failed_and_what_has_not_run(runs, tmp_path):
    path = report.write_overview(tmp_path, [runs / "regression"], {"fashion_mlp": "no data & no network"})
    page = Page(path)
    assert "Fashion-MNIST, dense net failed. no data & no network" in page.text
    assert page.text.count("has not run yet") == 2  # in the first table, and in its place
    assert len(page.all("img")) == len(FIGURES["regression"] | EVERYWHERE)


def test_the_overview_shows_the_others_beside_a_damaged_run(runs, run_copy, tmp_path):
    damaged = run_copy.rename(tmp_path / "fashion_mlp")
    (damaged / "results.json").write_text("{")
    page = Page(report.write_overview(tmp_path, [runs / "regression", damaged], {}))
    assert "results.json is damaged" in page.text and page.all("img")


def test_an_overview_before_anything_has_ended_is_a_page_too(tmp_path):
    assert Page(report.write_overview(tmp_path, [], {})).text.count("has not run yet") == 6


def test_the_overview_takes_figures_as_they_are_and_draws_missing_or_old_ones(run_copy, tmp_path, blank):
    number = len(FIGURES["regression"] | EVERYWHERE)
    report.write_overview(tmp_path, [run_copy], {})
    assert len(blank) == 0
    (run_copy / "figures" / "time.png").unlink()
    report.write_overview(tmp_path, [run_copy], {})
    assert len(blank) == number
    os.utime(run_copy / "figures" / "time.png", (0, 0))
    report.write_overview(tmp_path, [run_copy], {})
    assert len(blank) == 2 * number


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
    path = report.write_overview(runs, [runs / study.name for study in studies.STUDIES], {"fashion_cnn": "x" * 500})
    browser.open(path, width)
    assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.value("document.images.length") == sum(len(names | EVERYWHERE) for names in FIGURES.values())
    assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    methods = [event["method"] for event in browser.events]
    assert not {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"} & set(methods)
    requests = [event["params"]["request"]["url"] for event in browser.events
                if event["method"] == "Network.requestWillBeSent"]  # fmt: skip
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]


def test_a_browser_shows_a_script_in_a_title_as_text(tmp_path, browser, blank):
    path = report.write(fake_run(tmp_path / "regression", "regression", title=EVIL))
    browser.open(path, 400)
    assert browser.value("document.querySelector('h1').textContent") == EVIL
    assert browser.value("document.scripts.length") == 0
    assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert not any(event["method"] == "Page.javascriptDialogOpening" for event in browser.events)
