"""A mistake in a script shows the script's lines and none of this package; a fault of the package shows all."""

import traceback
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from studies import LINE, TOY_DATA

import hw1jax as hw
from hw1jax import run
from hw1jax.core import population, tracebacks

X, Y = TOY_DATA[:2]


def wrong_apply(params, x, h):
    return x @ jnp.ones((7, 1))  # fails in JAX


def wrong_loss(outputs, y):
    raise KeyError("mine")


def wrong_task(fixed):
    return hw.Task(**{})


def study(**functions):
    return replace(LINE, task=lambda fixed: LINE.task(fixed)._replace(**functions))


def cross_validated(**functions):
    task = {
        "init": lambda key, h: jnp.zeros((1, 1)),
        "apply": lambda params, x, h: x @ params,
        "loss": hw.squared_error,
        "optimizer": lambda h: optax.sgd(h["rate"]),
    } | functions
    sizes = {"key": jax.random.key(0), "num_epochs": 1, "batch_size": 20}
    return hw.cross_validate(hyperparameters={"rate": [0.1]}, x=X, y=Y, **task, **sizes)


def lines_of(call):
    """(the error as Python prints it, [(file, function)] of all frames that are printed)."""
    with pytest.raises(Exception) as caught:
        call()
    shown = traceback.format_exception(caught.value)
    chain, error = [], caught.value
    while error is not None:
        chain += [(frame.filename, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert sum(line.count('  File "') for line in shown) == len(chain)
    return "".join(shown), [(name.replace("\\", "/"), function) for name, function in chain]


def own(frames):
    return [frame for frame in frames if "/hw1jax/" in frame[0] and "/tests/" not in frame[0]]


@pytest.mark.parametrize(
    ("call", "last", "words"),
    [
        (lambda out: hw.run_study(LINE, num_trials=0, out=out), "<lambda>", "ValueError: num_trials= must be"),
        (lambda out: hw.run_study(LINE, n_trials=3, out=out), "<lambda>", "TypeError: there is no setting n_trials"),
        (lambda out: hw.run_study(), "<lambda>", "missing 1 required positional argument: 'study_'"),
        (lambda out: hw.cross_validate(cv=3), "<lambda>", "TypeError: cross_validate has no argument cv"),
        (lambda out: hw.load_results(out, LINE), "<lambda>", "ValueError: "),
        (lambda out: hw.write_report(out, LINE), "<lambda>", "ValueError: "),
        (lambda out: hw.load_model(__file__, LINE), "<lambda>", "is not a model of hw1jax"),
        (lambda out: hw.run_study(replace(LINE, task=wrong_task), out=out), "wrong_task", "TypeError: "),
        (lambda out: hw.run_study(study(apply=wrong_apply), out=out), "wrong_apply", "in apply, called with"),
        (lambda out: hw.run_study(study(loss=wrong_loss), out=out), "wrong_loss", "KeyError: 'mine'"),
        (lambda out: cross_validated(apply=wrong_apply), "wrong_apply", "in apply, called with"),
        (lambda out: cross_validated(loss=wrong_loss), "wrong_loss", "in loss, called with"),
        (lambda out: cross_validated(loss=hw.cross_entropy), "cross_validated", "in loss, called with"),
    ],
)
def test_a_mistake_shows_the_users_lines_alone(call, last, words, tmp_path):
    text, frames = lines_of(lambda: call(tmp_path / "out"))
    assert words in text and not own(frames)
    assert not any("/jax/_src/" in name for name, _ in frames)
    mine = [function for name, function in frames if name == __file__]
    assert mine[:3] == ["lines_of", "<lambda>", "<lambda>"] and mine[-1] == last
    if "is not a model" not in text:  # whose cause is an error of MessagePack
        assert frames[-1][1] == last


def test_all_frames_are_shown_if_jax_shows_all_of_its_own(tmp_path):
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        _, frames = lines_of(lambda: hw.run_study(study(apply=wrong_apply), out=tmp_path))
    finally:
        jax.config.update("jax_traceback_filtering", before)
    assert len(own(frames)) > 5 and any("/jax/_src/" in name for name, _ in frames)


def test_a_fault_of_the_package_keeps_its_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load", lambda config: {}["a fault"])
    _, frames = lines_of(lambda: hw.run_study(LINE, out=tmp_path))
    assert [function for _, function in own(frames)][:2] == ["called", "run_study"]
    monkeypatch.setattr(population, "Population", None)  # a TypeError that no statement of ours raises
    _, frames = lines_of(cross_validated)
    assert len(own(frames)) > 2


def test_causes_are_kept_and_shortened_and_a_loop_of_them_ends():
    @tracebacks.short
    def door():
        try:
            hw.core.checks.note_of(3).missing  # noqa: B018
        except AttributeError as error:
            cause = error
        with hw.core.checks.in_function("f", door):
            raise ValueError("mine") from cause

    with pytest.raises(ValueError, match="mine") as caught:
        door()
    assert isinstance(caught.value.__cause__, AttributeError)
    assert hw.core.checks.note_of(caught.value).startswith("in f, called with ()")
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    tracebacks._shorten(first)


def test_warnings_name_the_users_line():
    y = np.zeros(61, int)
    y[:3] = 1
    with pytest.warns(UserWarning, match="hold out no sample of class") as caught:
        hw.cross_validate(
            lambda key, h: jnp.zeros((1, 2)),
            lambda params, x, h: x @ params,
            hw.cross_entropy,
            lambda h: optax.sgd(h["rate"]),
            {"rate": [0.1]},
            X,
            y,
            key=jax.random.key(0),
            num_epochs=1,
            batch_size=20,
            num_folds=6,
        )
    assert {warning.filename for warning in caught} == {__file__}


def test_the_doors_keep_their_names_and_signatures():
    import inspect

    for door in (hw.run_study, hw.cross_validate, hw.load_results, hw.load_model, hw.write_report):
        assert door.__doc__ and door.__module__.startswith("hw1jax.") and door.__qualname__ == door.__name__
    assert list(inspect.signature(hw.load_results).parameters) == ["folder", "study"]
