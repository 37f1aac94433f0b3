"""The benchmark: all forms do the same work, and its files say what was measured and what was not."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import benchmark
import homework
import jax
import numpy as np
import pytest
from speed import forms, growth, peers, prediction, score, time_to_score

from hw1jax import run_study, space
from hw1jax.data import Dataset

RANDOM = np.random.RandomState(0)


def run_code(code, *folders):
    """Python in a process that finds the experiments, and what is in the folders."""
    paths = os.pathsep.join(map(str, [*folders, Path(benchmark.__file__).parent]))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths},
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def trial(units, learning_rate, optimizer):
    return {"hidden_units": units, "learning_rate": learning_rate, "l2": 1e-3, "optimizer": optimizer}


@pytest.fixture(scope="module")
def regression():
    x = RANDOM.uniform(-5, 5, (31, 1)).astype(np.float32)
    trials = [trial([10, 12, 3], 1e-3, "adam"), trial([20, 11, 5], 1e-2, "sgd")]
    return forms.order_work("regression", x, np.sin(x), trials, num_folds=3, num_epochs=4, batch_size=8)


@pytest.fixture(scope="module")
def images():
    x, y = RANDOM.randint(0, 256, (25, 28, 28)).astype(np.uint8), RANDOM.randint(0, 10, 25).astype(np.int32)
    trials = [trial([10, 12, 3], 1e-3, "rmsprop"), trial([20, 11, 5], 1e-2, "adam")]
    return forms.order_work("fashion_mlp", x, y, trials, num_folds=2, num_epochs=1, batch_size=3)


@pytest.fixture(scope="module")
def small_images():
    """For convolutions."""
    x, y = RANDOM.randint(0, 256, (10, 28, 28)).astype(np.uint8), RANDOM.randint(0, 10, 10).astype(np.int32)
    trials = [{**trial(units, 1e-3, "sgd"), "channels": [4, 10]} for units in ([20, 20], [21, 22])]
    return forms.order_work("fashion_cnn", x, y, trials, num_folds=2, num_epochs=1, batch_size=3)


def final(form, work, num_devices=None):
    result = forms.run_form(form, work, repeats=1, seconds=0, full=True, num_devices=num_devices)
    assert result["us_per_sample"] == []
    return np.array(result["final_val_loss"], float)


def check_agreement(losses):
    """In float32, after a few steps at small learning rates."""
    assert losses[0].shape == (2, len(losses[0][0]))
    assert len(np.unique(losses[0])) == losses[0].size, "members differ"
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-4)


@pytest.mark.slow
def test_forms_end_with_the_same_losses(regression):
    check_agreement([final(form, regression, num_devices=1) for form in forms.FORMS[:3]])


@pytest.mark.slow
def test_forms_end_with_the_same_losses_on_images_as_a_search_trains_them_too(images):
    check_agreement([final(form, images) for form in (forms.ALL, forms.SEARCH)])


@pytest.mark.slow
def test_convolutions_end_with_the_same_losses_by_xlas_own(small_images):
    check_agreement([final(form, small_images, num_devices=1) for form in (forms.ALL, forms.LAX)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "widths", "name"),
    [(forms.ALL, "padded", "regression"), (forms.SEARCH, "auto", "regression"), (forms.SEARCH, "auto", "images")],
)
def test_a_form_trains_what_the_search_trains_to_the_bit(form, widths, name, request, tmp_path):
    work = request.getfixturevalue(name)
    num_folds, num_epochs, _, batch_size = work.train_order.shape
    study = replace(forms.study_of(work.study), data=Dataset(work.x, work.y, work.x, work.y))
    settings = {"num_folds": num_folds, "num_epochs": num_epochs, "batch_size": batch_size, "seed": forms.SEED}
    searched = run_study(study, num_trials=3, **settings, widths=widths, out=tmp_path).trials
    trials = [space.draw_to_json(space.random_draw(study.space, forms.SEED, number)) for number in searched.numbers]
    np.testing.assert_array_equal(final(form, work._replace(trials=trials)), searched.folds["loss"])


@pytest.mark.slow
def test_a_repeat_counts_the_training_samples_of_whole_rounds(regression):
    result = forms.run_form(forms.ALL, regression, repeats=3, seconds=0, full=False, num_devices=1)
    assert result["samples_timed"] == [2 * 2 * 31 * 4] * 3  # trials x (folds - 1) x samples x epochs
    assert all(us > 0 for us in result["us_per_sample"])
    assert result["final_val_loss"] is None


@pytest.mark.slow
def test_a_form_answers_from_a_process_of_its_own(regression, tmp_path):
    peers.save_work(tmp_path / "work.npz", regression)
    flags = ["--work", str(tmp_path / "work.npz"), "--repeats", "1", "--seconds", "0"]
    assert len(benchmark.run_form(["--form", forms.FOLDS, *flags])["us_per_sample"]) == 1
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
def test_operations_of_a_dense_net_are_about_six_a_weight(images):
    # Two of each product forward and two for each gradient; there is none for the first layer's input.
    weights = np.mean([784 * 10 * 2 / 3 + 10 * 12 + 12 * 3 + 3 * 10, 784 * 20 * 2 / 3 + 20 * 11 + 11 * 5 + 5 * 10])
    assert 0.9 < forms.operations_per_sample(images) / (6 * weights) < 1.3


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


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The files of a benchmark whose own forms are pretended, with a Python that has no torch."""
    out, no_torch = tmp_path_factory.mktemp("benchmark"), tmp_path_factory.mktemp("no torch")
    (no_torch / "torch.py").write_text("raise ImportError('there is no torch')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(no_torch))
        patch.setattr(benchmark, "run_form", fake_form)
        patch.setattr(peers, "list_peers", lambda study: ["torch eager 2 threads"])
        benchmark.benchmark(benchmark.parse(["--studies", "regression", "--quick", "--out", str(out)]))
    return out


def test_the_table_has_a_row_for_each_form_with_its_median_and_range(report):
    lines = (report / "benchmark.md").read_text().splitlines()
    for form, expected in zip(forms.FORMS[:3], ("2 (1-3)", "3 (2-4)", "4 (3-5)"), strict=True):
        (row,) = [line for line in lines if line.startswith(f"| **{form}**")]
        assert row.split(" | ")[1] == expected
    assert sum("0.6, best 0.6" in line for line in lines) == 1
    assert "| 30 | " in "\n".join(lines)


def test_a_missing_peer_is_a_line(report):
    (line,) = [line for line in (report / "benchmark.md").read_text().splitlines() if "torch eager" in line]
    assert line.startswith("- skipped: torch eager 2 threads: ")
    assert "no torch" in line


def test_the_raw_numbers_are_in_the_json_and_the_plots_are_drawn(report):
    results = json.loads((report / "benchmark.json").read_text())
    study = results["studies"]["regression"]
    assert study["rows"][0]["us_per_sample"] == [1, 2, 3]
    assert study["search_samples"] == 25 * 1000 * 200
    assert study["rows"][0]["search_seconds"] == pytest.approx(2e-6 * study["search_samples"])
    assert study["strongest_peer"] is None
    assert len(study["trials"]) == 3
    assert results["environment"]["packages"]["jax"] == results["versions"]["jax"]
    for name in ("speed.png", "growth.png"):
        assert (report / name).read_bytes().startswith(b"\x89PNG")


def test_the_draws_are_those_of_the_experiment_and_few_of_them_are_its_first():
    few, _ = benchmark.make_work("regression", None, quick=True)
    all_draws, _ = benchmark.make_work("regression", None, quick=False)
    assert few.trials == all_draws.trials[:3]
    assert all_draws.train_order.shape == (3, 1000, 4, 20)


def test_importing_the_benchmark_needs_none_of_the_heavy_libraries():
    heavy = ("optuna", "tyro", "rich", "tensorflow_datasets", "torch", "matplotlib", "jax")
    code = f"import sys, benchmark; print(*(name for name in {heavy} if name in sys.modules))"
    assert run_code(code).stdout.split() == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "samples"), [("regression", 4 * 62 // 3), ("images", 12)])
def test_a_whole_search_says_what_it_took(name, samples, request, tmp_path):
    work = request.getfixturevalue(name)
    found = forms.whole_search(work, 3, tmp_path)
    assert not list(tmp_path.iterdir())
    assert found["samples"] == samples  # of a fold, all epochs
    assert found["num_programs"] >= 1
    assert 0 < found["train_seconds"] < found["total_seconds"]
    assert found["files_mb"] > 0.01
    assert found["peak_rss_mb"] > 100


def test_growth_has_a_row_for_each_number_of_trials_and_folds(tmp_path):
    asked = []

    def fake(arguments):
        work, trials = peers.load_work(arguments[arguments.index("--work") + 1]), int(arguments[-1])
        asked.append((trials, len(work.train_order), len(work.x), work.train_order.shape[1]))
        if trials > 3:
            return {"skipped": "failed: MemoryError"}
        return {"train_seconds": 0.9, "total_seconds": 2.0, "num_programs": 1, "samples": 100, "peak_rss_mb": 300.0,
                "files_mb": 0.25}  # fmt: skip

    growth.measure(benchmark.parse(["--growth", "--quick", "--studies", "regression", "--out", str(tmp_path)]), fake)
    assert asked == [(trials, folds, 100, 5) for folds in growth.NUM_FOLDS for trials in (3, 6)]
    lines = (tmp_path / "search_growth.md").read_text().splitlines()
    assert "| 3 | 3 | 9 | 1 | 2.0 | 0.9 | 100 | 1e+03 | 300 | 0.2 |" in lines
    assert "- skipped: 6 trials of 10 folds: failed: MemoryError" in lines
    rows = json.loads((tmp_path / "search_growth.json").read_text())["studies"]["regression"]["rows"]
    assert [(row["trials"], row["folds"]) for row in rows] == [(3, 3), (6, 3), (3, 10), (6, 10)]


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


def test_the_convolutional_study_has_no_scikit_learn():
    assert score.SKLEARN in score.list_sides("fashion_mlp")
    assert score.list_sides("fashion_cnn") == [score.OURS, score.HALVING, score.OPTUNA]


FOUND = {  # as `score.run_side` would: ours with halving is at Optuna's loss in a fifth of its time, scikit-learn fails
    score.OURS: {"lines": [line(2, 0.9), line(8, 0.6)]},
    score.HALVING: {"lines": [line(2, 0.5), line(3, 0.3)]},
    score.OPTUNA: {"lines": [line(5, 0.7), line(10, 0.5), line(20, 0.8)], "versions": {"torch": "0"}},
    score.SKLEARN: {"skipped": "there is no scikit-learn"},
}


@pytest.mark.slow
def test_what_an_accelerator_would_be_asked_for_grows_with_the_members(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "NUM_TRIALS", (2, 4))
    prediction.measure(benchmark.parse(["--predict", "--studies", "regression", "--out", str(tmp_path)]))
    found = json.loads((tmp_path / "prediction.json").read_text())["studies"]["regression"]
    weights = 50 + 50 * 50 + 50 * 30 + 30  # of the widest network
    step, piece = 20 * 3 * 2 * weights, 34 * 2 * weights  # products alone
    assert step + piece < found["operations"] < 2 * (step + piece)
    assert found["moved"] > found["memory"] > 3 * 4 * weights, "the parameters and two moments"
    assert found["most_members"] == pytest.approx(prediction.MEMORY / found["memory"], rel=0.01)
    assert f"| regression | {1e-6 * found['operations']:.1f} |" in (tmp_path / "prediction.md").read_text()


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """The files of --time-to-score, whose searches are pretended."""
    out = tmp_path_factory.mktemp("scores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "run_side", lambda file, side, **_: FOUND[side])
        flags = ["--time-to-score", "--quick", "--studies", "regression", "--seeds", "3", "4", "--out", str(out)]
        time_to_score.measure(benchmark.parse(flags))
    return out


def test_the_table_says_when_ours_reached_what_a_peer_found(scores):
    text = (scores / "time_to_score.md").read_text()
    assert f"| {score.OPTUNA} | **{score.HALVING}** | 2 | 10 | 0.2 | 0.1 | 2 of 2 |" in text
    assert f"| {score.OPTUNA} | **{score.OURS}** | never | 10 | never | never | 0 of 2 |" in text
    assert f"| **{score.HALVING}** | 6 | 1 | 0.3 (0.3, 0.3) | 3.0 |" in text
    assert text.count(f"- skipped: {score.SKLEARN}: there is no scikit-learn") == 1
    assert "torch 0" in text and "seeds 3, 4" in text
    assert (scores / "time_to_score.png").read_bytes().startswith(b"\x89PNG")


def test_every_search_of_a_seed_is_in_the_json(scores):
    rows = json.loads((scores / "time_to_score.json").read_text())["studies"]["regression"]["rows"]
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
@pytest.mark.parametrize("side", [score.OURS, score.HALVING])
def test_our_search_tells_its_best_loss_and_all_its_epochs(side, regression, tmp_path):
    peers.save_work(tmp_path / "work.npz", regression)
    found = score.run_side(tmp_path / "work.npz", side, seed=forms.SEED, trials=4)
    traced = score.trace(found["lines"])
    study = forms.study_of("regression")
    study = replace(study, data=Dataset(regression.x, regression.y, regression.x, regression.y))
    settings = {"num_trials": 4, "num_folds": 3, "num_epochs": 4, "batch_size": 8, "seed": forms.SEED}
    settings |= homework.HALVING if side == score.HALVING else {}
    trials = run_study(study, **settings, out=tmp_path / "out").trials
    finals = np.nanmin(trials.folds["loss"].mean(axis=1))
    assert traced.loss[-1] <= finals * (1 + 1e-5)
    assert traced.epochs == trials.epochs.sum()


@pytest.mark.slow
def test_it_runs_where_optuna_tyro_and_tensorflow_datasets_are_missing(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "for name in ('optuna', 'tyro', 'tensorflow_datasets'):\n"
        "    sys.modules[name] = None  # importing it is an error\n"
    )
    code = (
        "import benchmark, sys\n"
        "from speed import forms\n"
        "work, _ = benchmark.make_work('fashion_mlp', None, quick=True, synthetic=True)\n"
        "work = work._replace(trials=work.trials[:1])\n"
        "result = forms.run_form('folds in parallel', work, repeats=1, seconds=0, full=False)\n"
        "from hw1jax import record, storage\n"
        "from hw1jax.report import plots\n"
        "print(record.describe()['packages']['jax'], len(result['us_per_sample']))\n"
    )
    assert run_code(code, tmp_path).stdout.split() == [jax.__version__, "1"]
