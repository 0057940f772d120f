"""The store: whole entries or none, damage found, links, and several processes at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conftest import TESTS
from phibuild.errors import StoreError
from phibuild.store.manifest import MANIFEST, StoredArtifact, check_artifact, read_artifact
from phibuild.store.store import Store, content_key
from phibuild.system.files import file_sha256, link_tree, size_and_time, write_atomically
from support.documents import some_facts, some_measure


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def publish(store: Store, key: str = "k1", text: str = "weights") -> StoredArtifact:
    with store.workspace() as folder:
        (folder / "model.bin").write_text(text, encoding="utf-8")
        (folder / "sub").mkdir()
        (folder / "sub" / "tokenizer.json").write_text("{}", encoding="utf-8")
        return store.publish(key, folder, some_facts(backend="fake"))


def force_write(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_published_and_found(store: Store) -> None:
    made = publish(store)
    found = store.artifact("k1")
    assert found == made
    assert [file.path for file in found.manifest.files] == ["model.bin", "sub/tokenizer.json"]
    assert found.manifest.files[0].sha256 == file_sha256(found.folder / "model.bin")
    assert (found.manifest.backend, found.size_bytes) == ("fake", 9)
    assert check_artifact(found) == []
    assert list((store.root / "tmp").iterdir()) == []
    assert store.artifact("k2") is None


def test_files_are_read_only(store: Store) -> None:
    made = publish(store)
    for path in made.folder.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o444, path


@pytest.mark.parametrize("what", ["a file", "a folder", "nothing", "a pipe"])
def test_a_link_in_a_result_is_refused(what: str, store: Store, tmp_path: Path) -> None:
    """What it points to is somebody else's: it stays as it is, and nothing is published."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "LICENSE").write_text("mine", encoding="utf-8")
    (mine / "LICENSE").chmod(0o640)
    with store.workspace() as folder:
        (folder / "made").write_text("made", encoding="utf-8")
        place = folder / "sub" / "odd"
        place.parent.mkdir()
        if what == "a pipe":
            os.mkfifo(place)
        else:
            targets = {"a file": mine / "LICENSE", "a folder": mine, "nothing": mine / "gone"}
            place.symlink_to(targets[what])
        kind = "no file" if what == "a pipe" else "a symbolic link"
        with pytest.raises(StoreError, match=f"sub/odd is {kind}\n.*a defect of what made it"):
            store.publish_reference("k1", folder)
        with pytest.raises(StoreError, match=f"sub/odd is {kind}"):
            store.publish("k1", folder, some_facts(backend="fake"))
        assert stat.S_IMODE((folder / "made").stat().st_mode) != 0o444  # nothing was begun
    assert stat.S_IMODE((mine / "LICENSE").stat().st_mode) == 0o640
    assert store.reference("k1") is None
    assert store.artifact("k1") is None


def test_a_file_behind_a_link_is_read_and_left_as_it_is(store: Store, tmp_path: Path) -> None:
    """As in a folder that the Hub's cache has: links to files that are shared with others."""
    made = publish(store)
    other = tmp_path / "blob"
    path = made.folder / "model.bin"
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(5, 5))
    path.unlink()
    path.symlink_to(other)
    assert check_artifact(made) == []
    assert store.artifact("k1") is not None
    assert other.stat().st_mtime_ns == 5
    (made.folder / "surplus").symlink_to(tmp_path / "gone")
    assert check_artifact(made) == ["surplus: not in the manifest"]


def test_the_digest_is_the_contents(store: Store) -> None:
    one, two, other = publish(store, "k1"), publish(store, "k2"), publish(store, "k3", "other")
    assert one.digest == two.digest != other.digest


@pytest.mark.parametrize("damage", ["truncated", "longer", "touched", "missing", "manifest",
                                    "manifest of something else"])  # fmt: skip
def test_damage_is_found_and_can_be_mended(store: Store, damage: str) -> None:
    path = publish(store).folder / "model.bin"
    path.parent.chmod(0o755)
    if damage == "truncated":
        force_write(path, b"weight")
    elif damage == "longer":
        force_write(path, b"weights and more")
    elif damage == "touched":  # as many bytes as before
        force_write(path, b"WEIGHTS")
        os.utime(path, ns=(1, 1))
    elif damage == "missing":
        path.unlink()
    else:
        force_write(path.parent / MANIFEST, b"{" if damage == "manifest" else b'{"a": 1}')
    assert store.artifact("k1") is None
    assert publish(store).folder.is_dir()
    found = store.artifact("k1")
    assert found is not None
    assert check_artifact(found) == []
    assert len(list((store.root / "damaged").iterdir())) == 1  # kept for whoever wants to look


