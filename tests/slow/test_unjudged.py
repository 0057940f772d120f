"""What cannot be judged on this machine is built, says why it was not judged, and does not keep
gates that nobody can check: a backend of another distribution, with llama.cpp's worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CommandLine
from phibuild.errors import EXIT_GATE_FAILED, EXIT_OK
from phibuild.toolchains.environment import Toolchain, toolchain
from support.distributions import add_backend, with_site

WHY = "its simulator is not installed"
SPEC = f"""\
from phibuild.backends.llamacpp.spec import LlamaCppSpec
from phibuild.schema import Judging

class Spec(LlamaCppSpec):
    name = "unheard"

    def judging(self, variant):
        return Judging(how="no", note="{WHY}") if variant.precision == "int4" else Judging()

SPEC = Spec()
"""
# A worker is to import its own package and phibuild.worker alone; this one borrows another's.
WORKER = "from phibuild.backends.llamacpp.worker import REFERENCE, build, inspect, load, prepare\n"
RECIPE = """\
devices:
  raspberry_pi_5: {unheard: [int4, int8]}
evaluation: {windows: 2, window_tokens: 64, decode_tokens: 4}
gates: {kl: 0.5, fits_budget: true}
"""


@pytest.fixture
def unheard(
    tmp_path: Path,
    phibuild: CommandLine,
    toolchain_python: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> CommandLine:
    """A command line with that backend; its toolchain is llama.cpp's under another name."""
    site, environments = tmp_path / "site", tmp_path / "toolchains"
    lock = toolchain("llamacpp").lock.read_text(encoding="utf-8")
    files: dict[str, str | None] = {"spec.py": SPEC, "worker.py": WORKER, "requirements.txt": lock}
    folder = add_backend(site, "unheard", files=files)
    own = Toolchain("unheard", folder / "requirements.txt").folder.name
    environments.mkdir()
    for name in ("llamacpp", "pytorch"):
        toolchain_python(name)
        (environments / toolchain(name).folder.name).symlink_to(toolchain(name).folder)
    (environments / own).symlink_to(toolchain("llamacpp").folder)
    monkeypatch.setenv("PYTHONPATH", with_site(site))
    monkeypatch.setenv("PHIBUILD_TOOLCHAINS", str(environments))
    (phibuild.folder / "recipes").mkdir()
    (phibuild.folder / "recipes" / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    return phibuild


def test_what_cannot_be_judged_is_built_and_says_so(unheard: CommandLine) -> None:
    done = unheard("build", "recipe=mine")
    assert done.returncode == EXIT_GATE_FAILED, done.stdout + done.stderr
    report = unheard.report("mine")
    silent, heard = (
        next(cell for cell in report["cells"] if cell["precision"] == precision)
        for precision in ("int4", "int8")
    )
    assert (silent["status"], heard["status"]) == ("built", "built")
    assert silent["judged"] == {"how": "no", "note": WHY}
    assert (silent["quality"], silent["speed"], silent["reason"]) == (None, None, None)
    assert silent["notes"][0] == f"not judged: {WHY}"
    assert silent["gates"] == [
        {"name": "kl", "limit": 0.5, "value": None, "passed": False, "baseline": None},
        {"name": "fits_budget", "limit": True, "value": True, "passed": True, "baseline": None},
    ]
    assert heard["judged"] == {"how": "native", "note": None}
    assert not any("judged" in note for note in heard["notes"])
    assert heard["quality"]["kl_mean"] < 0.5
    assert heard["best"]
    assert not silent["best"]  # though it is the smaller
    assert report["totals"]["gates_failed"] == 1
    said = " ".join(done.stdout.split())
    assert f"GATE {silent['id']}: kl not judged of at most 0.5 nats" in said
    assert f"note {silent['id']}: not judged: {WHY}" in said
    assert "judge Q8_0\n" in done.stderr
    folder = unheard.folder / "outputs/mine/latest"
    assert f"not judged: {WHY}" in (folder / "report.md").read_text(encoding="utf-8")
    assert (folder / silent["artifact"] / "manifest.json").is_file()

    again = unheard("build", "recipe=mine", "--json")
    steps = json.loads(again.stdout)["totals"]["steps"]
    assert (again.returncode, steps) == (EXIT_GATE_FAILED, 0)
    # Who does not want it judged has no promise to keep.
    done = unheard("build", "recipe=mine", "evaluation=none")
    assert done.returncode == EXIT_OK, done.stdout
    cells = json.loads(unheard("report", "--json").stdout)["cells"]
    assert [cell["judged"] for cell in cells] == [None, None]
    done = unheard("build", "recipe=mine", "precision=int4", "~gates.kl")
    assert done.returncode == EXIT_OK, done.stdout
