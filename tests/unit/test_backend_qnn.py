"""The qnn spec: variants, chips, contexts, sizes, parts; what is opened in place of binaries."""

from __future__ import annotations

import json
from typing import Any

import pytest

from phibuild.backends.qnn.genai import genai_config
from phibuild.backends.qnn.layout import EMBEDDING, PART_BYTES, parts
from phibuild.backends.qnn.options import QnnOptions
from phibuild.backends.qnn.socs import SOCS
from phibuild.backends.qnn.spec import SPEC
from phibuild.schema import Device, Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture, read_architecture
from support.written_build import device
from unit.test_backend_litert import LONGROPE, architecture

PHI35 = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}


def choose(
    precision: Precision,
    *,
    on: Device | None = None,
    arch: Architecture | None = None,
    soc: str | None = "sm8750",
    **options: Any,
) -> Variant | Skip | Misfit:
    made = QnnOptions(**options, **({"soc": soc} if soc else {}))
    return SPEC.variant(precision, made, on or device(), arch or architecture())


@pytest.mark.parametrize("form", ["context", "onnx"])
@pytest.mark.parametrize("tied", [False, True])
def test_names_and_bytes_of_all_weights(tied: bool, form: str) -> None:
    """Counted by hand: 128 * (384 + 128 + 512 + 256) weights in layers, 128 * 100 in embedding and
    output layer; an embedding that is tied has the codes of the output layer, at int8 fp16 too."""
    layers, table, norms = 128 * (384 + 128 + 512 + 256), 128 * 100, 3 * 128
    looked_up = 0 if tied else 2 * table
    expected = {
        "int4": ("int4-b32", (layers + table) // 2 + (layers + table) // 32 * 2 + looked_up),
        "int8": ("int8", layers + table + (layers + table) // 32 * 2 + 2 * table),
    }
    arch = architecture(tie_word_embeddings=tied)
    for precision, (name, nbytes) in expected.items():
        variant = choose(precision, arch=arch, form=form)  # type: ignore[arg-type]
        assert isinstance(variant, Variant)
        assert variant.name == f"{name}-{'onnx' if form == 'onnx' else 'sm8750'}"
        layout = SPEC.layout(arch, variant)
        assert sum(tensor.nbytes for tensor in layout) == nbytes + 2 * norms
        assert SPEC.judging(variant).how == "substitute"
        said = SPEC.judging(variant).note or ""
        assert ("binaries match in a simulator" in said) is (form != "onnx")


def test_a_chip_is_asked_for() -> None:
    """By its number in Qualcomm's QnnTypes.h."""
    variant = choose("int4", soc="sc8380xp")
    assert isinstance(variant, Variant)
    assert variant.options["soc"] == "sc8380xp"
    assert {name: number for name, (number, _) in SOCS.items()} == {
        "sm8550": 43,
        "sm8650": 57,
        "sm8750": 69,
        "sm8850": 87,
        "sc8380xp": 60,
    }
    skip = choose("int4", soc=None)
    assert isinstance(skip, Skip)
    assert "set soc to one of sm8550 (Snapdragon 8 Gen 2)" in skip.reason
    assert isinstance(choose("int4", soc=None, form="onnx"), Variant)


def test_what_the_npu_does_not_take() -> None:
    without = device().model_copy(update={"accelerators": ("cpu",)})
    skip = choose("int4", on=without)
    assert isinstance(skip, Skip)
    assert skip.reason == "QNN's graphs are for a Hexagon NPU; Phone has cpu"
    floats: tuple[Precision, ...] = ("fp16", "fp32")
    for precision in floats:
        skip = choose(precision)
        assert isinstance(skip, Skip)
        assert "int4 and int8" in skip.reason


@pytest.mark.parametrize(
    ("device_context", "asked", "overrides", "expected"),
    [
        (8192, None, {}, 4096),  # the model has no more
        (1000, None, {}, 960),  # whole parts of a prompt
        (4096, None, LONGROPE, 2048),  # the short factors
        (4096, None, {"sliding_window": 2047}, 1984),
        (2048, 256, {}, 256),
    ],
)
def test_context(
    device_context: int, asked: int | None, overrides: dict[str, Any], expected: int
) -> None:
    arch = architecture(**overrides)
    options: dict[str, Any] = {"context": asked} if asked else {}
    variant = choose("int8", on=device(device_context), arch=arch, **options)
    assert isinstance(variant, Variant)
    assert variant.options["context"] == expected
    assert variant.name == ("int8-c256-sm8750" if asked else "int8-sm8750")


@pytest.mark.parametrize("options", [{}, {"method": "gptq"}, {"tensor_types": {"down": "INT8b32"}}])
def test_graphs_are_opened_in_the_place_of_binaries(options: dict[str, Any]) -> None:
    """The same weights, for whatever chip: exactly the variant that form onnx is."""
    for soc in ("sm8750", "sc8380xp"):
        compiled = choose("int4", soc=soc, **options)
        graphs = choose("int4", form="onnx", **options)
        assert isinstance(compiled, Variant)
        assert isinstance(graphs, Variant)
        assert SPEC.stand_in(compiled) == graphs
        assert SPEC.stand_in(graphs) is None


def test_what_no_graph_has() -> None:
    """As the other backends whose context is part of a graph, in whole parts of a prompt."""
    wrong = SPEC.contradiction("int4", QnnOptions(context=200))
    assert wrong is not None
    assert wrong.reason == "a context is a multiple of 64, not 200"
    assert wrong.remedy == "give it 192 or 256"
    wrong = SPEC.contradiction("int8", QnnOptions(group_size=64))
    assert wrong is not None
    assert wrong.reason == "int8 has groups of 32, no group_size to choose"


def test_targets_are_for_graphs() -> None:
    wrong = SPEC.contradiction("int4", QnnOptions(target_size=1_000_000_000))
    assert wrong is not None
    assert wrong.options == ("target_size", "target_kl")
    right = QnnOptions(target_size=1_000_000_000, form="onnx")
    assert SPEC.contradiction("int4", right) is None


@pytest.mark.parametrize("mode", ["int4", "int8"])
def test_no_binary_is_too_large_to_load(mode: str) -> None:
    """Phi-3.5-mini's 3.6 billion weights in layers, in parts of at most about 0.5 GB."""
    arch = read_architecture(PHI35)
    found = parts(arch, {"mode": mode, "group_size": 32})
    assert [part.first for part in found[1:]] == [part.end for part in found[:-1]]
    assert (found[0].first, found[-1].end, len(found[-1].layers)) == (0, 32, 0)
    layer = 3072 * (9216 + 3072 + 2 * 8192 + 8192)
    each = layer * (0.5625 if mode == "int4" else 1.0625)
    assert max(len(part.layers) for part in found) * each < 1.1 * PART_BYTES
    assert len(found) == {"int4": 5 + 1, "int8": 8 + 1}[mode]


def test_memory_is_that_of_a_part() -> None:
    """Of a model of 3.8 billion on a machine of 8 GiB, and what to ask for on a smaller one."""
    arch = read_architecture(PHI35)
    variant = choose("int4", arch=arch)
    assert isinstance(variant, Variant)
    assert variant.options["gate_tokens"] == 0  # simulating it takes hours
    assert SPEC.judging(variant).note == "its graphs on the CPU, not its binaries"
    assert 4e9 < SPEC.build_memory(arch, 0, [variant]) < 8e9
    assert "form: onnx" in (SPEC.less_memory(variant) or "")
    graphs = SPEC.stand_in(variant)
    assert graphs is not None
    assert SPEC.build_memory(arch, 0, [graphs]) < 1e9


def test_the_pipeline_has_every_value_before_it_is_needed() -> None:
    """As onnxruntime-genai runs it: of a prompt, and of a token; the cache is its own."""
    arch = architecture(num_hidden_layers=3, num_key_value_heads=2)
    variant = choose("int4", arch=arch, form="onnx", context=256)
    assert isinstance(variant, Variant)
    config = genai_config(arch, variant.options, [7], 1, 99)
    decoder = config["model"]["decoder"]
    given = {"input_ids", "past_seq_len", "total_seq_len"}
    given |= {f"past_key_values.{n}.{kind}" for n in range(3) for kind in ("key", "value")}
    for phase in ("run_on_prompt", "run_on_token_gen"):
        known = set(given)
        for entry in decoder["pipeline"]:
            (stage,) = entry.values()
            if stage.get(phase, True):
                assert set(stage["inputs"]) <= known, stage["filename"]
                known |= set(stage["outputs"])
        assert "logits" in known
        assert {f"present.{n}.key" for n in range(3)} <= known
    assert decoder["sliding_window"]["cache_slack"] + 64 == config["model"]["context_length"]
    assert "soc_model" not in json.dumps(config)


def test_a_tied_embedding_has_no_type_of_its_own() -> None:
    tied = architecture(tie_word_embeddings=True)
    assert EMBEDDING not in dict(SPEC.factors(tied))
    assert isinstance(choose("int4", arch=tied, tensor_types={"embed": "INT8b32"}), Misfit)
