"""Fixtures: checkpoints made once, real toolchains, real workers, and the command line itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from phibuild.backends.registry import SHIPPED
from phibuild.execute.runner.process import WORKER
from phibuild.system.locks import held
from phibuild.toolchains.environment import Toolchain, toolchain
from support import correctness, faults_table, kinds, support_table, warm
from support.checkpoints import make_checkpoint
from support.faults import QUICK, Site, Tally
from support.lent import Pool, make_pool
from support.reports import newest_report
from support.targets import DEVICE_RECIPES, SHORT_WORDS

# A busy machine is no failure. With --every there are three times as many examples.
for name, number in (("phibuild", 33), ("every", 100)):
    settings.register_profile(
        name, deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=number
    )
settings.load_profile("phibuild")

# Shells start background jobs with Ctrl-C ignored, which the programs under test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup

# Builds within tests are no part of the job that runs these.
for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)

# What is started thousands of times keeps what Python compiles of it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tests share the cores: threads of PyTorch that wait for others must not keep them from running.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
"""Those of the machine."""


def keep_to(cores: list[int]) -> None:
    """Have this process and what it starts from now on run on these cores."""
    if cores:
        os.sched_setaffinity(0, cores)


FACTS = """
import json, sys
from pathlib import Path
from phibuild.worker.lean import import_lean
import_lean()
from phibuild.backends.pytorch.tokenizer_facts import write_tokenizer_facts
for source, output in zip(map(Path, sys.argv[1::2]), map(Path, sys.argv[2::2])):
    vocabulary = json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    write_tokenizer_facts(source, vocabulary, output)
"""

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    faults_table.add_options(parser)
    correctness.add_option(parser)
    support_table.add_option(parser)
    kinds.add_option(parser)
    parser.addoption("--core-each", action="store_true", help="processes of tests have a core each")


def pytest_configure(config: pytest.Config) -> None:
    if kinds.all_of_them(config):
        settings.load_profile("every")
    # Left to share all cores, runtimes whose threads spin while they wait for each other take a
    # quarter more of them (every_backend, twice side by side).
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if CORES and worker and config.getoption("--core-each"):
        keep_to([CORES[int(worker.removeprefix("gw")) % len(CORES)]])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if path := config.getoption("--faults-table"):
        faults_table.write_table(terminalreporter, Path(path))
    if path := config.getoption("--correctness"):
        correctness.write_cases(terminalreporter, Path(path))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    path = session.config.getoption("--support")
    if path and reporter and not support_table.write_table(reporter, Path(path)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# Files that take minutes, longest first: processes that begin with them end at one time.
LONG = (
    "contract", "gptq", "slurm", "page_commands", "faults_kill", "qnn_vendor", "reproducible",
    "llamacpp_vendor", "openvino_vendor", "executorch_vendor", "mixed", "report_page", "recipes",
    "tokenizer_formats", "faults_signals", "sensitivity", "run", "key_modules", "ort_genai_vendor",
)  # fmt: skip


def turn(item: pytest.Item) -> int:
    """Return when an item's file has its turn."""
    name = Path(str(item.path)).stem.removeprefix("test_")
    return LONG.index(name) if name in LONG else len(LONG)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kinds.leave_out(config, items)
    items.sort(key=turn)
    for item in items:
        if "slow" in Path(str(item.path)).parts:
            item.add_marker(pytest.mark.slow)
        correctness.note_cases(item)


