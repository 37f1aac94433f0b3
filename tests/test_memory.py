"""Populations of thousands stay within a memory bound; programs that are no longer used are freed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process had at most"),
]

BOUND_MB = 2000
KEPT = 4  # programs, instead of the usual number

CODE = """
import functools, gc, json, re, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
import flax.linen, numpy as np, optax

def few(maxsize=128, typed=False):  # programs.KEPT_TASKS and KEPT_PROGRAMS are looked up when hw1jax is imported
    return usual(int(sys.argv[1]) if maxsize == 16 else maxsize, typed)

usual, functools.lru_cache = functools.lru_cache, few
from hw1jax.core import programs
functools.lru_cache = usual
assert programs.KEPT_TASKS == programs.KEPT_PROGRAMS == 16
import fashion_cnn, regression
from hw1jax.core import cost, folds, population
from hw1jax.search import space
from hw1jax.core.population import Data, Plan, TrainConfig, Trials
from hw1jax.search.networks import own, padded

random = np.random.default_rng(0)
x = random.uniform(-5, 5, (60, 1)).astype(np.float32)
IMAGES = Data(random.integers(0, 256, (600, 28, 28), np.uint8), random.integers(0, 10, 600, np.int32))

def train_in_one_program(study, num_trials, data):
    widest = space.widest(study.space)
    network = padded(study, widest)
    task, one, shapes = network.task, network.hyperparameters, network.shapes[0]
    layout = cost.choose_layout(task, shapes, None, data.x, one, batch_size=study.batch_size)
    plan = cost.make_plan(num_trials, 3, shapes, layout)
    config = TrainConfig(1, study.batch_size, (0,))
    placed = population.make_population(task, plan, config, data, folds.k_fold(len(data.x), 3, (0,)))
    draws = space.as_arrays(study.space, [space.random_draw(study.space, 0, n) for n in range(plan.num_slots)])
    *_, end = population.train(placed, Trials(jax.random.key(0), np.arange(plan.num_slots), draws))
    assert end.val["loss"].shape == (plan.num_slots, 3, 1) and plan.num_slots >= num_trials

def train_at_own_widths(numbers):
    widest = space.widest(regression.STUDY.space)
    task = padded(regression.STUDY, widest).task
    splits = folds.k_fold(60, 3, (0,))
    wide = population.make_population(task, Plan(1), TrainConfig(2, 20, (0,), 2), Data(x, np.sin(x)), splits)
    for number in numbers:
        draw = widest | {"hidden_units": (3 + number, 4, 3)}
        narrow = wide._replace(task=own(regression.STUDY, draw).task)
        trials = Trials(jax.random.key(0), np.array([number]), space.as_arrays(regression.STUDY.space, [draw]))
        (end,) = population.resume(narrow, population.init_narrow(wide, narrow, trials), trials, first_epoch=0)
    gc.collect()
    return len(jax.devices()[0].client.live_executables())

train_in_one_program(regression.STUDY, 2000, Data(x, np.sin(x)))
train_in_one_program(fashion_cnn.STUDY, 100, IMAGES)
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
before, after = train_at_own_widths(range(5)), train_at_own_widths(range(5, 8))
print(json.dumps([peak, before, after]))
"""


def test_thousands_of_members_train_within_the_bound_and_programs_of_own_widths_are_let_go():
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "experiments")}
    command = [sys.executable, "-c", CODE, str(KEPT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    assert done.returncode == 0, done.stderr
    peak, before, after = json.loads(done.stdout)
    print(f"{peak:.0f} MB at most, {before} programs after five widths, {after} after eight")
    assert peak < BOUND_MB
    assert after == before > KEPT
