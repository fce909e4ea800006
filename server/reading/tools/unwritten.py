"""Keywords of a tool's schema that calls cannot be held to in a format which writes each argument by itself.

Where the arguments are one JSON object, the object is held to all of the schema.
"""

from collections.abc import Mapping
from typing import Any

from orcinus.engine.errors import UnenforceableKeyword
from orcinus.server.reading.tools.argument_values import is_plain_string
from orcinus.server.reading.tools.formats import ToolFormat
from orcinus.server.reading.tools.key_value_grammar import KeyValueGrammar
from orcinus.server.reading.tools.key_values import KeyValues
from orcinus.server.reading.tools.lark import properties_of, quote
from orcinus.server.reading.tools.request import Tool

_WHY = "in this model's format of calls each argument is written by itself"
_WHY_STRING = "in this model's format of calls a string is written as it is"
# Of all arguments together. What `additionalProperties` and its kin allow is never written.
_OF_OBJECTS = (
    *("allOf", "anyOf", "oneOf", "not", "if", "$ref", "const", "enum", "minProperties", "maxProperties"),
    *("dependentRequired", "dependentSchemas", "dependencies"),
)
_WHY_MARKS = "this model's format of calls has no grammar for it"
_OF_STRINGS = ("pattern", "minLength", "maxLength")
_SAY_NOTHING: Mapping[str, Any] = {"minProperties": 0, "minLength": 0}


def unwritten_keywords(form: ToolFormat, tool: Tool) -> list[UnenforceableKeyword]:
    """Return the keywords of a tool's schema that a grammar of this format leaves out."""
    if form.strictness == "all":
        return []
    if isinstance(form, KeyValues):
        grammar = KeyValueGrammar(form.mark, quote)
        grammar.call_rules(tool, "call")
        return [UnenforceableKeyword(place, keyword, _WHY_MARKS) for place, keyword in grammar.unwritten]
    found = [UnenforceableKeyword((), name, _WHY) for name in _stated(tool.parameters, _OF_OBJECTS)]
    if form.strictness == "strings as written":
        for argument, schema in properties_of(tool).items():
            if is_plain_string(schema) and not {"enum", "const"} & schema.keys():
                place = ("properties", argument)
                found += [UnenforceableKeyword(place, name, _WHY_STRING) for name in _stated(schema, _OF_STRINGS)]
    return found


def _stated(schema: Mapping[str, Any], keywords: tuple[str, ...]) -> list[str]:
    return [
        name
        for name in keywords
        if name in schema and schema[name] not in ({}, []) and schema[name] != _SAY_NOTHING.get(name, {})
    ]
