"""Export a checkpoint by coreai-torch and quantize it by coreai-opt; runs in Apple's environment
(coreai.txt).

    python coreai_export.py SOURCE PRECISION OUTPUT TOKENS

writes OUTPUT/model.aimodel: one pass over TOKENS tokens without a cache, with the short factors of
longrope, as PyTorch's exporter takes Transformers' model. Apple's own exporter, of a repository
that is on no index, makes other graphs by the same two libraries.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

KINDS = {"int4": ("INT4", "PER_BLOCK"), "int8": ("INT8", "PER_CHANNEL")}


def export(source: Path, tokens: int) -> Any:
    """Return the program in fp32."""
    import torch
    from coreai_torch import TorchConverter, get_decomp_table
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(source), dtype=torch.float32, attn_implementation="eager"
    ).eval()

    class Whole(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            with torch.no_grad():
                empty = torch.zeros(1, tokens, model.config.hidden_size)
                cos, sin = model.model.rotary_emb(empty, torch.arange(tokens)[None])
            mask = torch.triu(torch.full((1, 1, tokens, tokens), -1e9), 1)
            for name, values in (("cos", cos), ("sin", sin), ("mask", mask)):
                self.register_buffer(name, values)

        def forward(self, ids: Any) -> Any:
            hidden = self.model.model.embed_tokens(ids)
            for layer in self.model.model.layers:
                hidden = layer(
                    hidden,
                    attention_mask=self.mask,
                    position_embeddings=(self.cos, self.sin),
                    use_cache=False,
                )
            return self.model.lm_head(self.model.model.norm(hidden))

    class Apart(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, fused: Any, widths: list[int]) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList()
            for rows in fused.weight.detach().split(widths):
                self.parts.append(torch.nn.Linear(rows.shape[1], len(rows), bias=False))
                self.parts[-1].weight = torch.nn.Parameter(rows.clone(), requires_grad=False)

        def forward(self, hidden: Any) -> Any:
            return torch.cat([part(hidden) for part in self.parts], -1)

    heads, shared = model.config.num_attention_heads, model.config.num_key_value_heads
    for layer in model.model.layers:  # Apple's compiler narrows a fused product wrongly
        own = layer.self_attn
        own.qkv_proj = Apart(own.qkv_proj, [own.head_dim * n for n in (heads, shared, shared)])
    ids = torch.zeros(1, tokens, dtype=torch.int32)
    with torch.no_grad():
        traced = torch.export.export(Whole().eval(), (ids,))
    traced = traced.run_decompositions(get_decomp_table())
    return TorchConverter().add_exported_program(traced).to_coreai()


def main() -> None:
    source, precision, output, tokens = sys.argv[1:]
    program = export(Path(source), int(tokens))
    if precision in KINDS:
        import coreai_opt.coreai_utils as library

        kind, granularity = KINDS[precision]
        program = library.quantize_weights(
            program,
            dtype=getattr(library.DType, kind),
            qscheme=library.QScheme.SYMMETRIC,
            granularity=getattr(library.CompressionGranularity, granularity),
            block_size=32,
            weight_num_threshold=1,
            in_place=True,
        )
    Path(output).mkdir(parents=True)
    program.save_asset(Path(output) / "model.aimodel")
    sys.stdout.flush()
    os._exit(0)  # the library's threads do not end with the interpreter


if __name__ == "__main__":
    main()
