"""Plots are functions of arrays; the tests check the content of each plot."""

import ast
import inspect
import io

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from studies import pixels

from hw1jax.report import drawing, look, plots, trial_plots
from hw1jax.report.look import BEST
from hw1jax.report.trial_plots import Scores

RANDOM = np.random.default_rng(0)
SPREAD = RANDOM.uniform(0.1, 2, (2, 3, 5))


@pytest.fixture
def ax():
    return Figure().subplots()


def line(ax, label):
    """The one line with this label, as (x, y)."""
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def bools(*values):
    return np.array(values, bool)


def scores(values, on_scale=None, pruned=None, best=0, **options):
    """Scores of trials, by default all of them on the scale and complete."""
    values = np.array(values, float)
    every, none = np.full(len(values), True), np.full(len(values), False)
    shown, dropped = every if on_scale is None else bools(*on_scale), none if pruned is None else bools(*pruned)
    return Scores(values, shown, dropped, best, **options)


def test_regression_data_shows_every_point_and_shades_the_gaps(ax):
    x_train, y_train, x_test, y_test = RANDOM.normal(size=(4, 6))
    plots.regression_data(ax, x_train, y_train, x_test, y_test, gaps=((-3, -1), (1, 2)))
    np.testing.assert_array_equal(line(ax, "training points"), [x_train, y_train])
    np.testing.assert_array_equal(line(ax, "test points"), [x_test, y_test])
    assert [(patch.get_x(), patch.get_width()) for patch in ax.patches] == [(-3, 2), (1, 1)]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("input x", "label y")
    assert legend(ax) == ["no training inputs", "training points", "test points"]
    assert not plots.regression_data(Figure().subplots(), *np.zeros((4, 2))).patches


def test_of_very_many_points_some_are_drawn():
    for count, drawn in [(3, 3), (plots.MOST_POINTS, plots.MOST_POINTS), (10**6 + 1, 9901)]:
        ax = plots.regression_data(Figure().subplots(), *np.zeros((4, count)))
        assert [len(line.get_xdata()) for line in ax.lines] == [drawn] * 2


def test_fitted_curve_shows_the_model_and_the_range_of_the_folds(ax):
    x, y = np.linspace(-1, 1, 5), np.arange(5.0)
    plots.fitted_curve(ax, x, y, y - 1, y + 2, y / 2)
    np.testing.assert_array_equal(line(ax, "mean of the fold models"), [x, y / 2])
    np.testing.assert_array_equal(line(ax, "refitted best model"), [x, y])
    corners = {tuple(point) for point in ax.collections[0].get_paths()[0].vertices}
    assert {*zip(x, y - 1, strict=True), *zip(x, y + 2, strict=True)} <= corners


def test_residuals_inside_the_gaps_have_a_colour_of_their_own(ax):
    plots.residuals(ax, np.arange(4.0), np.array([1, -1, 2, -2.0]), bools(1, 0, 0, 1), gaps=((-1, 1),))
    np.testing.assert_array_equal(line(ax, "inside"), [[0, 3], [1, -2]])
    np.testing.assert_array_equal(line(ax, "outside the gaps"), [[1, 2], [-1, 2]])
    colors = {line.get_label(): line.get_color() for line in ax.lines}
    assert colors["inside"] != colors["outside the gaps"] and ax.get_legend()
    assert plots.residuals(Figure().subplots(), np.arange(2.0), np.ones(2), bools(0, 0)).get_legend() is None


def test_learning_profile_shows_folds_thin_their_mean_bold_and_the_refit(ax):
    (train, val), refit = SPREAD, np.linspace(1, 0.1, 5)
    plots.learning_profile(ax, {"training": train, "validation": val}, title="", label="nats", refit=refit)
    np.testing.assert_array_equal(line(ax, "validation, mean of 3 networks"), [[1, 2, 3, 4, 5], val.mean(0)])
    np.testing.assert_array_equal(line(ax, "refit on all training data")[1], refit)
    thin = [line for line in ax.lines if line.get_linewidth() < 1]
    np.testing.assert_array_equal([line.get_ydata() for line in thin], [*train, *val])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "nats")


