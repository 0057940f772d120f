"""Bad recipes, configuration and command lines: refused with one clear error, nothing written.

Each case runs `build`, and `plan` with --every. The whole message is compared: where (file:line or
the word of the command line), what, and what to do.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from conftest import ROOT, CommandLine
from phibuild.backends.registry import BACKENDS
from support.refusals import Refuse, check_refusal, refuse, snapshot

__all__ = ["refuse"]

OK = "devices:\n  raspberry_pi_5: {llamacpp: [int4]}\n"
DATA = "recipes are data: write the value itself"
ADD = "add: devices: {raspberry_pi_5: {llamacpp: [int4]}}"
PRECISIONS = "for example llamacpp: [int4, int8]"
DEVICES = "known: " + ", ".join(
    sorted(path.stem for path in (ROOT / "conf" / "device").glob("*.yaml"))
)
KEYS = "known: allow_nonfinite, backends, description, devices, evaluation, executor, gates, model"
ALL_KEYS = (
    "known: allow_nonfinite, backend, backends, description, device, devices, evaluation, "
    "executor, gates, model, precision, recipe"
)
RECIPES = (
    "known: ai_pc, apple, copilot_pc, edge_release, every_backend, iot, mobile, quickstart, server"
)
GROUP = "set other things by key: evaluation: {windows: 8}"
WORD = "quote it to mean text"
KNOWN_PRECISIONS = "known: fp16, fp32, int4, int8"
QUOTES = "check the indentation and quotes here"
TYPES = "'Q4_K_M', 'Q4_0', 'Q5_K_M', 'IQ4_XS', 'Q8_0', 'F16' or 'F32'"


def pi(text: str) -> str:
    """Return a recipe whose only backend, from line 3 on, is `text`."""
    return "devices:\n  raspberry_pi_5:\n" + "".join(f"    {s}\n" for s in text.splitlines())


# (recipe, line, what, remedy)
RECIPE_CASES: dict[str, tuple[str | bytes, int, str, str]] = {
    # names
    "device": (OK + "  raspbery_pi_5: {llamacpp: [int4]}\n", 3,
               "unknown device 'raspbery_pi_5'", "did you mean 'raspberry_pi_5'?"),
    "device-nothing-near": ("devices:\n  toaster: {llamacpp: [int4]}\n", 2,
                            "unknown device 'toaster'", DEVICES),
    "backend": (pi("llamacp: [int4]"), 3, "unknown backend 'llamacp'", "did you mean 'llamacpp'?"),
    "precision-in-list": (pi("llamacpp:\n- int4\n- int44"), 5,
                          "unknown precision 'int44'", "did you mean 'int4'?"),
    "precision-in-mapping": (pi("llamacpp:\n  int4:\n  int44:"), 5,
                             "unknown precision 'int44'", "did you mean 'int4'?"),
    "option-of-cell": (pi("llamacpp:\n  int4:\n    typ: Q4_0"), 5,
                       "unknown option 'typ' of llamacpp", "did you mean 'type'?"),
    "option-of-recipe": (OK + "backends:\n  llamacpp:\n    int4: {typ: Q4_0}\n", 5,
                         "unknown option 'typ' of llamacpp", "did you mean 'type'?"),
    "option-of-recipe-unused": (OK + "backends:\n  openvino:\n    int4:\n      groupsize: 64\n", 6,
                                "unknown option 'groupsize' of openvino",
                                "did you mean 'group_size'?"),
    "option-value": (pi("llamacpp:\n  int4: {type: Q4_K_N}"), 4,
                     f"option 'type' of llamacpp: must be {TYPES}, not 'Q4_K_N'",
                     "did you mean 'Q4_K_M'?"),
    "option-file": (pi("llamacpp:\n  int4:\n    imatrix: my.txt"), 5,
                    "option 'imatrix' of llamacpp: 'my.txt' cannot be read: No such file or "
                    "directory; give the path of a text file, or embedded", ""),
    "option-folder": (pi("llamacpp:\n  int4:\n    imatrix: ."), 5,
                      "option 'imatrix' of llamacpp: '.' cannot be read: Is a directory; "
                      "give the path of a text file, or embedded", ""),
    "option-of-recipe-file": (OK + "backends:\n  llamacpp:\n    int4: {imatrix: 5}\n", 5,
                              "option 'imatrix' of llamacpp: must be text, not 5", ""),
    "option-tokens": (pi("llamacpp:\n  int4: {imatrix: embedded, imatrix_tokens: 511}"), 4,
                      "option 'imatrix_tokens' of llamacpp: must be greater than or equal to 512, "
                      "not 511", ""),
    "option-value-of-recipe": (OK + "backends:\n  llamacpp:\n    int4:\n      type: 7\n", 6,
                               f"option 'type' of llamacpp: must be {TYPES}, not 7", ""),
    "backend-of-recipe": (OK + "backends:\n  lamacpp:\n    int4: {type: Q4_0}\n", 4,
                          "unknown backend 'lamacpp'", "did you mean 'llamacpp'?"),
    "precision-of-recipe": (OK + "backends:\n  llamacpp:\n    int44: {type: Q4_0}\n", 5,
                            "unknown precision 'int44'", "did you mean 'int4'?"),
    "key": ("# mine\ngats: {kl: 0.1}\n" + OK, 2, "unknown key 'gats'", "did you mean 'gates'?"),
    "key-nothing-near": (OK + "colour: red\n", 3, "unknown key 'colour'", KEYS),
    "key-of-hydra": (OK + "hydra: {run: {dir: x}}\n", 3, "unknown key 'hydra'",
                     "a recipe has no settings of Hydra"),
    "key-of-gates": (OK + "gates:\n  kl: 0.1\n  topp1: 0.5\n", 5,
                     "unknown key 'topp1' in gates", "did you mean 'top1'?"),
    "key-of-evaluation": (OK + "evaluation:\n  windws: 3\n", 4,
                          "unknown key 'windws' in evaluation", "did you mean 'windows'?"),
    "model": (OK + "model: phi-4-mni\n", 3, "unknown model 'phi-4-mni'",
              "did you mean 'phi-4-mini'?; or ./folder, or org/name@revision"),
    "model-folder": (OK + "model: ./nowhere\n", 3, "no such folder: {folder}/nowhere",
                     "give a checkpoint folder, a model name or org/name"),
    "text": (OK + "evaluation:\n  text: my.txt\n", 4,
             "evaluation.text 'my.txt' cannot be read: No such file or directory",
             "give the path of a text file"),
    # types and numbers
    "windows": (OK + "evaluation:\n  windows: many\n", 4,
                "evaluation.windows: must be a whole number, not 'many'", ""),
    "windows-fraction": (OK + "evaluation:\n  windows: 1.5\n", 4,
                         "evaluation.windows: must be a whole number, not 1.5", ""),
    "windows-zero": (OK + "evaluation:\n  windows: 0\n", 4,
                     "evaluation.windows: must be greater than 0, not 0", ""),
    "enabled": (OK + "evaluation: {enabled: perhaps}\n", 3,
                "evaluation.enabled: must be true or false, not 'perhaps'", ""),
    "kl-word": (OK + "gates:\n  kl: high\n", 4,
                "gates.kl: a limit is a number, or a mapping of precisions to numbers, not 'high'",
                ""),
    "kl-negative": (OK + "gates: {kl: -1}\n", 3,
                    "gates.kl: a limit must be greater than 0, not -1", ""),
    "kl-nan": (OK + "gates: {kl: .nan}\n", 3,
               "gates.kl: a limit must be greater than 0, not nan", ""),
    "gate-inf": (OK + "gates: {kl: .inf}\n", 3,
                 "gates.kl: a limit must be a finite number, not inf", ""),
    "gate-huge": (OK + f"gates: {{kl: {'9' * 400}}}\n", 3,
                  "gates.kl: a limit must be a finite number", ""),
    "gate-huge-bound": (OK + f"gates: {{top1: {{at_least: {'9' * 400}}}}}\n", 3,
                        "gates.top1.at_least: 'at_least' must be a finite number", ""),
    "kl-precision": (OK + "gates:\n  kl:\n    int4: 1\n    int5: 1\n", 6,
                     "gates.kl.int5: unknown precision 'int5'; known: int4, int8, fp16, fp32", ""),
    "baseline-missing": (OK + "gates:\n  kl:\n    int4: {not_worse_than: 1.05}\n", 4,
                         "gates.kl: 'kl' compares with a baseline, and none is named; add for "
                         "example baseline: latest", ""),
    "baseline-unused": (OK + "gates:\n  kl: 0.1\n  baseline: latest\n", 5,
                        "gates.baseline: no gate compares with 'baseline'; add for example kl: "
                        "{not_worse_than: 1.05}", ""),
    "baseline-nowhere": (OK + "gates:\n  baseline: releases/1.3.0\n  kl: {not_worse_than: 1.1}\n",
                         4, "gates.baseline: no run 'releases/1.3.0' (outputs)",
                         "name a folder with a report.json, a report.json, a recipe that was "
                         "built, or latest"),
    "baseline-factor": (OK + "gates:\n  baseline: latest\n  kl:\n    not_worse_than: 0.95\n", 6,
                        "gates.kl.not_worse_than: 'not_worse_than' is a factor of the baseline's "
                        "figure, at least 1: 1.05 allows that much more", ""),
    "gates-list": (OK + "gates: [kl]\n", 3, "gates: must be a mapping, not a list", ""),
    "gates-empty": (OK + "gates:\n", 3, "gates: must be a mapping, not None", ""),
    "evaluation-word": (OK + "evaluation: none\n", 3,
                        "evaluation: must be a mapping, not 'none'", ""),
    "size-negative": (OK + "gates: {size: -1}\n", 3,
                      "gates.size: a size is a whole number of bytes, zero or more, not -1", ""),
    "size-zero": (OK + "gates: {size: 0}\n", 3, "gates.size: must be greater than 0, not 0", ""),
    "size-infinite": (OK + "gates: {size: .inf}\n", 3,
                      "gates.size: a size is a whole number of bytes, zero or more, not inf", ""),
    "size-potatoes": (OK + "gates:\n  size: 8 potatoes\n", 4,
                      "gates.size: unknown unit 'potatoes' in '8 potatoes'; "
                      "use B, KB, MB, GB, KiB, MiB, GiB", ""),
    "memory-words": (OK + "executor:\n  memory: lots\n", 4,
                     "executor.memory: 'lots' is not a size; write for example '8 GiB'", ""),
    "kind": (OK + "executor: {kind: slurm}\n", 3, "executor.kind cannot be set",
             "choose executor=NAME"),
    "cores": (OK + "executor: {cores: -2}\n", 3, "executor.cores: must be greater than 0, not -2",
              ""),
    "devices-list": ("model: phi-4\ndevices: [mac]\n", 2, "devices: must be a mapping, not a list",
                     ""),
    "devices-word": ("devices: mac\n", 1, "devices: must be a mapping, not 'mac'", ""),
    "device-word": ("devices:\n  mac: mlx\n", 2, "devices.mac: must be a mapping, not 'mlx'", ""),
    "device-list": ("devices:\n  mac: [mlx]\n", 2, "devices.mac: must be a mapping, not ['mlx']",
                    ""),
    "device-null": ("devices:\n  mac:\n", 2, "devices.mac: must be a mapping, not None", ""),
    "device-empty": ("devices:\n  mac: {}\n", 2, "device 'mac' names no backend",
                     f"known: {', '.join(BACKENDS)}"),
    "backend-word": (pi("llamacpp: int4"), 3, "llamacpp: needs a list of precisions, or a mapping "
                     "of precisions to options", PRECISIONS),
    "backend-null": (pi("llamacpp:"), 3, "llamacpp: needs a list of precisions, or a mapping of "
                     "precisions to options", PRECISIONS),
    "backend-empty": (pi("llamacpp: []"), 3, "llamacpp: needs a list of precisions, or a mapping "
                      "of precisions to options", PRECISIONS),
    "precision-number": (pi("llamacpp: [4]"), 3, "unknown precision '4'", KNOWN_PRECISIONS),
    "precision-mapping": (pi("llamacpp: [{int4: Q4_0}]"), 3,
                          "unknown precision \"{'int4': 'Q4_0'}\"", KNOWN_PRECISIONS),
    "options-word": (pi("llamacpp:\n  int4: Q4_0"), 4,
                     "options of int4 must be a mapping, not 'Q4_0'", ""),
    "options-zero": (pi("llamacpp:\n  int4: 0"), 4, "options of int4 must be a mapping, not 0", ""),
    "backends-list": (OK + "backends: {llamacpp: [4]}\n", 3,
                      "backends.llamacpp: must be a mapping, not [4]", ""),
    "model-list": (OK + "model: [a]\n", 3, "model: must be text or a mapping, not ['a']", ""),
    "model-null": (OK + "model:\n", 3, "model: must be text or a mapping, not None", ""),
    "model-mapping-empty": (OK + "model: {}\n", 3,
                            "model: names no checkpoint: write path, or base and adapter", ""),
    "model-name-alone": (OK + "model: {name: kiosk}\n", 3,
                         "model: names no checkpoint: write path, or base and adapter", ""),
    "model-key": (OK + "model:\n  name: kiosk\n  paht: ./a\n", 5, "unknown key 'paht' in model",
                  "did you mean 'path'?"),
    "model-path-and-base": (OK + "model:\n  name: kiosk\n  path: ./a\n  base: phi-4\n", 6,
                            "model.base: 'path', a whole checkpoint, and 'base' cannot stand "
                            "together: an adapter needs base and adapter", ""),
    "model-path-and-adapter": (OK + "model:\n  adapter: ./b\n  path: ./a\n", 5,
                               "model.path: 'path', a whole checkpoint, and 'adapter' cannot "
                               "stand together: an adapter needs base and adapter", ""),
    "model-adapter-alone": (OK + "model:\n  name: a\n  adapter: ./a\n", 5,
                            "model.adapter: 'adapter' needs base, the model that it was trained "
                            "on", ""),
    "model-base-alone": (OK + "model:\n  name: a\n  base: phi-4\n", 5,
                         "model.base: 'base' needs an adapter; a whole checkpoint is written as "
                         "path", ""),
    "model-path-list": (OK + "model:\n  name: a\n  path: [a]\n", 5,
                        "model.path: must be text, not ['a']", ""),
    "model-name-empty": (OK + "model:\n  path: phi-4\n  name: ''\n", 5,
                         "model.name: 'name' must not be empty", ""),
    "model-name-sign": (OK + "model:\n  path: phi-4\n  name: '+'\n", 5,
                        "model.name: 'name' needs a letter or a digit", ""),
    "model-path-nowhere": (OK + "model:\n  name: a\n  path: ./nowhere\n", 5,
                           "no such folder: {folder}/nowhere",
                           "give a checkpoint folder, a model name or org/name"),
    "model-path-empty": (OK + "model:\n  name: a\n  path: ''\n", 5, "model needs a name",
                         "a model name, ./folder, or org/name@revision"),
    "model-adapter-nowhere": (OK + "model:\n  base: phi-4\n  adapter: ./nowhere\n", 5,
                              "no such folder: {folder}/nowhere", "an adapter is a folder that "
                              "PEFT saved, with adapter_config.json in it"),
    "nonfinite": (OK + "allow_nonfinite: perhaps\n", 3,
                  "allow_nonfinite: must be true or false, not 'perhaps'", ""),
    "model-empty": (OK + "model: ''\n", 3, "model needs a name",
                    "a model name, ./folder, or org/name@revision"),
    # empty
    "empty": ("", 1, "the file is empty", ADD),
    "comments": ("# a\n# b\n", 1, "the file is empty", ADD),
    "null": ("---\n", 1, "must be a mapping of keys to values", ""),
    "no-devices": ("description: mine\n", 1, "the recipe names no devices", ADD),
    "devices-empty": ("# c\ndevices: {}\n", 2, "the recipe names no devices", ADD),
    "devices-null": ("# c\n\ndevices:\n", 3, "the recipe names no devices", ADD),
    # not YAML as it should be
    "syntax-brace": (OK + "gates: {kl: 0.1\n", 4,
                     "not valid YAML: while parsing a flow mapping did not find expected ',' or "
                     "'}'", QUOTES),
    "syntax-colons": ("devices:\n  a: b: c\n", 2,
                      "not valid YAML: mapping values are not allowed in this context", QUOTES),
    "syntax-tab": ("devices:\n\ta: 1\n", 2,
                   "not valid YAML: while scanning for the next token found character that cannot "
                   "start any token", QUOTES),
    "two-documents": (OK + "---\n" + OK, 3,
                      "not valid YAML: expected a single document in the stream but found another "
                      "document", QUOTES),
    "alias-unknown": ("devices: *a\n", 1, "not valid YAML: found undefined alias", QUOTES),
    "alias-cycle": ("devices: &a\n  mac: *a\n", 1, "an alias refers to what it stands in",
                    "write the value itself"),
    "alias-bomb": ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
                       f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
                       for a, b in ("ab", "bc", "cd", "de", "ef", "fg")) + OK, 6,
                   "aliases make more than 100,000 entries of this", ""),
    "deep": ("devices: " + "[" * 60 + "]" * 60 + "\n", 1, "nested more than 50 deep", ""),
    "duplicate-key": (OK + "gates: {kl: 0.1}\ndevices: {}\n", 4, "key 'devices' stands twice",
                      "keep one of them"),
    "duplicate-key-nested": ("devices:\n  mac:\n    mlx: [int4]\n    mlx: [int8]\n", 4,
                             "key 'mlx' stands twice", "keep one of them"),
    "list": ("- a\n- b\n", 1, "must be a mapping of keys to values", ""),
    "scalar": ("hello\n", 1, "must be a mapping of keys to values", ""),
    "not-utf8": (b"# caf\xc3\xa9\ndevices: \xff\n", 2, "is not UTF-8 text (byte 0xff)",
                 "save it as UTF-8"),
    "control-character": (OK + "description: a\x07b\n", 3,
                          "not valid YAML: control characters are not allowed",
                          "remove the character"),
    "key-number": (OK + "1: a\n", 3, "a key must be a plain word, not '1'", WORD),
    "key-true": ("devices:\n  yes: {llamacpp: [int4]}\n", 2,
                 "a key must be a plain word, not 'yes'", WORD),
    "key-control": (OK + '"a\\eb": c\n', 3, "a key must be a plain word, not 'a\\x1bb'",
                    "remove the character"),
    "key-list": (OK + "? [a, b]\n: c\n", 3, "a key must be a plain word", ""),
    # code and the environment
    "target": (OK + "_target_: os.system\n", 3, "'_target_' is refused", DATA),
    "target-nested": (pi("llamacpp:\n  int4:\n    _target_: os.system"), 5,
                      "'_target_' is refused", DATA),
    "python-tag": (OK + "description: !!python/object/apply:os.system [ls]\n", 3,
                   "the tag '!!python/object/apply:os.system' is refused", DATA),
    "own-tag": (OK + "description: !mine x\n", 3, "the tag '!mine' is refused", DATA),
    **{
        f"resolver-{name}": (OK + f"description: \"{text}\"\n", 3, what, DATA)
        for name, text, what in (
            ("env", "${oc.env:HOME}", "the resolver '${oc.env:...}' is refused"),
            ("env-default", "a ${ oc.env:HOME,x} b", "the resolver '${oc.env:...}' is refused"),
            ("decode", "${oc.decode:x}", "the resolver '${oc.decode:...}' is refused"),
            ("create", "${oc.create:{}}", "the resolver '${oc.create:...}' is refused"),
            ("hydra", "${hydra:runtime.cwd}", "the resolver '${hydra:...}' is refused"),
            ("now", "${now:%Y}", "the resolver '${now:...}' is refused"),
            ("hidden", "${${model}:HOME}", "the interpolation in '${${model}:HOME}' is refused"),
            ("open", "${x", "the interpolation in '${x' is refused"),
        )
    },
    "resolver-in-list": (pi("llamacpp: ['${oc.env:HOME}']"), 3,
                         "the resolver '${oc.env:...}' is refused", DATA),
    "interpolation-unknown": (OK + "description: ${nope}\n", 3,
                              "cannot be composed: Interpolation key 'nope' not found", ""),
    "interpolation-cycle": (OK + "description: ${description}\n", 3,
                            "cannot be composed: Recursive interpolation detected", ""),
    # the defaults list
    "defaults-unknown": ("defaults:\n  - iot\n  - mobil\n" + OK, 3,
                         "unknown recipe 'mobil' in the defaults list", "did you mean 'mobile'?"),
    "defaults-word": ("defaults: iot\n" + OK, 1, "defaults must be a list of recipes",
                      "for example [mobile, _self_]"),
    "defaults-null": ("defaults:\n" + OK, 1, "defaults must be a list of recipes",
                      "for example [mobile, _self_]"),
    "defaults-group": ("defaults:\n  - override hydra/launcher: basic\n" + OK, 2,
                       "an entry of the defaults list is the name of a recipe", GROUP),
    "defaults-path": ("defaults: [/device/iphone]\n" + OK, 1,
                      "unknown recipe '/device/iphone' in the defaults list",
                      RECIPES.replace("mobile", "mine, mobile")),
    "defaults-itself": ("defaults:\n  - mine\n" + OK, 2, "recipe 'mine' contains itself", ""),
    "defaults-twice": ("defaults:\n  - iot\n  - iot\n" + OK, 3,
                       "'iot' stands twice in the defaults list", ""),
    "defaults-self-twice": ("defaults: [_self_, _self_]\n" + OK, 1,
                            "'_self_' stands twice in the defaults list", ""),
    "defaults-twice-below": ("defaults:\n  - edge_release\n  - iot\n" + OK, 3,
                             "recipe 'iot' comes twice", "remove it from one list"),
    "defaults-clash": ("defaults: [quickstart]\ndevices:\n  mac:\n    mlx: []\n", 4,
                       "devices.mac.mlx: must be a mapping as in "
                       "{root}/recipes/quickstart.yaml:17, not a list", ""),
    "defaults-clash-of-gates": ("defaults: [quickstart]\ngates:\n  kl: [1]\n", 3,
                                "gates.kl: must be a mapping as in "
                                "{root}/recipes/quickstart.yaml:20, not a list", ""),
    "defaults-typed": ("defaults:\n  - 1.10\n" + OK, 2,
                       "unknown recipe '1.10' in the defaults list",
                       RECIPES.replace("mobile", "mine, mobile")),
}  # fmt: skip


@pytest.mark.parametrize("case", RECIPE_CASES)
def test_a_bad_recipe_is_refused(case: str, refuse: Refuse) -> None:
    text, line, what, remedy = RECIPE_CASES[case]
    refuse.write("recipes/mine.yaml", text)
    what = what.replace("{folder}", str(refuse.folder)).replace("{root}", str(ROOT))
    expected = f"recipes/mine.yaml:{line}: {what}" + (f"\n    {remedy}" if remedy else "")
    for verb in refuse.verbs:
        assert refuse(verb, "recipe=mine") == [expected]


def test_all_errors_of_a_recipe_are_shown_at_once(refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", (
        "gats: 1\n"
        "model: phi-4-mni\n"
        "gates: {kl: high, topp1: 3}\n"
        "evaluation: {windows: -1, text: my.txt}\n"
        "devices:\n"
        "  macc: {mlx: [int4]}\n"
        "  mac: {mlxx: [int4]}\n"
        "  iphone: {mlx: [int44, int8]}\n"
        "  raspberry_pi_5: {llamacpp: {int4: {typ: x}}}\n"
    ))  # fmt: skip
    errors = refuse("build", "recipe=mine")
    assert {error.splitlines()[0] for error in errors} == {
        "recipes/mine.yaml:1: unknown key 'gats'",
        "recipes/mine.yaml:2: unknown model 'phi-4-mni'",
        "recipes/mine.yaml:3: gates.kl: a limit is a number, or a mapping of precisions to "
        "numbers, not 'high'",
        "recipes/mine.yaml:3: unknown key 'topp1' in gates",
        "recipes/mine.yaml:4: evaluation.windows: must be greater than 0, not -1",
        "recipes/mine.yaml:4: evaluation.text 'my.txt' cannot be read: No such file or directory",
        "recipes/mine.yaml:6: unknown device 'macc'",
        "recipes/mine.yaml:7: unknown backend 'mlxx'",
        "recipes/mine.yaml:8: unknown precision 'int44'",
        "recipes/mine.yaml:9: unknown option 'typ' of llamacpp",
    }


def test_all_errors_of_a_file_as_data_are_shown_at_once(refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", OK + "_target_: x\ndescription: ${oc.env:HOME}\n1: 2\n")
    errors = [error.splitlines()[0] for error in refuse("plan", "recipe=mine")]
    assert errors == [
        "recipes/mine.yaml:3: '_target_' is refused",
        "recipes/mine.yaml:5: a key must be a plain word, not '1'",
        "recipes/mine.yaml:4: the resolver '${oc.env:...}' is refused",
    ]


def test_a_bad_recipe_of_the_defaults_list_is_named_itself(refuse: Refuse) -> None:
    refuse.write("recipes/base.yaml", "gats: 1\n")
    refuse.write("recipes/mine.yaml", "defaults: [base, _self_]\n" + OK)
    assert refuse("plan", "recipe=mine") == [
        "recipes/base.yaml:1: unknown key 'gats'\n    did you mean 'gates'?"
    ]


AXES = (
    "axes of a sweep: recipe, model, device, backend, precision, and options: "
    "backends.BACKEND.PRECISION.OPTION, devices.DEVICE.BACKEND.PRECISION.OPTION; a list is written "
    "[a,b]"
)
HYDRA = ("Hydra's own settings do not apply", "use --output DIR for the folder")
HAS = "it has: raspberry_pi_5, ai_pc_intel, mac, ai_pc_rtx"
PLAIN = "overrides are key=value, +key=value or ~key; quote values with spaces"
CFG = "'--cfg job' shows the keys"
# words of the command line; the one that is wrong; what; remedy
WORD_CASES: list[tuple[str, str, str | None, str | None]] = [
    ("recipe=mobil", "", "unknown recipe 'mobil'", "did you mean 'mobile'?"),
    ("recipe=zzz", "", "unknown recipe 'zzz'", RECIPES),
    ("recipe=mobile.yaml", "", "unknown recipe 'mobile.yaml'", "did you mean 'mobile'?"),
    ("recipe=", "", "recipe needs a name", ""),
    ("recipe=null", "", "unknown recipe 'null'", RECIPES),
    ("recipe=1.10", "", "unknown recipe '1.10'", RECIPES),
    ("recipe='", "", "unknown recipe \"'\"", RECIPES),
    ("recipe=''", "", "recipe needs a name", ""),
    ("recipe=mobile,", "", "recipe needs a name", ""),
    ("recipe=a\x07", "recipe=a\\x07", "the character '\\x07' cannot stand in an override",
     "rename what it names"),
    ("model=./\udce9", "model=./\\udce9", "is not text in this locale",
     "set LC_ALL=C.UTF-8, or rename what it names"),
    ("~recipe", "", "recipe can only be set", "recipe=NAME"),
    ("+recipe=iot", "", "recipe can only be set", "recipe=NAME"),
    ("recipe=iot recipe=mobile", "recipe=mobile", "recipe is given twice",
     "to sweep: -m recipe=a,b"),
    # lists and sweeps
    ("recipe=[mobile,iot]", "", "recipe takes one name, not a list", "to sweep: -m recipe=a,b"),
    ("device=[mac,iphone]", "", "device takes one name, not a list", "to sweep: -m device=a,b"),
    ("precision=[int4]", "", "precision takes one name, not a list", "to sweep: -m precision=a,b"),
    ("-m precision=[int4]", "precision=[int4]", "precision takes one name, not a list",
     "to sweep: -m precision=a,b"),
    ("device={a:b}", "", "device takes one name, not a mapping", "to sweep: -m device=a,b"),
    ("evaluation=[none]", "", "unknown evaluation '[none]'",
     "did you mean 'none'?"),
    ("precision=int4,int8", "", "several values for 'precision'",
     "add -m to sweep: -m precision=int4,int8"),
    ("device=glob(*)", "", "several values for 'device'", "add -m to sweep: -m device=glob(*)"),
    ("-m gates.kl=1,2", "gates.kl=1,2", "'gates.kl' cannot be swept", AXES),
    ("-m evaluation=none,quick", "evaluation=none,quick", "'evaluation' cannot be swept", AXES),
    ("-m precision=interval(0,1)", "precision=interval(0,1)",
     "this kind of sweep has no list of values", "-m precision=a,b"),
    ("-m precision=range(0,1000000000)", "precision=range(0,1000000000)",
     "more than 1000 names for 'precision'", ""),
    ("-m precision=choice()", "precision=choice()",
     "not an override: ValueError while evaluating 'choice()': empty choice is not legal", PLAIN),
    ("-m device=glob(zz*)", "device=glob(zz*)", "no device matches", DEVICES),
    ("-m device=glob(iph*)", "device=glob(iph*)", "no device of recipe quickstart matches", HAS),
    ("-m recipe=glob(zz*)", "recipe=glob(zz*)", "no recipe matches", RECIPES),
    ("-m recipe=mobile,mobil", "recipe=mobile,mobil", "unknown recipe 'mobil'",
     "did you mean 'mobile'?"),
    ("-m model=phi-4-mni,phi3-tiny-trained", "model=phi-4-mni,phi3-tiny-trained",
     "unknown model 'phi-4-mni'",
     "did you mean 'phi-4-mini'?; or ./folder, or org/name@revision"),
    # what the recipe has not
    ("device=iphone", "", "recipe quickstart has no device 'iphone'", HAS),
    ("device=ai_pc_intl", "", "recipe quickstart has no device 'ai_pc_intl'",
     f"did you mean 'ai_pc_intel'? {HAS}"),
    ("recipe=mobile backend=openvino", "backend=openvino",
     "recipe mobile has no backend 'openvino'",
     "it has: llamacpp, ort_genai, litert, executorch, qnn, mlx"),
    ("recipe=apple precision=fp32", "precision=fp32", "recipe apple has no precision 'fp32'", None),
    ("-m recipe=mobile,iot backend=openvin", "backend=openvin",
     "recipe mobile and iot has no backend 'openvin'", None),
    ("precision=int44", "", "recipe quickstart has no precision 'int44'",
     "did you mean 'int4'? it has: int4, int8, fp16, fp32"),
    ("device=mac backend=llamacpp", "", "the recipe has no cell with all of these",
     "'phibuild plan' without them shows what it has"),
    ("--only *.nope.*", "", "no cell matches '*.nope.*'",
     "ids look like phi3-tiny-trained.raspberry_pi_5.llamacpp.int4; 'phibuild plan' lists them"),
    ("--skip *.nope.*", "", "no cell matches '*.nope.*'",
     "ids look like phi3-tiny-trained.raspberry_pi_5.llamacpp.int4; 'phibuild plan' lists them"),
    # keys and values
    ("modl=x", "", "unknown key 'modl'", "did you mean 'model'?"),
    ("+foo=1", "", "unknown key 'foo'", ALL_KEYS),
    ("recpie=mobile", "", "unknown key 'recpie'", "did you mean 'recipe'?"),
    ("modle=phi-4", "", "unknown key 'modle'", "did you mean 'model'?"),
    ("devcie=mac", "", "unknown key 'devcie'", "did you mean 'device'?"),
    ("devcies.mac.mlx=[int4]", "", "unknown key 'devcies'", "did you mean 'devices'?"),
    ("precison=int4", "", "unknown key 'precison'", "did you mean 'precision'?"),
    ("mobile", "", "not an override: missing EQUAL at '<EOF>'", "did you mean 'recipe=mobile'?"),
    ("mobil", "", "not an override: missing EQUAL at '<EOF>'", "did you mean 'recipe=mobile'?"),
    ("mac", "", "not an override: missing EQUAL at '<EOF>'", "did you mean 'device=mac'?"),
    ("phi-4", "", None, "did you mean 'model=phi-4'?"),
    ("int4", "", "not an override: missing EQUAL at '<EOF>'", "did you mean 'precision=int4'?"),
    ("a.b=", "", "unknown key 'a'", KEYS),
    ("gates.topp1=1", "", "unknown key 'topp1' in gates", "did you mean 'top1'?"),
    ("evaluation.windows=many", "", "evaluation.windows: must be a whole number, not 'many'", ""),
    ("gates.kl=high", "",
     "gates.kl: a limit is a number, or a mapping of precisions to numbers, not 'high'", ""),
    ("gates.size=8potatoes", "", "gates.size: unknown unit 'potatoes' in '8potatoes'; "
     "use B, KB, MB, GB, KiB, MiB, GiB", ""),
    ("devices.macc.mlx=[int4]", "", "unknown device 'macc'", "did you mean 'mac'?"),
    ("devices.iphone.mlx=[int44]", "", "unknown precision 'int44'", "did you mean 'int4'?"),
    ("devices.iphone.mlxx=[int4]", "", "unknown backend 'mlxx'", "did you mean 'mlx'?"),
    ("gates.kl.int4.x=1", "", "gates.kl: no int4 variant of the recipe is called 'x'",
     "known: Q4_0, int4-asym-g64, int4-b32, int4-cpu-b32, q4-g64, w4a16-g128"),
    ("gates.kl.int5.x=1", "", None, None),
    ("description.x=1", "",
     "description.x cannot be set: description is 'every backend at every precision', "
     "not a mapping", ""),
    ("~devices.mac.mlx.int44", "", "there is no key 'devices.mac.mlx.int44' to delete", CFG),
    ("~devices.mac.mlx.int4=5", "", "the value of devices.mac.mlx.int4 is {}, not 5",
     "~devices.mac.mlx.int4 deletes it whatever it is"),
    ("devices.ai_pc_intel.ort_genai.int8.providr=x", "", "unknown option 'providr' of ort_genai",
     "did you mean 'provider'?"),
    ("devices.2026.mlx=[int4]", "", "unknown device '2026'", DEVICES),
    ("devices.m\u00e4c.mlx=[int4]", "", "unknown device 'm\u00e4c'", "did you mean 'mac'?"),
    ("backends.llamacpp.int4.typ=Q4_0", "", "unknown option 'typ' of llamacpp",
     "did you mean 'type'?"),
    ("evaluation=quik", "", "unknown evaluation 'quik'", "did you mean 'quick'?"),
    ("executor=slrum", "", "unknown executor 'slrum'", "did you mean 'slurm'?"),
    ("executor.kind=slurm", "", "executor.kind cannot be set", "choose executor=NAME"),
    ("executor=slurm executor.kind=[local]", "executor.kind=[local]",
     "executor.kind cannot be set", "choose executor=NAME"),
    ("executor=slurm executor.partitio=x", "executor.partitio=x",
     "unknown key 'partitio' in executor", "did you mean 'partition'?"),
    ("executor=slurm executor.memory=lots", "executor.memory=lots",
     "executor.memory: 'lots' is not a size; write for example '8 GiB'", ""),
    ("executor.partition=x", "", "unknown key 'partition' in executor",
     "known: cores, kind, memory, timeout"),
    ("executor=slurm executor.cores=0", "executor.cores=0",
     "executor.cores: must be greater than 0, not 0", ""),
    ("executor=slurm executor.poll=0.1", "executor.poll=0.1",
     "executor.poll: must be greater than or equal to 1, not 0.1", ""),
    ("executor=slurm executor.timeout=inf", "executor.timeout=inf",
     "executor.timeout: must be less than or equal to 100000000, not inf", ""),
    ("executor=slurm executor.partition=''", "executor.partition=''",
     "executor.partition: must be one line of text, not ''", ""),
    ("executor=slurm +executor.sbatch.mem_per_cpu=1", "+executor.sbatch.mem_per_cpu=1",
     "executor.sbatch.mem_per_cpu: 'mem_per_cpu' is not the long name of an option of sbatch", ""),
    ("executor=slurm +executor.sbatch.partition=x", "+executor.sbatch.partition=x",
     "executor.sbatch.partition: 'partition' cannot be given: write executor.partition", ""),
    ("executor=slurm +executor.sbatch.wrap=x", "+executor.sbatch.wrap=x",
     "executor.sbatch.wrap: 'wrap' cannot be given: phibuild sets it", ""),
    ("executor=slurm +executor.sbatch.mem=[1]", "+executor.sbatch.mem=[1]",
     "executor.sbatch.mem: 'mem' must be text, a number, true or false", ""),
    ("+evaluation=none", "", "evaluation can only be set", "evaluation=NAME"),
    ("~evaluation", "", "evaluation can only be set", "evaluation=NAME"),
    ("evaluation@x=none", "", "a package (@) cannot be given", "evaluation=VALUE"),
    ("evaluation.text=my.txt", "",
     "evaluation.text 'my.txt' cannot be read: No such file or directory",
     "give the path of a text file"),
    ("evaluation.text=.", "", "evaluation.text '.' cannot be read: Is a directory",
     "give the path of a text file"),
    ("~nope", "", "there is no key 'nope' to delete", CFG),
    ("~gates.nope", "", "there is no key 'gates.nope' to delete", CFG),
    ("~devices.iphone", "", "there is no key 'devices.iphone' to delete", CFG),
    ("=x", "", "not an override: no key", "overrides are key=value, +key=value or ~key"),
    ("a.b", "", "not an override: missing EQUAL at '<EOF>'", PLAIN),
    ("hydra.run.dir=x", "", *HYDRA),
    ("hydra/launcher=joblib", "", *HYDRA),
    ("+hydra.x=1", "", *HYDRA),
    ("~hydra.run", "", *HYDRA),
    ("recipes@_global_=iot", "", "unknown key 'recipes'", "did you mean 'recipe'?"),
    ("description=${oc.env:HOME}", "", "the resolver '${oc.env:...}' is refused",
     "write the value itself"),
    ("model=${oc.env:HOME}", "", "the resolver '${oc.env:...}' is refused",
     "write the value itself"),
    ("+_target_=os.system", "", "unknown key '_target_'", ALL_KEYS),
    # models
    ("model=phi-4-mni", "", "unknown model 'phi-4-mni'",
     "did you mean 'phi-4-mini'?; or ./folder, or org/name@revision"),
    ("model=", "", "model needs a name", ""),
    ("model=./nowhere", "", "no such folder: {folder}/nowhere",
     "give a checkpoint folder, a model name or org/name"),
    ("model=./a=b", "", "no such folder: {folder}/a=b",
     "give a checkpoint folder, a model name or org/name"),
    ("model=./m\u00e4c(2)", "", "no such folder: {folder}/m\u00e4c(2)",
     "give a checkpoint folder, a model name or org/name"),
    ("model=./a,b", "", "several values for 'model'", "add -m to sweep: -m model=./a,b"),
    ("model={}", "", "model: names no checkpoint: write path, or base and adapter", ""),
    ("model={path:a,base:b}", "", "model.base: 'path', a whole checkpoint, and 'base' cannot "
     "stand together: an adapter needs base and adapter", ""),
    ("model={pth:a}", "", "unknown key 'pth' in model", "did you mean 'path'?"),
    ("model={path:[a]}", "", "model: the value of 'path' must be text, not a list",
     "model={name: kiosk, path: ./my-phi}"),
    ("model={path:a,path:b}", "", "model: key 'path' stands twice in '{path:a,path:b}'",
     "model={name: kiosk, path: ./my-phi}"),
    ("model={a}", "", "model: a mapping is {key: value, ...}, not '{a}'",
     "model={name: kiosk, path: ./my-phi}"),
    ("-m model={path:a},{pth:a}", "model={path:a},{pth:a}", "unknown key 'pth' in model",
     "did you mean 'path'?"),
    ("-m model={name:a},b", "model={name:a},b",
     "model: names no checkpoint: write path, or base and adapter", ""),
    ("-m model=a,b model.name=c", "model.name=c", "several models have no key of one",
     "write it into the sweep: {name: kiosk, path: a}"),
    ("model.nam=x", "", "unknown key 'nam' in model", "did you mean 'name'?"),
    ("model.path=./nowhere", "", "no such folder: {folder}/nowhere",
     "give a checkpoint folder, a model name or org/name"),
    ("model.base=phi-4", "", "model.base: 'path', a whole checkpoint, and 'base' cannot stand "
     "together: an adapter needs base and adapter", ""),
    ("model=./file", "", "a file, not a checkpoint folder: {folder}/file",
     "give a checkpoint folder, a model name or org/name"),
    ("model='~nobody-here/x'", "",
     "model '~nobody-here/x' cannot be read: Could not determine home directory.", ""),
    ("model=/" + "x" * 300, "", f"model '/{'x' * 300}' cannot be read: File name too long", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "word", "what", "remedy"), WORD_CASES, ids=[case[0][:40] for case in WORD_CASES]
)
@pytest.mark.case(
    "names",
    "recpie=mobile",
    "-",
    "'recipe' is suggested",
)
def test_a_bad_word_is_refused(
    words: str, word: str, what: str | None, remedy: str | None, refuse: Refuse
) -> None:
    refuse.write("file", "x")
    for verb in refuse.verbs:
        (error,) = refuse(verb, *words.split())
        first, _, second = error.partition("\n    ")
        assert first.startswith(f"command line: {word or words}: ")
        if what is not None:
            what = what.replace("{folder}", str(refuse.folder))
            assert first == f"command line: {word or words}: {what}"
        if remedy is not None:
            assert second == remedy


FLAG_CASES: list[tuple[str, str, str]] = [
    ("bild recipe=mobile", "command line: unknown verb 'bild'", "did you mean 'build'?"),
    ("mobile", "command line: unknown verb 'mobile'", "did you mean 'recipe=mobile'?"),
    ("mobil precision=int4", "command line: unknown verb 'mobil'", "did you mean 'recipe=mobile'?"),
    ("iphone", "command line: unknown verb 'iphone'", "did you mean 'device=iphone'?"),
    ("phi-4", "command line: unknown verb 'phi-4'", "did you mean 'model=phi-4'?"),
    ("frobnicate", "command line: unknown verb 'frobnicate'",
     "known: build, check, completion, diff, doctor, imatrix, init, list, plan, report, run, runs, "
     "schema, show, store, toolchain, verify"),
    ("plan --onyl x", "command line: unrecognized arguments: --onyl", "did you mean '--only'?"),
    ("build -x", "command line: unrecognized arguments: -x",
     "'phibuild build --help' shows what there is"),
    ("plan --only", "command line: argument --only: expected one argument",
     "'phibuild plan --help' shows what there is"),
    ("plan --cfg hydra",
     "command line: argument --cfg: invalid choice: 'hydra' (choose from 'job')",
     "'phibuild plan --help' shows what there is"),
    ("plan --config-dir nowhere", "--config-dir nowhere: no such folder", ""),
    ("build --config-dir file", "--config-dir file: no such folder", ""),
    ("list devices --config-dir nowhere", "--config-dir nowhere: no such folder", ""),
    ("list device", "command line: argument what: invalid choice: 'device' (choose from 'recipes', "
     "'devices', 'backends', 'models', 'precisions')",
     "'phibuild list --help' shows what there is"),
    ("toolchain install llamacp", "command line: unknown backend 'llamacp'",
     "did you mean 'llamacpp'?"),
    ("run a b --max-tokens 0", "command line: argument --max-tokens: must be 1 or more, not '0'",
     "'phibuild run --help' shows what there is"),
    ("run nowhere hello", "outputs: no artifact 'nowhere'", "phibuild build first"),
    ("report", "outputs: no runs here", "phibuild build makes one"),
    ("report nowhere", "outputs: no run 'nowhere'", ""),
    ("verify nowhere", "outputs: no run, cell or artifact 'nowhere'", ""),
    ("plan --skip *", "command line: nothing is left to build", "loosen --only or --skip"),
    ("build --only *mac* --skip *mac*", "command line: nothing is left to build",
     "loosen --only or --skip"),
    ("build --output file", "{folder}/file: the output folder cannot be written",
     "choose another: --output DIR"),
    ("build --output file/x/y", "{folder}/file/x/y: the output folder cannot be written",
     "choose another: --output DIR"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "what", "remedy"), FLAG_CASES, ids=[case[0] for case in FLAG_CASES]
)
@pytest.mark.case(
    "names",
    "phibuild mobile, phibuild plan mobile",
    "-",
    "'recipe=mobile' is suggested",
)
def test_a_bad_flag_or_verb_is_refused(words: str, what: str, remedy: str, refuse: Refuse) -> None:
    refuse.write("file", "x")
    what = what.replace("{folder}", str(refuse.folder))
    assert refuse(*words.split()) == [what + (f"\n    {remedy}" if remedy else "")]


def test_a_store_that_cannot_be_written_is_refused(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse.write("file", "x")
    monkeypatch.setenv("PHIBUILD_STORE", str(refuse.folder / "file" / "store"))
    assert refuse("build", "precision=int4") == [
        f"{refuse.folder}/file/store: the store cannot be written: Not a directory\n"
        "    set PHIBUILD_STORE to a folder that can be written"
    ]


@pytest.mark.skipif("os.geteuid() == 0", reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(refuse: Refuse) -> None:
    (refuse.folder / "outputs").mkdir(mode=0o555)
    (error,) = refuse("build", "precision=int4")
    assert error.startswith(f"{refuse.folder}/outputs: the output folder cannot be written")


DEVICE = """\
title: My board
class: iot
memory: 8 GiB
budget: 6 GiB
accelerators: [cpu]
context_length: 4096
sources: {memory: its data sheet, budget: tried, context_length: chosen}
"""
DEVICE_CASES: dict[str, tuple[str, int, str, str]] = {
    "unknown-key": (DEVICE + "colour: red\n", 8, "unknown key 'colour'",
                    "known: accelerators, backends, budget, class, context_length, memory, "
                    "sources, title"),
    "near-key": (DEVICE.replace("budget: 6", "bugdet: 6") + "budget: 1 GB\n", 4,
                 "unknown key 'bugdet'", "did you mean 'budget'?"),
    "missing-key": (DEVICE.replace("budget: 6 GiB\n", ""), 1, "key 'budget' is missing", ""),
    "missing-class": (DEVICE.replace("class: iot\n", ""), 1, "key 'class' is missing", ""),
    "class": (DEVICE.replace("iot", "iott"), 2,
              "class: must be 'mobile', 'iot', 'ai_pc', 'copilot_pc' or 'server', not 'iott'",
              "did you mean 'iot'?"),
    "accelerator": (DEVICE.replace("[cpu]", "[cpu, cudaa]"), 5,
                    "accelerators.1: must be 'cpu', 'cuda', 'directml', 'webgpu', 'vulkan', "
                    "'metal', 'openvino_gpu', 'openvino_npu', 'hexagon_npu', 'xdna_npu' or "
                    "'neural_engine', not 'cudaa'", "did you mean 'cuda'?"),
    "no-accelerator": (DEVICE.replace("[cpu]", "[]"), 5,
                       "accelerators: must not be empty, not []", ""),
    "accelerator-word": (DEVICE.replace("[cpu]", "cpu"), 5,
                         "accelerators: must be a list, not 'cpu'", ""),
    "negative-budget": (DEVICE.replace("6 GiB", "-6"), 4,
                        "budget: a size is a whole number of bytes, zero or more, not -6", ""),
    "negative-size": (DEVICE.replace("6 GiB", "-6 GiB"), 4,
                      "budget: '-6 GiB' is not a size; write for example '8 GiB'", ""),
    "zero-budget": (DEVICE.replace("6 GiB", "0"), 4, "budget: must be greater than 0, not 0", ""),
    "potatoes": (DEVICE.replace("8 GiB", "8 potatoes"), 3,
                 "memory: unknown unit 'potatoes' in '8 potatoes'; "
                 "use B, KB, MB, GB, KiB, MiB, GiB", ""),
    "context": (DEVICE.replace("4096", "long"), 6,
                "context_length: must be a whole number, not 'long'", ""),
    "context-zero": (DEVICE.replace("4096", "0"), 6,
                     "context_length: must be greater than 0, not 0", ""),
    "context-negative": (DEVICE.replace("4096", "-1"), 6,
                         "context_length: must be greater than 0, not -1", ""),
    "context-absurd": (DEVICE.replace("4096", "10000001"), 6, "context_length: no Phi has a "
                       "context of more than 10,000,000 tokens, not 10000001", ""),
    "memory-no-unit": (DEVICE.replace("8 GiB", "8"), 3,
                       "memory: 8 has no unit; write for example '8 GiB'", ""),
    "memory-text-no-unit": (DEVICE.replace("8 GiB", "'8'"), 3,
                            "memory: '8' has no unit; write for example '8 GiB'", ""),
    "memory-fraction-no-unit": (DEVICE.replace("8 GiB", "7.5"), 3,
                                "memory: 7.5 has no unit; write for example '7.5 GiB'", ""),
    "memory-mib-no-unit": (DEVICE.replace("8 GiB", "8192"), 3,
                           "memory: 8192 has no unit; write for example '8192 MiB'", ""),
    "budget-no-unit": (DEVICE.replace("6 GiB", "6"), 4,
                       "budget: 6 has no unit; write for example '6 GiB'", ""),
    "memory-tiny": (DEVICE.replace("8 GiB", "8 KiB"), 3,
                    "memory: less than 1 MiB holds no model, not '8 KiB'", ""),
    "memory-absurd": (DEVICE.replace("8 GiB", "8000 TiB"), 3,
                      "memory: no device has more than 1 PiB, not '8000 TiB'", ""),
    "budget-beyond-memory": (DEVICE.replace("6 GiB", "9 GB"), 4,
                             "budget: more than the device's memory (9 GB of 8 GiB (8.59 GB)), "
                             "not '9 GB'", ""),
    "source-missing": (DEVICE.replace("budget: tried, ", ""), 7, "key 'sources.budget' is missing",
                       ""),
    "source-empty": (DEVICE.replace("{memory: its data sheet, budget: tried",
                                    "\n  {memory: its data sheet,\n  budget: '  '"), 9,
                     "sources.budget: must not be empty: say where the figure comes from, "
                     "not '  '", ""),
    "source-null": (DEVICE.replace("context_length: chosen", "context_length: "), 7,
                    "sources.context_length: must be text, not None", ""),
    "source-further": (DEVICE.replace("context_length: chosen",
                                      "context_length: x, accelerators: [a]"), 7,
                       "sources.accelerators: must be text, not ['a']", ""),
    "option": (DEVICE + "backends:\n  llamacpp:\n    int4: {typ: Q4_0}\n", 10,
               "unknown option 'typ' of llamacpp", "did you mean 'type'?"),
    "option-unused": (DEVICE + "backends:\n  mlx:\n    int4: {grup_size: 64}\n", 10,
                      "unknown option 'grup_size' of mlx", "did you mean 'group_size'?"),
    "option-value": (DEVICE + "backends:\n  llamacpp:\n    int4: {type: Q4}\n", 10,
                     f"option 'type' of llamacpp: must be {TYPES}, not 'Q4'",
                     "did you mean 'Q4_0'?"),
    "backend": (DEVICE + "backends:\n  lamacpp:\n    int4: {type: Q4_0}\n", 9,
                "unknown backend 'lamacpp'", "did you mean 'llamacpp'?"),
    "precision": (DEVICE + "backends:\n  llamacpp:\n    int44: {type: Q4_0}\n", 10,
                  "backends.llamacpp.int44: must be 'int4', 'int8', 'fp16' or 'fp32', not 'int44'",
                  "did you mean 'int4'?"),
    "name": ("name: x\n" + DEVICE, 1, "unknown key 'name'",
             "the file's name is the name; remove it"),
    "empty": ("", 1, "the file is empty", ""),
    "syntax": ("title: [\n", 2, "not valid YAML: while parsing a flow node did not find expected "
               "node content", QUOTES),
    "target": (DEVICE + "_target_: x\n", 8, "'_target_' is refused", DATA),
    "environment": (DEVICE.replace("8 GiB", "${oc.env:MEM}"), 3,
                    "the resolver '${oc.env:...}' is refused", DATA),
}  # fmt: skip


@pytest.mark.parametrize("case", DEVICE_CASES)
@pytest.mark.case(
    "building",
    "device files: memory: 4, a budget beyond it, an absurd context, no source",
    "-",
    "errors with file and line",
)
def test_a_bad_device_file_is_refused(case: str, refuse: Refuse) -> None:
    text, line, what, remedy = DEVICE_CASES[case]
    refuse.write("conf/device/board.yaml", text)
    refuse.write("recipes/mine.yaml", "devices:\n  board: {llamacpp: [int4]}\n")
    expected = f"conf/device/board.yaml:{line}: {what}" + (f"\n    {remedy}" if remedy else "")
    for verb in refuse.verbs:
        assert refuse(verb, "recipe=mine") == [expected]


def test_errors_of_a_device_file_and_of_the_recipe_come_together(refuse: Refuse) -> None:
    refuse.write("conf/device/board.yaml", "title: x\nmemory: -1\n")
    refuse.write("recipes/mine.yaml", "devices:\n  board: {mlx: [int4]}\n  macc: {mlx: [int4]}\n")
    errors = [error.splitlines()[0] for error in refuse("plan", "recipe=mine")]
    assert errors == [
        "conf/device/board.yaml:1: key 'class' is missing",
        "conf/device/board.yaml:2: memory: a size is a whole number of bytes, zero or more, not -1",
        "conf/device/board.yaml:1: key 'budget' is missing",
        "conf/device/board.yaml:1: key 'accelerators' is missing",
        "conf/device/board.yaml:1: key 'context_length' is missing",
        "conf/device/board.yaml:1: key 'sources' is missing",
        "recipes/mine.yaml:3: unknown device 'macc'",
    ]


def test_errors_below_an_unknown_device_are_shown_too(refuse: Refuse) -> None:
    refuse.write(
        "recipes/mine.yaml",
        "devices:\n  macc:\n    llamacpp:\n      int4: {typ: Q4_0}\n      int3:\n"
        "    openvio: [int8]\n",
    )
    errors = [error.splitlines()[0] for error in refuse("plan", "recipe=mine")]
    assert errors == [
        "recipes/mine.yaml:2: unknown device 'macc'",
        "recipes/mine.yaml:4: unknown option 'typ' of llamacpp",
        "recipes/mine.yaml:5: unknown precision 'int3'",
        "recipes/mine.yaml:6: unknown backend 'openvio'",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("evaluation", "{windows: 3}"), ("executor", "{cores: 1}"), ("allow_nonfinite", "true")],
)
def test_recipes_of_one_run_that_ask_for_different_runs(
    key: str, value: str, refuse: Refuse
) -> None:
    refuse.write("recipes/one.yaml", OK)
    refuse.write("recipes/two.yaml", f"{OK}{key}: {value}\n")
    assert refuse("plan", "-m", "recipe=one,two") == [
        f"recipes/two.yaml:3: recipes one and two differ in {key}, which a run has one of\n"
        "    build them one after the other"
    ]


# file below conf/, text, words, line, what, remedy
CONF_CASES: dict[str, tuple[str, str, str, int, str, str]] = {
    "backend-precision": ("backend/llamacpp.yaml", "int4: {}\nint44: {}\n", "precision=int4", 2,
                          "unknown precision 'int44'", "did you mean 'int4'?"),
    "backend-options": ("backend/llamacpp.yaml", "int4: Q4_0\n", "precision=int4", 1,
                        "options of int4 must be a mapping", ""),
    "backend-option": ("backend/pytorch.yaml", "int4:\n  groupsize: 4\n", "precision=int4", 2,
                       "unknown option 'groupsize' of pytorch", "did you mean 'group_size'?"),
    "evaluation-key": ("evaluation/standard.yaml", "# mine\nwindws: 3\n", "precision=int4", 2,
                       "unknown key 'windws' in evaluation", "did you mean 'windows'?"),
    "evaluation-type": ("evaluation/mine.yaml", "windows: many\n", "evaluation=mine", 1,
                        "evaluation.windows: must be a whole number, not 'many'", ""),
    "evaluation-environment": ("evaluation/mine.yaml", "text: ${oc.env:HOME}\n", "evaluation=mine",
                               1, "the resolver '${oc.env:...}' is refused", DATA),
    "executor-kind": ("executor/mine.yaml", "cores: 3\nkind: pbs\n", "executor=mine", 2,
                      "executor.kind: unknown kind 'pbs'", "known: local, slurm"),
    "executor-sbatch": ("executor/mine.yaml", 'kind: slurm\nsbatch:\n  comment: "a\\nb"\n',
                        "executor=mine", 3,
                        "executor.sbatch.comment: 'comment' must be one line of text", ""),
    "model-key": ("model/my.yaml", "title: x\nlicense: MIT\nrepo: a/b\nurl: x\n", "model=my", 4,
                  "unknown key 'url'",
                  "known: builtin, config, license, repo, revision, title, tokenizer_bytes"),
    "model-no-repo": ("model/my.yaml", "title: x\nlicense: MIT\n", "model=my", 1,
                      "key 'repo' is missing", "write repo: org/name of the Hub"),
    "model-builtin": ("model/my.yaml", "title: x\nlicense: MIT\nbuiltin: nowhere\n", "model=my", 3,
                      "no such folder: {data}/nowhere",
                      "give a checkpoint folder, a model name or org/name"),
    "model-figure": ("model/my.yaml",
                     "title: x\nlicense: MIT\nrepo: a/b\nconfig:\n  hidden_size: big\n"
                     "  num_attention_heads: 2\n", "model=my", 5,
                     "hidden_size must be a whole number greater than 0, not 'big'",
                     "compare it with the config.json of the original checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONF_CASES)
def test_a_bad_configuration_file_is_refused(case: str, refuse: Refuse) -> None:
    name, text, word, line, what, remedy = CONF_CASES[case]
    refuse.write(f"conf/{name}", text)
    what = what.replace("{data}", str(ROOT / "phibuild" / "data"))
    expected = f"conf/{name}:{line}: {what}" + (f"\n    {remedy}" if remedy else "")
    assert refuse("plan", word) == [expected]


def test_files_beside_recipes_do_not_become_configuration(refuse: Refuse) -> None:
    """Hydra's search path holds the folder of recipes/, the working directory."""
    refuse.write("phibuild.yaml", "what: ever\n")
    refuse.write("evaluation/standard.yaml", "what: ever\n")
    refuse.write("recipes/mine.yaml", "gats: 1\n" + OK)
    assert len(refuse("plan", "recipe=mine")) == 1


