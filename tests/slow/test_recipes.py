"""The shipped recipes, as they are, on the embedded model: they build, and their gates hold."""

from __future__ import annotations

import json

from conftest import ROOT, CommandLine
from support.faults import Site
from support.reports import newest_report
from support.targets import DEVICE_RECIPES


def test_gates_hold_on_the_embedded_model(shelf: Site, phibuild: CommandLine) -> None:
    """All device recipes as one matrix; the judging is the shipped one but for its length, and
    Qualcomm's simulator rests."""
    report = newest_report(shelf.folder / "outputs" / "+".join(DEVICE_RECIPES) / "latest")
    cells = report["cells"]
    assert {cell["status"] for cell in cells} == {"built", "cached"}
    assert all(gate["passed"] for cell in cells for gate in cell["gates"])
    assert all({gate["name"] for gate in cell["gates"]} == {"kl", "fits_budget"} for cell in cells)
    # Every device has one variant that is marked, and cells of one variant share one artifact.
    best = [cell["device"] for cell in cells if cell["best"]]
    assert sorted(best) == sorted({cell["device"] for cell in cells})
    q4 = {cell["artifact_digest"] for cell in cells if cell["variant"] == "Q4_K_M"}
    assert len(q4) == 1
    # The whole shelf is these recipes together; its plan needs no network for Phi-3.5-mini.
    planned = phibuild("plan", "recipe=edge_release", "--json")
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.count('"fits_budget": true') == len(cells)


def test_every_device_of_the_shelf_has_two_formats(phibuild: CommandLine) -> None:
    planned = phibuild("plan", "recipe=edge_release", "--json")
    assert planned.returncode == 0, planned.stderr
    formats: dict[str, set[str]] = {}
    variants = set[str]()
    for cell in json.loads(planned.stdout)["cells"]:
        assert cell["fits_budget"], cell["id"]
        formats.setdefault(cell["device"], set()).add(cell["format"])
        variants.add(f"{cell['device']}.{cell['backend']}.{cell['variant']}")
    assert set(formats) == {path.stem for path in (ROOT / "conf" / "device").glob("*.yaml")}
    assert not {device for device, found in formats.items() if len(found) < 2}
    # What a device's NPU is fed: GGUF that llama.cpp's Hexagon backend takes, QNN's binaries.
    assert {"android_flagship.llamacpp.Q4_0-gptq", "snapdragon_8_elite.qnn.int4-b32-sm8750",
            "copilot_pc_snapdragon.qnn.int4-b32-sc8380xp"} <= variants  # fmt: skip


def test_a_broken_gate_ends_with_3(phibuild: CommandLine) -> None:
    done = phibuild(
        "build", "backend=llamacpp", "precision=int4", "evaluation=quick", "gates.kl=0.001"
    )
    assert done.returncode == 3, done.stdout + done.stderr
    (cell,) = phibuild.report("quickstart")["cells"]
    assert cell["status"] == "built"
    (kl,) = (gate for gate in cell["gates"] if gate["name"] == "kl")
    assert kl["passed"] is False
    assert kl["value"] > kl["limit"] == 0.001
    assert "built, misses kl" in done.stdout
