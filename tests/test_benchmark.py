"""The benchmark: all forms do the same work; its files report measurements and skipped forms."""

import json
import os
import sys
from dataclasses import replace

import benchmark
import numpy as np
import peers
import pytest
import regression

from hw1jax import run_study
from hw1jax.data import Dataset

OPTIONS = benchmark.parse([])


@pytest.fixture(scope="module")
def work():
    """31 samples of the regression, two of its draws, 3 folds, 4 epochs of batches of 8."""
    made = benchmark.make_work("regression", OPTIONS, (31, 4))
    return made._replace(trials=made.trials[:2])


@pytest.fixture(scope="module")
def losses(work, tmp_path_factory):
    """Validation losses [trial, fold] after the study's own search of that work."""
    study = replace(regression.STUDY, data=Dataset(*[work.x, work.y] * 2))
    settings = {"num_trials": 2, "num_epochs": 4, "seed": benchmark.SEED}
    return run_study(study, **settings, out=tmp_path_factory.mktemp("searched")).trials.folds["loss"]


def test_each_sample_trains_in_all_folds_but_the_one_that_validates_it(work):
    for train, val in zip(work.train_order, work.val_order, strict=True):
        for epoch in train:
            assert sorted([*epoch[epoch >= 0], *val[val >= 0]]) == list(range(31))


def test_another_seed_has_other_folds_and_draws(work):
    other = benchmark.make_work("regression", OPTIONS, (31, 4), seed=1)
    assert other.trials[:2] != work.trials and (other.val_order != work.val_order).any()


@pytest.mark.slow
def test_forms_train_what_the_search_trains(work, losses, tmp_path):
    peers.save_work(tmp_path / "work.npz", work)
    assert losses.shape == (2, 3) and len(np.unique(losses)) == losses.size, "members differ"
    final = {
        form: benchmark.run_form(str(tmp_path / "work.npz"), form, 0, 0.0)["final_val_loss"]
        for form in (benchmark.ALL, benchmark.SEARCH)
    }
    np.testing.assert_array_equal(final[benchmark.SEARCH], losses)
    np.testing.assert_allclose(final[benchmark.ALL], losses, rtol=1e-4)


@pytest.mark.slow
def test_a_form_and_a_search_run_in_processes_of_their_own(work, losses, tmp_path):
    file = tmp_path / "work.npz"
    peers.save_work(file, work)
    measured = benchmark.in_process(benchmark.run_form, str(file), benchmark.ALL, 3, 0.0)
    assert len(measured["us_per_sample"]) == 3 and min(measured["us_per_sample"]) > 0
    found = benchmark.in_process(benchmark.search_ours, str(file), {}, benchmark.SEED, 2, 0.0)
    assert found["loss"][-1] == pytest.approx(losses.mean(axis=1).min(), rel=1e-5)
    assert found["epochs"] == 2 * 4 and found["seconds"] == sorted(found["seconds"])


@pytest.mark.slow
def test_executors_take_little_beside_the_training():
    pytest.importorskip("distributed", reason="Dask is not installed")
    for engine in benchmark.ENGINES:
        result = benchmark.measure_overhead(engine, benchmark.parse(["--overhead", "--repeats", "3"]), None)
        small, large = result["rows"]
        assert small["mb"] < 0.01 and 19 < large["mb"] < 20
        for row, line in zip(result["rows"], benchmark.overhead_table(engine, result)[-2:], strict=True):
            assert min(row["seconds"]) > 0 and sorted(row["seconds"])[1] < 0.1 * 20
            assert f"| {sorted(row['seconds'])[1] / 20:.2%} |" in line, "of 20 s"


def fake_form(function, file, form, repeats, seconds):
    """As a process would answer, at once."""
    if not repeats:
        return {"final_val_loss": [[1, 3, 5], [None, 7, 7], [9, 9, 9]]}
    us = 1.0 + (benchmark.MANY, benchmark.ALL).index(form)
    return {"us_per_sample": [us, us + 1, us + 2], "compile_seconds": 1.0, "peak_rss_mb": 300.0}


def fake_peer(python, file, name, *, repeats, seconds):
    if name != peers.EAGER:
        return {"skipped": "no torch"}
    if not repeats:
        return {"final_val_loss": [[2, 4, 6], [5, None, 8], [1, 1, 1]]}
    return {"us_per_sample": [6.0], "compile_seconds": 0.0, "peak_rss_mb": 300.0, "versions": {"torch": "0"}}


def test_the_files_say_what_each_form_took_and_what_was_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "in_process", fake_form)
    monkeypatch.setattr(peers, "run_peer", fake_peer)
    benchmark.measure(benchmark.parse(["--studies", "regression", "--out", str(tmp_path)]))
    text = (tmp_path / "benchmark.md").read_text()
    seconds = 1e-6 * 25 * 1000 * 200  # of a search, for each microsecond
    assert f"| **{benchmark.MANY}** | 2 (1-3) | 1.0 | {2 * seconds:.3g} | 3 | 300 | - |" in text
    # The means of the members that are finite in both, and of the best trial that is whole.
    assert f"| **{benchmark.ALL}** | 3 (2-4) | 1.0 | {3 * seconds:.3g} | 2 | 300 | 6.143, best 3 |" in text
    assert f"| {peers.EAGER} | 6 (6-6) | 0.0 | {6 * seconds:.3g} | 1 | 300 | 3.286, best 1 |" in text
    assert "- skipped: scikit-learn MLP: no torch" in text and "torch 0" in text
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["studies"]["regression"]["rows"]) == 6
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_files_say_when_ours_reached_what_optuna_found(tmp_path, monkeypatch):
    def in_process(function, file, settings, seed, num_trials, started):
        return {"seconds": [2, 3], "loss": [0.5, 0.3] if settings else [0.9, 0.6], "epochs": 7}

    optuna = {"seconds": [5, 10, 20], "loss": [0.7, 0.5, 0.5], "epochs": 9}
    monkeypatch.setattr(benchmark, "in_process", in_process)
    monkeypatch.setattr(peers, "run_peer", lambda *_, **how: optuna if how["seed"] < 5 else {"skipped": "no torch"})
    flags = ["--time-to-score", "--quick", "--studies", "regression", "--seeds", "3", "4", "5", "--out", str(tmp_path)]
    benchmark.measure(benchmark.parse(flags))
    text = (tmp_path / "time_to_score.md").read_text()
    assert "| **ours** | 3 | 7 | 0.6 (0.6, 0.6, 0.6) | 3.0 | never (0 of 2) |" in text
    assert "| **ours, halving** | 6 | 7 | 0.3 (0.3, 0.3, 0.3) | 3.0 | 2 (2 of 2) |" in text
    assert f"| {peers.OPTUNA} | 3 | 9 | 0.5 (0.5, 0.5) | 20.0 | 10 (2 of 2) |" in text
    assert f"- skipped: {peers.OPTUNA}: no torch" in text and "seeds 3, 4, 5" in text


def test_a_folder_that_cant_be_is_told_before_anything_is_measured(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--out", str(tmp_path / "file")])
    monkeypatch.setattr(benchmark, "measure", lambda options: pytest.fail("measured"))
    monkeypatch.setattr(benchmark.signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # main sets some
    with pytest.raises(SystemExit, match="error: .*exists"):
        benchmark.main()
