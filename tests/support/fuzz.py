"""Plans of what may be damaged: each ends in a plan or in a refusal, or the test fails."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from phibuild.cli import main
from phibuild.commands.common import prepare
from phibuild.commands.plan import plan_lines
from phibuild.commands.plan_answer import plan_answer
from phibuild.commands.plan_view import plan_page
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import Composition, compose_build
from phibuild.errors import PhibuildError
from phibuild.execute.forecast import forecast
from phibuild.report.terminal.render import render
from phibuild.schema import document_text


@dataclass
class Fuzz:
    """Plans in a working directory of its own, without a network, and counts how that ends."""

    folder: Path
    ends: Counter[int] = field(default_factory=Counter)
    compositions: dict[tuple[str, ...], Composition] = field(default_factory=dict)

    def command(self, *words: str) -> int:
        """Run `phibuild plan`; fail if it ends in anything but a plan or a refusal."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main(["plan", *words])
        code, said = ended.value.code, err.getvalue()
        assert "Traceback" not in out.getvalue() + said
        if code == 0:
            assert said == ""
            assert " cells, " in out.getvalue()
        else:
            assert code == 2, said
            first, *others = said.splitlines()
            assert len(first) > len("error: : x")
            assert first.startswith("error: ")
            assert all(line.startswith(("error: ", "    ")) for line in others), said
        self.ends[code] += 1
        return code

    def plan(self, *words: str) -> None:
        """Do what `phibuild plan` does, but compose the words once: what is damaged is read
        later."""
        if words not in self.compositions:
            self.compositions[words] = compose_build(words, Catalogue(), sweep=False)
        arguments = argparse.Namespace(
            config_dir=None, only=[], skip=[], strict=False, output="outputs"
        )
        refused = None
        try:
            prepared = prepare(arguments, self.compositions[words])
            found = prepared.plan
            times = forecast(found, prepared.executor, prepared.store)
            assert render(plan_page(found, "mine", times, 80), 80)
            assert plan_lines(found, "mine", times)
            assert document_text(plan_answer(found, "mine", times))
        except PhibuildError as error:
            refused = error
        self.ends[2 if refused else 0] += 1
        if refused:
            assert refused.exit_code == 2
            assert refused.problems
            assert all(problem.what.strip() and problem.where for problem in refused.problems)
