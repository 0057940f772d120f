"""The frozen data that flows through phibuild: devices, variants, cells, gates, settings."""

from __future__ import annotations

from phibuild.schema.base import (
    PRECISIONS,
    Document,
    Frozen,
    Options,
    PositiveSize,
    Precision,
    Size,
    document_text,
)
from phibuild.schema.devices import ONE_VARIANT, Accelerator, Device, DeviceClass
from phibuild.schema.evaluation import Evaluation, Judging
from phibuild.schema.gates import Gates
from phibuild.schema.variants import (
    Calibration,
    Cell,
    Contradiction,
    InputFile,
    Misfit,
    Skip,
    Variant,
)

__all__ = [
    "ONE_VARIANT", "PRECISIONS", "Accelerator", "Calibration", "Cell", "Contradiction",
    "Device", "DeviceClass", "Document", "Evaluation", "Frozen", "Gates", "InputFile",
    "Judging", "Misfit", "Options", "PositiveSize", "Precision", "Size", "Skip", "Variant",
    "document_text",
]  # fmt: skip
