"""What specs of formats share whose graph phibuild writes down, for a context that is part of it:
litert, executorch, coreai. Core only."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from phibuild.backends.base import (
    BackendSpec,
    ContextLimit,
    MatrixTypes,
    StoredTensor,
    TypeChoice,
)
from phibuild.backends.calibration import calibrated_variant, gptq_contradiction
from phibuild.backends.common import chosen, make_variant, plain_weights, undivided
from phibuild.backends.mixed import (
    GPTQ_LOSS,
    MixedOptions,
    affine_error,
    mixed_contradiction,
    mixed_variant,
)
from phibuild.schema import Contradiction, Device, Misfit, Options, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.encodings import ROW, Encoding, type_name
from phibuild.worker.grids import Grid

SMALLEST = 32
"""Weights that share a scale of int4, by default, and that may among larger groups."""


class WrittenOptions(MixedOptions):
    """Options of these backends, each of which says what its own are."""

    group_size: int | None = None
    context: int | None = None


WrittenModel = TypeVar("WrittenModel", bound=WrittenOptions)


class WrittenSpec(BackendSpec[WrittenModel]):
    """A backend of such a format; it says the rest in words and numbers of its own."""

    full: str
    """Why there are no more tokens than the context: a sentence that begins in lower case."""
    lacking: str
    """What would have to have a sliding window, and has none: a clause."""
    longest: int | None = None
    """The context by default, if a device and a model have more."""
    step = 1
    """Of what contexts are multiples."""
    ungrouped = "int8 has one scale for each row, no group_size"
    """Why int8 has no groups to choose: a clause."""
    has_cache = True
    """Whether the cache is part of the artifact, so that a device with less memory for it has an
    artifact of its own."""
    fewest: int
    """The shortest context."""
    building: Callable[[Architecture, Sequence[Options]], int]
    """Bounds the memory of building variants with these options together."""
    opening: Callable[[Architecture, Sequence[Options], int], int]
    """Bounds that of judging them one after the other, over windows of so many tokens."""

    @abstractmethod
    def integers(self, bits: int, group_size: int) -> Encoding:
        """Return the format's integers of so many bits."""

    @abstractmethod
    def grid(self, arch: Architecture, group_size: int) -> Grid:
        """Return the grid of int4."""

    @abstractmethod
    def factors(self, arch: Architecture) -> Iterable[tuple[str, tuple[int, ...]]]:
        """Return name and shape of the matrices that can be integers of several types."""

    @abstractmethod
    def stored(
        self, arch: Architecture, options: Options
    ) -> Iterable[tuple[str, tuple[int, ...], Encoding]]:
        """Yield name, shape and type of all that a variant stores."""

    def besides(self, options: WrittenModel) -> dict[str, object]:
        """Return what a variant is made by besides precision, context and groups."""
        return {}

    def named(self, options: WrittenModel) -> str:
        """Return what a variant's name says besides precision, groups and context."""
        return ""

    def contradiction(self, precision: Precision, options: WrittenModel) -> Contradiction | None:
        """Return a context that no graph has, groups where there are none, and options that decide
        the same."""
        if options.context and options.context % self.step:
            below = options.context // self.step * self.step
            return Contradiction(
                reason=f"a context is a multiple of {self.step}, not {options.context}",
                options=("context",),
                remedy=f"give it {below or self.fewest} or {below + self.step}",
            )
        if precision in ("fp32", "fp16"):
            return plain_weights(precision, options, "context", *self.besides(options))
        if precision == "int8" and "group_size" in chosen(options):
            return Contradiction(
                reason=self.ungrouped,
                options=("group_size",),
                remedy="remove group_size, or ask for int4",
            )
        return gptq_contradiction(precision, options) or mixed_contradiction(precision, options)

    def variant(
        self, precision: Precision, options: WrittenModel, device: Device, arch: Architecture
    ) -> Variant | Skip | Misfit:
        """Return the variant, or why it would not work with this model."""
        limit = self._limit(arch)
        planned = device.context_length if self.has_cache else limit.tokens
        usual = min(self.longest or limit.tokens, planned, limit.tokens)
        if reason := self._no_context(options.context, device, limit):
            return Skip(reason=reason)
        context = (options.context or usual) // self.step * self.step
        own = {"mode": precision, "context": context, **self.besides(options)}
        # A context that was asked for is named; that of a device goes without saying.
        asked = f"-c{options.context}" if options.context else ""
        asked += self.named(options)
        if precision != "int4":
            return make_variant(self, precision, f"{precision}{asked}", own)
        group_size = options.group_size or SMALLEST
        reason = undivided(arch, group_size)
        if reason:
            return Skip(reason=f"{reason}; use a smaller group_size")
        own["group_size"] = group_size
        variant = make_variant(self, precision, f"int4-b{group_size}{asked}", own)
        grid = self.grid(arch, group_size)
        if options.is_gptq:
            variant = calibrated_variant(variant, options, grid)
        return mixed_variant(variant, options, grid, self.matrices(arch, variant))

    def matrices(self, arch: Architecture, variant: Variant) -> list[MatrixTypes]:
        """Return 4 bits in blocks, smaller blocks, or 8 bits with a scale for each row."""
        group_size = variant.options["group_size"]
        gptq = GPTQ_LOSS if variant.options.get("method") == "gptq" else 1.0
        errors = {self.integers(4, group_size): affine_error(4, group_size) * gptq}
        if group_size > SMALLEST:
            errors[self.integers(4, SMALLEST)] = affine_error(4, SMALLEST)
        errors[self.integers(8, ROW)] = affine_error(8, ROW)
        return [
            MatrixTypes(
                name,
                name,
                tuple(
                    TypeChoice(type_name(how), how.nbytes(shape), error)
                    for how, error in errors.items()
                ),
            )
            for name, shape in self.factors(arch)
        ]

    def layout(self, arch: Architecture, variant: Variant) -> list[StoredTensor]:
        """Return every weight as the format stores it."""
        return [
            StoredTensor(name, how.kind, math.prod(shape), how.nbytes(shape))
            for name, shape, how in self.stored(arch, variant.options)
        ]

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return a bound that the source's bytes do not change: they are streamed."""
        return self.building(arch, [variant.options for variant in variants])

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return a bound by what the runtime does with the weights (memory.py)."""
        return self.opening(arch, [variant.options for variant in variants], window_tokens)

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return the tokens that the graph is made for."""
        context = variant.options["context"]
        if context >= arch.max_positions:
            return None
        return ContextLimit(context, f"{self.full} (option context of the {self.name} backend)")

    def most_tokens(self, arch: Architecture, variant: Variant) -> int:
        """Return the tokens that the graph is made for."""
        context: int = variant.options["context"]
        return context

    def _no_context(self, asked: int | None, device: Device, limit: ContextLimit) -> str | None:
        """Return why there is no graph for a context that was asked for, or for the device's."""
        fewest = self.fewest
        if limit.tokens < fewest:
            return f"a graph is made for {fewest} tokens at least, not {limit.tokens}: {limit.why}"
        if asked is not None and not fewest <= asked <= limit.tokens:
            return f"a context of {asked} is not {fewest} to {limit.tokens} tokens: {limit.why}"
        if asked is None and self.has_cache and device.context_length < fewest:
            return (
                f"a graph is made for {fewest} tokens at least, and {device.title} has a "
                f"context_length of {device.context_length}: make that longer, or set context"
            )
        return None

    def _limit(self, arch: Architecture) -> ContextLimit:
        """Return the longest context that a graph can be made for."""
        limits = [ContextLimit(arch.max_positions, "the model has no more positions")]
        if arch.rope.is_longrope:
            limits.append(
                ContextLimit(
                    arch.original_max_positions,
                    "the graph has longrope's short factors, which the model uses up to there",
                )
            )
        if arch.sliding_window:
            limits.append(
                ContextLimit(
                    arch.sliding_window,
                    "the model's attention reaches back over a window of that many tokens, which "
                    f"{self.lacking}",
                )
            )
        return min(limits, key=lambda limit: limit.tokens)
