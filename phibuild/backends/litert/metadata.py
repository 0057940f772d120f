"""What a LiteRT-LM bundle says besides model and tokenizer: LlmMetadata of litert-lm-builder."""

from __future__ import annotations

from litert_lm_builder.runtime.proto import llm_metadata_pb2, llm_model_type_pb2

from phibuild.worker.tokenizer_check import Facts

_TEMPLATE = "default"
_CONTENT_AS_TEXT = (
    "{%- set all = namespace(messages=[], text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set all.text = message['content'] -%}"
    "{%- else -%}{%- set all.text = '' -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{%- set all.text = all.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set all.messages = all.messages + [dict(message, content=all.text)] -%}"
    "{%- endfor -%}{%- set messages = all.messages %}"
)
"""What goes before a chat template: LiteRT-LM gives it the content of a message as a list of parts,
and Phi's templates take it as a text."""


def metadata(facts: Facts, context: int) -> bytes:
    """Return the metadata of a bundle whose cache holds `context` tokens: the ids that end
    generation, the chat template, what Transformers puts before a text by itself.

    Stops are ids alone: litert-torch adds texts that it reads off a rendered template. LiteRT-LM
    puts a start token before a conversation too, where Transformers has what the template says and
    nothing more: with a template there is none.
    """
    document = llm_metadata_pb2.LlmMetadata(max_num_tokens=context)
    if facts.start and _TEMPLATE not in facts.templates:
        document.start_token.token_ids.ids.extend(facts.start)
    for token in facts.stops:
        document.stop_tokens.add().token_ids.ids.append(token)
    pad = facts.special.get("pad")
    if pad is not None:
        document.pad_token.token_ids.ids.append(pad)
    if _TEMPLATE in facts.templates:
        document.jinja_prompt_template = _CONTENT_AS_TEXT + facts.templates[_TEMPLATE]
    generic = llm_model_type_pb2.GenericModel()
    document.llm_model_type.CopyFrom(llm_model_type_pb2.LlmModelType(generic_model=generic))
    data: bytes = document.SerializeToString(deterministic=True)
    return data


def stops(data: bytes) -> list[int]:
    """Return the ids that end generation, of a bundle's metadata."""
    document = llm_metadata_pb2.LlmMetadata.FromString(data)
    return [token for one in document.stop_tokens for token in one.token_ids.ids]


def start(data: bytes) -> list[int]:
    """Return the ids that go before a text."""
    return list(llm_metadata_pb2.LlmMetadata.FromString(data).start_token.token_ids.ids)
