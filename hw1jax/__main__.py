"""What the package has, and any study by the name of its module or file:

    python -m hw1jax
    python -m hw1jax MODULE [flags]

A study's module has `STUDY`, a `Study`; where it has `BEYOND` too, `--beyond` runs that one instead.
"""

from hw1jax import signals

if __name__ == "__main__":
    signals.listen()  # before the imports that take seconds

import importlib
import importlib.util
import inspect
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import hw1jax

FOLDERS = ("", "experiments", "experiments/examples")  # of the working folder, where studies are looked for


def main() -> NoReturn:
    """Shows what there is, or runs the study of the module that comes first on the command line."""
    given = sys.argv[1:]
    if not given or given[0] in ("-h", "--help"):
        print(overview())
        sys.exit(0)
    if given[0] == "--version":
        print(hw1jax.__version__)
        sys.exit(0)
    if given[0].startswith("-"):
        _end(f"the module comes first, then its flags: python -m hw1jax MODULE {shlex.join(given)}")
    try:
        module = load(given[0])
    except (ImportError, SyntaxError) as error:
        _end(" ".join(str(error).split()))
    if not hasattr(module, "STUDY"):
        _end(f"{given[0]} has no STUDY: give it one, as STUDY = hw1jax.Study(..)")
    settings = {"beyond": module.BEYOND} if hasattr(module, "BEYOND") else {}
    try:
        run = hw1jax.main
    except ImportError as error:
        _end(str(error))
    sys.argv = [shlex.join(["python", "-m", "hw1jax", given[0]]), *given[1:]]  # the command that is repeated
    run(module.STUDY, module.__doc__, **settings)


def overview() -> str:
    """A few lines: the version, the studies at hand, the public names, where to read on."""
    studies = [path for folder in FOLDERS for path in sorted(Path(folder).glob("*.py")) if _is_study(path)]
    names = [name for names in hw1jax._ROOMS.values() for name in names]
    lines = {
        "Studies": ", ".join(map(str, studies)) or "none in this folder; MODULE is any module or file with a STUDY",
        "Functions": ", ".join(name for name in names if name[0].islower()),
        "Classes": ", ".join(name for name in names if not name[0].islower()),
        "Modules": ", ".join(f"hw1jax.{name}" for name in hw1jax._DOORS),
        "Docs": "help(hw1jax.cross_validate) and so on; README.md and docs/ in the source",
    }
    usage = "Run a study: python -m hw1jax MODULE [flags]; its flags: python -m hw1jax MODULE --help"
    return "\n".join(
        [f"hw1jax {hw1jax.__version__}: {_first_line(hw1jax)}", usage, *(f"{k}: {v}" for k, v in lines.items())]
    )


def load(name: str) -> ModuleType:
    """The module of this name, or of a file (`folder/file.py`, whose folder is then the first to import from).

    Raises:
      ImportError: there is none, or something that it imports is missing; in one line.
      SyntaxError: what is wrong in it, with its line.
      Exception: whatever else happens in it, as it would in a script.
    """
    path = Path(name)
    is_file = path.suffix == ".py" or os.sep in name
    if is_file and not path.is_file():
        raise ImportError(f"{name}: no such file")
    if not is_file and not _is_there(name):
        raise ImportError(f"no module {name} here or where Python looks; give a module or a file with a STUDY")
    try:
        if not is_file:
            return importlib.import_module(name)
        sys.path.insert(0, str(path.parent.absolute()))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{name} is no Python file: its name ends with .py")
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ModuleNotFoundError as error:
        raise ImportError(f"{name}: {error}") from None


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of a package above it that isn't there; of a name that can't be one
        return False


def _is_study(path: Path) -> bool:
    return any(line.startswith("STUDY =") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())


def _first_line(module: ModuleType) -> str:
    return (inspect.getdoc(module) or "").partition("\n")[0]


def _end(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    signals.finish(2)


if __name__ == "__main__":
    main()
