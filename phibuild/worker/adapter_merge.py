"""What merging a LoRA adapter does to each canonical tensor, as the worker that does it is told.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from phibuild.worker.companions import TOKENIZER_FILES
from phibuild.worker.json_values import JsonDict, JsonObject

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER = "adapter/"
"""Where a view has the files of an adapter."""
TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class Delta:
    """B @ A * scale, which is added to `rows` rows of a canonical tensor from `first` on. `a`, `b`
    are tensors of the adapter's file: of a linear layer [rank, in], [rows, rank]; of an embedding
    [rank, rows], [hidden, rank], whose product is transposed."""

    a: str
    b: str
    rank: int
    scale: float
    first: int
    rows: int
    embedding: bool


@dataclass(frozen=True)
class Replacement:
    """A tensor of the adapter's file that takes the place of `rows` rows from `first` on."""

    tensor: str
    first: int
    rows: int


@dataclass(frozen=True)
class Changes:
    """What an adapter does to the canonical tensors, by their names, replacements before deltas."""

    deltas: Mapping[str, Sequence[Delta]]
    replacements: Mapping[str, Sequence[Replacement]]

    @classmethod
    def from_json(cls, data: JsonObject) -> Changes:
        """Return what `Adapter.to_json` tells."""
        return cls(
            {name: [Delta(**one) for one in some] for name, some in data["deltas"].items()},
            {
                name: [Replacement(**one) for one in some]
                for name, some in data["replacements"].items()
            },
        )


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to the canonical tensors, by their names, replacements before deltas;
    `tokenizer` are its own tokenizer files by name, {} if it has no complete set."""

    folder: Path
    deltas: Mapping[str, tuple[Delta, ...]]
    replacements: Mapping[str, tuple[Replacement, ...]]
    tokenizer: Mapping[str, Path]

    @property
    def rank(self) -> int:
        """The largest rank, 0 if there is no LoRA: what the merge's memory depends on."""
        return max((delta.rank for some in self.deltas.values() for delta in some), default=0)

    def links(self, base: Mapping[str, Path]) -> dict[str, Path]:
        """Return the files that are the source, by their names in its view: the base's, the
        adapter's own below adapter/, and its tokenizer in the place of the base's."""
        kept = {
            name: path
            for name, path in base.items()
            if not (self.tokenizer and is_tokenizer_file(name))
        }
        own = {f"{ADAPTER}{name}": self.folder / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
        return dict(sorted({**kept, **self.tokenizer, **own}.items()))

    def to_json(self) -> JsonDict:
        """Return what merge.py takes."""
        return {
            "weights": str(self.folder / ADAPTER_WEIGHTS),
            "deltas": {name: [asdict(one) for one in some] for name, some in self.deltas.items()},
            "replacements": {
                name: [asdict(one) for one in some] for name, some in self.replacements.items()
            },
        }


def is_tokenizer_file(name: str) -> bool:
    """Return whether a file of a checkpoint, by its name in its folder, is one of a tokenizer's."""
    return name in TOKENIZER_FILES or name.startswith(f"{TEMPLATES}/")
