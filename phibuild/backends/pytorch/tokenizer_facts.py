"""What Transformers makes of a checkpoint's tokenizer, written down for every other toolchain.

Transformers puts a tokenizer together from up to five files, whose contents overrule each other,
and numbers added tokens itself. No reader of phibuild's repeats that: formats are made from the
result, and compared with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from phibuild.backends.pytorch.tokenizing import load_tokenizer
from phibuild.worker.json_values import as_ids
from phibuild.worker.protocol import WorkerError
from phibuild.worker.tokenizer_check import PROBES, TOKENIZER
from phibuild.worker.tokenizer_probes import CONVERSATION, Probe, probes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_WORD = "word"


def write_tokenizer_facts(source: Path, vocabulary: int, output: Path) -> None:
    """Write tokenizer.json (the tokenizer as it is in memory) and probes.json (what it makes of
    the probes; see phibuild.worker.tokenizer_check.Facts) of the checkpoint `source` into the
    folder `output`.

    Raises WorkerError if Transformers cannot load it, if it has more token ids than the model's
    `vocabulary` embeddings, or if its file does not give the ids that it gives in memory.
    """
    try:
        tokenizer = load_tokenizer(source)
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # of the many kinds that Transformers and tokenizers raise
        raise WorkerError(f"Transformers cannot load the tokenizer: {error}") from error
    ids = backend.get_vocab(with_added_tokens=True).values()
    if max(ids) >= vocabulary:
        raise WorkerError(
            f"the tokenizer has token ids up to {max(ids)}, the model {vocabulary} embeddings"
        )
    chat = _chat(tokenizer)
    added = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    tried = probes(added, chat)
    found = [_ids(tokenizer, probe.text, around=False) for probe in tried]
    start, end = _around(tokenizer)
    path = output / TOKENIZER
    backend.save(str(path), pretty=False)
    if _differing(path, tokenizer, tried, found):
        _keep_numbers(path)
        if difference := _differing(path, tokenizer, tried, found):
            raise WorkerError(f"the tokenizer cannot be written to a file: {difference}")
    document = {
        "probes": [
            {"kind": probe.kind, "text": probe.text, "ids": ids}
            for probe, ids in zip(tried, found, strict=True)
        ],
        "start": start,
        "end": end,
        "stops": _stops(source, tokenizer),
        "special": {role: getattr(tokenizer, f"{role}_token_id") for role in _ROLES},
        "chat": chat,
        "templates": _templates(tokenizer),
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    (output / PROBES).write_text(text, encoding="utf-8")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, around: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=around, verbose=False).input_ids
    return ids


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a text by itself."""
    whole, text = (_ids(tokenizer, _WORD, around=around) for around in (True, False))
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return whole[:start], whole[start + len(text) :]
    raise WorkerError(f"with special tokens, {_WORD!r} becomes {whole}, which lacks its own {text}")


def _differing(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    tried: Sequence[Probe],
    found: Sequence[list[int]],
) -> str | None:
    """Return the first probe of which the file, read by the tokenizers library, makes other ids
    than the tokenizer in memory; None if there is none."""
    written = Tokenizer.from_file(str(path))
    for probe, ids in zip(tried, found, strict=True):
        for around in (False, True):
            expected = _ids(tokenizer, probe.text, around=True) if around else ids
            read = written.encode(probe.text, add_special_tokens=around).ids
            if read != expected:
                return (
                    f"{probe.text!r} ({probe.kind}) becomes {expected} in Transformers, "
                    f"{read} from the file"
                )
    return None


def _keep_numbers(path: Path) -> None:
    """Write added tokens into the model's vocabulary as well: the tokenizers library numbers them
    anew when it reads a file, from the number of the vocabulary's tokens on, unless they are there,
    and a vocabulary with gaps has fewer tokens than ids."""
    document = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary |= {token["content"]: token["id"] for token in document["added_tokens"]}
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        path.write_text(text, encoding="utf-8")


def _templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the chat templates by name, from wherever Transformers has taken them."""
    template = tokenizer.chat_template
    if template is None:
        return {}
    return dict(sorted(template.items())) if isinstance(template, dict) else {"default": template}


def _chat(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a conversation as the default chat template writes it; None if there is none."""
    if "default" not in _templates(tokenizer):
        return None
    failure: Exception | None = None
    for messages in (CONVERSATION, CONVERSATION[1:]):
        try:
            text = tokenizer.apply_chat_template(list(messages), tokenize=False)
        except Exception as error:  # the template's own code runs
            failure = error
        else:
            return str(text)
    raise WorkerError(f"the chat template cannot write a conversation: {failure}")


def _stops(source: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end generation: generation_config.json's, else config.json's, else the
    tokenizer's end of sequence."""
    for name in ("generation_config.json", "config.json"):
        path = source / name
        stops = None
        if path.is_file():
            stops = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        if ids := as_ids(stops):
            return list(dict.fromkeys(ids))
    return as_ids(tokenizer.eos_token_id)
