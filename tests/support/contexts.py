"""A run of a plan in this process, as the executor begins one."""

from __future__ import annotations

from pathlib import Path

from phibuild.execute.context import Context, Result
from phibuild.execute.display.plain import PlainProgress
from phibuild.planning.plan import Plan
from phibuild.store.store import Store


def make_context(plan: Plan, store: Store, logs: Path) -> Context:
    """Return a run that nothing was done of; a step has a minute and a core."""
    return Context(
        plan=plan,
        store=store,
        logs=logs,
        listener=PlainProgress(),
        timeout=60,
        cores=1,
        results={artifact.key: Result(artifact) for artifact in plan.artifacts},
    )
