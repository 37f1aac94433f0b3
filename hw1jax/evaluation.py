"""What a trained model is worth on a test set, from its outputs: arrays in, numbers out."""

import numpy as np


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, float64 [example, class], from unnormalised log-probabilities."""
    outputs = np.asarray(outputs, np.float64)
    exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def accuracy(outputs: np.ndarray, y: np.ndarray) -> float:
    """Share of the examples whose largest output ([example, class]) is that of their class (`y`: [example])."""
    return float(np.mean(np.argmax(outputs, axis=1) == y))


def confusion_matrix(outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Counts, int [true class, predicted class]."""
    num_classes = outputs.shape[1]
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (y, np.argmax(outputs, axis=1)), 1)
    return counts


def normalise_rows(confusion: np.ndarray) -> np.ndarray:
    """Share of each true class that was predicted as each class; a class without examples has a row of 0."""
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def precision_and_recall(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(precision, recall) of each class, [class]; 0 where nothing was predicted, or nothing is there."""
    hits = np.diag(confusion)
    return hits / np.maximum(confusion.sum(axis=0), 1), hits / np.maximum(confusion.sum(axis=1), 1)
