"""Snapdragon chips that context binaries are made for. Standard library only.

`soc_model` is Qualcomm's number (QNN_SOC_MODEL_* of QnnTypes.h in its AI Runtime SDK), by which the
compiler knows the NPU: its architecture and how much memory of its own it has."""

from __future__ import annotations

from typing import Literal

Soc = Literal["sm8550", "sm8650", "sm8750", "sm8850", "sc8380xp"]
SOCS: dict[Soc, tuple[int, str]] = {
    "sm8550": (43, "Snapdragon 8 Gen 2"),
    "sm8650": (57, "Snapdragon 8 Gen 3"),
    "sm8750": (69, "Snapdragon 8 Elite"),
    "sm8850": (87, "Snapdragon 8 Elite Gen 5"),
    "sc8380xp": (60, "Snapdragon X Elite and X Plus"),
}
"""Qualcomm's number and what shops call the chip."""
