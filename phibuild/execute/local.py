"""The local executor: a plan's steps as tasks on this machine, their results by artifact.

A step never raises for what its work does: it notes why an artifact failed and the others go on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from phibuild import __version__
from phibuild.backends.registry import backend
from phibuild.checkpoint import license_file
from phibuild.errors import PhibuildError
from phibuild.execute.items import Runner, run_items
from phibuild.execute.process import Runners
from phibuild.execute.scheduler import Task, run_tasks
from phibuild.plan import Artifact, BuildStep, MeasureStep, Plan, ReferenceStep, evaluation_text
from phibuild.readme import artifact_readme
from phibuild.schema import ExecutorSettings
from phibuild.store import Store
from phibuild.toolchains import toolchain

_MEMORY_MARGIN = 1 << 30


class Listener(Protocol):
    """Who is told how steps go: the progress display."""

    def started(self, step: str, what: str) -> None: ...

    def stage(self, step: str, stage: str, fraction: float | None) -> None: ...

    def ended(self, step: str, failed: str | None, seconds: float) -> None: ...


@dataclass
class Result:
    """What became of one artifact. `reason` says why it is not there or could not be judged."""

    artifact: Artifact
    status: str = "failed"
    reason: str | None = None
    measure: dict[str, Any] | None = None
    logs: list[Path] = field(default_factory=list)


class LocalExecutor:
    """Runs one plan. `logs` is the folder for the steps' logs."""

    def __init__(
        self, plan: Plan, store: Store, settings: ExecutorSettings, logs: Path, listener: Listener
    ) -> None:
        self._plan = plan
        self._store = store
        self._settings = settings
        self._logs = logs
        self._listener = listener
        self._runners = Runners()
        self._stop = threading.Event()
        self._toolchain_errors: dict[str, str] = {}
        self._references: dict[str, Path | str] = {}
        self.results = {artifact.key: Result(artifact) for artifact in plan.artifacts}
        self._cores = settings.cores or os.cpu_count() or 1
        self._memory = settings.memory or max(
            psutil.virtual_memory().available - _MEMORY_MARGIN, _MEMORY_MARGIN
        )

    def run(self) -> bool:
        """Run all steps; return False if Ctrl-C ended them early. Results are in `results`."""
        for result in self.results.values():
            if result.artifact.cached:
                result.status = "cached"
            if result.artifact.judged and result.artifact.measure_key:
                result.measure = self._store.measure(result.artifact.measure_key)
        tasks = list(self._tasks())
        try:
            run_tasks(tasks, cores=self._cores, memory_bytes=self._memory, stop=self._stop)
        except KeyboardInterrupt:
            self._interrupt()
            for result in self.results.values():
                if result.status == "failed" and result.reason is None:
                    result.reason = "interrupted"
            return False
        return True

    def _interrupt(self) -> None:
        self._stop.set()
        self._runners.stop()

    def _tasks(self) -> Iterator[Task]:
        plan = self._plan
        half = max(1, self._cores // 2)
        for name in plan.toolchains:
            yield Task(f"toolchain.{name}", frozenset(), 0, 0, lambda name=name: self._install(name))  # type: ignore[misc]
        for reference in plan.references:
            if reference.cached:
                self._references[reference.model] = self._reference_folder(reference)
            else:
                yield Task(
                    reference.id,
                    frozenset({"toolchain.pytorch"}),
                    self._cores,
                    reference.memory_bytes,
                    lambda step=reference: self._reference(step),  # type: ignore[misc]
                )
        for build in plan.builds:
            yield Task(
                build.id,
                frozenset({f"toolchain.{build.backend}"}),
                half,
                build.memory_bytes,
                lambda step=build: self._build(step, half),  # type: ignore[misc]
            )
        for measure in plan.measures:
            needs = {f"toolchain.{measure.backend}", f"reference.{measure.model}"}
            yield Task(
                measure.id,
                frozenset({*needs, f"build.{measure.model}.{measure.backend}"}),
                self._cores,  # alone: its figures of speed are reported
                measure.memory_bytes,
                lambda step=measure: self._measure(step),  # type: ignore[misc]
            )

    @contextlib.contextmanager
    def _told(self, step: str, what: str) -> Iterator[list[str]]:
        """Tell the listener of a step; what is put into the list is why it failed."""
        failures: list[str] = []
        started = time.monotonic()
        self._listener.started(step, what)
        try:
            yield failures
        except (PhibuildError, OSError) as error:
            failures.append(str(error))
        finally:
            self._listener.ended(
                step, failures[0] if failures else None, time.monotonic() - started
            )

    def _install(self, name: str) -> None:
        step = f"toolchain.{name}"
        if toolchain(name).problem() is None:
            return
        with self._told(step, "set up the environment") as failures:
            try:
                toolchain(name).install(lambda text: self._listener.stage(step, text, None))
            except (PhibuildError, OSError) as error:
                self._toolchain_errors[name] = str(error)
                failures.append(str(error))

    def _runner(self, name: str, log: str) -> Runner:
        return Runner(
            toolchain(name).python,
            name,
            self._logs / f"{log}.log",
            self._settings.timeout,
            self._runners,
        )

    def _reference_folder(self, step: ReferenceStep) -> Path:
        folder = self._store.reference(step.key)
        assert folder is not None  # the plan or the step has just seen it
        return folder

    def _reference(self, step: ReferenceStep) -> None:
        checkpoint = self._plan.matrix.models[step.model]
        evaluation = self._plan.evaluation
        error = self._toolchain_errors.get("pytorch")
        if error:
            self._references[step.model] = error
            return
        with self._told(step.id, "the original's logits in fp32") as failures, self._store.lock(step.key):
            if self._store.reference(step.key) is None:
                with self._store.workspace() as folder:

                    def request(items: Sequence[str]) -> dict[str, Any]:
                        return {
                            "verb": "reference",
                            "item": items[0],
                            "source": str(checkpoint.folder),
                            "text": str(evaluation_text(evaluation)),
                            "windows": evaluation.windows,
                            "window_tokens": evaluation.window_tokens,
                            "max_bytes": evaluation.max_reference_bytes,
                            "long": True,
                            "threads": self._cores,
                            "output": str(folder),
                        }

                    run_items(
                        self._runner("pytorch", step.id),
                        [step.key],
                        request,
                        on_result=lambda _, __: None,
                        on_failure=lambda _, reason: failures.append(reason),
                        on_stage=lambda event: self._stage(step.id, event),
                    )
                    if not failures:
                        self._store.publish_reference(step.key, folder)
            if failures:
                self._references[step.model] = f"the original could not be run: {failures[0]}"
            else:
                self._references[step.model] = self._reference_folder(step)

    def _stage(self, step: str, event: dict[str, Any]) -> None:
        result = self.results.get(event.get("item") or "")
        name = f"{result.artifact.variant.name}: " if result else ""
        self._listener.stage(step, name + event["stage"], event.get("fraction"))

    def _fail(self, artifact: Artifact, reason: str) -> None:
        result = self.results[artifact.key]
        result.status, result.reason = "failed", reason

    def _build(self, step: BuildStep, threads: int) -> None:
        error = self._toolchain_errors.get(step.backend)
        if error:
            for artifact in step.artifacts:
                self._fail(artifact, error)
            return
        names = ", ".join(artifact.variant.name for artifact in step.artifacts)
        with contextlib.ExitStack() as stack:
            failures = stack.enter_context(self._told(step.id, f"build {names}"))
            for key in sorted(artifact.key for artifact in step.artifacts):
                stack.enter_context(self._store.lock(key))
            self._build_locked(step, threads, failures, stack)

    def _build_locked(
        self, step: BuildStep, threads: int, failures: list[str], stack: contextlib.ExitStack
    ) -> None:
        # Another phibuild may have built some of them while this one waited for the locks.
        wanted: dict[str, Artifact] = {}
        for artifact in step.artifacts:
            if self._store.artifact(artifact.key):
                self.results[artifact.key].status = "cached"
            else:
                wanted[artifact.key] = artifact
        if not wanted:
            return
        checkpoint = self._plan.matrix.models[step.model]
        workspace = stack.enter_context(self._store.workspace())
        runner = self._runner(step.backend, step.id)
        attempts = 0

        def request(items: Sequence[str]) -> dict[str, Any]:
            nonlocal attempts
            attempts += 1  # what a crashed runner left must not be met by the next
            entries = []
            for key in items:
                output = workspace / f"{key[:16]}-{attempts}"
                output.mkdir()
                outputs[key] = output
                variant = wanted[key].variant.model_dump(mode="json")
                entries.append({"item": key, "variant": variant, "output": str(output)})
            return {
                "verb": "build",
                "source": str(checkpoint.folder),
                "architecture": checkpoint.architecture.to_json(),
                "model": checkpoint.name,
                "threads": threads,
                "items": entries,
            }

        def failed(key: str, reason: str) -> None:
            self._fail(wanted[key], reason)
            failures.append(f"{wanted[key].variant.name}: {reason}")

        def built(key: str, result: dict[str, Any]) -> None:
            problem = self._publish(wanted[key], outputs[key], result)
            if problem:
                failed(key, problem)
            else:
                self.results[key].status = "built"

        outputs: dict[str, Path] = {}
        for artifact in wanted.values():
            self.results[artifact.key].logs.append(runner.log)
        run_items(
            runner,
            list(wanted),
            request,
            on_result=built,
            on_failure=failed,
            on_stage=lambda event: self._stage(step.id, event),
        )

    def _publish(self, artifact: Artifact, folder: Path, result: dict[str, Any]) -> str | None:
        """Check a finished artifact against its promise and move it into the store; return what
        is wrong with it."""
        if result["types"] != artifact.estimate.types:
            return (
                f"the artifact holds {_types(result['types'])}; "
                f"{artifact.variant.name} promises {_types(artifact.estimate.types)}"
            )
        checkpoint = self._plan.matrix.models[artifact.model]
        digest = self._plan.source_digests[artifact.model]
        bits = 8 * result["weight_bytes"] / sum(result["types"].values())
        if abs(bits / artifact.estimate.bits_per_weight - 1) > 0.03:
            return f"{bits:.2f} bits per weight, {artifact.estimate.bits_per_weight:.2f} promised"
        try:
            assert checkpoint.folder is not None  # only local checkpoints are built
            license = license_file(checkpoint.folder)
            if license and not (folder / "LICENSE").exists():
                shutil.copyfile(license, folder / "LICENSE")
            text = artifact_readme(
                checkpoint, backend(artifact.variant.backend), artifact.variant, digest, bits
            )
            (folder / "README.md").write_text(text, encoding="utf-8")
            self._store.publish(
                artifact.key,
                folder,
                {
                    "model": artifact.model,
                    "source_digest": digest,
                    "backend": artifact.variant.backend,
                    "variant": artifact.variant.model_dump(mode="json"),
                    "format": artifact.variant.format,
                    "phibuild_version": __version__,
                    "toolchain_digest": toolchain(artifact.variant.backend).digest,
                    "types": result["types"],
                    "bits_per_weight": bits,
                    "build_seconds": result["seconds"],
                    "peak_rss_bytes": result["peak_rss_bytes"],
                },
            )
        except OSError as error:
            return f"could not be stored: {error.strerror or error} ({self._store.root})"
        return None

    def _measure(self, step: MeasureStep) -> None:
        reference = self._references[step.model]
        error = self._toolchain_errors.get(step.backend)
        present = {
            artifact.key: artifact
            for artifact in step.artifacts
            if self.results[artifact.key].status in ("built", "cached")
        }
        if not present:
            return
        if isinstance(reference, str) or error:
            for artifact in present.values():
                self._fail(artifact, error or str(reference))
            return
        names = ", ".join(artifact.variant.name for artifact in present.values())
        with self._told(step.id, f"judge {names}") as failures:
            runner = self._runner(step.backend, step.id)

            def request(items: Sequence[str]) -> dict[str, Any]:
                entries = [
                    {"item": key, "folder": str(self._store.root / "artifacts" / key)}
                    for key in items
                ]
                return {
                    "verb": "judge",
                    "items": entries,
                    "reference": str(reference),
                    "threads": self._cores,
                    "decode_tokens": self._plan.evaluation.decode_tokens,
                }

            def judged(key: str, result: dict[str, Any]) -> None:
                measure_key = present[key].measure_key
                assert measure_key is not None  # judging is on
                self._store.publish_measure(measure_key, result)
                self.results[key].measure = result

            def failed(key: str, reason: str) -> None:
                self._fail(present[key], f"it was built, but could not be judged: {reason}")
                failures.append(f"{present[key].variant.name}: {reason}")

            for artifact in present.values():
                self.results[artifact.key].logs.append(runner.log)
            run_items(
                runner,
                list(present),
                request,
                on_result=judged,
                on_failure=failed,
                on_stage=lambda event: self._stage(step.id, event),
            )


def _types(types: dict[str, int]) -> str:
    return ", ".join(f"{count:,} x {kind}" for kind, count in sorted(types.items()))
