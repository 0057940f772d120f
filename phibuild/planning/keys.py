"""Content keys: the digest of everything that decides a result's content.

Each holds the request that a runner gets (requests.py), what the folders that it reads are made
from, and the digest of the code that it reaches with its locked toolchain (code.py). What the core
itself contributes is there as data, so that code which only computes it does not count: the
config.json of a view, an artifact's README without what is known once it is built. Of the core's
modules that write (view.py, readme.py) the statements count, but not what they import.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from phibuild.backends.registry import backend
from phibuild.checkpoints.facts import Checkpoint, combine_digests, license_file
from phibuild.errors import Problem
from phibuild.planning.code import facts_digest, own_digest, step_digest
from phibuild.planning.readme import artifact_readme
from phibuild.planning.requests import (
    asked_of_activations,
    asked_of_build,
    asked_of_judge,
    asked_of_quantize,
    asked_of_reference,
    asked_of_sensitivity,
    asked_of_source,
)
from phibuild.planning.steps import REFERENCE_BACKEND
from phibuild.schema import Calibration, Evaluation, Variant
from phibuild.store.store import Store, content_key

CHANGED = "the checkpoint was changed while it was read: build again when it stays as it is"
_VIEW, _README = "phibuild.checkpoints.view:make_view", "phibuild.planning.readme"
_CHOOSING = "phibuild.planning.mixing"


def source_digest(checkpoint: Checkpoint, store: Store, *, read_weights: bool) -> str | None:
    """Return the digest of a checkpoint's files; None if it is not known and not to be read."""
    if not checkpoint.links:
        return None
    digests: dict[str, str] = {}
    for name, path in checkpoint.links.items():
        if name.endswith(".safetensors"):
            found = store.weight_digest(path, read=read_weights)
            digest = found[0] if found else None
        else:
            digest = store.file_digest(path) if read_weights else store.known_digest(path)
        if digest is None:
            return None
        digests[name] = digest
    return combine_digests(digests)


def nonfinite_weights(checkpoint: Checkpoint, store: Store) -> Iterator[Problem]:
    """Yield the first weight of each file that is known not to be finite."""
    for name, path in checkpoint.links.items():
        known = store.weight_digest(path, read=False) if name.endswith(".safetensors") else None
        if known and known[1]:
            yield Problem(
                str(known[1]),
                str(path),
                "the checkpoint is damaged, or its training diverged; to build it all the same, "
                "where a format can hold it: allow_nonfinite=true",
            )


def has_changed(checkpoint: Checkpoint, digest: str, store: Store) -> bool:
    """Return whether a checkpoint's files are no more those that were hashed, by size and time of
    modification: what was read of them meanwhile may be anything."""
    return source_digest(checkpoint, store, read_weights=False) != digest


class Keys:
    """The keys of what is made of one checkpoint. `digest` is that of its files; as long as it is
    not known, the keys are those of nothing. `source` is the key of the source step."""

    def __init__(self, digest: str | None, checkpoint: Checkpoint, store: Store) -> None:
        self.digest, self._checkpoint, self._store = digest, checkpoint, store
        self._files = digest or checkpoint.reference
        asked = asked_of_source(checkpoint)
        if checkpoint.adapter:
            asked["adapter"].pop("weights")  # a path; its content is among the files
        read = {
            "files": self._files,
            "config": json.dumps(checkpoint.config),  # in its order, which is the file's
            "view": own_digest(_VIEW, store),
        }
        self.source = self._original("source", {**read, "request": json.dumps(asked)})
        facts = facts_digest(store)
        # The later steps' view has the weights that the source step makes, where it makes any.
        makes_weights = checkpoint.fusing or checkpoint.adapter
        made = {"request": json.dumps(asked), "facts": facts} if makes_weights else {}
        self._view = content_key({**read, **made})
        license = license_file(checkpoint.folder) if checkpoint.folder else None
        self._built_from = content_key(
            {
                "view": self._view,
                "facts": facts,
                "request": json.dumps(asked_of_build(checkpoint)),
                "license": license.name if license else None,
                "documents": own_digest(_README, store),
            }
        )

    def reference(self, evaluation: Evaluation, text: str) -> str:
        """Return the key of the original's logits over a text of this sha256."""
        asked = asked_of_reference(self._checkpoint, evaluation)
        return self._original("reference", {"view": self._view, "request": asked, "text": text})

    def calibrated(self, calibration: Calibration) -> str:
        """Return the key of what is taken of the original over a text: its weights on a grid, what
        it loses with them, or its activations."""
        if calibration.losses:
            asked = asked_of_sensitivity(self._checkpoint, calibration)
            data = {"view": self._view, "request": asked, "text": calibration.sha256}
            return self._original("sensitivity", data)
        if calibration.grid is not None:
            return self.quantize(calibration)
        asked = asked_of_activations(self._checkpoint, calibration)
        data = {"view": self._view, "request": asked, "text": calibration.sha256}
        return self._original("activations", data)

    def quantize(self, calibration: Calibration) -> str:
        """Return the key of the original's weights on a grid, or without one that of what a
        calibration has in common for all grids."""
        data = {
            "view": self._view,
            "request": asked_of_quantize(self._checkpoint, calibration),
            "text": calibration.sha256,
            "grid": calibration.grid.to_json() if calibration.grid else None,
        }
        return self._original("quantize", data)

    def artifact(
        self,
        variant: Variant,
        activations: str | None = None,
        cache_ranges: str | None = None,
        sensitivity: str | None = None,
    ) -> str:
        """Return the key of an artifact, `activations` being the key of what it is built from
        besides the checkpoint, `cache_ranges` that of what scales its KV cache, `sensitivity` that
        of what chooses the types of its tensors."""
        spec = backend(variant.backend)
        chosen = {"sensitivity": sensitivity, "by": own_digest(_CHOOSING, self._store)}
        return content_key(
            {
                **(chosen if sensitivity else {}),
                **({"cache_ranges": cache_ranges} if cache_ranges else {}),
                "from": self._built_from,
                "variant": variant.model_dump(mode="json"),
                "activations": activations,
                "readme": artifact_readme(self._checkpoint, spec, variant, self._files, 0.0),
                "builder": step_digest("build", variant.backend, self._store),
            }
        )

    def _original(self, kind: str, data: Mapping[str, object]) -> str:
        return content_key({**data, "builder": step_digest(kind, REFERENCE_BACKEND, self._store)})


def measure_key(
    artifact: str,
    reference: str,
    backend: str,
    evaluation: Evaluation,
    limits: Mapping[str, Sequence[object]],
    store: Store,
    tokens: int | None = None,
) -> str:
    """Return the key of a measurement: the artifact, the original's logits, of each window how many
    tokens (None: all), what judges, and the limits and comparisons that it has to decide where it
    goes no further than that."""
    return content_key(
        {
            "artifact": artifact,
            "reference": reference,
            "request": asked_of_judge(evaluation),
            "tokens": tokens,
            "limits": dict(limits) if evaluation.adaptive else None,
            "judge": step_digest("measure", backend, store),
        }
    )