def test_all_differences_are_listed(store: Store) -> None:
    made = publish(store)
    made.folder.chmod(0o755)
    force_write(made.folder / "model.bin", b"WEIGHTS")
    (made.folder / "sub" / "tokenizer.json").unlink()
    (made.folder / "surplus").touch()
    assert check_artifact(made) == [
        "model.bin: content differs from the manifest's sha256",
        "sub/tokenizer.json: missing",
        "surplus: not in the manifest",
    ]
    force_write(made.folder / "model.bin", b"W")
    assert "model.bin: 1 bytes, manifest 7" in check_artifact(made)


def test_links_share_the_files(store: Store, tmp_path: Path) -> None:
    made = publish(store)
    link_tree(made.folder, tmp_path / "out" / "phi")
    for path in made.folder.rglob("*"):
        if path.is_file():
            assert path.samefile(tmp_path / "out" / "phi" / path.relative_to(made.folder))
    linked = read_artifact(tmp_path / "out" / "phi")
    assert linked is not None
    assert check_artifact(linked) == []
    os.unlink(tmp_path / "out" / "phi" / "model.bin")
    assert store.artifact("k1") is not None


def test_files_that_must_not_be_linked_are_copied(store: Store, tmp_path: Path) -> None:
    """Whether as reflinks or byte by byte: the store's own keep one link, and all are the same."""
    made = publish(store)
    link_tree(made.folder, tmp_path / "out" / "phi", ("*.bin",))
    for path in made.folder.rglob("*"):
        other = tmp_path / "out" / "phi" / path.relative_to(made.folder)
        if path.is_file():
            copied = path.suffix == ".bin"
            assert path.samefile(other) != copied
            assert path.stat().st_nlink == (1 if copied else 2)
            assert size_and_time(other) == size_and_time(path)
            assert stat.S_IMODE(other.stat().st_mode) == 0o444
            assert other.read_bytes() == path.read_bytes()
    linked = read_artifact(tmp_path / "out" / "phi")
    assert linked is not None
    assert check_artifact(linked) == []
    force_write(linked.folder / "model.bin", b"another")
    assert store.artifact("k1") is not None  # what happens to a copy is its own affair


def test_copies_where_links_cannot_be(store: Store, tmp_path: Path) -> None:
    """/dev/shm is a file system of its own on Linux."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    import tempfile

    made = publish(store)
    with tempfile.TemporaryDirectory(dir=elsewhere) as name:
        link_tree(made.folder, Path(name) / "phi")
        copied = read_artifact(Path(name) / "phi")
        assert copied is not None
        assert check_artifact(copied) == []
        assert (Path(name) / "phi" / "model.bin").stat().st_nlink == 1


def test_a_workspace_goes_whatever_happens(store: Store) -> None:
    with contextlib.suppress(RuntimeError), store.workspace() as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert not folder.exists()


def test_references_and_measures(store: Store) -> None:
    assert store.reference("r") is None
    with store.workspace() as folder:
        (folder / "logits.npy").touch()
        (folder / "meta.json").write_text("{}", encoding="utf-8")
        store.publish_reference("r", folder)
    assert store.reference("r") == store.root / "references" / "r"
    assert store.measure("m") is None
    store.publish_measure("m", some_measure())
    assert store.measure("m") == some_measure()
    (store.root / "measures" / "m.json").write_text("{", encoding="utf-8")
    assert store.measure("m") is None


def test_digests_are_remembered_until_the_file_changes(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert store.known_digest(path) is None
    digest = store.file_digest(path)
    assert digest == file_sha256(path)
    assert store.known_digest(path) == digest
    path.write_bytes(b"two")
    os.utime(path, ns=(5, 5))
    assert store.known_digest(path) is None
    assert store.file_digest(path) == file_sha256(path) != digest


def test_keys_do_not_depend_on_the_order() -> None:
    assert content_key({"a": 1, "b": [1, 2]}) == content_key({"b": [1, 2], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": "1"})


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="PHIBUILD_STORE"):
        Store(tmp_path / "file" / "store").prepare()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["report.json"]


# -- several processes

PROGRAM = """
import sys, os, time
from pathlib import Path
from phibuild.store.store import Store
from support.documents import some_facts
store = Store(Path(sys.argv[1]))
"""


def start(store: Store, code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code, str(store.root), *words],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def test_publishers_at_once_leave_one_whole_artifact(store: Store) -> None:
    code = """
