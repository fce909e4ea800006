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

DEEPSEEK_V4 = DEEPSEEK_V3_2.replace("function_calls", "tool_calls")

DEEPSEEK_V4_1 = DEEPSEEK_V3_2.replace("｜DSML｜function_calls", "｜DSML｜ calls").replace("｜DSML｜i", "｜DSML｜ i")

NEMOTRON_3 = """{%- if tools %}
{{- '<tools>' + (tools | tojson) + '</tools>\\n<tool_call>\\n<function=example_function_name>' }}
{{- '\\n<parameter=example_parameter_1>\\nvalue_1\\n</parameter>\\n</function>\\n</tool_call>' }}{%- endif %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' + ('<think>\\n' if enable_thinking else '<think></think>') }}
{%- endif %}"""

MIMO_V2 = """{%- if tools %}
{{- '<tools>' + (tools | tojson) + '</tools>\\n<tool_call>\\n<function=example_function_name>\\n' }}
{{- '<parameter=example_parameter_1>value_1</parameter>\\n</function>\\n</tool_call>' }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' + ('' if enable_thinking else '<think></think>') }}
{%- endif %}"""

STEP_3 = """{%- if tools %}{{- '<｜tool_calls_begin｜>\\n<｜tool_call_begin｜>function<｜tool_sep｜>' }}
{{- '<steptml:invoke name="${tool_name}"><steptml:parameter name="k">v</steptml:parameter></steptml:invoke>' }}
{{- '<｜tool_call_end｜>\\n<｜tool_calls_end｜>' }}{{- tools | tojson }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|BOT|>assistant\\n<think>\\n' }}{%- endif %}"""

DOTS = """{%- if tools %}
{{- '<dots_function_call>\\n<invoke name="f">\\n<parameter name="k">v</parameter>\\n</invoke>' }}
{{- '\\n</dots_function_call>' }}{{- tools | tojson }}{%- endif %}"""

LONGCAT_FLASH = """{%- if tools %}
{{- 'For each call: <longcat_tool_call>\\n{"name": <function-name>, "arguments": <args-dict>}' }}
{{- '\\n</longcat_tool_call>' }}{{- tools | tojson }}{%- endif %}{{- 'ASSISTANT:<longcat_think>\\n' }}"""

LONGCAT_2 = """{%- if tools %}{{- '<longcat_tool_call>{function-name}\\n<longcat_arg_key>{k}</longcat_arg_key>' }}
{{- '\\n<longcat_arg_value>{v}</longcat_arg_value>\\n</longcat_tool_call>' }}{{- tools | tojson }}{%- endif %}"""

HY_3 = """{%- if tools %}
{{- '<tool_calls>\\n<tool_call>{name}<tool_sep>\\n<arg_key>{k}</arg_key>\\n<arg_value>{v}</arg_value>' }}
{{- '\\n</tool_call>\\n</tool_calls>' }}{{- tools | tojson }}{%- endif %}
{%- if add_generation_prompt %}{{- '<think>' if reasoning_effort == 'high' else '<think></think>' }}{%- endif %}"""

HUNYUAN_7B = """{%- if tools %}
{{- '<tool_calls>\\n<tool_call>function_name\\n```json\\n{"argument1": "value1"}\\n```</tool_call>' }}
{{- '\\n</tool_calls>' }}{{- tools | tojson }}{%- endif %}"""

FUNCTIONARY_3_1 = """{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' }}{%- if tools %}
{{- '<{start_tag}={function_name}>{parameters}{end_tag}\\nstart_tag => `<function`\\nend_tag => `</function>`' }}
{{- '<function=example_function_name>{"example_name": "example_value"}</function>' }}{{- tools | tojson }}
{%- endif %}"""

FUNCTIONARY_3_2 = """{%- if tools %}
{{- '// Supported function definitions\\nnamespace functions {' + (tools | tojson) }}
{%- endif %}{%- for m in messages %}{%- if m.content %}{{- '>>>all\\n' + m.content }}{%- endif %}
{%- for call in m.tool_calls %}{{- '>>>' + call.function.name + '\\n' + call.function.arguments }}{%- endfor %}
{%- endfor %}{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n>>>' }}{%- endif %}"""

