"""Sites with a fault built in: a toolchain that misbehaves, a file system of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from phibuild.toolchains.environment import toolchain
from support.faults import Site

_STAND_IN = Path(__file__).with_name("faulty_python.py")
_MANY = 1_000_000


def misbehave(
    site: Site, backend: str, what: str, *, verb: str = "build", times: int = _MANY,
    command: str = "",
) -> None:  # fmt: skip
    """Have a backend's workers misbehave in the site's builds from now on (support/faulty_python).
    The other backends have their real toolchains."""
    real = toolchain(backend)
    folder = site.folder / "toolchains"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in real.folder.parent.iterdir():
        if path.name != real.folder.name and path.is_dir():
            (folder / path.name).symlink_to(path)
    mine = folder / real.folder.name
    (mine / "bin").mkdir(parents=True)
    for path in real.folder.iterdir():
        if path.name != "bin":
            (mine / path.name).symlink_to(path)
    text = _STAND_IN.read_text("utf-8").replace("@real@", str(real.python))
    python = mine / "bin" / "python"
    python.write_text(f"#!{sys.executable} -ES\n{text}", encoding="utf-8")
    python.chmod(0o755)
    counted = folder / "counted"
    counted.mkdir()
    site.environ["PHIBUILD_TOOLCHAINS"] = str(folder)
    site.environ["PHIBUILD_FAULT"] = json.dumps(
        {"verb": verb, "what": what, "times": times, "folder": str(counted), "command": command}
    )


def misbehaved(site: Site) -> int:
    """Return how often the site's workers misbehaved."""
    return len(list((site.folder / "toolchains" / "counted").iterdir()))


def mend(site: Site) -> None:
    """Give the site its real toolchains again."""
    for name in ("PHIBUILD_TOOLCHAINS", "PHIBUILD_FAULT"):
        site.environ.pop(name, None)


@contextlib.contextmanager
def mounted(site: Site, place: Path, size: str) -> Iterator[Site]:
    """Give the site as it looks with a tmpfs of `size` mounted on `place`, in a mount namespace of
    its own; skips the test where that is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    command = f'mount -t tmpfs -o size={size} tmpfs "$0" && echo ready && exec sleep 3600'
    holder = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", command, str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            reason = holder.stderr.read().strip() or "no reason given"
            pytest.skip(f"no mount namespace of one's own: {reason}")
        inside = Path(f"/proc/{holder.pid}/root")
        environ = {**site.environ, "PHIBUILD_STORE": str(site.store)}
        yield Site(
            site.folder,
            inside / site.store.relative_to("/"),
            environ=environ,
            prefix=("nsenter", "--user", "--mount", "--preserve-credentials",
                    f"--target={holder.pid}", f"--wd={site.folder}", "--"),
            view=inside / site.folder.relative_to("/"),
        )  # fmt: skip
    finally:
        holder.kill()
        holder.communicate()


def remount(site: Site, place: Path, options: str) -> None:
    """Change the mount of a site that `mounted` gave."""
    words = [*site.prefix, "mount", "-o", f"remount,{options}", str(place)]
    subprocess.run(words, check=True, env=dict(os.environ))
