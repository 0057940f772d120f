"""Values of foreign JSON: what each reader takes, and what it does with the rest."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest

from phibuild.worker.json_values import (
    NoObjectError,
    as_ids,
    as_object,
    as_text,
    is_number,
    is_texts,
    is_whole_number,
    object_or_empty,
    parse_object,
)

NO_OBJECTS: tuple[object, ...] = (None, [], "text", 1, True)


def test_an_object_is_a_mapping() -> None:
    for value in ({}, {"a": 1}, MappingProxyType({"a": 1})):
        assert as_object(value, "key") is value
        assert object_or_empty(value) is value


@pytest.mark.parametrize("value", NO_OBJECTS)
def test_anything_else_is_refused_by_name_or_is_nothing(value: object) -> None:
    with pytest.raises(ValueError, match=r"^key must be an object, not "):
        as_object(value, "key")
    assert object_or_empty(value) == {}


def test_json_is_an_object_or_says_what_it_is_not() -> None:
    assert parse_object('{"a": 1}') == parse_object(b'{"a": 1}') == {"a": 1}
    with pytest.raises(NoObjectError):
        parse_object("[]")
    with pytest.raises(json.JSONDecodeError):
        parse_object("{")


def test_a_text_is_shown_as_it_is() -> None:
    assert [as_text(value) for value in ("ä", "", True, None, ["ä"])] == [
        "ä", "", "true", "null", '["ä"]',
    ]  # fmt: skip


def test_ids_are_a_list_or_one_number() -> None:
    assert [as_ids(value) for value in (None, 0, 7, [], [7, 8])] == [[], [0], [7], [], [7, 8]]


def test_texts_are_a_list() -> None:
    assert is_texts([])
    assert is_texts(["a", "b"])
    assert not any(map(is_texts, ("text", ("a",), ["a", 1], {"a": 1}, None)))


def test_true_is_no_number() -> None:
    assert [one for one in (1, 0, -3, 1.0, True, "1", None) if is_whole_number(one)] == [1, 0, -3]
    numbers = [one for one in (2, 1.5, float("nan"), False, "1", None) if is_number(one)]
    assert numbers[:2] == [2, 1.5]
    assert len(numbers) == 3
