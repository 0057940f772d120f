"""Text as it is made: the pieces add up to the text of all ids. Real tokenizers: slow/test_run."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from phibuild.worker.generation import TextStream
from phibuild.worker.tokenizer_json import byte_tokens

# As sentencepiece has it: a space before each word, a token a byte, and one without a text.
WORDS = {0: "", 1: " a", 2: "b", 3: "   ", 4: " ", 5: "é"}
FIRST_BYTE = 100


def decode(ids: Sequence[int]) -> str:
    """Decode as the tokenizers library does: a row of bytes is text or none, and the space before
    the first word goes."""
    text, row = "", b""
    for token in [*ids, None]:
        if token is not None and token >= FIRST_BYTE:
            row += bytes([token - FIRST_BYTE])
            continue
        try:
            text += row.decode()
        except UnicodeDecodeError:
            text += "\N{REPLACEMENT CHARACTER}" * len(row)
        row = b""
        text += "" if token is None else WORDS[token]
    return text.removeprefix(" ")


HELD = frozenset(range(FIRST_BYTE, FIRST_BYTE + 256))
EMOJI = [FIRST_BYTE + byte for byte in "😀".encode()]
TOKENS = st.lists(
    st.sampled_from([[0], [1], [2], [3], [4], [5], EMOJI, EMOJI[:2], [FIRST_BYTE + 65]]),
    max_size=12,
).map(lambda rows: [token for row in rows for token in row])


@given(ids=TOKENS)
def test_pieces_add_up(ids: list[int]) -> None:
    stream = TextStream(decode, held=HELD)
    assert "".join([*map(stream.add, ids), stream.end()]) == decode(ids)


@given(context=TOKENS, ids=TOKENS)
def test_pieces_go_on_from_their_context(context: list[int], ids: list[int]) -> None:
    context = [*context, 2]  # its text ends with a character
    stream = TextStream(decode, context, HELD)
    assert decode(context) + "".join([*map(stream.add, ids), stream.end()]) == decode(context + ids)


def test_text_comes_as_soon_as_it_is_certain() -> None:
    stream = TextStream(decode, held=HELD)
    assert [stream.add(token) for token in (1, 3, 2, *EMOJI, 1, 0)] == (
        ["a", "   ", "b", "", "", "", "", "😀 a", ""]
    )
    assert stream.end() == ""


def test_only_a_window_is_decoded() -> None:
    longest = 0

    def counting(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    stream = TextStream(counting)
    for _ in range(1000):
        stream.add(1)
    assert longest <= 3


def test_byte_tokens() -> None:
    vocabulary = {"<0x0A>": 13, "<0xFF>": 258, "<0x0a>": 7, "0x0A": 8, "a<0x0A>": 9}
    assert byte_tokens(vocabulary) == {13, 258}
