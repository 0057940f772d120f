"""report.json: what a run was, and what became of each cell. The contract for other programs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from phibuild.execute.local.scheduler import Bound
from phibuild.schema import Document, Evaluation, Judging, Options, Precision
from phibuild.store.documents import Quality, Speed, TokenizerComparison


class Host(Document):
    """The machine that ran phibuild."""

    system: str
    """System and processor, as "Linux x86_64"."""
    python: str
    """Version of phibuild's own Python."""
    cores: int | None
    """Of the machine; null: the system does not say."""
    memory_bytes: int
    """Of the machine."""


class ReportModel(Document):
    """A source that artifacts were made from."""

    name: str
    """As it stands in cell ids."""
    reference: str
    """What the recipe names: a model of the catalogue, a folder, org/name@revision."""
    commit: str | None = None
    """Of the Hub's repository, null for a folder."""
    source_digest: str | None
    """sha256 of its files; null: they were not read, since nothing was built."""
    parameters: int
    """Number of its weights."""
    bytes: int
    """Of its weights."""
    reference_perplexity: float | None = None
    """Of the original over the held-out text; null: nothing was judged."""
    notes: list[str] = Field(default_factory=list)
    """How it is read, in sentences."""
    warnings: list[str] = Field(default_factory=list)
    """What is suspicious about it, in sentences."""


class GateBaseline(Document):
    """What a gate compares a figure with."""

    run: str
    """The baseline, as the recipe names it."""
    value: int | float | None
    """The baseline's figure; null: it has none (`problem`)."""
    factor: float
    """The gate's limit is so many times it,"""
    margin: float
    """and so much more: nats, a share, bytes."""
    windows: int | None
    """Windows of the text that both were judged on, of which the figures of both are then; null: of
    all that either was judged on. A size has none."""
    problem: str | None
    """Why there is nothing to compare with; the gate is not held against the cell."""


class Gate(Document):
    """A limit that the recipe sets for a cell, and whether it was kept."""

    name: Literal["kl", "top1", "size", "fits_budget"]
    limit: bool | int | float | None
    """kl: nats, at most; top1: share, at least; size: bytes, at most; fits_budget: true; null: a
    baseline's that it has not."""
    value: bool | int | float | None
    """null: not measured."""
    passed: bool | None
    """null: not measured, and not held against the cell. false without a value: it cannot be
    measured on this machine (`judged`)."""
    baseline: GateBaseline | None = None
    """What the limit comes from; null: it stands in the recipe."""


class Provenance(Document):
    """What decides an artifact's bytes besides its options: digests as in its manifest.json."""

    key: str
    """Of the artifact in the store: the digest of all that decides its bytes."""
    source_digest: str
    activations: str | None
    phibuild_version: str
    builder_digest: str
    toolchain_digest: str


class CellSpeed(Speed):
    """How fast an artifact is on the machine that built, and what running it took."""

    peak_rss_bytes: int
    """Largest resident memory of the runner while it judged."""


class MatrixLoss(Document):
    """What the original loses with one matrix alone on a grid."""

    kl: float
    """Mean KL, nats."""
    kl_error: float
    """Its standard error over chunks of the text; 0: there was one chunk."""


class Sensitivity(Document):
    """What was measured of every matrix of a model, by which types of tensors were chosen."""

    key: str
    """In the store."""
    model: str
    grid: dict[str, bool | int | str]
    """`bits`, `group_size`, how zeros and scales are stored."""
    tokens: int
    """Of the text, at most."""
    text_sha256: str
    long: bool
    """By the long rope factors, which the runtime always uses."""
    losses: dict[str, MatrixLoss]
    """Matrix, by its name in the checkpoint -> its loss."""


