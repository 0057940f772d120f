"""A LiteRT-LM bundle (.litertlm): metadata, tokenizer and model, sections of one file.

The header is that of litert-lm-builder 0.18 (litertlm_builder.py): magic bytes, version, and a
flatbuffer with where each section lies, on a multiple of 16 KiB. The builder itself would copy the
model; here it is the last section, and is written where it lies. What the builder draws anew for
every file is left out (the time) or comes from its content (the UUID): equal bundles are equal.
"""

from __future__ import annotations

import hashlib
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import flatbuffers
from litert_lm_builder import litertlm_core as core
from litert_lm_builder import litertlm_header_schema_py_generated as schema

MODEL, METADATA, TOKENIZER = (
    schema.AnySectionDataType.TFLiteModel,
    schema.AnySectionDataType.LlmMetadataProto,
    schema.AnySectionDataType.HF_Tokenizer_Zlib,
)
_MODEL_TYPE = "tf_lite_prefill_decode"


@dataclass(frozen=True)
class Section:
    """Bytes of a bundle, from `begin` to `end`."""

    begin: int
    end: int


class Bundle:
    """The sections before the model, and where that begins."""

    def __init__(self, metadata: bytes, tokenizer: bytes) -> None:
        packed = len(tokenizer).to_bytes(8, "little") + zlib.compress(tokenizer)
        self._sections = [(METADATA, metadata), (TOKENIZER, packed)]
        offset = _aligned(core.HEADER_BEGIN_BYTE_OFFSET + len(self._header(1)))
        self._places: list[Section] = []
        for _, content in self._sections:
            self._places.append(Section(offset, offset + len(content)))
            offset = _aligned(offset + len(content))
        self.begin = offset
        """Of the model."""

    def pieces(self, model_bytes: int) -> Mapping[int, bytes]:
        """Return what lies before the model, by offset, now that its size is known."""
        header = self._header(model_bytes)
        lead = core.HEADER_MAGIC_BYTES + b"".join(
            number.to_bytes(4, "little")
            for number in (
                core.LITERTLM_MAJOR_VERSION,
                core.LITERTLM_MINOR_VERSION,
                core.LITERTLM_PATCH_VERSION,
            )
        )
        end = core.HEADER_BEGIN_BYTE_OFFSET + len(header)
        lead = lead.ljust(core.HEADER_END_LOCATION_BYTE_OFFSET, b"\0") + end.to_bytes(8, "little")
        pieces = {0: lead + header}
        for place, (_, content) in zip(self._places, self._sections, strict=True):
            pieces[place.begin] = content
        return pieces

    def _header(self, model_bytes: int) -> bytes:
        """Return the flatbuffer; of the same size whatever the offsets."""
        content = hashlib.sha256(b"".join(content for _, content in self._sections)).digest()
        known = getattr(self, "_places", [Section(1, 1)] * len(self._sections))
        begin = getattr(self, "begin", 1)
        places = [*known, Section(begin, begin + model_bytes)]
        kinds = [kind for kind, _ in self._sections] + [MODEL]
        objects = [
            schema.SectionObjectT(
                items=[_text("model_type", _MODEL_TYPE)] if kind == MODEL else [],
                dataType=kind,
                beginOffset=place.begin,
                endOffset=place.end,
            )
            for kind, place in zip(kinds, places, strict=True)
        ]
        document = schema.LiteRTLMMetaDataT(
            systemMetadata=schema.SystemMetadataT(
                entries=[_text("uuid", str(uuid.UUID(bytes=content[:16], version=5)))]
            ),
            sectionMetadata=schema.SectionMetadataT(objects=objects),
        )
        builder = flatbuffers.Builder(1 << 12)
        builder.Finish(document.Pack(builder))
        return bytes(builder.Output())


def _text(key: str, value: str) -> object:
    return schema.KeyValuePairT(
        key=key, valueType=schema.VData.StringValue, value=schema.StringValueT(value=value)
    )


def _aligned(offset: int) -> int:
    block: int = core.BLOCK_SIZE
    return -(-offset // block) * block


def read_sections(path: Path) -> dict[int, Section]:
    """Return the sections of a bundle by their kinds: MODEL, METADATA, TOKENIZER and whatever else
    it has. Raises ValueError if it is none."""
    with path.open("rb") as file:
        lead = file.read(core.HEADER_BEGIN_BYTE_OFFSET)
        if lead[: len(core.HEADER_MAGIC_BYTES)] != core.HEADER_MAGIC_BYTES:
            raise ValueError(f"{path.name} is no LiteRT-LM bundle")
        end = int.from_bytes(lead[core.HEADER_END_LOCATION_BYTE_OFFSET :], "little")
        header = file.read(end - core.HEADER_BEGIN_BYTE_OFFSET)
    known = schema.LiteRTLMMetaData.GetRootAs(header).SectionMetadata()
    objects = [known.Objects(number) for number in range(known.ObjectsLength())]
    return {one.DataType(): Section(one.BeginOffset(), one.EndOffset()) for one in objects}


def read_section(path: Path, section: Section) -> bytes:
    """Return the bytes of a section."""
    with path.open("rb") as file:
        file.seek(section.begin)
        return file.read(section.end - section.begin)
