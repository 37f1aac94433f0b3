"""The page that a run leaves behind, `report.html` in one self-contained file, and figures/*.png."""

import base64
import html
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hw1jax import evaluation, inspection, plots, storage, studies
from hw1jax.inspection import Run

PROFILE_INPUTS = (-2.0, 0.0, 2.0)  # where the homework report shows the regression's activations
TEST_IMAGE = 0  # the test image whose activations are shown
NUM_MISTAKES = 12  # misclassified images that are shown
LEARNED, OFF_SCALE = 0.95, 5  # of a constant's loss: a trial below has learned something; one beyond is not drawn


class Picture(NamedTuple):
    """A figure of the page.

    Attributes:
      name: of its file.
      alt: what it shows, in words, for those who can't see it.
      caption: the text below it.
      draw: makes it.
    """

    name: str
    alt: str
    caption: str
    draw: Callable[[], plots.Figure]


class Markup(str):
    """Text that is HTML already; any other is escaped."""


Section = tuple[str, list[Picture | Markup]]  # heading, content
Cell = Callable[[plots.Axes], Any]  # draws into an ax


def write(folder: Path) -> Path:
    """Draws the figures of a run and writes its page, from what is on disk alone.

    Args:
      folder: with results.json, trials.csv, histories.npz and model.msgpack of a finished run.

    Returns:
      The path of report.html.

    Raises:
      ValueError: a file is missing or damaged, or the data are not those of the run; the message is one line.
    """
    run = inspection.read_run(folder)
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
    return [
        ("Hyperparameters", [_hyperparameters(run.results)]),
        ("Data", [_classes(run) if run.study.classes else _points(run)]),
        ("Learning", _learning(run)),
        ("Test set", _classification(run) if run.study.classes else _fit(run)),
        ("All trials", [*_search(run), _trials_table(run)]),
        ("Inside the network", _network(run)),
        ("Where the time went", [_time(run)]),
        ("How to repeat it", [_repeat(run.results)]),
    ]


