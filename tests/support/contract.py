"""What every backend owes its users, checked on the report and the artifacts of a real build."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.quickstart import GATES, devices_of

if TYPE_CHECKING:
    from conftest import CommandLine

SHAPES = ("phi3", "phi4mini", "phi4")
ORDER = ("fp32", "fp16", "int8", "int4")
MISSED = {"qnn": 3.5e5}
"""Bytes by which sizes may be another than planned, where that is not 0.1 MB: what Qualcomm's
compiler adds is known by a fit to larger shapes."""
SHIPPED_GATES = f"gates.kl={{{GATES}}}"
QUICK = ("evaluation.windows=2", "evaluation.window_tokens=96", "evaluation.decode_tokens=8")


def check_backend(
    phibuild: CommandLine,
    source: Path,
    backend: str,
    *words: str,
    store: str,
    recipe: str = "quickstart",
    precisions: tuple[str, ...] | None = None,
) -> dict[str, dict[str, Any]]:
    """Build and judge a checkpoint for all `precisions` of a backend that the recipe has (None: all
    that it has), check what comes of it and return the cells by precision, those of the first
    device that has it. `words` are of the command line."""
    due = precisions or due_precisions(backend)
    words = (f"recipe={recipe}", f"model={source}", f"backend={backend}", SHIPPED_GATES, *words)
    done = phibuild("build", *words, *QUICK, PHIBUILD_STORE=store)
    assert done.returncode == 0, done.stdout + done.stderr
    report = phibuild.report(recipe)
    cells = [cell for cell in report["cells"] if cell["status"] != "skipped"]
    devices = list(dict.fromkeys(cell["device"] for cell in cells))
    found: dict[str, dict[str, Any]] = {}
    for device in devices:
        one = check_device([cell for cell in cells if cell["device"] == device], backend)
        found = {**one, **found}
    assert set(found) == set(due)
    check_steps(report)
    latest = phibuild.folder / "outputs" / recipe / "latest"
    for cell in cells:
        check_folder(latest / cell["artifact"], source)
        assert (latest / "logs" / f"{cell['id']}.log").is_file()
    verified = phibuild("verify", PHIBUILD_STORE=store)
    assert verified.returncode == 0, verified.stdout
    return found


def due_precisions(backend: str) -> set[str]:
    """Return the precisions of a backend of phibuild's own: those that recipes have."""
    return {name for some in devices_of(backend).values() for name in some}


def check_text(phibuild: CommandLine, cell: dict[str, Any], store: str) -> None:
    """Check that a person can try what was built."""
    said = phibuild("run", cell["id"], "def ", "--max-tokens", "8", PHIBUILD_STORE=store)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()


def check_long_windows(
    phibuild: CommandLine, source: Path, *words: str, store: str, recipe: str = "quickstart"
) -> None:
    """Check that logits of a long window over a large vocabulary, which judging takes most memory
    for, take no more of it than planned."""
    windows = (
        "evaluation.windows=1",
        "evaluation.window_tokens=1024",
        "evaluation.decode_tokens=4",
    )
    words = (f"recipe={recipe}", f"model={source}", SHIPPED_GATES, *windows, *words)
    done = phibuild("build", *words, PHIBUILD_STORE=store)
    assert done.returncode == 0, done.stdout + done.stderr
    judging = next(
        step for step in phibuild.report(recipe)["steps"] if step["id"].startswith("measure.")
    )
    assert judging["peak_anonymous_bytes"] <= judging["memory_bytes"]


def check_device(built: list[dict[str, Any]], backend: str) -> dict[str, dict[str, Any]]:
    """Check the cells of one backend and device: built, as large as planned, as true as promised.
    Return them by precision."""
    cells = {cell["precision"]: cell for cell in built}
    assert len(cells) == len(built)
    for cell in built:
        assert cell["backend"] == backend
        assert cell["status"] in ("built", "cached"), cell["reason"]
        missed = abs(cell["estimated_bytes"] - cell["size_bytes"])
        assert missed < max(0.005 * cell["size_bytes"], MISSED.get(backend, 1e5)), cell["id"]
        assert cell["device_memory_bytes"] > cell["size_bytes"] / 2
        speed = cell["speed"]
        assert speed["load_seconds"] > 0
        assert speed["prefill_tokens_per_second"] > 0
        assert speed["decode_tokens_per_second"] > 0
        assert cell["peak_rss_bytes"] > 1 << 20
        assert cell["quality"]["cached_decoding_kl"] < 1e-2
        assert 0 < cell["quality"]["perplexity"] < 1e6
        assert cell["judged"]["how"] in ("native", "substitute")
    found = [cells[precision] for precision in ORDER if precision in cells]
    for finer, coarser in pairwise(found):
        loss = [cell["quality"]["kl_mean"] for cell in (finer, coarser)]
        assert loss[0] < loss[1] or (loss[0] == loss[1] and coarser["precision"] == "fp16")
        assert finer["bits_per_weight"] >= coarser["bits_per_weight"]
    if "fp32" in cells:
        assert cells["fp32"]["quality"]["kl_mean"] < 1e-6
        assert cells["fp32"]["bits_per_weight"] >= 31.9
    if "fp16" in cells:
        assert abs(cells["fp16"]["bits_per_weight"] - 16) < 0.2
    return cells


def check_steps(report: dict[str, Any]) -> None:
    """Check that no step took more memory than planned."""
    for step in report["steps"]:
        if step["peak_anonymous_bytes"] is not None:
            assert step["peak_anonymous_bytes"] <= step["memory_bytes"], step["id"]


def check_folder(folder: Path, source: Path) -> None:
    """Check that an artifact is complete for its user and cannot be damaged by accident."""
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "LICENSE", "manifest.json"} <= names
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "```" in readme
    assert str(source) not in readme
    if not any(name.endswith(".gguf") for name in names):  # GGUF holds its tokenizer inside
        assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o222 == 0, f"{path} is writable"