def test_losses_are_logarithmic_where_they_span_much_with_plain_numbers(ax):
    wide = np.array([[5, 0.01], [6, 0.02]])
    plots.learning_profile(ax, {"training": wide}, title="", label="loss", refit=wide[0])
    assert ax.get_yscale() == "log"
    assert ax.yaxis.get_major_formatter()(0.05) == "0.05"


@pytest.mark.parametrize("num_epochs", [1, 2, 20, 1000])
def test_epochs_are_whole_numbers_and_a_single_one_is_seen(ax, num_epochs):
    ones = np.ones((2, num_epochs))
    plots.learning_profile(ax, {"validation": ones}, title="", label="loss", refit=ones[0])
    (low, high), ticks = ax.get_xlim(), ax.get_xticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))
    assert low < 1 and high > num_epochs and any(low <= tick <= high for tick in ticks)
    assert all((line.get_marker() == "o") == (num_epochs <= 30) for line in ax.lines)


LOSS = {"title": "", "label": "loss", "is_loss": True}


def test_a_diverged_trial_does_not_wreck_the_limits_of_the_curves(ax):
    curves = np.array([[2, 1.5, 1.0], [2, 1e9, np.inf], [2, 1.8, 1.6], [3, np.nan, np.nan]])
    trial_plots.trial_curves(ax, curves, scores(np.ones(4), (1, 0, 1, 0)), **LOSS)
    low, high = ax.get_ylim()
    assert 0.8 < low < 1 and 2 < high < 2.5
    np.testing.assert_array_equal(line(ax, "best trial")[1], curves[0])
    assert sorted(legend(ax)) == ["best trial", "failed or off the scale", "other trials"]
    equal = trial_plots.trial_curves(Figure().subplots(), np.ones((2, 3)), scores([1, 1], best=1), **LOSS)
    low, high = equal.get_ylim()
    assert low < 1 < high


def test_a_pruned_trials_line_ends_in_a_ring(ax):
    curves = np.array([[2, 1.5, 1.0], [2, 1.8, np.nan], [2, np.nan, np.nan], [2, 1.5, 1.2], [np.nan] * 3])
    trial_plots.trial_curves(ax, curves, scores(np.ones(5), pruned=(0, 1, 1, 0, 1)), **LOSS)
    rings = [one for one in ax.lines if one.get_markerfacecolor() == "white"]
    assert [one.get_markevery().tolist() for one in rings] == [[1], [0], []]  # the places in their lines
    np.testing.assert_array_equal(line(ax, "pruned")[1], curves[1])
    colors = {one.get_label(): one.get_color() for one in ax.lines}
    assert colors["pruned"] != colors["other trials"]
    assert legend(ax) == ["pruned", "other trials", "best trial"]


def test_a_metrics_profile_and_curves_are_linear_and_failed_trials_leave_the_axis(ax):
    val = SPREAD[1]
    plots.learning_profile(ax, {"validation": val}, title="", label="accuracy")
    np.testing.assert_array_equal(line(ax, "validation, mean of 3 networks"), [[1, 2, 3, 4, 5], val.mean(0)])
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines if line.get_linewidth() < 1], val)
    assert ax.get_ylabel() == "accuracy" and ax.get_yscale() == "linear"
    curves, every = np.array([[0.1, 0.9], [0.1, 0.5], [0.5, np.nan], [0.2, -1e9]]), Figure().subplots()
    trial_plots.trial_curves(every, curves, scores(np.ones(4), (1, 1, 0, 0)), **LOSS | {"is_loss": False})
    low, high = every.get_ylim()
    assert 0 < low < 0.1 and 0.9 < high < 1 and every.get_yscale() == "linear"
    np.testing.assert_array_equal(line(every, "best trial")[1], curves[0])
    trial_plots.trial_curves(Figure().subplots(), curves * np.nan, scores(np.ones(4)), **LOSS)


def test_compared_curves_share_an_axis_of_epochs_or_of_shares(ax):
    plots.compared_curves(ax, {"a": np.array([3.0, 1.0]), "b": np.array([4.0, 0.5])}, title="", label="loss", log=True)
    assert legend(ax) == ["a", "b"] and ax.get_xlabel() == "epoch" and ax.get_yscale() == "log"
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
    other = Figure().subplots()
    plots.compared_curves(other, {"a": np.ones(2), "b": np.ones(4)}, title="", label="accuracy")
    assert other.get_xlabel() == "share of its epochs" and other.get_yscale() == "linear"
    assert [line.get_xdata()[-1] for line in other.lines] == [1, 1]


