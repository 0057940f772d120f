"""One of each kind: how a product of shapes, backends and types is thinned.

Whatever tests are about is tested on one of each kind; all of the product is with `--every`, as a
release is checked (`make every`), and where the tables in docs/ are made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

OPTION = "--every"
TABLES = ("--support", "--faults-table", "--correctness")
"""Options that write a table of docs/."""
MARK = "every"


def some(values: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """Return the values of a parameter, or tuples of several, of which only `kept` have their turn
    without `--every`."""
    found, values = [], list(values)
    assert all(one in values for one in kept), "what is kept is none of them"
    for value in values:
        marks = () if value in kept else (getattr(pytest.mark, MARK),)
        found.append(pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks))
    return found


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true", help="all of each product, not one of each kind")


def all_of_them(config: pytest.Config) -> bool:
    """Return whether all of each product has its turn: if that is asked for, or a table."""
    return any(config.getoption(name) for name in (OPTION, *TABLES))


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out of `items` those that have their turn with all of their product alone."""
    if all_of_them(config):
        return
    out = [item for item in items if item.get_closest_marker(MARK)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in set(out)]
