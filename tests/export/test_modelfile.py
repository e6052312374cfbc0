"""A Modelfile's template writes what the model's own chat template writes, or it is not there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from modelfiles import read_modelfile, render_go
from transformers import AutoTokenizer

from skipwise.demo.run import BASE
from skipwise.export.modelfile import go_template, write_modelfile

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim +"
    " '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
WITH_TOOLS = "{% if tools %}{{ tools }}{% endif %}" + CHATML
WITH_CALLS = CHATML.replace(
    "{% endfor %}", "{% for call in message.tool_calls or [] %}{{ call }}{% endfor %}{% endfor %}"
)
THINKING = CHATML + "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}"
LAST_ONLY = "{% for message in messages[-1:] %}{{ '<|im_start|>' + message['content'] }}{% endfor %}"

CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello, how are you?"},
    {"role": "assistant", "content": "I'm doing great. How can I help you today?"},
    {"role": "user", "content": "I'd like to show off\nhow chat templating works!"},
]


def tokenizer_with(template: str | None) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
    special = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>"]
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": special})
    tokenizer.chat_template = template
    return tokenizer


def written(
    template: str | None, folder: Path, architecture: str = "llama", *, bos: bool = True
) -> tuple[Any, list[str]]:
    plan: Any = SimpleNamespace(
        metadata={"context_length": 1024, "rope.scaling.type": "yarn"},
        family=SimpleNamespace(architecture=architecture),
        tokenizer=SimpleNamespace(entries={"add_bos_token": bos}),
    )
    notes = write_modelfile(folder / "my model-F16.gguf", plan, tokenizer_with(template))
    return read_modelfile(folder / "Modelfile"), notes


@pytest.mark.parametrize(
    ("template", "stop"),
    [
        (CHATML, "<|im_end|>"),
        (CHATML_WITH_DEFAULT, "<|im_end|>"),
        (LLAMA_3, "<|eot_id|>"),
        (LLAMA_2, "</s>"),
        (GEMMA, "<end_of_turn>"),
    ],
)
@pytest.mark.parametrize("bos", [True, False])
def test_the_go_template_writes_what_the_jinja_template_writes(
    template: str, stop: str, bos: bool, tmp_path: Path
) -> None:
    said, notes = written(template, tmp_path, bos=bos)
    assert said["FROM"] == ["./my model-F16.gguf"]
    assert said["num_ctx"] == ["1024"]
    assert stop in said["stop"]
    assert "REQUIRES" not in said
    takes_system = template != GEMMA
    assert any("no system text" in note for note in notes) == (not takes_system)
    for first in (0, 1) if takes_system else (1,):
        for chat in (CHAT[first:2], CHAT[first:]):
            by_jinja = tokenizer_with(template).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            # The tokenizer writes the token for the beginning of a text itself if it adds one.
            assert render_go(said["TEMPLATE"][0], chat) == (by_jinja.removeprefix("<s>") if bos else by_jinja)


def test_chatml_is_as_ollama_has_it(tmp_path: Path) -> None:
    said, _ = written(CHATML, tmp_path)
    # template/testdata/chatml.gotmpl/system-user-assistant-user of Ollama.
    assert render_go(said["TEMPLATE"][0], [*CHAT[:3], {"role": "user", "content": "Show off!"}]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHello, how are you?<|im_end|>\n"
        "<|im_start|>assistant\nI'm doing great. How can I help you today?<|im_end|>\n"
        "<|im_start|>user\nShow off!<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (WITH_TOOLS, "tools"),
        (WITH_CALLS, "tools"),
        (THINKING, "thinking"),
        (LAST_ONLY, "does not render a plain conversation"),
        (CHATML.replace("message['content']", "message['content'].split('</think>')[-1]"), "more than write texts"),
        (CHATML + "{{ strftime_now('%Y') }}", "date"),
        (CHATML + "{{ '{{' }}", "Go's language"),
    ],
)
def test_a_template_that_does_more_is_left_to_the_file(template: str, why: str, tmp_path: Path) -> None:
    said, notes = written(template, tmp_path)
    assert "TEMPLATE" not in said
    assert any(why in note and "no TEMPLATE" in note for note in notes), notes
    assert why in (tmp_path / "Modelfile").read_text()
    assert said["stop"] == ["</s>"]
    assert isinstance(go_template(tokenizer_with(template), adds_bos=True), str)


def test_a_model_without_a_chat_template_gets_the_prompt_as_it_is(tmp_path: Path) -> None:
    said, notes = written(None, tmp_path)
    assert said["TEMPLATE"] == ["{{ .Prompt }}"]
    assert any("no chat template" in note for note in notes)


@pytest.mark.parametrize(("architecture", "required"), [("qwen3", ["0.30.0"]), ("gemma3", ["0.30.0"]), ("qwen2", None)])
def test_architectures_of_ollamas_old_engine_require_the_new_one(
    architecture: str, required: list[str] | None, tmp_path: Path
) -> None:
    said, notes = written(CHATML, tmp_path, architecture)
    assert said.get("REQUIRES") == required
    assert any("attention factor" in note for note in notes) == (required is not None)