for number in range(20):
    with store.lock("k"), store.workspace() as folder:
        for name in "abcdef":
            (folder / name).write_text(f"{sys.argv[2]} {number}")
        store.publish("k", folder, some_facts(model=sys.argv[2]))
print("done", flush=True)
"""
    processes = [start(store, code, str(number)) for number in range(3)]
    try:
        seen = 0
        while any(process.poll() is None for process in processes):
            # Reads beside the writers see nothing or something whole.
            found = read_artifact(store.root / "artifacts" / "k")
            if found is not None:
                seen += 1
                assert len(found.manifest.files) == 6
        assert [line(process) for process in processes] == ["done"] * 3
    finally:
        end(*processes)
    assert seen
    last = store.artifact("k")
    assert last is not None
    assert check_artifact(last) == []
    texts = {(last.folder / name).read_text(encoding="utf-8") for name in "abcdef"}
    assert len(texts) == 1
    assert list((store.root / "tmp").iterdir()) == []


def test_the_lock_keeps_others_out_and_goes_with_its_process(store: Store) -> None:
    process = start(
        store, 'with store.lock("k"):\n    print("mine", flush=True)\n    time.sleep(60)'
    )
    try:
        assert line(process) == "mine"
        entered = threading.Event()

        def wait() -> None:
            with store.lock("k"):
                entered.set()

        thread = threading.Thread(target=wait)
        thread.start()
        with store.lock("another"):
            assert not entered.wait(0.4)
        process.send_signal(signal.SIGKILL)
        assert entered.wait(10)
        thread.join()
    finally:
        end(process)


def test_waiting_for_a_lock_can_be_cancelled(store: Store) -> None:
    process = start(
        store, 'with store.lock("k"):\n    print("mine", flush=True)\n    time.sleep(60)'
    )
    try:
        assert line(process) == "mine"
        started = time.monotonic()
        with pytest.raises(StoreError, match="interrupted"), store.lock("k", lambda: True):
            pass
        assert time.monotonic() - started < 10
    finally:
        end(process)


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_crash_around_the_rename(store: Store, place: str) -> None:
    """Killed by SIGKILL at the last moment before the rename: nothing is there; after it: all."""
    code = """
import signal
rename = os.rename
def killed(source, target):
    if sys.argv[2] == "after":
        rename(source, target)
    os.kill(os.getpid(), signal.SIGKILL)
os.rename = killed
with store.lock("k"), store.workspace() as folder:
    (folder / "model.bin").write_text("weights")
    store.publish("k", folder, some_facts())
"""
    process = start(store, code, place)
    try:
        assert process.wait(timeout=30) == -signal.SIGKILL
    finally:
        end(process)
    found = store.artifact("k")
    if place == "before":
        assert found is None
        assert list((store.root / "artifacts").iterdir()) == []
        with store.lock("k"):
            found = publish(store, "k")
    assert found is not None
    assert check_artifact(found) == []


def test_several_that_find_the_same_damage(store: Store) -> None:
    for number in range(10):
        key = f"k{number}"
        made = publish(store, key)
        force_write(made.folder / "model.bin", b"damaged")

        def look(_: int, key: str = key) -> Any:
            return store.artifact(key)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(look, range(4))) == [None] * 4
    assert len(list((store.root / "damaged").iterdir())) == 10


def test_damage_that_cannot_be_set_aside_counts_as_absent(store: Store) -> None:
    made = publish(store)
    force_write(made.folder / "model.bin", b"damaged")
    (store.root / "damaged").rmdir()
    (store.root / "damaged").touch()
    assert store.artifact("k1") is None


def test_a_manifest_says_what_the_builder_said(store: Store) -> None:
    made = publish(store)
    data = json.loads((made.folder / MANIFEST).read_text(encoding="utf-8"))
    assert (data["schema_version"], data["key"], data["backend"]) == (1, "k1", "fake")
    assert list(data) == sorted(data)
