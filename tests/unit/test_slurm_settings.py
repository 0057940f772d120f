"""What of executor=slurm needs no cluster: settings, Slurm's words, records, the history."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phibuild.config.executors import SlurmSettings
from phibuild.execute.slurm.commands import _minutes, plain
from phibuild.execute.slurm.explain import explain
from phibuild.execute.slurm.records import Record, Records
from phibuild.execute.slurm.submit import _words, job_memory, shown_limit, time_limit
from phibuild.schema import Options
from phibuild.store.store import Store
from support.refusals import Refuse, refuse

__all__ = ["refuse"]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("infinite", None), ("n/a", None), ("10:00", 10), ("1:30:00", 90), ("2-12:00:00", 3600)],
)
def test_limits_of_partitions(text: str, minutes: int | None) -> None:
    assert _minutes(text) == minutes


def test_slurms_complaints_are_one_line() -> None:
    text = (
        "sbatch: error: Memory specification can not be satisfied\n"
        "sbatch: error: Batch job submission failed: Requested node configuration is not available"
    )
    assert plain(text) == (
        "Memory specification can not be satisfied; Requested node configuration is not available"
    )
    assert plain("sbatch: unrecognized option '--x'\nTry \"sbatch --help\" for more") == (
        "unrecognized option '--x'"
    )


def test_what_a_job_asks_for() -> None:
    settings = SlurmSettings(
        kind="slurm", partition="gpu", cores=2, timeout=100, memory_margin=1000,
        sbatch={"constraint": "avx512", "nice": 10, "contiguous": False, "hold": True},
    )  # fmt: skip
    assert _words(settings) == [
        "--time=4", "--cpus-per-task=2", "--requeue", "--partition=gpu", "--constraint=avx512",
        "--nice=10", "--hold",
    ]  # fmt: skip
    assert job_memory(settings, (5 << 20) + 1) == 6 << 20
    assert time_limit(settings) == 4


@pytest.mark.parametrize(
    ("sbatch", "said"),
    [
        ({}, "4 min (executor.timeout)"),
        ({"time": False}, "4 min (executor.timeout)"),  # submitit gives it all the same
        ({"time": "02:00:00"}, "02:00:00 (executor.sbatch.time)"),
        ({"time": "1-12"}, "1-12 (executor.sbatch.time)"),
        ({"time": 90}, "90 min (executor.sbatch.time)"),
    ],
)
def test_a_job_at_its_limit_says_which(
    sbatch: Options, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    limit = shown_limit(SlurmSettings(kind="slurm", timeout=100, sbatch=sbatch))
    reason = explain("12", "TIMEOUT", tmp_path, "1 GB", limit)
    assert reason == f"timed out: Slurm ended job 12 at its limit of {said}"


def test_without_slurm_it_is_said(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (error,) = refuse("build", "executor=slurm")
    assert "executor=slurm needs Slurm's commands; not on this machine: sbatch, squeue" in error
    assert error.endswith("run phibuild where sbatch works, or use executor=local")
    assert "conf/executor/slurm.yaml:3" in error


def test_setup_commands_are_not_for_recipes(refuse: Refuse) -> None:
    refuse.write(
        "recipes/mine.yaml",
        "devices: {mac: {mlx: [int4]}}\nexecutor:\n  setup: [rm -r x]\n",
    )
    assert refuse("plan", "recipe=mine", "executor=slurm") == [
        "recipes/mine.yaml:3: executor.setup in a recipe is refused\n"
        "    recipes are data: conf/executor/NAME.yaml may hold it"
    ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def one(records: Records) -> Record:
    (record,) = records.all()
    return record


def test_the_last_phibuild_that_waits_may_cancel(store: Store) -> None:
    first, second = Records(store), Records(store)
    with first.waiting():
        first.new("build.x", ["b", "a"])
        with second.waiting():
            joined = second.wait_for(one(second))
            assert set(joined.waiters) == {first.me, second.me}
            assert first.leave(joined) is False
            assert one(second).waiters == (second.me,)
            assert second.leave(joined) is True


def test_a_dead_phibuild_waits_for_nothing(store: Store) -> None:
    code = (
        "import os, sys; from pathlib import Path; from phibuild.store.store import Store\n"
        "from phibuild.execute.slurm.records import Records\n"
        "records = Records(Store(Path(sys.argv[1])))\n"
        "with records.waiting():\n"
        "    records.new('build.x', ['a']); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.root)], check=False)
    assert done.returncode == -9
    records = Records(store)
    with records.waiting():
        record = one(records)
        assert record.job is None
        assert record.waiters != (records.me,)
        assert len(list(records.folder.glob("*.waiter"))) == 2
        records.sweep()
        assert [path.stem for path in records.folder.glob("*.waiter")] == [records.me]
        assert records.wait_for(record).waiters == (records.me,)
    assert list(records.folder.glob("*.waiter")) == []


def test_a_record_is_removed_by_its_own_job_alone(store: Store) -> None:
    records = Records(store)
    old = records.new("build.x", ["a"])
    new = records.new("build.x", ["a"])  # after a phibuild that waited for the old one was slow
    records.remove(old)
    assert one(records) == new
    records.forget(new)
    assert records.all() == []


def test_folders_of_ended_jobs_are_kept_for_a_day(store: Store) -> None:
    records = Records(store)
    kept, ended = records.new("build.x", ["a"]), records.new("build.y", ["b"])
    records.remove(ended)
    records.sweep()
    assert records.path(ended).is_dir()
    for record in (kept, ended):
        os.utime(records.path(record), (1, 1))
    records.sweep()
    assert records.path(kept).is_dir()
    assert not records.path(ended).exists()


def test_records_of_others_and_damaged_ones_are_left_alone(store: Store) -> None:
    records = Records(store)
    records.new("build.x", ["a"])
    (path,) = records.folder.glob("*.json")
    data = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**data, "user": os.getuid() + 1}), encoding="utf-8")
    (records.folder / "damaged.json").write_text("{", encoding="utf-8")
    assert records.all() == []
    assert len(list(records.folder.glob("*.json"))) == 2
