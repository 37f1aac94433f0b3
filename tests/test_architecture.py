"""Rules of the code: imports point one way (import-linter), the core does no I/O, public names are documented."""

import ast
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import planted
import pytest
from importlinter import configuration
from importlinter.application import use_cases

import hw1jax

PACKAGE = Path(hw1jax.__file__).parent
EXPERIMENTS = PACKAGE.parent / "experiments"
LONGEST = 400  # lines of a module; to be lowered when the longest shrinks


def read(folder: Path, prefix: str) -> dict[str, ast.Module]:
    """{full name: syntax tree} of the modules in a folder."""
    names = {path: path.relative_to(folder).with_suffix("").parts for path in sorted(folder.rglob("*.py"))}
    parts = {path: [prefix, *(name for name in own if name != "__init__")] for path, own in names.items()}
    return {".".join(own): ast.parse(path.read_text(encoding="utf-8")) for path, own in parts.items()}


MODULES, SCRIPTS = read(PACKAGE, "hw1jax"), read(EXPERIMENTS, "experiments")
ALL = MODULES | SCRIPTS


@cache
def imported(tree: ast.AST) -> set[str]:
    """Everything a module imports, wherever the import stands, by full name: a.b for `from a import b`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def libraries(tree: ast.AST) -> set[str]:
    return {name.partition(".")[0] for name in imported(tree)}


@cache
def names_used(tree: ast.AST) -> set[str]:
    """Every name and attribute in the code (not in its comments and strings)."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return used | {part for name in imported(tree) for part in name.split(".")}


def needed(module: str) -> set[str]:
    """The package's modules that a module imports, directly or through others, and itself."""
    found, left = set(), {module}
    while left:
        name = left.pop()
        if name in MODULES and name not in found:
            found.add(name)
            left |= {part for each in imported(MODULES[name]) for part in (each, each.rpartition(".")[0])} - {"hw1jax"}
    return found


def stem(module: str) -> str:
    return module.rpartition(".")[2]


FOR_A_CORE = (hw1jax.cross_validate, hw1jax.adam_l2, hw1jax.accuracy, hw1jax.Task)
CORE = {name for each in FOR_A_CORE for name in needed(each.__module__)}
CORE |= needed("hw1jax.models") | needed("hw1jax.core.preprocessing")
LAZY = {"hw1jax.{}"}  # public names that are imported when they are first used


def test_imports_point_one_way_and_each_library_has_one_door(capsys):
    """The contracts are in pyproject.toml."""
    configuration.configure()
    kept = use_cases.lint_imports(str(PACKAGE.parent / "pyproject.toml"), cache_dir=None, no_logo=True)
    said = capsys.readouterr().out
    assert kept and "7 kept, 0 broken" in said, said


def test_every_library_is_a_dependency():
    declared = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    needs = {re.split(r"[^\w-]", need)[0].replace("-", "_") for need in declared}
    brought = {"PIL", "IPython", "distributed", "ray", "sklearn"}  # by matplotlib, a notebook, extras
    found = set.union(*map(libraries, MODULES.values()))
    assert found - sys.stdlib_module_names - brought - {"hw1jax"} <= needs


def test_no_import_hides_in_a_text_or_goes_by_the_public_door():
    calls = [node for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    texts = [call.args[0] for call in calls if names_used(call.func) & {"import_module", "__import__"}]
    parts = [text.values if isinstance(text, ast.JoinedStr) else [text] for text in texts]
    found = {"".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in own) for own in parts}
    assert {name for name in found if name.startswith("hw1jax")} <= LAZY
    assert not {name for name, tree in MODULES.items() if "hw1jax" in imported(tree)}


def test_the_core_is_what_a_cross_validation_needs():
    names = {stem(name) for name in CORE}
    assert {"training", "population", "folds", "losses", "optimizers", "layers", "checks"} <= names
    assert not names & {"study", "space", "search", "run", "cli", "report", "storage"}


def test_experiments_leave_the_libraries_to_their_doors():
    for name, tree in SCRIPTS.items():
        found = libraries(tree) - ({"optuna"} if stem(name) == "peers" else set())  # where a peer is Optuna's search
        assert not found & {"optuna", "matplotlib", "tensorflow_datasets", "tensorflow"}, name
        if stem(name) != "peers":
            assert "torch" not in found, name
            assert "sklearn" not in found or ".examples." in name or stem(name) == "estimators", (
                name
            )  # its data; a peer


def test_a_space_needs_numpy_alone():
    assert libraries(MODULES["hw1jax.search.space"]) - sys.stdlib_module_names == {"numpy"}


DEVICES = {"pjit", "pmap", "shard_map", "make_mesh", "Mesh", "NamedSharding", "PartitionSpec", "device_put"}


@pytest.mark.parametrize(
    "words, rooms",
    [
        (DEVICES, {"population"}),
        ({"jit"}, {"cost", "member_states", "population", "programs"}),
        ({"vmap"}, {stem(name) for name in CORE}),
        ({"callback", "io_callback", "pure_callback"}, set()),
    ],
    ids=["devices", "jit", "vmap", "callbacks"],
)
def test_a_word_is_used_in_its_rooms_alone(words, rooms):
    for name, tree in MODULES.items():
        assert not names_used(tree) & words or stem(name) in rooms, name


