"""Workflow commands of GitHub Actions: lines that it shows beside a job, and in a pull request."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from phibuild.errors import Problem

_MOST = 10
"""Annotations of one kind that GitHub takes of a step."""
_PLACE = re.compile(r"(?P<file>[^:]+\.ya?ml):(?P<line>\d+)")


def is_in_actions() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def annotation(kind: str, message: str, title: str, **properties: str) -> str:
    """Return a workflow command: `kind` is error, warning or notice, `properties` are file and
    line."""
    given = {**properties, "title": title}
    said = ",".join(f"{name}={_property(value)}" for name, value in given.items())
    return f"::{kind} {said}::{_data(message)}"


def problem_annotation(problem: Problem) -> str:
    """Return what is wrong with what the user wrote, at its file and line."""
    match = _PLACE.fullmatch(problem.where or "")
    place = match.groupdict() if match else {}
    text = problem.what if match or not problem.where else f"{problem.where}: {problem.what}"
    message = f"{text}\n{problem.remedy}" if problem.remedy else text
    return annotation("error", message, "phibuild", **place)


def limited(lines: Sequence[str]) -> list[str]:
    """Return the annotations that GitHub shows; the last of a kind tells of those that it does
    not."""
    kinds: dict[str, list[str]] = {}
    for line in lines:
        kinds.setdefault(line.split()[0], []).append(line)
    found = []
    for kind, some in kinds.items():
        found += some if len(some) <= _MOST else some[: _MOST - 1]
        if len(some) > _MOST:
            message = f"{len(some) - _MOST + 1} more: see the job's summary and its log"
            found.append(annotation(kind.removeprefix("::"), message, "more"))
    return found


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
