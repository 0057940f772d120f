"""Context binaries of one layer in the shapes of Phi: their bytes beside what is planned, and what
Qualcomm's compiler takes for them.

    python benchmarks/qnn_binaries.py [--shapes phi35 ...] [--contexts 512 4096]

Each is compiled in a process of its own in the qnn toolchain, which must be installed; weights are
random bytes. A prompt's graph and a token's share the binary, as in an artifact.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# hidden_size, intermediate_size, heads, kv_heads, rotated share of a head, tied.
SHAPES: dict[str, tuple[int, int, int, int, float, bool]] = {
    "phi35": (3072, 8192, 32, 32, 1.0, False),
    "phi4mini": (3072, 8192, 24, 8, 0.75, True),
    "phi4": (5120, 17920, 40, 10, 1.0, False),
    "0.44b": (1536, 4096, 16, 16, 1.0, False),
    "tiny": (256, 640, 4, 4, 1.0, False),
}
VOCABULARY = 2048


def compile_one(shape: str, mode: str, context: int) -> dict[str, float]:
    """Compile one layer and its head; in the toolchain."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from phibuild.backends.qnn.decoder import head_graph, layers_graph
    from phibuild.backends.qnn.genai import PHASES
    from phibuild.backends.qnn.layout import parts
    from phibuild.backends.qnn.sessions import compile_graphs
    from phibuild.backends.qnn.weights import Places
    from phibuild.worker.architecture import Architecture, Rope

    hidden, inner, heads, groups, partial, tied = SHAPES[shape]
    rope = Rope(10_000.0, partial, (), ())
    arch = Architecture(
        hidden, inner, 1, heads, groups, VOCABULARY, tied, 4096, 4096, None, 1e-5, "bfloat16", rope
    )
    options = {"mode": mode, "group_size": 32, "context": context}
    places = Places(arch, options)
    norms = {name: np.ones(one, np.float16) for name, one in arch.tensors() if len(one) == 1}
    with tempfile.TemporaryDirectory() as name:
        graphs, output = Path(name, "graphs"), Path(name, "output")
        graphs.mkdir()
        output.mkdir()
        for file, size in places.sizes.items():
            data = np.random.default_rng(0).integers(0, 120, size, dtype=np.uint8)
            (graphs / file).write_bytes(data.tobytes())
        started = time.process_time()
        for part in parts(arch, options):
            paths = []
            for phase, tokens in PHASES.items():
                path = graphs / f"{phase}-{part.name}.onnx"
                if part.layers:
                    graph = layers_graph(arch, places, norms, part, tokens, context)
                else:
                    graph = head_graph(arch, places, norms, tokens)
                graph.save(path)
                paths.append(path)
            compile_graphs(paths, output, 60)
        return {
            "cpu_seconds": time.process_time() - started,
            "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "binary_bytes": sum(path.stat().st_size for path in output.glob("*.bin")),
        }


def planned(shape: str, mode: str, context: int) -> tuple[int, int]:
    """Return the bytes of the weights that a layer's and the head's binaries have, and those that
    the plan takes for both binaries."""
    from phibuild.backends.base import SourceFiles
    from phibuild.backends.qnn.spec import SPEC
    from phibuild.schema import Variant
    from phibuild.worker.architecture import Architecture, Rope

    hidden, inner, heads, groups, partial, tied = SHAPES[shape]
    rope = Rope(10_000.0, partial, (), ())
    arch = Architecture(
        hidden, inner, 1, heads, groups, VOCABULARY, tied, 4096, 4096, None, 1e-5, "bfloat16", rope
    )
    options = {"mode": mode, "group_size": 32, "context": context, "soc": "sc8380xp"}
    variant = Variant(
        backend="qnn",
        precision="int4" if mode == "int4" else "int8",
        name="one",
        format=SPEC.format,
        options={**options, "form": "context", "gate_tokens": 0},
    )
    kinds = {"int4": "INT4", "int8": "INT8"}
    weights = sum(one.nbytes for one in SPEC.layout(arch, variant) if one.kind == kinds[mode])
    nothing = SourceFiles({}, 0, 0, 0, 0, "bpe")
    tables = 2 * 2 * context * (arch.rotary_dim // 2)
    copies = 0
    if tied and mode == "int4":
        copies = VOCABULARY * hidden // 2 + VOCABULARY * hidden // 32 * 2
    return weights, weights + SPEC.other_bytes(arch, nothing, variant) - tables - copies


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 4096])
    parser.add_argument("--modes", nargs="+", choices=("int4", "int8"), default=["int4", "int8"])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        shape, mode, context = arguments.one
        print("RESULT " + json.dumps(compile_one(shape, mode, int(context))))
        return
    from tabulate import tabulate

    from phibuild.toolchains.environment import toolchain

    rows = []
    for shape in arguments.shapes:
        for mode in arguments.modes:
            for context in arguments.contexts:
                command = [str(toolchain("qnn").python), __file__]
                command += ["--one", shape, mode, str(context)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
                weights, plan = planned(shape, mode, context)
                binary = found["binary_bytes"]
                rows.append(
                    [
                        shape,
                        mode,
                        context,
                        f"{weights / 1e6:.2f}",
                        f"{binary / 1e6:.2f}",
                        f"{(plan - binary) / 1e6:+.2f}",
                        f"{found['cpu_seconds']:.1f}",
                        f"{found['peak_bytes'] / 1e6:,.0f}",
                    ]
                )
                print(rows[-1], flush=True)
    headers = (
        "shape", "mode", "context", "weights, MB", "binaries, MB", "planned, MB", "CPU s",
        "peak, MB",
    )  # fmt: skip
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
