"""`phibuild check`: it says what a build would say, with the column, of each file by itself."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import ROOT, CommandLine
from phibuild.cli import main
from support.kinds import some
from unit.test_bad_input import CONF_CASES, DEVICE, DEVICE_CASES, OK, RECIPE_CASES

Check = Callable[..., tuple[int, dict[str, Any]]]
OF_A_MODEL = {"model-folder", "model-path-nowhere", "model-adapter-nowhere", "baseline-nowhere"}
"""What is wrong with a model, or a run, that check does not look at: it may be on another
machine."""


@pytest.fixture
def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Check:
    """Return (words) -> exit code and answer of `check --json` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as ended:
            main(["check", "--json", *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(str(ended.value.code)), json.loads(out) if out else {"err": err}

    return run


def write(name: str, text: str | bytes) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def said(answer: dict[str, Any]) -> list[str]:
    """Return the problems as other verbs print them."""
    return [
        f"{one['where']}: {one['what']}" + (f"\n    {one['remedy']}" if one["remedy"] else "")
        for one in answer["problems"]
    ]


@pytest.mark.parametrize("case", some(RECIPE_CASES, list(RECIPE_CASES)[::3]))
def test_it_says_of_a_recipe_what_a_build_says(case: str, check: Check) -> None:
    text, line, what, remedy = RECIPE_CASES[case]
    write("recipes/mine.yaml", text)
    what = what.replace("{root}", str(ROOT))
    expected = f"recipes/mine.yaml:{line}: {what}" + (f"\n    {remedy}" if remedy else "")
    code, answer = check()
    assert said(answer) == ([] if case in OF_A_MODEL else [expected])
    assert code == (0 if case in OF_A_MODEL else 2)
    assert answer["files"] == [{"file": "recipes/mine.yaml", "kind": "recipe"}]
    for one in answer["problems"]:
        assert (one["file"], one["line"]) == ("recipes/mine.yaml", line)
        at = one["column"] - 1
        raw = text if isinstance(text, bytes) else text.encode()
        shown = raw.decode("utf-8", "replace").splitlines() or [""]
        assert 0 <= at <= len(shown[line - 1] if line <= len(shown) else "")


@pytest.mark.parametrize("case", some(DEVICE_CASES, list(DEVICE_CASES)[::3]))
def test_it_says_of_a_device_what_a_build_says(case: str, check: Check) -> None:
    text, line, what, remedy = DEVICE_CASES[case]
    write("conf/device/board.yaml", text)
    expected = f"conf/device/board.yaml:{line}: {what}" + (f"\n    {remedy}" if remedy else "")
    code, answer = check()
    assert (code, said(answer)) == (2, [expected])


@pytest.mark.parametrize("case", CONF_CASES)
def test_it_says_of_a_configuration_file_what_a_build_says(case: str, check: Check) -> None:
    name, text, _, line, what, remedy = CONF_CASES[case]
    write(f"conf/{name}", text)
    what = what.replace("{data}", str(ROOT / "phibuild" / "data"))
    expected = f"conf/{name}:{line}: {what}" + (f"\n    {remedy}" if remedy else "")
    code, answer = check()
    assert (code, said(answer)) == (2, [expected])


COLUMNS = [
    ("key", 1), ("option-value", 14), ("duplicate-key-nested", 5), ("precision-in-list", 7),
    ("kl-negative", 9), ("target-nested", 9), ("not-utf8", 10), ("syntax-tab", 1),
    ("defaults-unknown", 5), ("control-character", 15), ("alias-unknown", 10),
]  # fmt: skip


@pytest.mark.parametrize(("case", "column"), COLUMNS)
def test_columns(case: str, column: int, check: Check) -> None:
    """Counted in the texts of the cases."""
    write("recipes/mine.yaml", RECIPE_CASES[case][0])
    (problem,) = check()[1]["problems"]
    assert problem["column"] == column


def test_everything_that_ships_is_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main(["check"])
    files = [*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "conf").glob("*/*.yaml")]
    assert capsys.readouterr().out == f"checked {len(files)} files: 0 problems\n"
    assert ended.value.code == 0


def test_several_files_at_once(check: Check) -> None:
    write("recipes/mine.yaml", "gats: 1\ndevices:\n  board: {llamacpp: [int4]}\n")
    write("recipes/other.yaml", OK + "gates: {kl: -1}\n")
    write("conf/device/board.yaml", DEVICE.replace("8 GiB", "8"))
    code, answer = check()
    found = [(one["file"], one["line"], one["column"]) for one in answer["problems"]]
    assert (code, found) == (2, [
        ("conf/device/board.yaml", 3, 1), ("recipes/mine.yaml", 1, 1), ("recipes/other.yaml", 3, 9),
    ])  # fmt: skip


def test_what_is_wrong_with_the_cells_of_a_known_model(check: Check) -> None:
    """As a plan says it: limits of variants that are not there, types of no tensor, all skipped."""
    write("recipes/limit.yaml", OK + "gates: {kl: {int4.Q4_0: 0.1, int4.Q9: 0.1}}\n")
    write("recipes/types.yaml", "model: phi-4\ndevices:\n  raspberry_pi_5:\n    llamacpp:\n"
          "      int4: {tensor_types: {nosuch: Q6_K}}\n")  # fmt: skip
    write("recipes/skipped.yaml", "devices: {raspberry_pi_5: {mlx: [int4]}}\n")
    whats = [(one["file"], one["what"]) for one in check()[1]["problems"]]
    assert ("recipes/limit.yaml", "gates.kl: no int4 variant of the recipe is called 'Q9'") in whats
    assert any(file == "recipes/types.yaml" and "no tensor is called 'nosuch'" in what
               for file, what in whats)  # fmt: skip
    assert any(file == "recipes/skipped.yaml" and "the only cell is skipped" in what
               for file, what in whats)  # fmt: skip


def test_the_judging_text_is_no_calibration_text(check: Check) -> None:
    write("text.txt", "Once upon a time there was a text. " * 40)
    recipe = "devices: {raspberry_pi_5: {llamacpp: {int4: {imatrix: text.txt}}}}\n"
    write("recipes/mine.yaml", recipe + "evaluation: {text: text.txt}\n")
    (problem,) = check()[1]["problems"]
    assert "the one that artifacts are judged on" in problem["what"]


def test_a_part_of_other_recipes_needs_no_devices(check: Check) -> None:
    write("recipes/base.yaml", "gates: {kl: 0.1}\n")
    write("recipes/mine.yaml", "defaults: [base, _self_]\n" + OK)
    assert check() == (0, {
        "files": [{"file": f"recipes/{name}.yaml", "kind": "recipe"} for name in ("base", "mine")],
        "problems": [],
    })  # fmt: skip
    write("recipes/base.yaml", "gates: {kl: -1}\n")
    assert len(check()[1]["problems"]) == 1
    Path("recipes/mine.yaml").unlink()
    assert len(check()[1]["problems"]) == 2


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (OK, "recipe"),
        (DEVICE, "device"),
        ("title: x\nlicense: MIT\nrepo: a/b\n", "model"),
        ("windows: 3\n", "evaluation"),
        ("cores: 3\n", "executor"),
        ("# yaml-language-server: $schema=conf/schema/evaluation.json\ntext: null\n", "evaluation"),
    ],
)
def test_the_kind_of_a_file_that_lies_elsewhere(text: str, kind: str, check: Check) -> None:
    write("elsewhere/a.yaml", text)
    code, answer = check("elsewhere/a.yaml")
    assert (code, answer["problems"]) == (0, [])
    assert answer["files"] == [{"file": "elsewhere/a.yaml", "kind": kind}]


