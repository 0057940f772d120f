"""The source's tokenizer as Transformers makes it, and what phibuild's core knows of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phibuild.checkpoints.tokenizer_files import read_tokenizer
from support import warm
from support.tokenizer_cases import NUMBERING, make_tokenizer

pytestmark = pytest.mark.slow

# One process for all cases: importing Transformers takes longer than they do.
NUMBER = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
found = {}
for path in map(Path, sys.argv[1:]):
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    found[path.name] = [tokenizer.get_vocab(), type(tokenizer).__name__]
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def numbered(
    toolchain_python: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Return a folder of cases, and Transformers' ids of each case's tokens and its class."""
    folder = tmp_path_factory.mktemp("cases")
    config = json.dumps({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]})
    for name, (shape, change) in NUMBERING.items():
        make_tokenizer(folder / name, shape, change)
        (folder / name / "config.json").write_text(config, encoding="utf-8")
    done = warm.run(
        [toolchain_python("pytorch"), "-c", NUMBER, *(folder / name for name in NUMBERING)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("name", NUMBERING)
@pytest.mark.case(
    "tokenizer",
    "ids of added tokens: {name}",
    "numbered by Transformers' rules",
    "the same numbers, in the plan",
)
def test_token_ids_are_counted_as_transformers_numbers_them(
    name: str, numbered: tuple[Path, dict[str, Any]]
) -> None:
    folder, found = numbered
    ids, kind = found[name]
    assert kind == "TokenizersBackend"
    counted = read_tokenizer(folder / name)
    assert counted.problems == ()
    assert counted.ids == max(ids.values()) + 1
    assert counted.tokens == len(ids)
    assert counted.token_bytes == sum(len(text.encode()) for text in ids)
