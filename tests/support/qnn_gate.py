"""The gate of context binaries between two artifacts of form onnx, both on the CPU: run in the qnn
toolchain as `python qnn_gate.py PHIBUILD A B`; prints what it finds, or raises what it raises."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(root: str, one: Path, other: Path) -> None:
    sys.path.insert(0, root)
    from phibuild.backends.qnn.gate import Gate
    from phibuild.backends.qnn.layout import parts
    from phibuild.backends.qnn.sessions import on_cpu
    from phibuild.worker.architecture import read_architecture

    arch = read_architecture(json.loads((one / "config.json").read_text()))
    context = json.loads((one / "genai_config.json").read_text())["model"]["context_length"]
    gate = Gate(arch, context, on_cpu(one / "inputs.onnx", 2), 4)
    for part in parts(arch, {"mode": "int4", "group_size": 32}):
        sides = [
            {
                phase: on_cpu(folder / f"{phase}-{part.name}.onnx", 2)
                for phase in ("prompt", "token")
            }
            for folder in (one, other)
        ]
        gate.run(part, *sides)
    print("RESULT " + json.dumps(gate.result()))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
