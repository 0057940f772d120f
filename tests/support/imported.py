"""Stands in for worker/entry.py: runs it, and leaves in the folder PHIBUILD_IMPORTED which modules
of phibuild the process had imported at its end, as JSON: {"verb", "backend", "modules"}."""

from __future__ import annotations

import io
import json
import os
import runpy
import sys
import uuid
from pathlib import Path
from typing import NoReturn

PACKAGE = Path(__file__).resolve().parents[2] / "phibuild"


def main() -> None:
    request = sys.stdin.read()
    sys.stdin = io.StringIO(request)
    leave = os._exit

    def note(status: int) -> NoReturn:
        modules = sorted(
            name
            for name, module in list(sys.modules.items())
            if name not in ("__main__", "__mp_main__")  # entry.py itself
            and str(getattr(module, "__file__", None) or "").startswith(f"{PACKAGE}{os.sep}")
        )
        found = {"verb": json.loads(request)["verb"], "backend": sys.argv[1], "modules": modules}
        path = Path(os.environ["PHIBUILD_IMPORTED"]) / f"{uuid.uuid4().hex}.json"
        path.write_text(json.dumps(found), encoding="utf-8")
        leave(status)

    os._exit = note
    runpy.run_path(str(PACKAGE / "worker" / "entry.py"), run_name="__main__")


if __name__ == "__main__":
    main()
