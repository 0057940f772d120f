"""Chat templates as they are found, rendered by phibuild and by Transformers: for a toolchain.

Run by an interpreter that has jinja2: `python templates.py FOLDER`, where FOLDER holds folders with
tokenizers. Prints JSON: by folder and case, what phibuild makes of it, and, where Transformers is
installed, what that makes of it: [text, error].
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "phibuild"
USER = {"role": "user", "content": "Say \"<b>é</b>\" & 'no'.\n  Then stop. "}
SYSTEM = {"role": "system", "content": "Be brief."}
CASES: dict[str, tuple[list[dict[str, str]], str | None]] = {
    "user": ([USER], None),
    "system": ([SYSTEM, USER], None),
    "named": ([USER], "plain"),
}


def attempt(render: Callable[[], str]) -> tuple[str | None, str | None]:
    try:
        return render(), None
    except Exception as error:
        return None, str(error)


def main() -> None:
    package = types.ModuleType("phibuild")
    package.__path__ = [str(PACKAGE)]
    sys.modules["phibuild"] = package
    lean: Any = importlib.import_module("phibuild.worker.lean")
    lean.import_lean()
    chat: Any = importlib.import_module("phibuild.worker.chat")
    found: dict[str, Any] = {}
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        for case, (messages, name) in CASES.items():
            render = chat.read_format(folder).render
            ours = attempt(partial(render, messages, name))
            found[f"{folder.name}:{case}"] = {
                "ours": ours,
                "theirs": theirs(folder, messages, name),
            }
    print(json.dumps(found))


def theirs(folder: Path, messages: list[dict[str, str]], name: str | None) -> Any:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        return None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    named = isinstance(tokenizer.chat_template, dict) and name in tokenizer.chat_template
    if name and not named:
        return None, "it has no template of this name"  # it takes the name for a template's text
    return attempt(
        lambda: tokenizer.apply_chat_template(
            messages, chat_template=name, add_generation_prompt=True, tokenize=False
        )
    )


if __name__ == "__main__":
    main()
