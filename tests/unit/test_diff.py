"""What is different between two runs, and what is more than noise."""

from __future__ import annotations

import random
from typing import Any

import pytest

from phibuild.report.diff.documents import CellDifference, Difference, FigureChange
from phibuild.report.diff.making import NamedReport, make_difference
from phibuild.report.diff.text import difference_lines
from phibuild.report.documents import Gate, Report, ReportCell
from support.report_cells import HOST, LOSSES, lost, some_cell, some_quality, some_report, timed

INT4, INT8 = "phi.pi.llamacpp.int4", "phi.pi.llamacpp.int8"


def difference(a: Report | list[ReportCell], b: Report | list[ReportCell]) -> Difference:
    sides = [side if isinstance(side, Report) else some_report(*side) for side in (a, b)]
    return make_difference(NamedReport("mine/1", sides[0]), NamedReport("mine/2", sides[1]))


def figures(cell: CellDifference) -> dict[str, FigureChange]:
    return {one.figure: one for one in cell.figures}


def judged(losses: list[float], **changes: Any) -> ReportCell:
    return some_cell(quality=some_quality(losses, **changes), artifact_digest="other")


def test_a_run_beside_itself_is_the_same() -> None:
    cells = [some_cell(), some_cell(INT8), lost("phi.pi.mlx.int4", "skipped", "no Metal")]
    found = difference(cells, cells)
    assert found.totals == {"same": 3}
    assert {one.verdict for cell in found.cells for one in cell.figures} == {"same"}
    assert list(difference_lines(found))[-1] == "3 the same"


def test_a_loss_that_is_more_on_every_window_is_more_than_noise() -> None:
    """3 % more on each window, where the windows differ by a fifth of the loss."""
    generator = random.Random(1)
    more = [kl * (1.03 + generator.uniform(-0.005, 0.005)) for kl in LOSSES]
    (cell,) = difference([some_cell()], [judged(more)]).cells
    kl = figures(cell)["kl"]
    assert (kl.verdict, kl.beyond_noise, kl.windows) == ("worse", True, len(LOSSES))
    assert kl.relative == pytest.approx(0.03, abs=0.004)
    assert kl.error is not None
    assert kl.error < 0.001 < 0.005 < (some_quality().kl_error or 0)
    assert cell.kinds[0] == "worse"
    (back,) = difference([judged(more)], [some_cell()]).cells
    assert back.kinds == ["better"]


def test_a_loss_that_is_more_here_and_less_there_is_noise() -> None:
    generator = random.Random(2)
    other = [kl * (1.01 + generator.uniform(-0.1, 0.1)) for kl in LOSSES]
    (cell,) = difference([some_cell()], [judged(other)]).cells
    kl = figures(cell)["kl"]
    assert (kl.verdict, kl.beyond_noise) == ("noise", False)
    assert cell.kinds == ["changed"]


def test_what_differs_from_window_to_window_is_told_by_the_means() -> None:
    """Real losses of Q4_K_M and Q4_0, of four windows: half as much again is seen, though the
    differences of the windows are as unlike as the windows are."""
    small, large = [0.0347, 0.0204, 0.0339, 0.0279], [0.0444, 0.0425, 0.0485, 0.0558]
    (cell,) = difference([judged(small)], [judged(large)]).cells
    kl = figures(cell)["kl"]
    assert (kl.verdict, kl.windows) == ("worse", 4)
    assert kl.relative == pytest.approx(0.6356, abs=0.001)
    (cell,) = difference([judged(small)], [judged([kl * 1.05 for kl in reversed(small)])]).cells
    assert figures(cell)["kl"].verdict == "noise"


def test_chance_is_seldom_taken_for_a_difference() -> None:
    """Artifacts that lose the same but for chance, of windows that differ by a fifth."""
    generator = random.Random(7)
    told = 0
    for _ in range(2000):
        a, b = ([max(0.01, generator.gauss(0.1, 0.02)) for _ in range(6)] for _ in "ab")
        (cell,) = difference([judged(a)], [judged(b)]).cells
        told += figures(cell)["kl"].verdict != "noise"
    assert told <= 0.055 * 2000


