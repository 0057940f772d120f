"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd in a folder of its
own, on ports of its own, without root's configuration and without accounting."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
NODE_MEMORY_MIB = 6000
NODE_CORES = 8
_MEMORY_CGROUP = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

_CONFIGURATION = """\
ClusterName=phibuildtest
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
{tracking}
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=2
KillWait=2
MinJobAge=3600
SlurmdParameters=config_overrides
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} {size}
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} {size}
PartitionName=main Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes={nodes[0]} MaxTime=10 State=UP
"""


def missing() -> list[str]:
    """Return the programs of Slurm and munge that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


@dataclass
class SlurmCluster:
    """A cluster that runs. `limits_memory`: whether a job that takes more than it asked for is
    killed (it needs root and memory cgroups)."""

    folder: Path
    nodes: tuple[str, str]
    limits_memory: bool
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        """What a command needs in its environment to find this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _PATH}

    def call(self, *words: str) -> str:
        """Return what a command of Slurm prints."""
        done = subprocess.run(
            words, env={**os.environ, **self.environ}, capture_output=True, text=True, check=True,
            timeout=60,
        )  # fmt: skip
        return done.stdout

    def jobs(self) -> dict[int, tuple[str, str]]:
        """Return all jobs since the start by id: name and state."""
        text = self.call("squeue", "--states=all", "--noheader", "--format=%i|%j|%T")
        fields = [line.split("|") for line in text.splitlines()]
        return {int(job): (name, state) for job, name, state in fields}

    def active(self) -> dict[int, tuple[str, str]]:
        """Return the jobs that wait or run."""
        states = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING")
        return {job: found for job, found in self.jobs().items() if found[1] in states}

    def wait_for(self, name: str, state: str, seconds: float = 60) -> int:
        """Return the id of the job whose name contains `name`, once it is in a state."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for job, (known, seen) in self.active().items():
                if name in known and seen == state:
                    return job
            time.sleep(0.1)
        raise AssertionError(f"no {state} job {name}: {self.jobs()}")

    def wait_until_gone(self, job: int, seconds: float = 90) -> None:
        """Wait until a job neither waits nor runs."""
        deadline = time.monotonic() + seconds
        while job in self.active():
            if time.monotonic() > deadline:
                raise AssertionError(f"job {job} is still there: {self.jobs()}")
            time.sleep(0.1)


@contextlib.contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Run a cluster; no process of it is left at the end."""
    # A socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    nodes = (f"a{os.getpid()}", f"b{os.getpid()}")
    limits = os.geteuid() == 0 and _MEMORY_CGROUP.exists()
    cluster = SlurmCluster(folder, nodes, limits)
    try:
        _configure(cluster)
        _start(cluster)
        yield cluster
    finally:
        _stop(cluster)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(cluster: SlurmCluster) -> None:
    folder = cluster.folder
    for name in ("state", *cluster.nodes):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    tracking = "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none"
    if cluster.limits_memory:
        tracking = "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup"
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\n")
    text = _CONFIGURATION.format(
        host=socket.gethostname(),
        folder=folder,
        user=pwd.getpwuid(os.getuid()).pw_name,
        ports=ports,
        nodes=cluster.nodes,
        size=f"CPUs={NODE_CORES} RealMemory={NODE_MEMORY_MIB}",
        tracking=tracking,
    )
    (folder / "slurm.conf").write_text(text, encoding="utf-8")


def _start(cluster: SlurmCluster) -> None:
    folder = cluster.folder
    munged = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key"]
    munged += [f"--{what}-file={folder}/munge.{what}" for what in ("pid", "log", "seed")]
    commands = [
        [*munged, f"--socket={folder}/munge.sock"],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", node] for node in cluster.nodes),
    ]
    for words in commands:
        environ = {**os.environ, **cluster.environ}
        with (folder / f"{words[0]}.out").open("ab") as log:
            process = subprocess.Popen(
                words, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
            cluster.processes.append(process)
        while words[0] == "munged" and not (folder / "munge.sock").exists():
            assert cluster.processes[0].poll() is None, (folder / "munged.out").read_text()
            time.sleep(0.05)
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(subprocess.CalledProcessError):
            if cluster.call("sinfo", "-h", "-p", "main", "-o", "%t %D").split() == ["idle", "2"]:
                return
        logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.out"))
        assert all(process.poll() is None for process in cluster.processes), logs
        assert time.monotonic() < deadline, logs
        time.sleep(0.2)


def _stop(cluster: SlurmCluster) -> None:
    with contextlib.suppress(subprocess.SubprocessError):
        user = str(os.getuid())
        cluster.call("scancel", f"--user={user}")
        deadline = time.monotonic() + 20
        while cluster.active() and time.monotonic() < deadline:
            time.sleep(0.2)
    for process in reversed(cluster.processes):
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for left in _left(cluster):
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    for node in cluster.nodes:
        for group in Path("/sys/fs/cgroup").glob(f"*/slurm_{node}"):
            for path in sorted(group.rglob("*"), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()


def _left(cluster: SlurmCluster) -> list[psutil.Process]:
    """Return the processes that still have this cluster in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_CONF") == cluster.environ["SLURM_CONF"]:
                found.append(process)
    return found
