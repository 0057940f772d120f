"""The chat templates inside a GGUF file.

llama.cpp's converter writes the default one to `tokenizer.chat_template`, each named one to
`tokenizer.chat_template.NAME` (gguf-py, `add_chat_template`).
"""

from __future__ import annotations

from pathlib import Path

from phibuild.backends.llamacpp import ggml
from phibuild.worker.chat import DEFAULT, ChatFormat
from phibuild.worker.companions import SPECIAL_TOKENS

_TEMPLATE = "tokenizer.chat_template"
# As GGUF spells them, in the order of SPECIAL_TOKENS.
_ROLES = ("bos", "eos", "unknown", "seperator", "padding", "cls", "mask")


def read_chat_keys(path: Path) -> ChatFormat:
    """Return the templates of a GGUF file and the text of its special tokens."""
    keys = [f"tokenizer.ggml.{role}_token_id" for role in _ROLES]
    texts = ggml.read_named(path, keys, "tokenizer.ggml.tokens")
    return ChatFormat(
        {
            key.removeprefix(_TEMPLATE).removeprefix(".") or DEFAULT: text
            for key, text in ggml.read_texts(path, _TEMPLATE).items()
        },
        {role: text for role, text in zip(SPECIAL_TOKENS, texts, strict=True) if text is not None},
    )
