"""The README.md of an artifact: what it is, how to run it, where it comes from. No times, no
paths: the same build gives the same bytes."""

from __future__ import annotations

from phibuild import __version__
from phibuild.backends.base import BackendSpec
from phibuild.checkpoint import Checkpoint
from phibuild.schema import Variant


def artifact_readme(
    checkpoint: Checkpoint,
    spec: BackendSpec,
    variant: Variant,
    source_digest: str,
    bits_per_weight: float,
) -> str:
    """Return the text; the front matter is that of a Hugging Face model card."""
    options = ", ".join(f"{key}: {value}" for key, value in sorted(variant.options.items()))
    usage = spec.usage(variant).strip("\n")
    language = "python" if "import " in usage else "sh"
    return f"""---
library_name: {spec.library}
pipeline_tag: text-generation
base_model: {checkpoint.name}
tags: [{spec.library}, phi, quantized, {variant.precision}]
---
# {checkpoint.name}, {variant.name} ({variant.format})

Made from `{checkpoint.name}` for {spec.title}:
{variant.precision}, {bits_per_weight:.2f} bits per weight.

## Run it
In this folder:

```{language}
{usage}
```

## Provenance
| | |
|---|---|
| source sha256 | `{source_digest}` |
| variant | {variant.name} ({options or "no options"}) |
| made by | phibuild {__version__} |
| licence | {checkpoint.license} |

manifest.json lists every file with its sha256; `phibuild verify FOLDER` checks them. The licence of
the original applies to this artifact.
"""
