"""Models of the Hub through the command line and the real Hub client, against a Hub on loopback."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import CommandLine
from support.hub_server import Hub, serve
from support.kinds import some
from support.refusals import check_refusal

pytestmark = pytest.mark.lent

SUPPORTED = "supported: Phi-3, Phi-3.5, Phi-4-mini, Phi-4 (text, Phi3ForCausalLM)"
NETWORK = "check the network (HF_ENDPOINT, proxy), or give a folder: model=./my-phi"
ONE_CELL = ("evaluation=none", "device=raspberry_pi_5", "backend=llamacpp", "precision=int4")


@dataclass
class Client:
    """phibuild that knows one Hub, with an empty cache at first."""

    hub: Hub
    phibuild: CommandLine
    home: Path

    def plan(self, model: str) -> str:
        """Return the plan of one cell of a model."""
        done = self.run("plan", model, "--wide")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, verb: str, model: str) -> str:
        """Run a command that must be refused; return its error with the remedy."""
        done = self.run(verb, model)
        errors = check_refusal(done.returncode, done.stdout, done.stderr)
        assert len(errors) == 1, errors
        return errors[0]

    def run(self, verb: str, model: str, *words: str) -> subprocess.CompletedProcess[str]:
        environ = self.hub.environ(self.home)
        return self.phibuild(verb, f"model={model}", *ONE_CELL, *words, cwd=None, **environ)

    def start_fetch(self, model: str) -> subprocess.Popen[str]:
        """Begin to fetch a model as a build does; it prints the folder, or the error."""
        program = (
            "import sys\n"
            "from phibuild.checkpoints import hub\n"
            "from phibuild.errors import PhibuildError\n"
            "repo, _, revision = sys.argv[1].partition('@')\n"
            "try: print(hub.fetch(repo, revision or None))\n"
            "except PhibuildError as error: print(error)"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program, model],
            env={**os.environ, **self.hub.environ(self.home)},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def fetch(self, model: str) -> str:
        """Fetch a model; return its folder, or the error that it ends with."""
        said, _ = self.start_fetch(model).communicate(timeout=300)
        return said.strip()

    def cached(self, name: str) -> list[Path]:
        """Return the files of that name in the cache that are really there."""
        return [path for path in self.home.rglob(name) if path.is_file()]


@pytest.fixture
def client(tmp_path: Path, phibuild: CommandLine) -> Iterator[Client]:
    with serve(Hub()) as hub:
        yield Client(hub, phibuild, tmp_path / "hf")


@pytest.fixture
def source(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("phi3", layers=2, shards=2)


def test_plan_reads_only_the_config_of_the_pinned_commit(
    client: Client, source: Path, checkpoint: Callable[..., Path]
) -> None:
    old = client.hub.add("org/phi", source)
    client.hub.add("org/phi", checkpoint("phi3", layers=3))

    def megabytes(plan: str) -> float:
        assert "figures are those of its published config.json" in plan
        row = next(line for line in plan.splitlines() if line.startswith("phi.raspberry_pi_5."))
        return float(row.split()[3])

    pinned, newest = client.plan(f"org/phi@{old}"), client.plan("org/phi")
    assert megabytes(pinned) < megabytes(newest)
    assert client.hub.sent() == {"config.json"}


@pytest.mark.parametrize("verb", ["plan", "build"])
@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "gemma", "architectures": ["GemmaForCausalLM"]},
         "not a Phi-3-architecture model (GemmaForCausalLM)"),
        ({"model_type": "phi4mm", "architectures": ["Phi4MMForCausalLM"]},
         "Phi-4-multimodal is not supported yet (model_type 'phi4mm')"),
    ],
    ids=["gemma", "multimodal"],
)  # fmt: skip
def test_other_architecture_is_refused_before_its_weights_are_downloaded(
    client: Client, source: Path, verb: str, config: dict[str, object], what: str
) -> None:
    client.hub.add("org/other", source, {"config.json": json.dumps(config).encode()})
    error = client.refused(verb, "org/other")
    assert error == f"config.json of org/other: {what}\n    {SUPPORTED}"
    assert client.hub.sent() == {"config.json"}


def test_pickled_weights_are_refused_before_they_are_downloaded(
    client: Client, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    client.hub.add("org/phi", folder, {"pytorch_model.bin": b"pickle"})
    assert client.refused("build", "org/phi") == (
        "org/phi: the repository has neither model.safetensors nor model.safetensors.index.json\n"
        "    pickled weights can run code when loaded and are not read"
    )
    assert client.hub.sent() == {"config.json"}


def test_what_the_hub_refuses_is_one_clear_error(client: Client, source: Path) -> None:
    client.hub.add("org/phi", source)
    assert client.refused("build", "org/missing") == (
        "org/missing: no such model on the Hub, or it is private\n    check the name; hf auth login"
    )
    assert client.refused("build", "org/phi@v9") == "org/phi@v9: no such revision on the Hub"
    assert client.refused("build", "a--b/phi") == (
        "a--b/phi: not a name that the Hub allows\n    org/name or org/name@revision"
    )
    client.hub.add("org/empty", source)
    for files in client.hub.repos["org/empty"].values():
        files.pop("config.json", None)
    assert client.refused("build", "org/empty") == (
        "org/empty: the repository has no config.json\n    is this a checkpoint's repository?"
    )
    client.hub.private.add("org/phi")
    assert client.refused("build", "org/phi") == (
        "org/phi: no such model on the Hub, or it is private\n    check the name; hf auth login"
    )
    client.hub.private.clear()
    client.hub.gated.add("org/phi")
    assert client.refused("build", "org/phi") == (
        "org/phi: access to this model is gated\n    accept its terms, then: hf auth login"
    )
    client.hub.status = 503
    assert client.refused("build", "org/phi") == (
        "org/phi: the Hub answered 503 Service Unavailable\n"
        "    try again later, or check HF_ENDPOINT"
    )
    assert client.hub.sent() == set()


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_hub_that_is_not_there_is_one_error_at_once(client: Client, verb: str) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        client.hub.endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        error = client.refused(verb, "org/phi")
    assert time.monotonic() - started < 15
    assert error.startswith(
        "org/phi: the Hub cannot be reached and the model is not in its cache ("
    )
    assert error.endswith(f"Connection refused)\n    {NETWORK}")


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer_config.json"])
def test_damaged_download_is_refused_each_time_and_downloaded_anew(
    client: Client, source: Path, name: str
) -> None:
    """The Hub's client takes a file of the right size, whatever is in it."""
    client.hub.add("org/phi", source)
    client.hub.damaged.add(name)
    for _ in range(2):
        client.hub.log.clear()
        assert client.refused("build", "org/phi") == (
            f"org/phi: content differs from the Hub's, removed from the cache: {name}\n"
            "    try again: it is downloaded anew"
        )
        assert name in client.hub.sent()
        assert not client.cached(name)
    assert client.cached("model-00001-of-00002.safetensors")
    assert "figures are those of its published config.json" in client.plan("org/phi")


