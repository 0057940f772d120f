"""What the README of a QNN artifact says of the NPU. Core."""

from __future__ import annotations

from phibuild.backends.qnn.layout import PROMPT_TOKENS
from phibuild.backends.qnn.socs import SOCS
from phibuild.schema import Options


def card(options: Options) -> str:
    """Return, as Markdown, what an artifact is made for and how far that was tried."""
    if options["form"] == "onnx":
        made = (
            "The graphs are of fixed shapes; the NPU's compiler takes them when the model is first "
            "opened, which takes minutes and several times the memory of a part."
        )
        tried = "The graphs were judged on a CPU."
    else:
        _, title = SOCS[options["soc"]]
        made = f"The binaries are for {title} ({options['soc']}) alone."
        tried = (
            "The graphs that they were compiled of were judged on a CPU; the binaries were not run."
        )
        if options["gate_tokens"]:
            tried = (
                "The graphs that they were compiled of were judged on a CPU. In Qualcomm's "
                f"simulator the binaries agree with them over {PROMPT_TOKENS} tokens of a prompt "
                f"and {options['gate_tokens']} one by one (`npu.json`)."
            )
    return f"""{made}

- On the NPU: all layers and the output layer, for {PROMPT_TOKENS} tokens of a prompt and for one.
- On the CPU: vectors of tokens, tables of positions, the mask, and new entries of the cache. No
  other node: a session that the NPU would not take whole is an error.
- The context is {options["context"]:,} tokens; the cache is that long from the start.

{tried} No Snapdragon has run it."""
