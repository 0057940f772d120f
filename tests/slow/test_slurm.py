"""executor=slurm on a real Slurm of two nodes: the same bytes as a local build, no step submitted
twice whatever dies, and every end of a job explained.

A job can be held in its first line: `hold` has those whose name contains a word wait for a file to
go away.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import CommandLine
from support.faults import QUICK, Site, digests
from support.kinds import some
from support.slurm_cluster import (
    NODE_CORES,
    NODE_MEMORY_MIB,
    SlurmCluster,
    missing,
    slurm_cluster,
)

pytestmark = [
    pytest.mark.cold,  # jobs are counted
    pytest.mark.every_core,  # jobs ask for them
    pytest.mark.skipif(
        bool(missing()), reason=f"Slurm is not installed here: {', '.join(missing())}"
    ),
]
COMMAND = [sys.executable, "-m", "phibuild", "build", "recipe=mine", "executor=slurm"]
COMMAND += ["executor.poll=1"]
BACKENDS = ("llamacpp", "mlx", "pytorch")
RECIPE = """\
devices:
  raspberry_pi_5: {llamacpp: [int4, int8]}
  ai_pc_rtx: {pytorch: [int4, int8]}
"""
SOURCE = "source.phi3-tiny-trained"
TWO = "devices: {intel_n100: {llamacpp: [int4, int8]}, mac: {mlx: [int4]}}\n"


@dataclass
class Cluster:
    """A command line whose `executor=slurm` reaches a cluster."""

    work: CommandLine
    slurm: SlurmCluster
    first: int

    @property
    def environ(self) -> dict[str, str]:
        store = str(self.work.folder / "store")
        return {**os.environ, "PHIBUILD_STORE": store, **self.slurm.environ}

    def hold(self, word: str, **settings: Any) -> Path:
        """Write conf/executor/slurm.yaml; jobs whose name contains `word` wait while the returned
        file is there."""
        gate = self.work.folder / "gate"
        gate.touch()
        line = (
            f'case "$SLURM_JOB_NAME" in *{word}*) while test -e {gate}; do sleep 0.1; done;; esac'
        )
        data = {"kind": "slurm", "poll": 1, "setup": [line], **settings}
        path = self.work.folder / "conf" / "executor" / "slurm.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data), encoding="utf-8")
        return gate

    def build(self, *words: str, conf: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Build; `conf` is another slurm.conf than the cluster's."""
        return subprocess.run(
            [*COMMAND, *words], cwd=self.work.folder, text=True, capture_output=True,
            env={**self.environ, "SLURM_CONF": str(conf or self.environ["SLURM_CONF"])},
            check=False, timeout=600,
        )  # fmt: skip

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a build in the background."""
        return subprocess.Popen(
            [*COMMAND, *words], cwd=self.work.folder, env=self.environ, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    @property
    def submitted(self) -> Counter[str]:
        """How often slurmctld got each step since this test began."""
        jobs = self.slurm.jobs().items()
        names = [name for job, (name, _) in jobs if job >= self.first]
        return Counter(name.rpartition(".")[0].removeprefix("phibuild.") for name in names)

    def cells(self) -> dict[str, dict[str, Any]]:
        report = self.work.report("mine")
        return {f"{cell['backend']}.{cell['precision']}": cell for cell in report["cells"]}

    def statuses(self) -> dict[str, str]:
        return {name: cell["status"] for name, cell in self.cells().items()}

    def records(self) -> list[Path]:
        return sorted((self.work.folder / "store" / "jobs").glob("*.json"))

    def recorded(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text("utf-8")) for path in self.records()]


@pytest.fixture(scope="module")
def slurm(toolchain_python: Callable[[str], Path]) -> Iterator[SlurmCluster]:
    for name in BACKENDS:
        toolchain_python(name)
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(slurm: SlurmCluster, phibuild: CommandLine) -> Iterator[Cluster]:
    path = phibuild.folder / "recipes" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(TWO, encoding="utf-8")
    yield Cluster(phibuild, slurm, max(slurm.jobs(), default=0) + 1)
    left = slurm.active()
    if left:
        slurm.call("scancel", *map(str, left))
    deadline = time.monotonic() + 30
    while slurm.active() and time.monotonic() < deadline:
        time.sleep(0.2)


@pytest.fixture
def judged_before(cluster: Cluster, undisturbed: Site) -> None:
    """Have the source and the original in the cluster's store: neither is a job."""
    folder = cluster.work.folder
    Site(folder, folder / "store").lend_originals(undisturbed)


