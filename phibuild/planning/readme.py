"""What the core itself puts into an artifact: README.md, which says what it is, how to run it and
where it comes from, and the checkpoint's licence. No times, no paths: the same build gives the same
bytes. An artifact's key has the text and this module's code (keys.py)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from phibuild import __version__
from phibuild.backends.base import Backend
from phibuild.backends.calibration import calibration_note
from phibuild.backends.mixed import TYPES
from phibuild.checkpoints.facts import Checkpoint, license_file
from phibuild.planning.tensor_types import types_yaml
from phibuild.schema import Variant
from phibuild.store.documents import ArtifactFacts, TokenizerComparison, TokenizerDifference
from phibuild.worker.tokenizer_check import STOPS


def add_documents(
    folder: Path, checkpoint: Checkpoint, spec: Backend, facts: ArtifactFacts
) -> None:
    """Write README.md into the folder of a finished artifact of a local checkpoint, and the licence
    if it is not there. Raises OSError."""
    assert checkpoint.folder is not None  # only local checkpoints are built
    license = license_file(checkpoint.folder)
    if license and not (folder / "LICENSE").exists():
        shutil.copyfile(license, folder / "LICENSE")
    text = artifact_readme(
        checkpoint,
        spec,
        facts.variant,
        facts.source_digest,
        facts.bits_per_weight,
        tokenizer_notes(facts.tokenizer) if facts.tokenizer else (),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def tokenizer_notes(compared: TokenizerComparison) -> list[str]:
    """Return, in sentences, how an artifact's tokenizer differs from the source's: each reason
    once, with the number of probes and the first of them, or the ids at which generation ends on
    one side alone."""
    reasons: dict[str, list[str]] = {}
    notes = []
    for difference in compared.differences:
        if difference.kind == STOPS:
            notes.append(f"{difference.why} ({_stops(difference)})")
        else:
            reasons.setdefault(difference.why, []).append(difference.text)
    for why, texts in reasons.items():
        shown = next((repr(text) for text in texts if text), "")
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        probes = f" ({len(texts)} of {compared.probes} probes, as {shown})" if shown else ""
        notes.append(f"{why}{probes}")
    return notes


def _stops(difference: TokenizerDifference) -> str:
    expected, found = set(difference.expected), set(difference.found)
    sides = ((found - expected, "too"), (expected - found, "not"))
    return "; ".join(
        f"at {', '.join(str(token) for token in sorted(ids))} {word}" for ids, word in sides if ids
    )


def artifact_readme(
    checkpoint: Checkpoint,
    spec: Backend,
    variant: Variant,
    source_digest: str,
    bits_per_weight: float,
    differences: Sequence[str] = (),
) -> str:
    """Return the text; the front matter is that of a Hugging Face model card. `differences` are the
    sentences of `tokenizer_notes`."""
    own = {key: value for key, value in sorted(variant.options.items()) if key != TYPES}
    options = ", ".join(f"{key}: {value}" for key, value in own.items())
    types = variant.options.get(TYPES)
    mixed = f"\n## Types of its tensors\n```yaml\n{types_yaml(types)}\n```\n" if types else ""
    command = spec.run_command(variant).strip("\n")
    limit = spec.context_limit(checkpoint.architecture, variant)
    context = f"\n## Context\nUp to {limit.tokens:,} tokens: {limit.why}.\n" if limit else ""
    sections = spec.card_sections(checkpoint.architecture, variant)
    more = "".join(f"\n## {title}\n{text}\n" for title, text in sections.items())
    others = "".join(f"- {text}\n" for text in differences)
    tokenizer = f"\n## Where its tokenizer differs\n{others}" if others else ""
    note = calibration_note(variant)
    calibrated = f"\n{note}" if note else ""
    language = "python" if "import " in command else "sh"
    return f"""---
library_name: {spec.library}
pipeline_tag: text-generation
base_model: {json.dumps(checkpoint.name, ensure_ascii=False)}
tags: [{spec.library}, phi, quantized, {variant.precision}]
---
# {checkpoint.name}, {variant.name} ({variant.format})

Made from `{checkpoint.name}` for {spec.title}:
{variant.precision}, {bits_per_weight:.2f} bits per weight.{calibrated}

## Run it
In this folder:

```{language}
{command}
```
{more}{context}{tokenizer}{mixed}
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
