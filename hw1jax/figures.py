"""The figures of a run: what each shows, in words and as a drawing, from what the run has left.

A function a section of the page; each takes a loaded run and returns its figures in the order of the page.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hw1jax import evaluation, inspection, plots
from hw1jax.inspection import Run
from hw1jax.model_file import Model

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


Cell = Callable[[plots.Axes], Any]  # draws into an ax


def data(run: Run) -> Picture:
    """What the network learned from."""
    return _classes(run) if run.study.classes else _points(run)


def _classes(run: Run) -> Picture:
    names, data = run.study.classes or (), run.data
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


def learning(run: Run) -> list[Picture]:
    """Losses by epoch, of the best trial and of all."""
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


def test_set(run: Run) -> list[Picture]:
    """What the refitted best model does on the test set."""
    return _classification(run) if run.study.classes else _fit(run)


def errors_by_part(run: Run) -> dict[str, tuple[int, float]]:
    """A regression's test points and loss, of each part of the test set that has any; the last part is the whole."""
    inside = inspection.inside_gaps(run.data.x_test[:, 0], run.gaps)
    losses = np.asarray(run.study.loss(run.histories["test_outputs"], run.data.y_test))
    parts = {"inside the gaps": inside, "outside the gaps": ~inside} if inside.any() else {}
    parts["all test points"] = np.full(len(inside), True)
    return {name: (int(mask.sum()), float(losses[mask].mean())) for name, mask in parts.items() if mask.any()}


def _fit(run: Run) -> list[Picture]:
    h, loss_name = run.histories, run.study.loss_name
    folds = h["curve_fold_outputs"][run.best]  # [fold, point]
    curve = {"x": h["curve_x"], "y": h["curve_outputs"], "low": folds.min(axis=0), "high": folds.max(axis=0)}

    def fit(ax: plots.Axes) -> None:
        _draw_points(run)(ax)
        plots.fitted_curve(ax, **curve)

    x, residual = run.data.x_test[:, 0], (h["test_outputs"] - run.data.y_test)[:, 0]
    inside = inspection.inside_gaps(x, run.gaps)
    errors = {name: error for name, (_, error) in errors_by_part(run).items()}
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
    ]


def _classification(run: Run) -> list[Picture]:
    names, outputs, y = run.study.classes or (), run.histories["test_outputs"], run.data.y_test
    confusion = evaluation.confusion_matrix(outputs, y)
    precision, recall = evaluation.precision_and_recall(confusion)
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
    return pictures


def search(run: Run) -> list[Picture]:
    """The scores of all trials, and what they depend on."""
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
    slices = [partial(one, values=v, choices=choices[name], name=words(name)) for name, v in trials.params.items()]
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
            f"Score against each of the hyperparameters {', '.join(map(words, trials.params))}",
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


def network(run: Run) -> list[Picture]:
    """What is inside the refitted best model; nothing where its training diverged."""
    model = run.model
    if model is None:
        return []
    weights, biases = inspection.weights(model), inspection.biases(model)
    cells = [
        partial(plots.weight_histogram, weights=values, biases=biases[name], layer=_layer(name))
        for name, values in weights.items()
    ]
    alt = f"Histograms of the weights of {', '.join(map(_layer, weights))}"
    caption = "Weights of each layer of the refitted best model; ticks below the axis are its biases."
    pictures = [Picture("weights", alt, caption, _grid(cells, 2, height=0.2 + 1.9 * -(-len(cells) // 2)))]
    if not run.study.classes:
        pictures.append(_profiles(model))
    if model.draw.channels:
        fields = inspection.receptive_fields(model)
        pictures += [_receptive_fields(name, kernels) for name, kernels in fields.items()]
        pictures.append(_feature_maps(run, model))
    return pictures


def _profiles(model: Model) -> Picture:
    found = inspection.activations(model, np.array(PROFILE_INPUTS, np.float32)[:, None])
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


def _feature_maps(run: Run, model: Model) -> Picture:
    names = run.study.classes or ()
    pixels, name = run.data.x_test[TEST_IMAGE], names[run.data.y_test[TEST_IMAGE]]
    found = inspection.activations(model, pixels[None])
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


def timing(run: Run) -> Picture:
    """Where the time went."""
    seconds = {name: value for name, value in run.results["timing"].items() if isinstance(value, int | float)}
    total = seconds.pop("total_seconds")
    names = {
        "compile_seconds": "compiling",
        "train_seconds": "search (training and validation)",
        "refit_seconds": "refit of the best trial",
        "test_seconds": "evaluation on the test set",
    }
    parts = {names.get(name, words(name)): value for name, value in seconds.items()}
    parts["the rest (start, data, files)"] = max(0.0, total - sum(parts.values()))
    bars = partial(plots.bars, values=parts, title=f"{total:.1f} seconds in all", label="seconds", decimals=1)
    alt = "; ".join(f"{name}: {value:.1f} s" for name, value in parts.items())
    caption = "From the start of the process to results.json; figures and page come after."
    return Picture("time", alt, caption, _grid([bars], 1, height=0.7 + 0.3 * len(parts)))


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


def words(name: str) -> str:
    """num_epochs -> epochs, learning_rate -> learning rate."""
    return {"l2": "L2"}.get(name, name.removeprefix("num_").replace("_", " "))


def _layer(name: str) -> str:
    """conv1 -> convolution 1, dense2 -> hidden layer 2, output -> output layer."""
    if name == "output":
        return "output layer"
    return name.replace("conv", "convolution ").replace("dense", "hidden layer ")
