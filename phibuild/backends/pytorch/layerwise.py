"""Phi-3 in fp32, of any size in little memory: weights are read layer by layer.

The modules are Transformers' own (Phi3DecoderLayer, Phi3RMSNorm, Phi3RotaryEmbedding, its masks),
called as its Phi3ForCausalLM calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, DynamicCache, Phi3Config
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import (
    Phi3DecoderLayer,
    Phi3RMSNorm,
    Phi3RotaryEmbedding,
)

from phibuild.backends.pytorch.activation_rounding import rounding
from phibuild.backends.pytorch.memory import HEAD_ELEMENTS
from phibuild.backends.pytorch.stored_weights import WeightReader
from phibuild.worker.architecture import Architecture
from phibuild.worker.json_values import JsonDict
from phibuild.worker.protocol import WorkerError

Positions = tuple[Tensor, Tensor]
"""Cosines and sines [1, T, rotary width] of T positions."""
Filled = TypeVar("Filled")


class LayerwisePhi3:
    """The model in `folder`, weights widened to fp32 when they are used.

    The original is what phibuild's reading `arch` of its config.json says, so that the witness
    proves that reading; an artifact (None) is what its own config.json says. The first layers, and
    the first rows of lm_head, stay in memory as far as `budget_bytes` reaches; the others share the
    place of one.
    """

    def __init__(
        self, folder: Path, arch: Architecture | None = None, budget_bytes: int = 0
    ) -> None:
        config = own_config(folder) if arch is None else model_config(arch)
        self.config = config
        self._weights = WeightReader(folder)
        self._embedding = "model.embed_tokens.weight"
        self._head = self._embedding if config.tie_word_embeddings else "lm_head.weight"
        self._rotary = Phi3RotaryEmbedding(config)
        self._norm = Phi3RMSNorm(config.hidden_size, eps=config.rms_norm_eps).requires_grad_(False)
        self._weights.fill("model.norm.weight", self._norm.weight)

        layer_bytes = 4 * sum(tensor.numel() for tensor in self._layer().parameters())
        self._layers = _FirstKept(
            self._layer, self._fill_layer, config.num_hidden_layers, budget_bytes // layer_bytes
        )
        budget_bytes -= self._layers.kept * layer_bytes
        self._head_rows = min(max(HEAD_ELEMENTS // config.hidden_size, 1), config.vocab_size)
        self._head_parts = _FirstKept(
            lambda: torch.empty(self._head_rows, config.hidden_size),
            self._fill_head,
            -(-config.vocab_size // self._head_rows),
            budget_bytes // (4 * self._head_rows * config.hidden_size),
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings [B, T, hidden] of `ids` [B, T]."""
        return self._weights.rows(self._embedding, ids)

    def positions(self, first: int, count: int) -> Positions:
        """Return what rotates `count` positions from `first` on."""
        ids = torch.arange(first, first + count)[None]
        # The states given along say which dtype and device are wanted.
        cos_sin: Positions = self._rotary(torch.empty(0), position_ids=ids)
        return cos_sin

    def long_positions(self, count: int) -> Positions | None:
        """Return what rotates the first positions by the long factors; None without longrope.

        Transformers takes the short factors up to `original_max_position_embeddings` tokens, some
        runtimes (mlx-lm's SuScaledRoPE) the long ones always. The scale of cos and sin is
        sqrt(1 + ln(max/original)/ln(original)) in both and for both sets, so only the frequencies
        change.
        """
        if self._rotary.rope_type != "longrope":
            return None
        original = self.config.rope_parameters["original_max_position_embeddings"]
        frequencies, _ = ROPE_INIT_FUNCTIONS["longrope"](self.config, seq_len=original + 1)
        rotary = Phi3RotaryEmbedding(self.config)
        # What is restored for short contexts; inv_freq itself is set anew in every pass.
        rotary.original_inv_freq.copy_(frequencies)
        cos_sin: Positions = rotary(torch.empty(0), position_ids=torch.arange(count)[None])
        return cos_sin

    def mask(self, count: int, cache: DynamicCache | None = None) -> Tensor | None:
        """Return the attention mask [1, 1, T, keys] of `count` tokens after those in the cache;
        None where a plain causal one is due."""
        first = cache.get_seq_length() if cache is not None else 0
        sliding = self.config.sliding_window is not None
        make = create_sliding_window_causal_mask if sliding else create_causal_mask
        mask: Tensor | None = make(
            config=self.config,
            inputs_embeds=torch.empty(1, count, 0),
            attention_mask=None,
            past_key_values=cache,
            position_ids=torch.arange(first, first + count)[None],
        )
        return mask

    def layers(self, first: int = 0) -> Iterator[Phi3DecoderLayer]:
        """Yield the decoder layers from number `first` on; each is valid until the next one, or
        until `drop`."""
        for number in range(first, self.config.num_hidden_layers):
            if self._layers.kept <= number + 1 < self._layers.count:
                names = (self._layer_tensor(number + 1, name) for name in self._layer_tensors)
                self._weights.expect(names)
            yield self._layers[number]

    def drop(self) -> None:
        """Give the memory of the layer away that was yielded last."""
        self._layers.drop()

    @property
    def head_name(self) -> str:
        """The weight that is multiplied by at the end: a tied model's embedding, or lm_head's."""
        return self._head

    def shape(self, name: str) -> tuple[int, int]:
        """Return the shape of a matrix of the checkpoint."""
        return self._weights.shape(name)

    def fill(self, name: str, rows: Tensor, first: int) -> None:
        """Fill `rows` (fp32) with those of a matrix from number `first` on."""
        self._weights.fill(name, rows, first)

    def norm(self, hidden: Tensor) -> Tensor:
        """Return the states that lm_head takes."""
        normed: Tensor = self._norm(hidden)
        return normed

    def head(self) -> Iterator[tuple[int, Tensor]]:
        """Yield lm_head [V, hidden] in parts: number of the first row, and rows; each is valid
        until the next one."""
        for part in range(self._head_parts.count):
            first = part * self._head_rows
            yield first, self._head_parts[part][: self.config.vocab_size - first]

    def _layer(self) -> Phi3DecoderLayer:
        with torch.device("meta"):
            layer = Phi3DecoderLayer(self.config, 0)
        self._layer_tensors = [name for name, _ in layer.named_parameters()]
        for name, module in layer.named_modules():
            how = self._weights.activations_of(self._layer_tensor(0, f"{name}.weight"))
            if how is not None and name.endswith("_proj"):  # of all layers, if of one
                module.register_forward_pre_hook(rounding(how))
        return layer.eval().requires_grad_(False)

    def _layer_tensor(self, number: int, name: str) -> str:
        return f"model.layers.{number}.{name}"

    def _fill_layer(self, layer: Phi3DecoderLayer, number: int) -> None:
        if next(layer.parameters()).is_meta:
            _make_room(layer)
        layer.self_attn.layer_idx = number  # where it keeps keys and values in a cache
        for name, parameter in layer.named_parameters():
            self._weights.fill(self._layer_tensor(number, name), parameter)

    def _fill_head(self, rows: Tensor, part: int) -> None:
        first = part * self._head_rows
        self._weights.fill(self._head, rows[: self.config.vocab_size - first], first)


