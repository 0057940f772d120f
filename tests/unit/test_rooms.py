"""Imports run one way, through the rooms of docs/code.md; what runs in a toolchain is apart."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from phibuild.backends.registry import SHIPPED

PACKAGE = Path(__file__).resolve().parents[2] / "phibuild"
FLOORS = (
    ("__main__",), ("cli",), ("commands",), ("report",), ("execute",), ("planning",),
    ("checkpoints",), ("config", "store", "toolchains", "backends"), ("system", "schema"),
    ("worker", "errors", "units", "streams", ""),
)  # fmt: skip
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
CORE = {"hydra", "omegaconf", "pydantic", "pydantic_core", "yaml", "tabulate", "rich", "psutil",
        "huggingface_hub", "submitit", "numpy", "uv", "jinja2", "markupsafe",
        "vl_convert", "argcomplete"}  # fmt: skip
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."):
        path
    for path in PACKAGE.rglob("*.py")
}  # fmt: skip


def imports(module: str) -> Iterator[str]:
    """Yield what a module imports: phibuild's own modules with a dot before, others' packages."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{one.name}" for one in node.names]
            names = [one if one.removeprefix("phibuild.") in MODULES else str(node.module)
                     for one in inside]  # fmt: skip
        for name in names:
            if name.split(".")[0] == "phibuild":
                yield "." + name.removeprefix("phibuild").lstrip(".")
            elif name.split(".")[0] not in sys.stdlib_module_names:
                yield name.split(".")[0]


GRAPH = {module: set(imports(module)) for module in MODULES}
OWN = {module: {one[1:] for one in found if one[0] == "."} for module, found in GRAPH.items()}


def reached(module: str) -> set[str]:
    found, todo = set[str](), [module]
    while todo:
        if (one := todo.pop()) not in found:
            found.add(one)
            todo += OWN[one]
    return found


# Imported where they are needed: to render a template, which every toolchain can, by those that
# have no other tokenizer, and by those whose artifacts onnxruntime-genai runs.
BESIDES = {
    "worker.chat": {"jinja2"},
    "worker.tokenizer_json": {"tokenizers"},
    "worker.plain_builder": {"tokenizers"},
    "worker.genai_tokenizer": {"onnxruntime_genai"},
}
RUNNERS = {name: reached(f"backends.{name}.worker") for name in SHIPPED}
IN_A_TOOLCHAIN = set[str]().union(*RUNNERS.values())


def test_imports_run_one_way() -> None:
    rooms = [
        (module, other)
        for module, found in OWN.items()
        for other in found
        if module.split(".")[0] != other.split(".")[0]
    ]
    wrong = [
        f"{module} imports {other}"
        for module, other in rooms
        if FLOOR[module.split(".")[0]] >= FLOOR[other.split(".")[0]]
    ]
    assert wrong == []


def test_there_are_no_circles() -> None:
    try:
        TopologicalSorter(OWN).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_runners_import_their_folder_and_worker_alone() -> None:
    for name, modules in RUNNERS.items():
        rooms = (f"backends.{name}", "worker")
        assert [one for one in modules if not one.startswith(rooms)] == []


def test_packages_are_where_they_are_installed() -> None:
    for module, found in GRAPH.items():
        others = {one for one in found if one[0] != "."}
        if module.startswith("worker"):
            assert others <= {"numpy", *BESIDES.get(module, ())}, module
        elif module not in IN_A_TOOLCHAIN:
            assert others <= CORE, module
            assert "hydra" not in others or module in ("config.compose", "config.grammar")