SUBPROCESS_CASES = [
    ("build recipe=mobil", "error: command line: recipe=mobil: unknown recipe 'mobil'\n"
     "    did you mean 'mobile'?\n"),
    ("recipe=mine",
     "error: recipes/mine.yaml:3: gates.kl: a limit must be greater than 0, not -1\n"),
    ("-m precision=int44,int4", "error: command line: precision=int44,int4: recipe quickstart has "
     "no precision 'int44'\n    did you mean 'int4'? it has: int4, int8, fp16, fp32\n"),
    ("build model=./nowhere", "error: command line: model=./nowhere: no such folder: "
     "{folder}/nowhere\n    give a checkpoint folder, a model name or org/name\n"),
    ("bild", "error: command line: unknown verb 'bild'\n    did you mean 'build'?\n"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"), SUBPROCESS_CASES, ids=[case[0] for case in SUBPROCESS_CASES]
)
def test_the_command_itself_refuses(words: str, expected: str, phibuild: CommandLine) -> None:
    (phibuild.folder / "recipes").mkdir()
    (phibuild.folder / "recipes" / "mine.yaml").write_text(OK + "gates: {kl: -1}\n")
    before = snapshot(phibuild.folder)
    done = phibuild(*words.split())
    check_refusal(done.returncode, done.stdout, done.stderr)
    assert done.stderr == expected.replace("{folder}", str(phibuild.folder))
    assert snapshot(phibuild.folder) == before


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_no_network_for_a_hub_model(verb: str, phibuild: CommandLine, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before, started = snapshot(phibuild.folder), time.monotonic()
    done = phibuild(
        verb,
        "model=someone/my-phi@main",
        "precision=int4",
        HF_ENDPOINT=f"http://127.0.0.1:{port}",
        HF_HOME=str(tmp_path / "hub"),
        HF_HUB_CACHE=str(tmp_path / "hub" / "cache"),
    )
    assert time.monotonic() - started < 15
    (error,) = check_refusal(done.returncode, done.stdout, done.stderr)
    first, second = error.splitlines()
    assert "someone/my-phi@main: the Hub cannot be reached and the model is not in its" in first
    assert second.strip() == (
        "check the network (HF_ENDPOINT, proxy), or give a folder: model=./my-phi"
    )
    assert snapshot(phibuild.folder) == before
