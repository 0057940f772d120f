"""What is damaged is noticed, named, set aside and made again: edits through a run's hard links,
stores that were copied, what the original left, measurements, and damage that leaves no trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import CommandLine
from phibuild.errors import StoreError
from phibuild.store.manifest import (
    MANIFEST,
    StoredArtifact,
    check_artifact,
    read_artifact,
    read_sealed,
    require_intact,
)
from phibuild.store.store import ARTIFACTS, REFERENCES, Store
from phibuild.system.files import link_tree
from support.documents import some_facts, some_measure


class Told(Store):
    """A store that keeps what it says."""

    def __init__(self, root: Path) -> None:
        self.said: list[str] = []
        super().__init__(root, self.said.append)


@pytest.fixture
def store(tmp_path: Path) -> Told:
    store = Told(tmp_path / "store")
    store.prepare()
    return store


def publish(store: Store) -> StoredArtifact:
    with store.workspace() as folder:
        (folder / "model.bin").write_text("weights", encoding="utf-8")
        return store.publish("k", folder, some_facts())


def edit(path: Path, text: str, *, hidden: bool = False) -> None:
    """Write into a file in place; a hidden edit leaves its size and time as they were."""
    status = path.stat()
    path.chmod(0o644)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o444)
    if hidden:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_edit_in_a_runs_folder_is_noticed(store: Told, tmp_path: Path) -> None:
    """The file of a run is the store's file."""
    link_tree(publish(store).folder, tmp_path / "run")
    edit(tmp_path / "run" / "model.bin", "WEIGHTS")
    assert store.artifact("k") is None
    (aside,) = (store.root / "damaged").iterdir()
    assert store.said == [
        "damaged in the store, set aside: phi llamacpp Q4_0: model.bin: content differs from the "
        f"manifest's sha256\n    now {aside}"
    ]
    publish(store)
    assert store.artifact("k") is not None
    assert (tmp_path / "run" / "model.bin").read_text(encoding="utf-8") == "WEIGHTS"


def test_a_runs_files_refuse_an_edit(mere_user: CommandLine, store: Told, tmp_path: Path) -> None:
    link_tree(publish(store).folder, tmp_path / "run")
    program = "import sys; open(sys.argv[1], 'a')"
    done = subprocess.run(
        [*mere_user.prefix, sys.executable, "-c", program, str(tmp_path / "run" / "model.bin")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "PermissionError" in done.stderr


def test_a_hidden_edit_is_noticed_in_full(store: Told) -> None:
    edit(publish(store).folder / "model.bin", "WEIGHTS", hidden=True)
    assert store.artifact("k") is not None
    assert store.set_aside_if_damaged(ARTIFACTS, "k")
    assert store.artifact("k") is None
    publish(store)
    assert not store.set_aside_if_damaged(ARTIFACTS, "k")
    assert len(store.said) == 1


def test_a_copied_store_is_whole_and_soon_cheap_again(store: Told, tmp_path: Path) -> None:
    publish(store)
    shutil.copytree(store.root, tmp_path / "copy", copy_function=shutil.copyfile)
    copy = Told(tmp_path / "copy")
    assert copy.artifact("k") is not None
    edit(copy.root / ARTIFACTS / "k" / "model.bin", "WEIGHTS", hidden=True)
    assert copy.artifact("k") is not None  # the times are those of the manifest: nothing is read
    assert copy.said == []


@pytest.mark.parametrize("damage", ["cut off", "edited", "missing"])
def test_what_the_original_left_is_checked(store: Told, damage: str) -> None:
    with store.workspace() as folder:
        (folder / "logits.npy").write_bytes(bytes(1000))
        (folder / "meta.json").write_text("{}", encoding="utf-8")
        place = store.publish_reference("r", folder)
    assert store.reference("r") == place
    if damage == "missing":
        (place / "meta.json").unlink()
    else:
        edit(place / "logits.npy", "" if damage == "cut off" else "x" * 1000)
    assert store.reference("r") is None
    (said,) = store.said
    assert said.startswith("damaged in the store, set aside: references/r: ")


def test_a_reference_of_hidden_damage(store: Told) -> None:
    with store.workspace() as folder:
        (folder / "logits.npy").write_text("logits", encoding="utf-8")
        place = store.publish_reference("r", folder)
    edit(place / "logits.npy", "LOGITS", hidden=True)
    assert store.set_aside_if_damaged(REFERENCES, "r")
    assert store.reference("r") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kl": 1}', '{"measure": {"kl": 2}, "sha256": "0"}']
)
def test_a_measurement_that_is_not_as_it_was_written(store: Told, text: str) -> None:
    store.publish_measure("m", some_measure(1.5))
    assert store.measure("m") == some_measure(1.5)
    (store.root / "measures" / "m.json").write_text(text, encoding="utf-8")
    assert store.measure("m") is None


@pytest.mark.parametrize(
    "files", ["nothing", [1], [{"path": "model.bin"}], [{"path": 1, "size": 2, "sha256": "3",
                                                         "mtime_ns": 4}]]
)  # fmt: skip
def test_manifests_of_no_use(store: Told, files: object) -> None:
    folder = publish(store).folder
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    edit(folder / MANIFEST, json.dumps({**manifest, "files": files}))
    assert read_artifact(folder) is None
    assert store.artifact("k") is None
    assert store.set_aside_if_damaged(ARTIFACTS, "k")


def test_an_artifact_that_does_not_say_what_it_is(store: Told) -> None:
    """Its files are whole, yet no report could be made of it."""
    folder = publish(store).folder
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del manifest["variant"]
    edit(folder / MANIFEST, json.dumps(manifest))
    sealed = read_sealed(folder)
    assert sealed
    assert check_artifact(sealed) == []
    assert store.artifact("k") is None
    assert store.set_aside_if_damaged(ARTIFACTS, "k")


def test_what_leaves_the_store_is_intact(store: Told) -> None:
    artifact = publish(store)
    require_intact(artifact)
    edit(artifact.folder / "model.bin", "WEIGHTS", hidden=True)
    with pytest.raises(StoreError, match=r"model\.bin: content differs"):
        require_intact(artifact)
    files = [artifact.manifest.files[0].model_copy(update={"sha256": "0" * 64})]
    manifest = artifact.manifest.model_copy(update={"files": files})
    changed = StoredArtifact(artifact.folder, manifest)
    assert f"{MANIFEST}: its artifact_digest is not that of its files" in check_artifact(changed)