def test_damaged_config_is_downloaded_anew(client: Client, source: Path) -> None:
    config = (source / "config.json").read_bytes().rstrip()
    client.hub.add("org/phi", source, {"config.json": config})
    client.hub.damaged.add("config.json")  # its last byte: the closing brace
    assert client.refused("plan", "org/phi") == (
        "org/phi: its config.json is damaged\n    try again: it is downloaded anew"
    )
    client.hub.damaged.clear()
    assert "phi.raspberry_pi_5.llamacpp.int4" in client.plan("org/phi")


SHARD = "model-00002-of-00002.safetensors"


def test_only_what_a_build_reads_is_fetched(client: Client, source: Path) -> None:
    surplus = {"pytorch_model.bin": b"pickle", "modeling_phi3.py": b"exit()", "README.md": b"#",
               "consolidated.safetensors": b"again", "onnx/model.onnx": b"onnx"}  # fmt: skip
    commit = client.hub.add("org/phi", source, surplus)
    assert Path(client.fetch("org/phi")).name == commit
    assert client.hub.sent() == {path.name for path in source.iterdir()}


@pytest.fixture
def weights() -> bytes:
    """Return more than two of the pieces of 10 MiB that the Hub's client writes at a time."""
    return random.Random(1).randbytes(25 << 20)


