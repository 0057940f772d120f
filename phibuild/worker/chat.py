"""Chat templates: which ones an artifact has, and their text for a conversation.

Rendered as Transformers 5 renders them (utils/chat_template_utils.py), so that a template does the
same in every toolchain: jinja2's immutable sandbox with trimmed blocks, loop controls, `tojson`
that leaves HTML alone, `raise_exception`, `strftime_now`, the `generation` block, no names in a
namespace that begin with an underscore, and the special tokens as variables.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phibuild.worker.companions import SPECIAL_TOKENS, read_json
from phibuild.worker.json_values import JsonDict
from phibuild.worker.protocol import WorkerError

if TYPE_CHECKING:
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

DEFAULT = "default"
_FILE, _FOLDER = "chat_template.jinja", "additional_chat_templates"


class ChatError(WorkerError):
    """A conversation that a model's template does not take, or a template that is none."""


@dataclass(frozen=True)
class ChatFormat:
    """The chat templates of an artifact by name, and the text of its special tokens by role
    (`bos_token` and so on), without those that it does not name."""

    templates: Mapping[str, str]
    special: Mapping[str, str]

    def render(self, messages: Sequence[Mapping[str, str]], name: str | None = None) -> str:
        """Return the text of `messages` ({"role", "content"}) up to where the answer begins, by
        the template `name`, else by the default one.

        Raises ChatError for an unknown name, a template that is damaged and one that refuses.
        """
        name = name or DEFAULT
        if name not in self.templates:
            known = ", ".join(sorted(self.templates)) or "none"
            raise ChatError(f"no chat template {name!r}; templates of this artifact: {known}")
        import jinja2  # in the toolchains; the readers below do without it

        try:
            return str(
                _environment()
                .from_string(self.templates[name])
                .render(
                    messages=[dict(message) for message in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **self.special,
                )
            )
        except jinja2.TemplateSyntaxError as error:
            raise ChatError(
                f"the chat template {name!r} is no valid template, line {error.lineno}: {error}"
            ) from error
        except Exception as error:  # a template may do whatever an expression can do wrong
            raise ChatError(f"the chat template {name!r} does not take this: {error}") from error


def read_format(folder: Path) -> ChatFormat:
    """Return the chat templates of a folder with a tokenizer in Transformers' files.

    As Transformers reads them: chat_template.jinja and additional_chat_templates/NAME.jinja, and
    where there are none, `chat_template` of tokenizer_config.json: a text, or a list of
    {"name", "template"}. Raises ChatError if a file cannot be read.
    """
    settings = _read_json(folder / "tokenizer_config.json")
    special: JsonDict = settings
    if "added_tokens_decoder" not in settings:  # Transformers looks at the older file only then
        special = settings | _read_json(folder / "special_tokens_map.json")
    contents = {role: _content(special.get(role)) for role in SPECIAL_TOKENS}
    return ChatFormat(
        _template_files(folder) or _templates(settings.get("chat_template")),
        {role: text for role, text in contents.items() if text is not None},
    )


def _template_files(folder: Path) -> dict[str, str]:
    paths = {path.stem: path for path in sorted((folder / _FOLDER).glob("*.jinja"))}
    if (folder / _FILE).is_file():
        paths.setdefault(DEFAULT, folder / _FILE)
    try:
        return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    except (OSError, ValueError) as error:
        raise ChatError(f"a chat template cannot be read: {error}") from error


def _templates(setting: object) -> dict[str, str]:
    entries: list[object]
    match setting:
        case None:
            return {}
        case str():
            return {DEFAULT: setting}
        case Mapping():
            entries = [{"name": name, "template": text} for name, text in setting.items()]
        case list():
            entries = setting
        case _:
            entries = [setting]
    named = {}
    for entry in entries:
        match entry:
            case {"name": str(name), "template": str(text)}:
                named[name] = text
            case _:
                raise ChatError(
                    "tokenizer_config.json: chat_template is neither a text nor a list of named "
                    "ones"
                )
    return named


def _content(token: object) -> str | None:
    """Return the text of a token that is given as text or as an object."""
    match token:
        case str(text) | {"content": str(text)}:
            return text
    return None


def _read_json(path: Path) -> JsonDict:
    try:
        return read_json(path, optional=True)
    except WorkerError as error:
        raise ChatError(str(error)) from error


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Return jinja2's environment, set up as Transformers sets up its own."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):  # type: ignore[misc]
        """`{% generation %}` marks what the model is trained on; it changes no text."""

        tags = frozenset({"generation"})

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(
                line
            )

        def _unchanged(self, caller: Callable[[], str]) -> str:
            return caller()

    class Namespace(jinja2.utils.Namespace):  # type: ignore[misc]
        def __init__(*args: Any, **names: Any) -> None:
            self, args = args[0], args[1:]
            values = dict(*args, **names)
            for name in values:
                _refuse_private(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: object) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    def _refuse_private(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace takes no name like {name!r}")

    class Dict:
        """`dict`, without what a class brings along."""

        def __call__(self, *args: Any, **names: Any) -> dict[Any, Any]:
            return dict(*args, **names)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment
