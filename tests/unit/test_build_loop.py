"""The one build loop: every row once, one output's failure its own, and who pays for what."""

from __future__ import annotations

import gc
import io
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phibuild.worker.building import Build, Check, build_all
from phibuild.worker.costs import Costs, Output
from phibuild.worker.passes import Chunk, Steps, find_tensors, stream
from phibuild.worker.protocol import Contents, Report, WorkerError
from phibuild.worker.requests import BuildItem, BuildRequest
from phibuild.worker.safetensors import TensorInfo, read_checkpoint
from phibuild.worker.tokenizer_check import TokenizerCheck
from support.checkpoints import architecture

TYPES = ("BF16", "F16", "F32")
QKV = "model.layers.0.self_attn.qkv_proj.weight"


def item(name: str, folder: Path) -> BuildItem:
    variant = {"backend": "x", "precision": "int4", "name": name, "format": "f", "options": {}}
    return {"item": name, "variant": variant, "output": str(folder)}  # type: ignore[typeddict-item]


def quiet() -> Report:
    return Report(io.StringIO())


@pytest.fixture
def source(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("phi3", layers=2, shards=2)


@pytest.fixture
def tensors(source: Path) -> list[TensorInfo]:
    return find_tensors(source, architecture(source).tensors(), TYPES)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "steps", [Steps(1 << 12), Steps(1 << 15, 32, 4), Steps(1, 2), Steps(1 << 30)]
)
def test_every_byte_comes_once(tensors: list[TensorInfo], steps: Steps, threads: int) -> None:
    found: dict[str, dict[int, bytes]] = {tensor.name: {} for tensor in tensors}
    lock = threading.Lock()

    def store(chunk: Chunk) -> None:
        whole = chunk.first + chunk.rows == chunk.tensor.shape[0]
        assert len(chunk.tensor.shape) == 1 or chunk.rows % steps.multiple == 0 or whole
        with lock:
            found[chunk.tensor.name][chunk.first] = bytes(chunk.data)

    stream(tensors, steps, lambda: store, lambda: True, threads, quiet())
    for tensor in tensors:
        data = tensor.path.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
        assert b"".join(part for _, part in sorted(found[tensor.name].items())) == data


@given(st.integers(1, 1 << 20), st.integers(1, 64), st.integers(1, 5000))
def test_chunks_are_whole_multiples_and_no_larger_than_they_must(
    weights: int, multiple: int, width: int
) -> None:
    rows = Steps(weights, multiple).rows(width)
    assert rows % multiple == 0
    assert rows == multiple or rows * width <= weights
    assert (rows + multiple) * width > weights


@pytest.mark.parametrize(
    ("shape", "types", "what"),
    [
        ((768, 256), ("F32",), f"tensor {QKV} is BF16"),
        ((768, 257), TYPES, f"tensor {QKV} is BF16 .768, 256. in the checkpoint; this model needs"),
    ],
)
def test_tensors_of_another_kind_are_refused(
    source: Path, shape: tuple[int, ...], types: tuple[str, ...], what: str
) -> None:
    with pytest.raises(WorkerError, match=what):
        find_tensors(source, [(QKV, shape)], types)
    with pytest.raises(WorkerError, match="the checkpoint has no tensor lm_tail"):
        find_tensors(source, [("lm_tail", (1,))], TYPES)


def test_a_file_that_ends_early_ends_the_pass(source: Path, tmp_path: Path) -> None:
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = list(read_checkpoint(tmp_path).values())
    last = tensors[-1]
    with last.path.open("r+b") as file:
        file.truncate(last.offset + last.nbytes - 1)
    with pytest.raises(WorkerError, match=f"{last.path.name} ends within {last.name}"):
        stream(tensors, Steps(1 << 12), lambda: lambda chunk: None, lambda: True, 2, quiet())


def test_it_ends_where_nothing_is_left_to_be_written(tensors: list[TensorInfo]) -> None:
    seen: list[Chunk] = []
    stream(tensors, Steps(1 << 10), lambda: seen.append, lambda: len(seen) < 3, 1, quiet())
    assert len(seen) == 3


def busy(seconds: float) -> None:
    begun = time.thread_time()
    while time.thread_time() - begun < seconds:
        pass


def test_work_is_charged_to_whose_it_is(tmp_path: Path) -> None:
    one, two, three = (Output(item(name, tmp_path)) for name in ("one", "two", "three"))
    costs = Costs()
    with costs.alone(one):
        busy(0.2)
    with costs.of(two, three):
        busy(0.1)
    busy(0.1)
    costs.apart(0.04)
    assert one.seconds == pytest.approx(0.2, abs=0.02)
    assert two.seconds == three.seconds == pytest.approx(0.05, abs=0.01)
    assert costs.common() == pytest.approx(0.06, abs=0.03)


def test_the_first_error_is_the_outputs_alone(tmp_path: Path) -> None:
    one, two = (Output(item(name, tmp_path)) for name in ("one", "two"))
    costs = Costs()
    for error in (WorkerError("first"), ValueError("second")):
        with costs.of(one):
            raise error
    assert (str(one.error), two.error) == ("first", None)


