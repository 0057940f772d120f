"""`phibuild run` inside a toolchain: the prompt's text, tokens one by one, and text again.

Every backend's text is made here from ids, by its own tokenizer: the vendors' streamers decode ids
in parts, and a part is not the same text alone. openvino-genai's and mlx-lm's begin anew after each
new line, where sentencepiece drops the first space of the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from phibuild.worker.chat import ChatError
from phibuild.worker.interface import Runtime, Speaker, Worker
from phibuild.worker.protocol import Report
from phibuild.worker.requests import GenerateRequest

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def generate(worker: Worker, request: GenerateRequest, report: Report) -> None:
    """Send the text that follows the request's prompt, as it is made.

    The request: {"verb": "generate", "folder": artifact, "threads": n, "prompt": text, "system":
    text or null, "raw": whether the prompt is taken as it is, "template": name or null,
    "max_tokens": n}. Events: a stage for what the user should know; text; and the item "generate"
    {"prompt_tokens", "tokens", "generation_seconds"}, from the prompt's pass to the last token. It
    fails as item "prompt" if the prompt is at fault.
    """
    try:
        speaker = worker.load(Path(request["folder"]), request["threads"]).native()
        ids, context = _prompt(speaker, request, report)
    except ChatError as error:
        report.failed("prompt", error)
        return
    except Exception as error:  # an artifact that its runtime cannot load
        report.failed("generate", error)
        return
    stream = TextStream(speaker.decode, context, speaker.byte_tokens())
    count, started = 0, time.perf_counter()
    try:
        for token in speaker.tokens(ids, request["max_tokens"]):
            count += 1
            _send(report, stream.add(token))
        seconds = time.perf_counter() - started
        _send(report, stream.end())
    except Exception as error:  # of the vendor's runtime
        report.failed("generate", error)
        return
    result = {"prompt_tokens": len(ids), "tokens": count, "generation_seconds": seconds}
    report.item("generate", result)


def _prompt(
    speaker: Speaker, request: GenerateRequest, report: Report
) -> tuple[list[int], list[int]]:
    """Return the prompt's ids, and those of them that the generated text goes on from: all for a
    plain prompt, none for a chat, whose answer is a text of its own."""
    form, text = speaker.chat_format(), request["prompt"]
    raw = request["raw"]
    if not raw and not form.templates:
        if request["system"] is not None or request["template"] is not None:
            raise ChatError("this artifact has no chat template")
        report.stage("this artifact has no chat template: the prompt is taken as it is")
        raw = True
    if not raw:
        messages = [{"role": "user", "content": text}]
        if request["system"] is not None:
            messages.insert(0, {"role": "system", "content": request["system"]})
        # The template writes what is to be at the start, as for Transformers.
        ids = speaker.encode(form.render(messages, request["template"]), special=False)
        if not ids:
            raise ChatError("the chat template makes no text of this prompt")
        return ids, []
    start = form.special.get("bos_token")
    ids = speaker.encode(text, special=not (start and text.startswith(start)))
    if not ids:
        raise ChatError("the prompt is empty, and this model's tokenizer adds no first token")
    return ids, ids


def greedy(
    runtime: Runtime, ids: Sequence[int], max_tokens: int, ends: Collection[int]
) -> Iterator[int]:
    """Yield the tokens that a runtime prefers after `ids`, one by one: up to the first of `ends`,
    which is not among them, or `max_tokens`."""
    logits = runtime.logits(np.asarray(ids, dtype=np.int64))
    for number in range(max_tokens):
        token = int(logits[-1].argmax())
        if token in ends:
            return
        yield token
        if number + 1 < max_tokens:
            logits = runtime.extend(np.array([token]))


def _send(report: Report, text: str) -> None:
    if text:
        report.text(text)


class TextStream:
    """Turns ids into text as they come: the pieces add up to the text of all of them at once.

    That text goes on from the ids in `context`: only with them does the first id keep its space.
    It waits where a character is not complete; and as long as `held` tokens come, since the
    tokenizers library takes a row of byte tokens as a whole, to be characters or none.

    Ids are decoded from some way back only, to where the text was complete and was not empty:
    sentencepiece has dropped its first space by then.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        context: Sequence[int] = (),
        held: frozenset[int] = frozenset(),
    ) -> None:
        self._decode, self._held = decode, held
        self._ids = list(context)
        self._sent = len(self._ids)
        self._text = decode(self._ids) if self._ids else ""

    def add(self, token: int) -> str:
        """Return the text that `token` completes, which may be none."""
        self._ids.append(token)
        if token in self._held:
            return ""
        text = self._decode(self._ids)
        if text.endswith(_REPLACEMENT):
            return ""
        piece = text[len(self._text) :]
        last = self._ids[self._sent :]
        alone = self._decode(last)
        if alone:
            self._ids, self._text = last, alone
        else:
            self._text = text
        self._sent = len(self._ids)
        return piece

    def end(self) -> str:
        """Return what is left: the start of a character that was never completed."""
        return self._decode(self._ids)[len(self._text) :] if self._ids else ""
