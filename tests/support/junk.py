"""hypothesis strategies for damaged input: values, mappings, YAML text, overrides."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st

WORDS = (
    "model", "devices", "gates", "kl", "defaults", "_self_", "hydra", "mac", "mlx", "int4", "int5",
    "llamacpp", "type", "evaluation", "windows", "text", "executor", "memory", "null", "phi-4",
    "quickstart", "raspberry_pi_5", "openvino", "group_size", "fp16", "Q4_0", "imatrix", "embedded",
    "???", "${model}", "${nope}", "${oc.env:HOME}", "8 GiB", "-1 GB", "<<", ".", "a.b", "", " ",
    "_target_", "yes", "0b_", "1e400", "2020-99-99", "é", "x" * 300, "~", "/", "[", "recipes",
    "\0", "\ud7ff", "~nobody/x", "*", "@", "none", "../..", "phi3", "longrope", "yarn", "1_000",
)  # fmt: skip
# Where whole numbers meet sizes, floats and loops.
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    31,
    255,
    10**6,
    2**31,
    2**63,
    10**12,
    10**30,
    10**400,
    0.5,
    1e-320,
    1e308,
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(), st.floats(),
    st.sampled_from(WORDS), st.text(max_size=6), st.dates(),
)  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), SCALARS), inner, max_size=3),
    ),
    max_leaves=6,
)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(), st.floats(),
        st.sampled_from(WORDS), st.text(max_size=6),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip
YAML_TEXT = st.text(alphabet="ab:-[]{},&*!#'\"|>%@$?\n\t  1.~<_", max_size=40)


def mutate(value: Any, chance: random.Random, junk: list[Any]) -> Any:
    """Return a copy in which all of `junk` has come in: each piece renames a key, replaces a
    value, or makes one go."""
    junk = list(junk)
    for _ in range(len(junk)):
        value = _mutate_once(value, chance, junk)
    return value


def _mutate_once(value: Any, chance: random.Random, junk: list[Any]) -> Any:
    if not junk or not isinstance(value, (dict, list)) or not value or chance.random() < 0.15:
        return junk.pop() if junk else value
    copy = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    key = chance.choice(list(copy))
    what = chance.random()
    if what < 0.15:
        del copy[key]
    elif what < 0.35 and isinstance(value, dict):
        word = junk.pop()
        copy[word if isinstance(word, (str, int, float)) else str(word)] = copy.pop(key)
    else:
        copy[key] = _mutate_once(copy[key], chance, junk)
    return copy if isinstance(value, dict) else list(copy.values())


def cut_or_flip(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes with one changed, some doubled, or the end gone."""
    place = chance.randrange(len(data))
    what = chance.random()
    if what < 0.4:
        return data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]
    if what < 0.7:
        return data[:place]
    return data[:place] + data[max(0, place - chance.randrange(1, 200)) :]


_KEYS = (
    "recipe", "model", "device", "backend", "precision", "evaluation", "executor", "gates.kl",
    "model.name", "model.path", "model.base", "allow_nonfinite",
    "evaluation.windows", "evaluation.text", "executor.memory", "executor.cores", "gates",
    "devices.mac.mlx", "devices.raspberry_pi_5.llamacpp", "backends.llamacpp.int4.type",
    "executor.timeout", "description", "hydra.run.dir", "devices", "devices.mac", "a", "a.b",
    "recipes@x", "evaluation@x", "defaults", "_target_", "x/y", "",
)  # fmt: skip
_RIGHT = (
    "quickstart", "iot", "int4", "mac", "mlx", "none", "quick", "local", "1", "0", "-1", "1e400",
    "{path:phi-4,name:a}", "{base:a}", "{}", "1.10", "a b (2)=c",
    "8GiB", "null", "true", "[int4]", "[int4,int8]", "{int4:{}}", "{int4:{type:Q4_0}}", "int4,int8",
    "glob(*)", "glob(", "choice(a,b)", "range(0,3)", "range(0,1e9)", "sort(a)", "shuffle(1,2)",
    "interval(0,1)", "int(3)", "str(x)", "'a b'", "'", '"', "${model}", "${oc.env:HOME}", "$",
    "[", "]", "{", "}", "{a", "a:b", ",", "\\", "\\,", "é", "x" * 300, "./nowhere", "", " ", "\t",
    "10" * 300, "0x", ".nan", "{a:{b:{c:d}}}", "[[[]]]", "~/x", "~nobody/x", "a=b",
)  # fmt: skip
OVERRIDES = st.one_of(
    st.builds(
        lambda sign, key, equals, value: f"{sign}{key}{equals}{value}",
        st.sampled_from(["", "", "", "", "+", "++", "~"]),
        st.sampled_from(_KEYS),
        st.sampled_from(["=", "=", "=", "=", "", "=="]),
        st.one_of(
            st.sampled_from(_RIGHT),
            st.lists(st.sampled_from(_RIGHT), min_size=2, max_size=3).map("".join),
        ),
    ),
    st.text(alphabet="ab=.,[]{}()~+'\"\\$:@/* 1é", max_size=12),
)
