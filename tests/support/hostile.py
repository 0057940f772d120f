"""A report whose every text means harm to a page that takes it for anything else than text."""

from __future__ import annotations

from phibuild.report.documents import Report
from support.made_reports import made_report, report_of

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><script>alert(3)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "' onmouseover='alert(4)",
    "<b class=injected>bold</b>",
    "<!--<script>",
    "javascript:alert(5)//#&cell=x%",
)


def hostile_report() -> Report:
    """Return a report of two models' worth of names: devices, backends, variants, reasons, notes,
    options, the recipe and the command."""
    plain = made_report(2, model=HOSTILE[0])
    cells = []
    for number, cell in enumerate(plain.cells):
        evil = [HOSTILE[(number // 4 + shift) % len(HOSTILE)] for shift in range(4)]
        device = HOSTILE[1] if cell.device == "device_000" else HOSTILE[6]
        made = cell.variant is not None
        cells.append(
            cell.model_copy(
                update={
                    "device": device,
                    "backend": evil[0],
                    "id": f"{cell.model}.{device}.{evil[0]}.{cell.precision}.{number}",
                    "variant": evil[1] if made else None,
                    "options": {evil[2]: evil[3]} if made else None,
                    "reason": f"{evil[2]}\n{evil[3]}" if cell.reason else None,
                    "notes": [*HOSTILE] if made else [],
                    "format": evil[1],
                }
            )
        )
    report = report_of(cells, HOSTILE[0])
    one = report.model.model_copy(
        update={"reference": HOSTILE[2], "notes": [*HOSTILE], "warnings": [HOSTILE[5]]}
    )
    steps = [step.model_copy(update={"id": f"build.{HOSTILE[2]}"}) for step in report.steps[:1]]
    measured = report.sensitivities[0]
    losses = {f"{HOSTILE[0]}.weight": next(iter(measured.losses.values())), **measured.losses}
    return report.model_copy(
        update={
            "model": one,
            "models": [one],
            "recipe": HOSTILE[2],
            "command": HOSTILE[0],
            "configuration": "\n".join(HOSTILE),
            "steps": [*steps, *report.steps[1:]],
            "sensitivities": [measured.model_copy(update={"losses": losses})],
        }
    )
