"""The steps that judge: the original's logits once, then every artifact against them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phibuild.execute.context import Context
from phibuild.execute.items import run_items
from phibuild.plan import evaluation_text
from phibuild.steps import MeasureStep, ReferenceStep


def reference_folder(context: Context, step: ReferenceStep) -> Path:
    """Return the folder of the original's logits, which must be in the store."""
    folder = context.store.reference(step.key)
    assert folder is not None  # the plan or the step has just seen it
    return folder


def reference(context: Context, step: ReferenceStep, threads: int) -> None:
    """Run the original in fp32 over the held-out text with `threads` threads; the context's
    references get the folder of its logits, or why there is none."""
    checkpoint = context.plan.matrix.models[step.model]
    evaluation = context.plan.evaluation
    error = context.toolchain_errors.get("pytorch")
    if error:
        context.references[step.model] = error
        return
    with (
        context.told(step.id, "the original's logits in fp32") as failures,
        context.lock(step.key),
    ):
        if context.store.reference(step.key) is None:
            with context.store.workspace() as folder:

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
                        "threads": threads,
                        "output": str(folder),
                    }

                run_items(
                    context.runner("pytorch", step.id),
                    [step.key],
                    request,
                    on_result=lambda _, __: None,
                    on_failure=lambda _, reason: failures.append(reason),
                    on_stage=lambda event: context.stage(step.id, event),
                )
                if not failures:
                    context.store.publish_reference(step.key, folder)
        if failures:
            context.references[step.model] = f"the original could not be run: {failures[0]}"
        else:
            context.references[step.model] = reference_folder(context, step)


def measure(context: Context, step: MeasureStep) -> None:
    """Judge those of a step's artifacts that were built; what was found goes into the store and
    the context's results."""
    reference = context.references[step.model]
    error = context.toolchain_errors.get(step.backend)
    present = {
        artifact.key: artifact
        for artifact in step.artifacts
        if context.results[artifact.key].status in ("built", "cached")
    }
    if not present:
        return
    if isinstance(reference, str) or error:
        for artifact in present.values():
            context.fail(artifact, error or str(reference))
        return
    names = ", ".join(artifact.variant.name for artifact in present.values())
    with context.told(
        step.id,
        f"judge {names}",
        lambda: [a for a in present.values() if not context.results[a.key].measure],
    ) as failures:
        runner = context.runner(step.backend, step.id)

        def request(items: Sequence[str]) -> dict[str, Any]:
            entries = [
                {"item": key, "folder": str(context.store.root / "artifacts" / key)}
                for key in items
            ]
            return {
                "verb": "judge",
                "items": entries,
                "reference": str(reference),
                "threads": context.cores,
                "decode_tokens": context.plan.evaluation.decode_tokens,
            }

        def judged(key: str, result: dict[str, Any]) -> None:
            measure_key = present[key].measure_key
            assert measure_key is not None  # judging is on
            context.store.publish_measure(measure_key, result)
            context.results[key].measure = result

        def failed(key: str, reason: str) -> None:
            context.fail(present[key], f"it was built, but could not be judged: {reason}")
            failures.append(f"{present[key].variant.name}: {reason}")

        for artifact in present.values():
            context.results[artifact.key].logs.append(runner.log)
        run_items(
            runner,
            list(present),
            request,
            on_result=judged,
            on_failure=failed,
            on_stage=lambda event: context.stage(step.id, event),
        )
