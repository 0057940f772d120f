"""Every worker has the functions of the protocol: mypy compares their types."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from phibuild.backends.registry import SHIPPED
from phibuild.worker.interface import Worker

PACKAGE = Path(__file__).resolve().parents[2] / "phibuild" / "backends"


@pytest.mark.parametrize("name", SHIPPED)
def test_no_worker_lacks_a_function(name: str) -> None:
    """Workers cannot be imported outside of their toolchains."""
    tree = ast.parse((PACKAGE / name / "worker.py").read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    wanted = {word for word in vars(Worker) if callable(getattr(Worker, word)) and word[0] != "_"}
    assert wanted == {"build", "inspect", "prepare", "load"}
    assert wanted <= functions


def test_every_worker_satisfies_the_protocol(tmp_path: Path) -> None:
    """By mypy, which needs no toolchain."""
    lines = ["from phibuild.worker.interface import Worker"]
    lines += [f"from phibuild.backends.{name} import worker as {name}" for name in SHIPPED]
    lines += [f"WORKERS: tuple[Worker, ...] = ({', '.join(SHIPPED)},)"]
    module = tmp_path / "all_workers.py"
    module.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(module)],
        cwd=PACKAGE.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