def test_prng_keys_are_called_key():
    for name, tree in MODULES.items():
        assert "rng" not in {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}, name


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_does_no_io_and_has_no_global_state(name):
    tree = MODULES[name]
    if stem(name) != "formatting":  # it prints progress on request
        modules = {"builtins", "csv", "io", "json", "logging", "os", "pathlib", "shutil", "subprocess", "sys"}
        assert not libraries(tree) & (modules | {"tempfile", "time", "rich"})
        calls = {"open", "print", "input", "Path", "save", "savez", "load", "loadtxt", "savetxt", "tofile", "fromfile"}
        assert not names_used(tree) & (calls | {"write_bytes", "write_text", "read_bytes", "read_text", "environ"})
    assert not any(isinstance(node, ast.Global) for node in ast.walk(tree))
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
            assert not isinstance(node.value, mutable), f"line {node.lineno}"


# What any study goes through names none.

HYPERPARAMETERS = ("learning_rate", "l2", "hidden_units", "channels", "momentum", "weight_decay", "dropout")
OPTIMIZERS = ("adam", "sgd", "rmsprop", "adamw")
STUDIES = ("regression", "fashion", "fashion_mlp", "fashion_cnn", "fashion_mnist")
WORDS = "|".join(HYPERPARAMETERS + OPTIMIZERS + STUDIES)
NAMED = re.compile(rf"(?<![a-z0-9])({WORDS})(?![a-z0-9])")  # alone or between underscores


def strings(tree: ast.AST) -> Iterator[str]:
    """Every string but docstrings and those that stand for themselves, below an attribute."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def identifiers(tree: ast.AST) -> Iterator[str]:
    """All that is named in code: variables, attributes, parameters, arguments, functions, imports."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


def mentioned(tree: ast.AST) -> set[str]:
    """Names and strings of one word that mention what belongs to a study. Docstrings and messages may have examples."""
    keys = [text for text in strings(tree) if not re.search(r"\s", text.strip())]
    return {text for text in (*identifiers(tree), *keys) if NAMED.search(text.lower())}


def test_what_any_study_goes_through_names_no_hyperparameter_study_or_flag():
    """Nor does a message name a flag: it has `name=`, which the command line replaces by the flag."""
    tree = ast.parse("def f(h): raise ValueError('give adam: --optimizers adam', h['l2'], chosen_l2)")
    assert mentioned(tree) == {"l2", "chosen_l2"}, "not the example in a message"
    offered = {"hw1jax", "layers", "models", "optimizers", "tabular", "sklearn", "sklearn_words"}  # to any study
    for name, tree in MODULES.items():
        folder = name.split(".")[1:2]
        if stem(name) not in offered and folder not in (["data"], ["report"]):
            assert not mentioned(tree), name
        if stem(name) not in ("cli", "__main__", "environment"):  # commands
            assert not [text for text in strings(tree) if re.search(r"(?<![\w-])--[a-z]", text)], name


def test_no_module_grows_beyond_what_is_read_in_one_sitting():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST, path


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_unpickled_or_evaluated(name):
    tree = ALL[name]
    if name == "hw1jax.search.executors":  # between this process and its workers, which run its code in any case
        assert not names_used(tree) & {"open", "Path", "read_bytes", "storage"}, "nothing there comes from a file"
    else:
        assert not libraries(tree) & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    assert "flax.training.checkpoints" not in imported(tree)
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called, line = ast.unparse(node.func), f"line {node.lineno}"
        given = {k.arg: getattr(k.value, "value", k.value) for k in node.keywords}
        assert called not in ("eval", "exec", "compile", "__import__", "os.system"), line
        assert given.get("allow_pickle", False) is False, line
        assert called != "np.load" or "allow_pickle" in given, f"{line}: np.load says allow_pickle=False"
        assert not called.startswith("subprocess.") or "shell" not in given, line


# The public door.


def typed_names(tree: ast.AST) -> list[str]:
    """The public names that a checker of types sees."""
    aliases = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    return [alias.name for alias in aliases if alias.asname == alias.name]


PUBLIC = typed_names(MODULES["hw1jax"])


def test_a_checker_of_types_sees_the_names_that_are_imported_later():
    [later] = [node for node in MODULES["hw1jax"].body if isinstance(node, ast.If) and not node.orelse][:1]
    assert sorted(typed_names(later)) == sorted(hw1jax._LATER)
    assert {*PUBLIC} <= {*dir(hw1jax)}
    with pytest.raises(AttributeError, match="module 'hw1jax' has no attribute 'nothing'"):
        _ = hw1jax.nothing


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_there_typed_and_documented(name):
    value = getattr(hw1jax, name)
    assert (
        value.__module__.startswith("hw1jax.") if hasattr(value, "__module__") else value.__name__ == f"hw1jax.{name}"
    )
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        annotations = [signature.return_annotation, *(p.annotation for p in signature.parameters.values())]
        assert inspect.Parameter.empty not in annotations


def test_modules_and_public_functions_say_what_they_do():
    for name, tree in MODULES.items():
        public = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
        assert ast.get_docstring(tree), name
        assert [node.name for node in public if not ast.get_docstring(node)] == [], name


def test_each_planted_fault_finds_its_line():
    """`planted.py` takes long and runs by hand; a move of code must not leave it behind."""
    texts = {fault: (PACKAGE / fault.file).read_text(encoding="utf-8") for fault in planted.FAULTS}
    assert [fault.name for fault, text in texts.items() if text.count(fault.old) != 1] == []
