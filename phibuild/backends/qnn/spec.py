"""The qnn backend as the core sees it: variants, skips, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from phibuild.backends.base import Best, SourceFiles
from phibuild.backends.common import facts_bytes, missing_accelerator, plain_weights
from phibuild.backends.mixed import UNMIXED
from phibuild.backends.qnn.card import card
from phibuild.backends.qnn.layout import (
    EMBEDDING,
    FLOAT16,
    PROMPT_TOKENS,
    encoding,
    integers,
    parts,
    products,
)
from phibuild.backends.qnn.memory import build_memory, judge_memory
from phibuild.backends.qnn.options import FEWEST, QnnOptions
from phibuild.backends.qnn.socs import SOCS
from phibuild.backends.written import WrittenSpec
from phibuild.schema import (
    Accelerator,
    Contradiction,
    Device,
    Judging,
    Misfit,
    Options,
    Precision,
    Skip,
    Variant,
)
from phibuild.worker.architecture import Architecture
from phibuild.worker.encodings import Encoding
from phibuild.worker.grids import Grid

_NPU: Accelerator = "hexagon_npu"
_SIMULATED = 100_000_000
"""Parameters of the largest model whose binaries are run in the simulator, which takes the CPU 40
seconds for one pass of 0.4 billion."""
_GATE_TOKENS = 4
_GRAPH_BYTES = 16_000
"""Of a layer's nodes and norms, in both graphs."""
_PART_BYTES, _ROW_BYTES, _SLOT_BYTES = 125_000, 30, 6.5
"""Of a binary's program: for each part, for each row of a matrix, and for each place of a layer's
cache and each of its heads."""
_COMPILED = ("soc", "gate_tokens")
"""Options of form context alone."""
_COMPILING = (
    "form: onnx takes little: a larger machine, or the device itself when it first opens them, "
    "compiles its graphs"
)


