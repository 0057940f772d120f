"""A build in small, as a program: steps that are real processes, on the display that phibuild
chooses. `steps` (JSON) are their names, needs, seconds, what they are expected to take, and why
they fail; `silence` is in place of the 30 s after which a line without a terminal comes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

from phibuild.execute.display import plain
from phibuild.execute.display.choose import make_progress
from phibuild.execute.forecast import Forecast
from phibuild.execute.local.scheduler import Limits, Task, run_tasks
from phibuild.planning.timing import Expected

CHILD = "import time; time.sleep({})"


def main(steps: list[dict[str, object]], silence: float, quiet: bool) -> None:
    plain.SILENCE_SECONDS = silence
    tasks, expected = {}, {}

    for step in steps:
        name, needs = str(step["name"]), frozenset(map(str, step["needs"]))  # type: ignore[call-overload]

        def run(alone: bool, step: dict[str, object] = step, name: str = name) -> bool:
            progress.started(name, f"build {name}")
            seconds, parts = float(str(step["seconds"])), 4
            for part in range(parts):
                progress.stage(name, "Q4_0: converting", part / parts)
                subprocess.run([sys.executable, "-c", CHILD.format(seconds / parts)], check=True)
            why = step.get("fails")
            if why:
                progress.failed(name, f"Q4_0: {why}")
            progress.ended(name, f"Q4_0: {why}" if why else None, seconds)
            progress.over(name)
            return False

        tasks[name] = Task(name, needs, 1, 1, run)
        known = step.get("expected")
        expected[name] = None if known is None else Expected(float(str(known)), "same")
    limits = Limits(2, 100)
    forecast = Forecast(tasks, expected, limits, 2)
    with make_progress(forecast, quiet=quiet, live=True, colour=True) as progress:
        run_tasks(list(tasks.values()), limits, stop=threading.Event())
    print("report", flush=True)
    time.sleep(0.1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), float(sys.argv[2]), sys.argv[3:] == ["quiet"])
