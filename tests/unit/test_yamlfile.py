"""YAML files as data with line numbers: what is found, what is refused; no other error escapes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phibuild.config.yamlfile import KeyPath, YamlFile
from phibuild.errors import ConfigError

RECIPE = """\
# a comment
model: phi-4
devices:
  raspberry_pi_5:
    llamacpp:
      int4: {type: Q4_0}
      int8:
  mac: {mlx: [int4,
              int8]}
defaults:
  - one
  - two
"""


def make(folder: Path, text: str) -> YamlFile:
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return YamlFile(path, "file.yaml")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ((), (0, 1, 1)),
        (("model",), (1, 2, 1)),
        (("model", "phi-4"), (2, 2, 8)),
        (("devices",), (1, 3, 1)),
        (("devices", "raspberry_pi_5", "llamacpp"), (3, 5, 5)),
        (("devices", "raspberry_pi_5", "llamacpp", "int4", "type"), (5, 6, 14)),
        (("devices", "raspberry_pi_5", "llamacpp", "int8"), (4, 7, 7)),
        (("devices", "mac", "mlx", "int4"), (4, 8, 15)),
        (("devices", "mac", "mlx", "int8"), (4, 9, 15)),
        (("defaults", 1), (2, 12, 5)),
        (("devices", "mac", "openvino", "int4"), (2, 8, 3)),  # as deep as it goes
        (("nothing",), (0, 1, 1)),
    ],
)
def test_find(tmp_path: Path, path: KeyPath, found: tuple[int, int, int]) -> None:
    depth, place = make(tmp_path, RECIPE).find(path)
    assert (depth, place.line, place.column) == found
    assert place == f"file.yaml:{place.line}"


def test_a_sound_file(tmp_path: Path) -> None:
    file = make(tmp_path, RECIPE)
    assert file.check() == []
    data = file.data()
    assert isinstance(data, dict)
    assert data["devices"]["raspberry_pi_5"] == {"llamacpp": {"int4": {"type": "Q4_0"},
                                                               "int8": None}}  # fmt: skip
    assert file.entries("defaults") == [("one", "file.yaml:11"), ("two", "file.yaml:12")]
    assert file.entries("model") is None  # not a list
    assert file.entries("nothing") == []


def test_all_of_a_file_at_once_with_lines(tmp_path: Path) -> None:
    file = make(
        tmp_path,
        "a: 1\nb: {c: 1,\n    c: 2}\na: 3\n_target_: os.system\nd: ${oc.env:HOME}\n"
        "e: [x, '${ hydra:job.name }']\n? [k]\n: v\n",
    )
    assert sorted((problem.where, problem.what) for problem in file.check()) == [
        ("file.yaml:3", "key 'c' stands twice"),
        ("file.yaml:4", "key 'a' stands twice"),
        ("file.yaml:5", "'_target_' is refused"),
        ("file.yaml:6", "the resolver '${oc.env:...}' is refused"),
        ("file.yaml:7", "the resolver '${hydra:...}' is refused"),
        ("file.yaml:8", "a key must be a plain word"),
    ]


def test_references_to_other_keys_are_no_resolvers(tmp_path: Path) -> None:
    assert make(tmp_path, "a: 1\nb: ${a}\nc: ${b}-x\n").check() == []


@pytest.mark.parametrize("key", ["_target_", "_partial_", "_args_", "_recursive_", "_convert_"])
def test_instantiation_is_refused_wherever_it_stands(tmp_path: Path, key: str) -> None:
    file = make(tmp_path, f"a:\n  - b:\n      {key}: x\n")
    assert [problem.where for problem in file.check()] == ["file.yaml:3"]


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("# only\n", "is empty"), ("- a\n", "mapping"),
                          ("word\n", "mapping")],
)  # fmt: skip
def test_not_a_mapping(tmp_path: Path, text: str, message: str) -> None:
    problems = make(tmp_path, text).check()
    assert len(problems) == 1
    assert message in problems[0].what
    assert problems[0].where == "file.yaml:1"


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [1\nb: 2\n", 2), ("a: 1\n\tb: 2\n", 2), ("a: 'x\n", 2), ("a: 1\n b: 2\n", 2),
     ("a: *nowhere\n", 1), ("a: 1\n---\nb: 2\n", 2)],
)  # fmt: skip
def test_bad_syntax_says_where(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        make(tmp_path, text).check()
    assert (caught.value.problems[0].where or "").startswith("file.yaml:")
    assert abs(int((caught.value.problems[0].where or "").split(":")[1]) - line) <= 1


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"file.yaml:1: is not UTF-8"):
        YamlFile(path, "file.yaml").check()


YAMLISH = st.lists(
    st.sampled_from(
        ["a", "b: ", "- ", "\n", "  ", "{", "}", "[", "]", ", ", "'", '"', "&x ", "*x", "!!int ",
         "!!timestamp ", "!!bool ", "!!binary ", "!!set ", "!!python/object:os.system ",
         "2001-99-99", "? ", ": ", "|", ">", "#", "<<: ", "0x", "1:99", "null",
         "---\n", "...\n", "%YAML", "\t"]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=60) | YAMLISH)
@example("a: &x [*x]")
@example("a: 2001-99-99")
@example("a: !!int word")
@example("a: !!timestamp word")
@example("a: !!bool word")
@example("a: !!python/object/apply:os.system [id]")
@example("a: " + "[" * 5000)
@example("? {a: b}\n: c")
@example("<<: 5")
@example(
    "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(
        f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
)
def test_any_text_ends_in_data_or_a_config_error(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file.yaml"
        path.write_text(text, encoding="utf-8", errors="replace", newline="")
        file = YamlFile(path, "file.yaml")
        try:
            problems = file.check()
            if not problems:
                assert isinstance(file.data(), dict)
        except ConfigError as error:
            problems = list(error.problems)
        assert all((problem.where or "").startswith("file.yaml") for problem in problems)
