"""`phibuild store`: what is there, who uses it, what goes first and what never goes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import CommandLine
from phibuild.errors import StoreError
from phibuild.store.inventory import Entry, entries, usage
from phibuild.store.manifest import MANIFEST
from phibuild.store.removal import choose, plan_removal, remove
from phibuild.store.store import ARTIFACTS, MEASURES, REFERENCES, Store
from phibuild.store.uses import in_use, nothing_removed, read_uses
from phibuild.system.files import link_tree
from phibuild.system.locks import held
from phibuild.units import format_age, parse_age
from support.documents import some_facts, some_measure

DAY = 86400.0
NOW = 1_800_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def publish(store: Store, key: str, *, size: int = 1000, days: float = 0) -> Path:
    """Put an artifact of `size` bytes into the store, made so many days ago."""
    with store.workspace() as folder:
        (folder / "model.bin").write_bytes(bytes(size))
        artifact = store.publish(key, folder, some_facts())
    made = NOW - days * DAY
    os.utime(artifact.folder / MANIFEST, (made, made))
    return artifact.folder


def plan(
    *keys: str, measures: tuple[str, ...] = (), references: tuple[str, ...] = ()
) -> dict[str, tuple[str, ...]]:
    """Return the entries that a run uses, by kind."""
    return {ARTIFACTS: keys, MEASURES: measures[: len(keys)], REFERENCES: references}


def write_run(store: Store, folder: Path, *keys: str, days: float = 0, **others: Any) -> Path:
    """Have a run of so many days ago use artifacts; its report is there."""
    with in_use(store, folder, plan(*keys, **others)):
        folder.mkdir(parents=True)
        (folder / "report.json").write_text("{}", encoding="utf-8")
    (use,) = [use for use in read_uses(store) if use.folder == folder]
    os.utime(use.entry, (NOW - days * DAY, NOW - days * DAY))
    return folder


def there(store: Store) -> set[str]:
    return {entry.key for entry in entries(store)}


def sweep_store(store: Store, **limits: Any) -> set[str]:
    """Remove, as is planned; return the keys that went."""
    limits = {"now": NOW, "older_than": 30 * DAY, "max_bytes": None, **limits}
    planned, before = plan_removal(store, **limits), there(store)
    removed = remove(store, **limits)
    assert removed == planned
    assert before - there(store) == {entry.key for entry in removed.entries}
    return before - there(store)


def test_what_no_recent_run_used_goes(store: Store, tmp_path: Path) -> None:
    for key, days in (("old", 90.0), ("kept", 90.0), ("forgotten", 90.0), ("new", 1.0)):
        publish(store, key, days=days)
    write_run(store, tmp_path / "recent", "kept", days=2)
    write_run(store, tmp_path / "past", "forgotten", days=60)
    assert sweep_store(store) == {"old", "forgotten"}
    assert sweep_store(store) == set()


def test_the_size_is_kept_least_recently_used_first(store: Store, tmp_path: Path) -> None:
    for number in range(6):
        publish(store, f"k{number}", days=number, size=100_000)
    write_run(store, tmp_path / "run", "k5", "k4", days=3)
    size = sum(entry.size_bytes for entry in entries(store))
    # What no run names goes before what one does, though that is older.
    assert sweep_store(store, max_bytes=size - 150_000) == {"k2", "k3"}
    assert sweep_store(store, max_bytes=250_000) == {"k0", "k1"}
    assert sweep_store(store, max_bytes=0) == {"k4", "k5"}


def test_what_a_living_build_names_stays(store: Store, tmp_path: Path) -> None:
    for key in ("mine", "built", "other"):
        publish(store, key, days=90)
    with in_use(store, tmp_path / "run", plan("mine", "to come")), store.lock("built"):
        assert {e.key: e.state for e in entries(store)} == {
            "mine": "in use", "built": "in use", "other": "complete",
        }  # fmt: skip
        assert sweep_store(store, max_bytes=0) == {"other"}
    # It ended without a report: nothing is left of the run, so nothing uses what it named.
    assert sweep_store(store, max_bytes=0) == {"mine", "built"}
    assert list((store.root / "runs").iterdir()) == []


def test_what_jobs_on_a_cluster_may_need_stays(store: Store, tmp_path: Path) -> None:
    """They go on without the build that submitted them."""
    publish(store, "mine", days=90)
    publish(store, "other", days=90)
    with in_use(store, tmp_path / "run", plan("mine")):
        pass  # killed: it left no report
    (store.root / "jobs").mkdir()
    record = store.root / "jobs" / "0.json"
    record.write_text("{}", encoding="utf-8")
    assert sweep_store(store, max_bytes=0) == {"other"}
    record.unlink()
    assert sweep_store(store, max_bytes=0) == {"mine"}


def test_a_killed_build_keeps_nothing(store: Store, tmp_path: Path) -> None:
    publish(store, "k", days=90)
    code = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_removal import Store, in_use, plan
with in_use(Store(Path(sys.argv[1])), Path("run"), plan("k")):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    words = [str(store.root), str(Path(__file__).parent)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, *words], check=False, env=environ)
    assert len(read_uses(store)) == 1
    assert sweep_store(store) == {"k"}
    assert list((store.root / "runs").iterdir()) == []


def test_removed_runs_are_forgotten_but_not_those_of_other_machines(
    store: Store, tmp_path: Path
) -> None:
    for key in ("here", "there"):
        publish(store, key, days=90)
        folder = write_run(store, tmp_path / key, key, days=1)
        (folder / "report.json").unlink()
        folder.rmdir()
    (use,) = [use for use in read_uses(store) if use.folder.name == "there"]
    data = json.loads(use.entry.read_text(encoding="utf-8"))
    use.entry.write_text(json.dumps({**data, "host": "another"}), encoding="utf-8")
    os.utime(use.entry, (NOW - DAY, NOW - DAY))
    assert sweep_store(store) == {"here"}
    assert len(list((store.root / "runs").iterdir())) == 1
    assert sweep_store(store, now=NOW + 60 * DAY) == {"there"}


def test_originals_and_measures_go_too(store: Store, tmp_path: Path) -> None:
    for key in ("r1", "r2"):
        with store.workspace() as folder:
            (folder / "logits.npy").write_bytes(bytes(10))
            store.publish_reference(key, folder)
        os.utime(store.root / "references" / key / MANIFEST, (1, 1))
    for key in ("m1", "m2"):
        store.publish_measure(key, some_measure())
        os.utime(store.root / "measures" / f"{key}.json", (1, 1))
    write_run(store, tmp_path / "run", "k", measures=("m1",), references=("r1",))
    assert sweep_store(store) == {"r2", "m2"}
    assert store.reference("r1") is not None
    assert store.measure("m1") == some_measure()


def test_what_is_of_no_use_is_swept(store: Store, tmp_path: Path) -> None:
    (publish(store, "k") / "model.bin").unlink()
    assert store.artifact("k") is None  # set aside
    publish(store, "cut").joinpath("model.bin").unlink()
    with store.lock("free"):
        pass
    (store.root / "tmp" / "left").mkdir()
    source = tmp_path / "weights"
    source.touch()
    store.file_digest(source)
    with store.lock("held"):
        found = remove(store, now=time.time() + 99 * DAY, older_than=30 * DAY, max_bytes=None)
        left = sorted(path.name for path in (store.root / "locks").iterdir())
        assert left == ["held.lock", "removals.lock"]
    assert [entry.key for entry in found.entries] == ["cut"]
    assert {name: count for name, count in found.others.items() if count} == {
        "set aside": 1, "leftovers": 1, "forgotten": 1, "locks": 1,
    }  # fmt: skip
    for name in ("artifacts", "damaged", "tmp", "digests"):
        assert list((store.root / name).iterdir()) == [], name


def test_a_run_keeps_its_files_and_says_what_is_freed(store: Store, tmp_path: Path) -> None:
    link_tree(publish(store, "linked", size=5000, days=90), tmp_path / "out")
    publish(store, "alone", size=5000, days=90)
    freed = {entry.key: entry.freed_bytes for entry in entries(store)}
    manifest = (tmp_path / "out" / MANIFEST).stat().st_size
    assert freed == {"linked": 0, "alone": 5000 + manifest - len("linked") + len("alone")}
    size, would_free = usage(store)["artifacts"]
    assert (size - would_free, would_free) == (5000 + manifest, freed["alone"])
    assert sweep_store(store) == {"linked", "alone"}
    assert (tmp_path / "out" / "model.bin").read_bytes() == bytes(5000)


def test_a_build_that_looks_at_the_store_is_waited_for(store: Store) -> None:
    """Between looking and saying what is used nothing goes."""
    publish(store, "k", days=90)
    code = """
