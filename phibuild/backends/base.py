"""What a backend is: a spec in the core, a worker in its toolchain.

A backend is a package. Its module `spec` holds a `SPEC` that satisfies `BackendSpec`; it may import
schema, errors, `phibuild.worker` and the modules beside this one. Its module `worker` satisfies
`phibuild.worker.interface.Worker`; it runs inside the toolchain and may import its toolchain's
packages and `phibuild.worker`. `requirements.txt` beside them locks the toolchain; `conf.yaml`
there, or conf/backend/<name>.yaml, has the defaults of each precision's options.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from pydantic import BaseModel

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

OptionsModel = TypeVar("OptionsModel", bound=BaseModel)


@dataclass(frozen=True)
class StoredTensor:
    """One weight as the artifact will store it. `kind` is the stored type in the format's own
    words (Q4_K, U4, F16, ...); `parameters` counts weights of the original; `nbytes` counts all
    that they take: packed weights, scales, zero points."""

    name: str
    kind: str
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class TypeChoice:
    """A type that a matrix can have: its name, the bytes that the matrix takes, and the squared
    error of standard normal weights."""

    kind: str
    nbytes: int
    error: float


@dataclass(frozen=True)
class MatrixTypes:
    """A matrix of the checkpoint and the types that it can have, the smallest first; `name` is what
    the format calls it, by which people choose."""

    source: str
    name: str
    choices: tuple[TypeChoice, ...]


@dataclass(frozen=True)
class SourceFiles:
    """What a spec may know of a checkpoint besides its shape: bytes of each file of its folder,
    and number and total UTF-8 bytes of its tokens (for formats that embed the vocabulary)."""

    files: Mapping[str, int]
    tokens: int
    token_bytes: int
    merges: int
    merge_bytes: int
    tokenizer: str
    """"sentencepiece" or "bpe"."""


@dataclass(frozen=True)
class ContextLimit:
    """How many tokens a runtime computes as the original does, where these are fewer than the model
    has positions, and why: a sentence for people that begins in lower case."""

    tokens: int
    why: str


@dataclass(frozen=True)
class Best:
    """Options that `quality: best` may stand for; on devices with an `accelerator` alone, if it
    names one."""

    options: Options
    accelerator: Accelerator | None = None


class BackendSpec(Protocol[OptionsModel]):
    """A backend as the core sees it, by the model of its options. Nothing here imports a toolchain
    package. A class that derives from it has the defaults of what is not abstract."""

    name: str
    title: str
    format: str
    library: str
    """The Hub's name of what reads the format: `library_name` of a model card."""
    copied: tuple[str, ...] = ()
    """Globs of names of files that a run's folder holds copies of: programs that read the format
    refuse them where they have several hard links."""
    toolchain_bytes: int = 0
    """About what the toolchain's packages take, on Linux x86-64 and without CUDA; 0: not known."""
    options: type[OptionsModel]
    """Every option a recipe may set, with its default; unknown ones are refused."""
    best: tuple[Best, ...] = ()
    """What the option `quality: best` of int4 stands for, where the backend has it: the first that
    a device and a model can have. In the order of their losses (docs/variants.md)."""

    def contradiction(self, precision: Precision, options: OptionsModel) -> Contradiction | None:
        """Return which options do not go with the precision or with one another, whatever the
        device and the model are; None if there are none. Only options without one become a
        variant."""
        return None

    @abstractmethod
    def variant(
        self, precision: Precision, options: OptionsModel, device: Device, arch: Architecture
    ) -> Variant | Skip | Misfit:
        """Return what to build, why the device or the model cannot have it, or which option is of
        another model."""

    def matrices(self, arch: Architecture, variant: Variant) -> Sequence[MatrixTypes]:
        """Return the matrices that can have types of their own; none where types are not mixed."""
        return ()

    @abstractmethod
    def layout(self, arch: Architecture, variant: Variant) -> Sequence[StoredTensor]:
        """Return every weight as it will be stored. The plan adds it up, and after the build the
        artifact must hold exactly these types (by `inspect` in the worker)."""

    @abstractmethod
    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of the artifact besides its weights: the tokenizer and whatever else
        grows large. With the weights they are the artifact's size to within 3 % or 2 MB, whichever
        is more; names, headers and configuration are less than that."""

    @abstractmethod
    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return an upper bound of the worker's anonymous memory in bytes when it builds these
        together. Pages of mapped files do not count: the system can drop them."""

    @abstractmethod
    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return an upper bound of the worker's anonymous memory in bytes when it judges these
        one after the other, over windows of so many tokens."""

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return how many tokens the runtime computes rightly, None if all that the model has."""
        return None

    def most_tokens(self, arch: Architecture, variant: Variant) -> int | None:
        """Return how many tokens an artifact can be fed in one go before it fails, None if there is
        no such number. Of longer windows it is judged by the first so many."""
        return None

    def judging(self, variant: Variant) -> Judging:
        """Return how this machine judges the variant. What cannot be judged is built all the
        same."""
        return Judging()

    def stand_in(self, variant: Variant) -> Variant | None:
        """Return the variant whose artifact is judged in the place of a variant's own, where that
        one cannot be opened here and the other holds the same model; None: its own is. It is built
        with it if it is not there."""
        return None

    def less_memory(self, variant: Variant) -> str | None:
        """Return what people can ask for where building takes more memory than there is, besides
        a larger machine: words that begin in lower case."""
        return None

    @abstractmethod
    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return the bytes of one element of the KV cache on the device."""

    def run_command(self, variant: Variant) -> str:
        """Return the shell command (or short Python text) that runs the artifact from its own
        folder, for its README."""
        return 'phibuild run . "Why is the sky blue?"'

    def card_sections(self, arch: Architecture, variant: Variant) -> Mapping[str, str]:
        """Return what its README says besides: headings and their texts, in Markdown."""
        return {}


def changed(
    made: Variant | Skip | Misfit, change: Callable[[Variant], Variant | Skip | Misfit]
) -> Variant | Skip | Misfit:
    """Return what a change makes of a variant; why there is none as it is."""
    return change(made) if isinstance(made, Variant) else made


Backend: TypeAlias = BackendSpec[BaseModel]
"""One of those that are installed: it takes the options that its own model has made."""
