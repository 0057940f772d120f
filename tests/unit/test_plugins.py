"""Backends of other distributions: found, used as phibuild's own are, and refused where they are
broken, without a word to who does not ask for them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, CommandLine
from phibuild.backends.registry import BACKENDS, SHIPPED
from phibuild.errors import BackendError
from phibuild.execute.runner.process import WORKER
from phibuild.system import plugins
from support.distributions import CONF, add_backend, with_site
from support.kinds import some

pytestmark = pytest.mark.lent

RECIPE = "devices:\n  raspberry_pi_5: {{llamacpp: [int8], {name}: [int4]}}\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages that this process and its children import from."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", with_site(folder))
    monkeypatch.setenv("PHIBUILD_TOOLCHAINS", str(tmp_path / "toolchains"))
    plugins.plugins.cache_clear()
    yield folder
    plugins.plugins.cache_clear()


def recipe(phibuild: CommandLine, text: str) -> None:
    (phibuild.folder / "recipes").mkdir(exist_ok=True)
    (phibuild.folder / "recipes" / "mine.yaml").write_text(text, encoding="utf-8")


def rows(phibuild: CommandLine, *words: str) -> dict[str, dict[str, Any]]:
    done = phibuild(*words, "--json")
    assert done.returncode == 0, done.stderr
    return {row["backend"]: row for row in json.loads(done.stdout)}


def test_phibuilds_own_are_entry_points_and_folders() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.partition('[project.entry-points."phibuild.backends"]\n')[2].partition("\n\n")[0]
    declared = dict(re.findall(r'^(\w+) = "([\w.]+)"$', table, re.MULTILINE))
    assert declared == {name: f"phibuild.backends.{name}" for name in SHIPPED}
    assert list(declared) == list(SHIPPED)


def test_a_tree_that_was_never_installed_has_its_own(tmp_path: Path) -> None:
    skip = shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(ROOT / "phibuild", tmp_path / "phibuild", ignore=skip)
    script = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from phibuild.system import plugins\n"
        "print(*plugins.plugins(), {one.owner for (one,) in plugins.plugins().values()})\n"
        "print(plugins.plugin('mlx').folder)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, str(tmp_path)],
        capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first == f"{' '.join(SHIPPED)} {{'phibuild'}}"
    assert second == str(tmp_path / "phibuild" / "backends" / "mlx")


def test_others_come_after_phibuilds_own_by_name(site: Path) -> None:
    for name in ("zebra", "ant"):
        add_backend(site, name)
    assert tuple(plugins.plugins()) == (*SHIPPED, "ant", "zebra")
    ant = plugins.plugin("ant")
    assert (ant.package, ant.owner, ant.is_own) == ("ant_package", "ant-distribution 1.5", False)
    assert ant.folder == site / "ant_package"
    assert ant.mount == ("ant_package", str(ant.folder))
    assert "ant_package" not in sys.modules  # nothing is imported to find it


def test_another_backend_is_used_as_phibuilds_own_are(site: Path, phibuild: CommandLine) -> None:
    folder = add_backend(site, "ant", package="acme.ants.phi")
    found = rows(phibuild, "list", "backends")
    assert tuple(found) == (*BACKENDS, "ant")
    assert found["ant"]["for"] == "a relative of llama.cpp"
    assert {row["problem"] for row in found.values()} == {None}
    assert rows(phibuild, "toolchain", "list", "ant")["ant"]["state"] == "not installed"
    done = phibuild("doctor")
    assert "toolchain ant" in done.stdout
    recipe(phibuild, RECIPE.format(name="ant"))
    plan = json.loads(phibuild("plan", "recipe=mine", "--json").stdout)
    # By the defaults of its own folder.
    assert [cell["variant"] for cell in plan["cells"]] == ["Q8_0", "Q5_K_M"]
    (phibuild.folder / "conf" / "backend").mkdir(parents=True)
    own = phibuild.folder / "conf" / "backend" / "ant.yaml"
    own.write_text(CONF.replace("Q5_K_M", "Q4_0"), encoding="utf-8")
    plan = json.loads(phibuild("plan", "recipe=mine", "backend=ant", "--json").stdout)
    assert [cell["variant"] for cell in plan["cells"]] == ["Q4_0"]
    own.unlink()
    (folder / "conf.yaml").write_text("int4: {typ: Q4_0}\n", encoding="utf-8")
    done = phibuild("plan", "recipe=mine")
    assert done.returncode == 2
    assert f"{folder / 'conf.yaml'}:1: unknown option 'typ' of ant" in done.stderr


def test_its_code_and_lock_are_in_its_digest(site: Path) -> None:
    folder = add_backend(site, "ant")
    script = f"""
