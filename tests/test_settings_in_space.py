"""Batch sizes and numbers of epochs as hyperparameters: each trial trains as in a study with these settings."""

import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import studies

from hw1jax import cli, run, run_study, write_comparison, write_report
from hw1jax.core.losses import squared_error
from hw1jax.core.tasks import Task
from hw1jax.search import study as study_
from hw1jax.search.observer import Observer
from hw1jax.search.space import Choice, Float, Int

ONE = {"num_devices": 1, "members_per_program": 3}  # a trial a program: all programs have as many slots


def task(fixed):
    """A line whose learning rate decays to 0 with the last step."""
    return Task(
        init=lambda key, h: {"slope": jnp.zeros(1), "shift": jnp.zeros(1)},
        apply=lambda params, x, h: x * params["slope"][None] + params["shift"][None],
        loss=squared_error,
        optimizer=lambda h, num_steps: optax.sgd(optax.cosine_decay_schedule(h["rate"], num_steps)),
    )


PLAIN = replace(studies.LINE, name="mixed", task=task, space={"rate": Float(1e-3, 1e-1, log=True)}, num_trials=6)
MIXED = replace(
    PLAIN,
    space={
        **PLAIN.space,
        "batch_size": Choice(7, 1000, static=True),
        "num_epochs": Int(2, 4, step=2, static=True),
    },
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return run_study(MIXED, out=tmp_path_factory.mktemp("mixed") / "run", **ONE)


def test_a_trial_equals_that_of_a_study_with_its_settings_bit_for_bit(mixed, tmp_path):
    sizes, epochs = mixed.trials["batch_size"], mixed.trials["num_epochs"]
    assert len(set(zip(sizes.tolist(), epochs.tolist(), strict=True))) >= 3
    assert mixed.trials["epochs"].tolist() == epochs.tolist()
    assert mixed.histories["val_loss"].shape[2] == 4
    for size, num_epochs in set(zip(sizes.tolist(), epochs.tolist(), strict=True)):
        own = run_study(PLAIN, out=tmp_path / f"{size}-{num_epochs}", batch_size=size, num_epochs=num_epochs, **ONE)
        for row in np.flatnonzero((sizes == size) & (epochs == num_epochs)):
            for name in ("train_loss", "val_loss"):
                np.testing.assert_array_equal(mixed.histories[name][row, :, :num_epochs], own.histories[name][row])
                assert np.isnan(mixed.histories[name][row, :, num_epochs:]).all()
            scores = [mixed.trials[f"split{i}_val_loss"][row] for i in range(3)]
            assert scores == own.histories["val_loss"][row, :, -1].astype(float).tolist()


def test_the_refit_has_the_epochs_and_the_batch_size_of_the_best_trial(mixed):
    best = dict(mixed.best.params)
    assert mixed.best.mean == min(mixed.trials["mean_val_loss"])
    config = study_.run_config(PLAIN, batch_size=best.pop("batch_size"), num_epochs=best.pop("num_epochs"))
    model, train_loss = run.refit(run.load(config), best, Observer())
    np.testing.assert_array_equal(mixed.histories["refit_train_loss"], train_loss)
    np.testing.assert_array_equal(mixed.model.params["slope"], model.params["slope"])


def test_a_search_resumes_and_its_counts_and_pages_are_whole(mixed, tmp_path):
    run_study(MIXED, out=tmp_path / "run", num_trials=2, **ONE)
    again = run_study(MIXED, out=tmp_path / "run", **ONE)
    assert (again.folder / "trials.csv").read_bytes() == (mixed.folder / "trials.csv").read_bytes()
    assert [(rung["num_epochs"], rung["num_trials"], rung["failed"]) for rung in again.record["rungs"]] == [(4, 6, 0)]
    pairs = zip(mixed.trials["batch_size"].tolist(), mixed.trials["num_epochs"].tolist(), strict=True)
    assert again.record["num_programs"] == len(set(pairs))
    page = write_report(again.folder, MIXED).read_text()
    assert "<td>7, 1000</td>" in page and "<td>2 - 4, step 2</td>" in page
    both = write_comparison([again.folder, mixed.folder], tmp_path / "both.html").read_text()
    assert not any(re.search("[> ]nan[<,.; ]", text) for text in (page, both))
    with pytest.raises(ValueError, match="holds a search with batch_size = .*1000.*, not .*7, 20"):
        run_study(study_.narrow(MIXED, batch_size=Choice(7, 20, static=True)), out=again.folder, **ONE)


def test_a_range_of_a_hyperparameter_named_like_a_part_of_the_configuration_is_compared(tmp_path):
    def study(high):
        named = lambda fixed: task(fixed)._replace(optimizer=lambda h, num_steps: optax.sgd(h["plan"]))  # noqa: E731
        return replace(PLAIN, task=named, space={"plan": Float(1e-3, high, log=True)}, num_trials=2)

    run_study(study(1e-2), out=tmp_path / "run", num_epochs=1)
    with pytest.raises(ValueError, match="holds a search with plan = .*0.01.*, not .*0.1"):
        run_study(study(1e-1), out=tmp_path / "run", num_epochs=1)


def test_padded_widths_train_each_batch_size_as_alone(tmp_path):
    line = replace(studies.LINE, num_trials=4)
    asked = replace(line, space={**line.space, "batch_size": Choice(9, 30, static=True)})
    own = {name: r for name, r in asked.space.items() if name != "batch_size"}
    padded = {"widths": "padded", "num_devices": 1, "members_per_program": 3}
    found = run_study(asked, out=tmp_path / "both", **padded)
    for size in (9, 30):
        alone = run_study(replace(asked, space=own), out=tmp_path / f"{size}", batch_size=size, **padded)
        rows = found.trials["batch_size"] == size
        np.testing.assert_array_equal(found.histories["val_loss"][rows], alone.histories["val_loss"][rows])
        assert rows.any()


def test_the_flags_of_these_settings_narrow_their_ranges():
    config, _ = cli.parse(MIXED, None, ["--batch-size", "1000", "7", "--num-epochs", "4-6"])
    assert config.study.space["batch_size"].among == (1000, 7)
    assert config.study.space["num_epochs"] == Int(4, 6, step=2, static=True)
    assert (config.search.num_epochs, config.search.batch_size) == (6, 1000)
    config, _ = cli.parse(PLAIN, None, ["--batch-size", "7"])
    assert config.search.batch_size == 7
    quick, _ = cli.parse(MIXED, None, ["--quick"])
    assert quick.study.space["num_epochs"] == MIXED.space["num_epochs"]


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        ({}, {"batch_size": 20}, "batch_size=20 doesn't go with batch_size in the space: narrow its range there"),
        ({}, {"halving": 3}, "halving= doesn't go with num_epochs in the space: its rungs are numbers of epochs"),
        ({"batch_size": Choice(7, 20)}, {}, "space: batch_size must be static, a Choice or an Int of whole numbers"),
        ({"batch_size": Float(7, 20)}, {}, "space: batch_size must be static, a Choice or an Int of whole numbers"),
        ({"num_epochs": Int(0, 2, static=True)}, {}, "space: num_epochs must be static, a Choice or an Int of whole"),
        ({"num_epochs": Choice(None, 2, static=True)}, {}, "space: num_epochs must be static, a Choice or an Int of"),
        ({"num_epochs": Choice("2", 3, static=True)}, {}, "space: num_epochs must be static, a Choice or an Int of"),
        ({"num_epochs": (Int(1, 2, static=True),)}, {}, "space: num_epochs must be static, a Choice or an Int of"),
    ],
)
def test_mistakes_with_settings_in_a_space_are_one_line(space, settings, message):
    with pytest.raises(ValueError, match="^" + message):
        study_.run_config(replace(MIXED, space={**MIXED.space, **space}), **settings)
