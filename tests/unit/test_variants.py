"""Several variants of one precision in a recipe: cells, their ids, limits, edits, bad input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.errors import ConfigError
from phibuild.planning.cell_requests import CellRequest
from phibuild.planning.cells import Asked, labels
from phibuild.planning.making import make_plan
from phibuild.planning.matrix import Matrix, expand
from phibuild.planning.options import Answer
from phibuild.report.data import artifact_folder
from phibuild.report.gates import check_gates
from phibuild.schema import Gates, Variant
from phibuild.store.store import Store
from support.documents import some_measure
from support.refusals import Refuse, refuse

__all__ = ["refuse"]

PI = "phi3-tiny-trained.raspberry_pi_5.llamacpp.int4"
INT4 = "devices.raspberry_pi_5.llamacpp.int4"
TWO = "[{type: Q4_0, method: gptq}, {type: Q4_K_M}]"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)


def pi(int4: str) -> str:
    return f"devices:\n  raspberry_pi_5:\n    llamacpp:\n      int4: {int4}\n"


def write(text: str, name: str = "mine") -> None:
    Path("recipes", f"{name}.yaml").write_text(text, encoding="utf-8")


def matrix(*words: str, only: tuple[str, ...] = ()) -> Matrix:
    catalogue = Catalogue()
    return expand(
        compose_build(["recipe=mine", *words], catalogue, sweep=False), catalogue, only=only
    )


def ids(*words: str, only: tuple[str, ...] = ()) -> list[str]:
    return [cell.id.removeprefix(PI).removeprefix(".") for cell in matrix(*words, only=only).cells]


@pytest.mark.parametrize(
    ("int4", "expected"),
    [
        ("[{type: Q4_K_M}]", [""]),
        (TWO, ["Q4_0-gptq", "Q4_K_M"]),
        ("[null, {type: Q5_K_M}]", ["Q4_0", "Q5_K_M"]),  # the device's own type is Q4_0
        ("[{method: gptq}, {method: gptq, tokens: 4096}, {type: Q4_K_M}]",
         ["Q4_0-gptq", "Q4_0-gptq,tokens=4096", "Q4_K_M"]),
        ("[{method: gptq, tokens: 16384, text: embedded}, {tokens: 4096, method: gptq}]",
         ["Q4_0-gptq,text=embedded,tokens=16384", "Q4_0-gptq,tokens=4096"]),
        ("[{imatrix: './a b.txt'}, {imatrix: './a?b.txt'}]",
         ["Q4_0-imatrix,imatrix=._a_b.txt-fd6742", "Q4_0-imatrix,imatrix=._a_b.txt-351981"]),
    ],
)  # fmt: skip
def test_ids_tell_variants_apart(int4: str, expected: list[str]) -> None:
    for name, text in (("a b.txt", "one"), ("a?b.txt", "another")):
        Path(name).write_text(text, encoding="utf-8")
    write(pi(int4))
    assert ids() == expected


def test_a_variant_that_is_skipped_is_called_by_what_is_given() -> None:
    write(
        "devices: {intel_n100: {ort_genai: {int4: [{provider: cuda}, {}, "
        "{provider: dml, int8_matmuls: [last_matmul, mixed_layers]}]}}}\n"
    )
    cells = matrix().cells
    assert [(cell.label, cell.variant is None) for cell in cells] == [
        ("provider=cuda", True),
        ("int4-cpu-b32", False),
        ("provider=dml,int8_matmuls=last_matmul+mixed_layers", True),
    ]
    write("devices: {intel_n100: {mlx: {int4: [{}, {bits: 3}]}, llamacpp: [int4]}}\n")
    assert [cell.label for cell in matrix().cells] == ["default", "bits=3", ""]


def test_each_entry_is_merged_over_the_same_layers() -> None:
    write("backends: {mlx: {int4: {bits: 5, group_size: 128}}}\n"
          "devices: {mac: {mlx: {int4: [{group_size: 32}, {bits: 3}, ]}}}\n")  # fmt: skip
    found = [cell.variant.options for cell in matrix().cells if cell.variant]
    assert [(one["bits"], one["group_size"]) for one in found] == [(5, 32), (3, 128)]


def test_globs_and_folders(tmp_path: Path) -> None:
    write(pi(TWO) + "      int8:\n")
    assert ids(only=("*.Q4_K_M",)) == ["Q4_K_M"]
    assert ids(only=("*.int4.*",)) == ["Q4_0-gptq", "Q4_K_M"]
    evaluation = compose_build(["recipe=mine"], Catalogue(), sweep=False).recipes[0].config
    plan = make_plan(matrix(), evaluation.evaluation, Store(tmp_path / "store"))
    assert [artifact_folder(cell).name for cell in plan.cells] == [
        "phi3-tiny-trained-llamacpp-int4-Q4_0-gptq",
        "phi3-tiny-trained-llamacpp-int4-Q4_K_M",
        "phi3-tiny-trained-llamacpp-int8",
    ]
    assert len({artifact.key for artifact in plan.artifacts}) == 3


def test_two_recipes_of_the_same_variants() -> None:
    write(pi(TWO), "one")
    write(pi("[{type: Q4_K_M}, {method: gptq}]"), "two")
    catalogue = Catalogue()
    words = ["recipe=one,two"]
    assert len(expand(compose_build(words, catalogue, sweep=True), catalogue).cells) == 2
    write(pi("{type: Q4_K_M}"), "two")
    with pytest.raises(ConfigError, match=f"of this run build {re.escape(PI)} differently"):
        expand(compose_build(words, catalogue, sweep=True), catalogue)


# -- edits and defaults lists


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([f"{INT4}.0.type=Q4_0"], ["Q4_0-gptq", "Q4_K_M"]),
        ([f"{INT4}.1.type=Q5_K_M"], ["Q4_0-gptq", "Q5_K_M"]),
        ([f"+{INT4}.1.imatrix=embedded"], ["Q4_0-gptq", "Q4_K_M-imatrix"]),
        ([f"~{INT4}.0"], [""]),
        ([f"~{INT4}.0.method"], ["Q4_0", "Q4_K_M"]),
        ([f"{INT4}={{type: IQ4_XS}}"], [""]),
        ([f"{INT4}=[{{type: IQ4_XS}}, null]", f"{INT4}.1.type=Q5_K_M"], ["IQ4_XS", "Q5_K_M"]),
        (["devices.raspberry_pi_5.llamacpp=[int4]"], ["Q4_0-gptq", "Q4_K_M"]),
        (["devices.raspberry_pi_5={llamacpp: {int4: [{}, {type: Q5_K_M}]}}"], ["Q4_0", "Q5_K_M"]),
    ],
)
def test_edits(words: list[str], expected: list[str]) -> None:
    write(pi(TWO))
    assert ids(*words) == expected


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        (TWO, "[{type: Q5_K_M}, {}]", ["Q5_K_M", "Q4_0"]),  # a list replaces a list
        ("{type: Q5_K_M}", TWO, ["Q4_0-gptq", "Q4_K_M"]),  # and a mapping
        (TWO, "{type: Q5_K_M}", [""]),  # which replaces a list
        (TWO, "", ["Q4_0-gptq", "Q4_K_M"]),  # one that says nothing leaves it
        (TWO, "{}", ["Q4_0-gptq", "Q4_K_M"]),
    ],
)
def test_defaults_lists(base: str, own: str, expected: list[str]) -> None:
    write(pi(base), "base")
    write("defaults: [base, _self_]\n" + pi(own))
    assert ids() == expected
    write(pi(own), "base")  # the base has the last word
    write("defaults: [_self_, base]\n" + pi(base))
    assert ids() == expected


def test_a_list_between_two_mappings() -> None:
    write(pi("{imatrix: embedded}") + "      int8:\n", "a")
    write("defaults: [a, _self_]\n" + pi(TWO), "b")
    write("defaults: [b, _self_]\n" + pi("{type: Q5_K_M}"))
    assert [cell.variant and cell.variant.name for cell in matrix().cells] == ["Q5_K_M", "Q8_0"]
    write("defaults: [b, _self_]\ndevices: {raspberry_pi_5: {llamacpp: [int8, int4]}}\n")
    assert len(matrix().cells) == 3  # a list of precisions leaves their options


# -- limits

QUALITY = some_measure(0.05).quality


@pytest.mark.parametrize(
    ("limit", "passed"),
    [
        ({"int4": 0.1, "int4.Q4_K_M": 0.01}, False),
        ({"int4": 0.01, "int4.Q4_K_M": 0.1}, True),
        ({"int4": 0.1, "int4.Q4_0": 0.01}, True),
        ({"int4.Q4_0": 0.01}, None),
    ],
)
def test_the_variants_limit_counts_before_the_precisions(
    limit: dict[str, float], passed: bool | None
) -> None:
    found = check_gates(
        Gates(kl=limit), "int4", "Q4_K_M", quality=QUALITY, size_bytes=None, fits_budget=None
    )
    assert [gate.passed for gate in found] == ([] if passed is None else [passed])


def test_limits_on_the_command_line() -> None:
    write(pi(TWO) + "gates: {kl: {int4: 0.1}}\n")
    cell = matrix("gates.kl.int4.Q4_0-gptq=0.05").cells[0]
    assert cell.gates.kl == {"int4": 0.1, "int4.Q4_0-gptq": 0.05}
    # What a word makes of a variant, another run may have a limit for.
    write(pi(TWO) + "gates: {kl: {int4.Q4_K_M: 0.1}}\n")
    assert ids(f"{INT4}.1.type=Q5_K_M") == ["Q4_0-gptq", "Q5_K_M"]


# -- bad input

WHERE = "several variants of a precision stand in a recipe, at devices.DEVICE.BACKEND.PRECISION"
EXAMPLE = "for example int4: [{type: Q4_0}, {type: Q4_K_M}]"
DEVICE = """\
title: A box
class: iot
memory: 8 GiB
budget: 6 GiB
accelerators: [cpu]
context_length: 4096
sources: {memory: its box, budget: its box, context_length: ours}
backends:
  llamacpp:
    int4: [{type: Q4_0}, {type: Q4_K_M}]
