"""Which files of a checkpoint's folder are its tokenizer, and how many token ids it has.

What Transformers 5.23 reads of a model of type phi3 (`_from_pretrained` of
tokenization_utils_base.py, and tokenization_utils_tokenizers.py): tokenizer.json and
tokenizer_config.json; special_tokens_map.json and added_tokens.json where the latter has no
`added_tokens_decoder`; chat_template.jinja and additional_chat_templates/*.jinja. It does not read
vocab.json, merges.txt, chat_template.json (which is a processor's) nor, beside a tokenizer.json,
tokenizer.model, which has the scores of sentencepiece that GGUF needs. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from phibuild.checkpoints.json_files import read_json_object
from phibuild.errors import Problem, SourceError
from phibuild.worker.companions import SPECIAL_TOKENS, TEMPLATES
from phibuild.worker.json_values import JsonDict, JsonObject
from phibuild.worker.sentencepiece_model import read_pieces

_REMEDY = "copy the tokenizer files of the original checkpoint into the folder"
_LEGACY = ("special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer of a checkpoint, as far as it is known without Transformers.

    `names` are its files, relative to the folder; `kind` is "sentencepiece" or "bpe"; `tokens` and
    `token_bytes` count its texts and their UTF-8 bytes, `merges` and `merge_bytes` its merges, a
    space between the two parts; `ids` is the largest token id plus one. With `problems` it cannot
    be used, and the numbers may be 0.
    """

    names: tuple[str, ...]
    kind: str
    tokens: int
    token_bytes: int
    merges: int
    merge_bytes: int
    ids: int
    problems: tuple[Problem, ...] = ()


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Return the tokenizer of a checkpoint's folder, or the problems of its files."""
    problems: list[Problem] = []
    names = ["tokenizer.json", "tokenizer_config.json"]
    tokenizer, settings = (_read(folder, name, problems, required=True) for name in names)
    legacy: list[JsonDict] = [{}, {}]
    if "added_tokens_decoder" not in settings:
        names += [name for name in _LEGACY if (folder / name).is_file()]
        legacy = [_read(folder, name, problems, required=False) for name in _LEGACY]
    if settings.get("fast_tokenizer_files"):
        problems.append(
            Problem(
                "fast_tokenizer_files names a tokenizer file for each version of Transformers",
                str(folder / "tokenizer_config.json"),
                "name the right one tokenizer.json, and remove the key",
            )
        )
    if (folder / "chat_template.jinja").is_file():
        names.append("chat_template.jinja")
    names += sorted(f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja"))
    if problems:
        return TokenizerFiles(tuple(names), "bpe", 0, 0, 0, 0, 0, tuple(problems))
    try:
        return _counted(folder, names, tokenizer, settings, *legacy)
    except (ValueError, KeyError, TypeError, AttributeError):
        problem = Problem("its vocabulary is damaged", str(folder / "tokenizer.json"), _REMEDY)
        return TokenizerFiles(tuple(names), "bpe", 0, 0, 0, 0, 0, (problem,))


def too_many_ids(found: TokenizerFiles, embeddings: int, where: Path) -> Problem | None:
    """Return what is wrong if a tokenizer has token ids that a model of so many embeddings has
    not. `where` is the checkpoint's folder."""
    if found.ids <= embeddings:
        return None
    return Problem(
        f"the tokenizer has {found.ids:,} token ids, the model {embeddings:,} embeddings",
        str(where),
        "add an embedding for each added token (resize_token_embeddings), or remove the tokens",
    )


def token_ids(
    tokenizer: JsonObject,
    settings: JsonObject,
    special_map: JsonObject,
    added_tokens: Mapping[str, int],
) -> dict[str, int]:
    """Return every token and its id, as Transformers numbers them: those of the model's own
    vocabulary keep theirs, whatever id a file gives an added one; the others count on from the
    largest. The arguments are the contents of tokenizer.json, tokenizer_config.json and, where
    they are read, special_tokens_map.json and added_tokens.json."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a Unigram model: pairs of a text and its score
        vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
    ids: dict[str, int] = {str(text): int(number) for text, number in vocabulary.items()}
    size = len(ids)
    numbers: set[int] = set()

    def add(texts: Iterable[str]) -> None:
        """Number tokens as `add_tokens` of the tokenizers library 0.23 does: where it begins to
        count is settled before the first of them."""
        next_id = max(size, max(numbers, default=-1) + 1)
        for text in filter(None, texts):
            if text not in ids:
                ids[text] = next_id
                next_id += 1
            numbers.add(ids[text])

    own = tokenizer.get("added_tokens") or []
    add(map(_content, own))
    if "added_tokens_decoder" in settings:
        entries = settings["added_tokens_decoder"]
        decoder = {int(number): _content(entry) for number, entry in entries.items()}
    else:
        decoder = {int(number): text for text, number in added_tokens.items()}
        decoder |= {int(entry["id"]): _content(entry) for entry in own}
    add([*(text for _, text in sorted(decoder.items())), *_special(settings, special_map)])
    return ids


def _special(settings: JsonObject, special_map: JsonObject) -> Iterable[str]:
    """Yield the texts of the tokens that have a role, those that have none last."""
    merged = {**settings, **special_map}
    roles = {name: merged[name] for name in SPECIAL_TOKENS if merged.get(name)}
    own = {
        key: value
        for key, value in settings.items()
        if key not in roles and key.endswith("_token") and isinstance(value, str)
    }
    without_role: list[object] = []
    for extra in (
        settings.get("extra_special_tokens") or settings.get("additional_special_tokens"),
        special_map.get("extra_special_tokens") or special_map.get("additional_special_tokens"),
    ):
        if isinstance(extra, Mapping):
            own |= extra
        else:
            without_role += extra or []
    for value in (*roles.values(), *own.values(), *without_role):
        yield _content(value)


def _content(token: object) -> str:
    """Return the text of a token that is written as text or as an object."""
    match token:
        case {"content": str(text)} | str(text):
            return text
    raise TypeError(f"no token: {token!r}")


def _counted(
    folder: Path,
    names: list[str],
    tokenizer: JsonObject,
    settings: JsonObject,
    special_map: JsonObject,
    added_tokens: Mapping[str, int],
) -> TokenizerFiles:
    ids = token_ids(tokenizer, settings, special_map, added_tokens)
    model = tokenizer["model"]
    merges = model.get("merges") or []
    if _is_its_model(folder / "tokenizer.model", model):
        names.append("tokenizer.model")
    return TokenizerFiles(
        names=tuple(names),
        kind="sentencepiece" if model.get("byte_fallback") else "bpe",
        tokens=len(ids),
        token_bytes=sum(len(text.encode()) for text in ids),
        merges=len(merges),
        merge_bytes=sum(
            len((merge if isinstance(merge, str) else " ".join(merge)).encode()) for merge in merges
        ),
        ids=max(ids.values(), default=-1) + 1,
    )


def _is_its_model(path: Path, model: JsonObject) -> bool:
    """Return whether a tokenizer.model is that of the tokenizer.json beside it, not one that was
    left of another: it is of sentencepiece, and each piece has its id there."""
    if not model.get("byte_fallback") or not path.is_file():
        return False
    try:
        pieces = read_pieces(path)
    except (OSError, ValueError):
        return False
    vocabulary = model["vocab"]
    return all(vocabulary.get(piece.text) == number for number, piece in enumerate(pieces))


def _read(folder: Path, name: str, problems: list[Problem], *, required: bool) -> JsonDict:
    """Return the content of a JSON file, {} with the problem if it is not usable."""
    path = folder / name
    if not path.is_file():
        if required:
            problems.append(Problem(f"{name} is missing", str(folder), _REMEDY))
        return {}
    try:
        return read_json_object(path, _REMEDY)
    except SourceError as error:
        problems += [replace(problem, remedy=_REMEDY) for problem in error.problems]
        return {}
