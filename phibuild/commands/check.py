"""`phibuild check`: what is wrong with recipes and files of conf/, before anything is built."""

from __future__ import annotations

import argparse
from pathlib import Path

from phibuild.commands.answers import CheckAnswer, CheckedFile, FoundProblem
from phibuild.commands.common import check_texts
from phibuild.config.own_files import OwnFile, catalogues, files_below, not_read, own_file
from phibuild.config.yamlfile import show_path
from phibuild.errors import EXIT_OK, EXIT_USAGE, ConfigError, PhibuildError, Place, Problem
from phibuild.planning.checking import Findings, check_file
from phibuild.schema import document_text
from phibuild.system.places import user_path


def run(arguments: argparse.Namespace) -> int:
    """Print all that is wrong, file by file; exit code 2 if anything is."""
    findings = Findings()
    files = _find(arguments.files, findings)
    readable = []
    for file in files:
        problem = not_read(file)
        if problem:
            findings.problems[problem] = None
        else:
            readable.append(file)
    for catalogue, some in catalogues(readable):
        for file in some:
            check_file(file.group, file.name, catalogue, findings)
    for composition, matrix in findings.matrices:
        try:
            check_texts(matrix, composition)
        except ConfigError as error:
            findings.problems.update(dict.fromkeys(error.problems))
    problems = sorted(map(_found, findings.problems), key=_order)
    if arguments.json:
        checked = [CheckedFile(file=show_path(file.path), kind=file.group) for file in files]
        print(document_text(CheckAnswer(files=checked, problems=problems)))
    else:
        for found in problems:
            print(_line(found))
        what = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        print(f"checked {len(files)} file{'s' if len(files) != 1 else ''}: {what}")
    return EXIT_USAGE if problems else EXIT_OK


def _find(words: list[str], findings: Findings) -> list[OwnFile]:
    """Return the files that the words name, each once; notes what cannot be one. Raises ConfigError
    where there are none."""
    found: dict[Path, OwnFile] = {}
    for word in words or ["."]:
        path = user_path(word, word)
        if path.is_dir():
            below = list(files_below(path)) or [
                own_file(one) for one in sorted(path.glob("*.yaml"))
            ]
            if not below:
                remedy = "'phibuild init' writes a recipe and a device"
                raise ConfigError(Problem("no recipes/ and no conf/ with files in it",
                                          str(show_path(path)), remedy))  # fmt: skip
            found.update((file.path.absolute(), file) for file in below)
            continue
        if not path.exists():
            raise ConfigError(Problem(f"no such file: {word}", "command line"))
        try:
            found.setdefault(path.absolute(), own_file(path))
        except PhibuildError as error:
            findings.add(*error.problems, start=Place(show_path(path), 1, 1))
    return list(found.values())


def _found(problem: Problem) -> FoundProblem:
    match problem.where:
        case Place() as place:
            return FoundProblem(
                file=place.file, line=place.line, column=place.column,
                where=str(place), what=problem.what, remedy=problem.remedy,
            )  # fmt: skip
    return FoundProblem(
        file=None, line=None, column=None,
        where=problem.where, what=problem.what, remedy=problem.remedy,
    )  # fmt: skip


def _order(problem: FoundProblem) -> tuple[str, int, int]:
    return problem.file or "", problem.line or 0, problem.column or 0


def _line(problem: FoundProblem) -> str:
    """Return a problem as compilers write theirs: file:line:column, what; the remedy below."""
    where = problem.where
    if problem.file is not None:
        where = f"{problem.file}:{problem.line}:{problem.column}"
    return str(Problem(problem.what, where, problem.remedy))
