"""The peers of the benchmark do the same work: same files, same batches, same initial parameters, same losses."""

import argparse
import importlib.util
import json
import shutil
import sys
import threading

import numpy as np
import pytest
from speed import peers, score

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
REFERENCE, ONE_PROCESS = "torch eager 2 processes x 1 thread", "torch eager 2 threads"
SKLEARN = "scikit-learn MLP"
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


@pytest.mark.parametrize("study", peers.STUDIES)
def test_work_survives_its_file(study, tmp_path):
    work = synthetic_work(study)
    peers.save_work(tmp_path / "work", work)
    again = peers.load_work(tmp_path / "work")
    assert (again.study, again.trials) == (work.study, work.trials)
    for before, after in zip(work[1:5], again[1:5], strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


def test_channels_last_is_for_the_cnn_alone_which_scikit_learn_has_not():
    assert [name for name in peers.list_peers("regression") if "channels_last" in name] == []
    assert len(peers.list_peers("fashion_cnn")) == len(peers.PEERS)
    assert score.SKLEARN in score.list_sides("fashion_mlp")
    assert score.list_sides("fashion_cnn") == [score.OURS, score.HALVING, score.OPTUNA]


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no study 'mnist'"):
        peers.list_peers("mnist")
    with pytest.raises(ValueError, match="no peer 'keras'"):
        peers.run_peer(tmp_path / "work.npz", "keras")


@pytest.mark.slow
def test_a_missing_package_is_a_reason_to_skip(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    peers.save_work(tmp_path / "work.npz", synthetic_work("regression"))
    result = peers.run_peer(tmp_path / "work.npz", ONE_PROCESS)
    assert result == {"peer": ONE_PROCESS, "skipped": "No module named torch: pip install '.[peers]' brings it"}


def test_a_search_without_its_package_is_skipped_with_the_reason(tmp_path, monkeypatch, capfd):
    peers.save_work(tmp_path / "work.npz", synthetic_work("regression"))
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("os.environ", {})
    flags = ["--work", str(tmp_path / "work.npz"), "--side", score.SKLEARN, "--started", "0", "--trials", "2"]
    monkeypatch.setattr(sys, "argv", ["score.py", *flags])
    score.main()
    assert "import of sklearn" in json.loads(capfd.readouterr().out)["skipped"]


def in_process(work, tmp_path, name):
    """What a peer's process does, in this one."""
    peers.save_work(tmp_path / "work.npz", work)
    options = argparse.Namespace(work=tmp_path / "work.npz", peer=name, full=True)
    counter = argparse.Namespace(value=0, get_lock=threading.RLock)  # no other process counts
    return peers.measure(options, counter, threading.Barrier(1))


@pytest.mark.slow
def test_scikit_learn_trains_adam_and_sgd_and_skips_what_it_cannot_do(tmp_path):
    pytest.importorskip("sklearn")
    trained = in_process(synthetic_work("regression"), tmp_path, SKLEARN)["losses"]
    assert sorted((trial, fold) for trial, (fold,), *_ in trained) == [(n, fold) for n in (0, 1) for fold in range(3)]
    assert np.isfinite([val for *_, (val,) in trained]).all()
    with pytest.raises(peers.Skip, match="no convolutions"):
        in_process(synthetic_work("fashion_cnn", optimizers=("adam",)), tmp_path, SKLEARN)
    with pytest.raises(peers.Skip, match="none"):
        in_process(synthetic_work("regression", optimizers=("rmsprop",)), tmp_path, SKLEARN)


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("study", peers.STUDIES)
def test_torch_peers_agree(study, tmp_path):
    file, names = tmp_path / "work.npz", [name for name in peers.list_peers(study) if name not in (REFERENCE, SKLEARN)]
    if shutil.which("c++") is None:  # which torch.compile needs
        names = [name for name in names if name not in COMPILED]
    few = ("adam", "sgd", "rmsprop") if study == "regression" else ("adam",)  # a compilation takes 10 seconds
    peers.save_work(file, synthetic_work(study, optimizers=few))
    reference = peers.run_peer(file, REFERENCE, full=True)
    for name in names:
        result = peers.run_peer(file, name, full=True)
        for losses in ("final_train_loss", "final_val_loss"):
            np.testing.assert_allclose(result[losses], reference[losses], rtol=1e-4, atol=1e-4)
        assert result["samples_timed"] == reference["samples_timed"]
        assert name not in COMPILED or result["compile_seconds"] > 0
    timed = peers.run_peer(file, REFERENCE, repeats=2, seconds=0.2)
    assert len(timed["us_per_sample"]) == 2 and min(timed["us_per_sample"]) > 0
    assert timed["final_val_loss"] is None and all(samples % len(few) == 0 for samples in timed["samples_timed"])


@pytest.mark.slow
@pytest.mark.parametrize("side", [pytest.param(score.OPTUNA, marks=needs_torch), score.SKLEARN])
def test_a_peers_search_trains_each_trial_at_most_to_its_last_epoch(side, tmp_path):
    pytest.importorskip("sklearn")
    work = synthetic_work("regression", optimizers=("adam", "sgd", "rmsprop", "adam"), num_epochs=9)
    peers.save_work(tmp_path / "work.npz", work)
    found = score.run_side(tmp_path / "work.npz", side, seed=0, trials=4)
    assert "skipped" not in found, found
    traced = score.trace(found["lines"])
    assert 4 < traced.epochs <= 4 * 9 and (np.diff(traced.loss) <= 0).all() and (np.diff(traced.seconds) >= 0).all()
    if side == score.SKLEARN:
        assert traced.epochs == 3 * 3 + 9  # the best of the three without RMSprop anew
