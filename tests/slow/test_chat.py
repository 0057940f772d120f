"""Chat templates: rendered as Transformers renders them, in every toolchain."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phibuild.backends.registry import SHIPPED
from support import templates, warm
from support.checkpoints import TOKENIZERS

PECULIAR = """
{%- set ns = namespace(turns=0, seen=[]) %}
    {% for message in messages %}
        {%- if message.role == 'tool' %}{% continue %}{% endif %}
        {%- set ns.turns = ns.turns + 1 %}
  {{ bos_token }}{{ message | tojson }}{{ message.content | tojson(indent=1) }}
        {%- if loop.first and message['role'] == 'system' %}[{{ message.content.strip() }}]
        {% endif %}
    {% endfor %}
{{ ns.turns }} {{ dict(a=1) }} {{ dict.fromkeys('ab') }} {{ strftime_now('%Y') | length }}
{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ mask_token is defined }}{{ tools is none }}
{% generation %} kept {% endgeneration %}
{%- for n in range(9) %}{% if n > 2 %}{% break %}{% endif %}{{ n }}{% endfor %}
{{ messages[-1]['content'].split('</b>')[-1] }}{{ documents is none }}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}"""
SETTINGS: dict[str, Any] = {
    "peculiar": PECULIAR,
    "named": [
        {"name": "default", "template": "{{ messages[0].content }}|"},
        {"name": "plain", "template": "{{ messages[-1].content | upper }}"},
    ],
    "no_default": [{"name": "plain", "template": "{{ messages[0].role }}"}],
    "mapping": {"plain": "{{ messages[0].role }}", "default": "{{ eos_token }}"},
    "none": None,
    "refuses_system": (
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ messages[0].content }}"
    ),
    "changes_a_message": "{{ messages.append(1) }}",
    "private_name": "{% set ns = namespace(_a=1) %}{{ ns._a }}",
    "reaches_out": "{{ messages.__class__.__mro__ }}",
    "broken": "{% for message in messages %}",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of tokenizers: the three kinds of Phi as they are, and one of them with
    templates of every other kind."""
    root = tmp_path_factory.mktemp("templates")
    for shape, source in TOKENIZERS.items():
        shutil.copytree(source, root / shape, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, template in SETTINGS.items():
        folder = root / name
        shutil.copytree(root / "phi4", folder)
        (folder / "chat_template.jinja").unlink()
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings["bos_token"] = {"__type": "AddedToken"} | settings["added_tokens_decoder"]["1441"]
        del settings["unk_token"]
        settings["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    # Files come before tokenizer_config.json, and one of them hides all that is in there.
    for name in ("files", "only_additional"):
        shutil.copytree(root / "named", root / name)
        (root / name / "additional_chat_templates").mkdir()
        (root / name / "additional_chat_templates" / "plain.jinja").write_text("{{ 'file' }}\n")
    (root / "files" / "chat_template.jinja").write_text("{{ messages | length }}\n\n")
    for folder in root.iterdir():
        if not (folder / "config.json").exists():
            (folder / "config.json").write_text('{"model_type": "phi3"}')
    return root


def render(python: Path, folder: Path) -> dict[str, Any]:
    done = warm.run(
        [str(python), "-P", templates.__file__, str(folder)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_templates_render_as_in_transformers(
    folders: Path, toolchain_python: Callable[[str], Path]
) -> None:
    found = render(toolchain_python("pytorch"), folders)
    assert len(found) == len(templates.CASES) * (len(TOKENIZERS) + len(SETTINGS) + 2)
    for case, both in found.items():
        (ours, our_error), (theirs, their_error) = both["ours"], both["theirs"]
        assert ours == theirs, (case, both)
        assert (our_error is None) == (their_error is None), (case, both)
    rendered = [case for case, both in found.items() if both["ours"][0] is not None]
    assert {"phi3:system", "phi4:system", "phi4mini:system", "peculiar:system"} <= set(rendered)
    assert found["files:user"]["ours"][0] == "1\n"  # jinja2 drops one new line at the end
    assert found["only_additional:named"]["ours"][0] == "file"
    for case, words in (
        ("refuses_system:system", "System role not supported"),
        ("none:user", "templates of this artifact: none"),
        ("no_default:user", "templates of this artifact: plain"),
        ("only_additional:user", "templates of this artifact: plain"),
        ("broken:user", "no valid template, line 1"),
        ("changes_a_message:user", "append"),
        ("private_name:user", "'_a'"),
        ("reaches_out:user", "__class__"),
    ):
        assert words in (found[case]["ours"][1] or ""), (case, found[case])


@pytest.mark.parametrize("backend", sorted(set(SHIPPED) - {"pytorch"}))
@pytest.mark.case(
    "running",
    "chat templates in {backend}",
    "rendered by Transformers",
    "the same text",
)
def test_every_toolchain_renders_the_same(
    backend: str, folders: Path, toolchain_python: Callable[[str], Path]
) -> None:
    reference = render(toolchain_python("pytorch"), folders)
    found = render(toolchain_python(backend), folders)
    assert {case: both["ours"] for case, both in found.items()} == {
        case: both["ours"] for case, both in reference.items()
    }
