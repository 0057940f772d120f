"""What a script in another environment prints of its result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from support import warm

ROOT = Path(__file__).resolve().parents[2]


def told(command: list[str], asked: object = None) -> Any:
    """Run a command, which can import phibuild, with `asked` as JSON; return the JSON behind RESULT
    in its last line. Fails the test with what it says, if it fails."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = warm.run(command, input=json.dumps(asked), env=environ)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
