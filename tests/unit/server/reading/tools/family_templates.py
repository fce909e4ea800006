"""What tells each publisher's way of writing calls in its chat templates, written in that publisher's manner."""

GLM_4_5 = """[gMASK]<sop>
{%- if tools -%}<|system|>
# Tools
You are provided with function signatures within <tools></tools> XML tags:
<tools>
{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}</tools>
For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
...
</tool_call>{%- endif -%}
{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{{ '\\n<think></think>' }}
{% for tc in m.tool_calls %}{{ '\\n<tool_call>' + tc.function.name }}
{% for k, v in tc.function.arguments.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}</tool_call>{% endfor %}{% endif %}{% endfor %}
{%- if add_generation_prompt -%}<|assistant|>
{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}{%- endif -%}"""

GLM_4_7 = """[gMASK]<sop>{%- if tools -%}<|system|>
For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>...</tool_call>{%- endif -%}
{% for m in messages %}{% for tc in m.tool_calls %}{{- '<tool_call>' + tc.function.name -}}
{% for k, v in tc.function.arguments.items() %}<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>{% endfor %}
{{- '</tool_call>' }}{% endfor %}{% endfor %}
{%- if add_generation_prompt -%}<|assistant|>{{- '</think>' if not enable_thinking else '<think>' -}}{%- endif -%}"""

DEEPSEEK_V3 = """{{ bos_token }}{% for message in messages %}
{%- for tool in message['tool_calls'] %}
{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name']}}
{{'\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>'}}
{%- endfor %}{{'<｜tool▁calls▁end｜><｜end▁of▁sentence｜>'}}
{%- endfor %}{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}"""

DEEPSEEK_R1_0528 = DEEPSEEK_V3.replace(
    "{%- for tool", "{% set content = message['content'].split('</think>')[-1] %}{%- for tool"
)

DEEPSEEK_V3_1 = """{{ bos_token }}{% for message in messages %}
{%- for tool in message['tool_calls'] -%}
{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ tool['function']['name'] + '<｜tool▁sep｜>'}}
{{- tool['function']['arguments'] + '<｜tool▁call▁end｜>'}}
{%- endfor -%}{{'<｜tool▁calls▁end｜><｜end▁of▁sentence｜>'}}{%- endfor -%}
{%- if add_generation_prompt -%}{{'<｜Assistant｜>'}}{%- if not thinking -%}{{'</think>'}}{%- else -%}{{'<think>'}}
{%- endif -%}{%- endif -%}"""

KIMI_K2 = """{%- macro render_toolcalls(message) -%}<|tool_calls_section_begin|>
{%- for tool_call in message['tool_calls'] -%}
<|tool_call_begin|>{{ tool_call['id'] }}<|tool_call_argument_begin|>
{%- if tool_call['function']['arguments'] is string -%}{{ tool_call['function']['arguments'] }}
{%- else -%}{{ tool_call['function']['arguments'] | tojson }}{%- endif -%}<|tool_call_end|>
{%- endfor -%}<|tool_calls_section_end|>{%- endmacro -%}
{%- if tools -%}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{%- endif -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}"""

KIMI_K2_FIRST = """{% if tools -%}{{ '<|im_system|>tool_declare<|im_middle|>' -}}{{- tools | tojson -}}
{{ '<|im_end|>' -}}{%- endif -%}
{%- if add_generation_prompt -%}{{ '<|im_assistant|>assistant<|im_middle|>' }}{%- endif -%}"""

MINIMAX_M2 = """{%- set toolcall_begin_token = '<minimax:tool_call>' -%}
{%- set toolcall_end_token = '</minimax:tool_call>' -%}
{%- if tools -%}{{- '<tools>' ~ '\\n' }}{%- for tool in tools -%}<tool>{{ tool.function | tojson }}</tool>{% endfor -%}
{{- '</tools>' }}{{- '\\n' ~ toolcall_begin_token }}
<invoke name="tool-name-1">
<parameter name="param-key-1">param-value-1</parameter>
</invoke>
{{- '\\n' ~ toolcall_end_token }}{%- endif -%}
{%- for message in messages -%}{%- if '</think>' in message.content %}{% endif -%}
{%- if message.role == 'tool' -%}{{- '\\n<response>' }}{{- message.content }}{{- '</response>' }}{%- endif -%}
{%- endfor -%}{%- if add_generation_prompt -%}{{- ']~b]ai' ~ '\\n' ~ '<think>' ~ '\\n' }}{%- endif -%}"""

