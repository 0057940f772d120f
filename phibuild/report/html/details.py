"""All that a report says of a cell, for the page's panel: headings with lines of label and text."""

from __future__ import annotations

from collections.abc import Iterator

from phibuild.report.choice import gate_text
from phibuild.report.documents import ReportCell
from phibuild.report.html import texts
from phibuild.store.documents import Quality
from phibuild.units import format_decimal
from phibuild.worker.json_values import as_text

Part = tuple[str, list[tuple[str, str]]]
_STOPPED = {
    "gates": "every gate was decided",
    "precision": "the loss was known to 5 %",
    "all": "there were no more",
}


def details(cell: ReportCell) -> list[Part]:
    """Return the parts that there are."""
    return [
        (title, [(label, texts.clean(text)) for label, text in lines])
        for title, lines in _parts(cell)
        if lines
    ]


def _parts(cell: ReportCell) -> Iterator[Part]:
    if cell.reason:
        yield ("Reason", [("", cell.reason)])
    yield ("Gates", [(_sign(gate.passed), gate_text(gate)) for gate in cell.gates
                     if gate.name != "fits_budget"])  # fmt: skip
    yield ("Loss", list(_loss(cell.quality)) if cell.quality else [])
    yield ("Size and memory", list(_size(cell)))
    yield ("Speed and cost, on the machine that built", list(_cost(cell)))
    yield ("Options", [(key, as_text(value)) for key, value in (cell.options or {}).items()])
    judged = cell.judged
    notes = [("", note) for note in cell.notes]
    if judged and judged.note and not any(judged.note in note for note in cell.notes):
        notes.append(("judged", f"{judged.how}: {judged.note}"))
    yield ("Notes", notes)
    yield ("Origin", list(_origin(cell)))


def _sign(passed: bool | None) -> str:
    return {True: "kept", False: "missed", None: "not measured"}[passed]


def _loss(quality: Quality) -> Iterator[tuple[str, str]]:
    yield ("KL, nats", texts.with_error(quality.kl_mean, quality.kl_error))
    yield ("KL, 99th percentile", texts.small(quality.kl_p99))
    error = f" ± {quality.top1_error:.3f}" if quality.top1_error is not None else ""
    yield ("top-1", f"{quality.top1:.3f}{error}")
    original = f"the original's {quality.reference_perplexity:.3f}"
    yield ("perplexity", f"{quality.perplexity:.3f}; {original}")
    where = f"{quality.tokens:,} positions"
    if quality.windows:
        where += f" of {quality.windows} windows"
    if quality.stopped:
        where += f", until {_STOPPED[quality.stopped]}"
    yield ("over", where)
    yield ("decoding step by step", f"KL {texts.small(quality.cached_decoding_kl)} from one pass")
    if quality.native_kl is not None:
        yield ("its own kernels", f"KL {texts.small(quality.native_kl)} from what was judged")
    if quality.runtime_kl is not None:
        yield ("against the ordinary original", f"KL {texts.small(quality.runtime_kl)}")


def _size(cell: ReportCell) -> Iterator[tuple[str, str]]:
    if cell.size_bytes is not None:
        yield ("size", f"{format_decimal(cell.size_bytes)} ({cell.size_bytes:,} bytes)")
    if cell.estimated_bytes is not None:
        off = (
            f"; it became {texts.change(cell.size_bytes / cell.estimated_bytes)}"
            if cell.size_bytes is not None and cell.estimated_bytes
            else ""
        )
        yield ("the plan said", format_decimal(cell.estimated_bytes) + off)
    if cell.ratio_to_source is not None:
        yield ("of the source", f"{100 * cell.ratio_to_source:.1f} %")
    if cell.bits_per_weight is not None:
        yield ("bits per weight", f"{cell.bits_per_weight:.2f}")
    if cell.device_memory_bytes is not None:
        yield ("on the device", f"{texts.memory(cell)} that it may take")


def _cost(cell: ReportCell) -> Iterator[tuple[str, str]]:
    if cell.speed:
        yield ("prefill", f"{texts.rate(cell.speed.prefill_tokens_per_second)} tokens/s")
        yield ("decoding", f"{texts.rate(cell.speed.decode_tokens_per_second)} tokens/s")
        yield ("loading", texts.seconds(cell.speed.load_seconds))
        yield ("memory while it judged", format_decimal(cell.speed.peak_rss_bytes))
    if cell.build_seconds is not None:
        yield ("building", texts.seconds(cell.build_seconds))
    if cell.peak_rss_bytes is not None:
        yield ("memory while it was built", format_decimal(cell.peak_rss_bytes))


def _origin(cell: ReportCell) -> Iterator[tuple[str, str]]:
    yield ("format", cell.format)
    yield ("status", cell.status)
    if cell.artifact:
        yield ("folder", cell.artifact)
    if cell.artifact_digest:
        yield ("artifact", cell.artifact_digest)
    if one := cell.provenance:
        yield ("store key", one.key)
        yield ("source", one.source_digest)
        if one.activations:
            yield ("activations", one.activations)
        yield ("builder", one.builder_digest)
        yield ("toolchain", one.toolchain_digest)
        yield ("phibuild", one.phibuild_version)
