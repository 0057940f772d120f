"""The figures of one cell in two runs: what changed, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from phibuild.report.diff.documents import FigureChange, FigureName, SpeedNoise, Verdict
from phibuild.report.diff.student import LEVEL, is_beyond_noise, welch
from phibuild.report.documents import ReportCell
from phibuild.store.documents import Quality, WindowQuality
from phibuild.worker.pairing import common_windows, mean_and_error
from phibuild.worker.stopping import NEGLIGIBLE

LEAST_SPEED_FACTOR = 1.25
"""Speeds that differ by less than this (20 % slower) are noise on the quietest machine."""
UNKNOWN_SPEED_FACTOR = 2.0
"""The same where nothing tells how quiet the machine was."""
LESS_IS_WORSE: frozenset[FigureName] = frozenset({"top1", "prefill", "decode"})


@dataclass(frozen=True)
class _Change:
    """A figure in both runs; `error` of b - a, as far as it is known, and whether that is noise."""

    a: float
    b: float
    error: float | None = None
    windows: int | None = None
    beyond_noise: bool | None = True


def compare_cells(a: ReportCell, b: ReportCell, noise: SpeedNoise) -> list[FigureChange]:
    """Return the figures that a cell has in both runs."""
    found: dict[FigureName, _Change | None] = {
        "size": _exact(a.size_bytes, b.size_bytes),
        "memory": _exact(a.device_memory_bytes, b.device_memory_bytes),
    }
    if a.quality and b.quality:
        found |= _qualities(a.quality, b.quality)
    if a.speed and b.speed:
        one, other = a.speed, b.speed
        found["prefill"] = _speed(
            one.prefill_tokens_per_second, other.prefill_tokens_per_second, noise
        )
        found["decode"] = _speed(
            one.decode_tokens_per_second, other.decode_tokens_per_second, noise
        )
    return [_document(name, change) for name, change in found.items() if change]


def speed_noise(
    pairs: Sequence[tuple[ReportCell, ReportCell]], *, same_machine: bool
) -> SpeedNoise:
    """Return what speeds of two runs differ by without a reason: at least what those of artifacts
    do that are the same in both, run by the same toolchain, and were timed twice."""
    ratios = [
        abs(math.log(there / here))
        for a, b in pairs
        if _is_same(a, b)
        for here, there in _rates(a, b)
        if here > 0 < there
    ]
    timed = [ratio for ratio in ratios if ratio]
    if not timed:
        return SpeedNoise(same_machine=same_machine, factor=UNKNOWN_SPEED_FACTOR, cells=0)
    cells = sum(1 for a, b in pairs if _is_same(a, b) and any(x != y for x, y in _rates(a, b)))
    factor = max(LEAST_SPEED_FACTOR, math.exp(max(timed)) * (1 + 1e-9))
    return SpeedNoise(same_machine=same_machine, factor=factor, cells=cells)


def _is_same(a: ReportCell, b: ReportCell) -> bool:
    """Whether both are the same files, run by the same toolchain."""
    one, other = a.provenance, b.provenance
    return (
        a.artifact_digest is not None
        and a.artifact_digest == b.artifact_digest
        and one is not None
        and other is not None
        and one.toolchain_digest == other.toolchain_digest
    )


def _rates(a: ReportCell, b: ReportCell) -> Iterator[tuple[float, float]]:
    if a.speed and b.speed:
        yield a.speed.prefill_tokens_per_second, b.speed.prefill_tokens_per_second
        yield a.speed.decode_tokens_per_second, b.speed.decode_tokens_per_second


def _exact(a: int | None, b: int | None) -> _Change | None:
    return None if a is None or b is None else _Change(a, b)


def _speed(a: float, b: float, noise: SpeedNoise) -> _Change | None:
    if a <= 0 or b <= 0:
        return None
    beyond = max(a / b, b / a) > noise.factor if noise.same_machine else None
    return _Change(a, b, beyond_noise=beyond)


def _qualities(a: Quality, b: Quality) -> dict[FigureName, _Change | None]:
    here = {window.window: window for window in a.by_window}
    there = {window.window: window for window in b.by_window}
    common = common_windows(
        {number: window.reference_nll for number, window in here.items()},
        {number: window.reference_nll for number, window in there.items()},
    )
    if len(common) >= 2:
        return _paired([here[n] for n in common], [there[n] for n in common], a.tokens)
    kl = _unpaired(a.kl_mean, b.kl_mean, a.kl_error, b.kl_error, a, b)
    top1 = _unpaired(a.top1, b.top1, a.top1_error, b.top1_error, a, b)
    ppl = _Change(a.perplexity, b.perplexity, beyond_noise=None)
    return {"kl": _large_enough(kl), "top1": top1, "ppl": ppl}


def _paired(
    a: Sequence[WindowQuality], b: Sequence[WindowQuality], tokens: int
) -> dict[FigureName, _Change | None]:
    """Compare window by window. Top-1 is a share of some hundred tokens: where windows agree to the
    token by chance, its error is that of one token."""
    count = len(a)
    kl = _pairs([one.kl for one in a], [one.kl for one in b], 0.0)
    token = 1 / max(1, tokens / count)
    top1 = _pairs([one.top1 for one in a], [one.top1 for one in b], token / count**0.5)
    nll = _pairs([one.nll for one in a], [one.nll for one in b], 0.0)
    ppl = _Change(
        math.exp(nll.a),
        math.exp(nll.b),
        None if nll.error is None else math.exp(nll.b) * nll.error,
        count,
        nll.beyond_noise,
    )
    return {"kl": _large_enough(kl), "top1": top1, "ppl": ppl}


def _pairs(a: Sequence[float], b: Sequence[float], least_error: float) -> _Change:
    """Compare two artifacts on the same windows. Pairs tell small differences of what loses alike;
    what differs from window to window has twice the degrees of freedom by both means. Either may
    tell, at half the level each, so that chance is taken for a difference no more often."""
    change, error = mean_and_error([there - here for here, there in zip(a, b, strict=True)])
    error = max(error or 0.0, least_error)
    (here, here_error), (there, there_error) = mean_and_error(a), mean_and_error(b)
    errors = (max(one or 0.0, least_error) for one in (here_error, there_error))
    apart, freedom = welch(next(errors), len(a), next(errors), len(b))
    beyond = is_beyond_noise(change, error, len(a) - 1, LEVEL / 2) or is_beyond_noise(
        change, apart, freedom, LEVEL / 2
    )
    return _Change(here, there, min(error, apart), len(a), beyond)


def _unpaired(
    a: float, b: float, a_error: float | None, b_error: float | None, one: Quality, other: Quality
) -> _Change:
    """Compare two means by both standard errors; nothing is known where one has none."""
    if a_error is None or b_error is None or not one.windows or not other.windows:
        return _Change(a, b, beyond_noise=None)
    error, freedom = welch(a_error, one.windows, b_error, other.windows)
    return _Change(a, b, error, None, is_beyond_noise(b - a, error, freedom))


def _large_enough(kl: _Change) -> _Change:
    """Return a change of KL, which is noise where it is below what runtimes round differently."""
    if abs(kl.b - kl.a) > NEGLIGIBLE:
        return kl
    return _Change(kl.a, kl.b, kl.error, kl.windows, False)


def _document(name: FigureName, one: _Change) -> FigureChange:
    change = one.b - one.a
    verdict: Verdict = "same"
    if change:
        is_worse = (change < 0) == (name in LESS_IS_WORSE)
        verdict = ("worse" if is_worse else "better") if one.beyond_noise else "noise"
    return FigureChange(
        figure=name,
        a=one.a,
        b=one.b,
        change=change,
        relative=change / one.a if one.a else None,
        error=one.error,
        windows=one.windows,
        beyond_noise=one.beyond_noise if change else False,
        verdict=verdict,
    )
