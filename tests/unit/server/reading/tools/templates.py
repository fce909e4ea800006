"""Chat templates in the manner of real ones, cut down to what says how the model writes."""

HERMES_2_PRO = """{{- bos_token }}
{{- '<|im_start|>system\\nYou call functions. Signatures are within <tools></tools> XML tags: <tools> ' }}
{%- for tool in tools %}{{- tool.function | tojson }}{%- endfor %}
{{- ' </tools> For each call return a json object within <tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}
{{- '{"name": <function-name>, "arguments": <args-dict>}\\n</tool_call><|im_end|>\\n' }}
{%- for message in messages %}
  {{- '<|im_start|>' + message.role + '\\n' + message.content }}
  {%- for call in message.tool_calls %}
    {{- '<tool_call>\\n{"arguments": ' + (call.function.arguments | tojson) }}
    {{- ', "name": "' + call.function.name + '"}\\n</tool_call>' }}
  {%- endfor %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN_2_5 = """{%- if tools %}
  {{- '<|im_start|>system\\n# Tools\\n\\nYou may call one or more functions.\\n<tools>' }}
  {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
  {{- "\\n</tools>\\n\\nReturn a json object within <tool_call></tool_call> XML tags:\\n<tool_call>\\n" }}
  {{- "{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
  {{- '<|im_start|>' + message.role }}
  {%- for tool_call in message.tool_calls %}
    {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
    {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
  {%- endfor %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN_3 = (
    QWEN_2_5
    + """{%- if message.reasoning_content %}
  {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
{%- endif %}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"""
)

QWEN_3_CODER = """{{- '<tools>' }}{%- for tool in tools %}{{- '<function>' + tool.function.name }}{%- endfor %}
{{- '</tools>' }}
{{- '<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>\\nvalue_1\\n</parameter>' }}
{{- '\\n</function>\\n</tool_call>' }}"""

QWQ = QWEN_2_5.replace("assistant\\n' }}{%- endif %}", "assistant\\n<think>\\n' }}{%- endif %}")

DEEPSEEK_R1 = """{{ bos_token }}{% for message in messages %}
{% if message.role == 'user' %}{{ '<｜User｜>' + message.content }}{% endif %}
{% if message.role == 'assistant' %}{% set content = message.content.split('</think>')[-1] %}
{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

LLAMA_3_1 = """{{- bos_token }}{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{%- if tools is not none %}
  {{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. ' }}
  {%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
  {%- if 'tool_calls' in message %}
    {%- set tool_call = message.tool_calls[0].function %}
    {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
      {{- "<|python_tag|>" + tool_call.name + ".call(" }}
    {%- else %}
      {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- endif %}
    {{- "<|eot_id|>" }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

LLAMA_3_2 = LLAMA_3_1.replace("builtin_tools is defined or ", "").replace(
    "{%- if tools is not none %}", "{%- if tools is not none and not tools_in_user_message %}"
)

LLAMA_4_PYTHONIC = """{{- bos_token }}{{- "<|header_start|>system<|header_end|>\\n\\n" }}
{%- if tools %}
  {{- "Use exact format: [func_name1(param1=value1, param2=value2), func_name2(...)]\\n" }}{{- tools | tojson }}
{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'tool' %}{{- '<|header_start|>ipython<|header_end|>\\n\\n' }}{%- endif %}
  {{- '[' }}
  {%- for call in message.tool_calls %}{{- call.function.name + '(' }}
    {%- for param in call.function.arguments %}{{- param + '="' + call.function.arguments[param] + '"' }}{%- endfor %}
  {%- endfor %}
  {{- ')]<|eot|>' }}
{%- endfor %}"""

TOOLACE = """{%- if tools is not none %}
{{- "If you decide to invoke any of the function(s), you MUST put it in the format of " }}
{{- "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]\\n" }}{%- endif %}"""

MISTRAL_V3 = """{{- bos_token }}{%- for message in messages %}
{%- if message.role == "user" and tools is not none %}
  {{- "[AVAILABLE_TOOLS] [" }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- "][/AVAILABLE_TOOLS]" }}
{%- elif message.tool_calls is defined %}
  {{- "[TOOL_CALLS] [" }}
  {%- for tool_call in message.tool_calls %}
    {%- set out = tool_call.function | tojson %}{{- out[:-1] }}{{- ', "id": "' + tool_call.id + '"}' }}
  {%- endfor %}{{- "]" + eos_token }}
{%- endif %}{%- endfor %}"""

MISTRAL_V11 = """{{- bos_token }}{%- for message in messages %}
{%- if tools is not none %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for tool_call in message.tool_calls %}
  {{- '[TOOL_CALLS]' + tool_call.function.name + '[CALL_ID]' + tool_call.id }}
  {{- '[ARGS]' + tool_call.function.arguments | tojson }}
{%- endfor %}{{- eos_token }}{%- endfor %}"""

MISTRAL_V13 = MISTRAL_V11.replace("'[CALL_ID]' + tool_call.id", "''")

PHI_3 = """{% for message in messages %}
{% if message.role == 'user' %}{{ '<|user|>\\n' + message.content + '<|end|>\\n' }}
{% elif message.role == 'assistant' %}{{ '<|assistant|>\\n' + message.content + '<|end|>\\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

GEMMA = """{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

HARMONY = """{%- if tools %}{{- "# Tools\\n## functions\\nnamespace functions {" }}{%- endif %}
{%- for message in messages %}
{{- "<|start|>assistant<|channel|>analysis<|message|><think>" + message.thinking }}{%- endfor %}"""

PLAIN_WITH_TOOLS = """{%- if tools %}{{- 'Functions: ' }}{{- tools | tojson }}{%- endif %}
{%- for message in messages %}{{- message.role + ': ' + message.content + '\\n' }}{%- endfor %}"""
