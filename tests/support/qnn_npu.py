"""A QNN artifact of form onnx in onnxruntime-genai, its NPU simulated: run in the qnn toolchain as
`python qnn_npu.py`, with {"folder", "ids", "tokens"} as JSON; prints the ids that follow, greedily.

The provider is the artifact's own choice (genai_config.json), which forbids the CPU for the NPU's
graphs; nothing of phibuild runs here."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime_genai as og
import onnxruntime_qnn as qnn


def main() -> None:
    asked = json.load(sys.stdin)
    og.register_execution_provider_library(qnn.get_ep_name(), qnn.get_library_path())
    model = og.Model(asked["folder"])
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array(asked["ids"], np.int32))
    said: list[int] = []
    while len(said) < asked["tokens"] and not generator.is_done():
        generator.generate_next_token()
        said.append(int(generator.get_next_tokens()[0]))
    print("RESULT " + json.dumps(said))


if __name__ == "__main__":
    main()