def test_trial_scores_show_folds_means_and_failed_trials(ax):
    folds = np.array([[1, 1.2], [1.4, 2.0], [np.nan, 3]])
    order, numbers = np.array([2, 0, 1]), np.array([2, 4, 7])  # in the file another than on the page
    folds = folds[[1, 2, 0]]
    trial_plots.trial_scores(ax, scores(folds.mean(1), (1, 0, 1)), order, folds, numbers, numbers, constant=2.3)
    np.testing.assert_allclose(line(ax, "mean"), [[0, 1], [1.1, 1.7]])
    np.testing.assert_array_equal(line(ax, "each fold"), [[0, 1], [1, 1.4]])
    np.testing.assert_array_equal(line(ax, "constant prediction")[1], [2.3, 2.3])
    np.testing.assert_array_equal(line(ax, "failed or off the scale")[0], [2])
    assert tick_labels(ax.xaxis) == ["7", "2", "4"]
    assert ax.get_ylim()[1] < 3


def test_scores_of_pruned_trials_are_hollow_and_say_after_how_many_epochs(ax):
    folds = np.array([[1, 1.2], [1.4, 2.0], [0.5, 0.6], [2, 2], [np.nan, 1]])
    shown, epochs, rows = (
        scores(folds.mean(1), (1, 1, 1, 1, 0), (0, 1, 1, 1, 0)),
        np.array([9, 3, 1, 1, 2]),
        np.arange(5),
    )
    trial_plots.trial_scores(ax, shown, rows, folds, rows, epochs, constant=None)
    np.testing.assert_array_equal(line(ax, "each fold"), [[0], [1]])
    np.testing.assert_array_equal(line(ax, "each fold of a pruned trial"), [[1, 2, 3], [1.4, 0.5, 2]])
    looks = {one.get_label(): (one.get_color(), one.get_marker(), one.get_markerfacecolor()) for one in ax.lines}
    assert not set(looks["each fold"]) & set(looks["each fold of a pruned trial"])
    assert [text.get_text() for text in ax.texts] == ["pruned after 3 epochs", "pruned after 1 epoch"]
    assert [text.get_position()[0] for text in ax.texts] == pytest.approx([0.6, 1.6])


def test_many_trials_get_few_enough_labels_and_high_scores_a_linear_axis_without_a_constant(ax):
    folds, rows = np.ones((200, 3)), np.arange(200)
    shown = scores(folds[:, 0], rows < 21, rows >= 21)
    trial_plots.trial_scores(ax, shown, rows, folds, rows, folds[:, 0], constant=2)
    assert 25 <= len(ax.get_xticks()) <= 50
    folds, other = np.array([[0.9, 0.95], [0.1, 0.2]]), Figure().subplots()
    high = scores(folds.mean(1), label="validation accuracy", high_is_good=True)
    trial_plots.trial_scores(other, high, np.arange(2), folds, np.arange(2), np.ones(2), constant=None)
    assert other.get_yscale() == "linear" and other.get_ylabel() == "validation accuracy"
    assert legend(other) == ["each fold", "mean"]


def test_rungs_show_who_went_on_was_pruned_and_failed(ax):
    trial_plots.rungs(ax, ["to epoch 1", "to epoch 3"], np.array([2, 1]), np.array([4, 0]), np.array([1, 1]))
    bars = [(patch.get_x(), patch.get_width()) for patch in ax.patches]
    assert bars == [(0, 2), (0, 1), (2, 4), (1, 0), (6, 1), (1, 1)]
    assert legend(ax) == ["went on, or to the end", "pruned", "failed"] and ax.yaxis_inverted()
    assert [text.get_text() for text in ax.texts] == ["2", "1", "4", "", "1", "1"]
    none_failed = trial_plots.rungs(Figure().subplots(), ["a"], np.array([2]), np.array([4]), np.array([0]))
    assert legend(none_failed) == ["went on, or to the end", "pruned"]