def end(process: subprocess.Popen[str]) -> str:
    """Return what a build printed once it has ended."""
    output = process.communicate(timeout=300)[0]
    assert "Traceback" not in output, output
    return output


def test_the_same_bytes_as_a_local_build(cluster: Cluster, undisturbed: Site) -> None:
    recipe = cluster.work.folder / "recipes" / "mine.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    done = cluster.build(*QUICK)
    assert done.returncode == 0, done.stderr
    assert cluster.submitted == {
        SOURCE: 1,
        "reference.phi3-tiny-trained": 1,
        **{f"build.phi3-tiny-trained.{name}": 1 for name in ("llamacpp", "pytorch")},
        **{f"measure.phi3-tiny-trained.{name}": 1 for name in ("llamacpp", "pytorch")},
    }
    on_cluster, report = cluster.cells(), cluster.work.report("mine")
    assert report["executor"]["kind"] == "slurm"
    assert all(step["place"].startswith("job ") for step in report["steps"])
    assert all(step["cpu_seconds"] > 0 for step in report["steps"])
    assert set(cluster.statuses().values()) == {"built"}
    assert cluster.records() == []

    local = {
        (cell["backend"], cell["variant"]): cell
        for cell in undisturbed.report()["cells"]
        if cell["backend"] in ("llamacpp", "pytorch") and cell["precision"] in ("int4", "int8")
    }
    assert len(local) == len(on_cluster)
    for cell in on_cluster.values():
        same = local[cell["backend"], cell["variant"]]
        assert cell["artifact_digest"] == same["artifact_digest"], cell["id"]
        assert cell["quality"]["kl_mean"] == pytest.approx(same["quality"]["kl_mean"], rel=0.01)

    again = cluster.build(*QUICK)
    assert again.returncode == 0
    assert set(cluster.statuses().values()) == {"cached"}


def test_killed_and_started_again_no_step_runs_twice(cluster: Cluster) -> None:
    """One job at a time, so that the kills meet steps that ended, one that runs and some that
    wait; sbatch had answered for the last of them, and phibuild had not yet noted it."""
    gate = cluster.hold(".build.")
    for word, number in (("reference", signal.SIGHUP), ("build", signal.SIGKILL)):
        process = cluster.start(*QUICK, "executor.max_jobs=1")
        cluster.slurm.wait_for(word, "RUNNING")
        time.sleep(2)
        # nohup has a lost terminal ignored, which is inherited
        ignored = signal.getsignal(number) is signal.SIG_IGN
        process.send_signal(signal.SIGKILL if ignored else number)
        process.communicate()
        assert process.returncode < 0
    steps = cluster.submitted
    assert set(steps.values()) == {1}
    assert len(steps) == 6
    assert len(cluster.slurm.active()) >= 2
    record = next(path for path in cluster.records() if "measure" in path.read_text("utf-8"))
    data = json.loads(record.read_text("utf-8"))
    record.write_text(json.dumps({**data, "job": None}), encoding="utf-8")
    folder = record.parent / data["folder"]
    (folder / f"{data['job']}_submitted.pkl").rename(folder / "function.pkl")

    process = cluster.start(*QUICK, "executor.max_jobs=1")
    deadline = time.monotonic() + 60
    # Held until all are waited for: one that ends before is not, and the next build sweeps it.
    while time.monotonic() < deadline and not all(
        one["job"] and one["waiters"] != data["waiters"]
        for one in cluster.recorded()
        if one["job"] is None or int(one["job"]) in cluster.slurm.active()
    ):
        time.sleep(0.1)
    gate.unlink()
    output = end(process)
    assert process.returncode == 0, output
    assert "of before" in output
    assert cluster.submitted == steps
    assert set(cluster.statuses().values()) <= {"built", "cached"}
    assert all(cell["quality"] for cell in cluster.cells().values())
    if cluster.records():  # of a job that ended while nobody waited for it
        assert cluster.build(*QUICK).returncode == 0
    assert cluster.records() == []


@pytest.mark.every  # kills: the test before this one
def test_the_quickstart_on_one_node_killed_halfway(cluster: Cluster, undisturbed: Site) -> None:
    """Of its backends two that no other test here has; `short` is a partition of one node."""
    quickstart = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
    shutil.copyfile(quickstart, cluster.work.folder / "recipes" / "mine.yaml")
    words = [*QUICK, "precision=int4", "executor.partition=short", "executor.timeout=420"]
    some = ("ort_genai", "executorch")
    words += [word for name in some for word in ("--only", f"*.{name}.*")]
    process = cluster.start(*words)
    cluster.slurm.wait_for("measure", "RUNNING", seconds=300)
    process.kill()
    process.communicate()
    steps = cluster.submitted
    assert set(steps.values()) == {1}
    # The source and the original; each backend builds and judges.
    assert len(steps) == 2 + 2 * len(some)

    done = cluster.build(*words)
    assert done.returncode == 0, done.stderr
    assert cluster.submitted == steps
    report = cluster.work.report("mine")
    made = digests(report)
    assert made.items() <= digests(undisturbed.report()).items()
    assert len(report["cells"]) == len(made) == len(some)
    assert all(cell["quality"] for cell in report["cells"])


