"""A build of a model of the Hub: what it downloads, from which commit, and that it does so once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from conftest import CommandLine
from support.hub_server import Hub, serve

WORDS = ("evaluation=none", "device=raspberry_pi_5", "backend=llamacpp", "precision=int4")
REST = {
    "README.md": b"# Phi",
    "modeling_phi3.py": b"raise SystemExit('code of a repository was run')",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"the same weights once more",
}


def _build(phibuild: CommandLine, model: str, *flags: str, **environ: str) -> tuple[str, str]:
    """Build one cell of a model; return its status and the artifact's digest."""
    done = phibuild("build", f"model={model}", *WORDS, *flags, cwd=None, **environ)
    assert done.returncode == 0, done.stderr
    cell = phibuild.report("quickstart")["cells"][0]
    return cell["status"], cell["artifact_digest"]


def _fetch_without_licence(folder: Path, model: str, environ: Mapping[str, str]) -> None:
    """Fetch the files of a folder as another program does, which reads no licence."""
    names = [path.name for path in folder.iterdir() if path.name != "LICENSE"]
    program = (
        "import sys\n"
        "from huggingface_hub import hf_hub_download\n"
        "for name in sys.argv[3:]: hf_hub_download(sys.argv[1], name, revision=sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, *model.split("@"), *names], env=environ, check=True
    )


def test_build_downloads_what_it_reads_once(
    checkpoint: Callable[..., Path], phibuild: CommandLine, tmp_path: Path
) -> None:
    old, new = checkpoint("phi3", layers=2, shards=2), checkpoint("phi3", layers=2, seed=1)
    hub = Hub()
    with serve(hub):
        pinned = f"org/phi@{hub.add('org/phi', old, REST)}"
        hub.add("org/phi", new, REST)
        environ = hub.environ(tmp_path / "hf")
        first = _build(phibuild, pinned, **environ)
        assert first[0] == "built"
        assert hub.sent() == {path.name for path in old.iterdir()}
        # A cache that Transformers filled has no licence: a build has the same source all the same.
        others = hub.environ(tmp_path / "others")
        _fetch_without_licence(old, pinned, {**os.environ, **others})
        assert _build(phibuild, pinned, **others) == ("cached", first[1])
        second = _build(phibuild, "org/phi", **environ)
        assert second[0] == "built"
        assert hub.sent() == {path.name for path in (*old.iterdir(), *new.iterdir())}

    # The server is gone. An artifact is known by its source's content, so these are the commits'.
    assert first[1] != second[1]
    for folder, model, digest in ((old, pinned, first[1]), (new, "org/phi", second[1])):
        assert _build(phibuild, model, **environ) == ("cached", digest)
        local = phibuild.folder / "phi"
        shutil.copytree(folder, local)
        assert _build(phibuild, "./phi") == ("cached", digest)
        shutil.rmtree(local)
    empty = {"PHIBUILD_STORE": str(tmp_path / "empty")}
    assert _build(phibuild, pinned, **environ, **empty) == ("built", first[1])


def test_a_branch_that_moves_on_is_followed_when_asked(
    checkpoint: Callable[..., Path], phibuild: CommandLine, tmp_path: Path
) -> None:
    old, new = checkpoint("phi3", layers=2, shards=2), checkpoint("phi3", layers=2, seed=1)
    with serve(Hub()) as hub:
        commits = [hub.add("org/phi", old)]
        environ = hub.environ(tmp_path / "hf")
        first = _build(phibuild, "org/phi@main", **environ)
        commits.append(hub.add("org/phi", new))
        assert _build(phibuild, "org/phi@main", **environ) == ("cached", first[1])
        assert phibuild.report("quickstart")["model"]["commit"] == commits[0]
        second = _build(phibuild, "org/phi@main", "--refresh", **environ)
        assert (second[0], second[1] != first[1]) == ("built", True)
        model = phibuild.report("quickstart")["model"]
        assert (model["reference"], model["commit"]) == ("org/phi@main", commits[1])
        assert _build(phibuild, "org/phi@main", **environ) == ("cached", second[1])
        hub.log.clear()
        assert _build(phibuild, "org/phi@main", "--refresh", **environ)[0] == "cached"
        assert not hub.sent() & {path.name for path in new.iterdir()}
