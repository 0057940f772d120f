"""Which files are a checkpoint's tokenizer, and how many token ids it has."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phibuild.checkpoints.tokenizer_files import read_tokenizer, too_many_ids
from phibuild.worker.sentencepiece_model import read_pieces
from support.checkpoints import TOKENIZERS, Shape

PHI3 = TOKENIZERS["phi3"]


def _folder(tmp_path: Path, shape: Shape, **files: Any) -> Path:
    """Copy a tokenizer, and write JSON documents by the names of their files less .json."""
    for path in TOKENIZERS[shape].iterdir():
        if path.suffix in (".json", ".jinja", ".model"):
            shutil.copyfile(path, tmp_path / path.name)
    for name, document in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return tmp_path


def _settings(shape: Shape) -> dict[str, Any]:
    path = TOKENIZERS[shape] / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return settings


def test_sentencepiece_with_its_model(tmp_path: Path) -> None:
    found = read_tokenizer(_folder(tmp_path, "phi3"))
    assert found.problems == ()
    assert found.names == (
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model",
    )  # fmt: skip
    assert (found.kind, found.tokens, found.ids) == ("sentencepiece", 2054, 2054)
    assert found.merges > 1000


def test_a_stray_model_beside_a_byte_level_tokenizer_is_not_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "phi4mini", vocab={"a": 0}, chat_template={"chat_template": "x"})
    shutil.copyfile(PHI3 / "tokenizer.model", folder / "tokenizer.model")
    (folder / "merges.txt").write_text("a b\n", encoding="utf-8")
    found = read_tokenizer(folder)
    assert found.kind == "bpe"
    assert set(found.names) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert found.ids == 1629  # 200,028 less 198,400, plus one


@pytest.mark.parametrize("damage", ["other pieces", "damaged", "a score of two bytes"])
def test_another_tokenizers_model_is_not_read(damage: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, "phi3")
    path = folder / "tokenizer.model"
    raw = path.read_bytes()
    assert len(read_pieces(path)) == 2048
    damaged = {
        "other pieces": raw.replace(b"<0x41>", b"<0x42>"),
        "damaged": raw[:-7],
        "a score of two bytes": b"\x0a\x07\x0a\x01a\x12\x02ab",
    }
    path.write_bytes(damaged[damage])
    assert "tokenizer.model" not in read_tokenizer(folder).names


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=40), piece=st.binary(max_size=20))
def test_any_bytes_are_pieces_or_no_model(data: bytes, piece: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for content in (data, bytes([0x0A, len(piece)]) + piece + data):
        path.write_bytes(content)
        with suppress(ValueError):
            assert read_pieces(path)


def test_the_older_files_count_where_tokenizer_config_says_nothing(tmp_path: Path) -> None:
    older = {"added_tokens": {"<new>": 9}, "special_tokens_map": {"sep_token": "<sep>"}}
    without = _settings("phi4mini")
    decoder = without.pop("added_tokens_decoder")
    found = read_tokenizer(_folder(tmp_path, "phi4mini", tokenizer_config=without, **older))
    assert {*older} <= {name.removesuffix(".json") for name in found.names}
    assert found.ids == 1631
    without["added_tokens_decoder"] = decoder
    found = read_tokenizer(_folder(tmp_path, "phi4mini", tokenizer_config=without))
    assert not {*older} & {name.removesuffix(".json") for name in found.names}
    assert found.ids == 1629


@pytest.mark.case(
    "tokenizer",
    "additional_chat_templates/",
    None,
    "in the source's digest, fetched, copied",
)
def test_templates_are_part_of_it(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "phi4")
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool_use.jinja", "rag.jinja", "notes.txt"):
        (folder / "additional_chat_templates" / name).write_text("{{ x }}", encoding="utf-8")
    found = read_tokenizer(folder)
    assert found.names[-2:] == (
        "additional_chat_templates/rag.jinja",
        "additional_chat_templates/tool_use.jinja",
    )


@pytest.mark.case(
    "tokenizer",
    "more token ids than embeddings",
    None,
    "refused in the plan, with both numbers",
)
def test_more_ids_than_embeddings_says_both_numbers(tmp_path: Path) -> None:
    found = read_tokenizer(_folder(tmp_path, "phi3"))
    assert too_many_ids(found, 2054, tmp_path) is None
    problem = too_many_ids(found, 2053, tmp_path)
    assert problem is not None
    assert "2,054 token ids, the model 2,053 embeddings" in str(problem)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer", None, "tokenizer.json is missing"),
        ("tokenizer_config", None, "tokenizer_config.json is missing"),
        ("tokenizer", "{", "not valid JSON"),
        ("tokenizer", "[]", "must be a JSON object"),
        ("tokenizer", '{"model": {"vocab": 3}}', "its vocabulary is damaged"),
        ("tokenizer", "{}", "its vocabulary is damaged"),
        ("tokenizer_config", '{"added_tokens_decoder": {"x": 3}}', "its vocabulary is damaged"),
        ("tokenizer_config", '{"fast_tokenizer_files": ["a"]}', "fast_tokenizer_files"),
    ],
)
def test_files_that_are_not_usable(name: str, text: str | None, said: str, tmp_path: Path) -> None:
    path = _folder(tmp_path, "phi4mini") / f"{name}.json"
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    (problem,) = read_tokenizer(tmp_path).problems
    assert said in problem.what
    assert problem.where is not None
    assert str(tmp_path) in problem.where
    assert problem.remedy
