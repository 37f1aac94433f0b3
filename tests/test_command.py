"""The command line: what flags mean, what `--help` says, and how a mistake ends: code 2, one line, nothing written."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import command
import matplotlib
import pytest
import reproduce

from hw1jax import run, studies
from hw1jax.space import FloatRange, IntRange
from hw1jax.studies import FASHION_CNN, FASHION_MLP, REGRESSION

EXPERIMENTS = Path(command.__file__).parent
BY_NAME = {study.name: study for study in studies.STUDIES}
SETTINGS = pytest.mark.parametrize("study", studies.STUDIES, ids=BY_NAME)


def parse(study, line=""):
    return command.parse(study, "A study.", line.split())


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
    for name in ("HW1JAX_DATA_DIR", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def call(elsewhere, monkeypatch, capsys):
    """Runs a study's main, or that of reproduce, in this process -> (exit code, standard output, standard error)."""
    monkeypatch.setattr(command, "use_all_cores", lambda *_: None)  # the tests have devices of their own
    monkeypatch.setattr(command, "stop_on_signals", threading.Event)  # and their own way to end

    def call(study, *args):
        name = study.name if study else "reproduce"
        monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *args])
        with pytest.raises(SystemExit) as caught:
            command.main(study, "A study.") if study else reproduce.main()
        return caught.value.code, *capsys.readouterr()

    return call


def assert_one_line(result, folder, *words):
    """A mistake that only the study's own checks find."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert os.listdir(folder) == []


def assert_flag_message(result, folder, *words):
    """A mistake that tyro finds, in its own words."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert "--help" in err
    for word in words:
        assert word in flat(err)
    assert os.listdir(folder) == []


# What flags mean.


@SETTINGS
def test_no_flags_are_the_reports_settings_and_quick_the_small_ones(study):
    assert parse(study) == study.settings
    assert parse(study, "--quick") == study.quick
    assert not study.settings.quick
    assert study.quick.quick
    assert parse(study, "--no-quick") == study.settings


def test_the_reports_settings_are_those_of_its_table():
    rate, l2 = FloatRange(1e-3, 1e-1), FloatRange(1e-4, 1e-1)
    for study, trials, batch, epochs, units in [
        (REGRESSION, 25, 20, 1000, ((10, 50), (10, 50), (3, 30))),
        (FASHION_MLP, 10, 200, 20, ((10, 50), (10, 50), (3, 30))),
        (FASHION_CNN, 10, 200, 20, ((20, 50), (20, 50))),
    ]:
        s = study.settings
        assert (s.num_trials, s.num_folds, s.batch_size, s.num_epochs) == (trials, 3, batch, epochs)
        assert (s.hidden_units, s.learning_rate, s.l2, s.seed, s.sampler) == (units, rate, l2, 0, "random")
        assert s.optimizers == ("adam", "sgd", "rmsprop")
    assert FASHION_CNN.settings.channels == ((4, 10), (10, 15))


@SETTINGS
def test_quick_changes_the_size_alone_and_goes_to_a_folder_of_its_own(study):
    sizes = {"num_trials": study.settings.num_trials, "num_epochs": study.settings.num_epochs, "quick": False}
    assert replace(study.quick, **sizes) == study.settings
    assert studies.folder(study, study.settings) == Path("runs", study.name)
    assert studies.folder(study, study.quick) == Path("runs", "quick", study.name)
    assert studies.folder(study, parse(study, "--quick --out here")) == Path("here")


@SETTINGS
@pytest.mark.parametrize("order", [1, -1])
def test_flags_beside_quick_still_count(study, order):
    flags = ["--quick", "--num-trials 9", "--num-epochs=7"][::order]
    assert parse(study, " ".join(flags)) == replace(study.quick, num_trials=9, num_epochs=7)


def test_taking_quick_back_does_not_leave_a_small_run_under_the_full_ones_name():
    with contextlib.suppress(SystemExit):
        assert parse(REGRESSION, "--quick --no-quick") == REGRESSION.settings


