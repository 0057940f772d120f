"""The code of each step: what Python's modulefinder says that it reaches, on copies that change."""

from __future__ import annotations

import ast
import dis
from collections.abc import Collection, Iterator
from modulefinder import ModuleFinder
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from phibuild.backends.registry import SHIPPED
from phibuild.planning.code import ENTRY, KINDS, PACKAGE, entries, runner_code
from phibuild.planning.steps import REFERENCE_BACKEND
from phibuild.store.store import Store
from support.copies import copy_package

ORIGINAL = ("source", "reference", "activations", "quantize", "sensitivity")
STEPS = tuple(
    (kind, backend)
    for kind in KINDS
    for backend in (SHIPPED if kind not in ORIGINAL else (REFERENCE_BACKEND,))
)
# What a worker's module has for each kind of step, as worker/entry.py and worker/judge.py call it.
CALLED = {
    "build": ("build",), "measure": ("prepare", "load"), "source": ("source",),
    "reference": ("reference",), "activations": ("activations",), "quantize": ("quantize",),
    "sensitivity": ("sensitivity",),
}  # fmt: skip


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def store(module_folder: Path) -> Store:
    store = Store(module_folder / "store")
    store.prepare()
    return store


@pytest.fixture(scope="module")
def package(module_folder: Path) -> Path:
    """Return a copy of phibuild that tests change and put right again."""
    return copy_package(module_folder)


def digests(package: Path, store: Store) -> dict[tuple[str, str], str]:
    """Return step -> digest of its code."""
    code = runner_code(store, {"phibuild": package})
    return {step: code.digest(entries(*step)) for step in STEPS}


def changed(package: Path, store: Store, before: dict[Any, str]) -> set[Any]:
    after = digests(package, store)
    return {step for step in STEPS if after[step] != before[step]}


def path_of(package: Path, module: str) -> Path:
    path = package.parent / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def found_by_python(folder: Path, kind: str, backend: str) -> set[str]:
    """Return the modules that a step may import, by the instructions that Python compiles. Imports
    for type checkers are compiled away, functions that other kinds of steps call taken out."""
    package = copy_package(folder / f"{kind}-{backend}")
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("if TYPE_CHECKING:", "if False:"), encoding="utf-8")
    worker = package / "backends" / backend / "worker.py"
    tree = ast.parse(worker.read_text(encoding="utf-8"))
    called = called_functions(tree, CALLED[kind])
    tree.body = [
        node for node in tree.body if not isinstance(node, ast.FunctionDef) or node.name in called
    ]
    worker.write_text(ast.unparse(tree), encoding="utf-8")
    (package / "__init__.py").write_text("", encoding="utf-8")  # which no runner imports
    script = package.parent / "script.py"
    imported = [ENTRY, f"phibuild.backends.{backend}.worker"]
    imported += ["phibuild.worker.judge"] if kind == "measure" else []
    script.write_text("".join(f"import {name}\n" for name in imported), encoding="utf-8")
    finder = ModuleFinder(path=[str(package.parent)])
    finder.run_script(str(script))
    return {name for name in finder.modules if name.startswith("phibuild.")}


def called_functions(tree: ast.Module, names: Collection[str]) -> set[str]:
    """Return the functions of a module that `names` call, by the names in their instructions."""
    compiled = compile(tree, "worker", "exec")
    functions = {one.co_name: one for one in compiled.co_consts if isinstance(one, CodeType)}

    def used(code: CodeType) -> Iterator[str]:
        # A function `load` of the module is not what `np.load` names.
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield instruction.argval
        for one in code.co_consts:
            if isinstance(one, CodeType):
                yield from used(one)

    # Classes are made when the module is imported, whatever it is imported for.
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    found, todo = set[str](), [*names, *classes]
    while todo:
        name = todo.pop()
        if name in functions and name not in found:
            found.add(name)
            todo += used(functions[name])
    return found


@pytest.fixture(scope="module")
def expected(module_folder: Path) -> dict[tuple[str, str], set[str]]:
    """Return step -> modules that it may import."""
    return {step: found_by_python(module_folder, *step) for step in STEPS}


def test_what_a_step_reaches_is_what_python_finds(
    expected: dict[tuple[str, str], set[str]], store: Store
) -> None:
    code = runner_code(store, {"phibuild": PACKAGE})
    for step in STEPS:
        reached = {entry.partition(":")[0] for entry in code.reached(entries(*step))}
        assert reached == expected[step], step


