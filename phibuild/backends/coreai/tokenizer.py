"""The tokenizer of an artifact, for Apple's runner and against the source's.

Apple's runner (coreai-models, LanguageConfig.additionalStopTokenIds) does not read
generation_config.json: it stops at what tokenizer_config.json has as eos_token and
additional_special_tokens. Its copy of that file names the source's stop tokens there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from phibuild.backends.coreai.metadata import TOKENIZER_FOLDER
from phibuild.worker.companions import TOKENIZER_FILES, read_json
from phibuild.worker.json_values import JsonDict, JsonObject
from phibuild.worker.tokenizer_check import (
    TOKENIZER,
    Facts,
    TokenizerCheck,
    check_tokenizer,
    nothing_to_explain,
)
from phibuild.worker.tokenizer_json import TokenizerJson

_CONFIG = "tokenizer_config.json"
_SPECIAL = "additional_special_tokens"


class BundleTokenizer(TokenizerJson):
    """What a bundle says of texts, as Apple's runner reads it."""

    def stops(self) -> list[int]:
        """Return the ids that end generation."""
        folder = self.folder / TOKENIZER_FOLDER
        config = read_json(folder / _CONFIG)
        ids = _vocabulary(folder / TOKENIZER)
        texts = [_eos(config), *config.get(_SPECIAL, [])]
        return sorted({ids[text] for text in texts if text in ids})


def write_tokenizer(folder: Path, stops: Sequence[int]) -> None:
    """Write the tokenizer's folder beside the files that an artifact's folder has of it."""
    target = folder / TOKENIZER_FOLDER
    target.mkdir()
    for name in (TOKENIZER, *TOKENIZER_FILES):
        if (folder / name).is_file() and name != _CONFIG:
            shutil.copyfile(folder / name, target / name)
    config: JsonDict = dict(read_json(folder / _CONFIG, optional=True))
    texts = {number: text for text, number in _vocabulary(folder / TOKENIZER).items()}
    main = _eos(config)
    named = [texts[stop] for stop in stops if stop in texts]
    if main not in named:  # it would end generation where the source does not end
        config["eos_token"] = main = named[0] if named else main
    config[_SPECIAL] = [text for text in named if text != main]
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (target / _CONFIG).write_text(text, encoding="utf-8")


def _eos(config: JsonObject) -> str | None:
    """Return a tokenizer's own end token, which is a text or an object with one."""
    eos = config.get("eos_token")
    return eos["content"] if isinstance(eos, dict) else eos


def _vocabulary(path: Path) -> dict[str, int]:
    document = json.loads(path.read_text("utf-8"))
    return {token["content"]: token["id"] for token in document.get("added_tokens", [])}


def check(folder: Path, expected: Facts) -> TokenizerCheck:
    """Compare an artifact's tokenizer with what Transformers makes of the probes. Raises
    WorkerError if it differs."""
    return check_tokenizer(expected, BundleTokenizer(folder), nothing_to_explain)
