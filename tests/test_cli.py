"""The command line: the meaning of flags, `--help`, and mistakes: exit code 2, one line, no file written."""

import errno
import os
import re
import shlex
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fashion_cnn
import fashion_mlp
import jax.numpy as jnp
import matplotlib
import optax
import pytest
import regression
import reproduce
from studies import LINE, few_images

import hw1jax as hw
from hw1jax import cli, environment, run
from hw1jax.search import space, study
from hw1jax.search.study import Output, ProgramConfig, SearchConfig

EXPERIMENTS = Path(reproduce.__file__).parent
REGRESSION, FASHION_MLP, FASHION_CNN = regression.STUDY, fashion_mlp.STUDY, fashion_cnn.STUDY
BY_NAME = reproduce.STUDIES
HOMEWORK = pytest.mark.parametrize("asked", BY_NAME.values(), ids=BY_NAME)


def parse(asked, line=""):
    """The config of a line of flags."""
    return cli.parse(asked, "A study.", line.split())[0]


def content(config):
    """All of a config, comparable: its study by name and space."""
    return config.study.name, dict(config.study.space), config[1:]


def flat(text):
    """What tyro shows in boxes, as one line."""
    return " ".join(re.sub(r"[│╭╮╰╯─|+]", " ", text).split())


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder, and no cache outside of it."""
    folder = tmp_path / "work"
    folder.mkdir()
    matplotlib.get_cachedir()  # is remembered
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("HW1JAX_DATA_DIR", raising=False)
    return folder


@pytest.fixture
def call(elsewhere, monkeypatch, capsys):
    """Runs a study's main, or that of reproduce, in this process -> (exit code, standard output, standard error)."""
    monkeypatch.setattr(environment, "use_all_cores", lambda *_: None)  # the tests have devices of their own
    monkeypatch.setattr(cli, "stop_on_signals", threading.Event)  # and their own way to end

    def call(asked, *args):
        name = asked.name if asked else "reproduce"
        monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *args])
        with pytest.raises(SystemExit) as caught:
            cli.main(asked, "A study.") if asked else reproduce.main()
        return caught.value.code, *capsys.readouterr()

    return call


def assert_one_line(result, folder, *words, left=()):
    """A mistake that only the study's own checks find; `left`: what is in the folder afterwards."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert os.listdir(folder) == list(left)


def assert_flag_message(result, folder, *words):
    """A mistake that tyro finds, in its own words."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    for word in ("--help", *words):
        assert word in flat(err)
    assert os.listdir(folder) == []


# What flags mean.


@HOMEWORK
def test_no_flags_are_the_studys_own_settings_and_quick_the_small_ones(asked):
    full, quick = parse(asked), parse(asked, "--quick")
    assert content(full) == content(study.run_config(asked)) == content(parse(asked, "--quick --no-quick"))
    assert content(quick) == content(study.run_config(asked, quick=True))
    sizes = {"num_trials": full.num_trials, "num_epochs": full.search.num_epochs}
    assert content(study.run_config(asked, quick=True, **sizes)) == content(full._replace(output=Output(quick=True)))
    assert (full.folder, quick.folder) == (Path("runs", asked.name), Path("runs", "quick", asked.name))
    assert parse(asked, "--quick --out here").folder == Path("here")


@pytest.mark.parametrize("line", ["--quick --num-trials 9 --num-epochs=7", "--num-epochs=7 --num-trials 9 --quick"])
def test_flags_beside_quick_still_count(line):
    expected = study.run_config(REGRESSION, quick=True, num_trials=9, num_epochs=7)
    assert content(parse(REGRESSION, line)) == content(expected)


def test_the_reports_settings_are_those_of_its_table():
    rate, l2 = hw.Float(1e-3, 1e-1, log=True), hw.Float(1e-4, 1e-1, log=True)
    for asked, trials, batch, epochs, units in [
        (REGRESSION, 25, 20, 1000, ((10, 50), (10, 50), (3, 30))),
        (FASHION_MLP, 10, 200, 20, ((10, 50), (10, 50), (3, 30))),
        (FASHION_CNN, 10, 200, 20, ((20, 50), (20, 50))),
    ]:
        config, ranges = parse(asked), asked.space
        assert (config.num_trials, config.search) == (trials, SearchConfig(epochs, batch, num_folds=3, seed=0))
        assert ranges["hidden_units"] == tuple(hw.Int(*limits, width=True) for limits in units)
        assert (ranges["learning_rate"], ranges["l2"]) == (rate, l2)
        assert ranges["optimizer"] == hw.Choice("adam", "sgd", "rmsprop")
    assert FASHION_CNN.space["channels"] == (hw.Int(4, 10, width=True), hw.Int(10, 15, width=True))


