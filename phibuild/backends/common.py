"""What the specs of several backends share: variants, skips, contradictions, sizes. Core only."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from phibuild.backends.base import BackendSpec, ContextLimit, OptionsModel, SourceFiles
from phibuild.schema import Accelerator, Contradiction, Device, Options, Precision, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.companions import companions
from phibuild.worker.tokenizer_check import TOKENIZER


def make_variant(
    spec: BackendSpec[OptionsModel], precision: Precision, name: str, options: Options
) -> Variant:
    """Return a backend's variant in its one format."""
    return Variant(
        backend=spec.name, precision=precision, name=name, format=spec.format, options=options
    )


def cached_variant(variant: Variant, cache: str, bits: int) -> Variant:
    """Return the variant that is made for a KV cache of another type than its runtime's default."""
    options = {**variant.options, "kv_cache": cache}
    return variant.model_copy(update={"name": f"{variant.name}-kv{bits}", "options": options})


def missing_accelerator(device: Device, needed: Accelerator, why: str) -> str | None:
    """Return `why` a device must have an accelerator and what it has instead; None if it has it."""
    if needed in device.accelerators:
        return None
    return f"{why}; {device.title} has {', '.join(device.accelerators)}"


def undivided(arch: Architecture, group_size: int) -> str | None:
    """Return which width of the layers' matrices is no whole number of groups, None if all are."""
    widths = {
        "hidden_size": arch.hidden_size,  # inputs of qkv_proj and gate_up_proj
        "the attention's width": arch.heads * arch.head_dim,
        "intermediate_size": arch.intermediate_size,
    }
    for what, width in widths.items():
        if width % group_size:
            return f"groups of {group_size} do not divide {what} ({width})"
    return None


def plain_weights(precision: Precision, options: BaseModel, *besides: str) -> Contradiction | None:
    """Return which options, but for `besides`, are given to a precision whose weights are cast and
    nothing more; None if none is."""
    wrong = chosen(options, *besides)
    if not wrong:
        return None
    return Contradiction(
        reason=f"{precision} weights are plain, without {joined(wrong)}",
        options=wrong,
        remedy=f"remove {joined(wrong)}, or ask for int4 or int8",
    )


def chosen(options: BaseModel, *besides: str) -> tuple[str, ...]:
    """Return the names of the options that were given a value, but for `besides`, in the order of
    their fields: null, auto and an empty list stand for none, and one that is given its default
    counts."""
    return tuple(
        name
        for name in type(options).model_fields
        if name in options.model_fields_set
        and name not in besides
        and getattr(options, name) not in (None, "auto", ())
    )


def joined(options: Sequence[str]) -> str:
    """Return names as a person lists them: a; a and b; a, b and c."""
    return " and ".join(filter(None, (", ".join(options[:-1]), options[-1])))


def window_limit(arch: Architecture, lacking: str) -> ContextLimit | None:
    """Return the limit of a runtime without sliding windows: as long as all tokens lie within the
    window it makes no difference. None where the window is no smaller than the model's context.
    `lacking` ends "a window which ..."."""
    window = arch.sliding_window
    if window is None or window >= arch.max_positions:
        return None
    return ContextLimit(
        window,
        f"the model's attention reaches back over a window of that many tokens, which {lacking}: "
        "beyond it the artifact is another model",
    )


def kv_bytes(dtype: str) -> float:
    """Return the bytes of an element of a KV cache that has the type of the activations."""
    return 4.0 if dtype == "float32" else 2.0


def copied_bytes(source: SourceFiles) -> int:
    """Return the bytes of config.json and of the files that are copied beside the weights."""
    names = ("config.json", *companions(source.files))
    return sum(source.files.get(name, 0) for name in names)


def facts_bytes(source: SourceFiles) -> int:
    """Return the bytes of the same files where tokenizer.json is as it is in memory, and is written
    without white space."""
    return copied_bytes(source) - source.files.get(TOKENIZER, 0) + tokenizer_bytes(source)


def tokenizer_bytes(source: SourceFiles) -> int:
    """Return those of such a tokenizer.json: a token is `"t":12345,`, a merge `["a","b"],`."""
    vocabulary = source.token_bytes + source.tokens * (4 + len(str(max(source.tokens, 1))))
    halves = source.merge_bytes - source.merges  # without the space between two halves
    return vocabulary + halves + source.merges * 8
