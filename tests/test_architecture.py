"""The house's rules: imports point one way, the core does no I/O, each library has one door, nothing is unpickled."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hw1jax

PACKAGE = Path(hw1jax.__file__).parent
EXPERIMENTS = PACKAGE.parent / "experiments"

# What each module of the core may import of the package: the arrows of the design.
CORE = {
    "folds": set(),
    "losses": set(),
    "layers": set(),
    "optimizers": set(),
    "models": {"layers"},
    "layout": set(),
    "training": {"layout", "losses"},
    "population": {"folds", "layout", "losses", "training"},
    "cross_validation": {"folds", "losses", "training", "population"},
}
EDGE = {"plots", "figures", "report", "progress", "run"}  # nothing that computes needs them
DOORS = {  # the only modules that import a library
    "optuna": {"search"},
    "sqlalchemy": {"search"},
    "matplotlib": {"plots"},
    "tensorflow_datasets": {"data.fashion_mnist"},
    "rich": {"progress"},
    "tyro": set(),  # flags are the experiments' business
    "torch": set(),
    "sklearn": set(),
    "tensorflow": set(),
}


def name_of(path: Path) -> str:
    """A file's module name within the package; that of the package itself is empty."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
SCRIPTS = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(EXPERIMENTS.glob("*.py"))}


def imported(tree: ast.Module) -> set[str]:
    """Everything a module imports, wherever the import stands, by full name: a.b for `from a import b`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def libraries(tree: ast.Module) -> set[str]:
    return {name.partition(".")[0] for name in imported(tree)}


def siblings(tree: ast.Module) -> set[str]:
    """The package's modules that a module imports."""
    found = set()
    for name in imported(tree):
        if name.split(".")[0] == "hw1jax":
            path = name.removeprefix("hw1jax").removeprefix(".")
            while path not in MODULES:  # a name within a module
                path = path.rpartition(".")[0]
            found.add(path)
    return found


