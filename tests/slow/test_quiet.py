"""Nothing of a build or a run is left in the user's home, and nothing is sent; stop tokens."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from phibuild.backends.registry import SHIPPED
from phibuild.system.places import toolchains_folder
from support import quiet
from support.devices import quickstart_device
from support.faults import QUICK
from support.quickstart import QUICKSTART
from support.stops import END, end_at

pytestmark = pytest.mark.cold

PROMPT = "def main(argv):\n    x = 1\n"
COMMA = ","
CELLS = {name: f"kiosk.{quickstart_device(name)}.{name}.int8" for name in QUICKSTART}
COMPILED = {
    "coreai": "kiosk.mac.coreai.int8",
    "qnn": "kiosk.copilot_pc_snapdragon.qnn.int8",
}
"""Of recipe every_backend: they take long to judge, or to compile."""

# Writes a graph of one node.
GRAPH = """
import sys
import onnx
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", [x], [y])
opset = helper.make_opsetid("", 17)
onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), sys.argv[1])
"""
# What anyone may run; ONNX Runtime sends its events in the background, a while after.
ALONE = {
    "ort_genai": """
import sys, time
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1])
time.sleep(20)
""",
    "openvino": """
import sys
import openvino
openvino.convert_model(sys.argv[1])
""",
}


@dataclass
class Quiet:
    """A build of all backends, and a word with each artifact, without a network and in an empty
    home; `attempts` counts what looked for a network, None where that cannot be told."""

    home: Path
    temporary: Path
    said: dict[str, subprocess.CompletedProcess[str]]
    attempts: int | None


def network_prefix() -> list[str] | None:
    """Return what takes the network from a command, None where that is not allowed."""
    for words in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        with contextlib.suppress(OSError):  # there is no unshare
            if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
                return words
    return None


@pytest.fixture(scope="module")
def quiet_run(
    tmp_path_factory: pytest.TempPathFactory, toolchain_python: Callable[[str], Path]
) -> Quiet:
    for backend in SHIPPED:
        toolchain_python(backend)  # from the network, if need be
    root = tmp_path_factory.mktemp("quiet")
    source = end_at(COMMA, root / "kiosk")
    for name in ("home", "tmp", "work"):
        (root / name).mkdir()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "PHIBUILD_STORE": str(root / "store"),
        "PHIBUILD_TOOLCHAINS": str(toolchains_folder()),
    }
    phibuild = [sys.executable, "-m", "phibuild"]
    commands = {"build": [*phibuild, "build", f"model={source}", "precision=int8", *QUICK]}
    for backend, cell in CELLS.items():
        commands[backend] = [*phibuild, "run", cell, PROMPT, "--max-tokens", "60"]
    only = [word for cell in COMPILED.values() for word in ("--only", cell)]
    words = ["build", f"model={source}", "recipe=every_backend", "evaluation=none", *only]
    commands["build compiled"] = [*phibuild, *words]
    for backend, cell in COMPILED.items():
        commands[backend] = [*phibuild, "run", cell, PROMPT, "--max-tokens", "60"]
    prefix = network_prefix()
    if prefix is None:
        done = {
            name: subprocess.run(
                words, cwd=root / "work", env=environ, capture_output=True, text=True, check=False
            )
            for name, words in commands.items()
        }
        return Quiet(root / "home", root / "tmp", done, None)
    alone = [*prefix, sys.executable, quiet.__file__, json.dumps(list(commands.values()))]
    ran = subprocess.run(
        alone, cwd=root / "work", env=environ, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    done = {
        name: subprocess.CompletedProcess(words, *one)
        for (name, words), one in zip(commands.items(), answer["done"], strict=True)
    }
    return Quiet(root / "home", root / "tmp", done, answer["attempts"])


def test_everything_works_without_a_network(quiet_run: Quiet) -> None:
    for name, done in quiet_run.said.items():
        assert done.returncode == 0, (name, done.stdout, done.stderr)
    assert f"{len(QUICKSTART)} built" in quiet_run.said["build"].stdout
    assert f"{len(COMPILED)} built" in quiet_run.said["build compiled"].stdout


@pytest.mark.case(
    "running",
    "telemetry: files in the home folder",
    None,
    "none, with all backends, but phibuild's own cache",
)
def test_nothing_is_left_in_the_home_or_among_temporary_files(quiet_run: Quiet) -> None:
    # The script that draws report.html's plots, where phibuild's cache is (docs/report.md).
    files = [path for path in quiet_run.home.rglob("*") if path.is_file()]
    cache = quiet_run.home / ".cache" / "phibuild" / "plots"
    assert [path for path in files if path.parent != cache] == []
    # MLX and PyTorch keep what they compile for the CPU; docs/toolchains.md says so.
    left = [path.name for path in quiet_run.temporary.iterdir()]
    assert [name for name in left if not name.startswith(("mlx", "torchinductor_"))] == []


@pytest.mark.case(
    "running",
    "telemetry: connections",
    None,
    "none tried, with all backends",
)
def test_nothing_looks_for_a_network(quiet_run: Quiet) -> None:
    if quiet_run.attempts is None:
        pytest.skip("taking the network away (unshare --net) is not allowed here")
    assert quiet_run.attempts == 0


@pytest.mark.outside(
    "running",
    "telemetry: files in the home folder",
    "ONNX Runtime: a device id and databases; OpenVINO: an id",
)
@pytest.mark.outside(
    "running", "telemetry: connections", "tried by ONNX Runtime and by OpenVINO's converter"
)
def test_what_the_runtimes_do_by_themselves(
    tmp_path: Path, toolchain_python: Callable[[str], Path]
) -> None:
    """It shows too that connections would be seen, if there were any."""
    prefix = network_prefix()
    if prefix is None:
        pytest.skip("taking the network away (unshare --net) is not allowed here")
    graph = tmp_path / "graph.onnx"
    subprocess.run([toolchain_python("ort_genai"), "-c", GRAPH, graph], check=True)
    left: dict[str, set[str]] = {}
    for backend, program in ALONE.items():
        home = tmp_path / backend
        home.mkdir()
        command = [str(toolchain_python(backend)), "-c", program, str(graph)]
        done = subprocess.run(
            [*prefix, sys.executable, quiet.__file__, json.dumps([command])],
            cwd=tmp_path, env={"PATH": os.environ["PATH"], "HOME": str(home)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        answer = json.loads(done.stdout)
        assert answer["done"][0][0] == 0, answer
        assert answer["attempts"] > 0, backend
        left[backend] = {path.name for path in home.rglob("*") if path.is_file()}
    assert {"deviceid", "onnxruntime.db"} <= left["ort_genai"]
    assert "openvino_ga_cid" in left["openvino"]


@pytest.mark.parametrize("backend", SHIPPED)
def test_a_stop_token_ends_the_text(backend: str, quiet_run: Quiet) -> None:
    """<|end|> is the second of generation_config.json's list and not the tokenizer's eos_token."""
    done = quiet_run.said[backend]
    count = int(done.stderr.split()[0])
    assert 1 < count < 60, done
    assert done.stdout.strip()
    assert END not in done.stdout
    assert COMMA not in done.stdout
