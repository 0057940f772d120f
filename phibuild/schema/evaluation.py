"""How artifacts are judged, as a recipe says it, and as this machine can."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from phibuild.schema.base import Document, Frozen, Size


class Evaluation(Frozen):
    """How artifacts are judged."""

    enabled: bool = True
    """false: artifacts are built and not judged."""
    adaptive: bool = True
    """Only as many windows as it takes to decide all gates, or to know the loss."""
    windows: Annotated[int, Field(gt=0, le=10**9)] = 20
    """How many windows of the text, evenly spaced over it."""
    window_tokens: Annotated[int, Field(ge=16, le=10**9)] = 256
    """Tokens of a window."""
    decode_tokens: Annotated[int, Field(ge=1, le=10**9)] = 32
    """Steps that are decoded one by one: cached decoding must agree with one pass."""
    max_reference_bytes: Size = 2 << 30
    """What the original's logits may take; with a large vocabulary there are fewer windows."""
    text: str | None = None
    """A UTF-8 file of your own; null: the held-out text that phibuild ships."""


class Judging(Document):
    """How a variant's artifacts are judged on this machine."""

    how: Literal["native", "substitute", "no"] = "native"
    """native: as they are made to be run; substitute: in another form; no: they cannot be."""
    note: str | None = None
    """That form ("its graph on the CPU"), or why they cannot be: words that begin in lower case;
    null: native."""

    @model_validator(mode="after")
    def _said(self) -> Judging:
        if (self.how == "native") != (self.note is None):
            raise ValueError("a note says what is judged instead, or why nothing is")
        return self