def _grid(cells: Sequence[Cell], num_columns: int, *, height: float, title: str = "", label: str = "", **options: Any):
    """What makes a figure of drawings, row by row; `label` is that of all their y axes, `height` in inches."""

    def draw() -> plots.Figure:
        figure, axes = plots.figure(-(-len(cells) // num_columns), num_columns, height=height, **options)
        for ax, cell in zip(axes.flat, cells, strict=False):
            cell(ax)
        for ax in axes.flat[len(cells) :]:
            ax.remove()
        if title:
            figure.suptitle(title, x=0.01, ha="left")
        if label:
            figure.supylabel(label)
        return figure

    return draw


def _classes(run: Run) -> Picture:
    names, data = run.study.classes, run.data
    firsts = inspection.first_of_each_class(data.y_train, len(names))
    cells = [partial(plots.image, pixels=data.x_train[i], title=names[c]) for c, i in firsts.items()]
    counts = f"{len(data.x_train):,} training and {len(data.x_test):,} test images of 28 x 28 pixels"
    alt = f"Ten pictures, one of each class: {', '.join(names)}"
    return Picture("classes", alt, f"The first training image of each class: {counts}.", _grid(cells, 5, height=3))


def _points(run: Run) -> Picture:
    caption = f"{len(run.data.x_train)} noisy training points and {len(run.data.x_test)} test points."
    if run.gaps:
        caption += " The shaded intervals hold no training input: there the fit has to guess."
    alt = "Training and test points of the regression in one plane"
    return Picture("data", alt, caption, _grid([_draw_points(run)], 1, height=3.2))


def _draw_points(run: Run) -> Cell:
    flat = {name: part[:, 0] for name, part in run.data._asdict().items()}
    return partial(plots.regression_data, gaps=run.gaps, **flat)


def _learning(run: Run) -> list[Picture]:
    h, best, loss_name = run.histories, run.best, run.study.loss_name
    train, val = h["train_loss"][best], h["val_loss"][best]
    means = {"train_mean": train.mean(axis=0), "val_mean": val.mean(axis=0), "refit": h["refit_train_loss"]}
    profile = partial(plots.learning_profile, train=train, val=val, loss_name=loss_name, **means)
    curves = h["val_loss"].mean(axis=1)  # [trial, epoch]
    every = partial(plots.validation_curves, curves=curves, usual=_usual(run), best=best, loss_name=loss_name)
    return [
        Picture(
            "learning_profile",
            f"Loss by epoch of the best trial, training and validation; validation ends at {means['val_mean'][-1]:.4g}",
            f"The best trial (number {run.results['best']['number']}): each fold thin, their mean bold, and its refit "
            "on all training data. Training losses are means over an epoch while the network changes.",
            _grid([profile], 1, height=3.2),
        ),
        Picture(
            "validation_curves",
            f"Validation loss by epoch of all {len(curves)} trials, the best one marked",
            "Every trial of the search, the mean over its folds. Failed trials, and those that ended beyond "
            f"{OFF_SCALE} times a constant's loss, don't count for the limits.",
            _grid([every], 1, height=3.2),
        ),
    ]


def _fit(run: Run) -> list[Picture | Markup]:
    h, loss_name = run.histories, run.study.loss_name
    folds = h["curve_fold_outputs"][run.best]  # [fold, point]
    curve = {"x": h["curve_x"], "y": h["curve_outputs"], "low": folds.min(axis=0), "high": folds.max(axis=0)}

    def fit(ax: plots.Axes) -> None:
        _draw_points(run)(ax)
        plots.fitted_curve(ax, **curve)

    x, residual = run.data.x_test[:, 0], (h["test_outputs"] - run.data.y_test)[:, 0]
    inside = inspection.inside_gaps(x, run.gaps)
    losses = np.asarray(run.study.loss(h["test_outputs"], run.data.y_test))
    parts = {"inside the gaps": inside, "outside the gaps": ~inside} if inside.any() else {}
    parts["all test points"] = np.full(len(x), True)
    errors = {name: float(losses[mask].mean()) for name, mask in parts.items() if mask.any()}
    rows = [[name, int(parts[name].sum()), _number(error)] for name, error in errors.items()]
    cells = [
        partial(plots.residuals, x=x, residual=residual, inside=inside, gaps=run.gaps),
        partial(plots.bars, values=errors, title="By part of the test set", label=loss_name, decimals=3),
    ]
    return [
        Picture(
            "fitted_curve",
            "The curve of the refitted best model over the data, with the range of its fold models as a band",
            "The refitted best model, and the range of the models that its folds trained: where they part, the data "
            "do not decide.",
            _grid([fit], 1, height=3.6),
        ),
        Picture(
            "test_errors",
            "; ".join(f"{loss_name} of {name}: {error:.3g}" for name, error in errors.items()),
            "Errors of the refitted best model on the test points.",
            _grid(cells, 2, height=2.8, width_ratios=[3, 2]),
        ),
        _table(["part of the test set", "points", loss_name], rows),
    ]


def _classification(run: Run) -> list[Picture | Markup]:
    names, outputs, y = run.study.classes, run.histories["test_outputs"], run.data.y_test
    confusion = evaluation.confusion_matrix(outputs, y)
    precision, recall = evaluation.precision_and_recall(confusion)
    numbers = zip(names, confusion.sum(axis=1).tolist(), precision.tolist(), recall.tolist(), strict=True)
    rows = [[name, count, _number(p), _number(r)] for name, count, p, r in numbers]
    true, predicted = inspection.most_confused_pair(confusion)
    mistakes = inspection.misclassified(outputs, y, true, predicted)[:NUM_MISTAKES]
    sure = evaluation.softmax(outputs[mistakes])[:, predicted] if len(mistakes) else []
    pair = f"{names[true]} that were taken for {names[predicted]}"
    count = f"{confusion[true, predicted]} of {confusion[true].sum()}"
    found = inspection.calibration(outputs, y)
    error = f"expected calibration error ({len(found.right)} bins): {found.expected_error:.3f}"
    shares = partial(plots.confusion_matrix, shares=evaluation.normalise_rows(confusion), names=names)
    by_class = partial(plots.precision_and_recall, precision=precision, recall=recall, names=names)
    calibration = [
        partial(plots.reliability, confidence=found.confidence, accuracy=found.accuracy),
        partial(plots.confidence_histogram, edges=found.edges, right=found.right, wrong=found.wrong),
    ]
    images = zip(mistakes, sure, strict=True)
    wrong = [partial(plots.image, pixels=run.data.x_test[i], title=f"{share:.0%} sure") for i, share in images]
    pictures = [
        Picture(
            "confusion",
            f"Confusion matrix, a row a true class; the most frequent mistake: {pair}, {count}",
            f"Rows add up to 100 %. The most frequent mistake: {pair}, {count} images.",
            _grid([shares], 1, height=5.2),
        ),
        Picture(
            "precision_recall",
            "Precision and recall of each class; the numbers are in the table below",
            "Precision: the share of the images called so that are so. Recall: the share of the class that was found.",
            _grid([by_class], 1, height=3.4),
        ),
        Picture(
            "calibration",
            f"Accuracy against confidence, and a histogram of confidences; {error}",
            f"Confidence is the probability of the predicted class; {error}.",
            _grid(calibration, 2, height=3),
        ),
    ]
    if wrong:
        caption = f"The most confused pair, {pair}: the {len(wrong)} mistakes that the network was surest of."
        draw = _grid(wrong, 6, height=0.2 + 1.3 * -(-len(wrong) // 6), title=f"Test images of {pair}")
        pictures.append(Picture("mistakes", f"{len(wrong)} test images of {pair}", caption, draw))
    return [*pictures, _table(["class", "test images", "precision", "recall"], rows)]


def _search(run: Run) -> list[Picture]:
    trials, study = run.trials, run.study
    choices, label = inspection.choices(run.results["config"]), f"validation {study.loss_name}"
    constant, usual = _constant_loss(run), _usual(run)
    learned = trials.means < LEARNED * constant
    num_failed, num_off = int(np.sum(~trials.complete)), int(np.sum(trials.complete & ~usual))
    num_hollow = int(np.sum(usual & ~learned))
    notes = f" Crosses: {num_failed} failed" if num_failed or num_off else ""
    notes += f", {num_off} beyond {OFF_SCALE} times a constant's loss." if num_off else "." if notes else ""
    hollow = f" Hollow: {num_hollow} learned no more than a constant." if num_hollow else ""
    order = np.argsort(trials.ranks, kind="stable")  # failed ones, of rank NaN, come last
    ordered = {name: getattr(trials, name)[order] for name in ("numbers", "folds", "means")} | {"usual": usual[order]}
    scores = partial(plots.trial_scores, constant=constant, loss_name=study.loss_name, **ordered)
    shared = {"scores": trials.means, "usual": usual, "best": run.best}
    one = partial(plots.hyperparameter_slice, learned=learned, **shared)
    slices = [partial(one, values=v, choices=choices[name], name=_words(name)) for name, v in trials.params.items()]
    num_columns = 3 if len(slices) in (3, 5, 6) else 4
    plane = partial(
        plots.score_plane,
        x=trials.params["learning_rate"],
        y=trials.params["l2"],
        names=trials.params["optimizer"],
        x_range=choices["learning_rate"],
        y_range=choices["l2"],
        labels=("learning rate", "L2 coefficient", label),
        **shared,
    )
    return [
        Picture(
            "trial_scores",
            f"Validation loss of each of {len(order)} trials with its folds; {num_failed} failed",
            "The score of a trial is the mean over its folds after the last epoch. The dashed line is the loss of the "
            f"best constant, {constant:.3g}.{notes}",
            _grid([scores], 1, height=3),
        ),
        Picture(
            "slices",
            f"Score against each of the hyperparameters {', '.join(map(_words, trials.params))}",
            f"Each hyperparameter against the score; dark is good, the ring is the best trial.{notes}{hollow}",
            _grid(slices, num_columns, height=0.4 + 1.7 * -(-len(slices) // num_columns), label=label, sharey=True),
        ),
        Picture(
            "learning_rate_l2",
            "Learning rate and L2 coefficient of all trials, coloured by score, a marker an optimizer",
            f"What usually matters most, together: learning rate, L2 and optimizer.{notes}",
            _grid([plane], 1, height=3.4),
        ),
    ]


def _constant_loss(run: Run) -> float:
    return inspection.constant_loss(run.data.y_train, len(run.study.classes) if run.study.classes else None)


def _usual(run: Run) -> np.ndarray:
    """The trials whose scores fit into one figure, bool [trial]: neither failed nor far off, and always the best."""
    usual = run.trials.complete & (run.trials.means <= OFF_SCALE * _constant_loss(run))
    usual[run.best] = True
    return usual


def _network(run: Run) -> list[Picture]:
    weights, biases = inspection.weights(run.model), inspection.biases(run.model)
    cells = [
        partial(plots.weight_histogram, weights=values, biases=biases[name], layer=_layer(name))
        for name, values in weights.items()
    ]
    alt = f"Histograms of the weights of {', '.join(map(_layer, weights))}"
    caption = "Weights of each layer of the refitted best model; ticks below the axis are its biases."
    pictures = [Picture("weights", alt, caption, _grid(cells, 2, height=0.2 + 1.9 * -(-len(cells) // 2)))]
    if not run.study.classes:
        pictures.append(_profiles(run))
    if run.model.draw.channels:
        fields = inspection.receptive_fields(run.model)
        pictures += [_receptive_fields(name, kernels) for name, kernels in fields.items()]
        pictures.append(_feature_maps(run))
    return pictures


def _profiles(run: Run) -> Picture:
    found = inspection.activations(run.model, np.array(PROFILE_INPUTS, np.float32)[:, None])
    found.pop("output")
    cells = [
        partial(plots.activation_profile, activations=values[i], title=f"{_layer(name)}, x = {x:g}")
        for name, values in found.items()
        for i, x in enumerate(PROFILE_INPUTS)
    ]
    alt = f"Activation of every hidden unit for the inputs {', '.join(f'{x:g}' for x in PROFILE_INPUTS)}"
    draw = _grid(cells, len(PROFILE_INPUTS), height=0.3 + 1.4 * len(found), label="activation", sharey=True)
    return Picture("activations", alt, f"{alt}: a row a layer, a column an input.", draw)


def _receptive_fields(name: str, kernels: np.ndarray) -> Picture:
    num_channels, num_inputs, *size = kernels.shape
    title = f"{_layer(name)}: {num_inputs} x {num_channels} kernels of {' x '.join(map(str, size))} weights"
    draw = _grid(
        [partial(plots.receptive_fields, kernels=kernels, title=title)],
        1,
        height=1.1 + 5 * num_inputs / num_channels,
    )
    alt = f"Receptive fields of {title}, positive weights red, negative blue"
    caption = f"Receptive fields of {_layer(name)}: a column a channel, a row an input channel."
    return Picture(f"receptive_fields_{name}", alt, f"{caption} Red weights are positive, blue negative.", draw)


def _feature_maps(run: Run) -> Picture:
    pixels, name = run.data.x_test[TEST_IMAGE], run.study.classes[run.data.y_test[TEST_IMAGE]]
    found = inspection.activations(run.model, pixels[None])
    found = {layer: maps[0] for layer, maps in found.items() if layer.startswith("conv")}
    cells: list[Cell] = []
    for layer, maps in found.items():
        title = f"{_layer(layer)}: {len(maps)} channels of {' x '.join(map(str, maps.shape[1:]))}"
        picture = partial(plots.image, pixels=pixels, title=f"test image {TEST_IMAGE}:\n{name}")
        cells += [plots.nothing if cells else picture, partial(plots.feature_maps, maps=maps, title=title)]
    heights = [0.4 + 0.95 * -(-len(maps) // 5) for maps in found.values()]
    draw = _grid(cells, 2, height=sum(heights), width_ratios=[1, 4.5], height_ratios=heights)
    alt = f"Activations of every channel of the convolutions for a test image, {name}"
    return Picture("feature_maps", alt, f"{alt}: after ReLU and before pooling.", draw)


def _time(run: Run) -> Picture:
    timing = {name: value for name, value in run.results["timing"].items() if isinstance(value, int | float)}
    total = timing.pop("total_seconds")
    names = {
        "compile_seconds": "compiling",
        "train_seconds": "search (training and validation)",
        "refit_seconds": "refit of the best trial",
        "test_seconds": "evaluation on the test set",
    }
    parts = {names.get(name, _words(name)): seconds for name, seconds in timing.items()}
    parts["the rest (start, data, files)"] = max(0.0, total - sum(parts.values()))
    bars = partial(plots.bars, values=parts, title=f"{total:.1f} seconds in all", label="seconds", decimals=1)
    alt = "; ".join(f"{name}: {seconds:.1f} s" for name, seconds in parts.items())
    caption = "From the start of the process to results.json; figures and page come after."
    return Picture("time", alt, caption, _grid([bars], 1, height=0.7 + 0.3 * len(parts)))


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
        rows.append([_words(name), among, _value(reported.get(name)), _value(value)])
    return _table(["hyperparameter", "range", "the report's best", "best of this run"], rows)


def _trials_table(run: Run) -> Markup:
    rows = []
    for i in np.argsort(run.trials.ranks, kind="stable"):
        cells = [_value(_parsed(text)) for text in run.trials.rows[i].values()]
        rows.append([Markup(f"<strong>{_cell(cell)}</strong>") for cell in cells] if i == run.best else cells)
    return _table([_words(name) for name in run.trials.rows[0]], rows, caption="All trials, the best first")


def _repeat(results: dict[str, Any]) -> Markup:
    """The command, the settings, and on what it ran."""
    config = {_words(name): _setting(value) for name, value in results["config"].items()}
    inputs = {_words(name): value for name, value in (results.get("inputs") or {}).items() if value}
    environment = {_words(name): _setting(value) for name, value in results["environment"].items()}
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
    other = [f"{_words(n)} {config[n]} instead of {getattr(usual, n)}" for n in names if config[n] != getattr(usual, n)]
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


def _number(value: float, form: str = "{:.3f}") -> Markup:
    """A number as people read it, and exactly for programs."""
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
        return ", ".join(f"{_words(name)} {_setting(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        ranges = all(isinstance(inner, list) for inner in value)
        numbers = all(isinstance(inner, int | float) for inner in value)
        return (", " if ranges or not numbers else " - ").join(map(_setting, value))
    return "-" if value is None else str(value)


def _words(name: str) -> str:
    """num_epochs -> epochs, learning_rate -> learning rate."""
    return {"l2": "L2"}.get(name, name.removeprefix("num_").replace("_", " "))


def _layer(name: str) -> str:
    """conv1 -> convolution 1, dense2 -> hidden layer 2, output -> output layer."""
    if name == "output":
        return "output layer"
    return name.replace("conv", "convolution ").replace("dense", "hidden layer ")


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
