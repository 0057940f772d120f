"""One step on another machine: what it is sent, how it runs there, what it leaves behind.

The step finds out by itself what earlier steps left in the store, which both machines see. It
leaves `result.json` and its runners' log in its folder; a step that was stopped leaves no result:
who stopped it knows why.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from phibuild.execute import execution
from phibuild.execute.context import Context, Listener, Original, Result
from phibuild.execute.runner.guard import Guard
from phibuild.execute.runner.process import Runners
from phibuild.execute.runner.usage import Usage
from phibuild.execute.slurm.stages import RemoteProgress
from phibuild.planning.code import program_digest
from phibuild.planning.plan import Plan
from phibuild.planning.steps import Step
from phibuild.schema import Document
from phibuild.store.documents import Measure
from phibuild.store.store import Store
from phibuild.system.files import write_atomically
from phibuild.system.locks import is_held
from phibuild.toolchains.environment import toolchain

RESULT = "result.json"
_STOPPED = 143  # as a shell says it of SIGTERM
MARGIN_SECONDS = 120.0
"""What a job gets beyond its step's time, to start and to write what was reached: phibuild's own
time-out says more than Slurm's."""


@dataclass(frozen=True)
class RemoteStep:
    """All that a step needs elsewhere. `plan` is the plan cut down to it, `folder` where it leaves
    its result and logs, `program` the digest of the code and the toolchain that it was planned
    with, `waiter` a lock that the phibuild which waits for it holds, `machine` what times are
    remembered of."""

    plan: Plan
    step: Step
    store: Path
    toolchains: Path
    folder: Path
    program: str
    waiter: Path
    machine: str
    timeout: float
    cores: int


class JobItem(Document):
    """What became of one artifact, as Result has it."""

    status: Literal["built", "cached", "failed"] = "failed"
    reason: str | None = None
    measure: Measure | None = None


class JobUsage(Document):
    """What the runners of a step took, as Usage has it."""

    cpu_seconds: float
    peak_anonymous_bytes: int | None
    anonymous_bytes: int
    loading_seconds: float
    seconds: float = 0.0


class JobResult(Document):
    """result.json of a step. `problem` is why it could not run, or why there is no original;
    `results` are its artifacts by key; `lock_seen` says whether the node saw the waiter's lock;
    `started` and `ended` are seconds since the epoch."""

    problem: str | None
    results: dict[str, JobItem]
    usage: JobUsage
    node: str
    lock_seen: bool
    started: float
    ended: float


def run_step(task: RemoteStep) -> None:
    """Run a step and write its result. Exits without one if it is stopped by SIGTERM."""
    with Guard() as guard, RemoteProgress(task.folder) as listener:
        _run_step(task, Runners(guard), listener)


def _run_step(task: RemoteStep, runners: Runners, listener: Listener) -> None:
    started = time.time()
    # Slurm's clock runs too while the step waits for another phibuild.
    ends = time.monotonic() + task.timeout + MARGIN_SECONDS / 2
    os.environ["PHIBUILD_TOOLCHAINS"] = str(task.toolchains)
    context = Context(
        plan=task.plan,
        store=Store(task.store, say=lambda text: print(text, file=sys.stderr)),
        logs=task.folder,
        listener=listener,
        timeout=task.timeout,
        cores=task.cores,
        machine=task.machine,
        runners=runners,
        results={artifact.key: Result(artifact) for artifact in task.plan.artifacts},
        ends=ends,
    )
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        # In a thread: the interrupted code may hold the lock that is needed.
        threading.Thread(target=runners.stop, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    problem = next(_problems(task), None)
    if problem is None:
        _look_up(context, task)
        if execution.run_step(task.step, context, task.cores, alone=False):
            # Memory ran out: what was reached is noted for the next plan.
            execution.run_step(task.step, context, task.cores, alone=True)
    if stopped.is_set():
        sys.exit(_STOPPED)
    usage = context.usage.get(task.step.id, Usage())
    found = JobResult(
        problem=problem or _why_not(context, task.step),
        results={
            key: JobItem(status=result.status, reason=result.reason, measure=result.measure)
            for key, result in context.results.items()
        },
        usage=JobUsage(**asdict(usage)),
        node=socket.gethostname(),
        lock_seen=_lock_seen(task.waiter),
        started=started,
        ended=time.time(),
    )
    write_atomically(task.folder / RESULT, json.dumps(found.model_dump(by_alias=True)))


def read_result(folder: Path) -> JobResult | None:
    """Return what a step left, None if it has not (or not yet)."""
    try:
        os.listdir(folder)  # has a network file system look again at what is there
        return JobResult.read(json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _lock_seen(path: Path) -> bool:
    """Return whether a lock that is held on another machine is seen to be held here."""
    try:
        return not path.exists() or is_held(path)  # who held it may have gone
    except OSError:  # a file system without locks
        return False


def _problems(task: RemoteStep) -> Iterator[str]:
    """Yield what keeps a step from running here."""
    here = f"on node {socket.gethostname()}"
    name = task.step.backend
    problem = toolchain(name).problem()
    if problem:
        yield (
            f"toolchain {name} {here}: {problem} ({toolchain(name).folder}); "
            "PHIBUILD_TOOLCHAINS must be a folder that the nodes share"
        )
    source = task.plan.matrix.models[task.step.model].folder
    if source is None or not (source / "config.json").exists():
        yield f"the checkpoint is not there {here}: {source} must be on a folder that they share"
    if program_digest(name, Store(task.store)) != task.program:
        yield "phibuild or its toolchain has changed since the job was submitted; start it again"


def _look_up(context: Context, task: RemoteStep) -> None:
    """Note what the steps before this one left in the store."""
    store = context.store
    for name in ("artifacts", "references"):
        os.listdir(store.root / name)  # as in read_result
    for result in context.results.values():
        if store.artifact(result.artifact.key):
            result.status = "built"
    for original in task.plan.originals:
        for key in original.makes:
            folder = store.reference(key)
            reason = None if folder else f"step {original.id} has left nothing"
            context.originals[key] = Original(folder, reason)


def _why_not(context: Context, step: Step) -> str | None:
    """Return why a step of the original failed, None if it did not."""
    found = [context.originals[key] for key in step.makes if key in context.originals]
    return next((original.reason for original in found if original.reason), None)