class ReportCell(Document):
    """A square of the matrix: a model for a device, by a backend, at a precision."""

    id: str
    """model.device.backend.precision, and the variant (int4.Q4_K_M) where there are several"""
    model: str
    device: str
    backend: str
    precision: Precision
    variant: str | None
    """What users of the backend call it (Q4_K_M); null: skipped."""
    options: Options | None
    """The backend's own, complete; null: skipped. `tensor_types` that were chosen for a target are
    those of the artifact; of one that failed, those it was planned with."""
    format: str
    """The file format."""
    status: Literal["built", "cached", "skipped", "failed"]
    """cached: it was in the store; skipped: it cannot work there."""
    reason: str | None
    """Why it was skipped or failed."""
    size_bytes: int | None
    """Of the artifact's files. Here and below: null where there is no artifact."""
    estimated_bytes: int | None
    """What the plan said."""
    bits_per_weight: float | None
    """Bits of all weights, with scales and zero points, by their number."""
    ratio_to_source: float | None
    """size_bytes by the bytes of the source's weights."""
    build_seconds: float | None
    """What building it took: its own work and its share of the pass that it was built in; of a
    cached one, when it was built."""
    build_own_seconds: float | None = None
    """The work for this artifact alone; null: the backend does not tell it apart."""
    build_shared_seconds: float | None = None
    """An equal share of the work for all artifacts of the pass; null: the backend does not tell it
    apart."""
    peak_rss_bytes: int | None
    """Largest resident memory of the runner while it was built, mapped files included."""
    judged: Judging | None = None
    """How it is judged on this machine; null: skipped, or nothing is judged (`evaluation=none`)."""
    quality: Quality | None
    """null: not judged."""
    speed: CellSpeed | None
    """null: not judged."""
    device_memory_bytes: int | None
    """Estimate for the device: weights, KV cache at its context length, activations of 512 tokens
    and 100 MiB; null: skipped."""
    device_budget_bytes: int
    """What a model, its KV cache and its buffers may take on the device."""
    device_budget_written: str | None = None
    """As the device's file has it ("4 GiB"); null: an older phibuild wrote the report."""
    fits_budget: bool | None
    gates: list[Gate]
    """Those that the recipe sets; none of a cell that failed."""
    notes: list[str] = Field(default_factory=list)
    """Where its runtime or its tokenizer is not quite the original, in sentences."""
    tokenizer: TokenizerComparison | None
    best: bool
    """The smallest of its model and device that was judged, fits and keeps its gates."""
    artifact: str | None
    """Its folder, from the run's folder."""
    artifact_digest: str | None
    """That of its manifest.json; cells that share an artifact have the same."""
    provenance: Provenance | None


class ReportStep(Document):
    """A step that ran: when, beside what, what it took."""

    id: str
    cores: int
    """What it was given; 0: it runs no runner."""
    memory_bytes: int
    """Anonymous memory that was planned for it."""
    started_seconds: float
    """From the start of the run."""
    seconds: float | None
    """null: interrupted."""
    waited_seconds: dict[Bound, float]
    """How long it was ready and waited, by what it waited for."""
    beside: list[str]
    """Steps that ran at the same time."""
    attempts: int
    """2: it was run again, alone, after it had run out of memory."""
    cpu_seconds: float
    """Of its runners with their children."""
    loading_seconds: float = 0.0
    """CPU seconds of those that went into imports and the loading of libraries: they are charged to
    no artifact."""
    peak_anonymous_bytes: int | None
    """Largest anonymous memory that they took; null: not known."""
    place: str | None = None
    """Job and node on a cluster."""


class ReportExecutor(Document):
    """What the steps were run within."""

    kind: Literal["local", "slurm"] = "local"
    cores: int
    """For all steps; on a cluster a job's."""
    memory_bytes: int
    """For all steps; on a cluster the largest job's."""
    bounded_by_seconds: dict[Bound, float]
    """Seconds by what kept more from running: cores, memory, steps that others need, the steps that
    were left (work), a cluster's queue."""


class Totals(Document):
    """The run in figures."""

    built: int
    cached: int
    skipped: int
    failed: int
    gates_failed: int
    """Cells that miss a gate."""
    size_bytes: int
    """Of all artifacts; one that cells share counts once."""
    steps: int
    """That the plan had."""
    seconds: float
    interrupted: bool
    """By Ctrl-C or SIGTERM."""


class Report(Document):
    """report.json of a run, and what `build --json` and `report --json` print. Sizes are bytes,
    times seconds."""

    schema_version: Literal[1] = 1
    phibuild_version: str
    recipe: str
    configuration: str
    """The recipe as it was composed, YAML."""
    configuration_sha256: str
    command: str
    host: Host
    model: ReportModel
    """The first of `models`."""
    models: list[ReportModel]
    evaluation: Evaluation
    """How artifacts were judged."""
    cells: list[ReportCell]
    sensitivities: list[Sensitivity] = Field(default_factory=list)
    """What types of tensors were chosen by."""
    steps: list[ReportStep] = Field(default_factory=list)
    """In the order of their starts."""
    executor: ReportExecutor | None = None
    totals: Totals


class Confirmation(Document):
    """confirmed.json of a run: later builds found nothing new, and wrote no run of their own."""

    schema_version: Literal[1] = 1
    phibuild_version: str
    """Of the last of these builds, as all below."""
    time: float
    """When it ended, seconds since 1970."""
    command: str
    host: Host
    confirmations: int
    """How many builds there were."""
