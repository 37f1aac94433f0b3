"""The package as a stranger finds it: its version, what it needs, `python -m hw1jax`, types seen from outside."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import hw1jax
from hw1jax import __main__ as program

ROOT = Path(hw1jax.__file__).parents[1]
STUDY = '''
"""A small one."""

import numpy as np
import hw1jax as hw

def task(fixed):
    return hw.Task(init=lambda key, h: {"w": np.zeros((1, 1), np.float32)}, apply=lambda params, x, h: x @ params["w"],
                   loss=hw.squared_error, optimizer=lambda h: hw.sgd_l2(h["rate"], 0.0))

x = np.linspace(-1, 1, 12, dtype=np.float32)[:, None]
STUDY = hw.Study(name="line", task=task, data=hw.Dataset(x, 2 * x, x, 2 * x), space={"rate": hw.Float(0.01, 0.1)},
                 num_trials=2, num_epochs=1, batch_size=4)
'''
CROSS_VALIDATED = """
import numpy as np
import hw1jax as hw
x = np.linspace(-1, 1, 12, dtype=np.float32)[:, None]
result = hw.cross_validate(
    lambda key, h: {"w": np.zeros((1, 1), np.float32)}, lambda params, x, h: x @ params["w"], hw.squared_error,
    lambda h: hw.adam_l2(h, 0.0), np.float32([0.01, 0.1]), x, 2 * x, key=__import__("jax").random.key(0),
    num_epochs=2, batch_size=4, folds=hw.k_fold(12, 3, (0,)), progress=True)
print(result, result.best)
"""


def blocked(*packages):
    """Code after which none of the packages can be found, as where they are not installed."""
    return f"""
import sys
class Blocked:
    def find_spec(name, *_):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked)
