"""The page of what benchmarks/calibrated_vendors.py has measured."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from calibrated_commands import FORMATS, versions
from measuring import Cost
from phibuild import __version__
from phibuild.backends.calibration import CHUNK_TOKENS, TOKENS

_LOSS = ("format", "by", "MB", "KL", "top-1")
_COST = ("format", "by", "wall s", "CPU s", "CPU ratio", "peak RSS GB", "anonymous GB")


def page(rows: list[dict[str, Any]], judged: str, size: str, machine: str) -> str:
    """Return the page as Markdown: what artifacts of the model `judged` lose, what those of a
    random checkpoint of a size took."""
    order = list(FORMATS)
    rows = sorted(rows, key=lambda row: order.index(row["format"]))
    loss = [_loss(row) for row in rows if row["model"] == judged]
    cost = [line for row in rows if row["model"] == size for line in _cost(row, rows)]
    return "\n".join(
        [
            "# Calibrated int4, phibuild's and the vendors'\n",
            "Made by `python benchmarks/calibrated_vendors.py WORK --write "
            f"docs/calibrated_vendors.md`: phibuild {__version__}, {versions()}, in environments "
            f"of their own ({machine}). {TOKENS:,} calibration tokens in chunks of {CHUNK_TOKENS}, "
            "the same for all; llama-imatrix takes that many from the beginning of the text. "
            "Vendors' defaults but for the grid and the tokens.\n",
            f"## What is lost\n{judged}: each artifact in the same runtime against the fp32 "
            "original over the held-out text; KL in nats, with its standard error over windows. MB "
            "are those of the file of weights.\n",
            _table(loss, _LOSS, 2),
            "\nScale estimation of nncf sees one mean of each chunk, not its tokens: 32 of them, "
            "too few for the 64 weights of a group, and more where chunks are shorter.",
            "\n## What it takes\nA random checkpoint of "
            f"{size.upper()}: whole commands, from the checkpoint to the artifact. phibuild's has "
            "an empty store and also hashes the checkpoint, checks and seals what it wrote; its "
            "peak is that of its witness, Transformers' own loader (source.md). The CPU ratio is "
            "to phibuild's first line of the format. The machine had other work: wall seconds say "
            "less than the CPU's.\n",
            _table(cost, _COST, 2),
            "",
        ]
    )


def _table(rows: list[list[str]], headers: tuple[str, ...], texts: int) -> str:
    align = ["left"] * texts + ["right"] * (len(headers) - texts)
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def _loss(row: dict[str, Any]) -> list[str]:
    head, quality = [row["format"], row["by"]], row["quality"]
    if not quality:
        return [*head, "", f"failed: {row.get('failed') or row['cost']['failed']}", ""]
    return [
        *head,
        f"{row['bytes'] / 1e6:.2f}",
        f"{quality['kl_mean']:.4f} ± {quality['kl_error']:.4f}",
        f"{quality['top1']:.3f}",
    ]


def _cost(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of a row: its whole command, and phibuild's calibration by itself."""
    first = next(one for one in rows if all(one[key] == row[key] for key in ("model", "format")))
    base, cost = first["cost"]["cpu_seconds"], Cost(**row["cost"])
    by = f"{row['by']}; failed: {cost.failed}" if cost.failed else row["by"]
    rss = f"{cost.peak_rss_bytes / 1e9:.2f}"
    whole = (cost.wall_seconds, cost.cpu_seconds, rss, cost.peak_anonymous_bytes)
    steps = [
        (step["seconds"], step["cpu_seconds"], "", step["peak_anonymous_bytes"] or 0)
        for step in row["steps"]
    ]
    return [
        [
            row["format"],
            label,
            f"{wall:,.0f}",
            f"{cpu:,.0f}",
            f"{cpu / base:.2f}",
            rss,
            f"{anonymous / 1e9:.2f}",
        ]
        for label, (wall, cpu, rss, anonymous) in zip(
            [by, *["of it the calibration"] * len(steps)], [whole, *steps], strict=True
        )
    ]
