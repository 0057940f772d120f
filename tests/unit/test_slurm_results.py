"""result.json, which a Slurm job leaves for the phibuild that waits for it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from phibuild.execute.runner.usage import Usage
from phibuild.execute.slurm.remote import RESULT, JobItem, JobResult, JobUsage, read_result
from support.documents import some_measure


def result() -> JobResult:
    """What a step leaves that judged one artifact and could not judge another."""
    return JobResult(
        problem=None,
        results={
            "a": JobItem(status="built", measure=some_measure()),
            "b": JobItem(reason="out of memory"),
        },
        usage=JobUsage(**asdict(Usage(3.5, 200 << 20, 0, 1.0))),
        node="node1",
        lock_seen=True,
        started=1.0,
        ended=5,
    )


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    data = result().model_dump(by_alias=True)
    assert data["results"]["a"]["measure"] == some_measure().model_dump(mode="json")
    (tmp_path / RESULT).write_text(json.dumps(data), encoding="utf-8")
    assert read_result(tmp_path) == result()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"results": {}}'])
def test_what_is_no_result_counts_as_not_there(tmp_path: Path, text: str) -> None:
    assert read_result(tmp_path / "no folder") is None
    assert read_result(tmp_path) is None
    (tmp_path / RESULT).write_text(text, encoding="utf-8")
    assert read_result(tmp_path) is None
