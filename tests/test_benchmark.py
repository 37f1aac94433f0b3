"""The benchmark: all forms do the same work, and its files say what was measured and what was not."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import benchmark
import homework
import numpy as np
import pytest
from speed import forms, growth, peers, score, time_to_score

from hw1jax import run_study, space
from hw1jax.data import Dataset

ROOT = Path(benchmark.__file__).parent
RANDOM = np.random.RandomState(0)


def trial(units, learning_rate, optimizer):
    return {"hidden_units": units, "learning_rate": learning_rate, "l2": 1e-3, "optimizer": optimizer}


@pytest.fixture(scope="module")
def regression():
    x = RANDOM.uniform(-5, 5, (31, 1)).astype(np.float32)
    trials = [trial([10, 12, 3], 1e-3, "adam"), trial([20, 11, 5], 1e-2, "sgd")]
    return forms.order_work("regression", x, np.sin(x), trials, num_folds=3, num_epochs=4, batch_size=8)


@pytest.fixture(scope="module")
def searched(regression, tmp_path_factory):
    """The study's own search of that work -> (the work with its draws, validation losses [trial, fold, epoch])."""
    num_folds, num_epochs, _, batch_size = regression.train_order.shape
    study = replace(forms.study_of("regression"), data=Dataset(*[regression.x, regression.y] * 2))
    settings = {"num_folds": num_folds, "num_epochs": num_epochs, "batch_size": batch_size, "seed": forms.SEED}
    trials = run_study(study, num_trials=2, **settings, num_devices=1, out=tmp_path_factory.mktemp("searched")).trials
    draws = [space.draw_to_json(space.random_draw(study.space, forms.SEED, number)) for number in trials.numbers]
    return regression._replace(trials=draws), trials.folds["loss"]


def final(form, work):
    result = forms.run_form(form, work, repeats=1, seconds=0, full=True, num_devices=1)
    assert result["us_per_sample"] == []
    return np.array(result["final_val_loss"], float)


@pytest.mark.slow
def test_a_form_with_a_program_a_member_ends_with_the_same_losses(searched):
    """In float32, after a few steps."""
    work, losses = searched
    assert losses.shape == (2, 3) and len(np.unique(losses)) == losses.size, "members differ"
    np.testing.assert_allclose(final(forms.ONE_FOLD, work), losses, rtol=1e-4)


@pytest.mark.slow
def test_a_form_trains_what_the_search_trains_to_the_bit(searched, tmp_path, monkeypatch, capsys):
    work, losses = searched
    np.testing.assert_array_equal(final(forms.SEARCH, work), losses)
    peers.save_work(tmp_path / "work.npz", work)
    flags = f"--work {tmp_path}/work.npz --num-devices 1 --repeats 3 --seconds 0".split()
    monkeypatch.setattr(sys, "argv", ["forms.py", "--form", forms.SEARCH, *flags])
    forms.main()
    result = json.loads(capsys.readouterr().out)
    assert result["samples_timed"] == [2 * 2 * 31 * 4] * 3  # trials x (folds - 1) x samples x epochs
    assert all(us > 0 for us in result["us_per_sample"]) and result["final_val_loss"] is None


def test_a_form_that_fails_is_skipped_with_the_last_line_of_its_error(tmp_path):
    failed = benchmark.run_form(["--form", forms.FOLDS, "--work", str(tmp_path / "none.npz")])
    assert failed["skipped"].startswith("failed: FileNotFoundError")


def test_a_work_with_other_minibatches_is_refused(regression):
    other = regression._replace(train_order=regression.train_order[:, ::-1])
    with pytest.raises(ValueError, match="order_work"):
        next(forms.train(forms.ALL, other))


def test_each_sample_trains_in_all_folds_but_the_one_that_validates_it(regression):
    for train, val in zip(regression.train_order, regression.val_order, strict=True):
        for epoch in train:
            assert sorted([*epoch[epoch >= 0], *val[val >= 0]]) == list(range(31))


@pytest.mark.slow
def test_operations_of_a_dense_net_are_about_six_a_weight():
    # Two of each product forward and two for each gradient; there is none for the first layer's input.
    x, y = RANDOM.randint(0, 256, (25, 28, 28)).astype(np.uint8), RANDOM.randint(0, 10, 25).astype(np.int32)
    trials = [trial([10, 12, 3], 1e-3, "rmsprop")]
    work = forms.order_work("fashion_mlp", x, y, trials, num_folds=2, num_epochs=1, batch_size=3)
    weights = 784 * 10 * 2 / 3 + 10 * 12 + 12 * 3 + 3 * 10
    assert 0.9 < forms.operations_per_sample(work) / (6 * weights) < 1.3


