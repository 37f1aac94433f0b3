"""Tests that need more than two devices. `test_devices.py` runs this file with eight."""

import jax
import numpy as np
import pytest
from test_run import LINE

from hw1jax import run_study
from hw1jax.core import cost
from hw1jax.core.layout import Layout


def test_there_are_eight_devices():
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(
    ("num_trials", "num_devices", "slots"), [(3, 3, 3), (8, 8, 8), (9, 8, 16), (25, 8, 32), (25, 4, 28)]
)
def test_a_plan_shares_its_slots_evenly_and_has_no_device_without_a_trial(num_trials, num_devices, slots):
    asked = None if num_devices in (3, 8) else num_devices
    plan = cost.make_plan(num_trials, 3, {"w": np.zeros(4)}, Layout(), asked)
    assert (plan.num_devices, plan.num_slots) == (num_devices, slots)


def test_a_search_on_more_devices_than_trials_finds_what_one_device_does_and_goes_on_there_alone(tmp_path, monkeypatch):
    several = run_study(LINE, out=tmp_path / "several", num_trials=3)
    one = run_study(LINE, out=tmp_path / "one", num_trials=3, num_devices=1)
    plans = [found.record["config"]["plan"]["brackets"][0]["rungs"][0]["plan"] for found in (several, one)]
    assert [plan["num_devices"] for plan in plans] == [3, 1]
    for name in ("train_loss", "val_loss"):
        np.testing.assert_allclose(several.histories[name], one.histories[name], rtol=1e-5)
    few = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: few)
    with pytest.raises(ValueError, match="was begun on 3 devices, here are 2"):
        run_study(LINE, out=tmp_path / "several", num_trials=3)
    assert run_study(LINE, out=tmp_path / "one", num_trials=3).record["best"] == one.record["best"]
