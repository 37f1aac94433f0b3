"""Results checked against independent values, in cases where other trainers or earlier versions were wrong."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from studies import LINE

import hw1jax as hw
import hw1jax.sklearn
from hw1jax.core import array_checks, checks, folds, identity, optimizers
from hw1jax.core.folds import minibatches
from hw1jax.core.training import Data
from hw1jax.results import run_folder
from hw1jax.search import space, study_data
from hw1jax.search.brackets import Brackets

X = np.random.default_rng(0).uniform(-3, 3, (40, 1)).astype(np.float32)
Y = np.sin(X)


def init(key, h):
    return {"w": jax.random.normal(key, (1, 8)), "v": jnp.ones((8, 1))}


def apply(params, x, h):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def cross_validate(optimizer, x=X, y=Y, **options):
    """Two trials' losses and networks, of a net of eight units."""
    rates = {"rate": np.float32([0.01, 0.1])}
    given = {"key": jax.random.key(0), "num_epochs": 4, "batch_size": 4, "return_params": True}
    return hw.cross_validate(init, apply, hw.squared_error, optimizer, rates, x, y, **given | options)


# What a member gets depends on its own fold.


def growing_folds(num_samples=40, num_folds=5):
    """As scikit-learn's TimeSeriesSplit: each training part is longer than the one before."""
    size = num_samples // (num_folds + 1)
    return [(np.arange(i * size), np.arange(i * size, (i + 1) * size)) for i in range(1, num_folds + 1)]


