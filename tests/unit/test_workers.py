"""Every worker has the functions of the protocol: mypy compares their types."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from phibuild.backends.registry import SHIPPED
from phibuild.worker.interface import Worker

if TYPE_CHECKING:
    from phibuild.backends.llamacpp import worker as llamacpp
    from phibuild.backends.mlx import worker as mlx
    from phibuild.backends.openvino import worker as openvino
    from phibuild.backends.ort_genai import worker as ort_genai
    from phibuild.backends.pytorch import worker as pytorch

    WORKERS: tuple[Worker, ...] = (llamacpp, mlx, openvino, ort_genai, pytorch)

PACKAGE = Path(__file__).resolve().parents[2] / "phibuild" / "backends"


@pytest.mark.parametrize("name", SHIPPED)
def test_no_worker_lacks_a_function(name: str) -> None:
    """Workers cannot be imported outside of their toolchains."""
    tree = ast.parse((PACKAGE / name / "worker.py").read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    wanted = {word for word in vars(Worker) if callable(getattr(Worker, word)) and word[0] != "_"}
    assert wanted == {"build", "inspect", "prepare", "load"}
    assert wanted <= functions
