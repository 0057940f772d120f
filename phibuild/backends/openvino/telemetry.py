"""Importing this turns telemetry off; do it before openvino is imported.

OpenVINO's converters report their use to Intel unless the user has declined, and leave a client id
in the home folder. Without the package openvino_telemetry they do neither; a None in sys.modules
makes its import fail as if it were not installed.
"""

from __future__ import annotations

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
