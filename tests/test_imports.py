"""Imports go one way, from the program down to the types, and what is meant to be light is light."""

import ast
import pathlib
import subprocess
import sys

import jax
import pytest

import jaxneg

ROOT = pathlib.Path(jaxneg.__file__).parent

# From the top down: a module may import those of lower layers only, a package counting as one. `jaxneg` is the version.
LAYERS = [
    {"main", "config", "opauc", "results", "tuned"},
    {"run"},
    {"training"},
    {"samplers", "report"},
    {"optim", "models", "data", "evaluation"},
    {"settings", "devices", "losses", "files"},
    {"types", "fields", "hashing", "errors", "jaxneg"},
]
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}
MODULES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"}


def part(name: str) -> str:
    """jaxneg.data.raw -> data; jaxneg.types -> types; jaxneg -> jaxneg."""
    return (name.split(".") + ["jaxneg"])[1] if "." in name else name


def imported_modules(path: pathlib.Path) -> set[str]:
    """Full names of the jaxneg modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            # `from jaxneg import types` imports a module, `from jaxneg import __version__` does not.
            found |= {
                f"{node.module}.{alias.name}" if is_module(f"{node.module}.{alias.name}") else node.module
                for alias in node.names
            }
    return {name for name in found if name.split(".")[0] == "jaxneg"}


def is_module(name: str) -> bool:
    path = ROOT.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("file", MODULES)
def test_imports_point_down(file):
    own = part(module_name(MODULES[file]))
    assert own in LAYER, f"{file}: give {own!r} a place in LAYERS"
    for name in imported_modules(MODULES[file]):
        allowed = part(name) == own or LAYER[part(name)] > LAYER[own]
        assert allowed, f"{file} imports {name}, which is not below {own}"


def test_no_circles():
    graph = {module_name(path): imported_modules(path) for path in MODULES.values()}
    done, path = set(), []

    def visit(name):
        assert name not in path, "circle: " + " -> ".join([*path, name])
        if name in done:
            return
        path.append(name)
        for other in sorted(graph.get(name, ())):
            if other != name:
                visit(other)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_a_config_is_known_to_runs_only():
    users = {file for file, path in MODULES.items() if "jaxneg.run.config" in imported_modules(path)}
    assert users <= {"main.py", "config.py"} | {file for file in MODULES if file.startswith("run/")}


def imports_of(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after a statement."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_samplers_are_light():
    heavy = {"flax", "optax", "orbax", "pandas", "pyarrow", "absl", "matplotlib", "ml_collections", "scipy"}
    loaded = imports_of("from jaxneg import samplers")
    # JAX itself may import a few of them (absl by some versions, scipy): only what jaxneg adds counts.
    assert not (loaded - imports_of("import jax")) & heavy


@pytest.mark.parametrize("name", ["main", "report.__main__"])
def test_the_front_door_needs_no_jax(name):
    assert "jax" not in imports_of(f"import jaxneg.{name}")


def test_ranks_are_not_promoted():
    assert jax.config.jax_numpy_rank_promotion == "raise"
