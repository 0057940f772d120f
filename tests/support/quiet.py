"""Run commands and count what of them looks for a network: to be run in an empty network namespace.

`unshare --net python quiet.py COMMANDS`, where COMMANDS is JSON, a list of lists of words. Prints
JSON: {"done": [[exit code, standard output, standard error]], "attempts": n}.

The kernel counts (RFC 1213, ipOutNoRoutes) every connect() and every packet of this namespace that
there is no way for, loopback included: it has no interface that is up. Questions to a name server
are packets too.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path


def attempts() -> int:
    lines = Path("/proc/net/snmp").read_text(encoding="ascii").splitlines()
    names, values = (line.split() for line in lines if line.startswith("Ip:"))
    return int(dict(zip(names, values, strict=True))["OutNoRoutes"])


def main() -> None:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 443))  # an address of documentation, RFC 5737
    before = attempts()
    if before != 1:
        raise SystemExit(f"the kernel counted {before} attempts, not the one that was made")
    done = [
        subprocess.run(words, capture_output=True, text=True, check=False)
        for words in json.loads(sys.argv[1])
    ]
    said = [[one.returncode, one.stdout, one.stderr] for one in done]
    print(json.dumps({"done": said, "attempts": attempts() - before}))


if __name__ == "__main__":
    main()