def test_every_flag_reaches_its_setting():
    line = (
        "--num-trials 3 --num-folds 4 --num-epochs 5 --batch-size 6 --seed 7 --sampler tpe --halving 2 --first-rung 3 "
        "--brackets --averaging 0.9 --precision bfloat16 --repeats 2 --early-stopping 5 --ensemble 4 "
        "--widths exact "
        "--members-per-program 8 --num-devices 9 --workers 3 --reproducible --timeout 9.5 --out some/where --no-refit "
        "--overwrite --quick "
        "--hidden-units 10-50 20-60 3-3 --channels 4-10 10-15 2-3 --learning-rate 1e-3-1e-1 --l2 0.5-2 "
        "--optimizers sgd adam --data-dir data "
    )
    only_here = "--quiet --verbose --executor"
    flags = [flag.removeprefix("--") for flag in (line + only_here).split() if flag.startswith("--")]
    given = {flag.removeprefix("no-") for flag in flags}
    assert given == set(cli.flag_names(FASHION_CNN).values())
    config = parse(FASHION_CNN, line)
    assert config.study.space == {
        "channels": tuple(hw.Int(*limits, width=True) for limits in ((4, 10), (10, 15), (2, 3))),
        "hidden_units": tuple(hw.Int(*limits, width=True) for limits in ((10, 50), (20, 60), (3, 3))),
        "learning_rate": hw.Float(1e-3, 1e-1, log=True),
        "l2": hw.Float(0.5, 2.0, log=True),
        "optimizer": hw.Choice("adam", "sgd", "rmsprop", among=("sgd", "adam")),
    }
    assert config[1:6] == (
        3,
        SearchConfig(5, 6, 4, 7, "tpe", 2, 3, True, 0.9, "bfloat16", repeats=2, early_stopping=5, ensemble=4),
        ProgramConfig("exact", members_per_program=8, workers=3, num_devices=9, reproducible=True, timeout=9.5),
        Output(Path("some/where"), refit=False, overwrite=True, quick=True),
        {"data_dir": Path("data")},
    )
    assert cli.parse(REGRESSION, None, ["--quiet"])[1] == cli.Flags(quiet=True)
    assert cli.parse(REGRESSION, None, ["--verbose"])[1] == cli.Flags(verbose=True)
    config = parse(REGRESSION, "--train-csv a.csv --test-csv b.csv")
    assert config.inputs == {"train_csv": Path("a.csv"), "test_csv": Path("b.csv")}


@pytest.mark.parametrize(
    "text, low, high",
    [
        ("1e-3-1e-1", 1e-3, 1e-1),
        (".001-.1", 1e-3, 1e-1),
        ("1E-3-1", 1e-3, 1.0),
        ("1e+1-1e+2", 10.0, 100.0),
        ("0.016-0.016", 0.016, 0.016),
    ],
)
def test_ranges_of_real_numbers(text, low, high):
    range_ = hw.Float(low, high, log=True)
    assert parse(REGRESSION, f"--learning-rate {text}").study.space["learning_rate"] == range_
    assert parse(REGRESSION, f"--l2 {range_}").study.space["l2"] == range_  # as --help shows it


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert parse(REGRESSION, "--out ~/x").folder == Path("/somewhere/x")


def test_the_recorded_command_repeats_the_run(monkeypatch, elsewhere):
    for script, shown in [
        (EXPERIMENTS / "regression.py", "experiments/regression.py"),
        ("mine.py", "mine.py"),
        (elsewhere / "a b" / "mine.py", "a b/mine.py"),
    ]:
        flags = ["--out", "my runs/first one", "--hidden-units", "10-50", "3-30"]
        monkeypatch.setattr(sys, "argv", [str(script), *flags])
        assert shlex.split(environment.command_line()) == ["python", shown, *flags]