def test_every_flag_reaches_its_setting():
    settings = parse(
        FASHION_CNN,
        "--num-trials 3 --num-folds 4 --num-epochs 5 --batch-size 6 --seed 7 --sampler tpe --out some/where "
        "--hidden-units 10-50 20-60 3-3 --channels 4-10 10-15 2-3 --learning-rate 1e-3-1e-1 --l2 0.5-2 "
        "--optimizers sgd adam --data-dir data",
    )
    assert settings == studies.ConvolutionSettings(
        num_trials=3,
        num_folds=4,
        num_epochs=5,
        batch_size=6,
        seed=7,
        sampler="tpe",
        out=Path("some/where"),
        hidden_units=(IntRange(10, 50), IntRange(20, 60), IntRange(3, 3)),
        channels=(IntRange(4, 10), IntRange(10, 15), IntRange(2, 3)),
        learning_rate=FloatRange(1e-3, 1e-1),
        l2=FloatRange(0.5, 2.0),
        optimizers=("sgd", "adam"),
        data_dir=Path("data"),
    )
    assert all(isinstance(r, IntRange) for r in settings.hidden_units + settings.channels)
    assert isinstance(settings.learning_rate, FloatRange)


def test_only_the_regression_takes_csv_files():
    settings = parse(REGRESSION, "--train-csv a.csv --test-csv b.csv")
    assert (settings.train_csv, settings.test_csv) == (Path("a.csv"), Path("b.csv"))
    for study in (FASHION_MLP, FASHION_CNN):
        assert not hasattr(study.settings, "train_csv")
        assert hasattr(study.settings, "data_dir")


@pytest.mark.parametrize(
    "text, low, high",
    [
        ("1e-3-1e-1", 1e-3, 1e-1),
        ("0.001-0.1", 1e-3, 1e-1),
        (".001-.1", 1e-3, 1e-1),
        ("1E-3-1E-1", 1e-3, 1e-1),
        ("1e-3-1", 1e-3, 1.0),
        ("1e+1-1e+2", 10.0, 100.0),
        ("1-10", 1.0, 10.0),
        ("0.016-0.016", 0.016, 0.016),
    ],
)
def test_ranges_of_real_numbers(text, low, high):
    assert parse(REGRESSION, f"--learning-rate {text}").learning_rate == FloatRange(low, high)
    shown = str(FloatRange(low, high))  # as --help and the default do
    assert parse(REGRESSION, f"--l2 {shown}").l2 == FloatRange(low, high)


def test_of_a_flag_given_twice_the_last_counts():
    settings = parse(REGRESSION, "--num-trials 3 --num-trials 4 --hidden-units 1-2 --hidden-units 3-4 5-6")
    assert settings.num_trials == 4
    assert settings.hidden_units == (IntRange(3, 4), IntRange(5, 6))


def test_the_recorded_command_repeats_the_run(monkeypatch):
    argv = ["/anywhere/experiments/regression.py", "--out", "my runs/first one", "--hidden-units", "10-50", "3-30"]
    monkeypatch.setattr(sys, "argv", argv)
    assert shlex.split(command.command_line()) == ["python", "experiments/regression.py", *argv[1:]]


# What --help says.


@SETTINGS
@pytest.mark.parametrize("quick", [False, True])
def test_help_shows_every_flag_with_its_default(study, quick, call, elsewhere):
    code, out, err = call(study, "--help", *(["--quick"] if quick else []))
    assert (code, err) == (0, "")
    defaults = study.quick if quick else study.settings
    entries = {re.match(r"[\w-]+", e)[0]: flat(e) for e in re.split(r"\n[│| ] {0,3}--(?=[a-z])", out)[1:]}
    for field in fields(defaults):
        default = getattr(defaults, field.name)
        shown = " ".join(map(str, default)) if field.name in ("hidden_units", "channels", "optimizers") else default
        assert entries[field.name.replace("_", "-")].endswith(f"(default: {shown})")
    assert os.listdir(elsewhere) == []


def test_help_of_reproduce_names_what_applies_to_all_three(call):
    code, out, _ = call(None, "--help")
    assert code == 0
    for field in fields(reproduce.Options):
        assert f" --{field.name.replace('_', '-')} " in flat(out).replace(",", " ")


def test_options_of_reproduce_reach_the_studies_that_know_them():
    options = reproduce.Options(num_epochs=3, data_dir=Path("data"), quick=True)
    made = {s.name: reproduce.settings_of(s, options, Path("runs/quick")) for s in studies.STUDIES}
    for study in studies.STUDIES:
        assert made[study.name].out == Path("runs/quick", study.name)
        assert made[study.name].num_epochs == 3
        assert made[study.name].num_trials == study.quick.num_trials
    assert made["fashion_cnn"].data_dir == Path("data")
    assert not hasattr(made["regression"], "data_dir")


