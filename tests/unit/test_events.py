"""Events of runners: what is one, and what results must hold."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phibuild.execute.runner.events import (
    BadResult,
    BuildResult,
    NoEvent,
    Stage,
    parse_event,
    read_result,
)
from phibuild.store.documents import Measure

BUILT = {
    "types": {"Q4_K": 100}, "weight_bytes": 56, "seconds": 1.5, "peak_rss_bytes": 1 << 20,
    "tokenizer": {
        "probes": 90,
        "differences": [
            {"kind": "BOS", "text": "a", "expected": [1, 5], "found": [5], "why": "it adds none"}
        ],
    },
}  # fmt: skip
JUDGED: dict[str, Any] = {
    "quality": {"kl_mean": 0.1, "kl_p99": 1.0, "top1": 0.9, "perplexity": 8.0, "tokens": 510,
                "reference_perplexity": 7.9, "cached_decoding_kl": 0.0},
    "speed": {"load_seconds": 1.0, "prefill_tokens_per_second": 10.0,
              "decode_tokens_per_second": 2.0},
    "peak_rss_bytes": 1 << 20, "seconds": 3.0,
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_an_event() -> None:
    found = parse_event(b'{"event": "stage", "stage": "reading", "fraction": 1, "item": null}')
    assert found == Stage(event="stage", stage="reading", fraction=1.0, item=None)


@given(st.binary() | JSON.map(lambda data: json.dumps(data).encode()))
def test_whatever_a_line_holds_it_is_an_event_or_none(line: bytes) -> None:
    with contextlib.suppress(NoEvent):
        parse_event(line)


def test_results() -> None:
    built = read_result(BUILT, BuildResult)
    assert (built.seconds, built.own_seconds, built.shared_seconds) == (1.5, None, None)
    assert built.tokenizer.differences[0].expected == [1, 5]
    assert read_result(JUDGED, Measure).quality.tokens == 510


def test_what_a_runner_says_besides_is_left_out() -> None:
    more = {**JUDGED, "speed": {**JUDGED["speed"], "warm": True}, "noise": 1}
    assert read_result(more, Measure) == read_result(JUDGED, Measure)


def test_own_and_shared_work_make_the_seconds() -> None:
    parts = {"own_seconds": 0.5, "shared_seconds": 1.0}
    built = read_result({**BUILT, **parts}, BuildResult)
    assert (built.own_seconds, built.shared_seconds) == (0.5, 1.0)
    for wrong in ({"own_seconds": 1.5}, {**parts, "own_seconds": 0.6}, {**parts, "seconds": 1}):
        with pytest.raises(BadResult, match="seconds"):
            read_result({**BUILT, **wrong}, BuildResult)
    with pytest.raises(BadResult, match="own_seconds: "):
        read_result({**BUILT, "own_seconds": -0.5, "shared_seconds": 2.0}, BuildResult)


@pytest.mark.parametrize(
    ("key", "value"),
    [("types", {}), ("types", {"Q4_K": "1"}), ("types", None), ("weight_bytes", 0),
     ("weight_bytes", 1.5), ("seconds", float("nan")), ("peak_rss_bytes", -1),
     ("tokenizer", None), ("tokenizer", {"probes": 0, "differences": []})],
)  # fmt: skip
def test_a_build_that_says_nonsense(key: str, value: object) -> None:
    with pytest.raises(BadResult, match=f"^the runner's result is not what it should be: {key}"):
        read_result({**BUILT, key: value}, BuildResult)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", None])
@pytest.mark.parametrize("key", ["kl_mean", "perplexity", "cached_decoding_kl"])
def test_a_judgement_that_is_no_number(key: str, value: object) -> None:
    """Such a report could not even be written as JSON."""
    result: dict[str, Any] = copy.deepcopy(JUDGED)
    result["quality"][key] = value
    with pytest.raises(BadResult, match=rf"quality\.{key}: "):
        read_result(result, Measure)