def test_a_calibration_is_one_job_for_all_grids(cluster: Cluster) -> None:
    recipe = (
        "devices:\n"
        "  raspberry_pi_5: {llamacpp: {int4: {method: gptq, tokens: 1024}}}\n"
        "  mac: {mlx: {int4: {method: gptq, tokens: 1024}}}\n"
    )
    (cluster.work.folder / "recipes" / "mine.yaml").write_text(recipe, encoding="utf-8")
    done = cluster.build("evaluation=none")
    assert done.returncode == 0, done.stderr
    assert cluster.statuses() == {"llamacpp.int4": "built", "mlx.int4": "built"}
    kinds = [name.partition(".")[0] for name in cluster.submitted.elements()]
    assert sorted(kinds) == ["build", "build", "quantize", "source"]


def test_two_at_once_share_jobs_and_a_ctrl_c_leaves_those_of_the_other(cluster: Cluster) -> None:
    gate = cluster.hold(".build.")
    one = cluster.start("evaluation=none", "--output", "one")
    cluster.slurm.wait_for("mlx", "RUNNING")
    two = cluster.start("evaluation=none")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not all(
        len(one["waiters"]) == 2 for one in cluster.recorded()
    ):
        time.sleep(0.1)
    os.kill(one.pid, signal.SIGINT)
    end(one)
    assert one.returncode == 130
    assert len(cluster.slurm.active()) == 2
    gate.unlink()
    output = end(two)
    assert two.returncode == 0, output
    assert cluster.submitted == {SOURCE: 1, "build.phi3-tiny-trained.llamacpp": 1,
                                 "build.phi3-tiny-trained.mlx": 1}  # fmt: skip
    assert set(cluster.statuses().values()) == {"built"}


@pytest.mark.usefixtures("judged_before")
def test_ctrl_c_cancels_the_jobs_and_reports(cluster: Cluster) -> None:
    cluster.hold("mlx")
    process = cluster.start(*QUICK)
    cluster.slurm.wait_for("build.phi3-tiny-trained.mlx", "RUNNING")
    artifacts = cluster.work.folder / "store" / "artifacts"
    while len(list(artifacts.iterdir())) < 2:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    output = end(process)
    assert process.returncode == 130, output
    deadline = time.monotonic() + 20
    while cluster.slurm.active() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cluster.slurm.active() == {}
    assert cluster.records() == []
    assert cluster.work.report("mine")["totals"]["interrupted"] is True
    assert cluster.statuses() == {"llamacpp.int4": "built", "llamacpp.int8": "built",
                                  "mlx.int4": "failed"}  # fmt: skip
    assert cluster.cells()["mlx.int4"]["reason"] == "interrupted"


@pytest.mark.usefixtures("judged_before")
def test_a_job_cancelled_from_outside_fails_alone(cluster: Cluster) -> None:
    gate = cluster.hold("mlx")
    process = cluster.start(*QUICK)
    job = cluster.slurm.wait_for("build.phi3-tiny-trained.mlx", "RUNNING")
    cluster.slurm.call("scancel", str(job))
    # Slurm may signal a job before its script is there to get it, and kills it only later: held
    # until it has gone, the job can't run to its end meanwhile.
    cluster.slurm.wait_until_gone(job)
    gate.unlink()
    output = end(process)
    assert process.returncode == 1, output
    assert cluster.statuses() == {"llamacpp.int4": "built", "llamacpp.int8": "built",
                                  "mlx.int4": "failed"}  # fmt: skip
    reason = cluster.cells()["mlx.int4"]["reason"]
    assert reason == f"cancelled from outside: Slurm job {job} was cancelled"
    assert cluster.cells()["llamacpp.int4"]["quality"]


@pytest.mark.usefixtures("judged_before")
def test_a_job_at_its_time_limit(cluster: Cluster) -> None:
    cluster.hold("mlx", sbatch={"time": 1})
    done = cluster.build("evaluation=none")
    assert done.returncode == 1, done.stderr
    assert cluster.statuses()["llamacpp.int4"] == "built"
    reason = cluster.cells()["mlx.int4"]["reason"]
    assert reason.startswith("timed out: Slurm ended job ")
    assert reason.endswith(" at its limit of 1 min (executor.sbatch.time)")