# How mistakes end.


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("regression", "--bogus 3", ["--bogus"]),
        ("regression", "stray", ["stray"]),
        ("regression", "--num-trials", ["--num-trials"]),
        ("regression", "--num-trials many", ["--num-trials", "'many'"]),
        ("regression", "--num-trials 2.5", ["--num-trials", "'2.5'"]),
        ("regression", "--num-trials 3 4", ["4"]),
        ("regression", "--sampler grid", ["--sampler", "grid", "random", "tpe"]),
        ("regression", "--optimizers adam lion", ["--optimizers", "lion", "sgd"]),
        ("regression", "--hidden-units 10:50", ["--hidden-units", "10:50", "LOW-HIGH"]),
        ("regression", "--hidden-units 10-50 10", ["--hidden-units", "LOW-HIGH"]),
        ("regression", "--hidden-units 10-50.5", ["--hidden-units", "LOW-HIGH"]),
        ("regression", "--learning-rate 1e-3", ["--learning-rate", "expected LOW-HIGH, got '1e-3'"]),
        ("regression", "--learning-rate 1e-3,1e-1", ["--learning-rate", "expected LOW-HIGH"]),
        ("regression", "--learning-rate -1-5", ["--learning-rate", "expected LOW-HIGH"]),
        ("regression", "--learning-rate nan-nan", ["--learning-rate", "expected LOW-HIGH"]),
        ("regression", "--learning-rate 1-2 3-4", ["3-4"]),
        ("regression", "--l2 0.1-0.2-0.3", ["--l2", "expected LOW-HIGH"]),
        ("regression", "--channels 4-10", ["--channels"]),
        ("regression", "--data-dir x", ["--data-dir"]),
        ("regression", "--quick True", ["True"]),
        ("regression", "--num-trials \u0663", ["--num-trials", "'\u0663'"]),
        ("regression", "--num-trials 1_000", ["--num-trials", "'1_000'"]),
        ("regression", "--num-devices \u0663", ["--num-devices", "'\u0663'"]),
        ("regression", "--hidden-units \u0661-\u0663", ["--hidden-units", "LOW-HIGH"]),
        ("regression", "--l2 \uff11-\uff12", ["--l2", "LOW-HIGH"]),
        ("regression", "--out=", ["--out", "expected a path, got nothing"]),
        ("regression", "--out ~nobody-of-that-name/x", ["--out", "~nobody-of-that-name/x"]),
        (None, "--out=", ["--out", "expected a path, got nothing"]),
        (None, "--num-folds \u0663", ["--num-folds"]),
        ("fashion_mlp", "--train-csv x.csv", ["--train-csv"]),
        ("fashion_mlp", "--channels 4-10", ["--channels"]),
        ("fashion_cnn", "--channels 4-10,10-15", ["--channels", "LOW-HIGH"]),
        (None, "--bogus", ["--bogus"]),
        (None, "--num-epochs few", ["--num-epochs", "'few'"]),
        (None, "--hidden-units 10-50", ["--hidden-units"]),
    ],
)
def test_a_wrong_flag_gets_tyros_message(call, elsewhere, name, args, words):
    assert_flag_message(call(BY_NAME.get(name), *args.split()), elsewhere, *words)


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("regression", "--num-trials 0", ["--num-trials must be at least 1, got 0"]),
        ("regression", "--num-trials -3", ["--num-trials must be at least 1, got -3"]),
        ("regression", "--num-epochs 0", ["--num-epochs must be at least 1, got 0"]),
        ("regression", "--batch-size 0", ["--batch-size must be at least 1, got 0"]),
        ("regression", "--num-folds 1", ["--num-folds must be at least 2, got 1"]),
        ("regression", "--seed -1", ["--seed must be at least 0, got -1"]),
        ("regression", "--hidden-units 0-5", ["--hidden-units", "at least 1", "got 0-5"]),
        ("regression", "--hidden-units 10-50 5-3", ["--hidden-units", "got 5-3"]),
        ("regression", "--hidden-units", ["--hidden-units needs a range for each hidden layer"]),
        ("regression", "--learning-rate 0-0.1", ["--learning-rate", "above 0", "got 0-0.1"]),
        ("regression", "--learning-rate 0.1-0.01", ["--learning-rate", "got 0.1-0.01"]),
        ("regression", "--learning-rate 1-1e999", ["--learning-rate", "got 1-inf"]),
        ("regression", "--l2 0-0", ["--l2", "above 0"]),
        ("regression", "--optimizers", ["--optimizers needs at least one of adam, sgd, rmsprop"]),
        ("fashion_cnn", "--channels", ["--channels needs 1 to 3 ranges"]),
        ("fashion_cnn", "--channels 4-10 10-15 10-15 10-15", ["--channels needs 1 to 3 ranges"]),
        ("fashion_cnn", "--channels 0-10 10-15", ["--channels", "got 0-10"]),
        ("regression", "--num-folds 101", ["number of folds", "100 samples, got 101"]),
        ("regression", "--batch-size 67", ["--batch-size 67", "66 training samples"]),
        ("regression", "--train-csv x.csv", ["--train-csv and --test-csv go together"]),
        ("regression", "--test-csv x.csv", ["--train-csv and --test-csv go together"]),
        ("regression", "--train-csv x.csv --test-csv y.csv", ["x.csv", "header input,label"]),
        ("fashion_mlp", "--data-dir nowhere", ["nowhere", "--data-dir"]),
        ("regression", "--quick --num-folds 0", ["--num-folds must be at least 2"]),
        (None, "--num-folds 1", ["--num-folds must be at least 2, got 1"]),
        (None, "--quick --seed -1", ["--seed must be at least 0, got -1"]),
        (None, "--report-only nowhere", ["nowhere", "results.json"]),
    ],
)
def test_a_value_that_cant_be_run_gets_one_line(call, elsewhere, name, args, words):
    assert_one_line(call(BY_NAME.get(name), *args.split()), elsewhere, *words)


