"""Sections about a classification: its classes, and which are taken for which, on the test set or out of fold."""

from functools import partial

import numpy as np

from hw1jax.report import html, plots
from hw1jax.report.html import Figure, Item, Markup, Panel, grid, table
from hw1jax.results import evaluation
from hw1jax.results.results import Classified, Results

NUM_MISTAKES = 12  # misclassified images that are shown
MOST_PICTURES = 20  # of classes


def has_images(results: Results) -> bool:
    """True if the inputs are images: uint8, grey or in colours."""
    x = results.data.x_test if results.data.has_test_set else results.data.x_train
    return isinstance(x, np.ndarray) and x.dtype == np.uint8 and (x.ndim == 3 or x.shape[3:] in ((1,), (3,)))


def image(x: np.ndarray, i: int, title: str) -> Panel:
    """The i-th of images."""
    return partial(plots.image, pixels=x[i, :, :, 0] if x.shape[3:] == (1,) else x[i], title=title)


def first_of_each_class(y: np.ndarray, num_classes: int) -> dict[int, int]:
    """{class: index of its first example}, without the classes that `y` (int [example]) does not have."""
    return {c: int(np.flatnonzero(y == c)[0]) for c in range(num_classes) if np.any(y == c)}


def pictures(results: Results, classified: Classified) -> Figure:
    """The first training image of each class."""
    names, (x, y, x_test, *_) = classified.names, results.data
    firsts = first_of_each_class(y, min(len(names), MOST_PICTURES))
    panels = [image(x, i, names[c]) for c, i in firsts.items()]
    counts = f"{len(x):,} training" + ("" if x_test is None else f" and {len(x_test):,} test")
    counts += f" images of {x.shape[1]} x {x.shape[2]} pixels"
    alt = f"A picture of each class: {', '.join(names[c] for c in firsts)}"
    draw = grid(panels, 5, height=1.5 * -(-len(panels) // 5))
    return Figure("classes", alt, f"The first training image of each class: {counts}.", draw)


def classification(results: Results) -> list[Item]:
    """The confusion matrix, precision and recall, calibration, mistakes; nothing without classes."""
    classified = results.classified
    if classified is None:
        return []
    names, outputs, y, where = classified.names, classified.outputs, classified.y, classified.where
    what = "images" if has_images(results) else "examples"
    confusion = evaluation.confusion_matrix(outputs, y)
    precision, recall = evaluation.precision_and_recall(confusion)
    confused, mistakes, images = evaluation.most_confused_pair(confusion), "no mistakes", []
    if confused:
        true, predicted = confused
        pair = f"{names[true]} that were taken for {names[predicted]}"
        mistakes = f"the most frequent mistake: {pair}, {confusion[true, predicted]} of {confusion[true].sum()}"
        if has_images(results):
            images = _mistakes(classified, true, predicted, pair, results.has_probabilities)
    matrix = partial(plots.confusion_matrix, shares=evaluation.normalise_rows(confusion), names=names, where=where)
    by_class = partial(plots.precision_and_recall, precision=precision, recall=recall, names=names)
    return [
        Figure(
            "confusion",
            f"Confusion matrix, a row a true class; {mistakes}",
            f"{classified.whose}Rows add up to 100 %. {html.capital(mistakes)}{f' {what}' if confused else ''}.",
            grid([matrix], 1, height=5.2),
        ),
        Figure(
            "precision_recall",
            "Precision and recall of each class; the numbers are in the table below",
            f"Precision: the share of the {what} called so that are so. Recall: the share of the class that was found.",
            grid([by_class], 1, height=0.4 + 0.3 * len(names)),
        ),
        *(_calibration(classified, what) if results.has_probabilities else []),
        *images,
        _table(classified, confusion, what),
    ]


def _calibration(classified: Classified, what: str) -> list[Item]:
    bins = evaluation.calibration(classified.outputs, classified.y)
    error = f"expected calibration error ({len(bins.right)} bins): {bins.expected_error:.3f}"
    histogram = partial(plots.confidence_histogram, edges=bins.edges, right=bins.right, wrong=bins.wrong)
    panels = [
        partial(plots.reliability, confidence=bins.confidence, accuracy=bins.accuracy),
        partial(histogram, what=f"{classified.part} {what}"),
    ]
    return [
        Figure(
            "calibration",
            f"Accuracy against confidence, and a histogram of confidences; {error}",
            f"Confidence is the probability of the predicted class; {error}.",
            grid(panels, 2, height=3),
        )
    ]


def _mistakes(classified: Classified, true: int, predicted: int, pair: str, has_probabilities: bool) -> list[Item]:
    x, part = classified.x, classified.part
    mistakes = evaluation.misclassified(classified.outputs, classified.y, true, predicted)[:NUM_MISTAKES]
    if not len(mistakes):
        return []
    sure = evaluation.softmax(classified.outputs[mistakes])[:, predicted]
    titles = [f"{share:.0%} sure" if has_probabilities else "" for share in sure]
    panels = [image(x, i, title) for i, title in zip(mistakes, titles, strict=True)]
    which = " that the network was surest of" if has_probabilities else ""
    caption = f"The most confused pair, {pair}: {len(panels)} mistakes{which}."
    draw = grid(panels, 6, height=0.2 + 1.3 * -(-len(panels) // 6), title=f"{html.capital(part)} images of {pair}")
    return [Figure("mistakes", f"{len(panels)} {part} images of {pair}", caption, draw)]


def _table(classified: Classified, confusion: np.ndarray, what: str) -> Markup:
    counts, (precision, recall) = confusion.sum(axis=1), evaluation.precision_and_recall(confusion)
    numbers = zip(classified.names, counts.tolist(), precision.tolist(), recall.tolist(), strict=True)
    rows = [[name, count, html.number(p), html.number(r)] for name, count, p, r in numbers]
    return table(["class", f"{classified.part} {what}", "precision", "recall"], rows)
