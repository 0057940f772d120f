"""phibuild as a process that can be hurt, and what must hold whatever was done to it.

Everything that a site starts carries its mark in the environment, so that nothing of it can hide:
grandchildren and those that left their process group are found too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phibuild.store.manifest import check_artifact, read_artifact
from support import warm
from support.processes import command, is_alive
from support.reports import newest_report

_MARK = "PHIBUILD_FAULTS_MARK"
_GONE_SECONDS = 10.0
QUICK = ("evaluation=quick", "evaluation.windows=1", "evaluation.decode_tokens=4")


@dataclass
class Running:
    """A phibuild that runs, and what it has said so far."""

    process: subprocess.Popen[bytes]
    said: Path

    def wait(self, timeout: float = 300) -> int:
        """Return the exit code, negative for a signal."""
        return self.process.wait(timeout)

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    @property
    def output(self) -> str:
        return self.said.read_text("utf-8", "replace")


@dataclass(frozen=True)
class Ran:
    """A phibuild that has run to its end: its exit code, and what it said."""

    code: int
    output: str

    def wait(self) -> int:
        """Return the exit code."""
        return self.code


@dataclass
class Site:
    """A folder to build in, with a store of its own.

    `store` and `view` are where this process sees the store and the folder; `prefix` comes before
    each command (to run it in another mount namespace), `environ` is added to its environment.
    `seen` has every artifact that was ever there: key -> digest.
    """

    folder: Path
    store: Path
    environ: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    view: Path | None = None
    seen: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: int = 0

    @property
    def outputs(self) -> Path:
        """The folder that holds outputs/, as this process sees it."""
        return self.view or self.folder

    def lend_originals(self, other: Site) -> None:
        """Begin with what the original left in another site's store, and what was counted of
        phibuild's code."""
        for name in ("references", "digests"):
            shutil.copytree(other.store / name, self.store / name, copy_function=os.link)

    # -- run

    def environment(self) -> dict[str, str]:
        """Return what a phibuild of this site has in its environment."""
        own = {"PHIBUILD_STORE": str(self.store), **self.environ, _MARK: self.mark}
        return {**os.environ, **own}

    @contextlib.contextmanager
    def start(self, *words: str) -> Iterator[Running]:
        """Run phibuild in the background; nothing of it is there at the end."""
        self.started += 1
        said = self.folder / f"said-{self.started}.txt"
        with said.open("wb") as file:
            process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "phibuild", *words],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Running(process, said)
        finally:
            self.kill_all()
            process.wait()

    def run(self, *words: str) -> Ran:
        """Run phibuild to its end, which nobody disturbs, in a warm Python where that is not
        another mount namespace's; nothing of it is there then."""
        if self.prefix:
            with self.start(*words) as running:
                return Ran(running.wait(), running.output)
        command = [sys.executable, "-m", "phibuild", *words]
        try:
            done = warm.run(command, cwd=self.folder, env=self.environment(), timeout=300)
        finally:
            self.kill_all()
        return Ran(done.returncode, done.stdout + done.stderr)

    # -- processes

    def processes(self) -> list[int]:
        """Return the processes that carry the mark and are not dead."""
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
                if self._is_marked(pid) and is_alive(pid)]  # fmt: skip

    def _is_marked(self, pid: int) -> bool:
        try:
            return f"{_MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # gone, or another user's
            return False

    def workers(self, backend: str | None = None) -> list[int]:
        """Return the workers that are alive, of one backend or of all."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
                is_worker = len(words) > 2 and words[-2].endswith(b"entry.py")
                if is_worker and backend in (None, words[-1].decode()):
                    found.append(pid)
        return found

    def kill_all(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # -- what must hold

    def note(self) -> None:
        """Note which artifacts are there: they must be there from now on."""
        for folder in self.artifacts():
            if artifact := read_artifact(folder):
                self.seen[folder.name] = artifact.digest

    def check(self) -> None:
        """Fail if something is left running, is half there, or is there no more."""
        self.check_processes()
        self.check_store()
        self.check_reports()

    def check_processes(self) -> None:
        """Nothing that was started is left."""
        deadline = time.monotonic() + _GONE_SECONDS
        while left := self.processes():
            assert time.monotonic() < deadline, f"left running: {[command(pid) for pid in left]}"
            time.sleep(0.02)

    def check_store(self) -> None:
        """Every artifact is whole, and those of before are there with the same digest."""
        found: dict[str, str] = {}
        for folder in self.artifacts():
            artifact = read_artifact(folder)
            assert artifact is not None, f"{folder}: no manifest"
            assert check_artifact(artifact) == [], folder
            found[folder.name] = artifact.digest
        assert self.seen.items() <= found.items(), "a finished artifact is gone, or another one"
        self.seen = found
        for path in self._entries("measures"):
            assert isinstance(json.loads(path.read_text("utf-8")), dict)

    def check_reports(self) -> None:
        """Every report is whole, and what it names is there; `latest` is one of them."""
        for path in self.outputs.glob("outputs*/*/*/report.json"):
            report = json.loads(path.read_text("utf-8"))
            assert report["totals"]["seconds"] > 0
            for cell in report["cells"]:
                if cell["artifact"]:
                    artifact = read_artifact(path.parent / cell["artifact"])
                    assert artifact is not None, cell["id"]
                    assert artifact.digest == cell["artifact_digest"]
                    assert all(
                        (artifact.folder / file.path).stat().st_size == file.size
                        for file in artifact.manifest.files
                    )
                else:
                    assert cell["status"] in ("failed", "skipped")
                    assert cell["reason"]
            assert (path.parent / "report.md").is_file()
        for link in self.outputs.glob("outputs*/*/latest"):
            assert (link / "report.json").is_file(), link

    def check_swept(self) -> None:
        """Nothing temporary is left in the store or beside the runs."""
        assert self._entries("tmp") == []
        assert [path for path in self.store.rglob(".*") if path.name != ".gitignore"] == []
        for run in self.outputs.glob("outputs*/*/*/"):
            assert (run / "report.json").is_file(), f"{run} has no report"
            assert [path.name for path in run.rglob(".*")] == []

    def check_all_built(self, expected: Mapping[str, str], output: str = "outputs") -> None:
        """The newest report has every cell, with the digests of an undisturbed build."""
        assert digests(self.report(output)) == dict(expected)

    def report(self, output: str = "outputs") -> dict[str, Any]:
        """Return what the last build found: the report that it wrote, or confirmed."""
        (path,) = self.outputs.glob(f"{output}/*/latest/report.json")
        return newest_report(path.parent)

    def artifacts(self) -> list[Path]:
        return self._entries("artifacts")

    def _entries(self, name: str) -> list[Path]:
        folder = self.store / name
        return sorted(folder.iterdir()) if folder.is_dir() else []


def files_are_written(site: Site) -> bool:
    """Return whether a worker has begun to write an artifact."""
    with contextlib.suppress(FileNotFoundError):  # it has just been moved away
        return any(path.is_file() for path in site.store.glob("tmp/*/*/*"))
    return False


def digests(report: Mapping[str, Any], *backends: str) -> dict[str, str]:
    """Return cell id -> digest of its artifact, of some backends or of all."""
    return {
        cell["id"]: cell["artifact_digest"]
        for cell in report["cells"]
        if not backends or cell["backend"] in backends
    }


def reasons(report: Mapping[str, Any]) -> dict[str, str]:
    """Return cell id -> why it failed."""
    return {cell["id"]: cell["reason"] for cell in report["cells"] if cell["status"] == "failed"}


def wait_until(
    condition: Callable[[], object], running: Running, seconds: float = 300, poll: float = 0.008
) -> bool:
    """Wait for a condition; False if phibuild ended before. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if not running.runs:
            return False
        assert time.monotonic() < deadline, f"it never came to that:\n{running.output}"
        time.sleep(poll)
    return True


def write_recipe(site: Site, text: str) -> None:
    path = site.folder / "recipes" / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


@dataclass
class Tally:
    """The faults that a test tried; those of a test that passes were survived."""

    record: Callable[[str, object], None]

    def add(self, fault: str, what: str, times: int = 1) -> None:
        """Count a fault: its kind, and what exactly was done."""
        self.record("fault", json.dumps([fault, what, times]))


def killed(running: Running) -> bool:
    """Kill -9 a phibuild; return whether it was alive."""
    if running.process.poll() is not None:
        return False
    running.process.kill()
    return running.wait() == -signal.SIGKILL