def test_bars_carry_their_numbers_the_first_on_top(ax):
    plots.bars(ax, {"compile": 1.25, "train": 3.0}, title="time", label="seconds", form="{:.2f} s".format)
    assert [patch.get_width() for patch in ax.patches] == [1.25, 3.0]
    assert [text.get_text() for text in ax.texts] == ["1.25 s", "3.00 s"]
    assert ax.yaxis_inverted() and ax.get_xlabel() == "seconds"


def test_a_slice_shows_learned_hollow_failed_and_best_trials(ax):
    values, learned = np.array([10, 20, 30, 40.0]), bools(1, 0, 0, 1)
    found = scores([0.5, 2.3, np.inf, 0.9], (1, 1, 0, 1))
    trial_plots.hyperparameter_slice(ax, values, found, learned, name="units", choices=[5, 50])
    shown, hollow, *_, ring = ax.collections
    np.testing.assert_array_equal(shown.get_offsets(), [[10, 0.5], [40, 0.9]])
    np.testing.assert_array_equal(shown.get_array(), [0.5, 0.9])
    np.testing.assert_array_equal(hollow.get_offsets(), [[20, 2.3]])
    assert len(hollow.get_facecolor()) == 0
    np.testing.assert_array_equal(ring.get_offsets(), [[10, 0.5]])
    np.testing.assert_array_equal(line(ax, "failed or off the scale")[0], [30])
    low, high = ax.get_xlim()
    assert low < 5 and high > 50 and ax.get_xscale() == "linear" and ax.get_xlabel() == "units"


PLANE = {"ranges": [(1, 99), (1, 99)], "title": "", "labels": ("x", "y")}


def test_pruned_trials_have_a_marker_of_their_own_in_slices_and_are_small_in_the_plane(ax):
    values, found = np.array([1.0, 2.0]), scores([1, 2], pruned=(0, 1))
    trial_plots.hyperparameter_slice(ax, values, found, bools(1, 1), name="x", choices=(1, 2))
    shown, _, triangles, *_ = ax.collections
    np.testing.assert_array_equal(shown.get_offsets(), [[1, 1]])
    np.testing.assert_array_equal(triangles.get_offsets(), [[2, 2]])
    assert len(shown.get_paths()[0].vertices) != len(triangles.get_paths()[0].vertices)
    plane = Figure().subplots()
    trial_plots.score_plane(plane, values, values, found, np.array(["a", "a"]), **PLANE)
    first, second = plane.collections[0].get_sizes()
    assert first > 2 * second


@pytest.mark.parametrize(
    "choices, log, scale",
    [
        ((1e-3, 0.1), True, "log"),
        ((1e-3, 0.1), False, "linear"),
        ((0.01, 0.1), True, "linear"),
        ((1, 500), True, "log"),
    ],
)
def test_a_wide_range_is_logarithmic_where_it_was_drawn_so(ax, choices, log, scale):
    equal = scores([1, 1])
    trial_plots.hyperparameter_slice(ax, np.array(choices), equal, bools(1, 1), name="x", choices=choices, log=log)
    assert ax.get_xscale() == scale and ax.get_xlim()[0] < choices[0] and ax.get_xlim()[1] > choices[1]


@pytest.mark.parametrize("high_is_good", [False, True])
def test_the_best_score_is_dark(ax, high_is_good):
    found = scores([0.1, 0.9], high_is_good=high_is_good)
    trial_plots.hyperparameter_slice(ax, found.values, found, bools(1, 1), name="x", choices=(0, 1))
    low, high = ax.collections[0].to_rgba(found.values)[:, :3].sum(axis=1)
    assert (low < high) != high_is_good
    assert ax.get_yscale() == ("linear" if high_is_good else "log")


def test_choices_stand_side_by_side_also_those_never_drawn(ax):
    names, choices = np.array(["sgd", "adam", "sgd"]), ["adam", "sgd", "rmsprop"]
    ones = scores([1, 1, 1], best=1)
    trial_plots.hyperparameter_slice(ax, names, ones, bools(1, 1, 1), name="optimizer", choices=choices)
    assert tick_labels(ax.xaxis) == choices
    np.testing.assert_array_equal(ax.collections[0].get_offsets()[:, 0], [1, 0, 1])


