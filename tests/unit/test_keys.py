"""Keys: what changes which, on copies of phibuild's own code; Python's modulefinder says what a
step reaches."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from modulefinder import ModuleFinder
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from phibuild.backends.registry import BACKENDS
from phibuild.checkpoints.facts import Checkpoint, load_checkpoint
from phibuild.config.catalogue import DATA
from phibuild.planning.code import ENTRY, KINDS, PACKAGE, entries, phibuild_code
from phibuild.planning.keys import Keys, measure_key
from phibuild.planning.steps import REFERENCE_BACKEND
from phibuild.schema import Calibration, Evaluation, Variant
from phibuild.store.store import Store
from phibuild.worker.adapter_merge import Adapter
from phibuild.worker.unfused import Fusing

ORIGINAL = ("source", "reference", "activations")
STEPS = tuple(
    (kind, backend)
    for kind in KINDS
    for backend in (BACKENDS if kind not in ORIGINAL else (REFERENCE_BACKEND,))
)
# What a worker's module has for each kind of step, as worker/entry.py and worker/judge.py call it.
CALLED = {
    "build": ("build",), "measure": ("prepare", "load"), "source": ("source",),
    "reference": ("reference",), "activations": ("activations",),
}  # fmt: skip
VERBS = {name for names in CALLED.values() for name in names}


def copy(folder: Path) -> Path:
    """Return a copy of phibuild in `folder`, its data and configuration linked."""
    ignore = shutil.ignore_patterns("__pycache__", "data")
    package = Path(shutil.copytree(PACKAGE, folder / "phibuild", ignore=ignore))
    (package / "data").symlink_to(DATA)
    for name in ("conf", "recipes"):
        (folder / name).symlink_to(PACKAGE.parent / name)
    return package


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def store(module_folder: Path) -> Store:
    store = Store(module_folder / "store")
    store.prepare()
    return store


@pytest.fixture(scope="module")
def package(module_folder: Path) -> Path:
    """Return a copy of phibuild that tests change and put right again."""
    return copy(module_folder)


def digests(package: Path, store: Store) -> dict[tuple[str, str], str]:
    """Return step -> digest of its code."""
    code = phibuild_code(store, package)
    return {step: code.digest(entries(*step)) for step in STEPS}


def changed(package: Path, store: Store, before: dict[Any, str]) -> set[Any]:
    after = digests(package, store)
    return {step for step in STEPS if after[step] != before[step]}


def path_of(package: Path, module: str) -> Path:
    path = package.parent / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def found_by_python(folder: Path, kind: str, backend: str) -> set[str]:
    """Return the modules that a step may import, by the instructions that Python compiles. Imports
    for type checkers are compiled away, functions that other kinds of steps call taken out."""
    package = copy(folder / f"{kind}-{backend}")
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("if TYPE_CHECKING:", "if False:"), encoding="utf-8")
    worker = package / "backends" / backend / "worker.py"
    tree = ast.parse(worker.read_text(encoding="utf-8"))
    called = called_functions(tree, CALLED[kind])
    tree.body = [
        node for node in tree.body if not isinstance(node, ast.FunctionDef) or node.name in called
    ]
    worker.write_text(ast.unparse(tree), encoding="utf-8")
    (package / "__init__.py").write_text("", encoding="utf-8")  # which no runner imports
    script = package.parent / "script.py"
    imported = [ENTRY, f"phibuild.backends.{backend}.worker"]
    imported += ["phibuild.worker.judge"] if kind == "measure" else []
    script.write_text("".join(f"import {name}\n" for name in imported), encoding="utf-8")
    finder = ModuleFinder(path=[str(package.parent)])
    finder.run_script(str(script))
    return {name for name in finder.modules if name.startswith("phibuild.")}


def called_functions(tree: ast.Module, names: Collection[str]) -> set[str]:
    """Return the functions of a module that `names` call, by the names in their instructions."""
    compiled = compile(tree, "worker", "exec")
    functions = {one.co_name: one for one in compiled.co_consts if isinstance(one, CodeType)}

    def used(code: CodeType) -> Iterator[str]:
        yield from code.co_names
        for one in code.co_consts:
            if isinstance(one, CodeType):
                yield from used(one)

    found, todo = set[str](), list(names)
    while todo:
        name = todo.pop()
        if name in functions and name not in found:
            found.add(name)
            todo += used(functions[name])
    return found


@pytest.fixture(scope="module")
def expected(module_folder: Path) -> dict[tuple[str, str], set[str]]:
    """Return step -> modules that it may import."""
    return {step: found_by_python(module_folder, *step) for step in STEPS}


def test_what_a_step_reaches_is_what_python_finds(
    expected: dict[tuple[str, str], set[str]], store: Store
) -> None:
    code = phibuild_code(store)
    for step in STEPS:
        reached = {entry.partition(":")[0] for entry in code.reached(entries(*step))}
        assert reached == expected[step], step


def test_a_build_holds_no_runtime_and_judging_no_converter(
    expected: dict[tuple[str, str], set[str]],
) -> None:
    """But where a tokenizer is checked by the runtime itself."""
    for backend in BACKENDS:
        own = f"phibuild.backends.{backend}"
        reads = backend == "llamacpp"
        assert (f"{own}.runtime" in expected["build", backend]) is reads
        assert f"{own}.convert" in expected["build", backend]
        assert f"{own}.convert" not in expected["measure", backend]
        assert f"{own}.runtime" in expected["measure", backend]
        for name in ("judge", "metrics"):
            assert f"phibuild.worker.{name}" in expected["measure", backend]
            assert f"phibuild.worker.{name}" not in expected["build", backend]
    assert "phibuild.worker.metrics" in expected["reference", REFERENCE_BACKEND]


def test_a_statement_changes_the_keys_of_the_steps_that_reach_it_and_no_others(
    package: Path, store: Store, expected: dict[tuple[str, str], set[str]]
) -> None:
    before = digests(package, store)
    modules = set[str]().union(*expected.values())
    assert len(modules) > 90
    for module in sorted(modules):
        path = path_of(package, module)
        text = path.read_text(encoding="utf-8")
        path.write_text(f"{text}\n_added = 1\n", encoding="utf-8")
        wanted = {step for step in STEPS if module in expected[step]}
        assert wanted
        assert changed(package, store, before) == wanted, module
        path.write_text(text, encoding="utf-8")
    assert changed(package, store, before) == set()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_function_of_a_worker_changes_the_keys_of_the_steps_that_call_it(
    backend: str, package: Path, store: Store
) -> None:
    before = digests(package, store)
    path = package / "backends" / backend / "worker.py"
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert {"build", "load", "prepare", "inspect"} <= {node.name for node in functions}
    for function in functions:
        statement = ast.parse("_added = 1").body
        function.body += statement
        path.write_text(ast.unparse(tree), encoding="utf-8")
        del function.body[-1]
        wanted = {
            (kind, name)
            for kind, name in STEPS
            if name == backend and function.name in called_functions(tree, CALLED[kind])
        }
        assert wanted or function.name == "inspect"
        assert changed(package, store, before) == wanted, function.name
    path.write_text(text, encoding="utf-8")


def test_comments_docstrings_and_layout_change_no_key(package: Path, store: Store) -> None:
    before = digests(package, store)
    texts = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    for path, text in texts.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)):
                if ast.get_docstring(node) is not None:
                    del node.body[0]
                node.body.insert(0, ast.parse("'Another word on it.'").body[0])
        written = ast.unparse(tree).replace("\n", "  # so\n\n", 1)
        assert written != text
        path.write_text(written + "\n# the end\n", encoding="utf-8")
    assert changed(package, store, before) == set()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def test_only_the_entry_computes_what_it_imports(store: Store) -> None:
    """What the calls in there mean is in `entries`, verb by verb."""
    code = phibuild_code(store)
    calls = {
        entry: code.part(entry).calls for step in STEPS for entry in code.reached(entries(*step))
    }
    assert calls.pop(ENTRY) == ("*", "phibuild.worker.generation", "phibuild.worker.judge")
    assert {entry: found for entry, found in calls.items() if found} == {}


def test_runners_read_no_other_files_of_phibuild(store: Store) -> None:
    """Which a key would not hold: nothing that they reach asks where it lies."""
    code = phibuild_code(store)
    modules = {
        entry.partition(":")[0] for step in STEPS for entry in code.reached(entries(*step))
    } - {ENTRY}
    for module in modules:
        text = path_of(PACKAGE, module).read_text(encoding="utf-8")
        for word in ("__file__", "importlib.resources", "pkgutil", "runpy", "multiprocessing"):
            assert word not in text, module


@pytest.fixture
def checkpoint() -> Checkpoint:
    return load_checkpoint(DATA / "phi3-tiny-trained", "tiny", "phi3-tiny-trained")


VARIANTS = {
    "llamacpp": Variant(
        backend="llamacpp", precision="int4", name="Q4_0", format="GGUF", options={"type": "Q4_0"}
    ),
    "pytorch": Variant(
        backend="pytorch", precision="fp16", name="fp16", format="safetensors",
        options={"dtype": "float16"},
    ),
}  # fmt: skip
TEXT = Calibration(Path("text.txt"), "0" * 64, 512)


def all_keys(
    checkpoint: Checkpoint,
    store: Store,
    *,
    digest: str = "1" * 64,
    evaluation: Evaluation | None = None,
    text: str = "2" * 64,
    calibration: Calibration = TEXT,
    options: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Return every key of what is made of a checkpoint: the llamacpp artifact needs activations."""
    evaluation = evaluation or Evaluation()
    keys = Keys(digest, checkpoint, store)
    found = {
        "source": keys.source,
        "reference": keys.reference(evaluation, text),
        "activations": keys.activations(calibration),
    }
    for name, variant in VARIANTS.items():
        inputs = found["activations"] if name == "llamacpp" else None
        chosen = variant.model_copy(update={"options": options or variant.options})
        found[name] = keys.artifact(chosen, inputs)
        found[f"{name} judged"] = measure_key(
            found[name], found["reference"], name, evaluation, store
        )
    assert len(set(found.values())) == len(found)
    return found


