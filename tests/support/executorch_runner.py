"""A program in ExecuTorch's language model runner; runs in the vendor's environment.

`python executorch_runner.py` reads {"folder", "texts", "prompt", "tokens", "speaks"} from standard
input and prints as JSON the ids of the texts, the stop ids, and if it is to speak how the program
goes on from the prompt, greedily.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    import executorch.kernels.quantized  # noqa: F401
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  # registers kernels
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
    from executorch.extension.pybindings import portable_lib
    from pytorch_tokenizers import pytorch_tokenizers_cpp

    asked = json.load(sys.stdin)
    folder = Path(asked["folder"])
    own = folder / "runner_tokenizer.json"
    path = own if own.is_file() else folder / "tokenizer.json"
    tokenizer = pytorch_tokenizers_cpp.HFTokenizer()
    tokenizer.load(str(path))
    ids = [list(tokenizer.encode(text, 0, 0)) for text in asked["texts"]]
    program = portable_lib._load_program(str(folder / "model.pte"))
    stops = sorted(program.load_method("get_eos_ids").call([]))
    result: dict[str, object] = {"ids": ids, "stops": stops}
    if asked["speaks"]:
        said: list[str] = []
        runner = TextLLMRunner(str(folder / "model.pte"), str(path))
        limits = GenerationConfig(
            echo=False, max_new_tokens=asked["tokens"], temperature=0.0, num_bos=0, num_eos=0
        )
        runner.generate(asked["prompt"], limits, said.append, None)
        result["said"] = "".join(said)
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
