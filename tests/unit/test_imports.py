"""What counts of a module, and what a program imports: held against Python's own import."""

from __future__ import annotations

import ast
import importlib
import json
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phibuild.planning import imports
from phibuild.planning.imports import Code, Memory
from phibuild.planning.syntax import ANY, Part, read_part
from phibuild.store.store import Store

PACKAGE = Path(imports.__file__).resolve().parents[1]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


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
        for node, value in constants[:: max(1, len(constants) // 3)]:
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


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def reached(folder: Path, store: Store, *entries: str, **options: tuple[str, ...]) -> set[str]:
    return Code({"p": folder}, Memory(store), **options).reached(entries)


def test_every_way_to_import_is_followed(tmp_path: Path, store: Store) -> None:
    folder = write(
        tmp_path / "p",
        {
            "__init__.py": "from p import above",
            "above.py": "",
            "a.py": "import p.one.b\nfrom p.one import c, NAME\nfrom . import d\nfrom .e import x",
            "one/__init__.py": "from .g import *",
            "one/b.py": "def f():\n    from ..h import y\n",
            "one/c.py": "from importlib import import_module\nimport_module('p.i')",
            "one/g.py": "try:\n    from p.j import *\nexcept ImportError:\n    import p.k",
            "d.py": "if TYPE_CHECKING:\n    import p.not_imported\nelse:\n    import p.l",
            "e.py": "import p.many\nfrom p.native import f\nimport p.missing\nimport json",
            "h.py": "", "i.py": "", "j.py": "", "k.py": "", "l.py": "not python",
            "many/__init__.py": "", "many/m.py": "", "not_imported.py": "",
            "native.cpython-311-x86_64-linux-gnu.so": "binary",
            "n.py": "from p.many import *",
        },
    )  # fmt: skip
    names = {"above", "a", "one", "one.b", "one.c", "one.g", *"dehijkl", "many", "native"}
    expected = {"p", *(f"p.{name}" for name in names)}
    assert reached(folder, store, "p.a") == expected
    assert reached(folder, store, "p.a", bare=("p",)) == expected - {"p", "p.above"}
    assert reached(folder, store, "p.n") == {"p", "p.above", "p.n", "p.many", "p.many.m"}


def test_a_computed_import_may_mean_all_of_its_package(tmp_path: Path, store: Store) -> None:
    files = {"a.py": "import_module('p.' + x)", "b.py": "", "one/c.py": "", "data.txt": ""}
    folder = write(tmp_path / "p", files)
    assert reached(folder, store, "p.a") == {"p.a", "p.b", "p.one.c"}
    assert reached(folder, store, "p.a", told=("p.a",)) == {"p.a"}


def test_what_is_reached_through_a_module_alone_can_be_left_out(
    tmp_path: Path, store: Store
) -> None:
    files = {"a.py": "import p.b, p.c", "b.py": "import p.d, p.e", "c.py": "import p.e"}
    folder = write(tmp_path / "p", {**files, "d.py": "", "e.py": ""})
    code = Code({"p": folder}, Memory(store))
    assert code.reached(["p.a"], besides=["p.b"]) == {"p.a", "p.c", "p.e"}


MODULES = ("", "a", "b", "one", "one.c", "one.two", "one.two.d", "e", "three", "three.f")
FOLDERS = ("", "one", "one.two", "three")


@st.composite
def programs(draw: st.DrawFn) -> dict[str, list[str]]:
    """Draw what each module of a package imports: only later ones, so that there are no circles;
    a package's own __init__ imports nothing that lies in it."""
    found: dict[str, list[str]] = {}
    for number, module in enumerate(MODULES):
        later = [
            other
            for other in MODULES[number + 1 :]
            if module not in FOLDERS or not other.startswith(f"{module}.")
        ]
        chosen = draw(st.lists(st.sampled_from(later), max_size=2)) if later and module else []
        lines = []
        for other in chosen:
            whole = f"@.{other}"
            above, _, name = whole.rpartition(".")
            dots = "." * (len(module.split(".")) + (module in FOLDERS))
            lines.append(
                draw(
                    st.sampled_from(
                        [
                            f"import {whole}",
                            f"from {above} import {name}",
                            f"from {whole} import VALUE",
                            f"from {dots}{other} import VALUE",
                            f"from {dots}{other.rpartition('.')[0]} import {name}",
                            f"import importlib; importlib.import_module('{whole}')",
                            f"def f():\n    import {whole}\nf()",
                        ]
                    )
                )
            )
        found[module] = lines
    return found


@settings(max_examples=150)
@given(program=programs(), entry=st.sampled_from(MODULES[1:]), number=st.integers(0, 1 << 60))
def test_what_is_reached_is_what_python_imports(
    program: dict[str, list[str]], entry: str, number: int
) -> None:
    package = f"drawn_{number}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / package
        for module, lines in program.items():
            path = "/".join([*filter(None, module.split("."))])
            path = f"{path}/__init__.py" if module in FOLDERS else f"{path}.py"
            text = "\n".join([*lines, "VALUE = 1"]).replace("@", package)
            write(folder, {path.lstrip("/"): text})
        store = Store(Path(name) / "store")
        found = Code({package: folder}, Memory(store)).reached([f"{package}.{entry}"])
        sys.path.insert(0, name)
        try:
            importlib.import_module(f"{package}.{entry}")
            loaded = {one for one in sys.modules if one.partition(".")[0] == package}
        finally:
            sys.path.remove(name)
            for one in [one for one in sys.modules if one.partition(".")[0] == package]:
                del sys.modules[one]
            importlib.invalidate_caches()
    assert found == loaded


def test_what_was_counted_is_remembered(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "p", {"a.py": "import p.b\ndef f(): pass", "b.py": "x = 1"})

    def digest() -> str:
        return Code({"p": folder}, Memory(store)).digest(["p.a:f"])

    read: list[bytes] = []

    def counting(source: bytes, functions: tuple[str, ...] = ()) -> Part:
        read.append(source)
        return read_part(source, functions)

    monkeypatch.setattr(imports, "read_part", counting)
    first = digest()
    assert len(read) == 2
    assert digest() == first
    assert len(read) == 2
    write(folder, {"b.py": "x = 2"})
    second = digest()
    assert second != first
    assert len(read) == 3
    path = store.root / "digests" / "code.json"
    whole = path.read_text(encoding="utf-8")
    for damaged in ("", "[]", "{}", whole[:-9], '{"method": "other", "parts": {}}',
                    json.dumps({**json.loads(whole), "parts": {"a": 1}})):  # fmt: skip
        path.write_text(damaged, encoding="utf-8")
        assert digest() == second
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
        assert parts.items() <= json.loads(whole)["parts"].items()


def test_without_a_store_nothing_is_remembered(tmp_path: Path) -> None:
    folder = write(tmp_path / "p", {"a.py": ""})
    store = Store(tmp_path / "nowhere")
    assert Code({"p": folder}, Memory(store)).digest(["p.a"])
    assert not store.root.exists()
