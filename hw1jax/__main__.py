"""Runs the study of a module or file, its `STUDY`, with the flags of the command line:

    python -m hw1jax MODULE [flags]

Where the module has `BEYOND` too, `--beyond` runs that one instead.
"""

import importlib
import shlex
import sys
from pathlib import Path

from hw1jax import cli


def main() -> None:
    """Imports the module named first on the command line, and runs its study."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    name = sys.argv[1]
    sys.argv[:2] = [shlex.join(["python", "-m", "hw1jax", name])]  # the recorded command
    if name.endswith(".py"):
        sys.path.insert(0, str(Path(name).parent))
        name = Path(name).stem
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise  # the module imports another one that is missing
        sys.exit(f"error: there is no module {name}")
    if not hasattr(module, "STUDY"):
        sys.exit(f"error: {name} has no STUDY: name the study so, or run the script itself")
    settings = {"beyond": module.BEYOND} if hasattr(module, "BEYOND") else {}
    cli.main(module.STUDY, module.__doc__, **settings)


if __name__ == "__main__":
    main()
