"""What the values of an artifact's graphs are called. Standard library only."""

from __future__ import annotations

INPUTS = "inputs"
"""The graph that makes of ids what the others take, on the CPU."""
IDS, LAST, TOTAL = "input_ids", "past_seq_len", "total_seq_len"
"""Its inputs as onnxruntime-genai gives them: ids [1, S]; the position of the last of them [1, 1]
(for a part of a prompt that is filled up, of the last filling); a length that is not needed [1]."""
HIDDEN, COS, SIN, MASK, SLOTS, LOGITS = "hidden", "cos", "sin", "mask", "slots", "logits"
PASTS = ("past_key_values.%d.key", "past_key_values.%d.value")
PRESENTS = ("present.%d.key", "present.%d.value")
NEWS = ("new.%d.key", "new.%d.value")


def hidden_name(layer: int) -> str:
    """Return what is the input of a layer, or of the head."""
    return f"{HIDDEN}.{layer}"
