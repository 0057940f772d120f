"""Keys: which of what is known of a checkpoint, and which settings, change which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phibuild.checkpoints.facts import Checkpoint, load_checkpoint
from phibuild.config.catalogue import DATA
from phibuild.planning.keys import Keys, measure_key
from phibuild.schema import Calibration, Evaluation, Variant
from phibuild.store.store import Store
from phibuild.worker.adapter_merge import Adapter
from phibuild.worker.unfused import Fusing


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


@pytest.fixture
def checkpoint() -> Checkpoint:
    return load_checkpoint(DATA / "phi3-tiny-trained", "tiny", "phi3-tiny-trained")


VARIANTS = {
    "llamacpp": Variant(
        backend="llamacpp", precision="int4", name="Q4_0", format="GGUF", options={"type": "Q4_0"}
    ),
    "pytorch": Variant(
        backend="pytorch", precision="fp16", name="fp16", format="safetensors",
        options={"dtype": "float16"},
    ),
}  # fmt: skip
TEXT = Calibration(Path("text.txt"), "0" * 64, 512)


def all_keys(
    checkpoint: Checkpoint,
    store: Store,
    *,
    digest: str = "1" * 64,
    evaluation: Evaluation | None = None,
    text: str = "2" * 64,
    calibration: Calibration = TEXT,
    options: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Return every key of what is made of a checkpoint: the llamacpp artifact needs activations."""
    evaluation = evaluation or Evaluation()
    keys = Keys(digest, checkpoint, store)
    found = {
        "source": keys.source,
        "reference": keys.reference(evaluation, text),
        "activations": keys.calibrated(calibration),
    }
    for name, variant in VARIANTS.items():
        inputs = found["activations"] if name == "llamacpp" else None
        chosen = variant.model_copy(update={"options": options or variant.options})
        found[name] = keys.artifact(chosen, inputs)
        found[f"{name} judged"] = measure_key(
            found[name], found["reference"], name, evaluation, {}, store
        )
    assert len(set(found.values())) == len(found)
    return found


JUDGED = {"llamacpp judged", "pytorch judged"}
ARTIFACTS = {"llamacpp", "pytorch", *JUDGED}
ALL = {"source", "reference", "activations", *ARTIFACTS}
ADAPTER = Adapter(Path("/somewhere"), {}, {}, {})


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"commit": "f" * 40, "pinned": False, "notes": ("a note",), "reference": "other"}, set()),
        ({"weight_bytes": 1}, set()),
        ({"name": "other"}, ARTIFACTS),
        ({"license": "another"}, ARTIFACTS),
        ({"config": {"a": 1, "b": 2}}, ALL),
        ({"fusing": Fusing({"a": ("b", "c")})}, ALL),
        ({"adapter": ADAPTER}, ALL),
    ],
)
def test_what_is_known_of_a_checkpoint_changes_the_keys_that_depend_on_it(
    change: dict[str, Any], wanted: set[str], checkpoint: Checkpoint, store: Store
) -> None:
    one, other = all_keys(checkpoint, store), all_keys(replace(checkpoint, **change), store)
    assert {name for name in one if one[name] != other[name]} == wanted


def test_the_architecture_and_the_files_change_every_key(
    checkpoint: Checkpoint, store: Store
) -> None:
    one = all_keys(checkpoint, store)
    wider = replace(checkpoint.architecture, norm_eps=1e-3)
    for other in (
        all_keys(replace(checkpoint, architecture=wider), store),
        all_keys(checkpoint, store, digest="3" * 64),
    ):
        assert {name for name in one if one[name] != other[name]} == ALL


def test_the_order_of_a_config_is_in_its_file_and_where_an_adapter_lies_is_not(
    checkpoint: Checkpoint, store: Store
) -> None:
    one, other = (replace(checkpoint, config=dict(pairs)) for pairs in
                  ((("a", 1), ("b", 2)), (("b", 2), ("a", 1))))  # fmt: skip
    assert not set(all_keys(one, store).values()) & set(all_keys(other, store).values())
    here = replace(checkpoint, adapter=ADAPTER)
    there = replace(checkpoint, adapter=replace(ADAPTER, folder=Path("/elsewhere")))
    assert all_keys(here, store) == all_keys(there, store)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"evaluation": Evaluation(text="elsewhere.txt")}, set()),
        ({"evaluation": Evaluation(decode_tokens=7)}, JUDGED),
        ({"evaluation": Evaluation(windows=7)}, {"reference", *JUDGED}),
        ({"evaluation": Evaluation(window_tokens=70)}, {"reference", *JUDGED}),
        ({"evaluation": Evaluation(max_reference_bytes=1 << 40)}, {"reference", *JUDGED}),
        ({"text": "4" * 64}, {"reference", *JUDGED}),
        ({"calibration": replace(TEXT, path=Path("moved.txt"))}, set()),
        ({"calibration": replace(TEXT, tokens=1024)},
         {"activations", "llamacpp", "llamacpp judged"}),
        ({"calibration": replace(TEXT, sha256="5" * 64)},
         {"activations", "llamacpp", "llamacpp judged"}),
        ({"options": {"type": "Q8_0", "dtype": "bfloat16"}}, ARTIFACTS),
    ],
)  # fmt: skip
def test_settings_change_the_keys_that_depend_on_them(
    change: dict[str, Any], wanted: set[str], checkpoint: Checkpoint, store: Store
) -> None:
    one, other = all_keys(checkpoint, store), all_keys(checkpoint, store, **change)
    assert {name for name in one if one[name] != other[name]} == wanted
