"""The script that draws the plots in a browser: Vega-Embed with Vega and Vega-Lite, as vl-convert
brings it. It takes seconds to make and is kept in the user's cache, gzipped, by its version."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from importlib import metadata
from pathlib import Path

from phibuild.system.files import write_atomically
from phibuild.system.places import cache_folder

PACKAGE = "vl-convert-python"
_SNIPPET = "window.vegaEmbed=vegaEmbed;"


def plot_script() -> bytes | None:
    """Return the script, gzipped; None where vl-convert is not to be had."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    kept = cache_folder() / "plots" / f"vega-{version}.js.gz"
    if (script := _read(kept)) is not None:
        return script
    try:
        import vl_convert
    except ImportError:  # made for another platform
        return None
    script = gzip.compress(vl_convert.javascript_bundle(_SNIPPET).encode(), 9, mtime=0)
    with contextlib.suppress(OSError):  # without a cache it is made again
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, script)
    return script


def _read(path: Path) -> bytes | None:
    """Return a kept script, if it is whole."""
    try:
        script = path.read_bytes()
        gzip.decompress(script)
    except (OSError, EOFError, zlib.error):
        return None
    return script