@pytest.mark.parametrize("cache", ["relative", None])
def test_all_cores_are_used_and_compiled_programs_go_to_the_users_cache_or_nowhere(monkeypatch, tmp_path, cache):
    kept = {}
    defaults = {
        "jax_num_cpu_devices": -1,
        "jax_compilation_cache_dir": None,
        "jax_persistent_cache_min_compile_time_secs": 1.0,
    }
    monkeypatch.setattr(environment.jax, "config", SimpleNamespace(update=kept.__setitem__, **defaults))
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", cache) if cache else monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    environment.use_all_cores()
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / ".cache/hw1jax/compiled")
    assert kept["jax_num_cpu_devices"] == len(os.sched_getaffinity(0))
    kept.clear()

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    environment.use_all_cores(1000)
    assert kept["jax_num_cpu_devices"] == 1000, "more than there are, to try out a plan for another machine"
    assert "jax_compilation_cache_dir" not in kept
    kept.clear()
    own = {
        "jax_num_cpu_devices": 1,
        "jax_compilation_cache_dir": "/own",
        "jax_persistent_cache_min_compile_time_secs": 5,
    }
    monkeypatch.setattr(environment.jax, "config", SimpleNamespace(update=kept.__setitem__, **own))
    environment.use_all_cores()
    assert kept == {}, "what a script has configured stays"


def test_a_cache_folder_that_takes_no_program_is_one_line_and_not_used(monkeypatch, tmp_path):
    kept = {}
    defaults = {"jax_num_cpu_devices": 1, "jax_compilation_cache_dir": None}
    config = SimpleNamespace(update=kept.__setitem__, jax_persistent_cache_min_compile_time_secs=1.0, **defaults)
    monkeypatch.setattr(environment.jax, "config", config)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(environment.tempfile, "TemporaryFile", full)
    with pytest.warns(UserWarning, match="hw1jax/compiled: No space left on device; compiled programs are not kept"):
        environment.use_all_cores()
    assert "jax_compilation_cache_dir" not in kept


# Flags of any study.

ODD = hw.Study(
    "odd",
    task=lambda fixed: None,
    data=lambda table: None,
    space={
        "lambda": hw.Float(-1, 1),
        "depth": hw.Int(1, 3, static=True),
        "activation": hw.Choice("relu", "tanh", "gelu", static=True),
        "width": hw.Choice(16, 32, 64),
        "bias": hw.Choice(True, False),
        "dropout": (hw.Float(0, 0.5), hw.Float(0, 0.2)),
        "units": (hw.Int(1, 100, log=True, width=True), hw.Int(2, 50, width=True)),
        "kind": (hw.Choice("a", "b"), hw.Choice("a", "b", "c")),
    },
    inputs={"table": "Where the numbers are."},
    help={"depth": "How many layers."},
    folds=[([0, 1], [2]), ([2], [0, 1])],
)


def test_a_space_of_any_names_becomes_flags():
    config = parse(
        ODD,
        "--lambda -0.5--0.25 --depth 2-3 --activations tanh gelu --width 32 --bias False --dropout 0-0 0-.1 0-.3 "
        "--units 1-9 3-5 4-6 --kind a b,a c --table x",
    )
    assert config.study.space == {
        "lambda": hw.Float(-0.5, -0.25),
        "depth": hw.Int(2, 3, static=True),
        "activation": hw.Choice("relu", "tanh", "gelu", static=True, among=("tanh", "gelu")),
        "width": hw.Choice(16, 32, 64, among=(32,)),
        "bias": hw.Choice(True, False, among=(False,)),
        "dropout": (hw.Float(0, 0), hw.Float(0, 0.1), hw.Float(0, 0.3)),
        "units": (hw.Int(1, 9, log=True, width=True), hw.Int(3, 5, width=True), hw.Int(4, 6, width=True)),
        "kind": (
            hw.Choice("a", "b", among=("a",)),
            hw.Choice("a", "b", "c", among=("b", "a")),
            hw.Choice("a", "b", "c", among=("c",)),
        ),
    }
    assert config.inputs == {"table": Path("x")}
    exact = replace(ODD, space=ODD.space | {"fine": hw.Float(0.123456789, 0.987654321)})
    assert parse(exact).study.space == exact.space


