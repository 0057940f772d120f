"""Documents of artifacts that nobody built or judged: what a manifest says, what judging found."""

from __future__ import annotations

from phibuild.schema import Variant
from phibuild.store.documents import ArtifactFacts, Measure, Quality, Speed


def some_facts(**changes: object) -> ArtifactFacts:
    """Return the facts of an artifact of llama.cpp, but for the changes."""
    variant = Variant(
        backend="llamacpp", precision="int4", name="Q4_0", format="GGUF", options={"type": "Q4_0"}
    )
    facts: dict[str, object] = {
        "model": "phi",
        "source_digest": "s",
        "backend": "llamacpp",
        "variant": variant,
        "format": "GGUF",
        "phibuild_version": "0.1.0",
        "toolchain_digest": "t",
        "builder_digest": "b",
        "types": {"Q4_0": 100},
        "bits_per_weight": 4.5,
        "build_seconds": 1.5,
        "peak_rss_bytes": 1 << 20,
        **changes,
    }
    return ArtifactFacts.model_validate(facts)


def some_measure(kl: float = 0.1, *, reference_perplexity: float = 8.0) -> Measure:
    """Return what judging may have found, of such a mean KL."""
    return Measure(
        quality=Quality(
            kl_mean=kl,
            kl_p99=9 * kl,
            top1=0.9,
            perplexity=8.5,
            reference_perplexity=reference_perplexity,
            tokens=510,
            cached_decoding_kl=0.0,
        ),
        speed=Speed(
            load_seconds=0.1, prefill_tokens_per_second=1234.5, decode_tokens_per_second=56.0
        ),
        peak_rss_bytes=5,
        seconds=3.0,
    )
