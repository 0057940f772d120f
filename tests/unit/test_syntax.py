"""What counts of a module, and what it imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from phibuild.planning import syntax
from phibuild.planning.syntax import ANY, Part, read_part

PACKAGE = Path(syntax.__file__).resolve().parents[1]


def part(text: str, *functions: str) -> Part:
    return read_part(text.encode(), functions)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "# why\nx = 1  # what\n"),
        ("x = 1", '"""About it."""\n\n\nx = 1\n'),
        ("x = 1", 'x = 1\n"""What x is."""'),
        ("def f(): pass", 'def f():\n    """Do nothing."""\n    pass'),
        ("async def f(): return 1", 'async def f():\n    """Return it."""\n    return 1'),
        ("class A:\n    a: int", 'class A:\n    """One."""\n\n    a: int\n    """Its a."""\n'),
        ("x = f(1, 'a')", 'x = (\n    f(\n        1,\n        "a",\n    )\n)'),
        ("x = 'ab'", "x = 'a' 'b'"),
        ("if a:\n    x = 1", "if a:\n    # why\n    x = 1"),
        ("import typing", "import typing\nif typing.TYPE_CHECKING:\n    from a import B"),
    ],
)
def test_what_people_read_does_not_count(one: str, other: str) -> None:
    assert part(one) == part(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 'a'", "x = b'a'"),
        ("x = None", "x = ''"),
        ("x = 1", "y = 1"),
        ("x = 1", "x = 1\ny = 2"),
        ("x = 1\ny = 2", "y = 2\nx = 1"),
        ("x = a + b", "x = a - b"),
        ("x = a, b", "x = [a, b]"),
        ("x = {**a}", "x = {None: a}"),
        ("x = f('a')", "x = f()"),
        ("x = f(a)", "x = f(*a)"),
        ("x = f'{a!r}'", "x = f'{a}'"),
        ("x = f'{a:.2f}'", "x = f'{a:.3f}'"),
        ("def f(a): pass", "def f(a, /): pass"),
        ("def f(a=None): pass", "def f(a): pass"),
        ("def f(*, a=None): pass", "def f(*, a): pass"),
        ("def f(): pass", "async def f(): pass"),
        ("def f(): pass", "@g\ndef f(): pass"),
        ("def f(): return", "def f(): return None"),
        ("for x in y: pass", "async def f():\n    for x in y: pass"),
        ("import a", "import b"),
        ("from a import b", "from .a import b"),
        ("from a import b", "from a import b as c"),
        ("if a:\n    x = 1", "x = 1"),
        ("if a:\n    x = 1\ny = 2", "if a:\n    x = 1\n    y = 2"),
        ("try:\n    f()\nfinally:\n    g()", "try:\n    f()\nexcept E:\n    g()"),
        ("if TYPE_CHECKING: pass\nelse: x = 1", "if TYPE_CHECKING: pass\nelse: x = 2"),
        # Here the program reads what people do.
        ('"""One."""\nprint(__doc__)', '"""Other."""\nprint(__doc__)'),
    ],
)
def test_every_statement_counts(one: str, other: str) -> None:
    assert part(one).digest != part(other).digest


def test_every_module_of_phibuild_is_its_own_text_without_layout() -> None:
    """What `ast.unparse` writes has no comments and a layout of its own, and is the same program;
    any number that is another, anywhere, is another one."""
    numbers = 0
    for path in PACKAGE.rglob("*.py"):
        source = path.read_bytes()
        tree = ast.parse(source)
        found = read_part(source)
        assert read_part(ast.unparse(tree).encode()) == found, path
        constants = [
            (node, node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and type(node.value) is int
        ]
        for node, value in constants[:: max(1, len(constants) // 2)]:
            node.value = value + 1
            assert read_part(ast.unparse(tree).encode()).digest != found.digest, path
            node.value = value
            numbers += 1
    assert numbers > 300


def test_a_digest_is_the_same_under_every_python() -> None:
    """Recorded once; 3.11, 3.12 and 3.13 agree on it."""
    text = "import a.b as c\n@d(1, x=None)\ndef f(a: int, /, b=2, *c, d=..., **e) -> str:\n"
    text += '    "About it."\n    return f"{a!r}{c[1:2, ::3]}"\n'
    text += "class A(B, metaclass=C):\n    x: int = -1\n    y = {**a, 'b': [*c]}\n"
    text += "match x:\n    case {'a': 1, **rest} if y: pass\n    case [A(b=2), *_] | None: pass\n"
    assert part(text).digest == "b195f8a3da887c3faa54c0969ba8f522ea225e56b545f701866725401cbf0709"


def test_functions_that_are_not_used_do_not_count() -> None:
    text = (
        "import top\nLIMIT = 1\n"
        "def build():\n    import one\n    helper()\n"
        "def helper():\n    import two\n"
        "def load():\n    import three\n"
        "def both(a=helper()):\n    import four\n"
        "class Kept:\n    def f(self):\n        import five\n"
    )
    assert part(text, "build").imports == ("five", "four", "one", "top", "two")
    assert part(text, "load", "missing").imports == ("five", "four", "three", "top", "two")
    assert part(text).imports == ("five", "four", "one", "three", "top", "two")
    build = part(text, "build").digest
    assert part(text.replace("three", "third"), "build").digest == build
    for name in ("top", "one", "two", "four", "five", "LIMIT"):
        assert part(text.replace(name, f"{name}x"), "build").digest != build


def test_a_name_that_is_a_functions_own_is_no_other_function() -> None:
    text = (
        "def build(items):\n    def load(): return other\n    both(load, items)\n"
        "def load():\n    import one\n"
        "def items():\n    import two\n"
        "def both():\n    return [late() for late in x], lambda: late()\n"
        "def late():\n    import three\n"
        "def other():\n    import four\n"
    )
    assert part(text, "build").imports == ("four", "three")


@pytest.mark.parametrize(
    "line", ["globals()['lo' + 'ad']()", "exec(x)", "sys.modules[__name__].load()"]
)
def test_where_names_are_computed_every_function_may_be_used(line: str) -> None:
    text = f"def build():\n    {line}\ndef load():\n    import one\n"
    assert part(text, "build").imports == ("one",)


def test_imports_by_calls_are_told_apart() -> None:
    text = "import_module('a.b')\nimportlib.import_module(f'a.{x}')\n__import__('c')\nimport d"
    assert part(text).calls == (ANY, "a.b", "c")
    assert part("import_module('.b', __package__)").calls == (ANY,)