def test_help_of_any_study_shows_its_space_and_its_title(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["odd.py", "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    for asked, title in [(ODD, "odd"), (replace(ODD, title="An odd one"), "An odd one")]:
        with pytest.raises(SystemExit):
            cli.main(asked)
        out = capsys.readouterr().out
        assert f"\n\n{title}\n\n" in out
    for words in [
        "--lambda LOW-HIGH Range of lambda. (default: -1-1)",
        "--depth LOW-HIGH How many layers. (default: 1-3)",
        "--activations {relu,tanh,gelu} ... Values of activation to choose from. (default: relu",
        "--width {16,32,64} ... Values of width to choose from. (default: 16 32 64)",
        "--bias {True,False} ...",
        "--dropout LOW-HIGH ... Range of dropout in each layer; as many ranges as layers. (default: 0-0.5 0-0.2)",
        "--units LOW-HIGH ... Range of units in each layer; as many ranges as layers. (default: 1-100 2-50)",
        "--kind VALUE,VALUE ... Range of kind in each layer; as many ranges as layers. (default: a,b a,b,c)",
        "Where the numbers are. (default: None)",
    ]:
        assert words in flat(out), words


@pytest.mark.parametrize("name", ["quiet", "help", "no_quick", "table", "quiet"])
def test_a_hyperparameter_that_would_be_another_flag_is_refused_in_one_line(call, elsewhere, name):
    asked = replace(ODD, space={name: hw.Float(0, 1)})
    assert_one_line(call(asked), elsewhere, f"{name} is the name of", "give it another")


# Other settings of a study.

WIDE = replace(REGRESSION, name="wide", title="A wide one", num_trials=7, halving=hw.Halving(2, first=9))


def with_settings(line):
    """(config, flags) of a study that can be run in two other ways."""
    return cli.parse(REGRESSION, None, line.split(), {"wide": WIDE, "two_words": replace(WIDE, name="two")})


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("", "regression"),
        ("--seed 3 --wide --quiet", "wide"),
        ("--two_words", "two"),
        ("--wide --no-wide", "regression"),
    ],
)
def test_a_flag_runs_another_setting_with_defaults_of_its_own(line, name):
    config, _ = with_settings(line)
    assert config.study.name == config.folder.name == name
    given = (config.num_trials, config.search.halving, config.search.first_rung)
    assert given == ((25, None, None) if name == "regression" else (7, 2, 9))


def test_flags_count_beside_another_setting_and_help_names_it(capsys, monkeypatch):
    config, _ = with_settings("--wide --num-trials 11 --halving 3 --first-rung None")
    assert (config.num_trials, config.search.halving, config.search.first_rung) == (11, 3, None)
    monkeypatch.setattr(sys, "argv", ["experiments/regression.py", "--help", "--wide"])
    with pytest.raises(SystemExit):
        cli.main(REGRESSION, wide=WIDE)
    out = flat(capsys.readouterr().out)
    assert "Run this study instead: A wide one." in out
    assert "different hyperparameters. (default: 7)" in out


@pytest.mark.parametrize("name", ["quick", "seed", "l2", "help", "train_csv"])
def test_a_setting_with_the_name_of_another_flag_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name} is the name of another flag; give the setting another$"):
        cli.parse(REGRESSION, None, [], {name: WIDE})


# --help


@HOMEWORK
@pytest.mark.parametrize("quick", [False, True])
def test_help_shows_every_flag_with_what_it_is_and_its_default(asked, quick, call, elsewhere):
    code, out, err = call(asked, "--help", *(["--quick"] if quick else []))
    assert (code, err) == (0, "")
    config, names = study.run_config(asked, quick=quick), cli.flag_names(asked)
    defaults = {"num_trials": config.num_trials} | config.inputs | dict(asked.space)
    for part in (config.search, config.program, config.output, cli.Flags()):
        defaults |= vars(part)
    assert set(defaults) == set(names)
    entries = {re.match(r"[\w-]+", e)[0]: flat(e) for e in re.split(r"\n[│| ] {0,3}--(?=[a-z])", out)[1:]}
    for name, default in defaults.items():
        several = list(default) if isinstance(default, tuple) else getattr(default, "among", [default])
        assert re.search(rf"[a-z].*\. \(default: {re.escape(' '.join(map(str, several)))}\)( |$)", entries[names[name]])
    assert os.listdir(elsewhere) == []