JUDGED = {"llamacpp judged", "pytorch judged"}
ARTIFACTS = {"llamacpp", "pytorch", *JUDGED}
ALL = {"source", "reference", "activations", *ARTIFACTS}
ADAPTER = Adapter(Path("/somewhere"), {}, {}, {})


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"commit": "f" * 40, "pinned": False, "notes": ("a note",), "reference": "other"}, set()),
        ({"weight_bytes": 1}, set()),
        ({"name": "other"}, ARTIFACTS),
        ({"license": "another"}, ARTIFACTS),
        ({"config": {"a": 1, "b": 2}}, ALL),
        ({"fusing": Fusing({"a": ("b", "c")})}, ALL),
        ({"adapter": ADAPTER}, ALL),
    ],
)
def test_what_is_known_of_a_checkpoint_changes_the_keys_that_depend_on_it(
    change: dict[str, Any], wanted: set[str], checkpoint: Checkpoint, store: Store
) -> None:
    one, other = all_keys(checkpoint, store), all_keys(replace(checkpoint, **change), store)
    assert {name for name in one if one[name] != other[name]} == wanted


def test_the_architecture_and_the_files_change_every_key(
    checkpoint: Checkpoint, store: Store
) -> None:
    one = all_keys(checkpoint, store)
    wider = replace(checkpoint.architecture, norm_eps=1e-3)
    for other in (
        all_keys(replace(checkpoint, architecture=wider), store),
        all_keys(checkpoint, store, digest="3" * 64),
    ):
        assert {name for name in one if one[name] != other[name]} == ALL