@dataclass
class Builder:
    """Writes a file of the rows it saw; `wrong` says where which item fails."""

    wrong: dict[str, str] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    one_by_one: bool = False

    def _maybe(self, place: str, name: str = "") -> None:
        if self.wrong.get(place) == name:
            if place == "close":
                raise OSError(28, "No space left on device", "/x/model.bin")
            raise WorkerError(f"{place} {name}".strip())

    def prepare(self, build: Build[Path]) -> None:
        self._maybe("prepare")

    def open(self, build: Build[Path], output: Output) -> Path:
        self._maybe("open", output.item)
        return output.folder / "file"

    def convert(self, build: Build[Path], outputs: Sequence[tuple[Output, Path]]) -> None:
        self._maybe("convert")
        for output, path in outputs:
            with build.costs.alone(output):
                self._maybe("write", output.item)
                path.write_text(output.item, encoding="utf-8")
                busy(0.2 if output.item == "slow" else 0.05)
            if self.one_by_one:
                build.complete(output)
        self._maybe("late")

    def close(self, kept: Path) -> None:
        self._maybe("close", kept.parent.name)

    def checker(self) -> Check:
        busy(0.1)

        def check(folder: Path, facts: object) -> TokenizerCheck:
            self.checks.append(folder.name)
            self._maybe("check", folder.name)
            return {"probes": 1, "differences": []}

        return check

    def inspect(self, folder: Path) -> Contents:
        self._maybe("inspect", folder.name)
        return {"types": {"F32": 1}, "weight_bytes": len((folder / "file").read_text())}


NAMES = ("quick", "slow", "third")


def built(
    source: Path, facts: Path, folder: Path, builder: Builder
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the events about items by item, and the items in their order."""
    items = []
    for name in NAMES:
        (folder / name).mkdir()
        items.append(item(name, folder / name))
    request: BuildRequest = {
        "verb": "build", "source": str(source), "facts": str(facts),
        "architecture": architecture(source).to_json(), "model": "m", "threads": 2, "items": items,
    }  # fmt: skip
    stream_ = io.StringIO()
    build_all(request, Report(stream_), lambda: builder)
    events = [json.loads(line) for line in stream_.getvalue().splitlines()]
    told = [event for event in events if event["event"] in ("item", "failed")]
    assert sorted(event["item"] for event in told) == sorted(NAMES)
    return {event["item"]: event for event in told}, [event["item"] for event in told]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    document: dict[str, Any] = {
        "probes": [],
        "start": [],
        "end": [],
        "stops": [],
        "special": {},
        "templates": {},
    }
    folder = tmp_path / "facts"
    folder.mkdir()
    (folder / "probes.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_each_is_charged_its_own_and_an_equal_share(
    source: Path, facts: Path, tmp_path: Path
) -> None:
    builder = Builder()
    found, _ = built(source, facts, tmp_path, builder)
    results = {name: found[name]["result"] for name in NAMES}
    assert builder.checks == ["quick"]  # all have the same
    for result in results.values():
        assert result["seconds"] == result["own_seconds"] + result["shared_seconds"]
        assert result["shared_seconds"] < 0.05  # importing what checks is no one's
        assert result["tokenizer"] == {"probes": 1, "differences": []}
    assert results["slow"]["own_seconds"] == pytest.approx(0.2, abs=0.05)
    assert results["third"]["own_seconds"] == pytest.approx(0.05, abs=0.03)


# The tokenizer of the first is checked for all.
@pytest.mark.parametrize(
    ("place", "name"),
    [("check", "quick"), *product(["open", "write", "close", "inspect"], NAMES)],
)
def test_what_fails_one_is_its_own(
    place: str, name: str, source: Path, facts: Path, tmp_path: Path
) -> None:
    found, _ = built(source, facts, tmp_path, Builder({place: name}))
    assert [one for one in NAMES if found[one]["event"] == "failed"] == [name]
    assert [one for one in NAMES if not list((tmp_path / one).iterdir())] == [name]
    wanted = "model.bin: No space left on device" if place == "close" else f"{place} {name}"
    assert found[name]["error"] == wanted


@pytest.mark.parametrize("place", ["prepare", "convert"])
def test_what_fails_the_checkpoint_fails_all(
    place: str, source: Path, facts: Path, tmp_path: Path
) -> None:
    found, _ = built(source, facts, tmp_path, Builder({place: ""}))
    assert {event["error"] for event in found.values()} == {place}


def test_facts_that_are_not_there_fail_all(source: Path, tmp_path: Path) -> None:
    found, _ = built(source, tmp_path / "none", tmp_path, Builder())
    assert {event["event"] for event in found.values()} == {"failed"}


def test_those_that_are_made_one_by_one_are_told_as_they_come(
    source: Path, facts: Path, tmp_path: Path
) -> None:
    """What comes after them can take them back no more."""
    found, order = built(source, facts, tmp_path, Builder({"late": ""}, one_by_one=True))
    assert order == list(NAMES)
    assert {event["event"] for event in found.values()} == {"item"}


def test_a_backend_that_cannot_be_loaded_fails_all(
    source: Path, facts: Path, tmp_path: Path
) -> None:
    def load() -> Builder:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    stream_ = io.StringIO()
    request: BuildRequest = {
        "verb": "build", "source": str(source), "facts": str(facts), "architecture": {},
        "model": "m", "threads": 1, "items": [item("one", tmp_path), item("two", tmp_path)],
    }  # fmt: skip
    build_all(request, Report(stream_), load)
    events = [json.loads(line) for line in stream_.getvalue().splitlines()]
    assert [event["item"] for event in events] == ["one", "two"]
    assert all("libgomp" in event["error"] for event in events)


@pytest.mark.parametrize("first", [True, False])
def test_the_collector_leaves_alone_what_is_loaded_before_work_begins(first: bool) -> None:
    report = Report(io.StringIO())
    gc.unfreeze()
    try:
        with report.loading(first=first):
            assert not gc.isenabled()
        assert gc.isenabled()
        assert (gc.get_freeze_count() > 0) is first
    finally:
        gc.unfreeze()
