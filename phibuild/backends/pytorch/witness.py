"""A witness for phibuild's reading of a checkpoint: Transformers' own.

`from_pretrained` loads the user's folder (or a copy of it with two layers, cut.py) without any of
phibuild's code, and its logits must be those of the original as phibuild reads it: its files, its
config.json, its tensors. A judge that shared the builder's mistake would find nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Phi3Config

from phibuild.backends.pytorch.layerwise import LayerwisePhi3, model_config
from phibuild.backends.pytorch.memory import HEAD_ELEMENTS
from phibuild.worker.architecture import Architecture
from phibuild.worker.protocol import WorkerError
from phibuild.worker.safetensors import TensorInfo, read_checkpoint, read_header

LIMIT = 1e-5
"""How far the largest difference of two logits may be, relative to the largest logit."""
_TOKENS = 64
# What of a configuration decides Phi-3's arithmetic, by Transformers' names.
_DECIDING = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "sliding_window",
    "max_position_embeddings",
)
_ROPE = ("rope_type", "rope_theta", "partial_rotary_factor", "short_factor", "long_factor")


@dataclass(frozen=True)
class Testimony:
    """Logits [W, T, V] of windows of `ids` that begin at the positions `starts` [W], the values
    that decide the arithmetic, and the names of tensors that were not used."""

    logits: Tensor
    config: dict[str, object]
    unused: tuple[str, ...]


def compare(theirs: Path, ours: Path, arch: Architecture) -> float:
    """Compare Transformers' reading of the folder `theirs` with phibuild's of the view `ours`,
    whose architecture is `arch`; return the relative difference of their logits.

    Raises WorkerError, with the keys and tensors that are read in another way, if it is beyond
    `LIMIT`.
    """
    ids = torch.randint(arch.vocab_size, (_TOKENS,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        their = _transformers(theirs, ids, _starts(arch))
        gc.collect()
        own = _phibuild(ours, arch, ids)
    distance = _distance(their.logits, own.logits)
    keys = [key for key, value in their.config.items() if own.config.get(key) != value]
    if distance <= LIMIT and not keys:
        return distance
    said = [
        f"Transformers reads {key} as {_short(their.config[key])}, phibuild as "
        f"{_short(own.config.get(key))}"
        for key in keys
    ]
    if own.unused:
        said.append(f"phibuild does not read {', '.join(own.unused[:3])}")
    raise WorkerError(
        f"phibuild reads this checkpoint otherwise than Transformers: logits differ by "
        f"{distance:.2g} of the largest (limit {LIMIT:g})" + "".join(f"; {one}" for one in said)
    )


def _distance(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference of two logits relative to the largest of `expected`; infinite
    where one holds NaN or infinity and the other does not. Weights that are not finite, which the
    user may allow, make logits that are not."""
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        return float("inf")
    expected, found = expected[finite], found[finite]
    if not expected.numel():
        return 0.0
    largest = float(expected.abs().max()) or 1.0
    return float((expected - found).abs().max()) / largest


def _starts(arch: Architecture) -> tuple[int, ...]:
    """Return where windows begin: at 0, and with longrope beyond the original positions, where its
    other factors hold."""
    return (0, arch.original_max_positions) if arch.rope.is_longrope else (0,)


def _transformers(folder: Path, ids: Tensor, starts: tuple[int, ...]) -> Testimony:
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_widest(folder),
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # of the many kinds that Transformers raises
        reason = " ".join(str(error).split())[:300]
        raise WorkerError(f"Transformers itself cannot load the checkpoint: {reason}") from error
    model.eval()
    inner, config = model.model, model.config
    # What is stored in 16 bits is widened, which changes nothing: the layers as a whole, the large
    # tables a part at a time.
    inner.layers.float()
    inner.norm.float()
    states = inner.embed_tokens(ids)[None].float()
    logits = []
    for start in starts:
        positions = torch.arange(start, start + len(ids))[None]
        hidden = inner(inputs_embeds=states, position_ids=positions, use_cache=False)
        logits.append(_product(hidden.last_hidden_state[0], model.get_output_embeddings().weight))
    return Testimony(torch.stack(logits), _deciding(config), ())


def _phibuild(folder: Path, arch: Architecture, ids: Tensor) -> Testimony:
    model = LayerwisePhi3(folder, arch)
    logits = []
    for start in _starts(arch):
        hidden = model.embed(ids[None])
        positions = model.positions(start, len(ids))
        mask = model.mask(len(ids))
        for layer in model.layers():
            hidden = layer(hidden, attention_mask=mask, position_embeddings=positions)
        hidden = model.norm(hidden)[0]
        out = torch.empty(len(ids), arch.vocab_size)
        for first, rows in model.head():
            torch.mm(hidden, rows.T, out=out[:, first : first + len(rows)])
        logits.append(out)
    known = {name for name, _ in arch.tensors()}
    unused = tuple(name for name in read_checkpoint(folder) if name not in known)
    return Testimony(torch.stack(logits), _deciding(model_config(arch)), unused)


def _widest(folder: Path) -> torch.dtype:
    """Return a type that holds all weights of the folder's files as they are."""
    kinds = {tensor.dtype for path in folder.glob("*.safetensors") for tensor in _header(path)}
    return {frozenset({"BF16"}): torch.bfloat16, frozenset({"F16"}): torch.float16}.get(
        frozenset(kinds), torch.float32
    )


def _header(path: Path) -> Iterator[TensorInfo]:
    yield from read_header(path).values()


def _product(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return hidden [T, H] times the transposed weight [V, H] in fp32."""
    step = max(HEAD_ELEMENTS // weight.shape[1], 1)
    return torch.cat([hidden @ rows.float().T for rows in weight.split(step)], dim=1)


def _deciding(config: Phi3Config) -> dict[str, object]:
    found = {key: getattr(config, key, None) for key in _DECIDING}
    rope = config.rope_parameters
    found |= {f"rope {key}": rope.get(key) for key in _ROPE}
    if rope.get("rope_type") == "longrope":
        found["original_max_position_embeddings"] = config.original_max_position_embeddings
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
