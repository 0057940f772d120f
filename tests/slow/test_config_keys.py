"""Every key of a Phi's config.json is read, without effect, or held to one value."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from phibuild.worker.config_keys import ONLY, READ, WITHOUT_EFFECT

pytestmark = [pytest.mark.slow, pytest.mark.cold]

KEYS = """
import json
from transformers import Phi3Config
print(json.dumps(sorted(Phi3Config().to_dict())))
"""


@pytest.mark.case(
    "config.json",
    "any key of Phi3Config",
    "the list of its keys",
    "read, without effect for a known reason, or one value only: `phibuild/worker/config_keys.py`",
)
def test_the_tables_are_transformers_own_keys(toolchain_python: Callable[[str], Path]) -> None:
    done = subprocess.run(
        [toolchain_python("pytorch"), "-c", KEYS], capture_output=True, text=True, check=True
    )
    theirs = set(json.loads(done.stdout))
    tables = [set(READ), set(WITHOUT_EFFECT), set(ONLY)]
    assert theirs <= set.union(*tables)
    assert sum(map(len, tables)) == len(set.union(*tables))
    own = {"model_type", "auto_map"}  # of the file, not of the class
    assert set(READ) | set(WITHOUT_EFFECT) <= theirs | own
