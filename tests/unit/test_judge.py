"""Judging with runtimes of numpy: what it finds, and when cached decoding is another model."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from phibuild.worker.interface import Worker
from phibuild.worker.judge import judge
from phibuild.worker.protocol import Report, WorkerError
from phibuild.worker.requests import JudgeRequest
from phibuild.worker.stopping import Compared

VOCABULARY, WINDOW = 50, 33


class Model:
    """Logits that depend on all tokens before and on their positions. `noise` moves those of one
    pass, `decoding_noise` those of single tokens; `shift` is a cache that counts positions
    wrong, `most` the tokens that it holds."""

    def __init__(
        self, noise: float = 0.0, decoding_noise: float = 0.0, shift: int = 0, most: int = WINDOW
    ) -> None:
        self.noise, self.decoding_noise, self.shift = noise, decoding_noise, shift
        self.most, self.cache = most, list[int]()

    def _logits(self, ids: list[int], shift: int, noise: float, seed: int) -> NDArray[np.float32]:
        if len(ids) > self.most:
            raise WorkerError(f"it holds {self.most} tokens")
        rows = []
        for end in range(1, len(ids) + 1):
            where = np.random.default_rng([end + shift, *ids[max(0, end - 3) : end]])
            rows.append(where.normal(0, 3, VOCABULARY))
        other = np.random.default_rng(seed).normal(0, 1, (len(ids), VOCABULARY))
        return (np.array(rows) + noise * other).astype(np.float32)

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self.cache = [int(one) for one in ids]
        return self._logits(self.cache, 0, self.noise, 1)

    def extend(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self.cache += [int(one) for one in ids]
        found = self._logits(self.cache, self.shift, self.decoding_noise, len(self.cache))
        return found[-len(ids) :]

    def native(self) -> Model:
        return self


class Judged:
    """A backend's worker module as far as judging needs it: the folder's name is the model."""

    REFERENCE = "logits"
    MODELS: dict[str, Model] = {  # noqa: RUF012
        "exact": Model(),
        "noisy": Model(noise=1.0, decoding_noise=1.0),
        "full at 20": Model(most=20),
        "decoding": Model(noise=0.02, decoding_noise=1.0),
        "shifted": Model(shift=1),
        "noisy and shifted": Model(noise=1.0, decoding_noise=1.0, shift=1),
    }

    def prepare(self) -> None:
        pass

    def load(self, folder: Path, threads: int) -> Model:
        return self.MODELS[folder.name]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return make_reference(tmp_path, 2)


def make_reference(tmp_path: Path, count: int) -> Path:
    windows = np.random.default_rng(5).integers(0, VOCABULARY, (count, WINDOW)).astype(np.int32)
    np.save(tmp_path / "windows.npy", windows)
    logits = [Model().logits(window[:-1].astype(np.int64)) for window in windows]
    np.save(tmp_path / "logits.npy", np.array(logits))
    return tmp_path


def judged(
    reference: Path,
    name: str,
    *,
    adaptive: bool = False,
    limits: dict[str, list[float]] | None = None,
    comparisons: Sequence[Compared] = (),
    tokens: int | None = None,
) -> dict[str, Any]:
    """Return the event about an artifact."""
    stream = io.StringIO()
    request: JudgeRequest = {
        "verb": "judge", "reference": str(reference), "threads": 1, "decode_tokens": 16,
        "items": [{"item": "key", "folder": name, "limits": limits or {},
                   "comparisons": list(comparisons), "tokens": tokens}], "adaptive": adaptive,
    }  # fmt: skip
    judge(cast(Worker, Judged()), request, Report(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    (found,) = [event for event in events if event["event"] in ("item", "failed")]
    return dict(found)


def test_the_original_loses_nothing(reference: Path) -> None:
    quality = judged(reference, "exact")["result"]["quality"]
    assert quality["kl_mean"] == 0
    assert quality["cached_decoding_kl"] == pytest.approx(0, abs=1e-9)
    assert quality["top1"] == 1


def test_decoding_may_differ_as_much_as_the_artifact_has_lost(reference: Path) -> None:
    """As with runtimes that round activations: other noise, the same distance."""
    quality = judged(reference, "noisy")["result"]["quality"]
    assert quality["kl_mean"] > 0.1
    assert quality["cached_decoding_kl"] > 0.1


def test_an_artifact_that_holds_less_than_a_window_is_judged_by_its_first_tokens(
    reference: Path,
) -> None:
    """Decoded step by step, too: 20 of 32 tokens of two windows."""
    result = judged(reference, "full at 20", tokens=20)["result"]
    quality = result["quality"]
    assert (quality["kl_mean"], quality["tokens"]) == (0, 2 * 20)
    assert quality["by_position"][-1]["end"] == 20
    assert quality["cached_decoding_kl"] == pytest.approx(0, abs=1e-9)
    assert "holds 20 tokens" in judged(reference, "full at 20")["error"]


@pytest.mark.parametrize("name", ["shifted", "decoding", "noisy and shifted"])
def test_decoding_that_is_another_model_fails(reference: Path, name: str) -> None:
    error = judged(reference, name)["error"]
    assert error.startswith("cached decoding disagrees with one pass: mean KL ")
    assert "this artifact would generate other text" in error


def test_judging_goes_as_far_as_it_has_to(tmp_path: Path) -> None:
    reference = make_reference(tmp_path, 40)

    def found(**given: Any) -> dict[str, Any]:
        quality: dict[str, Any] = judged(reference, "noisy", **given)["result"]["quality"]
        return quality

    whole = found()
    assert (whole["windows"], whole["stopped"]) == (40, "all")
    precise = found(adaptive=True)
    assert precise["stopped"] == "precision"
    assert 4 <= precise["windows"] < 40
    assert precise["kl_error"] <= 0.05 * precise["kl_mean"]
    far = found(adaptive=True, limits={"kl": [100.0, 200.0], "top1": [0.0]})
    assert (far["windows"], far["stopped"]) in [(4, "gates"), (4, "precision")]
    # A limit that lies where the figure does is decided by nothing but all the windows; only the
    # precision of the figure ends it before.
    near = found(adaptive=True, limits={"kl": [whole["kl_mean"]]})
    assert near["stopped"] == "precision"
    assert near["kl_mean"] == pytest.approx(whole["kl_mean"], abs=4 * near["kl_error"])


def test_a_baseline_is_compared_on_the_windows_that_both_have(tmp_path: Path) -> None:
    """An artifact beside itself differs by nothing but the factor, on every window."""
    reference = make_reference(tmp_path, 40)
    whole = judged(reference, "noisy")["result"]["quality"]
    keys = ("window", "kl", "top1", "reference_nll")
    windows = [{key: one[key] for key in keys} for one in whole["by_window"]]

    def found(factor: float, count: int) -> tuple[int, str]:
        one = {
            "figure": "kl", "factor": factor, "margin": 0.0, "limit": factor * whole["kl_mean"],
            "windows": windows[:count],
        }  # fmt: skip
        comparisons = [cast(Compared, one)]
        quality = judged(reference, "noisy", adaptive=True, comparisons=comparisons)
        return quality["result"]["quality"]["windows"], quality["result"]["quality"]["stopped"]

    # Far below what the precision of the KL would tell from the limit.
    assert found(1.02, 40)[0] < 40
    assert found(1.0, 12) == (12, "precision")
    assert found(1.0, 40) == (40, "precision")


def test_the_original_is_known_at_once(tmp_path: Path) -> None:
    quality = judged(make_reference(tmp_path, 9), "exact", adaptive=True)["result"]["quality"]
    assert (quality["windows"], quality["stopped"]) == (4, "precision")