@pytest.mark.parametrize(
    "args",
    [
        f"--seed {2**64}",
        f"--seed {2**32} --sampler tpe",
        "--hidden-units 10-99999999999",
        "--hidden-units 10-9999999999",
    ],
)
def test_numbers_beyond_what_the_machine_counts_get_one_line_as_well(call, elsewhere, args):
    """A JAX key takes 32 bits of a seed, and widths are int32."""
    assert_one_line(call(REGRESSION, *args.split()), elsewhere, args.split()[0])


@pytest.mark.parametrize("study", [REGRESSION, FASHION_CNN], ids=["regression", "fashion_cnn"])
def test_every_mistake_that_check_finds_is_told_in_one_line(study):
    low, wrong = IntRange(0, 1), FloatRange(-1.0, 1.0)
    changes = [dict.fromkeys([n], -1) for n in ("num_trials", "num_epochs", "batch_size", "num_folds", "seed")]
    changes += [{"hidden_units": (low,)}, {"hidden_units": ()}, {"learning_rate": wrong}, {"l2": wrong}]
    changes += [{"optimizers": ()}, {"learning_rate": FloatRange(float("nan"), 1.0)}]
    changes += [{"channels": ()}, {"channels": (low,)}] if study is FASHION_CNN else []
    studies.check(study, study.settings)
    studies.check(study, study.quick)
    for change in changes:
        with pytest.raises(ValueError, match="--" + next(iter(change)).replace("_", "-")) as caught:
            studies.check(study, replace(study.settings, **change))
        assert "\n" not in str(caught.value)


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert parse(REGRESSION, "--out ~/x").out == Path("/somewhere/x")
    assert command.given_path("runs") == Path("runs")


@pytest.mark.parametrize("existed", [False, True])
def test_a_refused_database_leaves_nothing_behind(call, elsewhere, existed):
    if existed:
        (elsewhere / "some").mkdir()
    code, _, err = call(REGRESSION, "--storage", "nonsense://x", "--out", "some/where")
    assert code == 2
    assert err.startswith("error: --storage: the database doesn't open") and err.count("\n") == 1
    assert os.listdir(elsewhere) == ["some"] * existed


@pytest.mark.parametrize("cache", ["relative", None])
def test_compiled_programs_go_to_the_users_cache_or_nowhere(monkeypatch, elsewhere, cache):
    kept = {}
    monkeypatch.setattr(command.jax.config, "update", kept.__setitem__)
    monkeypatch.setenv("XDG_CACHE_HOME", cache) if cache else monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/somewhere")
    command.use_all_cores()
    assert kept["jax_compilation_cache_dir"] == "/somewhere/.cache/hw1jax/compiled"
    kept.clear()

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    command.use_all_cores()
    assert "jax_compilation_cache_dir" not in kept


