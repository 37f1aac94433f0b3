"""The package from outside: its files, its requirements, `python -m hw1jax`, its types."""

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import hw1jax
from hw1jax import __main__ as program
from hw1jax import cli

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


OTHERS = ("flax", "optuna", "matplotlib", "tensorflow_datasets", "tyro", "rich", "sqlalchemy", "msgpack", "tensorflow",
          "torch", "sklearn", "pandas", "IPython")  # fmt: skip
IMPORTED = f"print(*sorted({{name.partition('.')[0] for name in sys.modules}} & {{*{OTHERS}}}))"


def python(*args, **options):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=300, **options)


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        (CROSS_VALIDATED, set()),
        ("import hw1jax as hw\nhw.Study, hw.Float, hw.data.Dataset", set()),
        ("import hw1jax as hw\nhw.models, hw.load_model", {"flax", "msgpack", "rich"}),
        ("import hw1jax as hw\nhw.run_study, hw.Results", {"flax", "msgpack", "rich", "optuna", "sqlalchemy"}),
        (
            "from hw1jax import cli\nfrom hw1jax.report import network, sections",
            {"flax", "msgpack", "rich", "optuna", "sqlalchemy", "tyro"},
        ),
    ],
    ids=["cross-validation", "study", "model", "search", "command line"],
)
def test_each_part_imports_what_it_needs_alone(code, allowed):
    """A page needs matplotlib too, when it draws its first figure."""
    done = python("-W", "error::DeprecationWarning:hw1jax", "-c", f"{code}\nimport sys\n{IMPORTED}")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()[-1].split()) <= allowed


def test_the_wheel_has_every_file_and_says_what_it_is(tmp_path):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(wheel) as files:
        folder = f"hw1jax-{hw1jax.__version__}.dist-info"
        names = {name for name in files.namelist() if not name.startswith(folder)}
        described = files.read(f"{folder}/METADATA").decode()
        assert f"{folder}/licenses/LICENSE" in files.namelist()
    there = {path for path in (ROOT / "hw1jax").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert names == {str(path.relative_to(ROOT)) for path in there} and "hw1jax/py.typed" in names
    assert f"\nVersion: {metadata.version('hw1jax')}\n" in described and "\nRequires-Python: >=3.11\n" in described


# python -m hw1jax


def run_with(monkeypatch, *args):
    """What the program hands to `cli.main`."""
    handed = []
    monkeypatch.setattr(cli, "main", lambda *args, **settings: handed.append((*args, settings)))
    monkeypatch.setattr(sys, "argv", ["__main__.py", *map(str, args)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    program.main()
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


@pytest.mark.parametrize("args", [[], ["--help"], ["--quick", "small_line"]])
def test_without_a_module_first_it_says_how_it_is_called(args, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run_with(monkeypatch, *args)
    assert end.value.code == 2 and "python -m hw1jax MODULE [flags]" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_records_the_command_that_repeats_it(folder):
    ran = python("-m", "hw1jax", "small_line", "--quiet", "--out", "out here")
    assert ran.returncode == 0, ran.stderr
    assert "\"python -m hw1jax small_line --quiet --out 'out here'\"" in (folder / "out here/results.json").read_text()


# Types, seen from outside.

TYPO = "import hw1jax as hw\n\nhw.cros_validate\nscore: str = hw.run_study\n"


def shown(name):
    """One of the examples of the README or of the documentation."""
    pages = "".join(path.read_text() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))))
    return re.search(rf"<!-- {name} -->\n```python\n(.*?)```", pages, re.DOTALL)[1]


@pytest.mark.slow
def test_pyright_finds_nothing_in_the_examples_and_what_is_wrong_elsewhere(tmp_path):
    for name in ("study", "example"):
        (tmp_path / f"{name}.py").write_text(shown(name))
    (tmp_path / "typo.py").write_text(TYPO)
    checked = python("-m", "pyright", "--pythonpath", sys.executable, ".", cwd=tmp_path)
    found = re.findall(r"(\w+)\.py:(\d+):\d+ - error", checked.stdout)
    assert found == [("typo", "3"), ("typo", "4")], checked.stdout