def test_the_order_of_a_config_is_in_its_file_and_where_an_adapter_lies_is_not(
    checkpoint: Checkpoint, store: Store
) -> None:
    one, other = (replace(checkpoint, config=dict(pairs)) for pairs in
                  ((("a", 1), ("b", 2)), (("b", 2), ("a", 1))))  # fmt: skip
    assert not set(all_keys(one, store).values()) & set(all_keys(other, store).values())
    here = replace(checkpoint, adapter=ADAPTER)
    there = replace(checkpoint, adapter=replace(ADAPTER, folder=Path("/elsewhere")))
    assert all_keys(here, store) == all_keys(there, store)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"evaluation": Evaluation(text="elsewhere.txt")}, set()),
        ({"evaluation": Evaluation(decode_tokens=7)}, JUDGED),
        ({"evaluation": Evaluation(windows=7)}, {"reference", *JUDGED}),
        ({"evaluation": Evaluation(window_tokens=70)}, {"reference", *JUDGED}),
        ({"evaluation": Evaluation(max_reference_bytes=1 << 40)}, {"reference", *JUDGED}),
        ({"text": "4" * 64}, {"reference", *JUDGED}),
        ({"calibration": replace(TEXT, path=Path("moved.txt"))}, set()),
        ({"calibration": replace(TEXT, tokens=1024)},
         {"activations", "llamacpp", "llamacpp judged"}),
        ({"calibration": replace(TEXT, sha256="5" * 64)},
         {"activations", "llamacpp", "llamacpp judged"}),
        ({"options": {"type": "Q8_0", "dtype": "bfloat16"}}, ARTIFACTS),
    ],
)  # fmt: skip
def test_settings_change_the_keys_that_depend_on_them(
    change: dict[str, Any], wanted: set[str], checkpoint: Checkpoint, store: Store
) -> None:
    one, other = all_keys(checkpoint, store), all_keys(checkpoint, store, **change)
    assert {name for name in one if one[name] != other[name]} == wanted


