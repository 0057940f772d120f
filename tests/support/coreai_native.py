"""A Core AI model as it is, in fp16, beside its float32 form; runs in the toolchain.

`python coreai_native.py FOLDER` prints as JSON how far the one's logits are from the other's: the
largest divergence, in nats, of a few tokens.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from phibuild.backends.coreai.decoder import KEYS, VALUES
from phibuild.backends.coreai.metadata import FUNCTION, MODEL
from phibuild.backends.coreai.program import Program
from phibuild.worker.architecture import read_architecture

IDS = np.asarray([[5, 7, 11, 13]], np.int32)


def main() -> None:
    folder = Path(sys.argv[1])
    arch = read_architecture(json.loads((folder / "config.json").read_text("utf-8")))
    shape = (arch.layers, 1, arch.kv_heads, 64, arch.head_dim)
    said = []
    for as_it_is in (False, True):
        kind = np.float16 if as_it_is else np.float32
        program = Program(folder / MODEL, FUNCTION, as_it_is=as_it_is)
        states = program.states({name: np.zeros(shape, kind) for name in (KEYS, VALUES)})
        rows = []
        for first, end in ((0, 3), (3, 4)):  # a prompt, and a token after it
            positions = np.arange(end, dtype=np.int32)[None]
            inputs = {"input_ids": IDS[:, first:end], "position_ids": positions}
            rows.append(program.run(inputs, states)["logits"][0].astype(np.float64))
        program.close()
        logits = np.concatenate(rows)
        said.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    divergence = (np.exp(said[0]) * (said[0] - said[1])).sum(axis=1)
    print("RESULT " + json.dumps(float(divergence.max())), flush=True)
    os._exit(0)  # the runtime's threads do not end with the interpreter


if __name__ == "__main__":
    main()
