"""What can be said of a way of writing calls: how much of a call is streamed, and how much of a schema is enforced."""

from typing import Literal

Streaming = Literal["all", "strings"]
"""Arguments are handed on as they come: all of them, or strings, while other values are once they are complete."""

Strictness = Literal["all", "arguments", "strings as written"]
"""A grammar holds a call to all of a tool's schema; to the schemas of its arguments, each by itself; or to these, but
for what they say of strings beyond `enum` and `const`, for a string is written as it is."""
