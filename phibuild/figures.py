"""The figures of a device file: what no device has is refused, and what lacks its unit."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from phibuild.units import parse_size

_LEAST_MEMORY, _MOST_MEMORY = 1 << 20, 1 << 50
_MOST_CONTEXT = 10_000_000


def _device_bytes(value: object) -> int:
    """Return the bytes of a device's memory or budget; raises ValueError for a figure that no
    device has."""
    if isinstance(value, float) and 0 < value < 1e4 and value != int(value):
        raise ValueError(f"{value!r} has no unit; write for example '{value} GiB'")
    size = parse_size(value)
    if 0 < size < _LEAST_MEMORY:
        if isinstance(value, str) and not value.strip().isdecimal():
            raise ValueError("less than 1 MiB holds no model")
        # What people mean by 4, 8000 and 262144.
        number = size if size <= 1 << 17 else size >> 10
        unit = "GiB" if number <= 1024 else "MiB"
        raise ValueError(f"{value!r} has no unit; write for example '{number} {unit}'")
    if size > _MOST_MEMORY:
        raise ValueError("no device has more than 1 PiB")
    return size


def _context_length(value: int) -> int:
    if value > _MOST_CONTEXT:
        raise ValueError(f"no Phi has a context of more than {_MOST_CONTEXT:,} tokens")
    return value


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty: say where the figure comes from")
    return value


DeviceBytes = Annotated[int, BeforeValidator(_device_bytes), Field(gt=0)]
ContextLength = Annotated[int, Field(gt=0), AfterValidator(_context_length)]
Said = Annotated[str, AfterValidator(_said)]
