"""Train the two small byte-level BPE tokenizers under tests/data/tokenizers, in the published form.

Run once, with an interpreter that has `tokenizers`:  python tests/support/train_tokenizers.py
The results are committed; tests read them and never run this script. The text they are trained on
is an excerpt of the Python 3.11.7 standard library (see LICENSE beside it).

The ids are the published ones less a constant, so each published peculiarity is kept:

* phi4mini: o200k split, unused ids between the vocabulary and the special tokens, `<|endoftext|>`
  as bos, eos and pad, merges written as pairs.
* phi4: cl100k split, 88 dummy tokens around the chat marks, special tokens that eat the white space
  on both sides, merges written as "left right" strings.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "phibuild" / "data" / "phi3-tiny-trained" / "calibration.txt"
OUTPUT = ROOT / "tests" / "data" / "tokenizers"

# tiktoken's o200k_base pattern; llama.cpp calls it "gpt-4o".
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# tiktoken's cl100k_base pattern as tokenizer.json files spell it; llama.cpp calls it "dbrx".
CL100K_PATTERN = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

PHI4MINI_OFFSET = 198400  # published id minus id here
PHI4_OFFSET = 98816

PHI4MINI_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools']"
    " + '<|/tool|>' + '<|end|>' }}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)

PHI4_TEMPLATE = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'system') %}"
    "{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'user') %}"
    "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'assistant') %}"
    "{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)


def added_token(
    content: str, *, lstrip: bool = False, rstrip: bool = False, special: bool = True
) -> dict[str, object]:
    """One entry of `added_tokens_decoder`; with an "id" it is one of tokenizer.json's list."""
    return {
        "content": content,
        "lstrip": lstrip,
        "normalized": False,
        "rstrip": rstrip,
        "single_word": False,
        "special": special,
    }


def phi4mini_added() -> dict[int, dict[str, object]]:
    """Phi-4-mini's added tokens by id: chat marks take the white space after them."""
    added = {
        199999: added_token("<|endoftext|>"),
        200018: added_token("<|endofprompt|>"),
    }
    for number, name in enumerate(("assistant", "end", "user", "system"), start=200019):
        added[number] = added_token(f"<|{name}|>", rstrip=True)
    tools = ("tool", "/tool", "tool_call", "/tool_call", "tool_response", "tag")
    for number, name in enumerate(tools, start=200023):
        added[number] = added_token(f"<|{name}|>", rstrip=name != "tag", special=name == "tag")
    return {number - PHI4MINI_OFFSET: token for number, token in added.items()}


def phi4_added() -> dict[int, dict[str, object]]:
    """Phi-4's added tokens by id: every id that cl100k leaves free up to 100351 has a name."""
    named = {
        100257: "endoftext",
        100258: "fim_prefix",
        100259: "fim_middle",
        100260: "fim_suffix",
        100264: "im_start",
        100265: "im_end",
        100266: "im_sep",
        100276: "endofprompt",
    }
    added: dict[int, dict[str, object]] = {}
    dummies = 0
    for number in range(100256, 100352):
        name = named.get(number)
        if name is None:
            name = f"dummy_{dummies}"
            dummies += 1
        added[number - PHI4_OFFSET] = added_token(f"<|{name}|>", lstrip=True, rstrip=True)
    return added


def train(pattern: str, entries: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE of exactly `entries` tokens, special ones apart."""
    tokenizers: Any = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=entries,
        show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([CORPUS.read_text(encoding="utf-8")], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = {str(token): int(number) for token, number in model["vocab"].items()}
    if sorted(vocabulary.values()) != list(range(entries)):
        raise SystemExit(f"{CORPUS}: too little text for {entries} tokens")
    return vocabulary, [(str(left), str(right)) for left, right in model["merges"]]


def tokenizer_json(
    pattern: str,
    vocabulary: dict[str, int],
    merges: list[list[str]] | list[str],
    added: dict[int, dict[str, object]],
) -> dict[str, object]:
    """A tokenizer.json document: regex split, then bytes, then BPE."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, **token} for number, token in sorted(added.items())],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": pattern},
                    "behavior": "Removed",
                    "invert": True,
                },
                {**byte_level, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def write(
    folder: Path,
    document: dict[str, object],
    added: dict[int, dict[str, object]],
    template: str,
    **config: object,
) -> None:
    """Write one tokenizer's three files."""
    folder.mkdir(parents=True, exist_ok=True)
    compact = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): token for number, token in sorted(added.items())},
        "bos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        **config,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>",
    }
    text = json.dumps(settings, indent=1)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def main() -> None:
    """Train and write both tokenizers."""
    added = phi4mini_added()
    vocabulary, merges = train(O200K_PATTERN, 199998 - PHI4MINI_OFFSET)
    # The model's own vocabulary names the added tokens too: their ids leave gaps, and tokenizers
    # 0.23.3 renumbers one that follows a gap (1619 became 1600) unless it finds it there.
    vocabulary.update({str(token["content"]): number for number, token in added.items()})
    write(
        OUTPUT / "phi4mini",
        tokenizer_json(O200K_PATTERN, vocabulary, [list(pair) for pair in merges], added),
        added,
        PHI4MINI_TEMPLATE,
        add_bos_token=False,
        add_eos_token=False,
        eos_token="<|endoftext|>",
        model_max_length=131072,
        pad_token="<|endoftext|>",
    )
    added = phi4_added()
    vocabulary, merges = train(CL100K_PATTERN, 100256 - PHI4_OFFSET)
    write(
        OUTPUT / "phi4",
        tokenizer_json(CL100K_PATTERN, vocabulary, [" ".join(pair) for pair in merges], added),
        added,
        PHI4_TEMPLATE,
        eos_token="<|im_end|>",
        model_max_length=16384,
        pad_token="<|dummy_85|>",
    )


if __name__ == "__main__":
    main()
