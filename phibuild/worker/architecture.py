"""Facts of a Phi-3-architecture model, read from its config.json. Standard library only.

Covers what `Phi3ForCausalLM` covers: Phi-3, 3.5, 4-mini and 4 (text). The core and the workers
inside the toolchains both use it, so that shapes and rope are worked out in one place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from phibuild.worker.config_keys import refused_values
from phibuild.worker.json_values import (
    JsonDict,
    JsonObject,
    as_object,
    is_number,
    is_whole_number,
)

# Formats and runtimes count in 32 bits; the deepest models have some hundred layers.
_MOST, _MOST_LAYERS = 2**31 - 1, 10_000
LONGROPE = ("longrope", "su", "yarn")
"""What config.json may call longrope: `su` is its first name; Phi3Config reads `yarn` so, too."""
_ORIGINAL_POSITIONS = 4096  # Phi3Config's default


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: `theta`, rotated share of a head, and the longrope factors if it has them.

    The factors have `rotary_dim / 2` entries; `short` holds up to `original_max_positions`
    tokens, `long` above. `attention_factor` scales cos and sin where it is not the usual one
    (`Architecture.usual_attention_factor`).
    """

    theta: float
    partial: float
    short: tuple[float, ...]
    long: tuple[float, ...]
    attention_factor: float | None = None

    @property
    def is_longrope(self) -> bool:
        return bool(self.long)