def test_a_build_holds_no_runtime_and_judging_no_converter(
    expected: dict[tuple[str, str], set[str]],
) -> None:
    """But where a tokenizer is checked by the runtime itself."""
    for backend in SHIPPED:
        own = f"phibuild.backends.{backend}"
        reads = backend == "llamacpp"
        files = {path.stem for path in (PACKAGE / "backends" / backend).glob("*.py")}
        if "runtime" in files:  # a small backend is one module
            assert (f"{own}.runtime" in expected["build", backend]) is reads
            assert f"{own}.runtime" in expected["measure", backend]
        if "convert" in files:
            assert f"{own}.convert" in expected["build", backend]
            assert f"{own}.convert" not in expected["measure", backend]
        for name in ("judge", "metrics"):
            assert f"phibuild.worker.{name}" in expected["measure", backend]
            assert f"phibuild.worker.{name}" not in expected["build", backend]
    assert "phibuild.worker.metrics" in expected["reference", REFERENCE_BACKEND]


def test_a_statement_changes_the_keys_of_the_steps_that_reach_it_and_no_others(
    package: Path, store: Store, expected: dict[tuple[str, str], set[str]]
) -> None:
    before = digests(package, store)
    modules = set[str]().union(*expected.values())
    assert len(modules) > 90
    for module in sorted(modules):
        path = path_of(package, module)
        text = path.read_text(encoding="utf-8")
        path.write_text(f"{text}\n_added = 1\n", encoding="utf-8")
        wanted = {step for step in STEPS if module in expected[step]}
        assert wanted
        assert changed(package, store, before) == wanted, module
        path.write_text(text, encoding="utf-8")
    assert changed(package, store, before) == set()


@pytest.mark.parametrize("backend", SHIPPED)
def test_a_function_of_a_worker_changes_the_keys_of_the_steps_that_call_it(
    backend: str, package: Path, store: Store
) -> None:
    before = digests(package, store)
    path = package / "backends" / backend / "worker.py"
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert {"build", "load", "prepare", "inspect"} <= {node.name for node in functions}
    for function in functions:
        statement = ast.parse("_added = 1").body
        function.body += statement
        path.write_text(ast.unparse(tree), encoding="utf-8")
        del function.body[-1]
        wanted = {
            (kind, name)
            for kind, name in STEPS
            if name == backend and function.name in called_functions(tree, CALLED[kind])
        }
        assert wanted or function.name == "inspect"
        assert changed(package, store, before) == wanted, function.name
    path.write_text(text, encoding="utf-8")


def test_comments_docstrings_and_layout_change_no_key(package: Path, store: Store) -> None:
    before = digests(package, store)
    texts = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    for path, text in texts.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)):
                if ast.get_docstring(node) is not None:
                    del node.body[0]
                node.body.insert(0, ast.parse("'Another word on it.'").body[0])
        written = ast.unparse(tree).replace("\n", "  # so\n\n", 1)
        assert written != text
        path.write_text(written + "\n# the end\n", encoding="utf-8")
    assert changed(package, store, before) == set()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def test_only_the_entry_computes_what_it_imports(store: Store) -> None:
    """What the calls in there mean is in `entries`, verb by verb."""
    code = runner_code(store, {"phibuild": PACKAGE})
    calls = {
        entry: code.part(entry).calls for step in STEPS for entry in code.reached(entries(*step))
    }
    assert calls.pop(ENTRY) == ("*", "phibuild.worker.generation", "phibuild.worker.judge")
    assert {entry: found for entry, found in calls.items() if found} == {}


def test_runners_read_no_other_files_of_phibuild(store: Store) -> None:
    """Which a key would not hold: nothing that they reach asks where it lies."""
    code = runner_code(store, {"phibuild": PACKAGE})
    modules = {
        entry.partition(":")[0] for step in STEPS for entry in code.reached(entries(*step))
    } - {ENTRY}
    for module in modules:
        text = path_of(PACKAGE, module).read_text(encoding="utf-8")
        for word in ("__file__", "importlib.resources", "pkgutil", "runpy", "multiprocessing"):
            assert word not in text, module


def test_a_backend_of_another_package_reaches_its_own_modules_and_phibuilds(
    tmp_path: Path, store: Store
) -> None:
    files = {
        "__init__.py": "import phibuild.worker.chat",  # which no runner imports
        "spec.py": "import phibuild.backends.base",
        "worker.py": "def build(request, report):\n    from theirs.made.convert import convert\n"
        "def load(folder, threads):\n    from . import runtime\n",
        "made/convert.py": "from phibuild.worker.protocol import Report",
        "runtime.py": "import phibuild.worker.metrics",
    }
    for name, text in files.items():
        path = tmp_path / "theirs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    code = runner_code(store, {"phibuild": PACKAGE, "theirs": tmp_path / "theirs"})
    worker = "phibuild.worker"
    assert code.reached(["theirs.worker:build"]) == {
        "theirs.worker:build", "theirs.made.convert", worker, f"{worker}.protocol",
    }  # fmt: skip
    assert code.reached(["theirs.worker:load"]) == {
        "theirs.worker:load", "theirs.runtime", worker, f"{worker}.metrics",
        f"{worker}.pairing",
    }  # fmt: skip
