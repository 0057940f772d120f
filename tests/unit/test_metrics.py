"""KL, perplexity and top-1 against formulas written out the long way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from phibuild.worker.metrics import Comparison, divergence

Logits = NDArray[np.float32]


def softmax(row: Logits) -> list[float]:
    high = max(float(x) for x in row)
    powers = [math.exp(float(x) - high) for x in row]
    return [x / math.fsum(powers) for x in powers]


def direct_kl(p_row: Logits, q_row: Logits) -> float:
    p, q = softmax(p_row), softmax(q_row)
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def logits(seed: int, tokens: int, vocabulary: int, scale: float = 3.0) -> Logits:
    numbers = np.random.default_rng(seed).standard_normal((tokens, vocabulary))
    return (scale * numbers).astype(np.float32)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 150), st.integers(2, 40), st.floats(0.1, 20))
def test_kl_is_the_formula(seed: int, tokens: int, vocabulary: int, scale: float) -> None:
    p, q = logits(seed, tokens, vocabulary, scale), logits(seed + 1, tokens, vocabulary, scale)
    expected = [direct_kl(a, b) for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(divergence(p, q), expected, rtol=1e-9, atol=1e-12)


def test_a_kl_by_hand() -> None:
    """P = (1/2, 1/2), Q = (3/4, 1/4): KL = ln(2/3)/2 + ln(2)/2 = ln(4/3)/2."""
    p = np.zeros((1, 2), np.float32)
    q = np.array([[math.log(3), 0]], np.float32)
    assert divergence(p, q)[0] == pytest.approx(math.log(4 / 3) / 2, rel=1e-6)


def test_summary_over_windows() -> None:
    reference, artifact = logits(1, 130, 11), logits(2, 130, 11)
    targets = np.random.default_rng(3).integers(0, 11, 130)
    comparison = Comparison()
    for rows in (slice(0, 70), slice(70, 130)):
        comparison.add(reference[rows], artifact[rows], targets[rows])
    kl = [direct_kl(a, b) for a, b in zip(reference, artifact, strict=True)]
    nll = [-math.log(softmax(row)[t]) for row, t in zip(artifact, targets, strict=True)]
    own = [-math.log(softmax(row)[t]) for row, t in zip(reference, targets, strict=True)]
    agree = [a.argmax() == b.argmax() for a, b in zip(reference, artifact, strict=True)]

    def error(values: list[float]) -> float:
        """Of the mean over two windows: half of what they are apart."""
        first, second = values[:70], values[70:]
        return abs(sum(first) / 70 - sum(second) / 60) / 2

    change = [a - b for a, b in zip(nll, own, strict=True)]
    ratio = math.exp(sum(change) / 130)
    assert comparison.summary() == pytest.approx({
        "kl_mean": sum(kl) / 130,
        "kl_error": error(kl),
        "kl_p99": float(np.percentile(kl, 99)),
        "top1": sum(agree) / 130,
        "top1_error": error(agree),
        "perplexity": math.exp(sum(nll) / 130),
        "reference_perplexity": math.exp(sum(own) / 130),
        "perplexity_change": ratio - 1,
        "perplexity_change_error": ratio * error(change),
        "tokens": 130,
        "windows": 2,
    }, rel=1e-9)  # fmt: skip


def test_the_original_differs_from_itself_in_nothing() -> None:
    comparison = Comparison()
    same = logits(5, 100, 50, scale=10)
    comparison.add(same, same.copy(), np.zeros(100, np.int64))
    found = comparison.summary()
    assert (found["kl_mean"], found["kl_p99"], found["top1"]) == (0.0, 0.0, 1.0)
    assert found["perplexity"] == found["reference_perplexity"]


def test_a_shift_of_all_logits_changes_nothing() -> None:
    p = logits(6, 20, 30)
    assert np.abs(divergence(p, p + np.float32(64))).max() < 1e-9


def test_uniform_predictions_have_the_vocabulary_as_perplexity() -> None:
    comparison = Comparison()
    flat = np.zeros((8, 32), np.float32)
    comparison.add(flat, flat, np.arange(8))
    assert comparison.summary()["perplexity"] == pytest.approx(32)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    p, q = logits(1, 4, 5), logits(2, 4, 5)
    q[3, 4] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        Comparison().add(p, q, np.zeros(4, np.int64))


@pytest.mark.parametrize("shape", [(4, 6), (3, 5)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="logits of shape"):
        Comparison().add(logits(1, 4, 5), logits(2, *shape), np.zeros(4, np.int64))


def test_half_precision_logits_are_widened() -> None:
    p, q = logits(1, 70, 9), logits(2, 70, 9)
    half = divergence(p.astype(np.float16), q.astype(np.float16))
    np.testing.assert_allclose(half, divergence(p, q), atol=0.05)


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 12))
def test_windows_and_positions_are_means_of_the_same_divergences(
    windows: int, tokens: int, parts: int
) -> None:
    pairs = [(logits(n, tokens, 7), logits(99 + n, tokens, 7)) for n in range(windows)]
    targets = np.random.default_rng(7).integers(0, 7, (windows, tokens))
    comparison = Comparison()
    for (p, q), aims in zip(pairs, targets, strict=True):
        comparison.add(p, q, aims)
    kl = np.array([[direct_kl(*rows) for rows in zip(p, q, strict=True)] for p, q in pairs])
    found = comparison.by_window()
    np.testing.assert_allclose([one["kl"] for one in found], kl.mean(axis=1), atol=1e-9)
    for one, (p, q), aims in zip(found, pairs, targets, strict=True):
        for name, side in (("nll", q), ("reference_nll", p)):
            lost = [-math.log(softmax(r)[aim]) for r, aim in zip(side, aims, strict=True)]
            assert one[name] == pytest.approx(math.fsum(lost) / tokens)
        same = [np.argmax(a) == np.argmax(b) for a, b in zip(p, q, strict=True)]
        assert one["top1"] == pytest.approx(np.mean(same))
    stretches = comparison.by_position(parts)
    assert [one["start"] for one in stretches[1:]] == [one["end"] for one in stretches[:-1]]
    assert (stretches[0]["start"], stretches[-1]["end"]) == (0, tokens)
    assert len(stretches) == min(parts, tokens)
    for one in stretches:
        rows = kl[:, int(one["start"]) : int(one["end"])]
        assert one["kl"] == pytest.approx(rows.mean(), abs=1e-9)
