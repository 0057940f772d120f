"""Sweeps over the options of backends: the same as building once with each value, in one matrix."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import Composition, compose_build
from phibuild.planning.matrix import expand
from phibuild.schema import Cell
from support.refusals import Refuse, refuse

__all__ = ["refuse"]

RECIPE = """\
devices:
  raspberry_pi_5: {llamacpp: {int4: {type: Q4_0}, int8: }}
  intel_n100: {llamacpp: [int4]}
  mac: {mlx: {int4: [{group_size: 32}, {bits: 3}]}}
"""
WIDE, PI = "backends.llamacpp.int4", "devices.raspberry_pi_5.llamacpp.int4"


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text(RECIPE, encoding="utf-8")


def compose(*words: str, sweep: bool = True) -> Composition:
    return compose_build(["recipe=mine", *words], Catalogue(), sweep=sweep)


def cells(*words: str, sweep: bool = True) -> tuple[Cell, ...]:
    return expand(compose(*words, sweep=sweep), Catalogue()).cells


def ends(*words: str) -> list[str]:
    """Return the ids of the cells of the Pi and the N100 at int4, from the device on."""
    found = [cell.id.partition(".")[2] for cell in cells(*words) if cell.precision == "int4"]
    return [name.replace(".llamacpp.int4", "") for name in found if "llamacpp" in name]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (f"{WIDE}.type=Q5_K_M,IQ4_XS",
         ["raspberry_pi_5", "intel_n100.Q5_K_M", "intel_n100.IQ4_XS"]),
        (f"{WIDE}.type=choice(Q5_K_M,null)",
         ["raspberry_pi_5", "intel_n100.Q5_K_M", "intel_n100.Q4_K_M"]),
        (f"{WIDE}.type=null,Q4_K_M", ["raspberry_pi_5", "intel_n100"]),  # one and the same
        (f"{PI}.type=Q4_K_M,'Q5_K_M'",
         ["raspberry_pi_5.Q4_K_M", "raspberry_pi_5.Q5_K_M", "intel_n100"]),
        (f"+{PI}.method=gptq,null", ["raspberry_pi_5.Q4_0-gptq", "raspberry_pi_5.Q4_0",
                                     "intel_n100"]),
        (f"{WIDE}={{type: Q5_K_M}},{{type: Q4_K_M, imatrix: embedded}}",
         ["raspberry_pi_5.Q4_0", "raspberry_pi_5.Q4_0-imatrix", "intel_n100.Q5_K_M",
          "intel_n100.Q4_K_M-imatrix"]),
        (f"{PI}=choice({{type: Q5_K_M}},[{{}},{{type: IQ4_XS}}])",
         ["raspberry_pi_5.Q5_K_M", "raspberry_pi_5.Q4_0", "raspberry_pi_5.IQ4_XS", "intel_n100"]),
        (f"{WIDE}={{method: gptq, type: null}},{{}}",
         ["raspberry_pi_5.Q4_0-gptq", "raspberry_pi_5.Q4_0", "intel_n100.Q4_K_M-gptq",
          "intel_n100.Q4_K_M"]),
    ],
)  # fmt: skip
def test_a_sweep(word: str, expected: list[str]) -> None:
    assert ends(word) == expected


def test_what_is_swept_for_the_whole_recipe_is_in_the_ids() -> None:
    words = ["+backends.llamacpp.int4.method=gptq", f"{WIDE}.tokens=range(1024,3073,1024)"]
    assert ends(*words, "device=intel_n100") == [
        f"intel_n100.Q4_K_M-gptq,tokens={tokens}" for tokens in (1024, 2048, 3072)
    ]


def test_names_with_dots() -> None:
    found = ends(f"{WIDE}.target_size='3.1 MB','3.2 MB'", "device=intel_n100")
    assert found == ["intel_n100.Q4_K_M-3.1MB", "intel_n100.Q4_K_M-3.2MB"]


def test_the_entry_of_a_list() -> None:
    word = "devices.mac.mlx.int4.1.bits=3,5"
    found = [cell.label for cell in cells(word) if cell.backend == "mlx"]
    assert found == ["q4-g32", "q3-g64", "q5-g64"]


def test_several_sweeps_and_axes_are_a_product() -> None:
    words = (f"{WIDE}.type=Q4_K_M,Q5_K_M", f"{WIDE}.imatrix=embedded,null")
    assert ends(*words, "device=intel_n100", "model=phi3-tiny-trained,phi-4-mini") == 2 * [
        "intel_n100.Q4_K_M-imatrix", "intel_n100.Q4_K_M", "intel_n100.Q5_K_M-imatrix",
        "intel_n100.Q5_K_M",
    ]  # fmt: skip
    assert len(ends(*words, f"{PI}.type=Q4_0,Q5_K_M")) == 8


def test_the_configuration_says_what_is_swept() -> None:
    data = yaml.safe_load(compose(f"{WIDE}.type=Q5_K_M,null").yaml())
    assert data["sweeps"] == {f"{WIDE}.type": ["Q5_K_M", None]}


TYPES = st.lists(
    st.sampled_from(["Q4_K_M", "Q5_K_M", "IQ4_XS", "null"]), min_size=1, max_size=3, unique=True
)
MAPPINGS = st.lists(
    st.sampled_from(["{type: Q5_K_M}", "{type: Q4_K_M}", "{imatrix: embedded}", "{}"]),
    min_size=1, max_size=3, unique=True,
)  # fmt: skip


@settings(max_examples=10)
@given(types=TYPES, mappings=MAPPINGS)
def test_it_is_building_once_with_each_value(types: list[str], mappings: list[str]) -> None:
    swept = {f"{WIDE}.type": types, PI: mappings}
    alone: dict[tuple[str, str], None] = {}
    for values in itertools.product(*swept.values()):
        words = [f"{key}={value}" for key, value in zip(swept, values, strict=True)]
        for cell in cells(*words, sweep=False):
            assert cell.variant
            alone[cell.place, cell.variant.model_dump_json()] = None
    found = cells(*(f"{key}={','.join(values)}" for key, values in swept.items()))
    assert {(cell.place, cell.variant and cell.variant.model_dump_json()) for cell in found} == set(
        alone
    )
    assert len({cell.id for cell in found}) == len(found) == len(alone)


# -- bad input

NO_DIFFERENCE = "sweeping {} makes no difference: {}"
LAST = "its cells' own options have the last word, or its values come to the same"
CASES: list[tuple[str, str, str]] = [
    (f"{WIDE}.type=Q4_0,Q5_K_M", "several values for '{key}'", "add -m to sweep: -m {word}"),
    (f"-m {WIDE}.type=Q5_K_M,Q9", "option 'type' of llamacpp: must be", ""),
    (f"-m {WIDE}.typ=Q4_0,Q5_K_M", "unknown option 'typ' of llamacpp", "did you mean 'type'?"),
    (f"-m {WIDE}.type=Q4_K_M,Q8_0", "option 'type' of llamacpp: GGUF type Q8_0", "int4 has"),
    ("-m backends.llamacpp.int5.type=Q4_0,Q5_K_M", "unknown precision 'int5'", "did you"),
    ("-m backends.lamacpp.int4.type=Q4_0,Q5_K_M", "unknown backend 'lamacpp'", "did you"),
    ("-m backends.openvino.int4.group_size=32,64",
     NO_DIFFERENCE.format("{key}", "no cell is openvino.int4"),
     "there are llamacpp.int4, llamacpp.int8, mlx.int4"),
    (f"-m {WIDE}.type=Q4_K_M,Q5_K_M device=raspberry_pi_5", NO_DIFFERENCE.format("{key}", LAST),
     "devices.DEVICE.BACKEND.PRECISION.OPTION has it"),
    (f"-m {PI}.type=Q4_K_M,Q5_K_M device=intel_n100",
     NO_DIFFERENCE.format("{key}", "no cell is raspberry_pi_5.llamacpp.int4"), "there are"),
    (f"-m {WIDE}.type=Q4_K_M,Q5_K_M {WIDE}.type=IQ4_XS", NO_DIFFERENCE.format("{key}", LAST), ""),
    (f"-m {WIDE}=[{{}}],[{{}},{{}}]", "options of int4 must be a mapping, not a list", ""),
    (f"-m {PI}=[{{}},{{type:Q4_0}}],{{}}", "int4: two variants are the same", "take one out"),
    (f"-m {WIDE}.type=glob(*)", "this kind of sweep has no list of values", "-m {key}=a,b"),
    (f"-m {WIDE}.imatrix_tokens=interval(1,2)", "this kind of sweep has no list of values", ""),
    (f"-m {WIDE}.imatrix_tokens=range(512,10000)", "more than 256 combinations", "sweep fewer"),
    (f"-m ~{WIDE}.type=Q4_0,Q5_K_M", "'{key}' cannot be swept", "and options: backends.BACKEND."),
    ("-m devices.raspberry_pi_5.llamacpp=[int4],[int8]", "'{key}' cannot be swept", "options:"),
    ("-m executor.cores=1,2", "'{key}' cannot be swept", "and options: backends.BACKEND."),
]  # fmt: skip


@pytest.mark.parametrize(("words", "what", "remedy"), CASES)
@pytest.mark.case(
    "names",
    "-m backends.llamacpp.int4.type=a,b, of nothing or in vain",
    "-",
    "an error that names the word, exit code 2",
)
def test_a_bad_sweep_is_refused(words: str, what: str, remedy: str, refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", RECIPE)
    word = words.removeprefix("-m ").split()[0]
    key = word.partition("=")[0].lstrip("~")
    for verb in refuse.verbs:
        (error,) = refuse(verb, "recipe=mine", *words.split())
        assert error.startswith(f"command line: {word}: {what.format(key=key, word=word)}")
        assert remedy.format(key=key, word=word) in error
