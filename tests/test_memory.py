"""Populations of thousands stay within a stated bound of memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BOUND_MB = 2000

CODE = """
import importlib, re, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from hw1jax import folds, population, space
from hw1jax.population import Data, Trials
from hw1jax.study import make_task, one_trial, parameter_shapes

study, num_trials = importlib.import_module(sys.argv[1]).STUDY, int(sys.argv[2])
random = np.random.default_rng(0)
if study.classes:
    x, y = random.integers(0, 256, (600, 28, 28), np.uint8), random.integers(0, 10, 600, np.int32)
else:
    x = random.uniform(-5, 5, (100, 1)).astype(np.float32)
    y = np.sin(x)
widest = space.widest(study.space)
task, one = make_task(study, space.fixed(study.space, widest, widest=True)), one_trial(study, widest)
shapes = parameter_shapes(task, one)
layout = population.choose_layout(task, shapes, None, x, one, batch_size=study.batch_size)
plan = population.make_plan(num_trials, 3, shapes, layout)
spec = population.Spec(2, study.batch_size, (0,))
placed = population.place(task, plan, spec, Data(x, y), folds.k_fold(len(x), 3, (0,)))
draws = space.as_arrays(study.space, [space.random_draw(study.space, 0, n) for n in range(plan.slots)])
*_, end = population.train(placed, Trials(jax.random.key(0), np.arange(plan.slots), draws))
assert end.val["loss"].shape == (plan.slots, 3, 1) and plan.slots >= num_trials
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


def run(code, *arguments, seconds):
    """What the code prints, with the experiments at hand."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "experiments")}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process had at most")
@pytest.mark.parametrize(("study", "num_trials"), [("regression", 2000), ("fashion_cnn", 100)])
def test_thousands_of_members_train_in_one_program_within_the_bound(study, num_trials):
    taken = float(run(CODE, study, num_trials, seconds=300))
    print(f"{study}: {taken:.0f} MB")
    assert taken < BOUND_MB


OWN_WIDTHS = """
import re
import jax
jax.config.update("jax_num_cpu_devices", 1)
import numpy as np
from hw1jax import folds, population, space
from hw1jax.population import Data, Plan, Spec, Trials
from hw1jax.study import make_task
from regression import STUDY

x = np.random.default_rng(0).uniform(-5, 5, (60, 1)).astype(np.float32)
widest = space.widest(STUDY.space)
task = make_task(STUDY, space.fixed(STUDY.space, widest, widest=True))
wide = population.place(task, Plan(1), Spec(2, 20, (0,), 2), Data(x, np.sin(x)), folds.k_fold(60, 3, (0,)))
for number in range(32):
    draw = widest | {"hidden_units": (3 + number, 4, 3)}
    narrow = wide._replace(task=make_task(STUDY, space.fixed(STUDY.space, draw, widest=False)))
    trials = Trials(jax.random.key(0), np.array([number]), space.as_arrays(STUDY.space, [draw]))
    (end,) = population.resume(narrow, population.start_narrow(wide, narrow, trials), trials, first_epoch=0)
    if number in (15, 31):
        print(int(re.search(r"VmRSS:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process has")
def test_programs_of_trials_at_their_own_widths_are_let_go():
    after_16, after_32 = map(float, run(OWN_WIDTHS, seconds=500).split())
    print(f"after 16 trials {after_16:.0f} MB, after 32 {after_32:.0f} MB")
    assert after_32 < 1.15 * after_16  # programs that are kept take 10 MB a trial: 1.3 times as much
