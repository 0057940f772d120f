"""Compare IRs; runs in the openvino toolchain.

`python openvino_compare.py` reads a JSON list of [WHAT, OURS, THEIRS] from standard input and
prints a JSON list of answers, each {"answer": ...} or {"error": traceback}. The answer is for WHAT
`graph` a list of differences (empty: the same nodes, attributes, edges and constants), for
`interface` both interfaces, for `runtime` how many kernels of each type the CPU plugin makes of
both, for `logits` the largest difference in one pass and step by step on either side of 64 tokens.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from typing import Any

import numpy as np

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # sends nothing then
import openvino as ov  # noqa: E402

EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


def graph(ours: ov.Model, theirs: ov.Model) -> list[str]:
    """Walk both graphs from their results and states to their inputs, in step.

    A constant that one side stores as f16 with a decompressing Convert and the other as f32 is
    the same if it is a table or a scalar and its values are, in fp16.
    """
    differences: list[str] = []
    seen: set[tuple[str, str]] = set()
    pairs = list(zip(ours.get_results(), theirs.get_results(), strict=True))
    sinks = [
        {sink.get_attributes()["variable_id"]: sink for sink in model.get_sinks()}
        for model in (ours, theirs)
    ]
    if sinks[0].keys() != sinks[1].keys():
        return [f"states {sorted(sinks[0])} and {sorted(sinks[1])}"]
    pairs += [(sinks[0][name], sinks[1][name]) for name in sinks[0]]
    while pairs:
        a, b = pairs.pop()
        if (a.get_name(), b.get_name()) in seen:
            continue
        seen.add((a.get_name(), b.get_name()))
        where = f"{a.get_friendly_name()} and {b.get_friendly_name()}"
        if a.get_type_name() == "Constant" and b.get_type_name() == "Convert":
            if not _same_in_fp16(a, b):
                differences.append(f"{where}: constant and compressed constant")
            continue
        if _kind(a) != _kind(b):
            differences.append(f"{where}: {_kind(a)} and {_kind(b)}")
        elif a.get_type_name() == "Constant":
            if not _equal(a, b):
                differences.append(f"{where}: constants differ")
        elif a.get_input_size() != b.get_input_size():
            differences.append(f"{where}: {a.get_input_size()} and {b.get_input_size()} inputs")
        else:
            for x, y in zip(a.input_values(), b.input_values(), strict=True):
                if x.get_index() != y.get_index():
                    differences.append(f"{where}: other output of the input")
                pairs.append((x.get_node(), y.get_node()))
    counts = [
        Counter(node.get_type_name() for node in model.get_ops() if not _is_storage(node))
        for model in (ours, theirs)
    ]
    if counts[0] != counts[1]:
        differences.append(f"nodes {counts[0] - counts[1]} and {counts[1] - counts[0]}")
    return differences


def _is_storage(node: Any) -> bool:
    """Constants are shared or not by chance; Converts of constants depend on the stored type."""
    kind = str(node.get_type_name())
    return kind == "Constant" or bool(
        kind == "Convert" and node.input_value(0).get_node().get_type_name() == "Constant"
    )


def _kind(node: Any) -> tuple[Any, ...]:
    info = node.get_type_info()
    if info.name == "Constant":
        shape = tuple(node.get_output_shape(0))
        return (info.name, node.get_element_type().get_type_name(), shape)
    decompression = "decompression_0" in node.get_rt_info()
    return (info.name, info.version_id, repr(node.get_attributes()), decompression)


def _equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.array(a.data), np.array(b.data)))


def _same_in_fp16(plain: Any, convert: Any) -> bool:
    compressed = convert.input_value(0).get_node()
    if compressed.get_type_name() != "Constant" or compressed.get_output_shape(0) != (
        plain.get_output_shape(0)
    ):
        return False
    values = np.array(plain.data).astype(np.float16)
    return values.size <= 64 and bool(np.array_equal(values, np.array(compressed.data)))


def interface(model: ov.Model) -> dict[str, Any]:
    """Return names and types of inputs, outputs and states, and the runtime options."""
    options = model.get_rt_info("runtime_options").value
    return {
        "inputs": [[p.get_any_name(), str(p.get_partial_shape())] for p in model.inputs],
        "outputs": [[r.get_any_name(), str(r.get_partial_shape())] for r in model.outputs],
        "states": sorted(str(variable.info.variable_id) for variable in model.get_variables()),
        "state_inputs": sorted(
            name
            for node in model.get_ops()
            if node.get_type_name() == "ReadValue"
            for name in node.output(0).get_names()
        ),
        "runtime_options": {key: str(value) for key, value in sorted(options.items())},
    }


def runtime(model: ov.Model) -> dict[str, int]:
    """Return how many nodes of each kind the CPU plugin executes, with its own defaults."""
    compiled = ov.Core().compile_model(model, "CPU")
    return dict(
        Counter(
            str(node.get_rt_info()["layerType"].astype(str))
            for node in compiled.get_runtime_model().get_ops()
        )
    )


def logits(ours: ov.Model, theirs: ov.Model) -> dict[str, float]:
    """Return the largest differences relative to the largest logit."""
    requests = [
        ov.Core().compile_model(model, "CPU", EXACT).create_infer_request()
        for model in (ours, theirs)
    ]
    ids = np.random.default_rng(0).integers(0, 1000, 96)

    def infer(request: Any, start: int, stop: int) -> Any:
        inputs = {
            "input_ids": ids[None, start:stop],
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return request.infer(inputs)["logits"].copy()

    def gap(passes: list[tuple[int, int]]) -> float:
        worst = 0.0
        for request in requests:
            request.reset_state()
        for start, stop in passes:
            mine, other = (infer(request, start, stop) for request in requests)
            worst = max(worst, float(np.abs(mine - other).max() / np.abs(other).max()))
        return worst

    steps = [(position, position + 1) for position in range(56, 72)]
    return {
        "short": gap([(0, 64)]),
        "long": gap([(0, 96)]),
        "steps": gap([(0, 56), *steps]),
    }


def compare(what: str, ours: str, theirs: str) -> Any:
    """Return the answer to one question."""
    models = [ov.Core().read_model(path) for path in (ours, theirs)]
    if what == "graph":
        return graph(*models)
    if what == "logits":
        return logits(*models)
    return [{"interface": interface, "runtime": runtime}[what](model) for model in models]


def main() -> None:
    answers = []
    for question in json.load(sys.stdin):
        try:
            answers.append({"answer": compare(*question)})
        except Exception:  # of this question alone
            answers.append({"error": traceback.format_exc()})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
