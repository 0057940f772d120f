"""Which of an artifact's weights another Core AI model has not: with the same numbers, and the same
scales in fp16. Runs in the toolchain or in Apple's environment; prints their names as JSON.

    python coreai_compare.py OURS THEIRS
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.coreai_vendor import program, weights


def main() -> None:
    ours, theirs = (weights(program(Path(folder))) for folder in sys.argv[1:])
    assert ours
    has = set(theirs.values())
    print(json.dumps(sorted(key for key, value in ours.items() if value not in has)), flush=True)
    os._exit(0)  # the runtime's threads do not end with the interpreter


if __name__ == "__main__":
    main()