import sys, time
from pathlib import Path
from phibuild.store.store import Store
from phibuild.store.uses import nothing_removed
with nothing_removed(Store(Path(sys.argv[1]))):
    print("looking", flush=True)
    time.sleep(1)
    print((Path(sys.argv[1]) / "artifacts" / "k").exists(), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "looking\n"
        waited: list[bool] = []
        remove(store, now=NOW, older_than=0, max_bytes=None, waiting=lambda: waited.append(True))
        assert process.stdout.readline() == "True\n"
    process.wait()
    assert waited == [True]
    assert there(store) == set()
    with nothing_removed(store), nothing_removed(store):
        pass  # several builds may look at once


def test_builds_beside_removals(store: Store, tmp_path: Path) -> None:
    """Whatever a build has said that it uses is there until its end."""
    code = """
import sys
from pathlib import Path
from phibuild.store.removal import remove
from phibuild.store.store import Store
print("removing", flush=True)
while True:
    remove(Store(Path(sys.argv[1])), now=4e9, older_than=0, max_bytes=0)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        gone = 0
        for number in range(40):
            with nothing_removed(store):
                found = store.artifact("k")
                run = tmp_path / str(number)
                using = in_use(store, run, plan("k"))
                using.__enter__()
            if found is None:
                gone += 1
                with store.lock("k"):
                    publish(store, "k")
            time.sleep(0.01)
            assert store.artifact("k") is not None
            using.__exit__(None, None, None)
        assert gone
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_store_that_is_not_there_has_nothing_to_remove(tmp_path: Path) -> None:
    none = Store(tmp_path / "none")
    found = remove(none, now=NOW, older_than=0, max_bytes=0)
    assert (found.entries, found.left_bytes, none.root.exists()) == ((), 0, False)


def test_order() -> None:
    def entry(
        key: str, used: float, size: int, state: str = "complete", run: bool = False
    ) -> Entry:
        runs = (Path("run"),) if run else ()
        return Entry("artifacts", key, Path(key), "", size, size, used, runs, state)

    found = [
        entry("a", 1, 10, run=True), entry("b", 2, 10), entry("c", 3, 10, "in use"),
        entry("d", 4, 10), entry("e", 9, 10, "damaged"),
    ]  # fmt: skip

    def chosen(older_than: float, excess: float) -> str:
        return "".join(e.key for e in choose(found, now=10, older_than=older_than, excess=excess))

    assert chosen(100, 0) == "e"
    assert chosen(7, 0) == "bea"
    assert chosen(100, 11) == "eb"
    assert chosen(100, 30) == "ebd"
    assert chosen(100, 1000) == "ebda"


def test_ages() -> None:
    assert [parse_age(text) for text in ("90s", "1.5h", "30d", "2 w")] == [90, 5400, 30 * DAY,
                                                                         14 * DAY]  # fmt: skip
    for text in ("", "30", "d", "-1d", "1y"):
        with pytest.raises(ValueError, match="not a time"):
            parse_age(text)
    assert [format_age(s) for s in (-1, 59, 3600, 2.6 * DAY)] == ["0 s", "59 s", "1 h", "3 d"]


# -- the command line


def test_the_command_line(phibuild: CommandLine) -> None:
    assert "nothing in" in phibuild("store", "list").stdout
    store = Store(phibuild.folder / "store")
    store.prepare()
    publish(store, "k" * 64, days=9000)
    publish(store, "n" * 64)
    listed = phibuild("store", "list").stdout
    assert "phi llamacpp Q4_0" in listed
    assert "no run" in listed
    data = json.loads(phibuild("store", "list", "--json").stdout)
    assert [(e["key"][0], e["state"], e["runs"]) for e in data] == [
        ("k", "complete", []), ("n", "complete", []),
    ]  # fmt: skip
    sizes = json.loads(phibuild("store", "du", "--json").stdout)
    assert sizes["artifacts"]["bytes"] == sum(e["size_bytes"] for e in data)
    assert "would free" in phibuild("store", "du").stdout
    tried = phibuild("store", "gc", "--dry-run", "--max-size", "0")
    assert "would remove 2 entries" in tried.stdout
    assert there(store) == {"k" * 64, "n" * 64}
    gone = json.loads(phibuild("store", "gc", "--older-than", "1000d", "--json").stdout)
    assert [entry["key"][0] for entry in gone["removed"]] == ["k"]
    assert there(store) == {"n" * 64}
    with held(store.root / "locks" / f"{'n' * 64}.lock"):
        left = phibuild("store", "gc", "--max-size", "1KiB")
    assert (left.returncode, left.stderr.startswith("note: ")) == (0, True)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["gc", "--max-size", "lots"], "'lots' is not a size"),
        (["gc", "--older-than", "soon"], "'soon' is not a time"),
        (["empty"], "invalid choice: 'empty'"),
        ([], "the following arguments are required: action"),
    ],
)
def test_wrong_words(phibuild: CommandLine, words: list[str], error: str) -> None:
    done = phibuild("store", *words)
    assert done.returncode == 2
    assert error in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_that_cannot_be_written(store: Store) -> None:
    (store.root / "tmp").rmdir()
    (store.root / "tmp").touch()
    with pytest.raises(StoreError, match="the store cannot be written"):
        remove(store, now=NOW, older_than=0, max_bytes=None)


def test_a_store_of_which_folders_have_gone(phibuild: CommandLine) -> None:
    store = Store(phibuild.folder / "store")
    store.prepare()
    publish(store, "k", days=90)
    for name in ("locks", "tmp", "damaged", "usage"):
        shutil.rmtree(store.root / name)
    for words in (("list",), ("du",), ("gc", "--dry-run"), ("gc",)):
        done = phibuild("store", *words)
        assert (done.returncode, done.stderr) == (0, ""), words
    assert "removed 1 entries" in done.stdout


def test_a_read_only_store_can_be_looked_at(
    mere_user: CommandLine, read_only: Callable[[Path], None]
) -> None:
    store = Store(mere_user.folder / "store")
    store.prepare()
    publish(store, "k", days=90)
    read_only(store.root)
    for words in (("list",), ("du",), ("gc", "--dry-run")):
        done = mere_user("store", *words)
        assert (done.returncode, done.stderr) == (0, ""), words
    done = mere_user("store", "gc")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {store.root}: the store cannot be written: Permission denied\n"
        "    set PHIBUILD_STORE to a folder that can be written\n"
    )
