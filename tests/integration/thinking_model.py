"""A tiny model with random weights that thinks, and never stops by itself where it is not allowed its closing tag."""

from pathlib import Path

from tests.integration.tiny_models import VOCAB_SIZE, build_model, build_tokenizer

OPEN, CLOSE = VOCAB_SIZE, VOCAB_SIZE + 1  # the tokens of its tags
CONTEXT = 1024
# It ends a thought as Qwen 3 does, and begins one in the prompt.
TEMPLATE = """{%- if tools %}
  {{- '# Tools\\n\\nYou may call one or more functions.\\n<tools>' }}
  {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
  {{- "\\n</tools>\\n\\nReturn a json object within <tool_call></tool_call> XML tags:\\n<tool_call>\\n" }}
  {{- "{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call>\\n" }}
{%- endif %}
{%- for message in messages %}
  {{- message.role + ': ' }}
  {%- if message.reasoning_content %}{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}
  {{- message.content + '\\n' }}
  {%- for call in message.tool_calls %}
    {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) + '}\\n</tool_call>' }}
  {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: ' }}
  {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}
  {%- else %}{{- '<think>\\n' }}{%- endif %}
{%- endif %}"""


def build_thinking_model(directory: Path) -> Path:
    """Write the model and its tokenizer, in float32, and return its directory."""
    from transformers import AutoTokenizer

    build_model("llama", directory, vocab_size=VOCAB_SIZE + 2, max_position_embeddings=CONTEXT)
    build_tokenizer(directory, TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(directory)
    assert tokenizer.convert_tokens_to_ids(["<think>", "</think>"]) == [OPEN, CLOSE]
    return directory