def test_only_windows_of_the_same_text_are_pairs() -> None:
    """Fewer windows are compared on those that there are; on another text by the means."""
    (few,) = difference([some_cell()], [judged([2 * kl for kl in LOSSES[:5]])]).cells
    kl = figures(few)["kl"]
    assert kl.windows == 5
    assert kl.b / kl.a == pytest.approx(2)
    (other,) = difference([some_cell()], [judged(list(LOSSES), text=1.0)]).cells
    assert figures(other)["kl"].windows is None
    assert figures(other)["kl"].verdict == "same"
    (worse,) = difference([some_cell()], [judged([2 * k for k in LOSSES], text=1.0)]).cells
    assert figures(worse)["kl"].verdict == "worse"
    (bit,) = difference([some_cell()], [judged([1.03 * k for k in LOSSES], text=1.0)]).cells
    assert figures(bit)["kl"].verdict == "noise"
    assert figures(bit)["ppl"].beyond_noise is not True


def test_a_report_of_an_older_version_has_no_windows() -> None:
    old = some_cell(quality=some_quality(by_window=[], kl_error=None, windows=None))
    (cell,) = difference([old], [judged([2 * kl for kl in LOSSES])]).cells
    kl = figures(cell)["kl"]
    assert (kl.beyond_noise, kl.verdict, kl.windows) == (None, "noise", None)
    assert "noise, for all that is known" in "\n".join(
        difference_lines(difference([old], [judged([2 * kl for kl in LOSSES])]), everything=True)
    )


def test_a_token_more_in_each_window_is_no_better_top1() -> None:
    def top1(share: float) -> ReportCell:
        quality = some_quality(LOSSES[:4])
        windows = [one.model_copy(update={"top1": share}) for one in quality.by_window]
        return some_cell(quality=quality.model_copy(update={"by_window": windows}))

    (cell,) = difference([top1(200 / 256)], [top1(199 / 256)]).cells
    assert figures(cell)["top1"].verdict == "noise"
    (cell,) = difference([top1(200 / 256)], [top1(190 / 256)]).cells
    assert figures(cell)["top1"].verdict == "worse"


def test_a_loss_next_to_nothing_is_not_worse() -> None:
    small = [1e-8 * (1 + n) for n in range(8)]
    (cell,) = difference([judged(small)], [judged([3 * kl for kl in small])]).cells
    assert figures(cell)["kl"].verdict == "noise"


def test_sizes_are_exact() -> None:
    (cell,) = difference([some_cell()], [some_cell(size_bytes=2_000_001)]).cells
    size = figures(cell)["size"]
    assert (size.verdict, size.change, size.error) == ("worse", 1, None)
    assert cell.kinds == ["larger"]


def test_speeds_are_noise_until_the_machine_is_known() -> None:
    changed = some_cell(artifact_digest="other")
    (cell,) = difference([some_cell()], [timed(changed, decode=60.0)]).cells
    assert (figures(cell)["decode"].verdict, cell.kinds) == ("noise", ["changed"])
    (cell,) = difference([some_cell()], [timed(changed, decode=45.0)]).cells
    assert cell.kinds == ["slower"]
    # Artifacts that are the same, timed twice, tell how quiet it was.
    quiet = some_cell(INT8)
    found = difference([some_cell(), quiet], [timed(changed, decode=60.0), timed(quiet, decode=97)])
    assert (found.speed_noise.factor, found.speed_noise.cells) == (1.25, 1)
    assert found.cells[0].kinds == ["slower"]
    found = difference([some_cell(), quiet], [timed(changed, decode=60.0), timed(quiet, decode=30)])
    assert found.speed_noise.factor == pytest.approx(100 / 30)
    assert all("slower" not in cell.kinds for cell in found.cells)
    # The same figures are no second time: they are of a cached judging.
    assert difference([some_cell(), quiet], [changed, quiet]).speed_noise.cells == 0


def test_speeds_of_two_machines_are_not_compared() -> None:
    b = some_report(timed(some_cell(), decode=1.0), host=HOST.model_copy(update={"cores": 64}))
    found = difference([some_cell()], b)
    assert figures(found.cells[0])["decode"].beyond_noise is None
    assert "two machines" in found.notes[0]