SCRIPT = """
import json, sys
from pathlib import Path
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.planning.matrix import expand
from phibuild.planning.plan import make_plan
from phibuild.planning.code import program_digest
from phibuild.store.store import Store
store, catalogue = Store(Path(sys.argv[1])), Catalogue(None)
words = ("recipe=quickstart", "backends.llamacpp.int4.imatrix=embedded")
composition = compose_build(words, catalogue, sweep=False)
evaluation = composition.recipes[0].config.evaluation
plan = make_plan(expand(composition, catalogue), evaluation, store, read_weights=True)
found = {step.kind: step.key for step in plan.originals}
for artifact in plan.artifacts:
    name = f"{artifact.variant.backend} {artifact.variant.name}"
    found |= {name: artifact.key, f"{name} judged": artifact.measure_key}
print(json.dumps({**found, "program": program_digest("mlx", store)}))
"""


@pytest.fixture(scope="module")
def planned(module_folder: Path, store: Store) -> Callable[[Path], dict[str, str]]:
    """Return (package) -> every key of a real plan by a copy of phibuild."""

    def plan(package: Path) -> dict[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(store.root)],
            env={**os.environ, "PYTHONPATH": str(package.parent)},
            cwd=package.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)
        return found

    return plan


@pytest.fixture(scope="module")
def unchanged(package: Path, planned: Callable[[Path], dict[str, str]]) -> dict[str, str]:
    """Return every key of the plan by the copy as it is."""
    keys = planned(package)
    assert len(keys) == 3 + 2 * 20 + 1
    return keys


ONE_MORE = ("import annotations", "import annotations\n_added = 1")
EVERY_ARTIFACT = r"\w+ \S+( judged)?"