"""
CASES: dict[str, tuple[str, str, str]] = {
    "empty": (pi("[]"), "4: int4: needs one variant at least", EXAMPLE),
    "text": (pi("[Q4_0]"), "4: a variant of int4 must be a mapping, not 'Q4_0'", EXAMPLE),
    "entry": (pi("\n      - {type: Q4_0}\n      - 5"),
              "6: a variant of int4 must be a mapping, not 5", EXAMPLE),
    "option": (pi("\n      - {type: Q4_0}\n      - method: gptq\n        typ: Q4_0"),
               "7: unknown option 'typ' of llamacpp", "did you mean 'type'?"),
    "contradiction": (pi("\n      - {type: Q4_0}\n      - {type: Q8_0}"),
                      "6: option 'type' of llamacpp: GGUF type Q8_0 is not int4", "int4 has"),
    "twice": (pi("\n      - {type: Q4_0}\n      - {type: Q4_K_M}\n      -"),
              "7: int4: two variants are the same, Q4_0", "the first is recipes/mine.yaml:5"),
    "recipe-wide": (pi("") + "backends:\n  llamacpp:\n    int4: [{type: Q4_0}]\n",
                    "7: options of int4 must be a mapping, not a list", WHERE),
    "limit": (pi(TWO) + "gates:\n  kl:\n    int4: 0.1\n    int4.Q4_K: 0.1\n",
              "8: gates.kl: no int4 variant of the recipe is called 'Q4_K'", "'Q4_K_M'?"),
    "limit-precision": (pi(TWO) + "gates:\n  kl:\n    int5.Q4_K_M: 0.1\n",
                        "7: gates.kl.int5.Q4_K_M: unknown precision 'int5.Q4_K_M'", ""),
    "limit-nothing": (pi(TWO) + "gates:\n  kl:\n    int4.: 0.1\n",
                      "7: gates.kl.int4.: 'int4.' names no variant", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.case(
    "names",
    "variants of a precision: none, no mapping, two that are the same",
    "-",
    "an error with file and line, exit code 2",
)
def test_bad_variants_are_refused(case: str, refuse: Refuse) -> None:
    text, what, remedy = CASES[case]
    refuse.write("recipes/mine.yaml", text)
    for verb in refuse.verbs:
        (error,) = refuse(verb, "recipe=mine")
        assert error.startswith(f"recipes/mine.yaml:{what}")
        assert remedy in error


def test_a_device_or_a_backend_has_one_variant(refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", "devices: {box: {llamacpp: [int4]}}\n")
    refuse.write("conf/device/box.yaml", DEVICE)
    (error,) = refuse("plan", "recipe=mine")
    assert error.startswith("conf/device/box.yaml:10: backends.llamacpp.int4: must be a mapping")
    assert WHERE in error
    refuse.write("conf/device/box.yaml", DEVICE[: DEVICE.index("backends")])
    refuse.write("conf/backend/llamacpp.yaml", "int4: [{type: Q4_0}]\n")
    (error,) = refuse("plan", "recipe=mine")
    assert error.startswith("conf/backend/llamacpp.yaml:1: options of int4 must be a mapping")
    assert WHERE in error


@pytest.mark.parametrize(
    ("word", "what", "remedy"),
    [
        (f"{INT4}.type=Q4_0", f"{INT4}.type cannot be set: {INT4} is a list of 2, not a mapping",
         f"its entries are {INT4}.0, {INT4}.1; {INT4}=[...] sets all"),
        (f"{INT4}.2.type=Q4_0", f"{INT4}.2.type cannot be set: {INT4} is a list of 2",
         "its entries are"),
        (f"~{INT4}.2", f"there is no key '{INT4}.2' to delete", "shows the keys"),
        (f"{INT4}=[]", "int4: needs one variant at least", EXAMPLE),
        (f"{INT4}.1.type=Q4_0", "int4: two variants are the same, Q4_0", "recipes/mine.yaml:4"),
        (f"{INT4}.0.type=Q9", "option 'type' of llamacpp: must be", ""),
    ],
)  # fmt: skip
def test_bad_words_about_variants(word: str, what: str, remedy: str, refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", pi("[{type: Q4_0}, {type: Q4_K_M}]"))
    (error,) = refuse("plan", "recipe=mine", word)
    assert error.startswith(f"command line: {word}: {what}")
    assert remedy in error


# -- labels


def asked(own: dict[str, Any], name: str | None) -> Asked:
    made = None
    if name is not None:
        made = Variant(backend="b", precision="int4", name=name, format="F", options=own)
    where = None
    request = CellRequest(
        where, "d", "b", "int4", None, own, {}, ("devices",), lambda option: None  # type: ignore[arg-type]
    )  # fmt: skip
    skip = None if made else "no"
    return Asked(request, Answer(made, skip, yaml.safe_dump([own, name])))


VALUES = st.one_of(st.none(), st.booleans(), st.integers(0, 9), st.text(max_size=60))
OWN = st.dictionaries(st.sampled_from(["type", "method", "text", "tokens"]), VALUES, max_size=4)


WIDE = ({"text": "\U0001d400" * 40, "tokens": "\U0001d54a" * 40}, "Q4_0")
"""Letters of four bytes each."""


@given(st.lists(st.tuples(OWN, st.sampled_from(["Q4_0", "Q4_K_M", "a/b", None])),
                min_size=1, max_size=6, unique_by=repr))  # fmt: skip
@example([({}, "Q4_0"), WIDE])
def test_labels_are_unique_and_names_of_files(
    some: list[tuple[dict[str, Any], str | None]],
) -> None:
    found = labels([asked(own, name) for own, name in some])
    assert len(set(found)) == len(found)
    assert found == [""] or all(found)
    assert all(len(label.encode()) < 200 and not set(label) & set("/*?[]\\:\0 ") for label in found)
