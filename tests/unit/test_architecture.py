"""The order of the package's parts: what may import what, and what must stay cheap to import."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import bloodcell_dist

ROOT = Path(bloodcell_dist.__file__).parent
NAME = ROOT.name

# A part imports itself and the layers before it, never a neighbour; within the first layer all may.
LAYERS = (
    {"", "errors", "logs", "randomness", "locks", "atomic", "outputs", "history", "rundir", "settings", "config"}
    | {"commandline", "imports", "installed", "memory"},
    {"cluster", "data", "augment", "models"},
    {"training", "resolve"},
    {"evaluation", "runtime"},
    {"serving", "sweep", "arithmetic", "initial_weights"},
    {"assembly", "start", "launch"},
    {"session", "doctor", "bench"},
    {"conclusion"},
    {"train", "bench_command", "data_commands", "doctor_command", "models_command"}
    | {"sweep_commands", "weights_commands"},
    {"cli", "__main__"},
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}

HEAVY = {"tensorflow", "keras", "keras_cv", "horovod"}
SLOW_TO_IMPORT = HEAVY | {"matplotlib", "pydantic", "scipy", "sklearn"}
NUMPY_ONLY = ("data", "evaluation.metrics", "evaluation.plots", "evaluation.report")
REPLICATION = "training.replication"


def module_name(path: Path, root: Path) -> str:
    """The dotted name inside the package; "" for the package itself."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    return module.split(".")[0]


def imported_names(tree: ast.AST, package: str) -> set[str]:
    """Full dotted names of all that is imported anywhere in a module, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


class Tree:
    """The modules below `root`, each with the names it imports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = {module_name(path, root): ast.parse(path.read_text()) for path in root.rglob("*.py")}
        self.imports = {name: imported_names(tree, self.package(name)) for name, tree in self.source.items()}

    def package(self, module: str) -> str:
        is_package = (self.root / Path(*module.split(".")) / "__init__.py").is_file()
        inner = module if is_package else module.rpartition(".")[0]
        return f"{self.root.name}.{inner}".rstrip(".")

    def own(self, module: str) -> set[str]:
        """The modules of this tree that `module` imports: the longest beginning of each name that is one."""
        found = set()
        for name in self.imports[module]:
            first, *inner = name.split(".")
            if first == self.root.name:
                lengths = range(len(inner), -1, -1)
                found.add(next(m for n in lengths if (m := ".".join(inner[:n])) in self.source))
        return found - {module}

    def foreign(self, module: str) -> set[str]:
        """The other packages that `module` imports."""
        return {name.split(".")[0] for name in self.imports[module]} - {self.root.name}

    def wrong_direction(self) -> list[str]:
        return [
            f"{module} imports {target}"
            for module in sorted(self.source)
            for target in sorted(self.own(module))
            if not may_import(part_of(module), part_of(target))
        ]

    def find_cycle(self) -> list[str]:
        try:
            graphlib.TopologicalSorter({module: self.own(module) for module in self.source}).prepare()
        except graphlib.CycleError as error:
            return error.args[1]
        return []


def may_import(part: str, target: str) -> bool:
    if part == target:
        return True
    return LAYER[target] < LAYER[part] or LAYER[target] == LAYER[part] == 0


def uses_tf_distribute(tree: ast.AST) -> bool:
    """True where `tf.distribute` is named; imports of it are found by `imported_names`."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == "distribute"
        and isinstance(node.value, ast.Name)
        and node.value.id in {"tf", "tensorflow"}
        for node in ast.walk(tree)
    )


def loaded_by(code: str) -> set[str]:
    """The packages that a fresh interpreter imports while it runs `code`."""
    command = [sys.executable, "-X", "importtime", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = run.stderr.splitlines()
    imports = [line for line in lines if line.startswith("import time:")]
    assert run.returncode == 0, "\n".join(line for line in lines if line not in imports)
    return {line.rpartition("|")[2].strip().split(".")[0] for line in imports}


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(ROOT)


def modules_of(tree: Tree, part: str) -> list[str]:
    return [module for module in sorted(tree.source) if module == part or module.startswith(part + ".")]


def test_every_part_has_its_layer(tree: Tree) -> None:
    unplaced = {part_of(module) for module in tree.source} - set(LAYER)
    assert not unplaced, "give these a place in LAYERS"


def test_imports_point_one_way(tree: Tree) -> None:
    assert tree.wrong_direction() == []


def test_there_are_no_import_cycles(tree: Tree) -> None:
    assert tree.find_cycle() == []


@pytest.mark.parametrize("part", NUMPY_ONLY)
def test_numpy_parts_do_not_import_tensorflow(tree: Tree, part: str) -> None:
    modules = modules_of(tree, part)
    assert modules, f"{part} is gone: mend NUMPY_ONLY"
    assert [module for module in modules if tree.foreign(module) & HEAVY] == []
    assert not loaded_by("\n".join(f"import {NAME}.{module}" for module in modules)) & HEAVY


def test_only_replication_knows_how_replicas_talk(tree: Tree) -> None:
    offenders = {
        module
        for module, source in tree.source.items()
        if "horovod" in tree.foreign(module)
        or any(name.startswith("tensorflow.distribute") for name in tree.imports[module])
        or uses_tf_distribute(source)
    }
    assert offenders <= {REPLICATION, *modules_of(tree, REPLICATION)}


@pytest.mark.parametrize("module", ["", ".cli", ".config"])
def test_importing_does_not_load_tensorflow(module: str) -> None:
    assert not loaded_by(f"import {NAME}{module}") & HEAVY


def test_help_loads_nothing_slow() -> None:
    code = f"import sys; from {NAME}.cli import main; sys.argv[1:] = ['--help']; sys.exit(main())"
    assert not loaded_by(code) & SLOW_TO_IMPORT


@pytest.mark.parametrize(
    ("text", "package", "expected"),
    [
        ("import horovod.tensorflow as hvd", "p", {"horovod.tensorflow"}),
        ("from tensorflow import distribute", "p", {"tensorflow.distribute"}),
        ("def f():\n    from p.data import npz", "p", {"p.data.npz"}),
        ("from . import npz", "p.data", {"p.data.npz"}),
        ("from .npz import fill", "p.data", {"p.data.npz.fill"}),
        ("from ..training.step import Step", "p.data", {"p.training.step.Step"}),
    ],
)
def test_every_form_of_import_is_read(text: str, package: str, expected: set[str]) -> None:
    assert imported_names(ast.parse(text), package) == expected


def test_loaded_packages_are_seen() -> None:
    assert "graphlib" in loaded_by("def f(): import graphlib\nf()")


def test_tf_distribute_is_seen() -> None:
    assert uses_tf_distribute(ast.parse("strategy = tf.distribute.MirroredStrategy()"))
    assert not uses_tf_distribute(ast.parse("settings.distribute.strategy"))


def test_wrong_imports_are_found(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "errors.py": "",
        "data/__init__.py": "",
        "data/npz.py": "from ..errors import UserError\ndef f():\n    from p.training.loop import run",
        "models/__init__.py": "from p.data import npz",
        "training/__init__.py": "",
        "training/loop.py": "from p.training import step",
        "training/step.py": "from .loop import run\nimport p",
    }
    for name, text in files.items():
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    tree = Tree(tmp_path / "p")
    assert tree.wrong_direction() == ["data.npz imports training.loop", "models imports data.npz"]
    assert set(tree.find_cycle()) == {"training.loop", "training.step"}
