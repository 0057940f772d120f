"""The files of conf/evaluation and conf/executor that a run has one of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from phibuild.config.catalogue import Catalogue
from phibuild.config.edits import COMMAND_LINE
from phibuild.config.validation import locate
from phibuild.config.yamlfile import YamlFile
from phibuild.errors import ConfigError, Problem, suggest

GROUPS = {"evaluation": "standard", "executor": "local"}
"""Groups of conf/ besides the axes, with what conf/phibuild.yaml chooses."""


def chosen_files(
    chosen: Mapping[str, tuple[str, str]], catalogue: Catalogue
) -> dict[str, YamlFile]:
    """Return the file of each group, checked as data; `chosen` has the names that words of the
    command line choose, and these words. Raises ConfigError."""
    problems: list[Problem] = []
    files = {}
    for key, default in GROUPS.items():
        name, word = chosen.get(key, (default, ""))
        known = catalogue.files(key)
        if name not in known:
            where = f"{COMMAND_LINE}: {word}"
            problems.append(Problem(f"unknown {key} {name!r}", where, suggest(name, known)))
            continue
        file = files[key] = replace(known[name], prefix=(key,))
        try:
            problems += file.check()
        except ConfigError as error:
            problems += error.problems
            continue
        if file.find((key, "defaults"))[0] == 2:
            where = locate([file], (key, "defaults")) or file.shown
            what = f"a file of conf/{key} has no defaults list"
            problems.append(Problem(what, where, "write the keys themselves"))
    if problems:
        raise ConfigError(*problems)
    return files