def test_the_score_plane_marks_optimizers_and_the_best(ax):
    x, y, found = np.array([1e-3, 1e-2, 1e-1]), np.array([1e-4, 1e-3, 1e-2]), scores([1.0, 2.0, np.nan], (1, 1, 0))
    look = {"ranges": [(1e-3, 1e-1), (1e-4, 1e-1)], "labels": ("learning rate", "L2")}
    trial_plots.score_plane(ax, x, y, found, np.array(["sgd", "adam", "sgd"]), title="Both", **look)
    offsets = [tuple(np.ravel(c.get_offsets())) for c in ax.collections]
    assert offsets == [(1e-2, 1e-3), (1e-3, 1e-4), (1e-3, 1e-4)]  # adam, sgd, the ring
    assert legend(ax) == ["adam", "sgd", "best trial", "failed or off the scale"]
    np.testing.assert_array_equal(line(ax, "failed or off the scale")[0], [1e-1])
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("Both", "learning rate", "L2")


def test_more_names_than_markers_are_all_drawn(ax):
    names, ones = [f"kind {i}" for i in range(9)], np.ones(9)
    trial_plots.score_plane(ax, ones, ones, scores(range(9)), np.array(names), **PLANE)
    assert legend(ax) == [*names, "best trial"] and len(ax.collections) == 10


def test_parallel_coordinates_have_a_line_a_trial_and_the_best_in_front(ax):
    places = np.array([[0.0, 0.5, 0.1], [1.0, 0.5, 0.9], [0.2, 0.5, 0.0]])
    ticks = [[(0.0, "10"), (1.0, "50")], [(0.5, "adam")], [(0.0, "low")]]
    look = {"names": ["hidden units", "optimizer", "loss"], "ticks": ticks}
    found = scores([2.0, 3.0, 1.0], pruned=(0, 1, 0), best=2)
    trial_plots.parallel_coordinates(ax, places, found, **look)
    trials = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert [line.get_ydata().tolist() for line in trials] == [places[row].tolist() for row in (1, 0, 2, 2)]
    assert [line.get_linestyle() for line in trials[:3]] == ["--", "-", "-"]
    assert trials[-1].get_label() == "best trial" and trials[-1].get_color() == BEST
    assert [text.get_text() for text in ax.texts] == ["10", "50", "adam", "low"]
    assert tick_labels(ax.xaxis) == ["hidden\nunits", "optimizer", "loss"]
    assert sum(trials[2].get_color()[:3]) < sum(trials[0].get_color()[:3]), "the better is darker"
    other = Figure().subplots()
    trial_plots.parallel_coordinates(other, places, found._replace(best=1, high_is_good=True), **look)
    assert [line.get_ydata()[0] for line in other.lines if len(line.get_xdata()) == 3] == [0.2, 0.0, 1.0, 1.0]


def test_histograms_count_every_value_and_mark_the_biases(ax):
    weights, biases = RANDOM.normal(size=(20, 10)), np.array([0.5, -0.5])
    plots.histogram(ax, weights, title="hidden layer 1", label="weight", biases=biases)
    assert sum(patch.get_height() for patch in ax.patches) == 200
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), biases)
    assert ax.get_title("left") + ax.get_title() == "hidden layer 1"
    other = plots.histogram(Figure().subplots(), np.zeros((2, 3, 4)), title="Dense_0/kernel", label="value")
    assert sum(patch.get_height() for patch in other.patches) == 24 and not other.lines


def test_activation_profile_has_a_bar_a_unit_between_0_and_1(ax):
    plots.activation_profile(ax, np.array([0.1, 0.9, 0.5]), title="x = 2")
    corners = ax.patches[0].get_xy()
    bars = [[0.6, 0.6, 1.4, 1.4], [1.6, 1.6, 2.4, 2.4], [2.6, 2.6, 3.4, 3.4]]
    np.testing.assert_allclose(corners[:12, 0].reshape(3, 4), bars)
    np.testing.assert_allclose(corners[:12, 1].reshape(3, 4), [[0, a, a, 0] for a in (0.1, 0.9, 0.5)])
    assert ax.get_ylim() == (0, 1)
    plots.activation_profile(ax, np.array([-1, 3.0]), title="x = 2", limits=(-1, 3))
    assert ax.get_ylim() == (-1, 3)


