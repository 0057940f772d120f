"""The contract of all backends, over the three shapes of Phi, through the command line: every
precision for every target, built and judged, or refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from conftest import CommandLine
from phibuild.backends.registry import SHIPPED
from support.contract import (
    SHAPES,
    check_backend,
    check_long_windows,
    check_text,
    due_precisions,
)
from support.kinds import some
from support.quickstart import QUICKSTART
from support.support_table import PRECISIONS, PROPERTY, square
from support.targets import (
    NPU,
    RECIPE,
    SHORT_WORDS,
    some_precisions,
    some_targets,
    target_of,
    targets,
    write_recipe,
)


@pytest.fixture(scope="module")
def store(shared_folder: Path) -> str:
    """Return a store for the whole module: the original's logits are computed once a shape."""
    return str(shared_folder / "contract-store")


@pytest.mark.parametrize(
    ("backend", "shape"),
    some(
        product(SHIPPED, SHAPES),
        [
            *product(SHIPPED, ("phi3", "phi4mini")),
            *product(("llamacpp", "ort_genai", "openvino", "pytorch"), ("phi4",)),
        ],
    ),
)
def test_contract(
    backend: str,
    shape: str,
    store: str,
    checkpoint: Callable[..., Path],
    phibuild: CommandLine,
    every: bool,
    record_property: Callable[[str, object], None],
) -> None:
    due = targets(backend) if every else some_targets(backend, shape)
    precisions = PRECISIONS if every else some_precisions(shape)
    source = checkpoint(shape, shards=2 if shape == "phi4" else 1)
    words = write_recipe(phibuild.folder, backend, due, precisions)
    has = tuple(due_precisions(backend) & set(precisions))
    built = check_backend(
        phibuild, source, backend, *words, store=store, recipe=RECIPE, precisions=has
    )
    if shape == "phi3" and backend not in NPU:  # one shape shows it
        check_text(phibuild, built["int8"], store)
    cells = phibuild.report(RECIPE)["cells"]
    assert len(cells) == len(due) * len(precisions)
    for cell in cells:
        row = {"shape": shape, "backend": backend, "target": target_of(backend, cell["device"])}
        row |= {"precision": cell["precision"], "square": square(cell)}
        record_property(PROPERTY, json.dumps(row))


@pytest.mark.parametrize("backend", some(SHIPPED, ["llamacpp", "ort_genai", "pytorch"]))
def test_long_windows_take_no_more_memory_than_planned(
    backend: str, store: str, checkpoint: Callable[..., Path], phibuild: CommandLine
) -> None:
    source = checkpoint("phi3", layers=2, vocab_size=32_064)
    recipe = "quickstart" if backend in QUICKSTART else "every_backend"
    words = (f"backend={backend}", "precision=int4", *(SHORT_WORDS if backend == "qnn" else ()))
    check_long_windows(phibuild, source, *words, store=store, recipe=recipe)
