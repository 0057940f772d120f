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
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phibuild.execute.context import Context, Result
from phibuild.execute.execution import Step, step_function
from phibuild.execute.progress import PlainProgress
from phibuild.execute.runner.guard import Guard
from phibuild.execute.runner.process import Runners
from phibuild.execute.runner.usage import Usage
from phibuild.planning.keys import builder_digest
from phibuild.planning.steps import REFERENCE_BACKEND, BackendStep, MeasureStep, Plan
from phibuild.store.store import Store
from phibuild.system.files import write_atomically
from phibuild.system.locks import is_held
from phibuild.toolchains.environment import toolchain

RESULT = "result.json"
_STOPPED = 143  # as a shell says it of SIGTERM


@dataclass(frozen=True)
class RemoteStep:
    """All that a step needs elsewhere. `plan` is the plan cut down to it, `folder` where it leaves
    its result and logs, `builder` the digest of the backend's code that it was planned with,
    `waiter` a lock that the phibuild which waits for it holds."""

    plan: Plan
    step: Step
    store: Path
    toolchains: Path
    folder: Path
    builder: str
    waiter: Path
    timeout: float
    cores: int


def backend_of(step: Step) -> str:
    """Return the backend whose toolchain runs a step."""
    return step.backend if isinstance(step, BackendStep) else REFERENCE_BACKEND


def step_makes(step: Step) -> dict[str, str]:
    """Return what a step is to put into the store: key there -> artifact's key (a step of the
    original: its own)."""
    if isinstance(step, MeasureStep):
        return {artifact.measure_key or "": artifact.key for artifact in step.artifacts}
    if isinstance(step, BackendStep):
        return {artifact.key: artifact.key for artifact in step.artifacts}
    return {step.key: step.key}


def is_made(store: Store, step: Step, key: str) -> bool:
    """Return whether one of the things that a step makes is in the store."""
    if isinstance(step, MeasureStep):
        return store.measure(key) is not None
    if isinstance(step, BackendStep):
        return store.artifact(key) is not None
    return store.reference(key) is not None


def cut_down(plan: Plan, step: Step, keys: Collection[str]) -> tuple[Plan, Step]:
    """Return a plan for one step alone, and the step for those of its artifacts whose results are
    in `keys` (keys in the store)."""
    artifacts: tuple[Any, ...] = ()
    if isinstance(step, BackendStep):
        wanted = {artifact for key, artifact in step_makes(step).items() if key in keys}
        artifacts = tuple(artifact for artifact in step.artifacts if artifact.key in wanted)
        step = replace(step, artifacts=artifacts)
    small = replace(
        plan,
        matrix=replace(plan.matrix, cells=()),
        cells=(),
        artifacts=artifacts,
        builds=(),
        measures=(),
        refusals=(),
    )
    return small, step


def run_step(task: RemoteStep) -> None:
    """Run a step and write its result. Exits without one if it is stopped by SIGTERM."""
    with Guard() as guard:
        _run_step(task, Runners(guard))


def _run_step(task: RemoteStep, runners: Runners) -> None:
    started = time.time()
    os.environ["PHIBUILD_TOOLCHAINS"] = str(task.toolchains)
    context = Context(
        plan=task.plan,
        store=Store(task.store, say=lambda text: print(text, file=sys.stderr)),
        logs=task.folder,
        listener=PlainProgress(),
        timeout=task.timeout,
        cores=task.cores,
        runners=runners,
        results={artifact.key: Result(artifact) for artifact in task.plan.artifacts},
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
        work = step_function(context, task.step, task.cores)
        if work(False):  # memory ran out: what was reached is noted for the next plan
            work(True)
    if stopped.is_set():
        sys.exit(_STOPPED)
    usage = context.usage.get(task.step.id, Usage())
    found = {
        "problem": problem or _why_not(context, task.step),
        "results": {
            key: {
                "status": result.status,
                "reason": result.reason,
                "measure": result.measure.model_dump(mode="json") if result.measure else None,
            }
            for key, result in context.results.items()
        },
        "usage": asdict(usage),
        "node": socket.gethostname(),
        "lock_seen": _lock_seen(task.waiter),
        "started": started,
        "ended": time.time(),
    }
    write_atomically(task.folder / RESULT, json.dumps(found))


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return what a step left, None if it has not (or not yet)."""
    try:
        os.listdir(folder)  # has a network file system look again at what is there
        data = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _lock_seen(path: Path) -> bool:
    """Return whether a lock that is held on another machine is seen to be held here."""
    try:
        return not path.exists() or is_held(path)  # who held it may have gone
    except OSError:  # a file system without locks
        return False


def _problems(task: RemoteStep) -> Iterator[str]:
    """Yield what keeps a step from running here."""
    here = f"on node {socket.gethostname()}"
    name = backend_of(task.step)
    problem = toolchain(name).problem()
    if problem:
        yield (
            f"toolchain {name} {here}: {problem} ({toolchain(name).folder}); "
            "PHIBUILD_TOOLCHAINS must be a folder that the nodes share"
        )
    source = task.plan.matrix.models[task.step.model].folder
    if source is None or not (source / "config.json").exists():
        yield f"the checkpoint is not there {here}: {source} must be on a folder that they share"
    if builder_digest(name) != task.builder:
        yield "phibuild or its toolchain has changed since the job was submitted; start it again"


def _look_up(context: Context, task: RemoteStep) -> None:
    """Note what the steps before this one left in the store."""
    store = context.store
    for name in ("artifacts", "references"):
        os.listdir(store.root / name)  # as in read_result
    if isinstance(task.step, MeasureStep):
        for result in context.results.values():
            if store.artifact(result.artifact.key):
                result.status = "built"
    for original in task.plan.originals:
        folder = store.reference(original.key)
        context.originals[original.key] = folder or f"step {original.id} has left nothing"


def _why_not(context: Context, step: Step) -> str | None:
    """Return why a step of the original failed, None if it did not."""
    if isinstance(step, BackendStep):
        return None
    found = context.originals.get(step.key)
    return found if isinstance(found, str) else None
