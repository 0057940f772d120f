"""Which checkpoint a recipe builds, as it is written."""

from __future__ import annotations

from pydantic import model_serializer, model_validator

from phibuild.schema import Frozen


class ModelChoice(Frozen):
    """Which checkpoint a recipe builds: `path`, a reference (a name of the catalogue, a folder,
    org/name@revision); or an `adapter`, a PEFT folder, on its `base`, a reference. `name` stands in
    cell ids; without one it comes from the reference. A text is the reference alone."""

    path: str | None = None
    """A whole checkpoint: a name of `phibuild list models`, a folder, or org/name@revision."""
    base: str | None = None
    """The checkpoint that the adapter was trained on."""
    adapter: str | None = None
    """Folder of a LoRA adapter, as PEFT saves it."""
    name: str | None = None
    """The model's name in cell ids; null: from the path."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        match value:
            case str():
                return {"path": value}
            case dict() | ModelChoice():
                return value
        raise ValueError("must be text or a mapping")

    @model_validator(mode="after")
    def _check(self) -> ModelChoice:
        if self.path is not None:
            for other in ("base", "adapter"):
                if getattr(self, other) is not None:
                    raise ValueError(
                        f"'path', a whole checkpoint, and '{other}' cannot stand together: an "
                        "adapter needs base and adapter"
                    )
        elif self.adapter is None:
            if self.base is not None:
                raise ValueError("'base' needs an adapter; a whole checkpoint is written as path")
            raise ValueError("names no checkpoint: write path, or base and adapter")
        elif self.base is None:
            raise ValueError("'adapter' needs base, the model that it was trained on")
        for key in ("base", "adapter", "name"):
            if getattr(self, key) == "":
                raise ValueError(f"'{key}' must not be empty")
        if self.name is not None and not any(letter.isalnum() for letter in self.name):
            raise ValueError("'name' needs a letter or a digit")
        return self

    @model_serializer
    def _dump(self) -> str | dict[str, str]:
        given = {key: value for key, value in dict(self).items() if value is not None}
        return given["path"] if list(given) == ["path"] else given

    @property
    def reference(self) -> str:
        """What the checkpoint is made from, as one line."""
        return self.path if self.path is not None else f"{self.base} + {self.adapter}"