FUNCTIONGEMMA = """{{ bos_token }}{%- for tool in tools %}
{{- '<start_function_declaration>declaration:' + tool.function.name }}
{{- '<end_function_declaration>' }}{%- endfor %}{%- for m in messages %}{%- for call in m.tool_calls %}
{{- '<start_function_call>call:' + call.function.name + '{' }}{{- '<escape>' }}{{- '}<end_function_call>' }}
{%- endfor %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

GRANITE_20B = """{{- 'SYSTEM: ' }}{%- for tool in tools %}{{- tool.function | tojson }}{%- endfor %}
If none is relevant, please output \\"<function_call> {\\"name\\": \\"no_function\\", \\"arguments\\": {}}\\".
{%- for m in messages %}{%- for call in m.tool_calls %}{{- '<function_call> ' + call.function | tojson }}{%- endfor %}
{%- endfor %}"""

APERTUS = """{%- set inner_token = '<|inner_prefix|>' -%}{%- set outer_token = '<|inner_suffix|>' -%}
{%- set tool_calls_token = '<|tools_prefix|>' -%}{%- set end_tool_calls_token = '<|tools_suffix|>' -%}
{{ 'Tool Capabilities:\\n' + (tools | tojson) }}{%- for m in messages %}{%- for call in m.tool_calls %}
{{- '{"' + call.function.name + '": ' + call.function.arguments + '}' }}{%- endfor %}{%- endfor %}"""

INTERNLM_2 = """{%- if tools %}
{{- '<|im_start|>system name=<|plugin|>\\n[' + (tools | tojson) + ']<|im_end|>\\n' }}{%- endif %}
{%- for m in messages %}{%- for call in m.tool_calls %}
{{- '<|action_start|><|plugin|>\\n{"name": "' + call.function.name }}
{{- '", "parameters": ' + call.function.arguments + '}<|action_end|>' }}{%- endfor %}{%- endfor %}"""

XLAM_2 = """{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}{%- if tools %}Make calls in a single JSON array:
[{"name": "tool_call_name", "arguments": {"arg1": "value1"}}, ... (additional parallel tool calls as needed)]
{{- tools | tojson }}{%- endif %}{%- for m in messages %}{{- '<|start_header_id|>ipython<|end_header_id|>' }}
{%- endfor %}"""

PHI_4_MINI_FUNCTOOLS = """{%- if tools %}
{{- 'All calls in one list: functools[{"name": [function name], "arguments": {}}, ...]' }}
{{- tools | tojson }}{%- endif %}"""

JAMBA = """{%- if tools %}{{- 'Write <tool_calls>[\\n{"name": "f", "arguments": {}}\\n]</tool_calls>' }}
{{- tools | tojson }}
{%- endif %}"""

ERNIE_4_5_THINKING = """{{- '<|im_start|>system\\n<global_setting>\\nthink_mode=True\\n</global_setting>' }}
{%- if tools %}
{{- 'For each call: <tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>' }}
{{- tools | tojson }}{%- endif %}{%- for m in messages %}{{- '<response>\\n' + m.content + '\\n</response>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"""

EXAONE_4 = """{%- if tools %}
{{- '[|system|]\\nTo call: <tool_call>{"name": function_1_name, "arguments": {}}</tool_call>' }}
{{- tools | tojson }}{%- endif %}{%- if add_generation_prompt %}{{- '[|assistant|]\\n' }}
{{- '<think>\\n' if enable_thinking else '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"""

COMMAND_A_PLUS = COMMAND_R7B.replace("_RESPONSE|", "_TEXT|")

MINIMAX_M3 = """{%- set ns = ']<]minimax[>[' -%}{%- if tools -%}
{{- ns ~ '<tool_call>\\n]<]minimax[>[<invoke name="f">' }}
{{- tools | tojson }}{%- endif -%}{%- if add_generation_prompt -%}{{- ']~b]ai\\n<mm:think>' }}{%- endif -%}"""

KIMI_K3 = """{%- if tools %}{{- '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|>' }}
{{- tools | tojson }}{%- endif %}"""

UNKNOWN_TAGS = """{%- if tools %}{{- tools | tojson }}
{{- 'Write <tool_call>\\n<call name="f"/></tool_call>' }}{%- endif %}"""

FAMILIES = {
    "glm45": (GLM_4_5, GLM_4_7),
    "deepseek_v3": (DEEPSEEK_V3, DEEPSEEK_R1_0528),
    "deepseek_v31": (DEEPSEEK_V3_1,),
    "deepseek_v32": (DEEPSEEK_V3_2,),
    "deepseek_v4": (DEEPSEEK_V4,),
    "deepseek_v41": (DEEPSEEK_V4_1,),
    "kimi_k2": (KIMI_K2, KIMI_K2_FIRST),
    "minimax_m2": (MINIMAX_M2,),
    "phi4_mini": (PHI_4_MINI, PHI_4_MINI_FUNCTOOLS),
    "granite": (GRANITE_3,),
    "granite_20b_fc": (GRANITE_20B,),
    "lfm2": (LFM2, LFM2_5),
    "gemma4": (GEMMA_4,),
    "functiongemma": (FUNCTIONGEMMA,),
    "hunyuan": (HUNYUAN_A13B, JAMBA),
    "hunyuan_dense": (HUNYUAN_7B,),
    "hy_v3": (HY_3,),
    "olmo3": (OLMO_3,),
    "cohere_command": (COMMAND_R7B, COMMAND_A_PLUS),
    "seed_oss": (SEED_OSS,),
    "qwen3_coder": (QWEN_3_CODER, NEMOTRON_3),
    "mimo": (MIMO_V2,),
    "step3": (STEP_3,),
    "dots": (DOTS,),
    "longcat": (LONGCAT_FLASH,),
    "longcat_2": (LONGCAT_2,),
    "functionary": (FUNCTIONARY_3_1,),
    "functionary_v32": (FUNCTIONARY_3_2,),
    "apertus": (APERTUS,),
    "internlm": (INTERNLM_2,),
    "openai": (GPT_OSS,),
    "nemotron": (NEMOTRON_NANO_V2,),
    "xlam": (XLAM_2,),
    "hermes": (GRANITE_4, ERNIE_4_5_THINKING, EXAONE_4),
}
UNREAD = {"minimax_m3": MINIMAX_M3, "kimi_k3": KIMI_K3}