"""


def python(*args, **options):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=300, **options)


def of_jax_optax_numpy():
    """What is imported by the names of the distributions that these three bring, themselves included."""
    found, left = set(), ["jax", "optax", "numpy"]
    while left:
        name = re.sub("[-_.]+", "_", left.pop()).lower()
        if name not in found:
            found.add(name)
            needs = metadata.requires(name) or []
            left += [re.split(r"[^\w.-]", need)[0] for need in needs if ";" not in need]
    return found


OTHERS = {"flax", "optuna", "matplotlib", "tensorflow_datasets", "tyro", "rich", "chex", "sqlalchemy", "msgpack"}


def test_cross_validation_needs_jax_optax_and_numpy_alone():
    """With the others out of reach, but for what the three themselves bring (Optax has brought chex)."""
    others = sorted(OTHERS - of_jax_optax_numpy())
    assert "flax" in others and "optuna" in others
    tried = python("-c", blocked(*others) + CROSS_VALIDATED)
    assert tried.returncode == 0, tried.stderr
    assert "CrossValidation" in tried.stdout


@pytest.mark.parametrize(
    "package, code",
    [
        ("optuna", "import hw1jax; hw1jax.run_study"),
        ("flax", "from hw1jax import models"),
        ("matplotlib", "from hw1jax import write_report"),
        ("tyro", "from hw1jax import main"),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(package, code):
    asked = re.search(r"\w+$", code)[0]
    line = f"hw1jax.{asked} needs {package}, which is not installed: pip install {package}"
    code = f"try:\n    {code}\nexcept ImportError as error:\n    print(error, error.name)"
    tried = python("-c", f"{blocked(package)}\n{code}")
    assert tried.stdout.splitlines()[:1] == [f"{line} {package}"], tried.stderr


def test_what_else_is_missing_is_not_said_to_be_the_packages(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setattr(hw1jax, "import_module", missing)
    monkeypatch.delitem(vars(hw1jax), "models", raising=False)
    with pytest.raises(ModuleNotFoundError, match="^No module named 'other'$"):
        _ = hw1jax.models


def test_the_version_is_the_installed_ones():
    assert metadata.version("hw1jax") == hw1jax.__version__


# python -m hw1jax


def run_with(monkeypatch, *args):
    """What the program hands to `hw1jax.main`, if it comes to that, and the exit code otherwise."""
    handed = []
    monkeypatch.setattr(hw1jax, "main", lambda *args, **settings: handed.append((*args, settings)), raising=False)
    monkeypatch.setattr(sys, "argv", ["__main__.py", *map(str, args)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        program.main()
    except SystemExit as end:
        return end.code
    return handed[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a study that Python finds, and nothing left of it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("small_line.py").write_text(STUDY.lstrip())
    yield tmp_path
    for name in [
        n for n, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(f"{tmp_path}/")
    ]:
        del sys.modules[name]


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_it_says_what_there_is(args, folder, monkeypatch, capsys):
    assert run_with(monkeypatch, *args) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"hw1jax {hw1jax.__version__}: ") and len(said.splitlines()) <= 10
    assert "small_line.py" in said and "python -m hw1jax MODULE" in said
    assert all(name in said for name in hw1jax._ROOM_OF)
    Path("small_line.py").unlink()
    run_with(monkeypatch, *args)
    assert "none in this folder" in capsys.readouterr().out


def test_it_says_its_version(monkeypatch, capsys):
    assert run_with(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{hw1jax.__version__}\n"


@pytest.mark.parametrize("name", ["small_line", "small_line.py", "inner/small_line.py", "inner.small_line"])
def test_a_study_is_found_by_its_module_or_file(name, folder, monkeypatch):
    if "inner" in name:
        Path("inner").mkdir()
        Path("small_line.py").rename("inner/small_line.py")
    study, description, settings = run_with(monkeypatch, name, "--quick")
    assert (study.name, description, settings) == ("line", "A small one.", {})
    assert sys.argv == [f"python -m hw1jax {name}", "--quick"]


def test_its_second_setting_and_the_files_beside_it_are_found(folder, monkeypatch):
    Path("inner").mkdir()
    Path("inner/beside_line.py").write_text(STUDY)
    second = "from beside_line import STUDY\nfrom dataclasses import replace\nBEYOND = replace(STUDY, name='beyond')\n"
    Path("inner/second_line.py").write_text(second)
    study, description, settings = run_with(monkeypatch, "inner/second_line.py")
    assert (study.name, description, settings["beyond"].name) == ("line", None, "beyond")


@pytest.mark.parametrize(
    "name, source, message",
    [
        ("nothing", None, "no module nothing here or where Python looks; give a module or a file with a STUDY"),
        ("no.thing", None, "no module no.thing here or where Python looks; give a module or a file with a STUDY"),
        ("nothing.py", None, "nothing.py: no such file"),
        ("wrong/nothing", None, "wrong/nothing: no such file"),
        ("--quick", None, "the module comes first, then its flags: python -m hw1jax MODULE --quick"),
        ("without.py", "", "without.py has no STUDY: give it one, as STUDY = hw1jax.Study(..)"),
        ("./text", "", "./text is no Python file: its name ends with .py"),
        ("needs.py", "import not_there", "needs.py: No module named 'not_there'"),
        ("wrong.py", "\na b", "invalid syntax (wrong.py, line 2)"),
    ],
)
def test_a_module_that_cant_be_run_gets_one_line(name, source, message, folder, monkeypatch, capsys):
    if source is not None:
        Path(name).write_text(source)
    assert run_with(monkeypatch, name) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_what_a_study_raises_itself_keeps_its_traceback(folder, monkeypatch):
    Path("raises.py").write_text("raise ValueError('mine')")
    with pytest.raises(ValueError, match="^mine$"):
        run_with(monkeypatch, "raises.py")


@pytest.mark.slow
def test_a_run_records_the_command_that_repeats_it(folder):
    ran = python("-m", "hw1jax", "small_line", "--quiet", "--out", "out here")
    assert ran.returncode == 0, ran.stderr
    assert "\"python -m hw1jax small_line --quiet --out 'out here'\"" in (folder / "out here/results.json").read_text()


def test_without_the_command_lines_packages_it_says_what_to_install(folder):
    code = "import sys, runpy; sys.argv = ['hw1jax', *{}]; runpy.run_module('hw1jax', run_name='__main__')"
    tried = python("-c", blocked("tyro") + code.format(["small_line"]))
    assert tried.returncode == 2
    assert tried.stderr == "error: hw1jax.main needs tyro, which is not installed: pip install tyro\n"
    assert python("-c", blocked(*OTHERS) + code.format([])).stdout.startswith("hw1jax ")


# Types, seen from outside.

TYPO = "import hw1jax as hw\n\nhw.cros_validate\nscore: str = hw.run_study\n"


def shown(name):
    """One of the examples of the README or of the documentation."""
    pages = "".join(path.read_text() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))))
    return re.search(rf"<!-- {name} -->\n```python\n(.*?)```", pages, re.DOTALL)[1]


@pytest.mark.slow
def test_mypy_finds_nothing_in_the_examples_and_what_is_wrong_elsewhere(tmp_path):
    """But for Optax, which says nothing of its types."""
    for name in ("study", "example"):
        (tmp_path / f"{name}.py").write_text(shown(name))
    (tmp_path / "typo.py").write_text(TYPO)
    (tmp_path / "mypy.ini").write_text("[mypy-optax.*]\nignore_missing_imports = True\n")
    checked = python("-m", "mypy", ".", cwd=tmp_path)
    assert re.findall(r"^(\w+)\.py:(\d+): error", checked.stdout, re.M) == [("typo", "3"), ("typo", "4")], checked


@pytest.mark.slow
def test_pyright_finds_a_name_that_is_not_there(tmp_path):
    (tmp_path / "typo.py").write_text(TYPO)
    checked = python("-m", "pyright", "--pythonpath", sys.executable, "typo.py", cwd=tmp_path)
    assert re.findall(r"typo.py:(\d+):\d+ - error", checked.stdout) == ["3", "4"], checked.stdout
