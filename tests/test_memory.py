"""Populations of thousands stay within a stated bound of memory."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

BOUND_MB = 2000

CODE = """
import re, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from hw1jax import folds, planning, population, space, studies
from hw1jax.data import Dataset

study, num_trials = studies.by_name(sys.argv[1]), int(sys.argv[2])
settings, random = study.settings, np.random.default_rng(0)
if study.classes:
    x, y = random.integers(0, 256, (600, 28, 28), np.uint8), random.integers(0, 10, 600, np.int32)
else:
    x = random.uniform(-5, 5, (100, 1)).astype(np.float32)
    y = np.sin(x)
widest = studies.widest(settings)
layout = planning.make_layout(study, settings, Dataset(x, y, x, y))
plan = population.make_plan(num_trials, 3, studies.parameter_shapes(study, widest), layout)
task = studies.make_task(study, widest.channels, widest.hidden_units)
spec = population.Spec(2, settings.batch_size, (0,))
problem = population.place(task, plan, spec, x, y, folds.k_fold(len(x), 3, (0,)))
draws = [space.random_draw(studies.space_of(settings), 0, n) for n in range(plan.slots)]
*_, end = population.train(problem, jax.random.key(0), np.arange(plan.slots), studies.as_arrays(draws))
assert end.val_loss.shape == (plan.slots, 3, 1) and plan.slots >= num_trials
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process had at most")
@pytest.mark.parametrize(("study", "num_trials"), [("regression", 2000), ("fashion_cnn", 100)])
def test_thousands_of_members_train_in_one_program_within_the_bound(study, num_trials):
    command = [sys.executable, "-c", CODE, study, str(num_trials)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    print(f"{study}: {float(done.stdout):.0f} MB")
    assert float(done.stdout) < BOUND_MB
