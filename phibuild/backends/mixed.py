"""Types that differ from tensor to tensor: the options that ask for them, and what each would lose.

How much a type loses is a matter of its squared error: the loss of a small change of weights is
quadratic in it. Errors are those of standard normal weights, relative to which real ones differ by
their scale, which drops out of a ratio.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import AfterValidator, Field

from phibuild.backends.base import MatrixTypes
from phibuild.backends.calibration import (
    EMBEDDED,
    SENSITIVITY_TOKENS,
    GptqOptions,
    make_calibration,
)
from phibuild.backends.common import chosen, joined
from phibuild.schema import Contradiction, Misfit, Options, PositiveSize, Precision, Variant
from phibuild.worker.grids import Grid

TYPES = "tensor_types"
"""A variant's option: matrix, by its name in the checkpoint -> type. Layouts go by it."""
TARGET_SIZE, TARGET_KL = "target_size", "target_kl"
GPTQ_LOSS = 0.55
"""What GPTQ leaves of the loss of rounding to nearest (docs/quantization.md)."""
_SQUARES = {16: 11.4, 32: 16.5, 64: 21.7, 128: 26.9, 256: 32.0, -1: 42.4}
"""Weights of a group (-1: a row of 1,024) -> 12 times the mean squared error of standard normal
ones, in steps of as many as there are: their mean squared range, less what its ends do not err."""


def affine_error(bits: int, group_size: int) -> float:
    """Return the mean squared error of standard normal weights in groups, rounded to 2**bits even
    steps over their range: a step's square over 12."""
    return _SQUARES[group_size] / (12 * ((1 << bits) - 1) ** 2)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]


UNMIXED: Options = {TYPES: None, TARGET_SIZE: None, TARGET_KL: None}
"""Options that leave every matrix the type of its variant."""


class MixedOptions(GptqOptions):
    """Options of backends whose matrices can have types of their own."""

    tensor_types: dict[Pattern, str] | None = None
    """int4 only: types of tensors, by a regular expression that is searched for in their names in
    the artifact and in the checkpoint; the first that matches counts, as with llama-quantize
    --tensor-type."""
    target_size: PositiveSize | None = None
    """int4 only: the size that the artifact may have. Types are chosen so that the loss is least:
    by what each matrix loses, which is measured on the text."""
    target_kl: Annotated[float, Field(gt=0, lt=10)] | None = None
    """int4 only: the loss that the artifact may have, in nats. Types are chosen so that it is
    smallest, and so that the losses of all matrices, added up, are no more."""

    @property
    def mixes(self) -> tuple[str, ...]:
        """The options among those above that are given."""
        return tuple(name for name in (TYPES, TARGET_SIZE, TARGET_KL) if getattr(self, name))

    @property
    def has_target(self) -> bool:
        return self.target_size is not None or self.target_kl is not None

    @property
    def uses_text(self) -> bool:
        return self.is_gptq or self.has_target


def mixed_contradiction(
    precision: Precision, options: MixedOptions, *besides: str
) -> Contradiction | None:
    """Return options for types of int4 elsewhere, or several that decide the same, `besides` among
    them."""
    wrong = options.mixes
    if wrong and precision != "int4":
        return Contradiction(
            reason=f"{joined(wrong)} of {precision}: only int4 mixes types",
            options=wrong,
            remedy=f"remove {joined(wrong)}, or ask for int4",
        )
    wrong += tuple(name for name in chosen(options) if wrong and name in besides)
    if len(wrong) > 1:
        return Contradiction(
            reason=f"{joined(wrong)} decide the same: the types of tensors",
            options=wrong,
            remedy="keep one of them",
        )
    return None


def mixed_variant(
    variant: Variant,
    options: MixedOptions,
    grid: Grid,
    matrices: Sequence[MatrixTypes],
    *,
    long: bool = False,
) -> Variant | Misfit:
    """Return the variant with the types that the options choose for some of `matrices`, or with
    the target by which they will be chosen; `grid` is what losses are measured on, `long` whether
    the runtime always uses the long rope factors."""
    if options.tensor_types:
        return _named(variant, options.tensor_types, matrices)
    if not options.has_target:
        return variant
    text = make_calibration(options.text or EMBEDDED, SENSITIVITY_TOKENS)
    asked: Options = {"sensitivity_text": text.sha256}
    if options.target_size is not None:
        name, asked[TARGET_SIZE] = _short(options.target_size), options.target_size
    else:
        name, asked[TARGET_KL] = f"kl{options.target_kl:g}", options.target_kl
    changed = _changed(variant, name, asked)
    losses = replace(text, grid=grid, losses=True, long=long)
    return changed.model_copy(update={"sensitivity": losses})


def _short(size: int) -> str:
    return f"{size / 1e9:.3g}GB" if size >= 10**9 else f"{size / 1e6:.3g}MB"


def _changed(variant: Variant, name: str, options: Options) -> Variant:
    return variant.model_copy(
        update={"name": f"{variant.name}-{name}", "options": {**variant.options, **options}}
    )


def _named(
    variant: Variant, patterns: Mapping[str, str], matrices: Sequence[MatrixTypes]
) -> Variant | Misfit:
    """Return the variant with types by pattern, or why one or its type is none of this model's."""
    types: dict[str, str] = {}
    for pattern, kind in patterns.items():
        found = [
            matrix
            for matrix in matrices
            if re.search(pattern, matrix.name) or re.search(pattern, matrix.source)
        ]
        if not found:
            names = ", ".join(matrix.name for matrix in matrices[:6])
            return Misfit(
                option=TYPES,
                reason=f"no tensor is called {pattern!r}",
                remedy=f"there are {names}, ...",
            )
        for matrix in found:
            kinds = [choice.kind for choice in matrix.choices]
            if kind not in kinds:
                return Misfit(
                    option=TYPES,
                    reason=f"{matrix.name} cannot be {kind}",
                    remedy=f"it can be {' or '.join(kinds)}",
                )
            types.setdefault(matrix.source, kind)
    return _changed(variant, "mixed", {TYPES: types})