class QnnSpec(WrittenSpec[QnnOptions]):
    """Context binaries for Qualcomm's NPU, and the graphs that they are compiled of."""

    name = "qnn"
    title = "ONNX Runtime QNN (Qualcomm NPU)"
    format = "ONNX (QNN)"
    library = "onnx"
    # onnx 1.21 and later takes external data with several hard links for an attack.
    copied = ("*.data",)
    toolchain_bytes = 480_000_000
    options = QnnOptions
    best = (Best({**UNMIXED, "group_size": 32, "method": "gptq"}),)
    full = "the graphs are made for no more"
    ungrouped = "int8 has groups of 32, no group_size to choose"
    lacking = "their mask does not have"
    longest = 4096
    step = PROMPT_TOKENS
    fewest = FEWEST
    building = staticmethod(build_memory)
    opening = staticmethod(judge_memory)

    def besides(self, options: QnnOptions) -> dict[str, object]:
        if options.form == "onnx":
            return {"form": "onnx"}
        return {"form": "context", **{name: getattr(options, name) for name in _COMPILED}}

    def named(self, options: QnnOptions) -> str:
        return f"-{options.soc}" if options.form == "context" else "-onnx"

    def contradiction(self, precision: Precision, options: QnnOptions) -> Contradiction | None:
        """Return targets of types that only graphs can have, and groups where there are none."""
        if precision in ("fp32", "fp16"):
            return plain_weights(precision, options, "context", "form", *_COMPILED)
        if options.form == "context" and options.has_target:
            return Contradiction(
                reason="types are chosen for the size of graphs, not for that of their binaries",
                options=("target_size", "target_kl"),
                remedy="add form: onnx, and give the tensor_types that it finds to form: context",
            )
        return super().contradiction(precision, options)

    def variant(
        self, precision: Precision, options: QnnOptions, device: Device, arch: Architecture
    ) -> Variant | Skip | Misfit:
        """Return the variant, or why the NPU does not take it."""
        reason = missing_accelerator(device, _NPU, "QNN's graphs are for a Hexagon NPU")
        if reason:
            return Skip(reason=reason)
        if precision in ("fp32", "fp16"):
            return Skip(reason="the qnn backend stores int4 and int8 weights; ask for those")
        if options.form == "context" and options.soc is None:
            chips = ", ".join(f"{soc} ({title})" for soc, (_, title) in SOCS.items())
            return Skip(
                reason=f"a context binary is for one chip, and nothing says which {device.title} "
                f"has: set soc to one of {chips}, or form: onnx"
            )
        if options.gate_tokens is None:
            gate = _GATE_TOKENS if arch.parameters <= _SIMULATED else 0
            options = options.model_copy(update={"gate_tokens": gate})
        return super().variant(precision, options, device, arch)

    def integers(self, bits: int, group_size: int) -> Encoding:
        return integers(bits, group_size)

    def grid(self, arch: Architecture, group_size: int) -> Grid:
        return Grid(4, group_size, "middle", "F16", head=True)

    def factors(self, arch: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield all matrices that are multiplied by, but for an embedding that is one of them."""
        for name, shape in arch.tensors():
            if len(shape) == 2 and name != EMBEDDING:
                yield name, shape

    def stored(
        self, arch: Architecture, options: Options
    ) -> Iterator[tuple[str, tuple[int, ...], Encoding]]:
        for name, shape in arch.tensors():
            if name != EMBEDDING or not arch.tied:
                yield name, shape, encoding(name, shape, options)
                continue
            yield name, shape, products(options)
            if options["mode"] == "int8":
                yield f"{name} (looked up)", shape, FLOAT16

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of the graphs, of the tables of positions, of the binaries' programs and
        of the files that are copied."""
        context: int = variant.options["context"]
        tables = 2 * 2 * context * (arch.rotary_dim // 2)
        return tables + self._programs(arch, variant) + facts_bytes(source)

    def _programs(self, arch: Architecture, variant: Variant) -> int:
        """Return the bytes of a variant's binaries besides weights, as the compiler makes them for
        shapes from 256 to 5,120 (benchmarks/qnn_binaries.py); those of graphs are small."""
        if variant.options["form"] == "onnx":
            return _GRAPH_BYTES * arch.layers
        rows = arch.qkv_width + 2 * arch.hidden_size + 2 * arch.intermediate_size
        context: int = variant.options["context"]
        layer = _ROW_BYTES * rows + round(_SLOT_BYTES * arch.kv_heads * context)
        count = len(parts(arch, variant.options))
        copies = 0
        if arch.tied and variant.options["mode"] == "int4":  # looked up in on the CPU, too
            copies = products(variant.options).nbytes((arch.vocab_size, arch.hidden_size))
        return copies + _PART_BYTES * count + layer * arch.layers + _ROW_BYTES * arch.vocab_size

    def stand_in(self, variant: Variant) -> Variant | None:
        """Return form onnx of binaries: Qualcomm's simulator cannot open binaries whose graphs
        share their weights, and a CPU none at all."""
        options = dict(variant.options)
        if options["form"] == "onnx":
            return None
        name = variant.name.replace(f"-{options['soc']}", "-onnx")
        graphs = {**{key: options[key] for key in options if key not in _COMPILED}, "form": "onnx"}
        return variant.model_copy(update={"name": name, "options": graphs})

    def less_memory(self, variant: Variant) -> str | None:
        return _COMPILING if variant.options["form"] == "context" else None

    def judging(self, variant: Variant) -> Judging:
        """Return that the graphs are judged, on the CPU; those of binaries too, and whether the
        build compares the binaries with them (`gate.Gate`)."""
        note = "its graphs on the CPU"
        if variant.options["form"] == "context":
            gated = variant.options["gate_tokens"]
            note += ", which its binaries match in a simulator" if gated else ", not its binaries"
        return Judging(how="substitute", note=note)

    def run_command(self, variant: Variant) -> str:
        """Return a Python program for the device."""
        return (
            "# needs pip install onnxruntime-genai onnxruntime-qnn, on a Snapdragon\n"
            "import onnxruntime_genai as og\n"
            "import onnxruntime_qnn\n\n"
            "og.register_execution_provider_library(\n"
            "    onnxruntime_qnn.get_ep_name(), onnxruntime_qnn.get_library_path()\n"
            ")\n"
            'model = og.Model(".")\n'
            "tokenizer = og.Tokenizer(model)\n"
            "generator = og.Generator(model, og.GeneratorParams(model))\n"
            'generator.append_tokens(tokenizer.encode("def fibonacci(n):"))\n'
            "while not generator.is_done():\n"
            "    generator.generate_next_token()\n"
            "print(tokenizer.decode(generator.get_sequence(0)))\n"
        )

    def card_sections(self, arch: Architecture, variant: Variant) -> Mapping[str, str]:
        """Return what the NPU runs, and how far that was tried."""
        return {"On the NPU": card(variant.options)}

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 2: keys and values are fp16."""
        return 2.0


SPEC = QnnSpec()