def test_a_runner_at_its_time_out_says_so_itself(cluster: Cluster) -> None:
    done = cluster.build("evaluation=none", "backend=mlx", "executor.timeout=0.1")
    assert done.returncode == 1, done.stderr
    assert cluster.cells()["mlx.int4"]["reason"] == "the source: timed out after 0.1 s"


def test_more_memory_than_a_node_has(cluster: Cluster) -> None:
    plan = json.loads(cluster.work("plan", "recipe=mine", "--json", "evaluation=none").stdout)
    needs = {step["id"].rpartition(".")[2]: step["memory_bytes"] for step in plan["steps"]}
    large, small = "llamacpp", "mlx"
    limit = (needs[large] + max(need for name, need in needs.items() if name != large)) // 2
    assert needs[small] < limit < needs[large]
    margin = (NODE_MEMORY_MIB << 20) - limit
    done = cluster.build("evaluation=none", f"executor.memory_margin={margin}")
    assert done.returncode == 1, done.stderr
    for name, cell in cluster.cells().items():
        if name.startswith(small):
            assert cell["status"] == "built"
        else:
            assert cell["status"] == "failed"
            assert "of memory, steps can be given" in cell["reason"]
    assert cluster.submitted == {SOURCE: 1, f"build.phi3-tiny-trained.{small}": 1}


def test_a_job_that_sbatch_refuses(cluster: Cluster) -> None:
    """More than phibuild knows of: a memory that the user gave."""
    done = cluster.build("evaluation=none", "+executor.sbatch.mem=90000M")
    assert done.returncode == 1, done.stderr
    for cell in cluster.cells().values():
        assert cell["reason"].startswith("Slurm refuses the job: Memory specification can not be")
    assert cluster.slurm.active() == {}
    assert cluster.records() == []


def test_a_job_that_takes_more_than_it_asked_for(cluster: Cluster) -> None:
    if not cluster.slurm.limits_memory:
        pytest.skip("this machine has no memory cgroups that Slurm could use")
    (cluster.work.folder / "recipes" / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    done = cluster.build("evaluation=none", "backend=pytorch", "+executor.sbatch.mem=100M")
    assert done.returncode == 1, done.stderr
    for cell in cluster.cells().values():
        assert cell["reason"].startswith("the source: out of memory: Slurm job")
        assert "had 100M" in cell["reason"]


@pytest.mark.usefixtures("judged_before")
@pytest.mark.parametrize("requeue", some([True, False], [True]))
def test_a_node_that_fails(cluster: Cluster, requeue: bool) -> None:
    gate = cluster.hold("mlx", requeue=requeue, sbatch={"nodelist": cluster.slurm.nodes[1]})
    node = f"nodename={cluster.slurm.nodes[1]}"
    process = cluster.start("evaluation=none")
    job = cluster.slurm.wait_for("mlx", "RUNNING")
    time.sleep(3)  # phibuild sees it run, too
    cluster.slurm.call("scontrol", "update", node, "state=down", "reason=test")
    time.sleep(2)
    gate.unlink()
    cluster.slurm.call("scontrol", "update", node, "state=idle")
    output = end(process)
    if requeue:
        assert process.returncode == 0, output
        assert "is in the queue again" in output
    else:
        assert process.returncode == 1, output
        reason = cluster.cells()["mlx.int4"]["reason"]
        assert reason.startswith(f"the node failed: Slurm job {job} was on ")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("executor.partition=mian", "the cluster has no partition 'mian'"),
        (
            f"executor.cores={NODE_CORES + 1}",
            f"no node of partition main has {NODE_CORES + 1} cores",
        ),
        ("+executor.sbatch.nosuch=1", "unrecognized option '--nosuch=1'"),
        ("+executor.sbatch.nodelist=elsewhere", "Invalid node name specified"),
    ],
)
def test_settings_that_the_cluster_refuses(cluster: Cluster, word: str, message: str) -> None:
    done = cluster.build(word)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert f"command line: {word}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (cluster.work.folder / "outputs").exists()


def test_a_slurm_that_does_not_answer(cluster: Cluster, tmp_path: Path) -> None:
    configuration = (cluster.slurm.folder / "slurm.conf").read_text("utf-8")
    dead = tmp_path / "slurm.conf"
    dead.write_text(configuration.replace("munge.sock", "nothing.sock"), encoding="utf-8")
    done = cluster.build(conf=dead)
    assert done.returncode == 2, done.stdout
    assert "Slurm does not answer" in done.stderr