@pytest.mark.parametrize(
    ("file", "change", "wanted"),
    [
        # What the core shows, chooses or reckons counts by what comes of it.
        ("backends/mlx/spec.py", ("mlx_lm.generate", "mlx_lm.chat"), r"mlx .*"),
        ("planning/requests.py", ('"long": True', '"long": False'), r"reference|.* judged"),
        ("backends/calibration.py", ("CHUNK_TOKENS = 512", "CHUNK_TOKENS = 256"),
         r"activations|llamacpp .*-imatrix.*"),
        ("__init__.py", ('"0.1.0"', '"0.1.1"'), EVERY_ARTIFACT),
        # What the core writes.
        ("checkpoints/view.py", ("indent=2", "indent=4"), r".*"),
        ("planning/readme.py", ("## Run it", "## Use it"), EVERY_ARTIFACT),
        ("planning/readme.py", ("[:57]", "[:56]"), EVERY_ARTIFACT),
        # What runs in toolchains.
        ("backends/pytorch/witness.py", ONE_MORE, r"source"),
        ("backends/pytorch/tokenizer_facts.py", ONE_MORE, rf"source|{EVERY_ARTIFACT}"),
        ("backends/pytorch/activations.py", ONE_MORE, r"activations|llamacpp .*-imatrix.*"),
        ("backends/pytorch/convert.py", ONE_MORE, r"pytorch .*"),
        ("backends/pytorch/runtime.py", ONE_MORE, r"pytorch .* judged"),
        ("backends/ort_genai/nodes.py", ONE_MORE, r"ort_genai .*"),
        ("worker/metrics.py", ONE_MORE, r"reference|.* judged"),
        ("worker/judge.py", ONE_MORE, r".* judged"),
        ("worker/protocol.py", ONE_MORE, r".*"),
        ("worker/generation.py", ONE_MORE, r"(ort_genai|mlx|pytorch) .* judged"),
        ("backends/openvino/requirements.txt", ("numpy==", "numpy>="), r"openvino .*"),
        ("backends/pytorch/requirements.txt", ("numpy==", "numpy>="), r".*"),
    ],
)  # fmt: skip
def test_a_change_of_phibuild_changes_the_keys_of_what_comes_of_it(
    file: str,
    change: tuple[str, str],
    wanted: str,
    package: Path,
    planned: Callable[[Path], dict[str, str]],
    unchanged: dict[str, str],
) -> None:
    with edited(package, {file: change}):
        keys = planned(package)
    found = {name for name in keys if keys[name] != unchanged[name]}
    # A step on another machine must be run by the very code that it was planned with.
    assert ("program" in found) is file.endswith(".py")
    assert found - {"program"} == {
        name for name in unchanged if name != "program" and re.fullmatch(wanted, name)
    }


@contextlib.contextmanager
def edited(package: Path, changes: Mapping[str, tuple[str, str]]) -> Iterator[None]:
    """Replace a piece of each of these files by another while the block runs."""
    texts = {package / file: (package / file).read_text(encoding="utf-8") for file in changes}
    for (path, text), change in zip(texts.items(), changes.values(), strict=True):
        assert change[0] in text, path
        path.write_text(text.replace(*change, 1), encoding="utf-8")
    try:
        yield
    finally:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")


def test_what_makes_nothing_changes_no_key(
    package: Path, planned: Callable[[Path], dict[str, str]], unchanged: dict[str, str]
) -> None:
    modules = ("cli", "commands/plan", "commands/build", "config/compose", "checkpoints/facts",
               "checkpoints/adapter", "checkpoints/tensors", "planning/plan", "planning/sizes",
               "planning/requests", "planning/keys", "execute/work/build", "execute/work/original",
               "execute/runner/process", "store/store", "schema", "backends/base",
               "backends/mlx/spec", "backends/llamacpp/spec", "backends/pytorch/spec",
               "worker/source_config")  # fmt: skip
    with edited(package, {f"{module}.py": ONE_MORE for module in modules}):
        keys = planned(package)
    assert {name for name in keys if keys[name] != unchanged[name]} == {"program"}
    with edited(
        package, {"checkpoints/view.py": ("with store.workspace", "with  store.workspace")}
    ):
        assert planned(package) == unchanged
