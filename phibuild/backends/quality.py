"""`quality: best`: the int4 variant that loses least of those that a device and a model can have.

A backend's spec has the choices, best first (`BackendSpec.best`); the variant is the same as with
their options written out.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from phibuild.backends.base import Backend
from phibuild.backends.common import chosen, joined
from phibuild.schema import Contradiction, Device, Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture


def is_best(options: BaseModel) -> bool:
    """Say whether options ask for the best variant."""
    return getattr(options, "quality", None) == "best"


def decided(spec: Backend) -> set[str]:
    """Return the names of the options that `quality: best` chooses."""
    return {name for choice in spec.best for name in choice.options}


def contradiction(
    spec: Backend, precision: Precision, options: BaseModel, device: Device | None
) -> Contradiction | None:
    """Return which options do not go together on a device, or on any (None). Beside
    `quality: best` nothing stands that it chooses."""
    if not is_best(options):
        return spec.contradiction(precision, options)
    if precision != "int4":
        return Contradiction(
            reason=f"quality best chooses among the variants of int4, not of {precision}",
            options=("quality",),
            remedy="remove quality, or ask for int4",
        )
    wrong = tuple(name for name in chosen(options) if name in decided(spec))
    if wrong:
        return Contradiction(
            reason=f"quality best chooses {joined(wrong)} itself",
            options=(*wrong, "quality"),
            remedy=f"remove {joined(wrong)}, or quality",
        )
    found = [spec.contradiction(precision, one) for one in _choices(spec, options, device)]
    return None if None in found else found[0]


def make_variant(
    spec: Backend, precision: Precision, options: BaseModel, device: Device, arch: Architecture
) -> Variant | Skip | Misfit:
    """Return what to build, or why the device or the model cannot have it. Of options that ask for
    the best it is the first choice that can be had."""
    if not is_best(options):
        return spec.variant(precision, options, device, arch)
    made: Variant | Skip | Misfit = Skip(reason="there is no best variant")
    for choice in _choices(spec, options, device):
        if spec.contradiction(precision, choice) is None:
            made = spec.variant(precision, choice, device, arch)
            if isinstance(made, Variant):
                break
    return made


def _choices(spec: Backend, options: BaseModel, device: Device | None) -> Iterator[BaseModel]:
    """Yield the options that `quality: best` may stand for, beside those that were given."""
    given = options.model_dump(exclude_unset=True, exclude={"quality"})
    for choice in spec.best:
        if device is None or choice.accelerator in (None, *device.accelerators):
            yield spec.options.model_validate({**given, **choice.options})
