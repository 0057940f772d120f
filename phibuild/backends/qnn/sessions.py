"""Sessions of ONNX Runtime: on the CPU, and on Qualcomm's NPU, which is simulated on x86."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime as ort
import onnxruntime_qnn as qnn

from phibuild.worker.protocol import WorkerError

_ERRORS = 3  # of ONNX Runtime's levels of severity
_PROVIDER = "QNNExecutionProvider"


def on_cpu(path: Path, threads: int) -> ort.InferenceSession:
    """Open a graph on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS
    options.intra_op_num_threads = threads
    # An artifact is several sessions with threads of their own: those of the ones that have nothing
    # to do would take the cores from the one that runs, by waiting for work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compile_graphs(
    graphs: Sequence[Path], folder: Path, soc_model: int
) -> list[ort.InferenceSession]:
    """Compile graphs of the same weights for an NPU into one context binary, in `folder` beside
    graphs of their names that are that binary's; return their sessions, which run in the simulator.

    Raises WorkerError if a node of them would not run on the NPU, or does not compile.
    """
    sessions = []
    # ONNX Runtime names what it compiles by the path of its graph, as it is given: a name alone
    # makes the same bytes wherever they are made.
    with contextlib.chdir(graphs[0].parent):
        for number, path in enumerate(graphs):
            sessions.append(_compiled(path, folder, soc_model, is_last=number == len(graphs) - 1))
    return sessions


def _compiled(path: Path, folder: Path, soc_model: int, *, is_last: bool) -> ort.InferenceSession:
    entries = {
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",
        "ep.context_file_path": os.path.relpath(folder / path.name),
        "ep.share_ep_contexts": "1",
        "session.disable_cpu_ep_fallback": "1",
    }
    if is_last:
        entries["ep.stop_share_ep_contexts"] = "1"
    options = _npu_options(entries, soc_model)
    try:
        return ort.InferenceSession(path.name, options)
    except Exception as error:  # ONNX Runtime's own classes have no common base
        raise WorkerError(f"{path.name} does not compile for the NPU: {error}") from error


def _npu_options(entries: Mapping[str, str], soc_model: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    provider = {
        "backend_path": qnn.get_qnn_htp_path(),
        "soc_model": str(soc_model),
        "enable_htp_weight_sharing": "1",
    }
    options.add_provider_for_devices(_devices(), provider)
    return options


@functools.cache
def _devices() -> list[ort.OrtEpDevice]:
    ort.register_execution_provider_library(_PROVIDER, qnn.get_library_path())
    return [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]
