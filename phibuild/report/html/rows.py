"""The cells of a report as rows: what the page's tables, plots and filters are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from phibuild.report.choice import Choice
from phibuild.report.documents import Report, ReportCell
from phibuild.report.html import texts
from phibuild.report.html.verdicts import VERDICTS, Verdict, verdict
from phibuild.units import format_decimal

JsonRow = dict[str, object]


class Column(NamedTuple):
    """A column of the table of cells: the field of a row that it sorts by, its title, what that
    means, and whether it holds numbers."""

    key: str
    title: str
    hint: str = ""
    numeric: bool = False


COLUMNS = (
    Column("device", "Device"),
    Column("backend", "Backend"),
    Column("name", "Variant", "precision, and what users of the backend call it"),
    Column("verdict", "Verdict"),
    Column("size", "Size", "of the artifact's files", True),
    Column("ratio", "Of source", "size by that of the source's weights", True),
    Column("bits", "Bits/w", "bits of all weights by their number", True),
    Column("kl", "KL", "mean divergence from the original, nats, ± its standard error", True),
    Column("top1", "Top-1", "share of positions where both prefer the same token", True),
    Column("perplexity", "Perplexity", "over the held-out text", True),
    Column("prefill", "Prefill t/s", "tokens per second on the machine that built", True),
    Column("decode", "Decode t/s", "tokens per second on the machine that built", True),
    Column("memory", "On the device", "with KV cache and buffers, of the budget", True),
)
MODEL = Column("model", "Model")


@dataclass(frozen=True)
class Row:
    """A cell. Bytes, nats, tokens per second; None where nothing was made or judged. `first`: no
    cell before it has the same artifact; `t`: what stands in the columns; `pos`: the loss by
    position, from the positions `at`, of a first one."""

    id: str
    model: str
    device: str
    backend: str
    precision: str
    name: str
    verdict: Verdict
    why: str
    t: tuple[str, ...]
    size: int | None = None
    plan: int | None = None
    ratio: float | None = None
    bits: float | None = None
    kl: float | None = None
    err: float | None = None
    top1: float | None = None
    perplexity: float | None = None
    prefill: float | None = None
    decode: float | None = None
    memory: int | None = None
    first: bool | None = None
    pareto: bool | None = None
    pos: tuple[float, ...] | None = None
    at: tuple[int, ...] | None = None

    def to_json(self) -> JsonRow:
        """Return what is known, figures with six digits."""
        return {
            key: _short(value)
            for key, value in vars(self).items()
            if value is not None and value is not False
        }


def columns(report: Report) -> tuple[Column, ...]:
    """Return the columns of a report's table; models are told apart where there are several."""
    return (MODEL, *COLUMNS) if len(report.models) > 1 else COLUMNS


def rows(report: Report, chosen: Sequence[Choice]) -> list[Row]:
    """Return a row for each cell, in their order; `chosen` are the report's choices."""
    shipped = {choice.ship.id for choice in chosen if choice.ship}
    why = {cell.id: text for choice in chosen for cell, text in choice.others}
    why |= {choice.ship.id: choice.why for choice in chosen if choice.ship}
    best = _pareto(report.cells)
    several = len(report.models) > 1
    seen: set[str] = set()
    found = []
    for cell in report.cells:
        found.append(_row(cell, verdict(cell, shipped), why[cell.id], cell.id in best, several,
                          cell.artifact_digest not in seen))  # fmt: skip
        seen |= {cell.artifact_digest} if cell.artifact_digest else set()
    return found


def _row(
    cell: ReportCell, word: Verdict, why: str, pareto: bool, several: bool, first: bool
) -> Row:
    quality, speed = cell.quality, cell.speed
    name = texts.clean(variant_name(cell))
    stretches = quality.by_position if quality and first else []
    return Row(
        id=texts.clean(cell.id),
        model=texts.clean(cell.model),
        device=texts.clean(cell.device),
        backend=texts.clean(cell.backend),
        precision=cell.precision,
        name=name,
        verdict=word,
        why=texts.clean(why),
        t=tuple(
            texts.clean(text) for text in (*((cell.model,) if several else ()), *_texts(cell, name))
        ),
        size=cell.size_bytes,
        plan=cell.estimated_bytes,
        ratio=cell.ratio_to_source,
        bits=cell.bits_per_weight,
        kl=quality.kl_mean if quality else None,
        err=quality.kl_error if quality else None,
        top1=quality.top1 if quality else None,
        perplexity=quality.perplexity if quality else None,
        prefill=speed.prefill_tokens_per_second if speed else None,
        decode=speed.decode_tokens_per_second if speed else None,
        memory=cell.device_memory_bytes,
        first=bool(first and cell.artifact_digest),
        pareto=pareto,
        pos=tuple(stretch.kl for stretch in stretches) or None,
        at=tuple(stretch.start for stretch in stretches) or None,
    )


def variant_name(cell: ReportCell) -> str:
    """Return what a cell is called within its device and backend: int4 Q4_K_M, int4-asym-g64."""
    if cell.variant is None or cell.variant.startswith(cell.precision):
        return cell.variant or cell.precision
    return f"{cell.precision} {cell.variant}"


def _texts(cell: ReportCell, name: str) -> tuple[str, ...]:
    """Return what stands in the columns, but for the verdict, which has a sign."""
    quality, speed = cell.quality, cell.speed
    return (
        cell.device,
        cell.backend,
        name,
        "",
        format_decimal(cell.size_bytes),
        texts.number(cell.ratio_to_source, 2),
        texts.number(cell.bits_per_weight, 2),
        texts.loss(quality),
        texts.number(quality.top1 if quality else None, 3),
        texts.number(quality.perplexity if quality else None, 2),
        texts.rate(speed.prefill_tokens_per_second if speed else None),
        texts.rate(speed.decode_tokens_per_second if speed else None),
        texts.memory(cell),
    )


def _pareto(cells: Sequence[ReportCell]) -> set[str]:
    """Return the ids of the cells that no other of their model and device beats in size and loss:
    none is as small that loses less."""
    places: dict[tuple[str, str], list[tuple[int, float, str]]] = {}
    for cell in cells:
        if cell.quality and cell.size_bytes is not None:
            figures = (cell.size_bytes, cell.quality.kl_mean, cell.id)
            places.setdefault((cell.model, cell.device), []).append(figures)
    found = set()
    for group in places.values():
        least = float("inf")
        for _, kl, name in sorted(group):
            if kl < least:
                least = kl
                found.add(name)
    return found


def _short(value: object) -> object:
    """Return a figure with the digits that a page needs."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case tuple():
            return [_short(one) for one in value]
    return value


def verdict_counts(found: Sequence[Row]) -> list[tuple[Verdict, str, int]]:
    """Return the verdicts that there are: name, words, number of cells."""
    counts = {word: sum(row.verdict == word for row in found) for word in VERDICTS}
    return [(word, VERDICTS[word], count) for word, count in counts.items() if count]
