"""Texts by which two tokenizers are compared. Standard library only.

Where tokenizers that should be equal differ, it is at special tokens, at white space, at letters
beyond ASCII and where a rule for one language was written by hand: each has texts of its own here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SPECIAL = "special"
"""An added token right between words."""
SPECIAL_SPACED = "special_spaced"
"""An added token with white space on both sides."""
CHAT = "chat"
"""A conversation as the chat template writes it."""

CONVERSATION = (
    {"role": "system", "content": "You are a helpful assistant.\nAnswer in one line."},
    {"role": "user", "content": "  Why is the sky blue?\n\n\tAnd the sea?"},
    {"role": "assistant", "content": "Light scatters: def f(x):\n    return x + 1"},
)
"""What the template is tried with; a template that refuses a system's message gets the rest."""

_SPACES = (
    " ",
    "  ",
    "        ",
    "\n",
    "\n\n\n",
    "\t",
    "\r\n",
    " leading",
    "   three before, two after  ",
    "trailing ",
    "a b  c   d    e     f      g       h        i",
    "a\tb\t\tc\n\td\n\n\te",
    "first\nsecond\n\nfourth\n\n\n\nend\n",
    "one\r\ntwo\r\n\r\nthree\r\n",
    "old\rMac",
    "a\u00a0b \u00a0 c\u00a0\u00a0d",  # no-break spaces
    "thin\u2009en\u2002em\u2003wide\u3000zero\u200bwidth\u2060joiner",
    "next\u0085line\u2028separator\u2029paragraph",
    "form\ffeed\vtab",
    " \n \n  \t \n",
    "\u2581lower one eighth block \u2581\u2581",  # sentencepiece's sign of a space
    "\ufeffbyte order mark",
)
_SCRIPTS = (
    "The quick brown fox doesn't jump; it's we'll, I'd, THEY'RE, you've, I'M.",
    "Fran\u00e7ais \u00e0 No\u00ebl, \u0153uvre; Ma\u00df, \u00c4rger; ma\u00f1ana \u00bfs\u00ed?",
    "cafe\u0301 and caf\u00e9, A\u030a and \u00c5, \ufb01 \u2460 \u00bd \u1e9b\u0323",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0401\u043b\u043a\u0430.",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5",
    "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u0bb5\u0ba3\u0b95\u0bcd\u0b95\u0bae\u0bcd \u0b89\u0bb2\u0b95\u0bae\u0bcd",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u300a\u7ea2\u697c\u68a6\u300b",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u3001\u30ab\u30ab\u30ca \uff8a\uff9d\uff76\uff78",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4 \u1112\u1161\u11ab",
    "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0 \u0532\u0561\u0580\u0565\u0582",
    "Ti\u1ebfng Vi\u1ec7t, \u0130stanbul'da \u0131\u015f\u0131k, I\u0307",
    "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8 \U00020000\U0002a6d6 \U00010330\U00010331",
)
_EMOJI = (
    "\U0001f600",
    "a\U0001f600b \U0001f44d\U0001f3fd c",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308",
    "\U0001f1eb\U0001f1f7\U0001f1ef\U0001f1f5 1\ufe0f\u20e3 \u2764\ufe0f \u2639",
)
_DIGITS = (
    "0 1 12 123 1234 12345 123456 1234567890",
    "3.14159, -2.5e-10, 1,000,000.00, 0x1F, 1_000",
    "2024-10-31T23:59:59Z, +49 (0)30 1234-5678, $99.99, 50%",
    "x1y22z333 \u0661\u0662 \u0967\u0968\u0969 \uff11\uff12\uff13 \u00b2\u00b3 \u2167",
)
_PUNCTUATION = (
    "!?...---***###///\\\\\\ @@ && || == != <= >= << >> ++ -- -> => :: ;;",
    '"quoted" \u2018single\u2019 \u201cdouble\u201d \u00ab guillemets \u00bb \u2013 \u2014 \u2026',
    "<s> </s> <unk> [INST] <0x0A> {{ braces }} <tag attr='x'/> &amp; http://a.b/c?d=e&f#g",
    "camelCase PascalCase snake_case SCREAMING_SNAKE kebab-case iOS XMLHttpRequest",
)
_CODE = (
    "def fib(n: int) -> int:\n    if n < 2:\n        return n\n"
    "    return fib(n - 1) + fib(n - 2)\n\n\nprint([fib(i) for i in range(10)])  # 55\n",
    "class A(B):\n\t'''Tabs.'''\n\n\tdef __init__(self, *args):\n\t\tsuper().__init__()\n",
    '#include <stdio.h>\r\n\r\nint main(int argc, char **argv) {\r\n  printf("%d\\n", argc);'
    "\r\n  return 0; /* done */\r\n}\r\n",
    '{\n  "key": [1, 2.5, null],\n  "nested": {"a": "b\\u00e9"}\n}',
    "SELECT * FROM t WHERE a='b' AND c<>1;\n-- comment\n| a | b |\n|---|---|\n",
)


@dataclass(frozen=True)
class Probe:
    """A text, and what it is a trial of."""

    kind: str
    text: str


def probes(added: Iterable[str], chat: str | None) -> list[Probe]:
    """Return all probes for a tokenizer with these added tokens and this rendered conversation."""
    found = [Probe("empty", "")]
    for token in added:
        found.append(Probe(SPECIAL, f"left{token}right"))
        found.append(Probe(SPECIAL_SPACED, f"left {token} right\n{token}\n\nend {token}  {token}"))
    for kind, texts in (
        ("white space", _SPACES),
        ("script", _SCRIPTS),
        ("emoji", _EMOJI),
        ("digits", _DIGITS),
        ("punctuation", _PUNCTUATION),
        ("code", _CODE),
    ):
        found += [Probe(kind, text) for text in texts]
    if chat is not None:
        found.append(Probe(CHAT, chat))
    return found