def test_out_that_names_a_file_is_refused_and_the_file_stays(call, elsewhere):
    (elsewhere / "notes.txt").write_text("mine")
    for study, out in [(REGRESSION, "notes.txt"), (REGRESSION, "notes.txt/below"), (None, "notes.txt")]:
        code, _, err = call(study, "--out", out)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2
        assert len(errors) == 1
        assert "Traceback" not in err
        assert "--out" in errors[0]
        assert "notes.txt" in errors[0]
        assert os.listdir(elsewhere) == ["notes.txt"]
        assert (elsewhere / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_settings_is_refused_before_anything_is_said_to_be_training(call, elsewhere, monkeypatch):
    def stop(*args, **kwargs):
        raise ValueError("stopped here")

    with monkeypatch.context() as patched:
        patched.setattr(run.search, "search", stop)  # the folder is claimed, nothing is trained
        code, _, err = call(REGRESSION, "--out", "run")
    assert code == 2
    assert err.endswith("error: stopped here\n")
    code, out, err = call(REGRESSION, "--out", "run", "--num-epochs", "500")
    assert (code, out) == (2, "")
    assert err == (
        "error: run holds a search with num_epochs = 1000, not 500: "
        "give the old settings to go on with it, or another --out\n"
    )


@pytest.mark.parametrize(
    "error, code, message",
    [
        (ValueError("a mistake"), 2, "error: a mistake\n"),
        (MemoryError("3 GB"), 2, "error: out of memory (3 GB): give less data or smaller nets\n"),
        (MemoryError(), 2, "error: out of memory (of the host): give less data or smaller nets\n"),
        (OSError(28, "No space left on device", "runs"), 2, "error: runs: No space left on device\n"),
    ],
)
def test_what_ends_the_work_becomes_an_exit_code_and_a_line(capsys, error, code, message):
    def work():
        raise error

    with pytest.raises(SystemExit) as caught:
        command.with_exit_code(work)
    assert caught.value.code == code
    assert capsys.readouterr() == ("", message)


def test_the_recorded_command_has_no_password(monkeypatch):
    for url, clean in [
        ("postgresql+psycopg://me:sec/ret@host:5432/name", "postgresql+psycopg://me:***@host:5432/name"),
        ("postgresql://h/d?user=me&password=secret", "postgresql://h/d?password=***&user=me"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("postgresql://me:sec@ret/secret@host/name", "URL"),
        ("postgresql://me:secret@host:secret/name", "URL"),
        ("me:secret", "URL"),
        ("sqlite:///runs/a.db", "sqlite:///runs/a.db"),
    ]:
        monkeypatch.setattr(sys, "argv", ["experiments/regression.py", "--storage", url, f"--storage={url}"])
        expected = ["python", "experiments/regression.py", "--storage", clean, f"--storage={clean}"]
        assert shlex.split(command.command_line()) == expected


def test_a_database_that_is_refused_is_not_quoted_with_its_password(call, elsewhere):
    for url in ("postgresql+nothing://u:pa/ss@h/d", "nothing://h/d?password=pa/ss", "u:pa/ss@h", "x://u:p@a/ss@h/d"):
        code, out, err = call(REGRESSION, f"--storage={url}")
        assert (code, out) == (2, "")
        assert err.startswith("error: --storage: the ") and err.count("\n") == 1
        assert "ss" not in err.replace("PASSWORD", "").replace("password", "")


def test_a_bug_is_not_dressed_up_as_the_users_mistake():
    with pytest.raises(ZeroDivisionError):
        command.with_exit_code(lambda: 1 // 0)
    with pytest.raises(SystemExit) as caught:
        command.with_exit_code(lambda: 1)
    assert caught.value.code == 1


# The scripts themselves, as a person starts them.


def script(folder, name, *args):
    environment = os.environ | {"MPLCONFIGDIR": matplotlib.get_cachedir()}  # its list of fonts takes seconds to make
    result = subprocess.run(
        [sys.executable, EXPERIMENTS / f"{name}.py", *args],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.slow
def test_the_scripts_start_and_end_as_they_should(elsewhere):
    for name in ("fashion_mlp", "reproduce"):
        code, out, err = script(elsewhere, name, "--help")
        assert (code, err) == (0, "")
        assert f"python experiments/{name}.py" in out
    assert_flag_message(script(elsewhere, "regression", "--bogus"), elsewhere, "--bogus")
    assert_one_line(script(elsewhere, "fashion_cnn", "--channels", "5-4"), elsewhere, "--channels", "got 5-4")
    assert not (elsewhere.parent / "cache" / "hw1jax").exists()