def test_files_of_another_folder_know_their_neighbours(check: Check) -> None:
    write("other/conf/device/board.yaml", DEVICE)
    write("other/recipes/mine.yaml", "devices: {board: {llamacpp: [int4]}}\n")
    assert check("other/recipes/mine.yaml")[0] == 0
    assert check("other")[0] == 0
    write("recipes/here.yaml", "devices: {board: {llamacpp: [int4]}}\n")
    assert check("recipes/here.yaml")[0] == 2


def test_a_file_that_phibuild_would_not_read(check: Check) -> None:
    write("recipes/mine.yml", OK)
    (problem,) = check()[1]["problems"]
    assert problem["remedy"] == "rename it to mine.yaml"


def test_nothing_to_check_and_no_file(check: Check) -> None:
    for words, said in (((), "no recipes/ and no conf/"), (("nowhere.yaml",), "no such file")):
        code, answer = check(*words)
        assert code == 2
        assert said in answer["err"]
    write("some.yaml", "colour: red\n")
    (problem,) = check("some.yaml")[1]["problems"]
    assert problem["what"].startswith("neither its place nor its keys")


def test_it_needs_no_network_and_writes_nothing(phibuild: CommandLine, tmp_path: Path) -> None:
    recipes = phibuild.folder / "recipes"
    recipes.mkdir()
    (recipes / "hub.yaml").write_text("model: someone/my-phi@main\n" + OK)
    (recipes / "folder.yaml").write_text("model: ./my-phi\n" + OK)
    (recipes / "known.yaml").write_text("model: phi-3.5-mini\n" + OK)
    store = tmp_path / "none" / "store"
    done = phibuild(
        "check", HF_ENDPOINT="http://127.0.0.1:1", HF_HOME=str(tmp_path / "hub"),
        HF_HUB_CACHE=str(tmp_path / "hub"), PHIBUILD_STORE=str(store),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "checked 3 files: 0 problems\n"), done.stderr
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "hub").exists()


