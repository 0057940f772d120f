"""Try bad input on the command line, in this process, and see that it is refused as it should."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from phibuild.cli import main

Snapshot = dict[str, tuple[str, int, bytes]]


def snapshot(folder: Path) -> Snapshot:
    """Return all that is below a folder: kind, time and content by path."""
    found: Snapshot = {}
    for path in sorted(folder.rglob("*")):
        kind = "folder" if path.is_dir() else "file"
        data = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (kind, path.stat().st_mtime_ns, data)
    return found


def check_refusal(code: object, out: str, err: str) -> list[str]:
    """Return the errors that a command printed, each with its remedy; fail if it is not one
    clean refusal."""
    assert code == 2, f"exit code {code}\n{out}\n{err}"
    assert "Traceback" not in out + err
    assert out == "", f"printed besides its errors: {out}"
    assert err.startswith("error: "), err
    errors = [text.strip() for text in ("\n" + err).split("\nerror: ")[1:]]
    assert len(errors) == len(set(errors)), f"reported twice: {err}"
    for error in errors:
        lines = error.splitlines()
        assert len(lines) <= 2, f"more than a line and a remedy: {error}"
        assert len(lines[0]) < 900
    return errors


@dataclass
class Refuse:
    """Runs words that must be refused, in `folder`; returns the errors, each with its remedy.
    `verbs` are those that must say the same: one stands for both without --every."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    verbs: tuple[str, ...]

    def __call__(self, *words: str) -> list[str]:
        before = snapshot(self.folder)
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = self.capsys.readouterr()
        assert snapshot(self.folder) == before, "something was written"
        return check_refusal(ended.value.code, out, err)

    def write(self, name: str, text: str | bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def refuse(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    every: bool,
) -> Refuse:
    """Return a Refuse in an empty working directory with a store inside it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PHIBUILD_STORE", str(folder / "store"))
    return Refuse(folder, capsys, ("build", "plan") if every else ("build",))
