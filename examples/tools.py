"""Let the model call a function, run it here, and let the model put the result into words.

`tool_choice` names the function, so a grammar holds the model to a call whose arguments match the schema.

python examples/tools.py "What is the weather in Paris?"
"""

import argparse
import json
import os
from typing import Any

from openai import OpenAI

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def get_weather(city: str) -> dict[str, str | int]:
    return {"city": city, "temperature": 21, "condition": "sunny"}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("question", nargs="?", default="What is the weather in Paris?")
parser.add_argument("--base-url", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
arguments = parser.parse_args()

client = OpenAI(base_url=arguments.base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id
messages: list[Any] = [{"role": "user", "content": arguments.question}]

asked = client.chat.completions.create(
    model=model,
    messages=messages,
    tools=[TOOL],
    tool_choice={"type": "function", "function": {"name": "get_weather"}},
    temperature=0,
)
messages.append(asked.choices[0].message)
for call in asked.choices[0].message.tool_calls or []:
    if call.type == "function":
        result = get_weather(**json.loads(call.function.arguments))
        print(f"{call.function.name}({call.function.arguments}) -> {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})

answered = client.chat.completions.create(model=model, messages=messages, tools=[TOOL], temperature=0)
print(answered.choices[0].message.content)
