"""The schema of an event of GET /events: every field declared once, for the stream, its reference and its tests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EventField:
    """Describes a field of an event: its JSON schema, what it means, and whether it `is_always` there."""

    name: str
    schema: dict[str, object]
    help: str
    is_always: bool = True


_INTEGER: dict[str, object] = {"type": "integer", "minimum": 0}
_NUMBER: dict[str, object] = {"type": "number", "minimum": 0}
_TEXT: dict[str, object] = {"type": "string"}
_COLUMN: dict[str, object] = {"type": "array", "items": _INTEGER}

EVENT_FIELDS: tuple[EventField, ...] = (
    EventField("at_s", _NUMBER, "When the event was made, in seconds of a clock that all events of a server share."),
    EventField("interval_s", _NUMBER, "Seconds since this stream's last event; all counts are of these."),
    EventField(
        "status",
        {"enum": ["loading", "ready", "restarting", "draining", "dead"]},
        "What /ready goes by. After `dead` the stream ends.",
    ),
    EventField(
        "server",
        {"type": "object"},
        "What is served and its sizes: `version`, `model`, `device`, `batching`, `num_slots`, `num_shown_slots`,"
        " `num_blocks`, `block_size`, `max_model_len`. In the first event, and when the model is loaded.",
        is_always=False,
    ),
    EventField("running", _INTEGER, "Sequences in slots."),
    EventField("waiting", _INTEGER, "Sequences that wait for one."),
    EventField("blocks_used", _INTEGER, "KV blocks that running sequences hold; one that several share counts once."),
    EventField("steps", _INTEGER, "Steps of the engine."),
    EventField("step_s", _NUMBER, "Seconds that those took, together."),
    EventField(
        "step_times",
        {
            "type": "array",
            "items": {"type": "array", "minItems": 3, "maxItems": 3, "prefixItems": [_NUMBER, _INTEGER, _INTEGER]},
        },
        "`[milliseconds, decode tokens, prompt tokens]` of each step, the last 128.",
    ),
    EventField("tokens", _INTEGER, "Tokens generated."),
    EventField("prefill_tokens", _INTEGER, "Prompt tokens computed."),
    EventField(
        "ttft_ms",
        {"type": ["number", "null"], "minimum": 0},
        "Mean time to first token of the requests that got theirs, in milliseconds; null where none did.",
    ),
    EventField(
        "itl_ms",
        {"type": ["number", "null"], "minimum": 0},
        "Mean time between two tokens of a sequence, in milliseconds; null where there were none.",
    ),
    EventField(
        "moves",
        {
            "type": "array",
            "items": {
                "type": "array",
                "minItems": 3,
                "maxItems": 6,
                "prefixItems": [
                    _INTEGER,
                    {"enum": ["came", "decodes", "left"]},
                    _NUMBER,
                    _TEXT,
                    {"type": ["integer", "null"]},
                    _INTEGER,
                ],
            },
        },
        'What happened in the slots, in order: `[slot, "came", at_s, id, key, tokens]`, `[slot, "decodes", at_s]` at'
        ' the first token, `[slot, "left", at_s]`. `id` is the end of the answer\'s id (`answer=` in the log), `key` an'
        " index of `keys` or null, and `tokens` are computed before it decodes. At most 64; what is missing follows in"
        " the next events.",
    ),
    EventField(
        "computed", _COLUMN, "By slot: tokens computed, prompt included, as far as the last slot that is taken."
    ),
    EventField("held", _COLUMN, "By slot: KV blocks in the sequence's table; one that several share counts for each."),
    EventField(
        "keys",
        {"type": "array", "items": _TEXT},
        "Names of the API keys that have asked for something, never the keys: as the key file has them, or"
        " `key 1`, `key 2` in the order in which they came. In the first event, and when there is a"
        " new one.",
        is_always=False,
    ),
    EventField(
        "by_key",
        {"type": "array", "items": {"type": "array", "prefixItems": [{"type": ["integer", "null"]}, _INTEGER]}},
        "`[key, sequences]`: what each key has in flight, waiting and running, the 16 largest.",
    ),
)


def event_schema() -> dict[str, object]:
    """Return the JSON schema of an event."""
    return {
        "type": "object",
        "properties": {field.name: {**field.schema, "description": field.help} for field in EVENT_FIELDS},
        "required": [field.name for field in EVENT_FIELDS if field.is_always],
        "additionalProperties": False,
    }