def test_the_text_is_as_compilers_write_it(phibuild: CommandLine) -> None:
    recipes = phibuild.folder / "recipes"
    recipes.mkdir()
    (recipes / "mine.yaml").write_text(OK + "gates:\n  topp1: 0.5\n")
    done = phibuild("check")
    assert done.returncode == 2
    assert done.stdout == (
        "recipes/mine.yaml:4:3: unknown key 'topp1' in gates\n    did you mean 'top1'?\n"
        "checked 1 file: 1 problem\n"
    )


def test_the_hook_for_pre_commit(tmp_path: Path) -> None:
    """Its entry, as pre-commit runs it: in the repository's folder, with the files that match."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert (hook["id"], hook["language"]) == ("phibuild-check", "python")
    matches = re.compile(hook["files"]).search
    names = ["recipes/a.yaml", "conf/device/b.yaml", "deploy/recipes/c.yaml",
             "conf/backend/mlx.yaml", "own/conf/evaluation/d.yml"]  # fmt: skip
    assert [name for name in names if not matches(name)] == []
    others = ["recipes/a.md", "conf/phibuild.yaml", "conf/schema/recipe.json", "a.yaml",
              "docs/recipes/b/c.yaml"]  # fmt: skip
    assert [name for name in others if matches(name)] == []
    for name, text in {
        "recipes/good.yaml": "devices: {board: {llamacpp: [int4]}}\n",
        "recipes/bad.yaml": "devices: {bord: {llamacpp: [int4]}}\n",
        "conf/device/board.yaml": DEVICE,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    program, *words = shlex.split(hook["entry"])
    entry = [str(Path(sys.executable).with_name(program)), *words, *hook.get("args", [])]

    def run(*names: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*entry, *names], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    assert run("recipes/good.yaml", "conf/device/board.yaml").returncode == 0
    failed = run("recipes/good.yaml", "recipes/bad.yaml")
    assert failed.returncode == 2
    assert "recipes/bad.yaml:1:11: unknown device 'bord'" in failed.stdout
