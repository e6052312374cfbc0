"""Chat templates of the shapes that published families have, in our own words, with marks around what the model writes.

`marked` has `{% generation %}`; `plain` is the same without.
"""

import re

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% if tools %}<|im_start|>system<|im_end|>\n\nTools: {{ tools | tojson }}<|endoftext|>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_end|>\n\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim }}<|endoftext|>{% endgeneration %}{% else %}{{ m.content | trim }}"
    "<|endoftext|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_end|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]{% elif m.role == 'assistant' %}"
    "{% generation %}{{ ' ' + m.content | trim + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% set first = '' %}{% set rest = messages %}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first else '' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content | trim }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
# Thinking is written only after the last question; there also where it is empty.
QWEN_3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}{% if loop.index0 > ns.last %}"
    "<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in m.content else '' }}\n"
    "</think>\n\n{% endif %}{{ said }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {"chatml": CHATML, "llama3": LLAMA_3, "mistral": MISTRAL, "gemma": GEMMA, "qwen3": QWEN_3}
WITH_SYSTEM = ("chatml", "llama3", "gemma", "qwen3")


def plain(template: str) -> str:
    """The template without its marks."""
    return re.sub(r"{% (end)?generation %}", "", template)