@pytest.mark.parametrize("folds", [growing_folds(), None], ids=["time series", "parts that differ by one sample"])
def test_a_schedule_has_the_steps_of_its_own_fold(folds):
    def cosine(h, num_steps):
        return optax.sgd(optax.cosine_decay_schedule(h["rate"], num_steps))

    x, y = (X, Y) if folds else (X[:33], Y[:33])  # 33 samples in two folds: 17 or 16 train, in 5 or 4 steps
    together = cross_validate(cosine, x, y, folds=folds, **({} if folds else {"num_folds": 2}))
    assert len({-(-len(fold.train) // 4) for fold in together.folds}) > 1, "folds differ in their numbers of steps"
    for i, fold in enumerate(together.folds):
        steps = 4 * -(-len(fold.train) // 4)
        batches = minibatches([fold], range(4), batch_size=4, seed=(0, 0), first_fold=i)[0].reshape(-1, 4)
        for trial, rate in enumerate((0.01, 0.1)):
            rule = optax.sgd(optax.cosine_decay_schedule(rate, steps))
            params = init(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), trial), i), None)
            right = loss_after(params, rule, x, y, batches, fold)
            assert together.val_loss[trial, i, -1] == pytest.approx(right, rel=1e-4)


def loss_after(params, rule, x, y, batches, fold):
    """The validation loss of one network after the updates of these batches, in a plain loop."""
    loss = lambda params, index: jnp.mean((apply(params, x[index], None) - y[index]) ** 2)  # noqa: E731
    state = rule.init(params)
    for index in (batch[batch >= 0] for batch in batches):
        updates, state = rule.update(jax.grad(loss)(params, index), state)
        params = optax.apply_updates(params, updates)
    return float(loss(params, fold.validation))


# Sums.


def test_losses_of_a_network_of_few_bits_are_summed_in_float32():
    """256 losses of 1 add up to 256 in bfloat16, and so do 300."""

    def constant(params, x, h):
        return (params["w"][0] * 0 + jnp.zeros(len(x), jnp.bfloat16) + x[:, 0]).astype(jnp.bfloat16)

    x = np.arange(900, dtype=np.float32)[:, None] % 7
    found = hw.cross_validate(
        lambda key, h: {"w": jnp.ones(1, jnp.bfloat16)},
        constant,
        lambda outputs, y: outputs - y.astype(jnp.bfloat16),
        lambda h: optax.sgd(h["rate"]),
        {"rate": np.float32([0.0])},
        x,
        np.zeros(900, np.float32),
        key=jax.random.key(0),
        num_epochs=1,
        batch_size=300,
    )
    right = [x[fold.validation].mean() for fold in found.folds]
    np.testing.assert_allclose(found.val_loss[0, :, 0], right, rtol=1e-6)
    np.testing.assert_allclose(found.train_loss[0, :, 0], [x[fold.train].mean() for fold in found.folds], rtol=1e-6)


def test_an_average_of_parameters_of_few_bits_moves():
    """In bfloat16 an average with decay .999 never does: each update is less than the last bit."""

    def constant(params, x, h):
        return params["w"] * jnp.ones((len(x), 1), jnp.bfloat16)

    found = hw.cross_validate(
        lambda key, h: {"w": jnp.ones((), jnp.bfloat16)},
        constant,
        lambda outputs, y: outputs[:, 0],
        lambda h: optax.sgd(h["rate"]),  # each update takes .0625 off
        {"rate": np.float32([0.0625])},
        X,
        Y,
        key=jax.random.key(0),
        num_epochs=8,
        batch_size=4,
        averaging=0.999,
        return_params=True,
    )
    for fold, own in enumerate(found.folds):
        value, average = 1.0, 1.0
        for number in range(8 * -(-len(own.train) // 4)):
            value = float(ml_dtypes.bfloat16(value - 0.0625))
            decay = min(0.999, (1 + number) / (10 + number))
            average = decay * average + (1 - decay) * value
        assert float(found.params["w"][0, fold]) == pytest.approx(average, rel=1e-2)


def test_numbers_whose_squares_float32_has_not_are_scaled_or_refused():
    def adam(h):
        return optax.adam(h["rate"])

    tiny = np.float32(2.0**-70) * Y
    with pytest.raises(
        ValueError, match="^y has a standard deviation of .*, whose square is 0 in float32: give another"
    ):
        cross_validate(adam, y=tiny)
    half = cross_validate(adam, y=np.float16(0.1 * Y))  # its squared errors are of float32
    assert np.isfinite(half.val_loss).all()
    scaled = {"prepare_y": hw.standardize, "metrics": {"r2": hw.r2}}
    own, usual = (cross_validate(adam, y=y, **scaled) for y in (tiny, Y))
    np.testing.assert_array_equal(own.val_loss, usual.val_loss)
    np.testing.assert_array_equal(own.metrics["r2"], usual.metrics["r2"])


def test_features_of_float32_are_standardized_in_x64_mode():
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    with jax.enable_x64(True):
        task = hw.mlp(5, 2, layers=(8,), learning_rate=0.01, l2=0)[0]({})
        functions = {"apply": task.apply, "loss": task.loss, "optimizer": task.optimizer, "prepare": task.prepare}
        hyperparameters = {"unused": np.zeros(1)}
        for seed in range(4):
            y = np.random.default_rng(seed).integers(0, 2, 60)
            hw.cross_validate(
                task.init,
                **functions,
                hyperparameters=hyperparameters,
                x=x,
                y=y,
                key=jax.random.key(seed),
                num_epochs=1,
                batch_size=20,
            )


# Points of evaluation.


def schedule_free(h):
    return optax.contrib.schedule_free(optax.sgd(h["rate"]), h["rate"], b1=0.9)


def test_a_schedule_free_optimizer_is_evaluated_where_it_says():
    found = cross_validate(schedule_free, eval_params=optax.contrib.schedule_free_eval_params)
    training_point = cross_validate(schedule_free, eval_params=lambda state, params: params)
    for fold, own in enumerate(found.folds):
        params = jax.tree.map(lambda a: a[1, fold], found.params)  # noqa: B023
        outputs = apply(params, X[own.validation], None)
        assert found.val_loss[1, fold, -1] == pytest.approx(
            float(np.mean((outputs - Y[own.validation]) ** 2)), rel=1e-5
        )
    assert not np.allclose(found.val_loss, training_point.val_loss, rtol=1e-3)


def test_a_schedule_free_optimizer_without_its_point_of_evaluation_is_refused():
    with pytest.raises(ValueError, match="optimizer trains at another point .* eval_params="):
        cross_validate(schedule_free)
    chained = lambda h: optax.chain(optax.clip(1.0), schedule_free(h))  # noqa: E731
    with pytest.raises(ValueError, match="eval_params="):
        cross_validate(chained)


# Optimizers as optax has them.


def test_an_optimizer_that_takes_no_value_is_given_none():
    def sam(h):
        return optax.contrib.sam(optax.sgd(h["rate"]), optax.sgd(0.05), sync_period=2)

    found = cross_validate(sam)
    assert np.isfinite(found.val_loss).all()


def test_an_update_that_fails_has_a_note_that_names_the_optimizer():
    def broken(h):
        def update(updates, state, params=None):
            raise RuntimeError("no such thing")

        return optax.GradientTransformation(lambda params: (), update)

    with pytest.raises(RuntimeError, match="^no such thing") as caught:
        cross_validate(broken)
    assert checks.note_of(caught.value) == "in optimizer, called with (hyperparameters: {rate})"


# Searches that are killed, extended or left alone.


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_an_extended_or_interrupted_search_draws_as_a_whole_one(tmp_path, sampler, monkeypatch):
    settings = {"sampler": sampler, "num_epochs": 1, "widths": "padded"}
    whole = hw.run_study(LINE, out=tmp_path / "whole", num_trials=14, **settings)
    hw.run_study(LINE, out=tmp_path / "extended", num_trials=6, **settings)
    extended = hw.run_study(LINE, out=tmp_path / "extended", num_trials=14, **settings)
    for name, values in whole.trials.params.items():
        np.testing.assert_array_equal(extended.trials.params[name], values)
    np.testing.assert_allclose(extended.trials.folds["loss"], whole.trials.folds["loss"], rtol=1e-3)
    assert len(set(extended.trials.params["learning_rate"])) == 14, "no draw repeats another"

    train, calls = Brackets.train, []

    def interrupted(self, draws):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(draws)
        return train(self, draws)

    with monkeypatch.context() as patched:
        patched.setattr(Brackets, "train", interrupted)
        if sampler == "tpe":  # its brackets follow one another; the random search has one
            with pytest.raises(KeyboardInterrupt):
                hw.run_study(LINE, out=tmp_path / "stopped", num_trials=14, **settings)
    went_on = hw.run_study(LINE, out=tmp_path / "stopped", num_trials=14, **settings)
    assert (went_on.folder / "trials.csv").read_bytes() == (whole.folder / "trials.csv").read_bytes()
    if sampler == "tpe":
        random = [space.random_draw(LINE.space, 0, number)["learning_rate"] for number in range(14)]
        assert not set(random) & set(whole.trials.params["learning_rate"])


# What a folder belongs to.


def sine(name="sine", activation=jnp.tanh, optimizer=lambda h: optax.sgd(h["rate"]), loss=hw.squared_error, **changes):
    """A study of one hidden layer of 8 units."""

    def task(fixed):
        return hw.Task(
            init=init,
            apply=lambda params, x, h: activation(x @ params["w"]) @ params["v"],
            loss=loss,
            optimizer=optimizer,
        )

    given = {"space": {"rate": hw.Float(1e-3, 1e-1, log=True)}, "num_trials": 2, "num_epochs": 2, "batch_size": 8}
    given["data"] = hw.Dataset(X[:30], Y[:30], X[30:], Y[30:])
    return hw.Study(name, task=task, **given | changes)


OTHERS = {
    "network": {"activation": jax.nn.relu},
    "optimizer": {"optimizer": lambda h: optax.adam(h["rate"])},
    "loss": {"loss": lambda outputs, y: jnp.abs(outputs - y)[:, 0]},
    "metric": {"metrics": {"far": lambda outputs, y: jnp.abs(outputs - y)[:, 0]}},
}


def test_a_folder_belongs_to_what_its_task_computes(tmp_path):
    found = hw.run_study(sine(), out=tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    for name, change in OTHERS.items():
        other = sine(**change)
        words = "far" if name == "metric" else "another network, loss or optimizer than .*overwrite=True"
        with pytest.raises(ValueError, match=words) as caught:
            hw.run_study(other, out=tmp_path)
        assert "\n" not in str(caught.value)
        assert (tmp_path / "results.json").read_bytes() == before
    with pytest.raises(ValueError, match="another network"):
        hw.load_results(tmp_path, sine(activation=jax.nn.relu))
    with pytest.raises(ValueError, match="another network than the study's is now"):
        hw.load_model(tmp_path / "model.msgpack", sine(activation=jax.nn.relu))

    def the_same(values):  # written anew
        return jnp.tanh(values)

    again = hw.run_study(sine(activation=the_same), out=tmp_path)
    assert again.trials.folds["loss"].tolist() == found.trials.folds["loss"].tolist()
    anew = hw.run_study(sine(activation=jax.nn.relu), out=tmp_path, overwrite=True)
    alone = hw.run_study(sine(activation=jax.nn.relu), out=tmp_path / "alone")
    assert anew.trials.folds["loss"].tolist() == alone.trials.folds["loss"].tolist()
    assert anew.test == alone.test


def test_a_constant_that_a_task_closes_over_is_part_of_what_it_computes():
    def digest(factor):
        task = hw.Task(
            init, lambda params, x, h: apply(params, x, h) * factor, hw.squared_error, lambda h: optax.sgd(0.1)
        )
        return identity.digest(identity.traced(task, {"rate": np.float32(0.1)}, Data(X, Y), 4))

    table, other = np.linspace(1, 2, 5000, dtype=np.float32), np.linspace(1, 3, 5000, dtype=np.float32)
    digests = [digest(2.0), digest(3.0), *(digest(jnp.asarray(a)[:, None][2500:2501]) for a in (table, other))]
    assert len(set(digests)) == 4
    assert digest(2.0) == digests[0]


# Hyperparameters that nothing uses.


def by_name(h):
    return optax.adam(h["rate"]) if h["optimizer"] == "adam" else optax.sgd(h["rate"])


def by_second_name(h):
    return by_name(h | {"optimizer": h["optimizer"][1]})


def by_any_name(h):
    return optax.adam(h["rate"]) if any(name == "adam" for name in h["optimizer"]) else optax.sgd(h["rate"])


@pytest.mark.parametrize(("optimizer", "several"), [(by_name, False), (by_second_name, True), (by_any_name, True)])
def test_a_name_that_is_compared_with_a_text_is_refused(tmp_path, optimizer, several):
    names = hw.Choice("adam", "sgd")
    space = {"rate": hw.Float(1e-3, 1e-1, log=True), "optimizer": (names, names) if several else names}
    with pytest.raises(ValueError, match=r"optimizer has no effect.*one of adam, sgd.*chosen_l2.*static=True"):
        hw.run_study(sine(space=space, optimizer=optimizer), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "extra", [hw.Float(0, 1), hw.Int(1, 3), hw.Int(1, 3, static=True), hw.Int(1, 3, width=True), hw.Choice("a", "b")]
)
def test_a_hyperparameter_without_effect_is_refused_by_name(tmp_path, extra):
    space = {"rate": hw.Float(1e-3, 1e-1, log=True), "forgotten": extra}
    with pytest.raises(ValueError, match="forgotten has no effect"):
        hw.run_study(sine(space=space), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hyperparameter_of_cross_validate_without_effect_is_refused_unless_it_counts_the_trials():
    data = {"key": jax.random.key(0), "num_epochs": 1, "batch_size": 8}
    functions = init, apply, hw.squared_error
    rates = np.float32([0.1, 0.1])
    with pytest.raises(ValueError, match=r"hyperparameters\['ratte'\] has no effect"):
        hw.cross_validate(*functions, lambda h: optax.sgd(h["rate"]), {"rate": rates, "ratte": rates}, X, Y, **data)
    repeats = hw.cross_validate(*functions, lambda h: optax.sgd(0.1), {"repeat": np.arange(2)}, X, Y, **data)
    assert repeats.val_loss.shape == (2, 3, 1)


# Widths that are not masked.


def layers(mask_second, scale_only=False):
    """A study with two widths under one name, of which the network masks the first, or both."""

    def task(fixed):
        first, second = fixed["units"]

        def start(key, h):
            each = jax.vmap(jax.random.fold_in, (None, 0))
            w = jax.vmap(lambda k: jax.random.normal(k))(each(key, jnp.arange(first)))
            v = jax.vmap(lambda k: jax.random.normal(k))(each(key, 100 + jnp.arange(second)))
            return {
                "w": w[None],
                "u": jnp.outer(jnp.cos(jnp.arange(first)), jnp.sin(1 + jnp.arange(second))),
                "v": v[:, None],
            }

        def forward(params, x, h):
            hidden = jnp.tanh(x @ params["w"])
            if scale_only:
                return jnp.tanh(hidden @ params["u"]) @ params["v"] / jnp.sum(h["units"])
            hidden = jnp.where(jnp.arange(first)[None] < h["units"][0], hidden, 0)
            hidden = jnp.tanh(hidden @ params["u"])
            if mask_second:
                hidden = jnp.where(jnp.arange(second)[None] < h["units"][1], hidden, 0)
            return hidden @ params["v"]

        return hw.Task(start, forward, hw.squared_error, lambda h: optax.sgd(h["rate"]))

    space = {"units": (hw.Int(2, 6, width=True), hw.Int(2, 6, width=True)), "rate": hw.Float(1e-3, 1e-2, log=True)}
    return hw.Study("widths", task=task, data=LINE.data, space=space, num_trials=2, num_epochs=1, batch_size=20)


@pytest.mark.parametrize(("mask_second", "scale_only"), [(False, False), (False, True), (True, False)])
def test_widths_that_are_not_masked_are_not_padded(tmp_path, mask_second, scale_only):
    study = layers(mask_second, scale_only)
    if not mask_second:
        with pytest.raises(ValueError, match="widths=padded: a network that is padded must be the same"):
            hw.run_study(study, out=tmp_path, widths="padded")
    found = hw.run_study(study, out=tmp_path / "out", **({"widths": "padded"} if mask_second else {}))
    [rung] = found.record["config"]["plan"]["brackets"][0]["rungs"]
    assert rung["own_widths"] != mask_second
    x, y = LINE.data.x_train, LINE.data.y_train
    for i, fold in enumerate(hw.k_fold(len(x), 3, (0,))):
        outputs = found.model.fold_outputs(x[fold.validation])[i]
        assert np.mean((outputs - y[fold.validation]) ** 2) == pytest.approx(
            found.trials.folds["loss"][found.best.number][i], rel=1e-4
        )


# Inputs arrive unchanged.


WRONG_INPUTS = {
    "masked values": np.ma.masked_array(Y, np.arange(40)[:, None] == 3),
    "can't hold": np.where(np.arange(40)[:, None] == 3, 1e300, np.float64(Y)),
    "loses its signal": 1e9 + 20 * np.float64(Y),
    "structured array": np.zeros(40, [("a", "f4"), ("b", "f4")]),
}


@pytest.mark.parametrize("words", WRONG_INPUTS)
def test_values_that_would_be_changed_are_refused(words, tmp_path):
    y = WRONG_INPUTS[words]
    with pytest.raises((ValueError, TypeError), match=words):
        cross_validate(lambda h: optax.sgd(h["rate"]), y=y)
    study = sine(data=hw.Dataset(X[:30], y[:30], X[30:], np.float32(Y[30:])))
    with pytest.raises((ValueError, TypeError), match=words):
        hw.run_study(study, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_around_a_large_number_are_refused_beside_holes_too_and_whole_ones_by_networks_of_floats():
    seconds = 1.7e9 + 20 * np.float64(X)
    with pytest.raises(ValueError, match="loses its signal"):
        array_checks.as_arrays(np.where(np.arange(40)[:, None] == 3, np.nan, seconds), "x", nan=True)
    array_checks.as_arrays(np.full((3, 1), np.nan), "x", nan=True)
    search = hw.sklearn.MLPRegressorCV((4,), n_iter=1, max_iter=1, cv=2)
    with pytest.raises(ValueError, match="^X= loses its signal"):
        search.fit(seconds.astype(int), Y[:, 0])
    with pytest.raises(ValueError, match="^y= loses its signal"):
        search.fit(X, seconds[:, 0].astype(int))


def test_whole_numbers_that_would_wrap_are_refused():
    with pytest.raises(ValueError, match="int32, in which JAX computes, can't hold"):
        cross_validate(lambda h: optax.sgd(h["rate"]), x=np.full((40, 1), 2**40))


def test_other_byte_orders_and_tables_are_taken_as_scikit_learn_takes_them():
    pandas = pytest.importorskip("pandas")
    right = cross_validate(lambda h: optax.sgd(h["rate"])).val_loss
    np.testing.assert_array_equal(cross_validate(lambda h: optax.sgd(h["rate"]), y=Y.astype(">f4")).val_loss, right)
    nullable = pandas.DataFrame({"a": pandas.array([1, 2], "Int64"), "b": pandas.array([True, False], "boolean")})
    np.testing.assert_array_equal(array_checks.as_arrays(nullable, "x"), [[1, 1], [2, 0]])
    dummies = pandas.get_dummies(pandas.DataFrame({"kind": ["u", "v"], "size": [0.5, 2]}))
    np.testing.assert_array_equal(array_checks.as_arrays(dummies, "x"), [[0.5, 1, 0], [2, 0, 1]])
    twice = pandas.DataFrame([[1.0, 2.0], [3.0, 4.0]], columns=["a", "a"])
    np.testing.assert_array_equal(array_checks.as_arrays(twice, "x"), [[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=r"x\['a'\] must be finite"):
        array_checks.as_arrays(pandas.DataFrame({"a": pandas.array([1, None], "Int64")}), "x")


def test_classes_are_stratified_unless_told_otherwise():
    y = np.repeat(np.int32([0, 1]), [114, 6])
    x = np.arange(120, dtype=np.float32)[:, None]
    for seed in range(12):
        for fold in folds.make_folds(x, y, num_folds=3, seed=(seed,)):
            assert np.count_nonzero(y[fold.validation]) == 2
    plain_folds = folds.make_folds(x, y, num_folds=3, seed=(0,), stratify=False)
    for own, right in zip(plain_folds, folds.k_fold(120, 3, (0,)), strict=True):
        np.testing.assert_array_equal(own.validation, right.validation)
    rare = np.repeat(np.int32([0, 1]), [118, 2])
    assert "class 1 (2 samples)" in folds.rare_classes(rare, folds.make_folds(x, rare, num_folds=3, seed=(0,)))
    assert folds.rare_classes(y, folds.make_folds(x, y, num_folds=3, seed=(0,))) is None


def test_arguments_without_effect_are_refused():
    groups, rule = np.arange(40) % 5, lambda h: optax.sgd(h["rate"])
    splitters = pytest.importorskip("sklearn.model_selection")
    with pytest.raises(ValueError, match="groups= have no effect without a splitter"):
        cross_validate(rule, groups=groups)
    ignoring = type("KFold", (), {"split": lambda self, x, y=None, groups=None: splitters.KFold(5).split(x)})()
    with pytest.raises(ValueError, match="groups= have no effect on KFold"):
        cross_validate(rule, groups=groups, folds=ignoring)
    with pytest.raises(ValueError, match="num_folds=4 has no effect"):
        cross_validate(rule, num_folds=4, folds=splitters.KFold(5))
    with pytest.raises(ValueError, match="stratify= has no effect"):
        cross_validate(rule, stratify=True, folds=splitters.KFold(5))
    assert len(cross_validate(rule, groups=groups, folds=splitters.GroupKFold(5)).folds) == 5


def test_a_batch_larger_than_a_fold_is_all_of_it_in_both_ways(tmp_path):
    large, whole = (
        hw.run_study(sine(batch_size=size), out=tmp_path / str(size)).trials.folds["loss"] for size in (1000, 20)
    )
    np.testing.assert_array_equal(large, whole)
    large, whole = (cross_validate(lambda h: optax.sgd(h["rate"]), batch_size=size).val_loss for size in (1000, 27))
    np.testing.assert_array_equal(large, whole)


# What is done after the search.


def columns(params, x):
    return jnp.tanh(x @ params["w"]) @ jnp.tile(params["v"], (1, 3))


OUTPUTS = {
    "a dict": (lambda params, x, h: {"a": columns(params, x)[:, :1]}, lambda o, y: (o["a"] - y)[:, 0] ** 2),
    "one axis": (lambda params, x, h: columns(params, x)[:, 0], lambda o, y: (o - y[:, 0]) ** 2),
    "three columns": (lambda params, x, h: columns(params, x), lambda o, y: jnp.mean((o - y) ** 2, axis=1)),
}


def broken(results):
    raise RuntimeError("no <such> thing")


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_outputs_of_any_shape_have_results_and_a_page_without_a_curve_that_is_not_theirs(outputs, tmp_path):
    forward, loss = OUTPUTS[outputs]
    task = hw.Task(init, forward, loss, lambda h: optax.sgd(h["rate"]))
    study = replace(sine(name="shapes"), task=lambda fixed: task, sections={"Mine": [broken]})
    found = hw.run_study(study, out=tmp_path)
    right = np.mean(loss(forward(found.model.params, X[30:], None), Y[30:]))
    assert found.test["loss"] == pytest.approx(float(right), rel=1e-5)
    assert "curve_x" not in found.histories
    page = hw.write_report(tmp_path, study).read_text()
    assert "broken could not be shown: RuntimeError: no &lt;such&gt; thing" in page


def test_a_kept_network_that_does_not_have_its_score_is_refused(tmp_path, monkeypatch):
    fold_models = Brackets.fold_models

    def halved(self, *args):
        return jax.tree.map(lambda a: a / 2, fold_models(self, *args))

    monkeypatch.setattr(Brackets, "fold_models", halved)
    with pytest.raises(ValueError, match="trial . has a validation loss of .* the network that is kept of it"):
        hw.run_study(sine(), out=tmp_path)
    monkeypatch.undo()
    assert hw.run_study(sine(), out=tmp_path).ensemble["loss"] is not None


# Functions that use what changes.


MARGIN = {"margin": 0.0}


def sgd(h):
    return optax.sgd(h["rate"])


def with_margin(outputs, y):
    return jnp.abs(outputs - y)[:, 0] + MARGIN["margin"]


def test_a_global_that_has_changed_counts_in_the_next_call_with_the_same_functions(tmp_path, monkeypatch):
    def losses():
        rates = {"rate": np.float32([0.01, 0.1])}
        given = {"key": jax.random.key(0), "num_epochs": 2, "batch_size": 4}
        return hw.cross_validate(init, apply, with_margin, sgd, rates, X, Y, **given).val_loss

    study = sine(loss=with_margin)
    before, searched = losses(), hw.run_study(study, out=tmp_path / "before").trials.folds["loss"]
    monkeypatch.setitem(MARGIN, "margin", 1.0)
    np.testing.assert_allclose(losses(), before + 1, rtol=1e-5)
    with pytest.raises(ValueError, match="another network, loss or optimizer"):
        hw.run_study(study, out=tmp_path / "before")
    np.testing.assert_allclose(
        hw.run_study(study, out=tmp_path / "after").trials.folds["loss"], searched + 1, rtol=1e-5
    )


def test_a_search_predicts_and_tests_with_what_it_has_trained_though_a_global_has_changed(tmp_path, monkeypatch):
    def task(fixed):
        return hw.Task(init, lambda params, x, h: apply(params, x, h) + MARGIN["margin"], hw.squared_error, sgd)

    study = replace(sine(), task=task)
    search = hw.sklearn.SearchCV(task, study.space, n_iter=2, max_iter=2, estimator_type="regressor")
    for number, margin in enumerate((0.0, 5.0)):
        monkeypatch.setitem(MARGIN, "margin", margin)
        found = hw.run_study(study, out=tmp_path / str(number))
        outputs = apply(found.model.params, X[30:], None) + margin
        assert found.test["loss"] == pytest.approx(float(jnp.mean((outputs - Y[30:]) ** 2)), rel=1e-5)
        search.fit(X, Y)
        assert hw.load_results(found.folder, study).test["loss"] == found.test["loss"]
        params = search._arrays[0]
        np.testing.assert_allclose(search.predict(X), apply(params, X, None) + margin, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-36, 5e36])
def test_weights_of_any_scale_give_the_same_losses(scale):
    weights = np.random.default_rng(0).uniform(0.5, 2, len(X))
    one, other = (cross_validate(lambda h: optax.sgd(h["rate"]), weights=weights * by).val_loss for by in (1.0, scale))
    np.testing.assert_allclose(other, one, rtol=1e-5)


def test_parameters_of_few_bits_in_a_network_that_computes_in_float32_are_not_taken_for_mixed_examples():
    def narrow(key, h):
        return jax.tree.map(lambda p: p.astype(jnp.bfloat16), init(key, h))

    def wide(params, x, h):
        return apply(jax.tree.map(lambda p: p.astype(jnp.float32), params), x, h)

    rates = {"rate": np.float32([0.01, 0.1])}
    given = {"key": jax.random.key(0), "num_epochs": 1, "batch_size": 4}
    assert np.isfinite(hw.cross_validate(narrow, wide, hw.squared_error, sgd, rates, X, Y, **given).val_loss).all()


def test_a_state_without_numbers_is_a_state():
    def with_state(key, h):
        return init(key, h), {"empty": jnp.zeros((0,))}

    def kept(params, x, h, state):
        return apply(params, x, h), state

    rates = {"rate": np.float32([0.01, 0.1])}
    given = {"key": jax.random.key(0), "num_epochs": 1, "batch_size": 4}
    found = hw.cross_validate(with_state, kept, hw.squared_error, sgd, rates, X, Y, return_params=True, **given)
    assert found.state["empty"].shape == (2, 3, 0)


def test_the_threads_of_a_search_compute_in_the_callers_precision(tmp_path):
    study = sine(data=hw.Dataset(np.float64(X[:30]), np.float64(Y[:30]), np.float64(X[30:]), np.float64(Y[30:])))
    with jax.enable_x64(True):
        found = hw.run_study(study, out=tmp_path)
        assert {found.histories[name].dtype.name for name in ("train_loss", "val_loss")} == {"float64"}
    assert found.model.params["w"].dtype == np.float64


def test_an_optimizer_is_that_of_its_name_in_any_order_of_a_choice(tmp_path):
    names = ("rmsprop", "adam")
    space = {"rate": hw.Float(1e-3, 1e-2), "rule": hw.Choice(*names)}
    study = sine(optimizer=lambda h: hw.chosen_l2(h["rule"], h["rate"], 0.0, names=names), space=space)
    draws = [{"rate": 0.01, "rule": name} for name in names]
    found = hw.run_study(study, enqueue=draws, out=tmp_path / "both")
    for i, rule in enumerate((optimizers.rmsprop_l2, optimizers.adam_l2)):
        alone = sine(optimizer=lambda h, rule=rule: rule(h["rate"], 0.0))
        right = hw.run_study(alone, enqueue=[{"rate": 0.01}] * 2, out=tmp_path / str(i))
        np.testing.assert_allclose(found.histories["val_loss"][i], right.histories["val_loss"][i], rtol=1e-5)
    with pytest.raises(ValueError, match="^names= must be of adam, sgd, rmsprop, got "):
        hw.chosen_l2(0, 0.1, 0.0, names=("lion",))
    with pytest.raises(ValueError, match="^names= must be of"):
        hw.chosen_l2(0, 0.1, 0.0, names=())


def test_a_test_set_of_another_kind_than_the_training_set_is_refused_before_the_search(tmp_path):
    labels = np.arange(40) % 2
    with pytest.raises(ValueError, match=r"^y_train is int64 and y_test float64: give y_test.astype\(int\)$"):
        hw.run_study(sine(data=hw.Dataset(X, labels, X, labels * 1.0), loss=hw.cross_entropy), out=tmp_path / "out")
    counts = study_data.load_data(sine(data=hw.Dataset(X, np.int32(9 * X), X, 9 * X)), {})
    assert counts.y_test.dtype.kind == "f", "numbers that are whole in the training set are no labels"
    with pytest.raises(ValueError, match="^x_train is float32 and x_test uint8: give both in the same unit$"):
        hw.run_study(sine(data=hw.Dataset(X, Y, np.uint8(X), Y)), out=tmp_path / "out")
    holes = np.where(np.arange(40)[:, None] == 3, np.nan, X)
    filled = sine(data=hw.Dataset(X, Y, holes, Y))
    task = filled.task({})._replace(prepare=hw.standardize)
    with pytest.raises(ValueError, match="^prepare= gives values of x_test that are NaN"):
        hw.run_study(replace(filled, task=lambda fixed: task), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert sine(classes=np.array(["a", "b"])).classes == ("a", "b"), "an array has no truth value"


def test_rows_that_are_all_but_equal_are_predicted_by_the_networks_of_a_cross_validation():
    found = cross_validate(sgd)
    np.testing.assert_array_equal(found.predict(np.array([[1.0], [1.0 + 1e-9]])), found.predict(np.ones((2, 1))))


def test_overwrite_leaves_a_folder_without_a_search_as_it_is(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("figures/mine.png", "report.html"):
        (tmp_path / name).write_text("mine")
    run_folder.remove(tmp_path)
    assert (tmp_path / "figures" / "mine.png").exists() and (tmp_path / "report.html").exists()
    (tmp_path / "brackets").mkdir()  # of a search whose removal was interrupted
    run_folder.remove(tmp_path)
    assert list(tmp_path.iterdir()) in ([], [tmp_path / ".results.lock"])


def test_a_loss_may_use_what_numpys_arrays_have_not(tmp_path):
    def loss(outputs, y):
        return jnp.square(outputs.at[:, 0].add(-y[:, 0]))[:, 0]

    study = sine(loss=loss, metrics={"again": loss})
    found = hw.run_study(study, out=tmp_path)
    assert found.test["loss"] == pytest.approx(found.test["again"], rel=1e-6)


@pytest.mark.parametrize("name", ["mean_val_loss", "split0_val_loss", "std_val_far"])
def test_a_hyperparameter_with_the_name_of_a_score_is_refused(name, tmp_path):
    space = {"rate": hw.Float(1e-3, 1e-1, log=True), name: hw.Float(0, 1)}
    with pytest.raises(ValueError, match=f"space: {name} is the name of a column of trials.csv"):
        hw.run_study(sine(space=space), out=tmp_path / "out")
