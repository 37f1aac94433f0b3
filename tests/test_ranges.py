"""Ranges of every kind go through a whole search: files, resume, command line and page."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import pandas as pd
import pytest
import studies

from hw1jax import cli, load_results, run_study, write_report
from hw1jax.core.losses import squared_error
from hw1jax.core.tasks import Task
from hw1jax.search import importances, space
from hw1jax.search.space import Choice, Float, Int


def task(fixed):
    """A dense net of `layers`, whose outputs are clipped at one of some limits, or not."""
    sizes = [1, *fixed["layers"], *[3] * fixed["more"], 1]
    shapes = list(zip(sizes, sizes[1:], strict=False))

    def init(key, h):
        keys = jax.random.split(key, len(shapes))
        return [jax.random.normal(k, shape) / shape[0] ** 0.5 for k, shape in zip(keys, shapes, strict=True)]

    def apply(params, x, h):
        for weights in params[:-1]:
            x = jnp.tanh(x @ weights)
        limit = jnp.array([jnp.inf, 0.5])[h["limit"]]
        return jnp.clip(x @ params[-1], -limit, limit)

    scale = {None: 1.0, "twice": 2.0, True: 3.0}[fixed["scale"]]
    return Task(init, apply, squared_error, lambda h: optax.sgd(h["rate"] * scale))


STUDY = replace(
    studies.TOY,
    name="ranges",
    task=task,
    space={
        "layers": Choice((4,), (4, 2), static=True),
        "more": Int(0, np.int64(3), step=2, static=True),  # 0 and 2
        "limit": Choice(None, 0.5),
        "scale": Choice(None, "twice", True, static=True, among=[None]),
        "rate": Float(np.float64(1e-3), np.float32(0.5), log=True),
    },
    num_trials=8,
    num_epochs=1,
    batch_size=40,
)
ALONE = {"members_per_program": 3}  # each trial: longer searches have the same programs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_study(STUDY, out=tmp_path_factory.mktemp("ranges") / "run")


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_over_tuples_none_and_steps_resumes_and_is_read_back(sampler, tmp_path):
    run_study(STUDY, out=tmp_path / "short", num_trials=4, sampler=sampler, **ALONE)
    results = run_study(STUDY, out=tmp_path / "short", sampler=sampler, **ALONE)
    whole = run_study(STUDY, out=tmp_path / "whole", sampler=sampler, **ALONE)
    assert (tmp_path / "short" / "trials.csv").read_bytes() == (tmp_path / "whole" / "trials.csv").read_bytes()
    found = results.trials.params
    assert set(found["layers"]) <= {(4,), (4, 2)} and {type(value) for value in found["layers"]} == {tuple}
    assert set(found["limit"]) == {None, 0.5} and set(found["more"]) <= {0, 2}
    assert found["scale"].tolist() == [None] * 8
    best = {name: values[results.row] for name, values in found.items()}
    assert results.best.params == best == whole.model.draw
    np.testing.assert_array_equal(results.model.predict(STUDY.data.x_test), whole.model.predict(STUDY.data.x_test))
    assert load_results(tmp_path / "short", STUDY).best == whole.best


def test_other_tools_read_tuples_and_none_as_text(run):
    table = pd.read_csv(run.folder / "trials.csv", keep_default_na=False)
    assert table["layers"].tolist() == list(map(str, run.trials["layers"]))
    assert table["limit"].tolist() == list(map(str, run.trials["limit"]))
    assert pd.DataFrame(run.trials)["layers"].tolist() == run.trials["layers"].tolist()
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(run.folder / "journal.log"))
    )
    opened = optuna.load_study(study_name="ranges", storage=storage)
    assert [trial.params["layers"] for trial in opened.trials] == table["layers"].tolist()
    assert [trial.params["limit"] for trial in opened.trials] == run.trials["limit"].tolist()


def test_the_page_shows_tuples_none_and_steps(run):
    page = write_report(run.folder, STUDY).read_text()
    assert "<td>(4,), (4, 2)</td>" in page and "<td>0 - 2, step 2</td>" in page and "<td>None, 0.5</td>" in page


def test_importances_of_choices_among_tuples_and_none():
    """The scores depend on the layers alone."""
    draws = [space.random_draw(STUDY.space, 0, number) for number in range(60)]
    params = {name: np.array([*(draw[name] for draw in draws), None], object)[:-1] for name in STUDY.space}
    found = importances.importances(STUDY.space, params, np.array([len(draw["layers"]) for draw in draws], float))
    assert set(found.shares) == set(STUDY.space)
    assert next(iter(found.shares)) == "layers" and found.shares["layers"] > 0.9


def test_flags_narrow_choices_among_tuples_and_none_and_steps(tmp_path):
    args = ["--layers", "(4,2)", "--more", "0-0", "--limits", "None", "--scales", "True", "None"]
    config, _ = cli.parse(STUDY, None, [*args, "--out", str(tmp_path)])
    narrowed = config.study.space
    assert narrowed["layers"].among == ((4, 2),) and narrowed["limit"].among == (None,)
    assert narrowed["scale"].among == (True, None) and narrowed["more"].values == range(0, 1, 2)
