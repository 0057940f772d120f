"""The grids that calibrated quantization puts weights on: what it has to know of a format. Standard
library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from phibuild.worker.architecture import Architecture

Zero = Literal["middle", "code", "bias"]
STEPS = 63
"""The most steps that a scale or a bias has of what its group shares with others."""


@dataclass(frozen=True)
class Grid:
    """The numbers that a group of `group_size` weights of a row can have: by its code, 0 to
    2**bits - 1, its scale, which is stored as `scale` (a safetensors float type), and `zero`:

        middle  (code - 2**(bits - 1)) * scale
        code    (code - zero) * scale, zero being a code of the group's own
        bias    code * scale + bias, the bias being stored as the scale is

    With `shared`, so many groups side by side share two numbers of the type `scale`: a step of
    scales and a step of biases. A group has whole steps of them, 0 to 63: its scale is that many of
    the first, its bias less than zero by that many of the second.

    `negative`: whether the runtime takes negative scales (they give the level that only one side
    has to the larger side). `head`: lm_head, or the embedding that a tied model has in its place,
    is on this grid too.
    """

    bits: int
    group_size: int
    zero: Zero
    scale: str
    negative: bool = True
    head: bool = False
    shared: int = 0

    def to_json(self) -> dict[str, int | str | bool]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, int | str | bool]) -> Grid:
        return cls(**data)  # type: ignore[arg-type]

    @property
    def top(self) -> int:
        """The greatest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def span(self) -> int:
        """Weights of a row whose scales belong together; rows have whole spans."""
        return self.group_size * max(self.shared, 1)

    def nbytes(self, rows: int, columns: int) -> int:
        """Return the bytes that a matrix takes: codes (two in a byte up to 4 bits), scales, zeros
        or biases, and steps."""
        codes = rows * columns // (2 if self.bits <= 4 else 1)
        scale = 4 if self.scale == "F32" else 2
        zero = {"middle": 0, "code": 1, "bias": scale}[self.zero]
        groups = rows * columns // self.group_size
        if self.shared:
            return codes + groups * 2 + groups // self.shared * 2 * scale
        return codes + groups * (scale + zero)


def calibrated(arch: Architecture, grid: Grid) -> list[tuple[str, tuple[int, int]]]:
    """Return name and shape [rows, columns] of the matrices that are put on a grid: the linear
    layers, and the head where the grid has it."""
    head = "model.embed_tokens.weight" if arch.tied else "lm_head.weight"
    return [
        (name, (shape[0], shape[1]))
        for name, shape in arch.tensors()
        if len(shape) == 2 and (name.startswith("model.layers.") or (grid.head and name == head))
    ]