@pytest.mark.parametrize("shape", [(28, 28), (4, 5, 3)])
def test_image_shows_the_pixels_on_a_fixed_scale_or_in_colours(ax, shape):
    (image,) = pixels(1, *shape)
    plots.image(ax, image, title="Coat")
    (drawn,) = ax.images
    np.testing.assert_array_equal(drawn.get_array(), image)
    assert ax.get_title() == "Coat" and not ax.axison
    assert len(shape) == 3 or drawn.get_clim() == (0, 255)


def test_feature_maps_are_tiles_on_one_scale(ax):
    maps = np.arange(7 * 2 * 3.0).reshape(7, 2, 3)
    plots.feature_maps(ax, maps, title="maps")
    tiles = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert tiles.shape == (2 * 3 - 1, 4 * 4 - 1)  # 2 rows of 4 tiles, lines between them
    np.testing.assert_array_equal(tiles[:2, :3], maps[0])
    np.testing.assert_array_equal(tiles[3:5, 4:7], maps[5])
    assert np.isnan(tiles[2]).all() and np.isnan(tiles[3:, 12:]).all()
    assert ax.images[0].get_clim() == (0, maps.max())


def test_receptive_fields_are_a_grid_of_input_channels_by_channels(ax):
    kernels = RANDOM.normal(size=(3, 2, 5, 5))
    plots.receptive_fields(ax, kernels, title="convolution 2")
    tiles = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert tiles.shape == (2 * 6 - 1, 3 * 6 - 1)
    np.testing.assert_array_equal(tiles[6:11, 12:17], kernels[2, 1])
    low, high = ax.images[0].get_clim()
    assert low == -high and high == np.abs(kernels).max()
    assert tick_labels(ax.xaxis) == ["1", "2", "3"] and tick_labels(ax.yaxis) == ["1", "2"]


def test_dead_kernels_and_maps_are_drawn_too(ax):
    plots.receptive_fields(ax, np.zeros((2, 1, 4, 4)), title="dead")
    plots.feature_maps(ax, np.zeros((2, 4, 4)), title="dead")
    assert len(ax.images) == 2 and all(np.diff(image.get_clim()) > 0 for image in ax.images)
    ax.figure.canvas.draw()


def test_confusion_matrix_shows_names_and_percentages_on_the_right_cells(ax):
    shares = np.array([[0.9, 0.1, 0], [0.25, 0.75, 0], [0, 0, 1]])
    plots.confusion_matrix(ax, shares, ["Coat", "Bag", "Shirt"])
    np.testing.assert_array_equal(ax.images[0].get_array(), shares)
    texts = {tuple(text.get_position()): text.get_text() for text in ax.texts}
    assert texts[0, 1] == "25.0" and texts[1, 0] == "10.0" and texts[2, 0] == "0"  # (predicted, true)
    assert tick_labels(ax.xaxis) == tick_labels(ax.yaxis) == ["Coat", "Bag", "Shirt"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    colors = {text.get_text(): to_hex(text.get_color()) for text in ax.texts}
    assert colors["100.0"] == "#ffffff" and colors["0"] == "#000000"
    many = plots.confusion_matrix(Figure().subplots(), np.eye(30), [str(i) for i in range(30)])
    assert not many.texts and len(tick_labels(many.xaxis)) == 30


def test_precision_and_recall_stand_beside_their_class(ax):
    precision, recall = np.array([0.5, 0.9]), np.array([0.6, 0.7])
    plots.precision_and_recall(ax, precision, recall, ["Coat", "Bag"])
    np.testing.assert_array_equal(line(ax, "precision"), [precision, [0, 1]])
    np.testing.assert_array_equal(line(ax, "recall"), [recall, [0, 1]])
    assert tick_labels(ax.yaxis) == ["Coat", "Bag"] and ax.yaxis_inverted()


def test_reliability_leaves_out_empty_bins(ax):
    plots.reliability(ax, np.array([np.nan, 0.5, 0.9]), np.array([np.nan, 0.4, 1.0]))
    np.testing.assert_array_equal(line(ax, "this classifier"), [[0.5, 0.9], [0.4, 1.0]])
    np.testing.assert_array_equal(line(ax, "perfectly calibrated"), [[0, 1], [0, 1]])


def test_confidence_histogram_stacks_the_wrong_on_the_right(ax):
    plots.confidence_histogram(ax, np.array([0, 0.5, 1]), np.array([3, 5]), np.array([2, 1]), what="test images")
    boxes = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in ax.patches]
    assert boxes == [(0, 0, 0.5, 3), (0.5, 0, 0.5, 5), (0, 3, 0.5, 2), (0.5, 5, 0.5, 1)]
    assert legend(ax) == ["right", "wrong"] and ax.get_ylabel() == "test images"


