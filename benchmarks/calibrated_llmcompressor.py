"""Weights that llm-compressor's GPTQ rounds, as compressed-tensors; runs in its environment.

`python calibrated_llmcompressor.py SOURCE TOKENS OUTPUT` makes W4A16: symmetric, in groups of 128,
as phibuild's artifacts of PyTorch are. TOKENS is an .npy of ids [chunks, tokens]; what is not named
here is left to llm-compressor.
"""

from __future__ import annotations

import os
import sys

import numpy as np


def main(source: str, tokens: str, output: str) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    chunks = np.load(tokens)
    oneshot(
        model=source,
        dataset=Dataset.from_dict({"input_ids": chunks, "attention_mask": np.ones_like(chunks)}),
        recipe=GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"]),
        max_seq_length=chunks.shape[1],
        num_calibration_samples=len(chunks),
        output_dir=output,
    )


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(*sys.argv[1:])
