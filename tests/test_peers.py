"""The peers of the benchmark do the same work: same files, same batches, same initial parameters, same losses."""

import importlib.util
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from speed import peers, score

pytestmark = pytest.mark.slow

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
EXPERIMENTS = Path(peers.__file__).parents[1]
REFERENCE = "torch eager 2 processes x 1 thread"
COMPILED = [name for name in peers.PEERS if name.startswith("torch.compile")]


def synthetic_work(study: str, *, optimizers=("adam", "sgd", "rmsprop"), num_samples=50, num_epochs=2) -> peers.Work:
    """A trial an optimizer, 3 folds of 17, 17 and 16 samples, batches of 10: short last batches, a shorter fold."""
    random, batch = np.random.default_rng(0), 10
    if study == "regression":
        x = random.uniform(-5, 5, (num_samples, 1)).astype(np.float32)
        y = np.sin(x)
    else:
        x = random.integers(0, 256, (num_samples, 28, 28), dtype=np.uint8)
        y = random.integers(0, 10, num_samples).astype(np.int32)
    parts = np.array_split(random.permutation(num_samples), 3)
    num_steps = -(-(num_samples - len(parts[-1])) // batch)
    train_order = np.full((3, num_epochs, num_steps * batch), -1, np.int32)
    val_order = np.full((3, len(parts[0])), -1, np.int32)
    for fold, part in enumerate(parts):
        val_order[fold, : len(part)] = part
        rest = np.setdiff1d(np.arange(num_samples), part)
        for epoch in range(num_epochs):
            train_order[fold, epoch, : len(rest)] = random.permutation(rest)
    trials = [
        {"hidden_units": [11 + n, 13, 7], "learning_rate": 1e-3, "l2": 1e-2, "optimizer": optimizer}
        for n, optimizer in enumerate(optimizers)
    ]
    if study == "fashion_cnn":
        trials = [{**trial, "hidden_units": [21, 23], "channels": [4, 11]} for trial in trials]
    return peers.Work(study, x, y, train_order.reshape(3, num_epochs, num_steps, batch), val_order, trials)


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """Runs a peer's whole search of a synthetic study once, and remembers it."""
    folder, results = tmp_path_factory.mktemp("work"), {}

    def run(study: str, name: str, optimizers=("adam", "sgd", "rmsprop")) -> dict:
        if (study, name, optimizers) not in results:
            peers.save_work(folder / "work.npz", synthetic_work(study, optimizers=optimizers))
            results[study, name, optimizers] = peers.run_peer(folder / "work.npz", name, full=True)
        return results[study, name, optimizers]

    return run


@pytest.mark.parametrize("study", peers.STUDIES)
def test_work_survives_its_file(study, tmp_path):
    work = synthetic_work(study)
    peers.save_work(tmp_path / "work", work)
    again = peers.load_work(tmp_path / "work")
    assert (again.study, again.trials) == (work.study, work.trials)
    for before, after in zip(work[1:5], again[1:5], strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


def test_channels_last_is_for_the_cnn_alone():
    assert [name for name in peers.list_peers("regression") if "channels_last" in name] == []
    assert len(peers.list_peers("fashion_cnn")) == len(peers.PEERS)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no study 'mnist'"):
        peers.list_peers("mnist")
    with pytest.raises(ValueError, match="no peer 'keras'"):
        peers.run_peer(tmp_path / "work.npz", "keras")


@pytest.mark.parametrize(("name", "package"), [(REFERENCE, "torch"), ("scikit-learn MLP", "sklearn")])
def test_a_missing_package_is_a_reason_to_skip(name, package, tmp_path, monkeypatch):
    (tmp_path / f"{package}.py").write_text(f"raise ImportError('No module named {package}')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    peers.save_work(tmp_path / "work.npz", synthetic_work("regression"))
    result = peers.run_peer(tmp_path / "work.npz", name)
    assert result == {"peer": name, "skipped": f"No module named {package}: pip install '.[peers]' brings it"}


def run_code(*lines):
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)


def test_the_module_itself_needs_numpy_alone():
    heavy = "{'torch', 'sklearn', 'jax', 'hw1jax'}"
    done = run_code(f"import runpy, sys; runpy.run_path({peers.__file__!r}); assert not {heavy} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals are a POSIX matter")
def test_an_interrupt_ends_a_process_of_a_peer_without_a_traceback():
    done = run_code(
        "import os, runpy, signal, time",
        f"runpy.run_path({peers.__file__!r}, run_name='__mp_main__')",
        "os.kill(os.getpid(), signal.SIGINT)",
        "time.sleep(10)",
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_scikit_learn_skips_what_it_cannot_do(tmp_path):
    pytest.importorskip("sklearn")
    for study, optimizers, reason in (
        ("fashion_cnn", ("adam",), "no convolutions"),
        ("regression", ("rmsprop",), "none"),
    ):
        peers.save_work(tmp_path / "work.npz", synthetic_work(study, optimizers=optimizers))
        assert reason in peers.run_peer(tmp_path / "work.npz", "scikit-learn MLP")["skipped"]


@pytest.mark.parametrize("study", ["regression", "fashion_mlp"])
def test_scikit_learn_trains_adam_and_sgd(study, full_run):
    pytest.importorskip("sklearn")
    losses = full_run(study, "scikit-learn MLP")["final_val_loss"]
    assert np.isfinite(np.array(losses[:2], float)).all()
    assert losses[2] == [None, None, None]


@needs_torch
@pytest.mark.parametrize(
    ("study", "name"),
    [
        (study, name)
        for study in peers.STUDIES
        for name in peers.list_peers(study)
        if name not in [REFERENCE, "scikit-learn MLP", *COMPILED]
    ],
)
def test_torch_peers_agree(study, name, full_run):
    assert_same_losses(full_run(study, name), full_run(study, REFERENCE))


@needs_torch
@needs_compiler
@pytest.mark.parametrize(
    ("study", "name"),
    [(study, name) for study in peers.STUDIES for name in peers.list_peers(study) if name in COMPILED],
)
def test_compiled_peers_agree(study, name, full_run):
    optimizers = ("adam", "sgd", "rmsprop") if study == "regression" else ("adam",)  # a compilation takes 10 seconds
    result = full_run(study, name, optimizers)
    assert_same_losses(result, full_run(study, REFERENCE, optimizers))
    assert result["compile_seconds"] > 0


def assert_same_losses(result: dict, reference: dict) -> None:
    assert "skipped" not in result, result
    for losses in ("final_train_loss", "final_val_loss"):
        np.testing.assert_allclose(result[losses], reference[losses], rtol=1e-4, atol=1e-4)
    assert result["samples_timed"] == reference["samples_timed"]


@needs_torch
@pytest.mark.parametrize("study", peers.STUDIES)
def test_timed_repeats_cover_all_trials_equally(study, tmp_path):
    work = synthetic_work(study)
    peers.save_work(tmp_path / "work.npz", work)
    result = peers.run_peer(tmp_path / "work.npz", REFERENCE, repeats=2, seconds=0.2)
    assert len(result["us_per_sample"]) == len(result["samples_timed"]) == 2
    assert min(result["us_per_sample"]) > 0 and result["final_val_loss"] is None
    assert all(samples % len(work.trials) == 0 for samples in result["samples_timed"])


def search(side: str, tmp_path) -> score.Trace:
    """Four trials of at most 9 epochs."""
    work = synthetic_work("regression", optimizers=("adam", "sgd", "rmsprop", "adam"), num_epochs=9)
    peers.save_work(tmp_path / "work.npz", work)
    found = score.run_side(tmp_path / "work.npz", side, seed=0, trials=4)
    assert "skipped" not in found, found
    return score.trace(found["lines"])


@needs_torch
def test_optuna_trains_each_trial_at_most_to_its_last_epoch(tmp_path):
    traced = search(score.OPTUNA, tmp_path)
    assert 4 < traced.epochs <= 4 * 9
    assert (np.diff(traced.loss) <= 0).all() and (np.diff(traced.seconds) >= 0).all()


def test_scikit_learn_halves_the_candidates_that_it_can_train(tmp_path):
    pytest.importorskip("sklearn")
    assert search(score.SKLEARN, tmp_path).epochs == 3 * 3 + 9  # the best of the three without RMSprop anew


@pytest.mark.parametrize(("side", "package"), [(score.OPTUNA, "torch"), (score.SKLEARN, "sklearn")])
def test_a_search_without_its_package_is_skipped_with_the_reason(side, package, tmp_path):
    (tmp_path / f"{package}.py").write_text(f"raise ImportError('No module named {package}')")
    peers.save_work(tmp_path / "work.npz", synthetic_work("regression"))
    found = score.run_side(tmp_path / "work.npz", side, seed=0, trials=2, PYTHONPATH=f"{tmp_path}:{EXPERIMENTS}")
    assert f"No module named {package}" in found["skipped"]
