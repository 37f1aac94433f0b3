"""Runs tests/eight_devices.py in a process with eight virtual devices; all other tests have two."""

import os
import re
import subprocess
import sys
from pathlib import Path


def test_what_needs_eight_devices_passes_on_eight():
    file = Path(__file__).with_name("eight_devices.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(file)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=file.parents[1],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9]\d* passed", done.stdout, re.MULTILINE), done.stdout
    assert "skipped" not in done.stdout
