"""What needs more than two devices. `test_devices.py` runs this file with eight."""

import jax


def test_there_are_eight_devices():
    assert len(jax.devices()) == 8
