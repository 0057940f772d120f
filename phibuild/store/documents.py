"""The documents of the store: manifest.json of its folders, what judging found."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

from phibuild.schema import Document, Variant
from phibuild.worker.stopping import Stopped

Seconds = Annotated[FiniteFloat, Field(ge=0)]
RareFigure = Annotated[FiniteFloat | None, Field(exclude_if=lambda value: value is None)]
"""A figure that is left out where it was not measured."""


class ManifestFile(Document):
    """A file of a folder of the store."""

    path: str
    """From the folder, with / between names."""
    size: int
    """Bytes."""
    sha256: str
    mtime_ns: int
    """Time of the last modification, nanoseconds since 1970. A file whose size and time are these
    counts as what was written; else it is hashed."""


class Manifest(Document):
    """manifest.json of a folder of the store: what is in it, file by file. That of what the
    original left (its facts, logits, activations) has no more than this."""

    schema_version: Literal[1] = 1
    key: str
    """The folder's name in the store: the digest of all that decides the content."""
    artifact_digest: str
    """sha256 of a line `path sha256` for each of the files, in their order."""
    files: list[ManifestFile]
    """All but manifest.json itself, in the order of their paths."""


class TokenizerDifference(Document):
    """A probe that an artifact's tokenizer makes other ids of than the source's, since its runtime
    cannot do better."""

    expected: list[int]
    """The source's token ids; of kind "stops" the ids at which generation ends."""
    found: list[int]
    """The artifact's."""
    kind: str
    """The kind of probe; "around" is what is put before and after a text, "stops" where generation
    ends."""
    text: str
    """The probe."""
    why: Annotated[str, Field(min_length=1)]
    """Why the runtime cannot do better, in a sentence."""


class TokenizerComparison(Document):
    """An artifact's tokenizer, in its own runtime, beside the source's (docs/source.md)."""

    differences: list[TokenizerDifference]
    probes: PositiveInt
    """Number of texts that were compared."""


class ArtifactFacts(Document):
    """What an artifact is, how it was made, what that took."""

    model: str
    """The model's name in the recipe."""
    source_digest: str
    """sha256 of the checkpoint's files."""
    backend: str
    variant: Variant
    """How it was made: the backend's name for it, and every option."""
    format: str
    """The file format."""
    phibuild_version: str
    toolchain_digest: str
    """sha256 of the toolchain's lock, with Python and platform."""
    builder_digest: str
    """sha256 of the backend's code and its toolchain."""
    activations: str | None = None
    """Key of what was taken of the original for it, if anything was: its activations (`imatrix`),
    its weights on the format's grid (`method: gptq`)."""
    types: dict[str, int]
    """Weights by the type that they are stored in."""
    tokenizer: TokenizerComparison | None = None
    """null: a phibuild made it that did not compare them yet."""
    bits_per_weight: float
    """Bits of all weights, with scales and zero points, by their number."""
    build_seconds: Seconds
    """What building it took: its own work and its share of the pass that it was built in."""
    build_own_seconds: Seconds | None = None
    """The work for this artifact alone; null: the backend does not tell it apart."""
    build_shared_seconds: Seconds | None = None
    """An equal share of the work for all artifacts of the pass; null: the backend does not tell it
    apart."""
    peak_rss_bytes: NonNegativeInt
    """Largest resident memory of the runner while it was built, mapped files included."""


class ArtifactManifest(ArtifactFacts, Manifest):
    """manifest.json of an artifact: what it is, how it was made, and every file."""


class WindowQuality(Document):
    """One window of the text: means over its positions. Two artifacts that were judged by the same
    text compare window by window."""

    window: int
    """Its place among the reference's windows, from 0."""
    kl: FiniteFloat
    """KL(original || artifact), nats."""
    top1: FiniteFloat
    """Share of positions where both prefer the same token."""
    nll: FiniteFloat
    """-ln p of the next token by the artifact, nats."""
    reference_nll: FiniteFloat
    """The same by the original."""


class PositionLoss(Document):
    """The loss in a stretch of the windows: positions `start` to `end` - 1."""

    start: int
    end: int
    kl: FiniteFloat
    """Mean over windows and positions, nats."""


class Quality(Document):
    """How far an artifact's predictions are from the original's over the held-out text
    (docs/judging.md)."""

    kl_mean: FiniteFloat
    """Mean over positions of KL(original || artifact), in nats; 0 below 1e-9, the resolution of
    logits in float32."""
    kl_error: RareFigure = None
    """Standard error of the mean over windows; null: there was one window."""
    kl_p99: FiniteFloat
    """Its 99th percentile."""
    top1: FiniteFloat
    """Share of positions where both prefer the same token, 0 to 1."""
    top1_error: RareFigure = None
    """Its standard error over windows."""
    perplexity: FiniteFloat
    """The artifact's: exp of the mean negative log-probability of the next token."""
    reference_perplexity: FiniteFloat
    """The original's."""
    perplexity_change: RareFigure = None
    """The artifact's over the original's, less 1."""
    perplexity_change_error: RareFigure = None
    """Its standard error, each window paired with the original's."""
    tokens: PositiveInt
    """Positions that were compared."""
    windows: PositiveInt | None = None
    """Windows that they lie in."""
    stopped: Stopped | None = None
    """Why there are no more: every gate was decided (gates), the standard error of kl_mean was
    below 5 % of it (precision), there are none (all); null: this was not asked."""
    cached_decoding_kl: FiniteFloat
    """Mean divergence of decoding step by step from one pass, in nats."""
    native_kl: RareFigure = None
    """Mean divergence of the runtime's own kernels from the judged logits, in nats. Only where
    those kernels are too slow to judge by (MLX)."""
    runtime_kl: RareFigure = None
    """Mean KL against the ordinary original, in nats. Only where a runtime always uses the long
    rope factors (MLX), and the figures above are against an original that does too."""
    by_window: list[WindowQuality] = Field(default_factory=list)
    """In the order in which they were judged; none in reports of older versions."""
    by_position: list[PositionLoss] = Field(default_factory=list)
    """By stretches of the windows; none in reports of older versions."""


class Speed(Document):
    """How fast an artifact's runtime is on the machine that built, not on the device."""

    load_seconds: FiniteFloat
    prefill_tokens_per_second: FiniteFloat
    """Median over the windows of one pass."""
    decode_tokens_per_second: FiniteFloat
    """Of the pass step by step."""


class Measure(Document):
    """What judging an artifact found."""

    quality: Quality
    speed: Speed
    peak_rss_bytes: NonNegativeInt
    """Largest resident memory of the runner while it judged."""
    seconds: Seconds
    """What judging took."""


class StoredMeasure(Document):
    """measures/<key>.json of the store."""

    measure: Measure
    sha256: str
    """Of the measure as JSON, its keys sorted, without white space."""


class NonFinite(Document):
    """A weight that is infinite or NaN (`value`), at `position` in a tensor."""

    tensor: str
    position: list[int]
    value: str

    def __str__(self) -> str:
        return f"tensor {self.tensor} holds {self.value} at {self.position}"


class FileDigest(Document):
    """What is remembered of a checkpoint's file as long as its size and time are these:
    `nonfinite`, the first weight that is not finite, only of a file whose weights were read."""

    size: int
    mtime_ns: int
    sha256: Annotated[str, Field(min_length=1)]
    nonfinite: NonFinite | None = None

    @property
    def of_weights(self) -> bool:
        return "nonfinite" in self.model_fields_set
