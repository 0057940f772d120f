"""Bundles in LiteRT-LM; runs in the vendor's environment.

`python bundles_vendor.py` reads {"bundle", "texts", "messages", "prompt", "tokens"} from standard
input and prints as JSON the ids of the texts, the stop ids, the messages as the chat template
renders them, and how the bundle goes on from the prompt, greedily.
"""

from __future__ import annotations

import json
import sys
import tempfile


def main() -> None:
    import litert_lm

    asked = json.load(sys.stdin)
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
    with (
        tempfile.TemporaryDirectory() as cache,
        litert_lm.Engine(
            asked["bundle"], backend=litert_lm.Backend.CPU(thread_count=2), cache_dir=cache
        ) as engine,
    ):
        ids = [list(engine.tokenize(text)) for text in asked["texts"]]
        stops = sorted(token for one in engine.eos_token_ids for token in one)
        *before, last = asked["messages"]
        with engine.create_conversation(messages=before) as conversation:
            rendered = conversation.render_message_to_string(last)
        with engine.create_session(
            apply_prompt_template=False,
            sampler_config=greedy,
            max_output_tokens=asked["tokens"],
        ) as session:
            session.run_prefill([asked["prompt"]])
            said = session.run_decode().texts[0]
    print("RESULT " + json.dumps({"ids": ids, "stops": stops, "rendered": rendered, "said": said}))


if __name__ == "__main__":
    main()
