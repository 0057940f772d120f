"""A program in a warm Python does as one that was started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from support import warm

SAYS = (
    "import os, sys; print(sys.argv, sys.stdin.read(), os.getcwd(), os.environ['HOME'], sys.path)"
)
PROGRAMS: dict[str, tuple[str, ...]] = {
    "code": ("-c", SAYS, "a", "--b"),
    "code, safe path": ("-P", "-c", SAYS),
    "a file": ("program.py", "a"),
    "a file, safe path": ("-P", "./program.py"),
    "a module": ("-m", "program", "a"),
    "an exit code": ("-c", "import sys; print('x', end=''); sys.exit(3)"),
    "an exit with text": ("-c", "raise SystemExit('no \\udc80')"),
    "an exit with nothing": ("-c", "raise SystemExit(None)"),
    "an error": ("-c", "import atexit; atexit.register(print, 'end'); 1 / 0"),
    "killed": ("-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    "a thread goes on": (
        "-c",
        "import threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
    ),
    "not UTF-8": ("-c", r"import os; os.write(1, b'\xff\n'); os.write(2, b'\xfe\n')"),
    "phibuild": ("-m", "phibuild", "plan", "recipe=nowhere"),
}


def start(
    program: tuple[str, ...], cwd: Path, environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program], input="given\n", cwd=cwd, env=environ, capture_output=True,
        encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_does_as_one_that_was_started(name: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SAYS, encoding="utf-8")
    program = PROGRAMS[name]
    environ = {**os.environ, "PHIBUILD_STORE": str(tmp_path / "store")}
    cold = start(program, tmp_path, environ)
    done = warm.run([sys.executable, *program], input="given\n", cwd=tmp_path, env=environ)
    assert (done.returncode, done.stdout) == (cold.returncode, cold.stdout)
    # A traceback has the lines of what runs the program too.
    assert done.stderr.splitlines()[-1:] == cold.stderr.splitlines()[-1:]


def test_it_is_warm_and_leaves_nothing_behind() -> None:
    code = "import sys; print('phibuild.cli' in sys.modules, hasattr(sys, 'mine')); sys.mine = 1"
    for _ in range(2):
        assert warm.run([sys.executable, "-c", code]).stdout == "True False\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux has it")
def test_it_runs_on_the_cores_of_who_asks() -> None:
    """Not on those that the server had when it began."""
    own = os.sched_getaffinity(0)
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    try:
        for cores in (own, {min(own)}, own):
            os.sched_setaffinity(0, cores)
            assert warm.run([sys.executable, "-c", code]).stdout == f"{sorted(cores)}\n"
    finally:
        os.sched_setaffinity(0, own)


def test_the_hubs_variables_are_each_programs_own() -> None:
    code = (
        "import sys\n"
        "print('phibuild.cli' in sys.modules, 'huggingface_hub' in sys.modules)\n"
        "from huggingface_hub import constants\n"
        "print(constants.ENDPOINT, constants.HF_HUB_CACHE)"
    )
    for name in ("one", "two"):
        own = {"HF_ENDPOINT": f"http://{name}.example", "HF_HUB_CACHE": f"/{name}"}
        done = warm.run([sys.executable, "-c", code], env={**os.environ, **own})
        assert done.stdout.splitlines() == ["True False", f"http://{name}.example /{name}"]


def test_nothing_that_phibuild_found_out_is_left() -> None:
    """Of files and of the environment: another program has others."""
    code = (
        "import sys\n"
        "from phibuild.planning.syntax import read_part\n"
        "kept = {\n"
        "    f'{value.__module__}.{value.__name__}'\n"
        "    for name, module in sys.modules.items() if name.startswith('phibuild')\n"
        "    for value in vars(module).values()\n"
        "    if hasattr(value, 'cache_info') and value.cache_info().currsize\n"
        "}\n"
        "print(kept)"
    )
    done = warm.run([sys.executable, "-c", code])
    assert done.stdout == "{'phibuild.planning.syntax.read_part'}\n"


@pytest.mark.parametrize("name", ["HOME", "PYTHONPATH", "COLUMNS", "LC_ALL"])
def test_one_whose_environment_imports_may_have_read_is_started(name: str) -> None:
    code = f"import os, sys; print('phibuild.cli' in sys.modules, os.environ[{name!r}])"
    done = warm.run([sys.executable, "-c", code], env={**os.environ, name: "C"})
    assert done.stdout == "False C\n"
