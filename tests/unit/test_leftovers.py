"""What killed processes leave in the store and in outputs is swept; what the living use is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from phibuild.errors import StoreError
from phibuild.report.writing import new_run
from phibuild.store.store import Store
from phibuild.system.locks import held, held_if_free
from phibuild.system.workspaces import sweep, workspace

STORE = """
from phibuild.store.store import Store
with Store(folder).workspace() as made:
    (made / "half").write_text("half")
    (made / "sub").mkdir()
    ready(made)
"""
RUN = """
from phibuild.report.writing import new_run
with new_run(folder, "mine") as made:
    (made / "artifacts").mkdir()
    (made / "artifacts" / "half").write_text("half")
    (made / ".report.json.abc").write_text("half")
    ready(made)
"""
PROGRAM = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def ready(made):
    print(made, flush=True)
    time.sleep(60)
"""


@contextmanager
def process(code: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run a program until it is ready; give it and the folder that it made."""
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert started.stdout is not None
        yield started, Path(started.stdout.readline().strip())
    finally:
        kill(started)
        assert started.stdout is not None
        started.stdout.close()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def test_a_workspace_outlives_a_sweep_and_not_its_process(store: Store) -> None:
    with process(STORE, store.root) as (owner, folder):
        store.prepare()
        assert (folder / "half").exists()
        kill(owner)
        assert folder.exists()
        store.prepare()
    assert list((store.root / "tmp").iterdir()) == []


def test_leftovers_of_any_form_are_swept(store: Store) -> None:
    tmp = store.root / "tmp"
    (tmp / "folder" / "sub").mkdir(parents=True)
    (tmp / "file").touch()
    (tmp / "alone.lock").touch()
    with workspace(tmp) as mine:
        sweep(tmp)
        assert sorted(path.name for path in tmp.iterdir()) == [mine.name, f"{mine.name}.lock"]
    assert list(tmp.iterdir()) == []


def test_workspaces_beside_sweeps(store: Store) -> None:
    """Sweepers that come at any moment never take a living workspace."""
    code = """
from phibuild.system.workspaces import sweep
print("sweeping", flush=True)
while True:
    sweep(folder)
"""
    tmp = store.root / "tmp"
    with process(code, tmp), process(code, tmp):
        for _ in range(300):
            with workspace(tmp) as folder:
                (folder / "file").write_text("mine", encoding="utf-8")
                assert (folder / "file").exists()


def test_a_killed_build_leaves_no_run(tmp_path: Path) -> None:
    with process(RUN, tmp_path) as (owner, folder):
        with new_run(tmp_path, "mine"):
            assert folder.exists()  # its build is alive
        kill(owner)
        assert (folder / "artifacts" / "half").exists()
        with new_run(tmp_path, "mine") as last:
            # `other` ended without a report; the new one may have the name of either.
            assert sorted(path.name for path in last.parent.iterdir()) == [last.name]
            assert sorted(path.name for path in last.iterdir()) == [".running", "logs"]


def test_a_build_that_is_killed_after_its_report_keeps_it(tmp_path: Path) -> None:
    with process(RUN, tmp_path) as (owner, folder):
        (folder / "report.json").write_text("{}", encoding="utf-8")
        kill(owner)
    with new_run(tmp_path, "mine"):
        assert sorted(path.name for path in folder.iterdir()) == [
            "artifacts", "logs", "report.json",
        ]  # fmt: skip


def test_nothing_of_the_users_is_swept(tmp_path: Path) -> None:
    base = tmp_path / "mine"
    for name in ("notes", "2026-01-31_10-00-00", "2026-01-31_10-00-01"):
        (base / name).mkdir(parents=True)
    (base / "2026-01-31_10-00-00" / "notes.txt").touch()
    (base / ".latest-123").symlink_to("nowhere")
    with new_run(tmp_path, "mine") as run:
        names = {path.name for path in base.iterdir()}
    # An empty folder with a run's name is one whose build was killed in its first instant.
    assert names == {"notes", "2026-01-31_10-00-00", run.name}


def test_a_lock_is_held_once_and_goes_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_if_free(path) as fd:
        assert fd is not None
        with held_if_free(path) as other:
            assert other is None
        path.unlink()
        with held_if_free(path) as fresh:  # the name is free again
            assert fresh is not None
    with held(path, shared=True), held(path, shared=True), held_if_free(path) as alone:
        assert alone is None
    with (
        held(path),
        pytest.raises(StoreError, match="interrupted"),
        held(path, cancelled=lambda: True),
    ):
        pass


def test_a_child_that_is_given_the_lock_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path) as fd:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(fd,))
    try:
        with held_if_free(path) as mine:
            assert mine is None
    finally:
        child.kill()
        child.wait()
    with held_if_free(path) as mine:
        assert mine is not None


def test_a_lock_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), held(tmp_path / "no" / "lock"):
        pass
    assert os.listdir(tmp_path) == []