@HOMEWORK
def test_help_has_a_section_for_each_kind_of_flag(asked, call):
    _, out, _ = call(asked, "--help")
    titles = re.findall(r"^.{0,4}?(\w+) options [─-]*", out, re.MULTILINE)
    assert titles == ["search", "hyperparameter", "data", "program", "output", "other"]
    parts = dict(zip(titles, re.split(r"\w+ options [─-]*", out)[1:], strict=True))
    assert all(f"--{name} " in parts["search"] for name in ("num-trials", "num-epochs", "sampler"))
    assert all(f"--{cli.flag_names(asked)[name]} " in parts["hyperparameter"] for name in asked.space)
    assert all(f"--{cli.flag_names(asked)[name]} " in parts["data"] for name in asked.inputs)
    assert "--widths " in parts["program"] and "--out " in parts["output"] and "--quiet" in parts["other"]


RED = "\x1b[31mred"


@pytest.mark.parametrize("args, code", [(["--help"], 0), (["--colors", "green"], 2), (["--kind", f"{RED},x"], 2)])
def test_control_characters_in_names_reach_the_terminal_escaped(monkeypatch, capsys, args, code):
    space = {"color": hw.Choice(RED, "blue"), "kind": (hw.Choice(RED, "blue"),)}
    asked = replace(ODD, title=RED, space=space, help={"kind": RED}, inputs={"table": RED})
    monkeypatch.setattr(sys, "argv", ["odd.py", *args])
    with pytest.raises(SystemExit) as caught:
        cli.main(asked, wide=replace(asked, title=RED))
    shown = "".join(capsys.readouterr())
    assert caught.value.code == code and "\x1b" not in shown
    assert shown.count(r"\x1b[31mred") >= (7 if code == 0 else 2), shown


def test_reproduce_gives_its_flags_to_each_study(call):
    code, out, _ = call(None, "--help")
    assert code == 0 and "--data-dir" in out
    settings = {"num_trials": 2, "num_folds": 4, "batch_size": 5, "sampler": "tpe", "reproducible": True}
    flags = "--num-trials 2 --num-folds 4 --batch-size 5 --sampler tpe --reproducible --quiet"
    folder, configs, shown = reproduce.parse(["--quick", *flags.split(), "--data-dir", "data", "--out", "here"])
    assert folder == Path("here") and shown.quiet
    assert reproduce.parse(["--quick"])[0] == Path("runs", "quick")
    assert [config.study.name for config in configs[:3]] == [
        "regression_as_reported",
        "regression_halving",
        "regression",
    ]
    for config, (name, asked) in zip(configs[2::3], BY_NAME.items(), strict=True):
        inputs = {} if name == "regression" else {"data_dir": Path("data")}
        expected = study.run_config(asked, inputs=inputs, quick=True, out=Path("here", name), **settings)
        assert content(config) == content(expected)
    for config, asked in zip(configs[::3], BY_NAME.values(), strict=True):
        assert config.num_trials == 1 and config.search.halving is None
        assert space.unflatten(asked.space, config.given.enqueued[0]) == dict(asked.reference.params)
    for config in configs[1::3]:
        assert config.search.halving == 3 and config.search.averaging == 0.99 and config.num_trials == 2
    assert [config.num_trials for config in reproduce.parse([])[1][1::3]] == [150, 54, 48]
    only = reproduce.parse(["--as-reported"])[1]
    assert [config.study.name for config in only] == [f"{name}_as_reported" for name in BY_NAME]


