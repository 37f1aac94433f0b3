"""A population of thousands stays within a stated bound of memory."""

import subprocess
import sys

import pytest

BOUND_MB = 2000

CODE = """
import re
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from hw1jax import folds, population, space, studies

study = studies.REGRESSION
data = study.load(study.settings)
widest = studies.widest(study.settings)
plan = population.make_plan(2000, 3, studies.parameter_shapes(study, widest), study.layout)
task = studies.make_task(study, widest.channels, widest.hidden_units)
spec = population.Spec(10, 20, (0,), 5)
problem = population.place(task, plan, spec, data.x_train, data.y_train, folds.k_fold(100, 3, (0,)))
draws = [space.random_draw(studies.space_of(study.settings), 0, n) for n in range(plan.slots)]
*_, end = population.train(problem, jax.random.key(0), np.arange(plan.slots), studies.as_arrays(draws))
assert end.val_loss.shape == (plan.slots, 3, 5) and plan.slots >= 2000
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process had at most")
def test_two_thousand_trials_of_the_regression_train_in_one_program_within_the_bound():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < BOUND_MB