def test_new_gone_failed_and_mended() -> None:
    a = [
        some_cell("phi.pi.llamacpp.int4"), some_cell("phi.pi.llamacpp.int8"),
        lost("phi.pi.llamacpp.fp16", "failed", "killed"), some_cell("phi.pi.llamacpp.fp32"),
        some_cell("phi.pi.mlx.int4"), lost("phi.pi.mlx.int8", "failed", "killed"),
    ]  # fmt: skip
    b = [
        lost("phi.pi.llamacpp.int4", "failed", "out of memory\nthe log"),
        some_cell("phi.pi.llamacpp.fp16"), some_cell("phi.pi.llamacpp.fp32", quality=None),
        lost("phi.pi.mlx.int4", "skipped", "no Metal"), some_cell("phi.pi.openvino.int4"),
        lost("phi.pi.mlx.int8", "failed", "killed"),
    ]  # fmt: skip
    found = {cell.id.split(".", 2)[2]: cell for cell in difference(a, b).cells}
    assert {name: cell.kinds[0] for name, cell in found.items()} == {
        "llamacpp.int4": "failed", "llamacpp.fp32": "unjudged", "llamacpp.int8": "gone",
        "mlx.int4": "gone", "llamacpp.fp16": "mended", "openvino.int4": "new", "mlx.int8": "same",
    }  # fmt: skip
    assert list(found)[:2] == ["llamacpp.int4", "llamacpp.fp32"]
    assert list(found)[-1] == "mlx.int8"
    assert (found["llamacpp.int8"].a, found["llamacpp.int8"].b) == ("phi.pi.llamacpp.int8", None)
    text = "\n".join(difference_lines(difference(a, b)))
    assert "failed: phi.pi.llamacpp.int4\n    out of memory the log" in text


def test_gates_that_are_missed_since() -> None:
    kept = Gate(name="kl", limit=0.2, value=0.1, passed=True)
    missed = kept.model_copy(update={"value": 0.3, "passed": False})
    found = difference([some_cell(gates=[kept])], [some_cell(gates=[missed])])
    assert found.cells[0].kinds == ["gate"]
    assert found.cells[0].gates_broken == ["kl 0.3 of at most 0.2 nats"]
    back = difference([some_cell(gates=[missed])], [some_cell(gates=[kept])])
    assert back.cells[0].kinds == ["mended"]
    new = difference([], [some_cell(gates=[missed])])
    assert new.cells[0].kinds == ["gate", "new"]


def test_cells_match_where_an_id_gains_a_variant_or_loses_it() -> None:
    one = [some_cell(INT4, variant="Q4_K_M")]
    two = [some_cell(f"{INT4}.Q4_0", variant="Q4_0"), some_cell(f"{INT4}.Q4_K_M", variant="Q4_K_M")]
    found = {cell.id: cell for cell in difference(one, two).cells}
    assert found[f"{INT4}.Q4_K_M"].a == INT4
    assert found[f"{INT4}.Q4_0"].kinds == ["new"]
    back = {cell.id: cell for cell in difference(two, one).cells}
    assert back[INT4].a == f"{INT4}.Q4_K_M"
    assert back[f"{INT4}.Q4_0"].kinds == ["gone"]
    # The same place with another variant is the same cell: its id says so.
    (cell,) = difference(one, [some_cell(INT4, variant="Q5_K_M")]).cells
    assert (cell.variant_a, cell.variant_b) == ("Q4_K_M", "Q5_K_M")
    # Two of one name are told apart by their options.
    ids = [f"{INT4}.Q4_0,tokens={n}" for n in (1, 2)]
    several = [some_cell(name, options={"tokens": n}) for n, name in enumerate(ids, 1)]
    found = {c.id: c for c in difference([some_cell(INT4, options={"tokens": 2})], several).cells}
    assert (found[ids[1]].a, found[ids[0]].a) == (INT4, None)


def test_two_checkpoints_of_one_model_are_compared() -> None:
    found = difference([some_cell("one.pi.llamacpp.int4")], [some_cell("two.pi.llamacpp.int4")])
    assert [(cell.a, cell.b) for cell in found.cells] == [
        ("one.pi.llamacpp.int4", "two.pi.llamacpp.int4")
    ]
    assert found.notes == ["the model one is compared with two"]


def test_the_worst_comes_first_and_no_line_is_long() -> None:
    names = [f"phi.{'a_device_with_a_long_name_' * 5}{n}.llamacpp.int4" for n in range(3)]
    a = [some_cell(name) for name in names]
    b = [some_cell(name, size_bytes=size) for name, size in
         zip(names, (2_200_000, 9_000_000, 2_000_000), strict=True)]  # fmt: skip
    found = difference(a, b)
    assert [cell.id for cell in found.cells] == [names[1], names[0], names[2]]
    lines = list(difference_lines(found, everything=True))
    assert max(map(len, lines)) <= 100
    assert "x 4" in "\n".join(lines) or "+350" in "\n".join(lines)


def test_no_name_moves_the_cursor() -> None:
    evil = "phi.pi\x1b[2J.llamacpp.int4"
    found = difference([some_cell(evil)], [lost(evil, "failed", "\x1b[31mred\r\nnext")])
    text = "\n".join(difference_lines(found))
    assert "\x1b" not in text
    assert "\r" not in text


def test_runs_without_cells() -> None:
    assert list(difference_lines(difference([], [])))[-1] == "no cells"
