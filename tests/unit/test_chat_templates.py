"""Chat templates: which ones a folder has. Rendering needs jinja2: tests/slow/test_chat.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phibuild.worker.chat import ChatError, read_format


def write(folder: Path, **settings: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_special_tokens_are_texts_or_objects(tmp_path: Path) -> None:
    folder = write(tmp_path, bos_token="<s>", eos_token={"content": "</s>"}, pad_token=None, x=1)
    assert read_format(folder).special == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"eos_token": "a"}, {"eos_token": "b", "bos_token": "c"}),  # the older file comes after
        ({"eos_token": "a", "added_tokens_decoder": {}}, {"eos_token": "a"}),
    ],
)
def test_the_older_file_of_special_tokens(
    tmp_path: Path, settings: dict[str, Any], expected: dict[str, str]
) -> None:
    older = json.dumps({"eos_token": {"content": "b"}, "bos_token": "c"})
    (tmp_path / "special_tokens_map.json").write_text(older, encoding="utf-8")
    assert read_format(write(tmp_path, **settings)).special == expected


@pytest.mark.parametrize("template", [3, {"a": 1}, [{"name": "a"}], [{"name": 1, "template": ""}]])
def test_a_setting_that_is_no_template(tmp_path: Path, template: object) -> None:
    with pytest.raises(ChatError, match="neither a text nor a list"):
        read_format(write(tmp_path, chat_template=template))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert read_format(tmp_path).templates == {}
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ChatError, match="a chat template cannot be read"):
        read_format(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ChatError, match="not a JSON object"):
        read_format(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ChatError, match=r"tokenizer_config\.json cannot be read"):
        read_format(tmp_path)