@pytest.fixture(autouse=True, scope="module")
def every_core(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give the tests of a module that is marked with `every_core` all cores of the machine."""
    own = sorted(os.sched_getaffinity(0)) if CORES else []
    marked = request.node.get_closest_marker("every_core") is not None
    if marked:
        keep_to(CORES)
    yield
    if marked:
        keep_to(own)


@pytest.fixture(scope="session")
def every(pytestconfig: pytest.Config) -> bool:
    """Return whether all of each product is tested, not only one of each kind."""
    return kinds.all_of_them(pytestconfig)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all test processes of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def checkpoint(shared_folder: Path) -> Callable[..., Path]:
    """Return a maker of seeded random checkpoints: (shape, **options) -> folder, made once."""

    def make(shape: str, **options: Any) -> Path:
        text = json.dumps([shape, options], sort_keys=True)
        folder = shared_folder / f"{shape}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        with held(folder.with_suffix(".lock")):
            if not (folder / "config.json").exists():
                make_checkpoint(folder, shape, **options)  # type: ignore[arg-type]
        return folder

    return make


_installed: set[Path] = set()


def interpreter(tools: Toolchain) -> Path:
    """Return that of an environment, installed if it is not there: whether all of its tens of
    thousands of files are is asked once."""
    if tools.folder not in _installed:
        tools.install()
        _installed.add(tools.folder)
    return tools.python


@pytest.fixture(scope="session")
def toolchain_python() -> Callable[[str], Path]:
    """Return (backend) -> interpreter of its toolchain, installed if it is not there."""
    return lambda name: interpreter(toolchain(name))


@pytest.fixture(scope="session")
def vendor_python() -> Callable[[str], Path]:
    """Return (name) -> interpreter of a vendor's environment, from tests/vendors/<name>.txt."""
    locks = TESTS / "vendors"
    return lambda name: interpreter(Toolchain(f"vendor-{name}", locks / f"{name}.txt"))


@pytest.fixture(scope="session")
def facts(toolchain_python: Callable[[str], Path], shared_folder: Path) -> Callable[[Path], Path]:
    """Return (checkpoint) -> folder of what Transformers makes of its tokenizer, made once for
    the same files and the keys of config.json that have a say in it."""
    asked = ("architectures", "auto_map", "model_type", "tokenizer_class", "vocab_size")

    def make(source: Path) -> Path:
        digest = hashlib.sha256()
        for path in sorted(source.rglob("*")):
            if not path.is_file() or ".safetensors" in path.suffixes:  # weights, or their index
                continue
            said = path.read_bytes()
            if path.name == "config.json":
                config = json.loads(said)
                kept = {k: v for k, v in config.items() if k in asked or k.endswith("_token_id")}
                said = json.dumps(kept, sort_keys=True).encode()
            digest.update(str(path.relative_to(source)).encode() + said)
        folder = shared_folder / f"facts-{digest.hexdigest()[:16]}"
        with held(folder.with_suffix(".lock")):
            if not (folder / "probes.json").exists():
                folder.mkdir(exist_ok=True)
                done = warm.run(
                    [toolchain_python("pytorch"), "-c", FACTS, source, folder],
                    env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
                )
                assert done.returncode == 0, done.stderr[-6000:]
        return folder

    return make


@pytest.fixture(scope="session")
def run_worker(
    toolchain_python: Callable[[str], Path], facts: Callable[[Path], Path], shared_folder: Path
) -> Callable[[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return (backend, request) -> events of a real worker; fails the test with its log. A build
    gets the facts of its source."""

    def run(backend: str, request: dict[str, Any]) -> list[dict[str, Any]]:
        if request["verb"] == "build" and "facts" not in request:
            request = {**request, "facts": str(facts(Path(request["source"])))}
        words = (str(toolchain_python(backend)), "-P", str(WORKER), backend)
        done = warm.run(words, input=json.dumps(request))
        assert done.returncode == 0, done.stderr[-6000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@dataclass
class CommandLine:
    """phibuild as a user starts it, in a folder of its own with a store of its own."""

    folder: Path
    prefix: tuple[str, ...] = ()
    python: str = sys.executable
    pool: Pool | None = None

    def __call__(
        self, *words: str, cwd: Path | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        own = {"PHIBUILD_STORE": str(self.folder / "store"), **environ}
        if self.pool and words[:1] != ("init",):  # which leaves no store
            self.pool.lend(Path(own["PHIBUILD_STORE"]))
        done = warm.run(
            [*self.prefix, self.python, "-m", "phibuild", *words],
            cwd=cwd or self.folder,
            env={**os.environ, **own},
        )
        if self.pool:
            self.pool.keep(Path(own["PHIBUILD_STORE"]))
        return done

    def report(self, recipe: str) -> dict[str, Any]:
        """Return what the last build of a recipe found: the report that it wrote, or confirmed."""
        return newest_report(self.folder / "outputs" / recipe / "latest")


@pytest.fixture(scope="session")
def pool(shared_folder: Path) -> Path:
    """Return the folder of what tests lend each other."""
    make_pool(shared_folder / "pool")
    return shared_folder / "pool"


@pytest.fixture
def phibuild(tmp_path: Path, pool: Path, request: pytest.FixtureRequest) -> CommandLine:
    """Return the command line, in an empty working directory. Slow tests, and those that are marked
    as lent, lend each other what was counted of phibuild's code; slow ones that are not marked as
    cold originals too."""
    folder = tmp_path / "work"
    folder.mkdir()
    marks = {mark.name for mark in request.node.iter_markers()}
    lent = Pool(pool, originals="slow" in marks and "cold" not in marks)
    return CommandLine(folder, pool=lent if marks & {"slow", "lent"} else None)


@pytest.fixture
def mere_user(phibuild: CommandLine) -> CommandLine:
    """Return the command line as somebody whom permissions bind; they do not bind root."""
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if not setpriv:
            pytest.skip("root needs setpriv (util-linux) to be bound by permissions")
        phibuild.prefix = (setpriv, "--bounding-set", "-dac_override,-dac_read_search")
    return phibuild


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Return what takes the right to write away from all folders below one; it is given back."""
    folders: list[Path] = []

    def take(root: Path) -> None:
        found = [root, *(path for path in root.rglob("*") if path.is_dir())]
        folders.extend(found)
        for folder in found:
            folder.chmod(0o555)

    yield take
    for folder in folders:
        folder.chmod(0o755)


@pytest.fixture(scope="session")
def undisturbed(toolchain_python: Callable[[str], Path], shared_folder: Path) -> Site:
    """Return where the quickstart was built and judged, and nothing disturbed it."""
    folder = shared_folder / "undisturbed"
    with held(folder.with_suffix(".lock")):
        site = Site(folder, folder / "store")
        if not (folder / "outputs").exists():
            for name in SHIPPED:
                toolchain_python(name)
            folder.mkdir()
            done = site.run("build", "recipe=quickstart", *QUICK)
            assert done.wait() == 0, done.output
        site.check()
        return site


@pytest.fixture(scope="session")
def shelf(undisturbed: Site, shared_folder: Path) -> Site:
    """Return where all device recipes were built and judged as one matrix, beside the quickstart;
    Qualcomm's simulator rests."""
    folder = shared_folder / "shelf"
    with held(folder.with_suffix(".lock")):
        site = Site(folder, folder / "store")
        if not (folder / "outputs").exists():
            folder.mkdir()
            shutil.copytree(undisturbed.store, site.store, copy_function=os.link)
            recipes = f"recipe={','.join(DEVICE_RECIPES)}"
            done = site.run("build", "-m", recipes, "model=phi3-tiny-trained", *QUICK, *SHORT_WORDS)
            assert done.wait() == 0, done.output
        site.check()
        return site


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Return where a test counts the faults that it tries."""
    return Tally(record_property)
