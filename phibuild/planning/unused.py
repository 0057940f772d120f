"""What devices have and nothing is made for: what that would take. Sentences for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from phibuild.schema import Accelerator, Device

NEEDS: Mapping[Accelerator, str] = {
    "xdna_npu": "AMD's NPU takes ONNX models that AMD Quark has quantized on a GPU and that Ryzen "
    "AI Software has laid out for its VitisAI provider; phibuild does not build them: CPU and GPU "
    "run what is listed",
    "neural_engine": "Apple's Neural Engine takes Core ML models, which are compiled on a Mac, and "
    "Core AI models of fixed shapes, which Apple exports of other models than Phi; phibuild does "
    "not build them: CPU and GPU run what is listed",
}
"""What an accelerator takes. From AMD's "Preparing OGA Models" (ryzenai.docs.amd.com), coremltools'
documentation, and what apple/coreai-models exports for iOS."""


def unused_notes(devices: Iterable[Device]) -> Iterator[str]:
    """Yield which of the devices have an accelerator that phibuild makes nothing for, and what it
    would take, once for each such accelerator."""
    known = {device.name: device for device in devices}
    for accelerator, needs in NEEDS.items():
        names = [name for name, device in known.items() if accelerator in device.accelerators]
        if names:
            yield f"{', '.join(names)}: {needs}"