# How mistakes end.


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("regression", "--bogus 3", ["--bogus"]),
        ("regression", "stray", ["stray"]),
        ("regression", "--num-trials", ["--num-trials"]),
        ("regression", "--num-trials 2.5", ["--num-trials", "'2.5'"]),
        ("regression", "--halving a-third", ["--halving", "'a-third'"]),
        ("regression", "--sampler grid", ["--sampler", "grid", "random", "tpe"]),
        ("regression", "--optimizers adam lion", ["--optimizers", "lion", "sgd"]),
        ("regression", "--hidden-units 10:50", ["--hidden-units", "10:50", "LOW-HIGH"]),
        ("regression", "--hidden-units \u0661-\u0663", ["--hidden-units", "LOW-HIGH"]),
        ("regression", "--learning-rate 1e-3", ["--learning-rate", "expected LOW-HIGH, got '1e-3'"]),
        ("regression", "--learning-rate 1-2 3-4", ["3-4"]),
        ("regression", "--l2 0.1-0.2-0.3", ["--l2", "expected LOW-HIGH"]),
        ("regression", "--channels 4-10", ["--channels"]),
        ("regression", "--quick True", ["True"]),
        ("fashion_mlp", "--train-csv x.csv", ["--train-csv"]),
        ("fashion_cnn", "--channels 4-10,10-15", ["--channels", "LOW-HIGH"]),
        ("own folds", "--num-folds 3", ["--num-folds"]),
        (None, "--bogus", ["--bogus"]),
        (None, "--num-epochs few", ["--num-epochs", "'few'"]),
    ],
)
def test_a_wrong_flag_gets_tyros_message(call, elsewhere, name, args, words):
    asked = (BY_NAME | {"own folds": regression.BEYOND}).get(name)
    assert_flag_message(call(asked, *args.split()), elsewhere, *words)


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("regression", "--out=", ["a flag has an empty value"]),
        ("regression", "--num-trials 0", ["num_trials= must be at least 1, got 0"]),
        ("regression", "--num-folds 1", ["num_folds= must be at least 2, got 1"]),
        ("regression", "--halving 1", ["halving= must be at least 2, got 1"]),
        ("regression", "--halving 3 --first-rung 1001", ["first_rung=1001 is more than the 1000 epochs of a trial"]),
        ("regression", "--first-rung 3", ["first_rung= and brackets= go with halving="]),
        ("line", "--halving 3 --brackets --num-epochs 99", ["brackets= asks for at least 4 trials"]),
        ("regression", f"--seed {2**32}", ["seed= must be at most 4294967295"]),
        ("regression", "--hidden-units 0-5", ["hidden_units=", "at least 1", "got 0-5"]),
        ("regression", "--hidden-units 10-50 5-3", ["hidden_units=", "got 5-3"]),
        ("regression", "--hidden-units 10-99999999999", ["hidden_units="]),
        ("regression", "--hidden-units", ["hidden_units= needs a range for each layer"]),
        ("regression", "--learning-rate 0-0.1", ["learning_rate=", "above 0", "got 0-0.1"]),
        ("regression", "--learning-rate 1-1e999", ["learning_rate=", "got 1-inf"]),
        ("regression", "--averaging 1", ["averaging= is a decay, above 0 and below 1"]),
        ("regression", "--optimizers", ["optimizer= needs at least one of adam, sgd, rmsprop"]),
        ("fashion_cnn", "--channels", ["channels= needs a range for each layer"]),
        ("regression", "--num-folds 101", ["number of folds", "100 samples, got 101"]),
        ("regression", "--members-per-program 2", ["members_per_program= must be at least a trial's 3 folds"]),
        ("regression", "--train-csv x.csv", ["train_csv= and test_csv= go together"]),
        ("regression", "--train-csv x.csv --test-csv y.csv", ["x.csv", "header input,label"]),
        ("fashion_mlp", "--data-dir nowhere", ["nowhere", "data_dir="]),
        ("regression", "--quiet --verbose", ["quiet= and verbose= don't go together"]),
        (None, "--quick --seed -1", ["seed= must be at least 0, got -1"]),
    ],
)
def test_a_value_that_cant_be_run_gets_one_line(call, elsewhere, name, args, words):
    assert_one_line(call((BY_NAME | {"line": LINE}).get(name), *args.split()), elsewhere, *words)


@pytest.mark.parametrize(
    "asked, words",
    [
        (replace(REGRESSION, space={"rate": hw.Float("a", 1)}), ["rate= must have numbers as bounds"]),
        (replace(REGRESSION, name="a/b"), ["name= must be letters"]),
        (replace(REGRESSION, task=lambda fixed: 3), ["task= must return a Task, got int"]),
    ],
)
def test_a_study_that_cant_be_searched_gets_one_line(call, elsewhere, asked, words):
    assert_one_line(call(asked), elsewhere, *words)