def names_used(tree: ast.AST) -> set[str]:
    """Every name and attribute in the code (not in its comments and strings)."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return used | {part for name in imported(tree) for part in name.split(".")}


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    a = function.args
    return [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_only_what_the_design_says(name):
    assert siblings(MODULES[name]) <= CORE[name]


def test_the_cores_arrows_have_no_circle_and_neither_has_the_rest():
    arrows = {name: siblings(tree) - {name} for name, tree in MODULES.items()}
    while arrows:
        leaves = {name for name, needs in arrows.items() if not needs & arrows.keys()}
        assert leaves, f"these modules import each other in a circle: {sorted(arrows)}"
        arrows = {name: needs for name, needs in arrows.items() if name not in leaves}


def test_the_edge_is_imported_by_the_edge_alone():
    for name, tree in MODULES.items():
        if name not in EDGE:
            assert not siblings(tree) & (EDGE - {"progress"}), name


def test_the_core_knows_no_network_of_the_homework():
    for name in ("training", "population", "cross_validation", "search"):
        assert not siblings(MODULES[name]) & {"models", "layers", "studies", "run"}


def test_data_stands_at_the_edge():
    for name, tree in MODULES.items():
        if name.startswith("data"):
            assert siblings(tree) <= {"data", name}
        if any(s.startswith("data") for s in siblings(tree)):
            assert name not in CORE


def test_nothing_imports_the_experiments():
    for name, tree in MODULES.items():
        assert not libraries(tree) & ({"experiments", "tests"} | SCRIPTS.keys()), name


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library):
    assert {name for name, tree in MODULES.items() if library in libraries(tree)} <= DOORS[library]


def test_experiments_leave_the_libraries_to_their_doors():
    for name, tree in SCRIPTS.items():
        assert not libraries(tree) & {"optuna", "matplotlib", "tensorflow_datasets", "tensorflow"}, name
        if name not in ("peers", "benchmark"):
            assert not libraries(tree) & {"torch", "sklearn"}, name


def test_only_population_compiles_and_spreads_over_devices():
    words = {"jit", "pjit", "pmap", "shard_map", "make_mesh", "Mesh", "NamedSharding", "PartitionSpec", "device_put"}
    for name, tree in MODULES.items():
        if name != "population":
            assert not names_used(tree) & words, name


def test_only_the_core_maps():
    for name, tree in MODULES.items():
        if "vmap" in names_used(tree):
            assert name in CORE, name


@pytest.mark.parametrize("name", CORE)
def test_the_core_does_no_io(name):
    tree = MODULES[name]
    modules = {"builtins", "csv", "io", "json", "logging", "os", "pathlib", "shutil", "subprocess", "sys", "tempfile"}
    assert not libraries(tree) & (modules | {"time", "warnings", "rich"})
    calls = {"open", "print", "input", "Path", "save", "savez", "load", "loadtxt", "savetxt", "tofile", "fromfile"}
    assert not names_used(tree) & (calls | {"write_bytes", "write_text", "read_bytes", "read_text", "environ"})
    assert not names_used(tree) & {"callback", "io_callback", "pure_callback"}


@pytest.mark.parametrize("name", CORE)
def test_the_core_has_no_global_state(name):
    assert not any(isinstance(node, ast.Global) for node in ast.walk(MODULES[name]))
    for node in MODULES[name].body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
            assert not isinstance(node.value, mutable), f"line {node.lineno}"


def test_the_package_only_passes_on_public_names():
    docstring, *rest = MODULES[""].body
    assert isinstance(docstring, ast.Expr)
    for node in rest:
        assert isinstance(node, ast.ImportFrom)
        assert all(alias.asname == alias.name and not alias.name.startswith("_") for alias in node.names)


def public_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_public_functions_say_what_they_do(name):
    assert ast.get_docstring(MODULES[name])
    silent = [f.name for f in public_functions(MODULES[name]) if not ast.get_docstring(f)]
    assert silent == []


def test_public_names_of_the_package_are_typed_and_documented():
    for node in MODULES[""].body[1:]:
        module = MODULES[node.module.removeprefix("hw1jax.")]
        defined = {n.name: n for n in module.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        for alias in node.names:
            definition = defined[alias.name]
            if isinstance(definition, ast.FunctionDef):
                assert ast.get_docstring(definition), alias.name
                assert definition.returns is not None, alias.name
                assert all(p.annotation is not None for p in parameters(definition)), alias.name


def test_prng_keys_are_called_key():
    for name, tree in MODULES.items():
        for function in functions(tree):
            assert "rng" not in {p.arg for p in parameters(function)}, f"{name}.{function.name}"


@pytest.mark.parametrize("name, tree", [*MODULES.items(), *SCRIPTS.items()], ids=[*MODULES, *SCRIPTS])
def test_nothing_is_unpickled_or_evaluated(name, tree):
    modules = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    assert not libraries(tree) & modules
    assert "flax.training.checkpoints" not in imported(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = getattr(node.func, "id", None)
        assert called not in ("eval", "exec", "compile", "__import__"), f"line {node.lineno}"
        allow = [k.value.value for k in node.keywords if k.arg == "allow_pickle" and isinstance(k.value, ast.Constant)]
        assert allow in ([], [False]), f"line {node.lineno}"
        if ast.unparse(node.func) == "np.load":
            assert allow == [False], f"line {node.lineno}: np.load says allow_pickle=False"
        if ast.unparse(node.func) in ("subprocess.run", "subprocess.Popen", "os.system"):
            assert not any(k.arg == "shell" for k in node.keywords), f"line {node.lineno}"
            assert ast.unparse(node.func) != "os.system", f"line {node.lineno}"


def test_importing_the_package_stays_light():
    heavy = ("optuna", "matplotlib", "tensorflow_datasets", "tensorflow", "tyro", "torch", "sklearn", "pandas", "rich")
    code = f"import sys, hw1jax; print(*(name for name in {heavy} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-W", "error::DeprecationWarning:hw1jax", "-c", code],
                            capture_output=True, text=True, check=True, timeout=120)  # fmt: skip
    assert result.stdout.split() == []
