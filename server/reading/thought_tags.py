"""The tags between which models write their thoughts, by family, and which of them a chat template speaks of."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThoughtTags:
    """One way of marking thoughts. `answer` are the tags, if any, between which the answer stands after them.

    `opening_token` is the token that opens a thought, where the opening is more than that token.
    """

    name: str
    opening: str
    closing: str
    answer: tuple[str, str] | None = None
    opening_token: str | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """Return what has to stay in the text for the parts to be found."""
        return (self.opening, self.closing, *(self.answer or ()), *([self.opening_token] if self.opening_token else []))


THINK = ThoughtTags("think", "<think>", "</think>")
HARMONY = "openai"  # thoughts in a channel: `server.reading.harmony` reads these
_TAGS = (
    THINK,
    ThoughtTags("mistral", "[THINK]", "[/THINK]"),
    ThoughtTags("seed_oss", "<seed:think>", "</seed:think>"),
    ThoughtTags("gemma4", "<|channel>thought", "<channel|>", opening_token="<|channel>"),  # noqa: S106 - no password
    ThoughtTags(
        "cohere_command",
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        answer=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    ThoughtTags(
        "cohere_command4",
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        answer=("<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    ThoughtTags("granite", "<think>", "</think>", answer=("<response>", "</response>")),
    ThoughtTags("hunyuan", "<think>", "</think>", answer=("<answer>", "</answer>")),
    ThoughtTags("longcat", "<longcat_think>", "</longcat_think>"),
    ThoughtTags("apertus", "<|inner_prefix|>", "<|inner_suffix|>"),
)
TAGS: Mapping[str, ThoughtTags] = {tags.name: tags for tags in _TAGS}
REASONING_NAMES = (*TAGS, HARMONY)

# In this order; each is enough.
SIGNS = (
    ("<|channel|>", HARMONY),
    ("[THINK]", "mistral"),
    ("<seed:think>", "seed_oss"),
    ("<|channel>", "gemma4"),
    ("<|START_TEXT|>", "cohere_command4"),
    ("<|START_THINKING|>", "cohere_command"),
    ("<longcat_think>", "longcat"),
    ("<|inner_prefix|>", "apertus"),
)
_ANSWERSIGNS = ("<|start_of_role|>", "<global_setting>")  # Granite's and ERNIE's: others answer tools in such tags
_ANSWER_SIGNS = ("<|start_of_role|>", "<global_setting>")  # Granite's and ERNIE's: others answer tools in such tags


def find_reasoning(template: str) -> str | None:
    """Return the name of the way in which models with this chat template mark their thoughts, if they do."""
    for sign, name in SIGNS:
        if sign in template:
            return name
    if THINK.opening not in template and THINK.closing not in template:
        return None
    is_answer_tagged = "<response>" in template and any(sign in template for sign in _ANSWER_SIGNS)
    if "<response></response>" in template or is_answer_tagged:
        return "granite"
    return "hunyuan" if "<answer>" in template else THINK.name
