"""The contract of all backends, over the three shapes of Phi, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CommandLine
from phibuild.backends.registry import SHIPPED
from support.contract import check_folder, check_report

SHAPES = ("phi3", "phi4mini", "phi4")
QUICK = ("evaluation.windows=4", "evaluation.window_tokens=96", "evaluation.decode_tokens=16")


@pytest.fixture(scope="module")
def store(shared_folder: Path) -> str:
    """Return a store for the whole module: the original's logits are computed once a shape."""
    return str(shared_folder / "contract-store")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", SHIPPED)
def test_contract(
    backend: str,
    shape: str,
    store: str,
    checkpoint: Callable[..., Path],
    phibuild: CommandLine,
) -> None:
    source = checkpoint(shape, shards=2 if shape == "phi4" else 1)
    # Random weights lose more than the shipped recipe's gates allow; the order is what counts.
    done = phibuild(
        "build", f"model={source}", f"backend={backend}", "gates.kl=2", *QUICK, PHIBUILD_STORE=store
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = phibuild.report("quickstart")
    check_report(report, backend)
    latest = phibuild.folder / "outputs" / "quickstart" / "latest"
    for cell in report["cells"]:
        check_folder(latest / cell["artifact"], source)
        assert (latest / "logs" / f"{cell['id']}.log").is_file()
    verified = phibuild("verify", PHIBUILD_STORE=store)
    assert verified.returncode == 0, verified.stdout
    if shape != "phi3":
        return  # one shape shows that a person can try what was built
    int8 = next(cell for cell in report["cells"] if cell["precision"] == "int8")
    said = phibuild("run", int8["id"], "def ", "--max-tokens", "8", PHIBUILD_STORE=store)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()


@pytest.mark.parametrize("backend", SHIPPED)
def test_long_windows_take_no_more_memory_than_planned(
    backend: str, store: str, checkpoint: Callable[..., Path], phibuild: CommandLine
) -> None:
    """Logits of a long window over a large vocabulary are what judging takes most memory for."""
    source = checkpoint("phi3", layers=2, vocab_size=32_064)
    windows = (
        "evaluation.windows=1",
        "evaluation.window_tokens=2048",
        "evaluation.decode_tokens=4",
    )
    words = (f"model={source}", f"backend={backend}", "precision=int4", "gates.kl=2", *windows)
    done = phibuild("build", *words, PHIBUILD_STORE=store)
    assert done.returncode == 0, done.stdout + done.stderr
    judging = next(
        step for step in phibuild.report("quickstart")["steps"] if step["id"].startswith("measure.")
    )
    assert judging["peak_anonymous_bytes"] <= judging["memory_bytes"]
