"""`phibuild build --verify` and `phibuild verify`, with damage that leaves no trace; the embedded
model and llamacpp, the original run over a text included."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CommandLine

pytestmark = pytest.mark.cold

WORDS = ("backend=llamacpp", "precision=int4,int8", "evaluation=quick")


def damage(path: Path) -> None:
    """Change a byte; size and time stay."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-7, os.SEEK_END)
        byte = file.read(1)
        file.seek(-7, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_damage_is_found_and_built_again_in_the_same_run(phibuild: CommandLine) -> None:
    def build(*flags: str) -> tuple[dict[str, str], dict[str, str], str]:
        done = phibuild("build", "-m", *WORDS, *flags)
        assert done.returncode == 0, done.stdout + done.stderr
        cells = phibuild.report("quickstart")["cells"]
        return (
            {cell["precision"]: cell["status"] for cell in cells},
            {cell["precision"]: cell["artifact_digest"] for cell in cells},
            done.stderr,
        )

    statuses, digests, _ = build()
    assert statuses == {"int4": "built", "int8": "built"}
    assert build("--verify")[:2] == ({"int4": "cached", "int8": "cached"}, digests)

    store = phibuild.folder / "store"
    run = phibuild.folder / "outputs" / "quickstart" / "latest"
    (weights,) = run.rglob("*Q8_0.gguf")
    (logits,) = store.rglob("logits.npy")
    damage(weights)
    damage(logits)
    name = "phi3-tiny-trained.raspberry_pi_5.llamacpp.int8"
    for words in ((name,), (), ("quickstart",), (str(weights.parent),)):
        found = phibuild("verify", *words)
        assert (found.returncode, found.stdout.count("BAD")) == (1, 1), words
    assert phibuild("verify", name.replace("int8", "int4")).returncode == 0
    everything = json.loads(phibuild("verify", "--store", "--json").stdout)
    assert len(everything) == 2 + 1 + 1 + 2  # artifacts, the source, logits, measurements
    assert sum(1 for problems in everything.values() if problems) == 2

    assert build()[0] == {"int4": "cached", "int8": "cached"}  # cheap checks cannot see it
    statuses, again, said = build("--verify")
    assert (statuses, again) == ({"int4": "cached", "int8": "built"}, digests)
    assert said.count("damaged in the store, set aside: ") == 2
    assert "phi3-tiny-trained llamacpp Q8_0: model-Q8_0.gguf: content differs" in said
    assert phibuild("verify", "--store").returncode == 0
    assert len(list((store / "damaged").iterdir())) == 2

    # What runs name is kept; what is damaged, or was left over, goes.
    assert phibuild("store", "gc").returncode == 0
    assert list((store / "damaged").iterdir()) == []
    assert build()[0] == {"int4": "cached", "int8": "cached"}
    assert phibuild("store", "gc", "--max-size", "0").returncode == 0
    assert list((store / "artifacts").iterdir()) == []
    assert phibuild("verify").returncode == 0  # the run has its hard links
    assert build()[:2] == ({"int4": "built", "int8": "built"}, digests)


def test_a_read_only_store(mere_user: CommandLine, read_only: Callable[[Path], None]) -> None:
    """What is there can be used; what would have to be made is one error."""
    words = ("build", "backend=llamacpp", "evaluation=none")
    assert mere_user(*words, "--only", "*.int4").returncode == 0
    store = mere_user.folder / "store"
    read_only(store)
    again = mere_user(*words, "--only", "*.int4")
    assert again.returncode == 0, again.stderr
    assert mere_user.report("quickstart")["cells"][0]["status"] == "cached"
    done = mere_user(*words, "--only", "*.int8")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {store}: the store cannot be written: Permission denied\n"
        "    set PHIBUILD_STORE to a folder that can be written\n",
    )
