"""The values of an axis are text, whatever Hydra would take them for; what is quoted, a mapping or
a function is Hydra's."""

from __future__ import annotations

import contextlib
import string
import unicodedata

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import example, given
from hypothesis import strategies as st

from phibuild.config.axis_words import (
    Element,
    forbidden_character,
    is_function,
    read_elements,
    read_mapping,
)
from phibuild.config.catalogue import Catalogue
from phibuild.config.grammar import NotAnOverride
from phibuild.config.overrides import read_words
from phibuild.errors import ConfigError

# What names and paths are made of; no comma, backslash, quote, brace or `$`, which mean something.
PLAIN = st.text(
    alphabet=st.one_of(
        st.sampled_from(string.ascii_letters + string.digits + "._-=/~@+()! %&*:"),
        st.characters(categories=("L", "M", "N")),
    ),
    min_size=1,
    max_size=20,
).filter(lambda text: text == text.strip(" \t") and not is_function(text) and "(" not in text[:8])
TYPED = ("1.10", "1e5", "2024_10", "0x1F", "nan", "inf", "null", "NULL", "true", "False", "010")
ANYTHING = st.text(alphabet="ab1.,=:'\"\\{}[]()$ \té", max_size=16)


@given(text=PLAIN)
@example("./a b (2)=c")
@example("1.10")
@example("null")
def test_a_name_is_what_was_written(text: str) -> None:
    assert read_elements(text) == [Element("text", text)]


@given(texts=st.lists(PLAIN, min_size=1, max_size=5))
@example(list(TYPED))
def test_commas_divide(texts: list[str]) -> None:
    expected = [Element("text", text) for text in texts]
    assert read_elements(",".join(texts)) == expected
    assert read_elements(" , ".join(texts)) == expected


@given(texts=st.lists(PLAIN.filter(lambda t: "(" not in t and ")" not in t), min_size=1))
def test_choice_is_a_sweep_of_names(texts: list[str]) -> None:
    assert read_elements(f"choice({','.join(texts)})") == [Element("text", t) for t in texts]


@given(texts=st.lists(st.text(alphabet="ab,=:{}[]() é1.", min_size=1), min_size=1, max_size=4))
def test_quotes_keep_everything(texts: list[str]) -> None:
    text = ",".join(f"'{part}'" for part in texts)
    assert read_elements(text) == [Element("text", part) for part in texts]


ESCAPED = st.text(alphabet="ab,=:()[]{} \\", min_size=1).filter(lambda text: text == text.strip())


@given(texts=st.lists(ESCAPED, min_size=1, max_size=4))
def test_a_backslash_takes_the_meaning_away(texts: list[str]) -> None:
    """The characters that Hydra's documentation says it escapes."""
    escaped = ["".join(f"\\{c}" if c in "\\,=:()[]{} " else c for c in part) for part in texts]
    assert read_elements(",".join(escaped)) == [Element("text", part) for part in texts]


@given(data=st.dictionaries(st.sampled_from(["name", "path", "base", "x"]), PLAIN, min_size=1))
@example({"name": "2024.10", "path": "./a=b (2)"})
def test_a_mapping_has_text_values(data: dict[str, str]) -> None:
    text = "{" + ", ".join(f"{key}: {value}" for key, value in data.items()) + "}"
    assert read_elements(text) == [Element("mapping", text)]
    assert read_mapping(text) == data
    quoted = "{" + ",".join(f"{key}:'{value}'" for key, value in data.items()) + "}"
    assert read_mapping(quoted) == data
    assert [element.text for element in read_elements(f"{text},a,{quoted}")] == [text, "a", quoted]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("./o'brien", [Element("text", "./o'brien")]),
        ("'a' b", [Element("text", "'a' b")]),
        ("'", [Element("text", "'")]),
        ("{a", [Element("text", "{a")]),
        ("[a] b,c", [Element("text", "[a] b"), Element("text", "c")]),
        ("[a,b],c", [Element("list", "[a,b]"), Element("text", "c")]),
        ("{a:'}'},c", [Element("mapping", "{a:'}'}"), Element("text", "c")]),
        ("a,,b", [Element("text", "a"), Element("text", ""), Element("text", "b")]),
        ("a\\", [Element("text", "a\\")]),
        ("C:\\models\\phi", [Element("text", "C:\\models\\phi")]),
    ],
)
def test_what_looks_like_more_than_text(text: str, expected: list[Element]) -> None:
    assert read_elements(text) == expected


@pytest.mark.parametrize("text", ["glob(*)", "range(1,3)", "sort(b,a)", "choice()", "shuffle(a,b)"])
def test_functions_are_hydras(text: str) -> None:
    assert is_function(text)


@pytest.mark.parametrize("text", ["choice(a,b)", "phi(1)", "glob(*", "a glob(*)", "model range(3)"])
def test_what_is_no_function(text: str) -> None:
    assert not is_function(text)


@given(text=ANYTHING)
def test_every_text_is_read_or_refused(text: str) -> None:
    """Nothing is lost: a text that is refused is Hydra's business, quotes inside a quote."""
    try:
        elements = read_elements(text)
    except NotAnOverride:
        assert "'" in text or '"' in text
        return
    assert elements
    if not set(text) & set(",'\"\\{}["):
        assert [element.text for element in elements] == [text.strip(" \t")]
    for element in elements:
        if element.kind == "mapping":
            with contextlib.suppress(NotAnOverride):
                assert all(isinstance(value, str) for value in read_mapping(element.text).values())


@given(
    text=st.text(alphabet="ab1_-./@+%*:\\()=, 'é", min_size=1, max_size=10).filter(
        lambda text: text == text.strip()
    )
)
def test_what_hydra_reads_as_text_is_the_same_text(text: str) -> None:
    try:
        override = OverridesParser.create().parse_override(f"model={text}")
    except HydraException:
        return
    value = override.value()
    if isinstance(value, str):
        assert read_elements(text) == [Element("text", value)]


@given(key=st.sampled_from(["recipe", "device", "precision", "backend"]), text=PLAIN)
@example("device", "a\u0308")
def test_a_word_of_an_axis(key: str, text: str) -> None:
    try:
        words = read_words([f"{key}={text}"], Catalogue(), sweep=False)
    except ConfigError as error:
        (problem,) = error.problems
        assert key == "recipe"
        assert problem.what == f"unknown recipe {unicodedata.normalize('NFC', text)!r}"
    else:
        assert words.axes[key] == (unicodedata.normalize("NFC", text),)


@pytest.mark.parametrize(
    ("word", "letter"), [("a\nb", "\n"), ("a\u2028", "\u2028"), ("\udce9", "\udce9"), ("a\0", "\0")]
)
def test_forbidden_characters(word: str, letter: str) -> None:
    assert forbidden_character(word) == letter
    assert forbidden_character("a b\u200dc é 日本") is None
