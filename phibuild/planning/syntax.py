"""What counts of a module: its statements, without comments, docstrings and layout.

The text that is hashed names the kind of each node of the syntax tree and its fields, in their
order, without those that are empty: `ast.dump` and `ast.unparse` put the same tree in other words
from one Python to the next. A string that stands for itself does nothing and is left out, unless
the module reads a `__doc__`; so is what stands under `if TYPE_CHECKING`, which never runs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import symtable
from dataclasses import dataclass
from functools import lru_cache

ANY = "*"
"""Stands in `Part.calls` for a name that is computed; "a.*" in `Part.imports` is what package a
has."""
# Where a module reads its own names as text, any of its functions may be meant.
_BY_NAME = {"globals", "locals", "vars", "eval", "exec", "__name__", "__getattr__"}
_IMPORTERS = {"import_module", "__import__"}
_LAYOUT = {"ctx", "kind", "type_comment", "type_ignores"}
_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Part:
    """A module, or what of it some of its functions use. `digest` is of its statements; `imports`
    are what these may import, wherever they do: "a.b", with dots before it as in the statement
    where it is relative; `from a import b` is a and a.b, whatever b is. `calls` are what it imports
    by importlib.import_module or __import__."""

    digest: str
    imports: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


@lru_cache(maxsize=4096)
def read_part(source: bytes, functions: tuple[str, ...] = ()) -> Part:
    """Return what counts of a module with this source. With `functions` that is what importing it
    runs and these functions (those of them that it has), with the functions that they name."""
    wanted = set(functions)
    try:
        body = ast.parse(source).body
        if wanted:
            body = _used(body, wanted, importlib.util.decode_source(source))
    except (SyntaxError, ValueError):  # whoever imports it will say so
        return Part(hashlib.sha256(source).hexdigest())
    reader = _Reader(keeps_strings=b"__doc__" in source)
    reader.read(body)
    text = "".join(reader.text).encode("utf-8", "surrogatepass")
    imports, calls = (tuple(sorted(names)) for names in (reader.imports, reader.calls))
    return Part(hashlib.sha256(text).hexdigest(), imports, calls)


def _used(body: list[ast.stmt], wanted: set[str], text: str) -> list[ast.stmt]:
    """Return the statements of a module but for functions that neither `wanted` nor any statement
    that is returned names. One that does something where it is defined (a decorator, a default
    that is computed) is among them in any case."""
    idle = {node.lineno: node for node in body if isinstance(node, _Function) and _is_idle(node)}
    scopes = {one.get_lineno(): one for one in symtable.symtable(text, "", "exec").get_children()}
    named = set(wanted)
    for node in body:
        if idle.get(node.lineno) is not node:
            named |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    while found := [line for line, node in idle.items() if node.name in named]:
        for line in found:
            del idle[line]
            named |= _global_names(scopes[line])
    if named & _BY_NAME:
        return body
    return [node for node in body if idle.get(node.lineno) is not node]


def _is_idle(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
    computed = any(not isinstance(default, ast.Constant) for default in defaults)
    return not node.decorator_list and not computed


def _global_names(scope: symtable.SymbolTable) -> set[str]:
    """Return the names in a function, and in those within it, that are not local to it."""
    found = {one.get_name() for one in scope.get_symbols() if one.is_global()}
    return found.union(*(_global_names(inner) for inner in scope.get_children()))


class _Reader:
    """Turns statements into `text`, and notes what they import."""

    def __init__(self, *, keeps_strings: bool) -> None:
        self.text: list[str] = []
        self.imports: set[str] = set()
        self.calls: set[str] = set()
        self._keeps_strings = keeps_strings

    def read(self, value: object) -> None:
        """Add a node, a list of nodes, or what a field of a node is otherwise."""
        match value:
            case ast.AST():
                self._node(value)
            case list():
                self.text.append("[")
                for one in value:
                    if self._keeps_strings or not _is_string(one):
                        self.read(one)
                self.text.append("]")
            case _:
                self.text.append(repr(value))

    def _node(self, node: ast.AST) -> None:
        match node:
            case ast.Import(names=names):
                self.imports.update(one.name for one in names)
            case ast.ImportFrom():
                self._import_from(node)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in _IMPORTERS:
                self._call(node)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for one in node.orelse:
                    self.read(one)
                return
        self.text.append(f"{type(node).__name__}(")
        for name in node._fields:
            value = getattr(node, name, None)
            if name in _LAYOUT or (value in (None, []) and not isinstance(node, ast.Constant)):
                continue
            self.text.append(f"{name}=")
            self.read(value)
        self.text.append(")")

    def _import_from(self, node: ast.ImportFrom) -> None:
        start = "." * node.level + (node.module or "")
        self.imports.add(start)
        between = "." if node.module else ""
        self.imports.update(f"{start}{between}{one.name}" for one in node.names)

    def _call(self, node: ast.Call) -> None:
        match node:
            case ast.Call(args=[ast.Constant(value=str(name))], keywords=[]):
                self.calls.add(name)
            case _:
                self.calls.add(ANY)


def _is_string(node: object) -> bool:
    match node:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False
