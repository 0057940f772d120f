"""Tokenizers as people have them: each made from one of the small ones by what a case changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.checkpoints import TOKENIZERS, Shape, make_checkpoint

Document = dict[str, Any]
Change = Callable[[dict[str, Document]], None]
"""Changes the documents of a tokenizer by the names of their files, and may add some."""

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def added(content: str, number: int | None = None, *, special: bool = True, **flags: bool) -> Any:
    """Return an added token as tokenizer.json (with an id) and tokenizer_config.json write it."""
    token = {**_FLAGS, **flags, "content": content, "special": special}
    return token if number is None else {"id": number, **token}


def make_tokenizer(folder: Path, shape: Shape, change: Change | None = None) -> Path:
    """Write the tokenizer's files of a shape into a folder, with what a case changes."""
    folder.mkdir(parents=True, exist_ok=True)
    documents: dict[str, Document] = {}
    for path in TOKENIZERS[shape].iterdir():
        if path.name in ("tokenizer.json", "tokenizer_config.json"):
            documents[path.name] = json.loads(path.read_text(encoding="utf-8"))
        elif path.name in ("tokenizer.model", "chat_template.jinja"):
            shutil.copyfile(path, folder / path.name)
    if change is not None:
        change(documents)
    for name, document in documents.items():
        target = folder / name
        target.unlink(missing_ok=True)
        target.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return folder


def make_case(folder: Path, shape: Shape, change: Change | None = None, **config: Any) -> Path:
    """Write a checkpoint of one layer whose tokenizer is a case."""
    make_checkpoint(folder, shape, **{"layers": 1, **config})
    return make_tokenizer(folder, shape, change)


def decoder_alone(documents: dict[str, Document]) -> None:
    settings = documents["tokenizer_config.json"]
    settings.setdefault("added_tokens_decoder", {}).update(
        {"2054": added("<|first|>"), "2055": added("<|second|>", special=False, rstrip=True)}
    )


def added_tokens_json_alone(documents: dict[str, Document]) -> None:
    documents["tokenizer_config.json"].pop("added_tokens_decoder", None)
    documents["added_tokens.json"] = {"<|second|>": 2055, "<|first|>": 2054}


def after_a_gap(documents: dict[str, Document]) -> None:
    documents["tokenizer.json"]["added_tokens"] += [
        added("<|far|>", 2100),
        added("<|farther|>", 2101),
    ]


def twice(documents: dict[str, Document]) -> None:
    documents["tokenizer.json"]["added_tokens"] += [
        added("<|twin|>", 2054),
        added("<|twin|>", 2055, special=False),
        added("<|after|>", 2056),
    ]


def roles(documents: dict[str, Document]) -> None:
    """Tokens that have a role, but no entry anywhere."""
    settings = documents["tokenizer_config.json"]
    settings |= {"sep_token": "<sep>", "image_token": "<image>", "mask_token": "<s>",
                 "additional_special_tokens": ["<|x|>", "<|y|>"]}  # fmt: skip


def named_extra(documents: dict[str, Document]) -> None:
    documents["tokenizer_config.json"]["extra_special_tokens"] = {"audio_token": "<audio>"}


def extra_list(documents: dict[str, Document]) -> None:
    documents["tokenizer_config.json"]["extra_special_tokens"] = ["<|x|>", "<|user|>", "<|y|>"]


def older_map(documents: dict[str, Document]) -> None:
    documents["tokenizer_config.json"].pop("added_tokens_decoder", None)
    documents["special_tokens_map.json"] = {
        "sep_token": {**_FLAGS, "content": "<sep>"},
        "eos_token": "<|end|>",
        "additional_special_tokens": ["<|z|>"],
    }


def unread_map(documents: dict[str, Document]) -> None:
    """With added_tokens_decoder, the older files are not read."""
    decoder_alone(documents)
    documents["special_tokens_map.json"] = {"sep_token": "<sep>"}
    documents["added_tokens.json"] = {"<|third|>": 2060}


def holes_in_the_vocabulary(documents: dict[str, Document]) -> None:
    """The next free id is counted, not found: it is one that a token of the vocabulary has."""
    vocabulary = documents["tokenizer.json"]["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary[last] += 5
    documents["tokenizer.json"]["added_tokens"].append(added("<|new|>", 2090))


NUMBERING: dict[str, tuple[Shape, Change | None]] = {
    "phi3": ("phi3", None),
    "phi4mini": ("phi4mini", None),
    "phi4": ("phi4", None),
    "added_tokens_decoder alone": ("phi3", decoder_alone),
    "added_tokens.json alone": ("phi3", added_tokens_json_alone),
    "added_tokens.json alone, byte-level": ("phi4mini", added_tokens_json_alone),
    "after a gap": ("phi3", after_a_gap),
    "after a gap, byte-level": ("phi4mini", after_a_gap),
    "twice": ("phi3", twice),
    "roles": ("phi3", roles),
    "named extra": ("phi3", named_extra),
    "list of extra": ("phi3", extra_list),
    "special_tokens_map.json": ("phi3", older_map),
    "special_tokens_map.json, byte-level": ("phi4", older_map),
    "older files that are not read": ("phi3", unread_map),
    "holes in the vocabulary": ("phi4", holes_in_the_vocabulary),
}
"""Name of a case -> shape and change; how Transformers numbers the tokens is the right value."""


def one_step(documents: dict[str, Document]) -> None:
    """A template that adds nothing; what tokenizer_config.json says of BOS is not what runs."""
    single = [{"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": pair}
    documents["tokenizer.json"]["post_processor"] = {**processor, "special_tokens": {}}
    documents["tokenizer_config.json"]["add_bos_token"] = True


def no_processor(documents: dict[str, Document]) -> None:
    documents["tokenizer.json"]["post_processor"] = None
    documents["tokenizer_config.json"].pop("add_bos_token", None)


def bos_and_eos(documents: dict[str, Document]) -> None:
    """Another BOS than the one that is named, and EOS after each text."""
    bos, text, eos = (
        {"SpecialToken": {"id": "<|system|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
    )
    ids = {"<|system|>": 2050, "<|endoftext|>": 2048}
    tokens = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in ids}
    processor = {"type": "TemplateProcessing", "single": [bos, text, eos], "pair": [text]}
    documents["tokenizer.json"]["post_processor"] = {**processor, "special_tokens": tokens,
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}]}  # fmt: skip


def prefix(scheme: str) -> Change:
    """Return a change to sentencepiece as Transformers 5 saves it."""

    def change(documents: dict[str, Document]) -> None:
        metaspace = {"type": "Metaspace", "replacement": "\u2581", "split": False}
        documents["tokenizer.json"] |= {
            "normalizer": None,
            "pre_tokenizer": {**metaspace, "prepend_scheme": scheme},
        }

    return change


def nameless_end(documents: dict[str, Document]) -> None:
    """The tokenizer names no end of sequence."""
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        documents["tokenizer_config.json"].pop(role, None)


def named_templates(documents: dict[str, Document]) -> None:
    documents["tokenizer_config.json"]["chat_template"] = [
        {"name": "default", "template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
        {"name": "tool use", "template": "{{ tools }}"},
    ]
