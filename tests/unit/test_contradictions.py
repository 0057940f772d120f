"""Options that do not go with their precision: every backend's, and where each is said to stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phibuild.backends.registry import SHIPPED, backend
from phibuild.config.catalogue import Catalogue
from phibuild.schema import PRECISIONS, Precision
from support.refusals import Refuse, refuse

__all__ = ["refuse"]

Options = dict[str, Any]
CONTRADICTIONS: list[tuple[str, Precision, Options, str, str]] = [
    ("llamacpp", "int4", {"type": "Q8_0"}, "GGUF type Q8_0 is not int4", "int4 has Q4_K_M, Q4_0"),
    ("llamacpp", "int8", {"type": "Q4_0"}, "GGUF type Q4_0 is not int8", "int8 has Q8_0"),
    ("llamacpp", "fp16", {"type": "F32"}, "GGUF type F32 is not fp16", "fp16 has F16"),
    ("llamacpp", "int8", {"imatrix": "embedded"}, "int8 has none", "remove imatrix,"),
    ("llamacpp", "fp32", {"imatrix": "embedded"}, "fp32 has none", "remove imatrix,"),
    ("llamacpp", "fp16", {"imatrix_tokens": 1024}, "fp16 has none", "remove imatrix_tokens,"),
    ("ort_genai", "fp16", {"block_size": 64}, "without block_size", "remove block_size,"),
    ("ort_genai", "fp16", {"block_size": 32}, "without block_size", "remove block_size,"),
    ("ort_genai", "fp32", {"symmetric": True}, "without symmetric", "remove symmetric,"),
    ("ort_genai", "fp32", {"accuracy_level": 0}, "without accuracy_level", "int4 or int8"),
    ("ort_genai", "int8", {"int8_matmuls": ["last_matmul"]}, "int8 already", "remove int8_m"),
    ("openvino", "int4", {"mode": "int8_asym"}, "mode int8_asym is not int4", "int4_asym or"),
    ("openvino", "int8", {"mode": "int4_sym"}, "mode int4_sym is not int8", "int8_asym or"),
    ("openvino", "int8", {"group_size": 64}, "one scale for each row", "remove group_size"),
    ("openvino", "fp16", {"mode": "int8_sym"}, "without mode", "remove mode,"),
    ("openvino", "fp32", {"group_size": -1}, "without group_size", "remove group_size,"),
    ("mlx", "int4", {"bits": 8}, "8 bits with mode affine are not int4", "use 3 or 4 or 5"),
    ("mlx", "int8", {"bits": 4}, "4 bits with mode affine are not int8", "use 6 or 8"),
    ("mlx", "int8", {"mode": "mxfp4"}, "mode mxfp4 is not int8", "use affine or mxfp8"),
    ("mlx", "int4", {"mode": "mxfp4", "bits": 5}, "5 bits with mode mxfp4", "use 4"),
    ("mlx", "int4", {"mode": "mxfp4", "group_size": 64}, "groups of 32, not of 64", "leave gr"),
    ("mlx", "int8", {"recipe": "mixed_3_6"}, "mixed_3_6 is int4's, not int8's", "remove recipe"),
    ("mlx", "int4", {"recipe": "mixed_3_6", "mode": "mxfp4"}, "needs mode affine", "use mode"),
    ("mlx", "int4", {"recipe": "mixed_3_6", "bits": 3}, "chooses the bits", "leave bits null"),
    ("mlx", "fp16", {"bits": 4, "mode": "affine"}, "without mode and bits", "remove mode and"),
    ("mlx", "fp32", {"dtype": "float16"}, "without dtype", "remove dtype,"),
    ("llamacpp", "int4", {"method": "gptq", "type": "IQ4_XS"}, "Q5_K_M, not IQ4", "set type to"),
    ("llamacpp", "int4", {"method": "gptq", "imatrix": "embedded"}, "without imatrix", "or method"),
    ("ort_genai", "int4", {"method": "gptq", "algorithm": "rtn"}, "without algorithm", "or method"),
    ("ort_genai", "fp32", {"text": "embedded"}, "without text", "remove text"),
    ("openvino", "int4", {"method": "gptq", "group_size": -1}, "groups within a row", "32, 64 or"),
    ("mlx", "int4", {"method": "gptq", "mode": "mxfp4"}, "needs mode affine", "or remove method"),
    ("mlx", "int4", {"method": "gptq", "recipe": "mixed_3_6"}, "without recipe", "or method"),
    *((name, "int8", {"method": "gptq"}, "GPTQ rounds int4", "remove method") for name in SHIPPED),
    *((name, "int4", {"text": "embedded"}, "nothing that text", "to gptq") for name in SHIPPED),
    *((name, "int4", {"method": "nearest", "tokens": 600}, "that tokens", "remove tokens")
      for name in SHIPPED),
    ("pytorch", "fp32", {"group_size": 64}, "without group_size", "remove group_size,"),
    ("pytorch", "fp16", {"symmetric": True}, "without symmetric", "remove symmetric,"),
    ("pytorch", "fp16", {"dtype": "bfloat16"}, "without dtype", "remove dtype,"),
    ("pytorch", "int8", {"target_kl": 0.1}, "only int4 mixes types", "remove target_kl"),
    ("pytorch", "int4", {"target_kl": 0.1, "symmetric": False}, "zero points", "remove symmetric"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "precision", "options", "reason", "remedy"), CONTRADICTIONS)
def test_a_contradiction(
    name: str, precision: Precision, options: Options, reason: str, remedy: str
) -> None:
    spec = backend(name)
    found = spec.contradiction(precision, spec.options.model_validate(options))
    assert found is not None
    assert reason in found.reason
    assert remedy in found.remedy
    assert set(found.options) <= set(options) | {"mode"}


@pytest.mark.parametrize("name", SHIPPED)
def test_defaults_and_options_without_a_value_contradict_nothing(name: str) -> None:
    spec, defaults = backend(name), Catalogue().backend_defaults(name)
    for precision in PRECISIONS:
        given = defaults.get(precision, {})
        assert spec.contradiction(precision, spec.options.model_validate(given)) is None
        unset = {
            option: field.default
            for option, field in spec.options.model_fields.items()
            if field.default in (None, "auto", ())
        }
        assert spec.contradiction(precision, spec.options.model_validate(unset)) is None


@pytest.mark.parametrize("verb", ["plan", "build"])
@pytest.mark.parametrize(("name", "precision", "options", "reason", "remedy"), CONTRADICTIONS[::4])
@pytest.mark.case(
    "building",
    "an option that contradicts its precision: int4: (type: Q8_0)",
    "-",
    "an error with file and line, exit code 2",
)
def test_it_is_an_error_where_it_was_written(
    verb: str,
    name: str,
    precision: Precision,
    options: Options,
    reason: str,
    remedy: str,
    refuse: Refuse,
) -> None:
    option = list(options)[-1]
    refuse.write(
        "recipes/mine.yaml",
        f"devices:\n  raspberry_pi_5:\n    {name}:\n      {precision}:\n"
        + "".join(f"        {key}: {value}\n" for key, value in options.items())
        + "  intel_n100: {llamacpp: [int4]}\n",
    )
    (error,) = refuse(verb, "recipe=mine")
    line = 4 + len(options)
    assert error.startswith(f"recipes/mine.yaml:{line}: option {option!r} of {name}: ")
    assert reason in error
    assert remedy in error


DEVICES = "devices:\n  intel_n100: {llamacpp: {int4: }}\n"


@pytest.mark.parametrize(
    ("files", "words", "where"),
    [
        ({"recipes/mine.yaml": DEVICES + "backends:\n  llamacpp: {int4: {type: Q8_0}}\n"}, (),
         "recipes/mine.yaml:4"),
        ({"conf/backend/llamacpp.yaml": "int4:\n  type: Q8_0\n"}, (),
         "conf/backend/llamacpp.yaml:2"),
        ({"conf/device/intel_n100.yaml":
          "title: A box\nclass: iot\nmemory: 8 GiB\nbudget: 6 GiB\naccelerators: [cpu]\n"
          "context_length: 4096\n"
          "sources: {memory: its box, budget: its box, context_length: ours}\n"
          "backends:\n  llamacpp:\n    int4: {type: Q8_0}\n"}, (),
         "conf/device/intel_n100.yaml:10"),
        ({}, ("backends.llamacpp.int4.type=Q8_0",),
         "command line: backends.llamacpp.int4.type=Q8_0"),
    ],
)  # fmt: skip
def test_whoever_has_the_last_word_is_told(
    files: dict[str, str], words: tuple[str, ...], where: str, refuse: Refuse
) -> None:
    refuse.write("recipes/mine.yaml", DEVICES)
    for name, text in files.items():
        refuse.write(name, text)
    (error,) = refuse("plan", "recipe=mine", *words)
    assert error.startswith(f"{where}: option 'type' of llamacpp: GGUF type Q8_0 is not int4")


def test_of_two_that_clash_the_one_written_last_is_wrong(refuse: Refuse) -> None:
    wide = "backends: {mlx: {int4: {group_size: 128}}}\n"
    refuse.write("recipes/mine.yaml", wide + "devices:\n  mac: {mlx: {int4: {mode: mxfp4}}}\n")
    (error,) = refuse("plan", "recipe=mine")
    assert error.startswith("recipes/mine.yaml:3: option 'mode' of mlx: mode mxfp4 has groups of")


# -- nothing to build, and --strict

NONE = "devices:\n  raspberry_pi_5: {mlx: [int4, int8]}\n"
SOME = "devices:\n  raspberry_pi_5:\n    mlx: [int4]\n    llamacpp: [int4]\n"


@pytest.mark.parametrize("verb", ["plan", "build"])
@pytest.mark.case(
    "building",
    "all cells skipped",
    "-",
    "an error that names each, exit code 2",
)
def test_every_cell_skipped_is_an_error_that_names_each(verb: str, refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", NONE)
    # A model that would have to be fetched first: it is not.
    first, *cells = refuse(verb, "recipe=mine", "model=phi-4-mini")
    assert first.startswith("command line: nothing is left to build: all 2 cells are skipped")
    assert [cell.split(" is skipped: ")[0] for cell in cells] == [
        f"recipes/mine.yaml:2: phi-4-mini.raspberry_pi_5.mlx.{precision}"
        for precision in ("int4", "int8")
    ]
    assert all("run on Apple GPUs (metal); Raspberry Pi 5" in cell for cell in cells)


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_what_is_left_by_only_counts(verb: str, refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", SOME)
    first, cell = refuse(verb, "recipe=mine", "--only", "*.mlx.*")
    assert "nothing is left to build: the only cell is skipped" in first
    assert cell.startswith("recipes/mine.yaml:3: phi3-tiny-trained.raspberry_pi_5.mlx.int4")


@pytest.mark.parametrize("verb", ["plan", "build"])
@pytest.mark.case(
    "building",
    "--strict",
    "-",
    "a skip is an error, exit code 2",
)
def test_strict_allows_no_skip(verb: str, refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", SOME)
    first, cell = refuse(verb, "recipe=mine", "--strict")
    assert first.startswith("command line: --strict: 1 of 2 cells are skipped")
    assert cell.startswith("recipes/mine.yaml:3: phi3-tiny-trained.raspberry_pi_5.mlx.int4")


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_no_memory_for_anything_is_an_error_that_names_each(verb: str, refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", "devices:\n  intel_n100: {llamacpp: [int4, int8]}\n")
    first, *cells = refuse(verb, "recipe=mine", "executor.memory=1MB")
    assert first.startswith("command line: nothing is left to build: no step has the memory")
    assert [cell.split(":")[0] for cell in cells] == [
        f"phi3-tiny-trained.intel_n100.llamacpp.{precision}" for precision in ("int4", "int8")
    ]


# -- the text that artifacts are judged on


@pytest.mark.parametrize("verb", ["plan", "build"])
@pytest.mark.case(
    "building",
    "the same text for imatrix and evaluation",
    "-",
    "refused",
)
def test_the_judged_text_is_no_calibration_text(verb: str, refuse: Refuse, tmp_path: Path) -> None:
    held_out = Path(__file__).resolve().parents[2] / "phibuild/data/phi3-tiny-trained/heldout.txt"
    text = held_out.read_text(encoding="utf-8")
    refuse.write("copy.txt", text.replace("\n", "\r\n"))
    refuse.write("more.txt", "before it\n" + text + "after it\n")
    for name in ("copy.txt", "more.txt"):
        refuse.write(
            "recipes/mine.yaml",
            f"devices:\n  intel_n100:\n    llamacpp:\n      int4:\n        imatrix: {name}\n",
        )
        (error,) = refuse(verb, "recipe=mine")
        assert error.startswith("recipes/mine.yaml:5: the calibration text is the one that")
    refuse.write("recipes/mine.yaml", "devices:\n  mac:\n    mlx: {int4: {method: gptq}}\n")
    own = held_out.with_name("calibration.txt")  # what GPTQ takes where no text is named
    (error,) = refuse(verb, "recipe=mine", f"evaluation.text={own}")
    assert error.startswith("recipes/mine.yaml:3: the calibration text is the one that")
    # A phone with a Hexagon NPU takes GPTQ by itself.
    refuse.write("recipes/mine.yaml", "devices:\n  android_flagship:\n    llamacpp: [int4]\n")
    (error,) = refuse(verb, "recipe=mine", f"evaluation.text={own}")
    assert error.startswith("recipes/mine.yaml:3: the calibration text is the one that")
    refuse.write("recipes/mine.yaml", "devices: {intel_n100: {llamacpp: [int4]}}\n")
    (error,) = refuse(
        verb, "recipe=mine", f"evaluation.text={refuse.folder / 'copy.txt'}",
        "devices.intel_n100.llamacpp.int4.imatrix=copy.txt",
    )  # fmt: skip
    assert error.startswith("command line: devices.intel_n100.llamacpp.int4.imatrix=copy.txt: ")
    assert f"evaluation.text={refuse.folder / 'copy.txt'}" in error
