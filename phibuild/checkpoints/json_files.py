"""JSON files of a checkpoint or an adapter: read as objects, with the places of their keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from phibuild.errors import Problem, SourceError
from phibuild.worker.json_values import JsonDict, NoObjectError, parse_object


def read_json_object(path: Path, remedy: str) -> JsonDict:
    """Return the object that a JSON file holds. Raises SourceError with the place and `remedy`."""
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except NoObjectError as error:
        raise SourceError(Problem("must be a JSON object", f"{path}:1", remedy)) from error
    except json.JSONDecodeError as error:
        what, where = f"not valid JSON: {error.msg}", f"{path}:{error.lineno}"
        raise SourceError(Problem(what, where, remedy)) from error
    except OSError as error:
        raise SourceError(Problem(f"cannot be read: {error.strerror}", str(path))) from error
    except (ValueError, RecursionError) as error:
        what = "not valid JSON: damaged, or not text"
        raise SourceError(Problem(what, str(path), remedy)) from error


def json_place(path: Path) -> Callable[[str], str]:
    """Return (key) -> file:line of its first line in a JSON file, or the file alone."""

    def where(key: str) -> str:
        lines = path.read_text(encoding="utf-8").splitlines()
        numbers = [number for number, line in enumerate(lines, 1) if key and f'"{key}"' in line]
        return f"{path}:{numbers[0]}" if numbers else str(path)

    return where