def test_a_cut_connection_is_resumed(client: Client, source: Path, weights: bytes) -> None:
    client.hub.add("org/phi", source, {SHARD: weights})
    client.hub.cut[SHARD] = 12 << 20
    folder = Path(client.fetch("org/phi"))
    assert client.hub.resumed == [(SHARD, 10 << 20), (SHARD, 20 << 20)]
    assert (folder / SHARD).read_bytes() == weights


def test_a_killed_download_goes_on_where_it_stopped(
    client: Client, source: Path, weights: bytes
) -> None:
    commit = client.hub.add("org/phi", source, {SHARD: weights})
    client.hub.pause[SHARD] = 12 << 20
    process = client.start_fetch("org/phi")
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size == 10 << 20 for path in client.cached("*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert "figures are those of its published config.json" in client.plan("org/phi")
    client.hub.pause.clear()
    client.hub.go_on.set()
    folder = Path(client.fetch("org/phi"))
    assert folder.name == commit
    assert client.hub.resumed == [(SHARD, 10 << 20)]
    assert (folder / SHARD).read_bytes() == weights
    assert not client.cached("*.part")


def test_two_that_fetch_at_once_download_once(client: Client, source: Path, weights: bytes) -> None:
    client.hub.add("org/phi", source, {SHARD: weights})
    client.hub.pause[SHARD] = 12 << 20
    processes = [client.start_fetch("org/phi") for _ in range(2)]
    time.sleep(2)
    client.hub.go_on.set()
    said = {process.communicate(timeout=60)[0].strip() for process in processes}
    (folder,) = said
    assert (Path(folder) / SHARD).read_bytes() == weights
    shards = [path for method, path in client.hub.log if method == "GET" and SHARD in path]
    assert len(shards) == 1


def test_what_was_downloaded_by_half_of_something_else(client: Client, source: Path) -> None:
    """The digest of the whole tells; the next time all of it is downloaded."""
    client.hub.add("org/phi", source)
    client.fetch("org/phi")
    (blob,) = {path.resolve() for path in client.cached(SHARD)}
    size = blob.stat().st_size
    blob.rename(blob.with_name(f"{blob.name}.part"))
    part = blob.with_name(f"{blob.name}.part")
    part.write_bytes(bytes(size // 2))
    assert client.fetch("org/phi") == (
        f"org/phi: content differs from the Hub's, removed from the cache: {SHARD}\n"
        "    try again: it is downloaded anew"
    )
    part.write_bytes(bytes(size + 1))
    assert Path(client.fetch("org/phi")).is_dir()
    assert blob.read_bytes() == (source / SHARD).read_bytes()


@pytest.mark.parametrize("status", [503, 500])
def test_a_file_that_the_hub_does_not_give(client: Client, source: Path, status: int) -> None:
    client.hub.add("org/phi", source)
    client.hub.failing[SHARD] = status
    error = client.fetch("org/phi")
    assert error.startswith(f"org/phi: the Hub answered {status} ")
    assert error.endswith("try again later, or check HF_ENDPOINT")
    client.hub.failing.clear()
    assert (Path(client.fetch("org/phi")) / SHARD).exists()


def test_a_fetched_model_needs_no_hub_and_says_which_commit_it_is(
    client: Client, source: Path, checkpoint: Callable[..., Path]
) -> None:
    old = client.hub.add("org/phi", source)
    client.fetch("org/phi")
    new = client.hub.add("org/phi", checkpoint("phi3", layers=3))
    client.hub.log.clear()
    # main has moved on: what was fetched is used as it is, and the plan says what that is.
    note = f"note    phi is org/phi as it was fetched, commit {old}; 'build --refresh' asks"
    assert note in client.plan("org/phi")
    assert "as it was fetched" not in client.plan(f"org/phi@{old}")
    assert client.hub.log == []
    environ = {**client.hub.environ(client.home), "HF_HUB_OFFLINE": "1"}
    done = client.phibuild("plan", "--json", "model=org/phi", *ONE_CELL, cwd=None, **environ)
    (model,) = json.loads(done.stdout)["models"]
    assert (model["reference"], model["commit"]) == ("org/phi", old)
    assert Path(client.fetch("org/phi")).name == new  # what --refresh does
    assert f"commit {new}" in client.plan("org/phi")
    assert "not whole, in the Hub's cache" not in client.plan(f"org/phi@{old}")  # it is kept


@pytest.mark.parametrize(
    "variables",
    some(
        [
            {"HF_HUB_CACHE": "$PLACE/hub"},
            {"HF_HUB_CACHE": "~/hf/hub"},
            {"HUGGINGFACE_HUB_CACHE": "$PLACE/hub"},
            {"HUGGINGFACE_HUB_CACHE": "/elsewhere", "HF_HUB_CACHE": "${{PLACE}}/hub"},
            {"HF_HOME": "~/hf"},
            {"XDG_CACHE_HOME": "{home}/xdg"},
            {},
        ],
        [{"HUGGINGFACE_HUB_CACHE": "/elsewhere", "HF_HUB_CACHE": "${{PLACE}}/hub"}, {}],
    ),
    ids=str,
)
@pytest.mark.case(
    "building",
    "HF_HUB_CACHE with variables, HUGGINGFACE_HUB_CACHE, HF_HOME",
    "huggingface_hub's cache",
    "the same cache",
)
def test_the_cache_is_where_the_hubs_client_has_it(
    client: Client, source: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another program fetched with the same variables is found, without the Hub."""
    commit = client.hub.add("org/phi", source)
    environ = {**os.environ, **client.hub.environ(client.home), "PLACE": str(client.home)}
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        environ.pop(name, None)
        monkeypatch.delenv(name, raising=False)
    given = {name: value.format(home=client.home) for name, value in variables.items()}
    environ |= {"HOME": str(client.home.parent), **given}
    program = "import huggingface_hub as hub; print(hub.snapshot_download('org/phi'))"
    done = subprocess.run([sys.executable, "-c", program], env=environ, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert Path(done.stdout.strip()).name == commit
    environ["HF_HUB_OFFLINE"] = "1"
    client.hub.log.clear()
    found = client.phibuild("plan", "model=org/phi", "--wide", *ONE_CELL, cwd=None, **environ)
    assert found.returncode == 0, found.stderr
    assert f"note    phi is org/phi as it was fetched, commit {commit}" in found.stdout
    assert client.hub.log == []


@pytest.mark.parametrize("lacking", [SHARD, "tokenizer.json", "model.safetensors.index.json"])
@pytest.mark.case(
    "building",
    "a model that is not whole in the Hub's cache",
    "-",
    "the plan says that its sizes are estimates",
)
def test_a_half_fetched_model_is_an_estimate_and_a_build_fetches_the_rest(
    client: Client, source: Path, lacking: str
) -> None:
    client.hub.add("org/phi", source)
    folder = Path(client.fetch("org/phi"))
    assert "estimates" not in client.plan("org/phi")
    (folder / lacking).resolve().unlink()
    note = f"phi is not, or not whole, in the Hub's cache ({client.home / 'hub'}): sizes are"
    assert note in client.plan("org/phi")
    done = client.run("plan", "org/phi", "--json")
    assert [model["is_estimate"] for model in json.loads(done.stdout)["models"]] == [True]
    assert Path(client.fetch("org/phi")) == folder
    assert "estimates" not in client.plan("org/phi")


def test_a_refresh_without_the_hub_is_an_error(client: Client, source: Path) -> None:
    commit = client.hub.add("org/phi", source)
    client.fetch("org/phi")
    client.hub.status = 503
    environ = client.hub.environ(client.home)
    done = client.phibuild("build", "--refresh", "model=org/phi", *ONE_CELL, cwd=None, **environ)
    errors = check_refusal(done.returncode, done.stdout, done.stderr)
    assert errors == [
        "org/phi: the Hub answered 503 Service Unavailable\n"
        "    try again later, or check HF_ENDPOINT"
    ]
    assert f"commit {commit}" in client.plan("org/phi")
