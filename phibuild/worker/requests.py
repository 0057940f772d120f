"""What a runner is asked: one JSON object, by its verb. Standard library only.

The core writes requests of these shapes, and the entry of every runner checks that it got one.
"""

# Without `from __future__ import annotations`: Python 3.11 would not see NotRequired.

import types
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints

from phibuild.worker.json_values import JsonDict
from phibuild.worker.stopping import Compared

Options = dict[str, Any]
"""A variant's options as JSON: the backend's own, by their names."""


CACHE_RANGES = "cache_ranges.npy"
"""File of the original's activations: the largest magnitudes of keys and of values, F32 [2, layers,
KV heads, head_dim], of keys after their rotation to whatever position."""


class VariantData(TypedDict):
    """A Variant as JSON; its `options` are complete."""

    backend: str
    precision: str
    name: str
    format: str
    options: Options


class BuildItem(TypedDict):
    """An artifact to write into the empty folder `output`. `activations` is the folder of the
    original's activations, `cache_ranges` one that has CACHE_RANGES, `codes` that of its weights on
    the variant's grid (codes.py), `file` one of the user's, for a variant that is built from
    them."""

    item: str
    variant: VariantData
    output: str
    activations: NotRequired[str]
    cache_ranges: NotRequired[str]
    codes: NotRequired[str]
    file: NotRequired[str]


class BuildRequest(TypedDict):
    """Artifacts to be written in one go. `source` is the checkpoint's folder, `facts` that of what
    Transformers makes of its tokenizer (tokenizer_check.py), `architecture` what
    `Architecture.to_json` returns."""

    verb: Literal["build"]
    source: str
    facts: str
    architecture: JsonDict
    model: str
    threads: int
    items: list[BuildItem]


class JudgeItem(TypedDict):
    """An artifact to be judged; `limits` are those of its gates, `comparisons` those that they make
    with a baseline (stopping.py); `tokens`: of each window the first so many (None: all)."""

    item: str
    folder: str
    limits: dict[str, list[float]]
    comparisons: NotRequired[list[Compared]]
    tokens: NotRequired[int | None]


class JudgeRequest(TypedDict):
    """Artifacts to be judged by the original's logits in the folder `reference`; `adaptive`: no
    further than needed."""

    verb: Literal["judge"]
    items: list[JudgeItem]
    reference: str
    threads: int
    decode_tokens: int
    adaptive: bool


class _Original(TypedDict):
    """A step of the original, whose result goes into the empty folder `output`; `source` is the
    view of the checkpoint."""

    item: str
    source: str
    architecture: JsonDict
    output: str
    threads: int


class SourceRequest(_Original):
    """What the source is: see SourceStep. `original` is the checkpoint's own folder."""

    verb: Literal["source"]
    original: str
    layers: list[int] | None
    fusing: dict[str, list[str]]
    adapter: JsonDict | None
    allow_nonfinite: bool


class ReferenceRequest(_Original):
    """Logits over windows of a text, at most `max_bytes` of them; with `long` also those of the
    long rope factors."""

    verb: Literal["reference"]
    text: str
    windows: int
    window_tokens: int
    max_bytes: int
    long: bool


class ActivationsRequest(_Original):
    """The squared inputs of the linear layers over `tokens` of a text, in chunks."""

    verb: Literal["activations"]
    text: str
    tokens: int
    chunk_tokens: int


class QuantizeItem(TypedDict):
    """Weights on a `grid` (`Grid.to_json`), to be written into the folder `output`: what a run that
    was killed left there is kept."""

    item: str
    grid: dict[str, Any]
    output: str


class QuantizeRequest(TypedDict):
    """Weights of the original on several grids, from one calibration. The folder `states` is for
    what a later run goes on from."""

    verb: Literal["quantize"]
    items: list[QuantizeItem]
    source: str
    architecture: dict[str, Any]
    states: str
    threads: int
    text: str
    tokens: int
    chunk_tokens: int


class SensitivityRequest(_Original):
    """What the original loses with each matrix alone on a `grid` (`Grid.to_json`), over `tokens` of
    a text, in chunks; with `long` by the long rope factors, where it has them. The folder `states`
    is for what a later run goes on from."""

    verb: Literal["sensitivity"]
    states: str
    text: str
    tokens: int
    chunk_tokens: int
    grid: dict[str, Any]
    long: bool


class GenerateRequest(TypedDict):
    """Text that goes on from a prompt, by the artifact in `folder`. `raw`: the prompt as it is;
    `template`: a named chat template."""

    verb: Literal["generate"]
    folder: str
    threads: int
    prompt: str
    system: str | None
    raw: bool
    template: str | None
    max_tokens: int


OriginalRequest = SourceRequest | ReferenceRequest | ActivationsRequest | SensitivityRequest
Request = BuildRequest | JudgeRequest | OriginalRequest | QuantizeRequest | GenerateRequest

SHAPES: Mapping[str, type] = {
    "build": BuildRequest,
    "judge": JudgeRequest,
    "source": SourceRequest,
    "reference": ReferenceRequest,
    "activations": ActivationsRequest,
    "quantize": QuantizeRequest,
    "sensitivity": SensitivityRequest,
    "generate": GenerateRequest,
}


def item_names(request: Request) -> list[str]:
    """Return what a request asks for, by the names that the events about it have."""
    if request["verb"] == "build" or request["verb"] == "judge" or request["verb"] == "quantize":
        return [one["item"] for one in request["items"]]
    return ["generate"] if request["verb"] == "generate" else [request["item"]]


def check_request(data: object) -> None:
    """Raise ValueError, saying where, if `data` is no request."""
    verb = str(data.get("verb")) if isinstance(data, dict) else ""
    if verb not in SHAPES:
        raise ValueError(f"no request: verb {verb!r}")
    _check(data, SHAPES[verb], verb)


def _check(data: object, shape: Any, place: str) -> None:
    """Raise ValueError if `data` is not of the type `shape`, which is made of what JSON has."""
    origin, inside = get_origin(shape), get_args(shape)
    if shape is Any:
        return
    if origin in (Union, types.UnionType):
        kinds = [get_origin(one) or one for one in inside]
        if type(data) not in kinds:
            raise ValueError(f"{place}: {data!r} is not {shape}")
        shape = inside[kinds.index(type(data))]
        origin, inside = get_origin(shape), get_args(shape)
    if origin is Literal:
        good = data in inside
    elif hasattr(shape, "__required_keys__"):
        _check_keys(data, shape, place)
        return
    else:
        kind = origin or shape
        good = type(data) is kind
    if not good:
        raise ValueError(f"{place}: {data!r} is not {shape}")
    match data:
        case list():
            for number, one in enumerate(data):
                _check(one, inside[0], f"{place}[{number}]")
        case dict():
            for key, one in data.items():
                _check(one, inside[1], f"{place}.{key}")


def _check_keys(data: object, shape: Any, place: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{place}: {data!r} is no object")
    known = get_type_hints(shape)
    if missing := shape.__required_keys__ - data.keys():
        raise ValueError(f"{place}: {min(missing)!r} is missing")
    if surplus := data.keys() - known.keys():
        raise ValueError(f"{place}: {min(surplus)!r} is not known")
    for key, value in data.items():
        _check(value, known[key], f"{place}.{key}")
