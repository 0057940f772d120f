"""A checkpoint that goes wrong under a build: shards that vanish, shrink or change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.faults import Site, Tally, digests, reasons
from support.faulty import mend, misbehave, misbehaved
from support.kinds import some

SHARD = "model-00002-of-00002.safetensors"
BUILD = ("build", "-m", "recipe=quickstart", "model=./my-phi", "backend=llamacpp,mlx",
         "precision=int4,int8", "evaluation=none")  # fmt: skip
# What happens to the second shard after it was hashed, before a worker reads it.
DAMAGE = {
    "a shard vanishes": f"rm {SHARD}",
    "a shard is cut short": f"truncate -s 100000 {SHARD}",
    "a shard is longer": f"printf x >> {SHARD}",
    "a shard becomes a folder": f"rm {SHARD} && mkdir {SHARD}",
    "a shard's header is overwritten": f"printf garbage | dd of={SHARD} conv=notrunc status=none",
    "a shard changes": f"printf garbage | dd of={SHARD} seek=100000 bs=1 conv=notrunc status=none",
    "config.json vanishes": "rm config.json",
    "tokenizer.json is cut short": "truncate -s 1000 tokenizer.json",
}


@pytest.fixture
def site(tmp_path: Path, checkpoint: Callable[..., Path], undisturbed: Site) -> Site:
    site = Site(tmp_path, tmp_path / "store")
    restore(site, checkpoint)
    return site


def restore(site: Site, checkpoint: Callable[..., Path]) -> None:
    shutil.rmtree(site.folder / "my-phi", ignore_errors=True)
    shutil.copytree(checkpoint("phi3", layers=2, shards=2), site.folder / "my-phi")


@pytest.fixture(scope="module")
def right(
    checkpoint: Callable[..., Path], undisturbed: Site, tmp_path_factory: pytest.TempPathFactory
) -> Site:
    """Return where the checkpoint was built, and nothing disturbed it."""
    folder = tmp_path_factory.mktemp("expected")
    site = Site(folder, folder / "store")
    restore(site, checkpoint)
    done = site.run(*BUILD)
    assert done.wait() == 0, done.output
    return site


@pytest.fixture(scope="module")
def expected(right: Site) -> dict[str, str]:
    """Return the digests of an undisturbed build of the checkpoint."""
    return digests(right.report())


@pytest.mark.parametrize(
    "what",
    some(DAMAGE, ["a shard vanishes", "a shard changes", "config.json vanishes"]),
)
def test_a_checkpoint_that_changes_under_a_build(
    what: str,
    site: Site,
    right: Site,
    checkpoint: Callable[..., Path],
    expected: dict[str, str],
    tally: Tally,
) -> None:
    """What was read of it is not published under the digest of what it was."""
    site.lend_originals(right)
    assert site.run(*BUILD, "--only", "*.llamacpp.*").wait() == 0
    command = f"cd '{site.folder}/my-phi' && {DAMAGE[what]}"
    misbehave(site, "mlx", "damage", times=1, command=command)
    done = site.run(*BUILD)
    assert misbehaved(site) == 1
    tally.add("a checkpoint that changes under a build", what)
    assert "Traceback" not in done.output
    site.check()
    assert done.wait() == 1, done.output
    assert len(site.artifacts()) == 2
    failed = reasons(site.report())
    assert sorted(name.split(".", 2)[2] for name in failed) == ["mlx.int4", "mlx.int8"]
    mend(site)
    restore(site, checkpoint)
    again = site.run(*BUILD)
    assert again.wait() == 0, again.output
    site.check()
    site.check_swept()
    site.check_all_built(expected)


@pytest.mark.parametrize(
    "what", some(["a shard vanishes", "a shard is cut short"], ["a shard is cut short"])
)
def test_a_checkpoint_that_is_wrong_from_the_start(
    what: str, site: Site, checkpoint: Callable[..., Path], expected: dict[str, str], tally: Tally
) -> None:
    assert os.system(f"cd '{site.folder}/my-phi' && {DAMAGE[what]}") == 0
    done = site.run(*BUILD)
    tally.add("a checkpoint that is wrong from the start", what)
    assert done.wait() == 2, done.output
    assert SHARD in done.output
    assert "Traceback" not in done.output
    site.check()
    assert site.artifacts() == []
    restore(site, checkpoint)
    assert site.run(*BUILD).wait() == 0
    site.check_all_built(expected)


@pytest.mark.skipif("os.geteuid() == 0", reason="root may read everything")
def test_a_shard_without_permission(site: Site, tally: Tally) -> None:
    (site.folder / "my-phi" / SHARD).chmod(0)
    done = site.run(*BUILD)
    tally.add("a checkpoint that is wrong from the start", "a shard without permission")
    assert done.wait() == 2, done.output
    assert f"{SHARD}: Permission denied" in done.output
    site.check()
