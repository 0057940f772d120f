"""The keys of a whole plan: which changes of phibuild's own code change which."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT
from phibuild.schema import PRECISIONS
from support.copies import ONE_MORE, copy_package, edited
from support.kinds import some
from support.quickstart import QUICKSTART

SCRIPT = """
import json, sys
from pathlib import Path
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.planning.matrix import expand
from phibuild.planning.making import make_plan
from phibuild.planning.code import program_digest
from phibuild.store.store import Store
store, catalogue = Store(Path(sys.argv[1])), Catalogue(None)
store.prepare()
words = ("recipe=quickstart", "backends.llamacpp.int4.imatrix=embedded")
composition = compose_build(words, catalogue, sweep=False)
evaluation = composition.recipes[0].config.evaluation
plan = make_plan(expand(composition, catalogue), evaluation, store, read_weights=True)
found = {step.kind: step.key for step in plan.originals}
for artifact in plan.artifacts:
    name = f"{artifact.variant.backend} {artifact.variant.name}"
    found |= {name: artifact.key, f"{name} judged": artifact.measure_key}
print(json.dumps({**found, "program": program_digest("mlx", store)}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of phibuild that tests change and put right again."""
    return copy_package(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, str]]:
    """Return (package) -> every key of a real plan by a copy of phibuild."""
    store = tmp_path_factory.mktemp("store")

    def plan(package: Path) -> dict[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(store)],
            # A change that leaves size and second as they were would meet the old bytecode.
            env={
                **os.environ,
                "PYTHONPATH": str(package.parent),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            cwd=package.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)
        return found

    return plan


@pytest.fixture(scope="module")
def unchanged(package: Path, planned: Callable[[Path], dict[str, str]]) -> dict[str, str]:
    """Return every key of the plan by the copy as it is."""
    keys = planned(package)
    assert len(keys) == 3 + 2 * len(QUICKSTART) * len(PRECISIONS) + 1
    return keys


EVERY_ARTIFACT = r"\w+ \S+( judged)?"
IMPORTS = re.compile(r"from phibuild\.worker\.(generation|plain_runtime) import")
GENERATING = "|".join(
    name
    for name in QUICKSTART
    if any(
        IMPORTS.search(path.read_text(encoding="utf-8"))
        for path in (ROOT / "phibuild" / "backends" / name).glob("*.py")
    )
)
"""Backends whose modules import worker/generation.py, or what does."""


# What the test is run for in any case, and what else with all.
CHANGES: list[tuple[str, tuple[str, str], str]] = [
    # What the core shows, chooses or reckons counts by what comes of it.
    ("backends/mlx/spec.py", ("mlx_lm.generate", "mlx_lm.chat"), r"mlx .*"),
    ("planning/requests.py", ('"long": True', '"long": False'), r"reference|.* judged"),
    ("backends/calibration.py", ("CHUNK_TOKENS = 512", "CHUNK_TOKENS = 256"),
     r"activations|llamacpp .*-imatrix.*"),
    ("__init__.py", ('"0.1.0"', '"0.1.1"'), EVERY_ARTIFACT),
    # What the core writes.
    ("checkpoints/view.py", ("indent=2", "indent=4"), r".*"),
    ("planning/readme.py", ("## Run it", "## Use it"), EVERY_ARTIFACT),
    # What runs in toolchains.
    ("backends/pytorch/witness.py", ONE_MORE, r"source"),
    ("backends/pytorch/convert.py", ONE_MORE, r"pytorch .*"),
    ("backends/pytorch/runtime.py", ONE_MORE, r"pytorch .* judged"),
    ("worker/protocol.py", ONE_MORE, r".*"),
    ("backends/pytorch/requirements.txt", ("numpy==", "numpy>="), r".*"),
]  # fmt: skip
MORE: list[tuple[str, tuple[str, str], str]] = [
    ("planning/readme.py", ("[:57]", "[:56]"), EVERY_ARTIFACT),
    ("backends/pytorch/tokenizer_facts.py", ONE_MORE, rf"source|{EVERY_ARTIFACT}"),
    ("backends/pytorch/activations.py", ONE_MORE, r"activations|llamacpp .*-imatrix.*"),
    ("backends/ort_genai/nodes.py", ONE_MORE, r"ort_genai .*"),
    ("worker/metrics.py", ONE_MORE, r"reference|.* judged"),
    ("worker/judge.py", ONE_MORE, r".* judged"),
    ("worker/generation.py", ONE_MORE, rf"({GENERATING}) .* judged"),
    ("backends/openvino/requirements.txt", ("numpy==", "numpy>="), r"openvino .*"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "change", "wanted"), some([*CHANGES, *MORE], CHANGES))
def test_a_change_of_phibuild_changes_the_keys_of_what_comes_of_it(
    file: str,
    change: tuple[str, str],
    wanted: str,
    package: Path,
    planned: Callable[[Path], dict[str, str]],
    unchanged: dict[str, str],
) -> None:
    with edited(package, {file: change}):
        keys = planned(package)
    found = {name for name in keys if keys[name] != unchanged[name]}
    # A step on another machine must be run by the very code that it was planned with.
    assert ("program" in found) is file.endswith(".py")
    assert found - {"program"} == {
        name for name in unchanged if name != "program" and re.fullmatch(wanted, name)
    }


def test_what_makes_nothing_changes_no_key(
    package: Path, planned: Callable[[Path], dict[str, str]], unchanged: dict[str, str]
) -> None:
    modules = ("cli", "commands/plan", "commands/build", "config/compose", "checkpoints/facts",
               "checkpoints/adapter", "checkpoints/tensors", "planning/making", "planning/sizes",
               "planning/requests", "planning/keys", "execute/work/build", "execute/work/original",
               "execute/runner/process", "store/store", "schema/__init__", "schema/gates",
               "backends/base", "backends/mlx/spec", "backends/llamacpp/spec",
               "backends/pytorch/spec", "worker/source_config")  # fmt: skip
    with edited(package, {f"{module}.py": ONE_MORE for module in modules}):
        keys = planned(package)
    assert {name for name in keys if keys[name] != unchanged[name]} == {"program"}
    with edited(
        package, {"checkpoints/view.py": ("with store.workspace", "with  store.workspace")}
    ):
        assert planned(package) == unchanged
