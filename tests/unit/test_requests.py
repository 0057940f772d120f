"""Requests are checked where they are read."""

from __future__ import annotations

from typing import Any

import pytest

from phibuild.worker.requests import check_request

ITEM: dict[str, Any] = {
    "item": "k",
    "variant": {"backend": "x", "precision": "int4", "name": "n", "format": "f", "options": {}},
    "output": "o",
}
BUILD: dict[str, Any] = {
    "verb": "build", "source": "a", "facts": "b", "architecture": {"layers": 2}, "model": "m",
    "threads": 1, "items": [ITEM],
}  # fmt: skip
SOURCE: dict[str, Any] = {
    "verb": "source", "item": "k", "source": "a", "architecture": {}, "output": "o", "threads": 2,
    "original": "x", "layers": None, "fusing": {"a": ["b"]}, "adapter": None,
    "allow_nonfinite": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "request_",
    [BUILD, {**BUILD, "items": [{**ITEM, "activations": "folder"}]}, {**BUILD, "items": []},
     SOURCE, {**SOURCE, "layers": [0, 31], "adapter": {"rank": 8}}],
)  # fmt: skip
def test_what_the_core_sends_is_taken(request_: dict[str, Any]) -> None:
    check_request(request_)


@pytest.mark.parametrize(
    ("request_", "place"),
    [
        ([], "verb ''"),
        ({}, "verb 'None'"),
        ({**BUILD, "verb": "bake"}, "verb 'bake'"),
        ({**BUILD, "threads": True}, "build.threads: True"),
        ({**BUILD, "threads": None}, "build.threads: None"),
        ({**BUILD, "items": [1]}, r"build.items\[0\]: 1 is no object"),
        ({**BUILD, "extra": 1}, "build: 'extra' is not known"),
        ({**BUILD, "items": [{**ITEM, "variant": {}}]}, r"build.items\[0\].variant: 'backend' is"),
        ({key: BUILD[key] for key in BUILD if key != "facts"}, "build: 'facts' is missing"),
        ({**SOURCE, "layers": ["a"]}, r"source.layers\[0\]: 'a'"),
        ({**SOURCE, "layers": 3}, "source.layers: 3"),
        ({**SOURCE, "fusing": {"a": "b"}}, "source.fusing.a: 'b'"),
    ],
)
def test_anything_else_is_refused_with_its_place(request_: object, place: str) -> None:
    with pytest.raises(ValueError, match=place):
        check_request(request_)
