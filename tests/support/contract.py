"""What every backend owes its users, checked on the report and the artifacts of a real build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ORDER = ("fp32", "fp16", "int8", "int4")


def check_report(report: dict[str, Any], backend: str) -> None:
    """Check the cells of one backend: built, as large as planned, as true as promised, in
    no more memory than planned."""
    cells = {cell["precision"]: cell for cell in report["cells"]}
    assert set(cells) == set(ORDER)
    for cell in cells.values():
        assert cell["backend"] == backend
        assert cell["status"] in ("built", "cached"), cell["reason"]
        missed = abs(cell["estimated_bytes"] - cell["size_bytes"])
        assert missed < max(0.03 * cell["size_bytes"], 2e6), cell["id"]
        assert cell["device_memory_bytes"] > cell["size_bytes"] / 2
        speed = cell["speed"]
        assert speed["load_seconds"] > 0
        assert speed["prefill_tokens_per_second"] > 0
        assert speed["decode_tokens_per_second"] > 0
        assert cell["peak_rss_bytes"] > 1 << 20
        assert cell["quality"]["cached_decoding_kl"] < 1e-2
        assert 0 < cell["quality"]["perplexity"] < 1e6
    for step in report["steps"]:
        if step["peak_anonymous_bytes"] is not None:
            assert step["peak_anonymous_bytes"] <= step["memory_bytes"], step["id"]
    loss = [cells[precision]["quality"]["kl_mean"] for precision in ORDER]
    assert loss[0] < 1e-6
    assert loss[0] <= loss[1] < loss[2] < loss[3]
    bits = [cells[precision]["bits_per_weight"] for precision in ORDER]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] >= 31.9
    assert abs(bits[1] - 16) < 0.2


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