PHI_4_MINI = """{% for message in messages %}
{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}
{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}
{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""

GRANITE_3 = """{%- if tools %}
{{- '<|start_of_role|>system<|end_of_role|>You are Granite, developed by IBM. ' }}
{{- 'When a tool is required to answer the query, respond only with <|tool_call|> followed by a JSON list of tools.' }}
{{- '<|start_of_role|>available_tools<|end_of_role|>' }}{{- tools | tojson(indent=4) }}{{- '<|end_of_text|>' }}
{%- endif %}
{%- if thinking %}{{- 'Write your thoughts between <think></think> and your response between <response></response>.' }}
{%- endif %}{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""

GRANITE_4 = """{%- if tools %}{{- '<|start_of_role|>system<|end_of_role|>' }}
{{- 'For each tool call, return a json object within <tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>' }}{{- tools | tojson }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""

LFM2 = """{{- bos_token -}}{%- if tools -%}{{- 'List of tools: <|tool_list_start|>[' -}}
{%- for tool in tools -%}{{- tool | tojson -}}{%- endfor -%}{{- ']<|tool_list_end|>' -}}{%- endif -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

LFM2_5 = """{{- bos_token -}}{%- if tools -%}{{- 'List of tools: ' + (tools | tojson) -}}{%- endif -%}
{%- for message in messages -%}{%- if "</think>" in message.content -%}{%- endif -%}
{{- "<|tool_call_start|>[" + (message.tool_calls | join(", ")) + "]<|tool_call_end|>" -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

GEMMA_4 = """{{ bos_token }}{%- if tools -%}{%- for tool in tools %}{{- '<|tool>' -}}{{- tool.function.name -}}
{{- '<tool|>' -}}{%- endfor %}{%- endif -%}
{%- for message in messages -%}{%- for tool_call in message['tool_calls'] -%}
{{- '<|tool_call>call:' + tool_call['function']['name'] + '{' -}}{{- '}<tool_call|>' -}}{%- endfor -%}
{%- for part in message['content'].split('<channel|>') -%}{{ part.split('<|channel>')[0] }}{%- endfor -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn>model\\n' -}}
{%- if not enable_thinking | default(false) -%}{{- '<|channel>thought\\n<channel|>' -}}{%- endif -%}{%- endif -%}"""

HUNYUAN_A13B = """{% if tools %}{{ '<|startoftext|>' }}
{{ 'Format calls as <tool_calls>[{"name": "func_name1", "arguments": {"argument1": "value1"}},...]</tool_calls>' }}
{{ tools | tojson }}{% endif %}
{% for message in messages %}{% if '<answer>' in message['content'] and '</think>' in message['content'] %}
{{ message['content'].split('<answer>')[-1].split('</answer>')[0] }}{% endif %}{% endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n' }}{%- endif %}"""

OLMO_3 = """{{- bos_token }}{{- "<|im_start|>system\\n" }}
{%- if tools is not none and tools | length > 0 %}
{{- "To call functions, respond with a pythonic function call wrapped in <function_calls></function_calls> XML tags." }}
{{- "\\n<function_calls>\\nget_weather(city='New York', units='celsius')\\n</function_calls>" }}
{{- "<functions>" }}{{- tools | tojson }}{{- "</functions>" }}{%- endif %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{%- endif %}"""

COMMAND_R7B = """{{ bos_token }}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>
{% if tools %}Start by writing <|START_THINKING|> followed by a plan; close it out with <|END_THINKING|>.
Action: write <|START_ACTION|> followed by a list of JSON tool calls, with "tool_name" and "parameters" fields.
Response: write <|START_RESPONSE|> followed by a piece of text. When you finish, close it out with <|END_RESPONSE|>.
{% for tool in tools %}{"name": "{{ tool['function']['name'] }}",
"description": "{{ tool['function']['description'] }}", "parameters": {{ tool['function']['parameters']|tojson }},
"responses": null}{% endfor %}{% endif %}
{%- for message in messages %}{% for tc in message.tool_calls %}
{"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ tc['function']['name'] }}", "parameters": {}}{% endfor %}
{%- endfor %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"""

SEED_OSS = """{%- set toolcall_begin_token = '<seed:tool_call>' -%}{%- set think_begin_token = '<seed:think>' -%}
{%- set think_end_token = '</seed:think>' -%}{%- if tools is iterable and tools | length > 0 %}
{{"<seed:tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>value_1</parameter>\\n"}}
{{"</function>\\n</seed:tool_call>\\n"}}{%- endif %}
{%- if add_generation_prompt %}{{ bos_token + "assistant\\n" }}{%- endif %}"""

QWEN_3_CODER = """{%- if tools %}{{- '<tools>' }}
{%- for tool in tools %}{{- '\\n<function>\\n<name>' + tool.function.name + '</name>\\n</function>' }}{%- endfor %}
{{- '\\n</tools>\\nReply in the following format:\\n\\n<tool_call>\\n<function=example_function_name>\\n' }}
{{- '<parameter=example_parameter_1>\\nvalue_1\\n</parameter>\\n</function>\\n</tool_call>' }}{%- endif %}
{%- for message in messages %}{%- for tool_call in message.tool_calls %}
{{- '<tool_call>\\n<function=' + tool_call.function.name + '>\\n' }}
{%- for args_name, args_value in tool_call.function.arguments | items %}
{{- '<parameter=' + args_name + '>\\n' }}{{- args_value }}{{- '\\n</parameter>\\n' }}{%- endfor %}
{{- '</function>\\n</tool_call>' }}{%- endfor %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

GPT_OSS = """{%- if tools -%}{{- "Calls to these tools must go to the commentary channel: 'functions'." }}
{{- "# Tools\\n\\n## functions\\n\\nnamespace functions {\\n\\n" }}{%- for tool in tools -%}{{- tool.function.name }}
{%- endfor -%}{{- "} // namespace functions" }}{%- endif -%}
{%- for message in messages -%}
{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
{{- "<|start|>assistant to=functions." + message.tool_calls[0].function.name }}
{{- "<|channel|>commentary json<|message|>" }}
{{- message.tool_calls[0].function.arguments | tojson }}{{- "<|call|>" }}{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"""

MAGISTRAL = """{{- bos_token }}{{- '[SYSTEM_PROMPT]First draft your thinking. Format: [THINK]Your thoughts[/THINK]' }}
{{- '[/SYSTEM_PROMPT]' }}{%- if tools %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for message in messages %}{%- for tool_call in message.tool_calls %}
{{- '[TOOL_CALLS]' + tool_call.function.name + '[ARGS]' + tool_call.function.arguments | tojson }}{%- endfor %}
{%- for block in message.content %}{{- '[THINK]' + block.thinking + '[/THINK]' }}{%- endfor %}{%- endfor %}"""

NEMOTRON_NANO_V2 = """{%- if tools -%}{{- '<AVAILABLE_TOOLS>' + (tools | tojson) + '</AVAILABLE_TOOLS>' }}
{{- 'If you decide to call tools, write <TOOLCALL>[{"name": "tool1", "arguments": {}}]</TOOLCALL>.' }}{%- endif -%}
{%- if add_generation_prompt -%}{{- '<SPECIAL_11>Assistant\\n<think>\\n' -}}{%- endif -%}"""

DEEPSEEK_V3_2 = """{%- if tools -%}{{- '<｜DSML｜function_calls>\\n<｜DSML｜invoke name="$FUNCTION_NAME">' }}
{{- '<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>' }}
{{- '</｜DSML｜invoke>\\n</｜DSML｜function_calls>' }}{%- endif -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' }}{{- '<think>' if thinking else '</think>' }}{%- endif -%}"""

UNKNOWN_TAGS = """{%- if tools %}{{- tools | tojson }}
{{- 'Write <tool_call>\\n<call name="f"/></tool_call>' }}{%- endif %}"""

FAMILIES = {
    "glm45": (GLM_4_5, GLM_4_7),
    "deepseek_v3": (DEEPSEEK_V3, DEEPSEEK_R1_0528),
    "deepseek_v31": (DEEPSEEK_V3_1,),
    "deepseek_v32": (DEEPSEEK_V3_2,),
    "kimi_k2": (KIMI_K2, KIMI_K2_FIRST),
    "minimax_m2": (MINIMAX_M2,),
    "phi4_mini": (PHI_4_MINI,),
    "granite": (GRANITE_3,),
    "lfm2": (LFM2, LFM2_5),
    "gemma4": (GEMMA_4,),
    "hunyuan": (HUNYUAN_A13B,),
    "olmo3": (OLMO_3,),
    "cohere_command": (COMMAND_R7B,),
    "seed_oss": (SEED_OSS,),
    "qwen3_coder": (QWEN_3_CODER,),
    "openai": (GPT_OSS,),
    "nemotron": (NEMOTRON_NANO_V2,),
}
