"""Which modules a program imports: held against Python's own import."""

from __future__ import annotations

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
from phibuild.planning.syntax import Part, read_part
from phibuild.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


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