def _make_room(layer: nn.Module) -> None:
    """Give parameters without data memory, as `to_empty` does; that asks PyTorch's compiler, which
    is a third of a second's import, how their memory is to be laid out."""
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            room = torch.empty(parameter.shape, dtype=parameter.dtype)
            module.register_parameter(name, nn.Parameter(room, requires_grad=False))


def own_config(folder: Path) -> Phi3Config:
    """Return a folder's config.json as Transformers reads it. Raises WorkerError if it is not that
    of a Phi-3."""
    config = AutoConfig.from_pretrained(
        folder, attn_implementation="sdpa", local_files_only=True, trust_remote_code=False
    )
    if not isinstance(config, Phi3Config):
        raise WorkerError(f"config.json describes a {config.model_type} model, not a Phi-3")
    return config


def model_config(arch: Architecture) -> Phi3Config:
    """Return the configuration of Transformers' modules that an architecture means."""
    rope: JsonDict = {
        "rope_type": "longrope" if arch.rope.is_longrope else "default",
        "rope_theta": arch.rope.theta,
        "partial_rotary_factor": arch.rope.partial,
    }
    if arch.rope.is_longrope:
        rope |= {
            "short_factor": list(arch.rope.short),
            "long_factor": list(arch.rope.long),
            "attention_factor": arch.attention_factor,
        }
    return Phi3Config(
        vocab_size=arch.vocab_size,
        hidden_size=arch.hidden_size,
        intermediate_size=arch.intermediate_size,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        max_position_embeddings=arch.max_positions,
        original_max_position_embeddings=arch.original_max_positions,
        rms_norm_eps=arch.norm_eps,
        sliding_window=arch.sliding_window,
        tie_word_embeddings=arch.tied,
        rope_parameters=rope,
        attn_implementation="sdpa",
    )


class _FirstKept(Generic[Filled]):
    """`count` things that are made, then filled by number. The first `keep` are filled now and stay
    so; the others share one: what `[number]` returns is valid until the next call.

    Passes go through all of them in order, where the least recently used is always the next one
    needed: what is kept must not change.
    """

    def __init__(
        self,
        make: Callable[[], Filled],
        fill: Callable[[Filled, int], None],
        count: int,
        keep: int,
    ) -> None:
        self.count = count
        self._make, self._fill = make, fill
        self._kept: list[Filled] = []
        for number in range(max(min(keep, count), 0)):
            self._kept.append(make())
            fill(self._kept[number], number)
        self._shared: Filled | None = None

    @property
    def kept(self) -> int:
        return len(self._kept)

    def drop(self) -> None:
        """Give the shared one away; it is made anew when it is needed."""
        self._shared = None

    def __getitem__(self, number: int) -> Filled:
        if number < len(self._kept):
            return self._kept[number]
        if self._shared is None:
            self._shared = self._make()
        self._fill(self._shared, number)
        return self._shared