def test_the_style_holds_within_alone_and_pyplots_global_state_stays_out():
    before = dict(matplotlib.rcParams)
    with drawing.style():
        assert matplotlib.rcParams["font.size"] == drawing.STYLE["font.size"]
    assert dict(matplotlib.rcParams) == before
    for module in (drawing, look, plots, trial_plots):
        tree = ast.parse(inspect.getsource(module))
        imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert imports and not any("pyplot" in line or "pylab" in line for line in imports)


@pytest.mark.parametrize("height", [3.5, 5])
def test_panels_are_laid_out_within_the_figure_and_beside_each_other(height):
    with drawing.style():
        figure, axes = drawing.figure(2, 3, height=height, sharey=True)
        for i, ax in enumerate(axes.flat):
            plots.histogram(ax, RANDOM.permuted(np.arange(300.0)) * 10**i, title=f"layer {i}", label="weight")
        plots.confusion_matrix(axes[1, 2], np.eye(3), ["trouser", "pullover", "ankle boot"])
        figure.supylabel("activation")
        figure.draw_without_rendering()
        assert not [ax for ax in axes.flat if "get_tightbbox" in vars(ax)], "matplotlib's own again"
        boxes = [ax.get_tightbbox(for_layout_only=True) for ax in axes.flat]  # a title may be wide
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
    assert axes[0, 0].get_position().height > 0.2, "the room is used"


def test_a_figure_is_a_page_wide_its_png_the_same_every_time_and_a_notebooks_smaller():
    with drawing.style():
        first, second = (drawing.figure(2, 3, height=1.5) for _ in range(2))
    assert first[1].shape == (2, 3) and tuple(first[0].get_size_inches()) == (drawing.WIDTH, 1.5)
    content = drawing.png(first[0])
    assert content == drawing.png(second[0])
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG" and image.mode == "P"
        assert image.info["dpi"] == pytest.approx((drawing.DOTS_PER_INCH,) * 2, rel=1e-3)
        assert image.width == pytest.approx(drawing.WIDTH * drawing.DOTS_PER_INCH, abs=1)
    small, size = first[0]._repr_png_()
    assert small.startswith(b"\x89PNG") and size == {"width": 624}
    assert int.from_bytes(small[16:20]) == pytest.approx(drawing.WIDTH * drawing.NOTEBOOK_DOTS_PER_INCH, abs=1)
    assert first[0].dpi == drawing.DOTS_PER_INCH and len(small) < len(content)


def test_names_are_plain_text_in_a_figure_whatever_is_in_them():
    """A dollar sign begins no formula, and a letter that the font lacks is no warning."""
    hostile = r"a $\frac$ b_$ \u4e2d \x1b"
    with drawing.style():
        figure, axes = drawing.figure(height=2)
        plots.bars(axes[0, 0], {hostile: 1.0, "$x$": 2.0}, title=hostile, label=hostile)
        content = drawing.png(figure)
        assert content.startswith(b"\x89PNG") and figure._repr_png_()[0].startswith(b"\x89PNG")
    assert not axes[0, 0].title.get_parse_math()


def test_a_logarithmic_axis_of_anybodys_plot_has_plain_numbers():
    with drawing.style():
        figure, axes = drawing.figure(height=2)
        axes[0, 0].plot([0.01, 1], [1, 1])
        axes[0, 0].set_xscale("log")
        drawing.png(figure)
    assert {"0.01", "0.1", "1"} <= set(tick_labels(axes[0, 0].xaxis))