def test_quality_is_compared_over_the_members_that_converged_everywhere():
    rows = [{"final_val_loss": [[1, 3], [None, 7]]}, {"final_val_loss": [[2, 4], [5, None]]}]
    benchmark.compare_quality(rows)
    assert [row["mean_val_loss"] for row in rows] == [2, 3]
    assert [row["best_val_loss"] for row in rows] == [2, 3]
    assert [row["failed_members"] for row in rows] == [1, 1]


def fake_form(arguments, **_):
    """As a child would answer, at once."""
    form = arguments[1]
    if form == "matrix products":
        return {"gflops": 100.0, "by_size": {"512": 100.0}}
    if form == "progress bar":
        return {"ratio": 1.01}
    if "--full" in arguments:
        return {"final_val_loss": [[0.5, 0.6, 0.7]] * 3}
    speed = 1.0 + forms.FORMS.index(form)
    return {"us_per_sample": [speed, speed + 1, speed + 2], "compile_seconds": 1.0, "peak_rss_mb": 300.0}


def test_the_files_say_what_each_form_took_and_what_was_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "run_form", fake_form)
    monkeypatch.setattr(peers, "run_peer", lambda *_, **__: {"skipped": "no torch"})
    monkeypatch.setattr(forms, "operations_per_sample", lambda work: 4000.0)
    benchmark.benchmark(benchmark.parse(["--studies", "regression", "--quick", "--out", str(tmp_path)]))
    lines = (tmp_path / "benchmark.md").read_text().splitlines()
    for form, expected in zip(forms.FORMS[:3], ("2 (1-3)", "3 (2-4)", "4 (3-5)"), strict=True):
        (row,) = [line for line in lines if line.startswith(f"| **{form}**")]
        assert row.split(" | ")[1] == expected
    assert sum("0.6, best 0.6" in line for line in lines) == 1 and "| 30 | " in "\n".join(lines)
    assert "- skipped: torch eager 2 threads: no torch" in lines
    results = json.loads((tmp_path / "benchmark.json").read_text())
    study = results["studies"]["regression"]
    assert study["rows"][0]["us_per_sample"] == [1, 2, 3]
    assert study["search_samples"] == 25 * 1000 * 200
    assert study["rows"][0]["search_seconds"] == pytest.approx(2e-6 * study["search_samples"])
    assert (study["rows"][0]["gflops"], study["rows"][0]["share_of_peak"]) == (2, 0.02)
    assert (study["strongest_peer"], len(study["trials"])) == (None, 3)
    assert results["environment"]["packages"]["jax"] == results["versions"]["jax"]
    for name in ("speed.png", "growth.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_draws_are_those_of_the_experiment_and_few_of_them_are_its_first():
    few, _ = benchmark.make_work("regression", None, quick=True)
    all_draws, _ = benchmark.make_work("regression", None, quick=False)
    assert few.trials == all_draws.trials[:3]
    assert all_draws.train_order.shape == (3, 1000, 4, 20)


def test_importing_the_benchmark_needs_none_of_the_heavy_libraries():
    heavy = ("optuna", "tyro", "rich", "tensorflow_datasets", "torch", "sklearn", "matplotlib", "jax")
    code = f"import sys, benchmark; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.slow
def test_growth_has_a_row_for_each_number_of_trials(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "NUM_FOLDS", (3,))

    def run_form(arguments):
        if arguments[-1] == "6":
            return {"skipped": "failed: MemoryError"}
        monkeypatch.setattr(sys, "argv", ["forms.py", *arguments])
        forms.main()
        return json.loads(capsys.readouterr().out)

    flags = ["--growth", "--quick", "--studies", "regression", "--out", str(tmp_path)]
    growth.measure(benchmark.parse(flags), run_form)
    row, skipped = json.loads((tmp_path / "search_growth.json").read_text())["studies"]["regression"]["rows"]
    assert (row["trials"], row["folds"], skipped["trials"]) == (3, 3, 6)
    assert row["samples"] == 5 * 200 // 3  # of a fold, all epochs
    assert row["num_programs"] >= 1 and row["files_mb"] > 0.01 and row["peak_rss_mb"] > 100
    assert 0 < row["train_seconds"] < row["total_seconds"]
    text = (tmp_path / "search_growth.md").read_text()
    assert f"| 3 | 3 | 9 | {row['num_programs']} | {row['total_seconds']:.1f} |" in text
    assert "- skipped: 6 trials of 3 folds: failed: MemoryError" in text


def test_a_folder_that_cant_be_is_told_before_anything_is_measured(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--out", str(tmp_path / "file")])
    monkeypatch.setattr(benchmark, "benchmark", lambda options: pytest.fail("measured"))
    monkeypatch.setattr(os, "environ", dict(os.environ))  # main sets some
    with pytest.raises(SystemExit, match="error: .*exists"):
        benchmark.main()


def line(seconds, loss, epochs=1, process=0):
    return {"seconds": seconds, "loss": loss, "epochs": epochs, "process": process}


def test_a_trace_is_the_running_minimum_over_all_processes_and_lasts_to_the_end():
    lines = [line(1, 0.9, 1), line(2, None, 2), line(4, 0.5, 3), line(3, 0.7, 5, 1), line(6, 0.8, 7, 1)]
    traced = score.trace(lines)
    assert traced.seconds.tolist() == [1, 3, 4, 6]
    assert traced.loss.tolist() == [0.9, 0.7, 0.5, 0.5]
    assert traced.epochs == 3 + 7
    assert [traced.until(loss) for loss in (1.0, 0.9, 0.6, 0.4)] == [1, 1, 4, np.inf]
    with pytest.raises(ValueError, match="no loss"):
        score.trace([line(1, None)])


def test_a_mean_is_told_when_the_last_fold_of_a_trial_is_scored_on_a_rung():
    scored = [(1, 0, 2, 0.4), (2, 1, 2, 3.0), (4, 0, 6, 9.0), (3, 0, 2, 0.6), (5, 1, 2, 5.0)]
    assert list(score.means([score.Scored(*each) for each in scored], 2)) == [(3, 0.5, 2), (5, 4.0, 4)]


FOUND = {  # as `score.run_side` would: ours with halving is at Optuna's loss in a fifth of its time, scikit-learn fails
    score.OURS: {"lines": [line(2, 0.9), line(8, 0.6)]},
    score.HALVING: {"lines": [line(2, 0.5), line(3, 0.3)]},
    score.OPTUNA: {"lines": [line(5, 0.7), line(10, 0.5), line(20, 0.8)], "versions": {"torch": "0"}},
    score.SKLEARN: {"skipped": "there is no scikit-learn"},
}


def test_the_files_say_when_ours_reached_what_a_peer_found(tmp_path, monkeypatch):
    monkeypatch.setattr(score, "run_side", lambda file, side, **_: FOUND[side])
    flags = ["--time-to-score", "--quick", "--studies", "regression", "--seeds", "3", "4", "--out", str(tmp_path)]
    time_to_score.measure(benchmark.parse(flags))
    text = (tmp_path / "time_to_score.md").read_text()
    assert f"| {score.OPTUNA} | **{score.HALVING}** | 2 | 10 | 0.2 | 0.1 | 2 of 2 |" in text
    assert f"| {score.OPTUNA} | **{score.OURS}** | never | 10 | never | never | 0 of 2 |" in text
    assert f"| **{score.HALVING}** | 6 | 1 | 0.3 (0.3, 0.3) | 3.0 |" in text
    assert text.count(f"- skipped: {score.SKLEARN}: there is no scikit-learn") == 1
    assert "torch 0" in text and "seeds 3, 4" in text
    assert (tmp_path / "time_to_score.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "time_to_score.json").read_text())["studies"]["regression"]["rows"]
    assert [(row["side"], row["seed"]) for row in rows] == [(side, seed) for seed in (3, 4) for side in score.SIDES]
    assert rows[2]["loss"] == [0.7, 0.5, 0.5]


def test_the_work_of_a_search_has_the_seeds_own_folds_and_draws():
    options = benchmark.parse(["--time-to-score", "--quick"])
    (one, trials), (other, _) = (time_to_score.search_work("regression", seed, options) for seed in (0, 1))
    study = forms.study_of("regression")
    assert one.trials[:4] == [space.draw_to_json(space.random_draw(study.space, 0, n)) for n in range(4)]
    assert other.trials[:4] != one.trials[:4]
    assert (one.val_order != other.val_order).any()
    assert trials[score.HALVING] > trials[score.OURS] == trials[score.OPTUNA]


def test_trials_with_halving_are_a_number_for_each_study(capsys):
    for flags, number in ((["--halving-trials", "regression=70"], 70), ([], homework.HALVING_TRIALS["regression"])):
        options = benchmark.parse(["--time-to-score", *flags])
        assert time_to_score.search_work("regression", 0, options)[1][score.HALVING] == number
    for text in ("9", "mnist=9", "regression=0", "regression=x"):
        with pytest.raises(SystemExit):
            benchmark.parse(["--halving-trials", text])
    assert "regression=150" in capsys.readouterr().err


@pytest.mark.slow
def test_our_search_tells_its_best_loss_and_all_its_epochs(searched, monkeypatch, capfd):
    monkeypatch.setattr("hw1jax.cli.use_all_cores", lambda: None)
    score.search_ours(searched[0], score.Teller(0.0), seed=forms.SEED, trials=2, num_devices=1)
    traced = score.trace(json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert traced.loss[-1] == pytest.approx(searched[1].mean(axis=1).min(), rel=1e-5)
    assert traced.epochs == 2 * 4
