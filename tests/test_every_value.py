"""Every value of a space is checked before a search, not only the first."""

from dataclasses import replace

import jax.numpy as jnp
import pytest
from test_right_values import apply, init, sgd, sine

import hw1jax as hw
from hw1jax import run
from hw1jax.search import study as study_


def with_average(fixed):
    """A network that normalises by a running average if `norm`."""

    def normalised(params, x, h, state, train, mask):
        scale = jnp.sum(x[:, 0] ** 2 * mask) / jnp.sum(mask) if train else state
        return apply(params, x / jnp.sqrt(scale + 1)[None, None], h), 0.9 * state + 0.1 * scale

    if fixed["norm"]:
        return hw.Task(lambda key, h: (init(key, h), jnp.ones(())), normalised, hw.squared_error, sgd)
    return hw.Task(init, apply, hw.squared_error, sgd)


def test_a_static_value_may_give_a_network_state(tmp_path):
    space = {"rate": hw.Float(1e-3, 1e-1, log=True), "norm": hw.Choice(False, True, static=True)}
    study = replace(sine(), task=with_average, space=space)
    found = hw.run_study(study, enqueue=[{"rate": 0.05, "norm": True}], num_trials=1, out=tmp_path)
    assert found.best.params["norm"] and found.test["loss"] < 2


def test_a_static_value_that_mixes_examples_is_refused(tmp_path):
    def task(fixed):
        net = (lambda params, x, h: apply(params, x - x.mean(), h)) if fixed["mix"] else apply
        return hw.Task(init, net, hw.squared_error, sgd)

    space = {"rate": hw.Float(1e-3, 1e-1, log=True), "mix": hw.Choice(False, True, static=True)}
    with pytest.raises(ValueError, match="^apply mixes examples"):
        hw.run_study(replace(sine(), task=task, space=space), out=tmp_path / "out")


def test_a_network_that_one_value_of_a_choice_lets_change_with_padding_is_not_padded():
    def task(fixed):
        def new(key, h):
            mask = jnp.arange(fixed["units"]) < h["units"]
            return {"w": jnp.where(mask, 0.5, 0)[None], "v": jnp.ones((fixed["units"], 1))}

        def net(params, x, h):
            hidden = x @ params["w"]
            normed = hidden / jnp.sqrt(jnp.mean(jnp.square(hidden), axis=1, keepdims=True) + 1)
            return jnp.where(h["norm"] == 1, normed, hidden) @ params["v"]

        return hw.Task(new, net, hw.squared_error, sgd)

    kinds = {"rate": hw.Float(1e-3, 1e-1), "units": hw.Int(2, 8, width=True), "norm": hw.Choice("none", "rms")}
    study = replace(sine(), task=task, space=kinds)
    made = run.load(study_.run_config(study))
    assert made.changed_by_padding is not None
    assert (
        run.load(study_.run_config(replace(study, space=kinds | {"norm": hw.Choice("none")}))).changed_by_padding
        is None
    )