@dataclass(frozen=True)
class Architecture:
    """Shape of the model. Widths are in elements, positions in tokens."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    tied: bool
    max_positions: int
    original_max_positions: int
    sliding_window: int | None
    norm_eps: float
    dtype: str
    rope: Rope

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def rotary_dim(self) -> int:
        """Elements of a head that are rotated: `int(head_dim * partial_rotary_factor)`."""
        return int(self.head_dim * self.rope.partial)

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def attention_factor(self) -> float:
        """The scale of cos and sin."""
        own = self.rope.attention_factor
        return self.usual_attention_factor if own is None else own

    @property
    def usual_attention_factor(self) -> float:
        """Longrope's scale where config.json names none: sqrt(1 + ln(s)/ln(original)), s =
        max/original."""
        if not self.rope.is_longrope:
            return 1.0
        scale = self.max_positions / self.original_max_positions
        return _longrope_scale(scale, self.original_max_positions)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of every tensor that a checkpoint of this shape must hold."""
        hidden, inner = self.hidden_size, self.intermediate_size
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (hidden,)
            yield prefix + "self_attn.qkv_proj.weight", (self.qkv_width, hidden)
            yield prefix + "self_attn.o_proj.weight", (hidden, self.heads * self.head_dim)
            yield prefix + "post_attention_layernorm.weight", (hidden,)
            yield prefix + "mlp.gate_up_proj.weight", (2 * inner, hidden)
            yield prefix + "mlp.down_proj.weight", (hidden, inner)
        yield "model.norm.weight", (hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab_size, hidden)

    @property
    def parameters(self) -> int:
        """Number of weights, a tied embedding counted once."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    def to_json(self) -> JsonDict:
        return asdict(self)

    @classmethod
    def from_json(cls, data: JsonObject) -> Architecture:
        rope = data["rope"]
        return cls(
            **{key: value for key, value in data.items() if key != "rope"},
            rope=Rope(
                rope["theta"],
                rope["partial"],
                tuple(rope["short"]),
                tuple(rope["long"]),
                rope["attention_factor"],
            ),
        )


def _longrope_scale(scale: float, original: int) -> float:
    return 1.0 if scale <= 1.0 else math.sqrt(1 + math.log(scale) / math.log(original))


def read_architecture(config: JsonObject) -> Architecture:
    """Return the architecture that a published Phi config.json describes.

    Takes both spellings of rope: `rope_theta` + `rope_scaling` (as published) and
    `rope_parameters` (as Transformers 5 saves it), and of two values for one thing the one that
    Transformers' Phi3Config takes: `rope_scaling` before `rope_parameters`, what is inside before
    what stands beside it, but for `original_max_position_embeddings`, which is only read beside it
    (4096 if it is missing). Raises KeyError with the name of a missing key, ValueError with what
    is inconsistent, both beginning with the key.
    """
    for _, wrong in refused_values(config):
        raise ValueError(wrong)
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    kv_heads = _count(config, "num_key_value_heads", heads)
    if hidden % heads:
        raise ValueError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    if heads % kv_heads:
        raise ValueError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    scaling = as_object(rope, "rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", *LONGROPE):
        raise ValueError(f"rope_scaling type {kind!r} is not one that Phi models use (longrope)")
    longrope = kind in LONGROPE
    maximum = _count(config, "max_position_embeddings")
    original = _count(
        config,
        "original_max_position_embeddings",
        _ORIGINAL_POSITIONS if longrope else maximum,
    )
    inside = _count(scaling, "original_max_position_embeddings", original)
    if longrope and inside != original:
        raise ValueError(
            f"original_max_position_embeddings {inside} inside rope_scaling is not read by "
            f"Transformers, which takes {original}: write the right one beside rope_scaling"
        )
    if longrope and original < 2:
        raise ValueError(f"original_max_position_embeddings must be 2 or more, not {original}")
    theta = _number(scaling, "rope_theta", _number(config, "rope_theta", 10000.0))
    partial = _number(
        scaling, "partial_rotary_factor", _number(config, "partial_rotary_factor", 1.0)
    )
    if partial > 1:
        raise ValueError(f"partial_rotary_factor is a share of a head, not {partial:g}")
    arch = Architecture(
        hidden_size=hidden,
        intermediate_size=_count(config, "intermediate_size"),
        layers=_count(config, "num_hidden_layers", most=_MOST_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        vocab_size=_count(config, "vocab_size"),
        tied=_flag(config, "tie_word_embeddings"),
        max_positions=maximum,
        original_max_positions=original,
        sliding_window=_count(config, "sliding_window", 0) or None,
        norm_eps=_number(config, "rms_norm_eps"),
        dtype=str(config.get("torch_dtype") or config.get("dtype") or "bfloat16"),
        rope=Rope(
            theta=theta,
            partial=partial,
            short=_factors(scaling, "short_factor") if longrope else (),
            long=_factors(scaling, "long_factor") if longrope else (),
            attention_factor=_attention_factor(scaling, maximum, original) if longrope else None,
        ),
    )
    if arch.rotary_dim % 2:  # Transformers rotates one element more then, or fails
        raise ValueError(
            f"partial_rotary_factor {partial:g} of a head of {arch.head_dim} is a rotary width of "
            f"{arch.rotary_dim}: it must be even, since elements are rotated in pairs"
        )
    for name, factors in (("short_factor", arch.rope.short), ("long_factor", arch.rope.long)):
        if longrope and len(factors) != arch.rotary_dim // 2:
            raise ValueError(
                f"rope_scaling {name} has {len(factors)} entries, "
                f"a rotary width of {arch.rotary_dim} needs {arch.rotary_dim // 2}"
            )
    return arch


def _attention_factor(scaling: JsonObject, maximum: int, original: int) -> float | None:
    """Return longrope's scale if the configuration names another than the usual one: itself
    (`attention_factor`), or the stretch that it comes from (`factor`)."""
    factor = _number(scaling, "factor", maximum / original)
    own = _number(scaling, "attention_factor", _longrope_scale(factor, original))
    usual = _longrope_scale(maximum / original, original)
    return None if own == usual else own


def _count(config: JsonObject, key: str, default: int | None = None, *, most: int = _MOST) -> int:
    """Return a positive whole number; `default` where the key is absent or null."""
    value = config.get(key) if default is not None else config[key]
    if value is None and default is not None:
        return default
    if not is_whole_number(value) or value < 1:
        raise ValueError(f"{key} must be a whole number greater than 0, not {value!r}")
    if value > most:
        raise ValueError(f"{key} must be {most:,} at most")
    return value


def _number(config: JsonObject, key: str, default: float | None = None) -> float:
    """Return a positive number; `default` where the key is absent or null."""
    value = config.get(key) if default is not None else config[key]
    if value is None and default is not None:
        return default
    if not is_number(value) or not 0 < value < 1e300:
        raise ValueError(f"{key} must be a number greater than 0, not {value!r}")
    return float(value)


def _flag(config: JsonObject, key: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, not {value!r}")
    return value


def _factors(scaling: JsonObject, key: str) -> tuple[float, ...]:
    values = scaling[key]
    if not isinstance(values, list) or not all(isinstance(n, (int, float)) for n in values):
        raise ValueError(f"rope_scaling {key} must be a list of numbers")
    return tuple(map(float, values))
