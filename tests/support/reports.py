"""What a build found, by the run that it wrote or confirmed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def newest_report(latest: Path) -> dict[str, Any]:
    """Return the report of the run that `latest` means. If the last build confirmed it, all that it
    says was built was found in the store."""
    data: dict[str, Any] = json.loads((latest / "report.json").read_text(encoding="utf-8"))
    if (latest / "confirmed.json").exists():
        for cell in data["cells"]:
            if cell["status"] == "built":
                cell["status"] = "cached"
    return data
