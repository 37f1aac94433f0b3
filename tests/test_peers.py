"""The peers of the benchmark do the same work: same files, same batches, same initial parameters, same losses."""

import argparse
import importlib.util
import math
import shutil
import sys
import threading

import numpy as np
import peers
import pytest

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def synthetic_work(study, *, optimizers=("adam", "sgd", "rmsprop"), num_samples=50, num_epochs=2):
    """A trial an optimizer, 3 folds of 17, 17 and 16 samples, batches of 10: short last batches, a shorter fold."""
    random, batch = np.random.default_rng(0), 10
    x = random.uniform(-5, 5, (num_samples, 1)).astype(np.float32)
    y = np.sin(x)
    if study != "regression":
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
        trials = [trial | {"hidden_units": [21, 23], "channels": [4, 11]} for trial in trials]
    train_order = train_order.reshape(3, num_epochs, num_steps, batch)
    return peers.Work(study, x, y, train_order, val_order, trials, num_epochs)


@pytest.mark.parametrize("study", peers.STUDIES)
def test_work_survives_its_file(study, tmp_path):
    work = synthetic_work(study)
    peers.save_work(tmp_path / "work.npz", work)
    again = peers.load_work(tmp_path / "work.npz")
    assert (again.study, again.trials, again.search_epochs) == (work.study, work.trials, work.search_epochs)
    for before, after in zip(work[1:5], again[1:5], strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


def test_a_search_is_its_running_minimum_to_its_end():
    points = [(1, 0.9), (2, math.nan), (4, 0.5), (3, 0.7), (6, 0.8)]
    assert peers.running_minimum(points, 7) == {"seconds": [1, 3, 4, 7], "loss": [0.9, 0.7, 0.5, 0.5]}


@pytest.mark.slow
def test_a_missing_package_is_a_reason_to_skip(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    peers.save_work(tmp_path / "work.npz", synthetic_work("regression"))
    result = peers.run_peer(sys.executable, tmp_path / "work.npz", peers.EAGER, repeats=0)
    assert result == {"skipped": "No module named torch: pip install '.[peers]' brings it"}


def final_losses(work, name):
    """What a peer's process does, in this one: [trial, fold], None where it has not trained."""
    counter = argparse.Namespace(value=0, get_lock=threading.RLock)  # no other process counts
    return peers.together(work, [peers.measure(work, name, counter, threading.Barrier(1), repeats=0)])["final_val_loss"]


@pytest.mark.slow
def test_scikit_learn_trains_adam_and_sgd_and_has_no_convolutions():
    pytest.importorskip("sklearn")
    *trained, rmsprop = final_losses(synthetic_work("regression"), peers.SKLEARN)
    assert np.isfinite(trained).all() and rmsprop == [None] * 3
    with pytest.raises(NotImplementedError, match="no convolutions"):
        final_losses(synthetic_work("fashion_cnn"), peers.SKLEARN)


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("study", peers.STUDIES)
def test_torch_peers_agree(study, tmp_path):
    file = tmp_path / "work.npz"
    few = ("adam", "sgd", "rmsprop") if study == "regression" else ("adam",)  # a compilation takes 10 seconds
    peers.save_work(file, synthetic_work(study, optimizers=few))
    reference = peers.run_peer(sys.executable, file, peers.EAGER, repeats=0)["final_val_loss"]
    assert np.shape(reference) == (len(few), 3)
    if shutil.which("c++") is not None:  # which torch.compile needs
        compiled = peers.run_peer(sys.executable, file, peers.COMPILED, repeats=0)["final_val_loss"]
        np.testing.assert_allclose(compiled, reference, rtol=1e-4, atol=1e-4)
    timed = peers.run_peer(sys.executable, file, peers.EAGER, repeats=2, seconds=0.2)
    assert len(timed["us_per_sample"]) == 2 and min(timed["us_per_sample"]) > 0


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("trial", [0, 1], ids=["adam", "sgd"])  # Optax and PyTorch have each an RMSprop of its own
def test_a_notebooks_loop_trains_what_torch_trains(trial, monkeypatch):
    monkeypatch.setattr(peers, "torch", importlib.import_module("torch"))
    work = synthetic_work("regression")
    eager, notebook = (each(work, each.prepare(work), trial, [0]) for each in (peers.Eager, peers.Notebook))
    params = [param.detach().numpy().copy() for param in eager.params]
    layers = zip(notebook.params["params"], params[::2], params[1::2], strict=True)
    notebook.params = {"params": {name: {"kernel": kernel.T, "bias": bias} for name, kernel, bias in layers}}
    theirs, ours = (peers.train(trainer, work, [0], range(2)) for trainer in (eager, notebook))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@needs_torch
@pytest.mark.slow
def test_optuna_trains_each_trial_at_most_to_its_last_epoch(tmp_path):
    work = synthetic_work("regression", optimizers=("adam", "sgd", "rmsprop", "adam"), num_epochs=9)
    peers.save_work(tmp_path / "work.npz", work)
    how = {"seed": 0, "trials": 4, "started": 0.0}
    found = peers.run_peer(sys.executable, tmp_path / "work.npz", peers.OPTUNA, **how)
    assert 4 < found["epochs"] <= 4 * 9
    assert (np.diff(found["loss"]) <= 0).all() and (np.diff(found["seconds"]) >= 0).all()