@pytest.mark.parametrize("setting", ["JAX_PLATFORMS=gpu", "JAX_NUM_CPU_DEVICES=0", "JAX_DISABLE_JIT=1"])
def test_an_environment_without_devices_or_programs_gets_one_line_that_names_the_variable(setting, tmp_path):
    name, _, value = setting.partition("=")
    script = Path(regression.__file__)
    done = subprocess.run(
        [sys.executable, script, "--quick", "--out", tmp_path / "out"],
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and name in done.stderr
    assert not (tmp_path / "out").exists()


def test_more_convolutions_than_the_image_has_room_for_are_refused(call, elsewhere):
    asked = replace(FASHION_CNN, data=few_images)
    code, out, err = call(asked, "--batch-size", "10", "--channels", "4-10", "10-15", "10-15", "10-15")
    assert (code, out) == (2, "")
    assert "\nerror: ValueError: channels= needs 1 to 3 ranges" in err
    assert os.listdir(elsewhere) == []


def test_out_that_names_a_file_is_refused_and_the_file_stays(call, elsewhere):
    (elsewhere / "notes.txt").write_text("mine")
    for asked, out in [(LINE, "notes.txt"), (LINE, "notes.txt/below"), (None, "notes.txt")]:
        assert_one_line(call(asked, "--out", out), elsewhere, "out=", "notes.txt is a file", left=["notes.txt"])
        assert (elsewhere / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_settings_is_refused_before_anything_is_said_to_be_training(call, elsewhere, monkeypatch):
    def stop(*args, **kwargs):
        raise ValueError("stopped here")

    with monkeypatch.context() as patched:
        patched.setattr(run.optuna_search, "search", stop)  # the folder is claimed, nothing is trained
        code, _, err = call(LINE, "--out", "run")
    assert code == 2
    assert err.endswith("error: stopped here\n")
    assert call(LINE, "--out", "run", "--num-epochs", "5") == (
        2,
        "",
        "error: run holds a search with num_epochs = 2, not 5: give the old settings to go on with it, "
        "or another out=\n",
    )


@pytest.mark.parametrize(
    "error, message",
    [
        (ValueError("a mistake"), "error: a mistake\n"),
        (ValueError("a mistake\nin two lines"), "error: a mistake in two lines\n"),
        (MemoryError("3 GB"), "error: out of memory (3 GB): give less data or smaller nets\n"),
        (MemoryError(), "error: out of memory (of the host): give less data or smaller nets\n"),
        (OSError(28, "No space left on device", "runs"), "error: runs: No space left on device\n"),
    ],
)
def test_what_ends_the_work_becomes_exit_code_2_and_a_line(capsys, error, message):
    def work():
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.with_exit_code(work)
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(("result", "code"), [(1, 1), (0, 0), (None, 0), ({"test": 3}, 0)])
def test_work_that_ends_well_has_its_own_exit_code_or_0(result, code):
    with pytest.raises(SystemExit) as caught:
        cli.with_exit_code(lambda: result)
    assert caught.value.code == code


def test_a_bug_is_not_dressed_up_as_the_users_mistake():
    with pytest.raises(ZeroDivisionError):
        cli.with_exit_code(lambda: 1 // 0)
    with pytest.raises(TypeError, match="unsupported operand"):
        cli.with_exit_code(lambda: 1 + None)  # as wrong code in a network would raise it


def test_what_a_studys_own_function_raises_ends_with_its_line_the_error_and_the_note(call, elsewhere):
    def task(fixed):
        return hw.Task(
            init=lambda key, h: {"w": jnp.zeros((1, 1))},
            apply=lambda params, x, h: x @ params["w"],
            loss=hw.squared_error,
            optimizer=optimizer,
        )

    def optimizer(h):
        return optax.sgd(h["rate"])

    code, out, err = call(replace(LINE, task=task))
    assert (code, out) == (2, "")
    frame, line, *marks, error, note = err.splitlines()
    assert re.fullmatch(r' +File ".*test_cli\.py", line \d+, in optimizer', frame)
    assert line.strip() == 'return optax.sgd(h["rate"])'
    assert len(marks) <= 1, "the place in the line, where Python shows it"
    assert (error, note) == (
        "error: KeyError: 'rate'",
        "in optimizer, called with (hyperparameters: {units, learning_rate})",
    )
    assert os.listdir(elsewhere) == []


def test_a_script_ends_as_it_should(elsewhere):
    """In a process of its own, as a person starts it."""
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / "fashion_cnn.py", "--channels", "5-4"],
        env=os.environ | {"MPLCONFIGDIR": matplotlib.get_cachedir()},  # its list of fonts takes seconds to make
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert_one_line((done.returncode, done.stdout, done.stderr), elsewhere, "channels=", "got 5-4")
