"""The mlx runner: builds, inspects and loads MLX artifacts. Runs inside the mlx toolchain."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phibuild.worker.protocol import Report, peak_rss_bytes

if TYPE_CHECKING:
    from phibuild.backends.mlx.runtime import MlxRuntime
    from phibuild.worker.architecture import Architecture

# The runtime has threads of its own, each of which calls numpy's BLAS; more threads in there would
# spin for one another. OpenBLAS looks when numpy is imported, which nothing has done so far.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# mlx-lm 0.32 takes the long rope factors at every position (models/rope_utils.py).
REFERENCE = "logits_long"


def build(request: dict[str, Any], report: Report) -> None:
    """Write every artifact of the request in one pass over the checkpoint, and report each."""
    from phibuild.backends.mlx.convert import Output, convert
    from phibuild.backends.mlx.model_config import write_config
    from phibuild.worker.architecture import Architecture
    from phibuild.worker.companions import complete_generation_config, copy_companions
    from phibuild.worker.tokenizer_check import read_facts

    source, arch = Path(request["source"]), Architecture.from_json(request["architecture"])
    started = time.perf_counter()
    outputs: dict[str, Output] = {}
    folders: dict[str, Path] = {}
    try:
        facts = read_facts(Path(request["facts"]))
        for entry in request["items"]:
            item, folder = entry["item"], Path(entry["output"])
            options = entry["variant"]["options"]
            try:
                write_config(source, folder, arch, options, facts.stops)
                copy_companions(source, folder)
                complete_generation_config(folder, facts.stops)
                outputs[item], folders[item] = Output(folder, arch, options), folder
            except Exception as error:  # the other artifacts are built
                report.failed(item, error)
        if outputs:
            convert(
                source,
                arch,
                list(outputs.values()),
                request["threads"],
                lambda share: report.stage("converting", share),
            )
    except Exception as error:  # of the checkpoint: no artifact can be made
        for item in outputs:
            report.failed(item, error)
        return
    finally:
        for output in outputs.values():
            output.close()
    # All were made at once: each has its share of the time, and the peak of all.
    cost = {
        "seconds": (time.perf_counter() - started) / max(1, len(outputs)),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    from phibuild.backends.mlx.tokenizer import check  # imports Transformers

    checked: dict[str, Any] = {}  # all have the same files

    for item, output in outputs.items():
        try:
            if output.error is not None:
                raise output.error
            _complete_index(folders[item], arch)
            report.stage("checking the tokenizer", item=item)
            checked = checked or check(folders[item], facts)
            report.item(item, {**inspect(folders[item]), **cost, "tokenizer": checked})
        except Exception as error:  # this artifact's alone
            report.failed(item, error)


def _complete_index(folder: Path, arch: Architecture) -> None:
    """Add the number of parameters, which mlx-lm's index has and Transformers' has not."""
    from phibuild.worker.safetensors import INDEX

    path = folder / INDEX
    index = json.loads(path.read_text(encoding="utf-8"))
    index["metadata"]["total_parameters"] = arch.parameters
    path.write_text(json.dumps(index, indent=4), encoding="utf-8")


def inspect(folder: Path) -> dict[str, Any]:
    """Return the stored types and bytes of a finished artifact."""
    from phibuild.backends.mlx.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what `load` needs, so that timing `load` times the artifact alone."""
    import phibuild.backends.mlx.runtime  # noqa: F401


def load(folder: Path, threads: int) -> MlxRuntime:
    """Return the artifact to be judged by `threads` threads. MLX's own CPU kernels have one."""
    from phibuild.backends.mlx.runtime import MlxRuntime

    return MlxRuntime(folder, threads)
