"""pip's configuration in uv's words: which files and variables count, and which wins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from phibuild.toolchains import pip_config
from phibuild.toolchains.pip_config import has_local_torch, no_index, pip_settings, uv_environment


class Machine:
    """A home and a system of its own, as far as XDG lets one move it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            "HOME": str(folder / "home"),
            "XDG_CONFIG_HOME": str(folder / "home" / ".config"),
            "XDG_CONFIG_DIRS": str(folder / "etc"),
        }

    def write(self, place: str, text: str) -> Path:
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def settings(self) -> dict[str, list[str]]:
        return pip_settings(self.environ)


GLOBAL, LEGACY, USER = "etc/pip/pip.conf", "home/.pip/pip.conf", "home/.config/pip/pip.conf"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setattr(pip_config, "_SYSTEM_FILE", tmp_path / "etc" / "pip.conf")
    return Machine(tmp_path)


def index(name: str, section: str = "global") -> str:
    return f"[{section}]\nindex-url = https://{name}/simple\n"


def url(name: str) -> dict[str, list[str]]:
    return {"index-url": [f"https://{name}/simple"]}


def test_nothing_is_configured(machine: Machine) -> None:
    assert machine.settings() == {}
    assert uv_environment(machine.environ) == {}
    assert not no_index(machine.environ)


def test_the_nearer_file_wins(machine: Machine) -> None:
    for place, name in (
        (GLOBAL, "a"),
        ("etc/pip.conf", "s"),
        (LEGACY, "b"),
        (USER, "c"),
        ("venv/pip.conf", "d"),
    ):
        machine.write(place, index(name))
        assert machine.settings() == url(name)
    own = machine.write("own.conf", index("e"))
    machine.environ["PIP_CONFIG_FILE"] = str(own)
    assert machine.settings() == url("e")
    machine.environ["PIP_INDEX_URL"] = "https://f/simple"
    assert machine.settings() == url("f")


def test_keys_come_from_different_files(machine: Machine) -> None:
    machine.write(GLOBAL, "[global]\ncert = /etc/ca.pem\nindex-url = https://a/simple\n")
    machine.write(USER, "[global]\nfind-links = /wheels\n    /more\n")
    assert machine.settings() == {**url("a"), "cert": ["/etc/ca.pem"],
                                  "find-links": ["/wheels", "/more"]}  # fmt: skip


def test_install_stands_above_global_of_any_file(machine: Machine) -> None:
    machine.write(GLOBAL, index("a", "install"))
    machine.write(USER, index("b"))
    assert machine.settings() == url("a")
    machine.environ["PIP_INDEX_URL"] = ""  # pip ignores empty variables
    assert machine.settings() == url("a")


def test_a_file_of_ones_own_replaces_the_users(machine: Machine) -> None:
    machine.write(GLOBAL, "[global]\ncert = /etc/ca.pem\n")
    machine.write(USER, index("b"))
    machine.environ["PIP_CONFIG_FILE"] = str(machine.write("own.conf", "[global]\nproxy = p:1\n"))
    assert machine.settings() == {"cert": ["/etc/ca.pem"], "proxy": ["p:1"]}


def test_no_files_at_all(machine: Machine) -> None:
    machine.write(USER, index("b"))
    machine.environ["PIP_CONFIG_FILE"] = os.devnull
    machine.environ["PIP_CERT"] = "/ca.pem"
    assert machine.settings() == {"cert": ["/ca.pem"]}


@pytest.mark.parametrize("key", ["index_url", "Index-URL", "--index-url"])
def test_spellings_that_pip_takes(machine: Machine, key: str) -> None:
    machine.write(USER, f"[global]\n{key} = https://a/simple\n")
    assert machine.settings() == url("a")


@pytest.mark.parametrize("text", ["no section\n", "[global\n", "[global]\nindex-url\n"])
def test_a_broken_file_is_left_to_pip(machine: Machine, text: str) -> None:
    machine.write(GLOBAL, index("a"))
    machine.write(USER, text)
    assert machine.settings() == url("a")


def test_in_uvs_words(machine: Machine) -> None:
    machine.write(
        USER,
        "[global]\nindex-url = https://a/simple\nextra-index-url =\n    https://b/simple\n"
        "    https://c/simple\nfind-links = /w\n    https://d/links\ncert = /ca.pem\n"
        "proxy = http://p:8080\ntrusted-host = a b\n[install]\nno-index = true\n",
    )
    assert uv_environment(machine.environ) == {
        "UV_DEFAULT_INDEX": "https://a/simple",
        "UV_INDEX": "https://b/simple https://c/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/w,https://d/links",
        "UV_INSECURE_HOST": "a b",
        "SSL_CERT_FILE": "/ca.pem",
        "ALL_PROXY": "http://p:8080",
    }
    assert no_index(machine.environ)


def test_what_is_said_to_uv_itself_wins(machine: Machine) -> None:
    machine.write(USER, index("a"))
    machine.environ["UV_DEFAULT_INDEX"] = "https://mine/simple"
    assert "UV_DEFAULT_INDEX" not in uv_environment(machine.environ)


@pytest.mark.parametrize(("value", "is_on"), [("1", True), ("true", True), ("no", False),
                                              ("0", False)])  # fmt: skip
def test_no_index(machine: Machine, value: str, is_on: bool) -> None:
    machine.environ["PIP_NO_INDEX"] = value
    assert no_index(machine.environ) is is_on


def test_a_mirrors_torch_wheel(machine: Machine, tmp_path: Path) -> None:
    links = tmp_path / "wheels"
    links.mkdir()
    machine.environ["PIP_FIND_LINKS"] = str(links)
    assert not has_local_torch(machine.environ)
    (links / "torch-2.9.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    assert has_local_torch(machine.environ)
    machine.environ["PIP_FIND_LINKS"] = f"file://{links}"
    assert has_local_torch(machine.environ)
    machine.environ["PIP_FIND_LINKS"] = "https://mirror/links"  # cannot be known: it may have one
    assert has_local_torch(machine.environ)


def test_the_order_is_pips_own(tmp_path: Path) -> None:
    """pip itself, where there is one, on the same files."""
    machine = Machine(tmp_path)
    pip = [getattr(sys, "_base_executable", sys.executable), "-m", "pip"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}

    def ask() -> str:
        done = subprocess.run(
            [*pip, "config", "list"], env={**clean, **machine.environ},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = re.search(r"^global\.index-url='(.*)'$", done.stdout, re.MULTILINE)
        return found[1] if found else ""

    for place, name in ((GLOBAL, "a"), (LEGACY, "b"), (USER, "c")):
        machine.write(place, index(name))
        if place == GLOBAL and ask() != "https://a/simple":
            pytest.skip("no pip here, or its /etc/pip.conf names an index")
        assert [ask()] == machine.settings()["index-url"]
    assert ask() == "https://c/simple"
    machine.environ["PIP_CONFIG_FILE"] = str(machine.write("own.conf", "[global]\nproxy = p:1\n"))
    assert [ask()] == machine.settings()["index-url"] == ["https://a/simple"]
