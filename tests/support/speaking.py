"""What an artifact's runtime makes of texts and ids, and what Transformers makes of them.

Run inside a toolchain, by its interpreter: `python speaking.py BACKEND` or, for Transformers' word,
`python speaking.py transformers`. The request is JSON on standard input: {"folder", "texts", "ids",
"chats"}; so is the answer on standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "phibuild"


def main() -> None:
    request = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)  # libraries print
    answer = expected(request) if sys.argv[1] == "transformers" else found(sys.argv[1], request)
    with os.fdopen(out, "w") as stream:
        json.dump(answer, stream)


def found(backend: str, request: dict[str, Any]) -> dict[str, Any]:
    package = types.ModuleType("phibuild")
    package.__path__ = [str(PACKAGE)]
    sys.modules["phibuild"] = package
    runner: Any = importlib.import_module(f"phibuild.backends.{backend}.worker")
    stream: Any = importlib.import_module("phibuild.worker.generation").TextStream
    speaker = runner.load(Path(request["folder"]), 1).native()

    def pieces(ids: list[int], context: list[int]) -> list[str]:
        text = stream(speaker.decode, context, speaker.byte_tokens())
        return [text.add(token) for token in ids] + [text.end()]

    return {
        "texts": [
            {
                "ids": (ids := speaker.encode(text, special=False)),
                "special": speaker.encode(text, special=True),
                "decoded": speaker.decode(ids),
                "pieces": pieces(ids, []),
                "continued": [pieces(ids[cut:], ids[:cut]) for cut in range(1, len(ids))],
            }
            for text in request["texts"]
        ],
        "ids": [
            {"decoded": speaker.decode(ids), "pieces": pieces(ids, [])} for ids in request["ids"]
        ],
    }


def expected(request: dict[str, Any]) -> dict[str, Any]:
    transformers: Any = importlib.import_module("transformers")
    folder = request["folder"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    texts = []
    for text in request["texts"]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        whole, starts = decode(ids), [decode(ids[:cut]) for cut in range(1, len(ids))]
        # Within a character there is no text to go on from.
        cuts = [whole[len(start) :] if whole.startswith(start) else None for start in starts]
        special = tokenizer(text).input_ids
        texts.append({"ids": ids, "special": special, "decoded": whole, "continued": cuts})
    answers = []
    for chat in request["chats"]:
        torch: Any = importlib.import_module("torch")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            chat["model"], dtype=torch.float32, local_files_only=True
        )
        if chat["messages"] is None:
            ids = tokenizer(chat["prompt"]).input_ids
        else:
            ids = tokenizer.apply_chat_template(
                chat["messages"], add_generation_prompt=True, return_dict=False
            )
        made = model.generate(
            torch.tensor([ids]), max_new_tokens=chat["max_tokens"], do_sample=False
        )[0].tolist()
        new = made[len(ids) :]
        goes_on = decode(made)[len(decode(ids)) :]
        answers.append(
            {"prompt": len(ids), "ids": new,
             "text": goes_on if chat["messages"] is None else decode(new)}
        )  # fmt: skip
    return {
        "texts": texts,
        "ids": [{"decoded": decode(ids)} for ids in request["ids"]],
        "chats": answers,
    }


if __name__ == "__main__":
    main()