from pathlib import Path
from phibuild.planning.code import step_digest
from phibuild.store.store import Store
print(step_digest("build", "ant", Store(Path({str(site / "store")!r}))))
"""

    def digest() -> str:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        return done.stdout

    first = digest()
    assert first == digest()
    (folder / "notes.txt").touch()
    assert first == digest()
    for file, line in (("worker.py", "X = 1\n"), ("requirements.txt", "numpy==2.4.6\n")):
        before = digest()
        with (folder / file).open("a", encoding="utf-8") as stream:
            stream.write(line)
        assert digest() != before


VARIANT = {"backend": "ant", "precision": "int4", "name": "n", "format": "f", "options": {}}
WORKER_TEXT = """\
import sys
from acme.ants.phi.rules import RULE

def build(request, report):
    import phibuild.worker.protocol
    try:
        import neighbour
    except ImportError as error:
        missing = str(error)
    report.item("one", {"rule": RULE, "missing": missing, "path": sys.path,
                        "core": "pydantic" in sys.modules})
"""


def test_a_worker_has_its_own_package_and_no_other_of_its_folder(site: Path) -> None:
    folder = add_backend(
        site, "ant", package="acme.ants.phi",
        files={"worker.py": WORKER_TEXT, "rules.py": "RULE = 7\n",
               "__init__.py": "import pydantic"},
    )  # fmt: skip
    (site / "neighbour.py").touch()
    request = {"verb": "build", "source": "", "facts": "", "architecture": {}, "model": "",
               "threads": 1, "items": []}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", str(WORKER), "ant", *plugins.plugin("ant").mount],
        input=json.dumps(request), capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[0])["result"]
    assert (result["rule"], result["missing"]) == (7, "No module named 'neighbour'")
    assert not result["core"]  # its __init__, which is for the core, is not run
    assert not [path for path in result["path"] if Path(path) in (folder, site)]


@pytest.mark.parametrize(
    ("verb", "rest", "asked", "lacking"),
    [
        ("build", {"source": "", "facts": "", "architecture": {}, "model": "",
                   "items": [{"item": "one", "output": "", "variant": VARIANT}]}, "one", "build"),
        ("judge", {"reference": "", "decode_tokens": 1, "adaptive": True,
                   "items": [{"item": "one", "folder": "", "limits": {}}]},
         "one", "REFERENCE, load"),
        ("reference", {"item": "one", "source": "", "architecture": {}, "output": "", "text": "",
                       "windows": 1, "window_tokens": 1, "max_bytes": 1, "long": False},
         "one", "reference"),
        ("generate", {"folder": "", "prompt": "", "system": None, "raw": False, "template": None,
                      "max_tokens": 1}, "generate", "load"),
    ],
)  # fmt: skip
def test_a_worker_that_lacks_a_function_says_which(
    verb: str, rest: dict[str, Any], asked: str, lacking: str, site: Path
) -> None:
    add_backend(site, "ant", files={"worker.py": "def prepare():\n    pass\n"})
    done = subprocess.run(
        [sys.executable, "-P", str(WORKER), "ant", *plugins.plugin("ant").mount],
        input=json.dumps({"verb": verb, "threads": 1, **rest}), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    failed, end = map(json.loads, done.stdout.splitlines())
    error = f"the backend's module ant_package.worker lacks {lacking}"
    assert failed == {"event": "failed", "item": asked, "error": error}
    assert end["event"] == "end"


BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "import": ({"files": {"spec.py": "import nothing_like_it\n"}},
               "its spec cannot be imported: ModuleNotFoundError: No module named "
               "'nothing_like_it' (SITE/bad_package)", "install another version of bad-distri"),
    "syntax": ({"files": {"spec.py": "SPEC = (\n"}},
               "its spec cannot be imported: SyntaxError: '(' was never closed", ""),
    "no spec": ({"files": {"spec.py": None}}, "No module named 'bad_package.spec'", ""),
    "no SPEC": ({"files": {"spec.py": ""}}, "its spec has no SPEC (SITE/bad_package)", ""),
    "half a SPEC": ({"files": {"spec.py": "class SPEC:\n    name = 'bad'\n    title = 'x'\n"}},
                    "its SPEC lacks best, build_memory, card_sections, context_limit, ", ""),
    "no worker": ({"files": {"worker.py": None}}, "there is no worker.py in SITE/bad_package", ""),
    "another name": ({"files": {"spec.py": "from phibuild.backends.mlx.spec import SPEC\n"}},
                     "its SPEC calls itself 'mlx'", ""),
    "no package": ({}, "there is no package 'bad_package'", ""),
    "a module": ({}, "'bad_package' is no package that lies in a folder", ""),
    "an object": ({"package": "bad_package:SPEC"}, "'bad_package:SPEC' is no package",
                  "bad = package names one"),
    "its parent": ({"package": "acme.bad"},
                   "its package cannot be found: ValueError: the parent is broken", ""),
    "no lock": ({"files": {"requirements.txt": None}},
                "there is no requirements.txt in SITE/bad_package",
                "'phibuild toolchain lock bad' makes it from requirements.in"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_one_is_an_error_of_who_asks_for_it(
    case: str, site: Path, phibuild: CommandLine
) -> None:
    options, message, remedy = BROKEN[case]
    folder = add_backend(site, "bad", **options)
    if case in ("no package", "a module"):
        shutil.rmtree(folder)
    if case == "a module":
        (site / "bad_package.py").touch()
    if case == "its parent":
        (site / "acme" / "__init__.py").write_text("raise ValueError('the parent\\n is broken')")
    message = message.replace("SITE", str(site))
    recipe(phibuild, RECIPE.format(name="bad"))
    done = phibuild("plan", "recipe=mine")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the backend 'bad' cannot be used: " in done.stderr
    assert "entry point of bad-distribution 1.5: bad = " in done.stderr
    assert message in done.stderr
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr
    if case != "no lock":  # which the plan asks for when all else is known
        assert "recipes/mine.yaml:2: " in done.stderr


@pytest.mark.parametrize("case", some(["import", "no package", "no lock"], ["no package"]))
def test_a_broken_one_is_in_nobody_elses_way(case: str, site: Path, phibuild: CommandLine) -> None:
    folder = add_backend(site, "bad", **BROKEN[case][0])
    if case == "no package":
        shutil.rmtree(folder)
    done = phibuild("plan", "precision=int8")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = rows(phibuild, "list", "backends")
    assert tuple(found) == (*BACKENDS, "bad")
    if case != "no lock":
        assert found["bad"]["problem"].startswith("the backend 'bad' cannot be used: ")
    assert "bad-distribution" not in phibuild("list", "precisions").stderr
    done = phibuild("doctor", "--json")
    state = {row["check"]: row["state"] for row in json.loads(done.stdout)}
    assert state["backend bad"] == "missing"
    done = phibuild("toolchain", "list", "--json")
    assert done.returncode == 0
    listed = {row["backend"] for row in json.loads(done.stdout)}
    if case == "import":
        assert "bad" in listed  # its environment can be made
    else:
        assert listed == set(BACKENDS)
        assert "left out: entry point of bad-distribution 1.5: " in done.stderr
        assert phibuild("toolchain", "list", "bad").returncode == 2


def test_a_name_that_is_no_identifier(site: Path, phibuild: CommandLine) -> None:
    add_backend(site, "my-bad", package="bad_package")
    recipe(phibuild, RECIPE.format(name="my-bad"))
    done = phibuild("plan", "recipe=mine")
    assert done.returncode == 2
    assert "the backend 'my-bad' cannot be used: its name is no identifier" in done.stderr
    assert phibuild("plan", "precision=int8").returncode == 0


def test_two_of_one_name(site: Path, phibuild: CommandLine) -> None:
    add_backend(site, "bad", package="one", distribution="one-bad")
    add_backend(site, "bad", package="two", distribution="two-bad")
    with pytest.raises(BackendError, match=r"one-bad 1\.5 and two-bad 1\.5 have one of that name"):
        plugins.plugin("bad")
    recipe(phibuild, RECIPE.format(name="bad"))
    done = phibuild("plan", "recipe=mine")
    assert done.returncode == 2
    assert "one-bad 1.5 and two-bad 1.5 have one of that name" in done.stderr
    assert phibuild("plan", "precision=int8").returncode == 0


def test_phibuilds_own_are_not_replaced(site: Path, phibuild: CommandLine) -> None:
    add_backend(site, "mlx", package="not_mlx")
    assert plugins.plugin("mlx").is_own
    assert rows(phibuild, "list", "backends")["mlx"]["for"] == "MLX (mlx-lm)"
    done = phibuild("doctor")
    assert "phibuild has a backend 'mlx' of its own" in done.stdout
    assert "entry point of mlx-distribution 1.5: mlx = not_mlx" in done.stdout


def test_a_metadata_of_before_lists_what_is_gone(site: Path) -> None:
    """An editable install whose entry points are older than the tree."""
    info = site / "phibuild-0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: phibuild\nVersion: 0.0\n")
    (info / "entry_points.txt").write_text(
        "[phibuild.backends]\nmlx = phibuild.backends.mlx\ngone = phibuild.backends.gone\n"
    )
    assert tuple(plugins.plugins()) == BACKENDS


def test_help_does_not_look_them_up() -> None:
    script = (
        "import sys\nfrom phibuild.cli import run_command\n"
        "try:\n    run_command(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('importlib.metadata', 'phibuild.system.plugins') "
        "if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n{script}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.endswith("\n[]\n")
