"""Compare the data of two ExecuTorch programs, whatever it is called; runs in the toolchain.

`python executorch_compare.py OURS THEIRS` takes folders, and prints as JSON the names of ours that
the other has not, and the keys of the other that ours has not.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from phibuild.backends.executorch.graph import MEAN, TURN  # noqa: E402
from phibuild.backends.executorch.inspect import MODEL, read_program  # noqa: E402


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of what is under each name, but of what only phibuild multiplies by."""
    path = folder / MODEL
    program, begin = read_program(path)
    found = {}
    with path.open("rb") as file:
        for named in program["named_data"]:
            segment = program["segments"][named["segment_index"]]
            file.seek(begin + segment["offset"])
            found[named["key"]] = hashlib.sha256(file.read(segment["size"])).hexdigest()
    return {name: digest for name, digest in found.items() if name not in (MEAN, TURN)}


def main() -> None:
    ours, theirs = (digests(Path(word)) for word in sys.argv[1:])
    wrong = [name for name, digest in ours.items() if digest not in theirs.values()]
    wrong += [name for name, digest in theirs.items() if digest not in ours.values()]
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
