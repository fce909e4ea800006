"""What a chat template can take, found out by trying it with short conversations.

Templates differ in what they read: texts or lists of parts, a message without content, several system messages, tools.
A trial is made when its answer is first needed, and the answer is kept. What is tried is what an author of a template
would try by hand: a text that is nowhere else goes in, and the output has it or not. Knows jinja's output alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.text.json_object import JsonObject
from orcinus.engine.text.template_sandbox import RenderLimitError

Messages = list[dict[str, Any]]
RenderTrial = Callable[[Messages, list[dict[str, Any]] | None], str]
AbsentContent = Literal["left out", "null", "empty"]

T = TypeVar("T")

_MARK = "marked_on_trial"
_MARK_2 = "marked_twice_on_trial"
_CALLED = "called_on_trial"
_CALL_ID = "trial0001"  # nine letters and digits, which Mistral's templates ask for
_LONG_CALL_ID = "call_on_trial"
_CALL = {
    "id": _CALL_ID,
    "type": "function",
    "function": {"name": _CALLED, "arguments": JsonObject({_CALLED: _CALLED})},
}
_PARAMETERS = {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}, "required": ["x"]}
_TOOL = {"type": "function", "function": {"name": "f", "description": "x", "parameters": _PARAMETERS}}
_CALLING = {"role": "assistant", "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "tool_call_id": _CALL_ID, "name": _CALLED}
_WITHOUT_CONTENT: Mapping[AbsentContent, dict[str, Any]] = {
    "left out": {},
    "null": {"content": None},
    "empty": {"content": ""},
}
_FORMS: tuple[AbsentContent, ...] = ("left out", "null", "empty")


class TemplateTraits:
    """Answers questions about one template. `render` raises `InvalidRequestError` where the template does not render.

    Every answer may raise `RenderLimitError`, and is not known then: another try may have more time.
    """

    def __init__(self, render: RenderTrial) -> None:
        self._render = render
        self._answers: dict[tuple[str, ...], Any] = {}

    def reads_text(self, role: str) -> bool:
        """Return whether a message of this role may have a text as content, which is shown."""
        return self._once(lambda: self._shows(self._conversation(role, _MARK), _MARK), "text", role)

    def reads_parts(self, role: str) -> bool:
        """Return whether a message of this role may have a list of parts as content, of which the text is shown."""
        return self._once(lambda: self._finds_parts(role), "parts", role)

    @property
    def absent_content(self) -> AbsentContent:
        """The form that a message without content needs, so that its calls are shown.

        Without the key, if that does: it is what transformers gives. Some templates ask whether the content is none,
        and others add it to a text.
        """
        return self._once(self._find_absent_content, "absent")

    @property
    def shows_tools(self) -> bool:
        """Whether the prompt depends on the tools. A template that renders in no trial is not said to ignore them."""
        return self._once(self._depends_on_tools, "tools")

    @property
    def takes_system_messages_in_a_row(self) -> bool:
        """Whether the conversation may begin with several system messages."""
        return self._once(self._shows_two_system_messages, "row")

    @property
    def takes_later_system_message(self) -> bool:
        """Whether a system message may stand between the turns."""
        return self._once(self._shows_later_system_message, "later")

    def takes_turns_in_a_row(self, role: str) -> bool:
        """Return whether two messages of this role, "user" or "assistant", may follow one another."""
        return self._once(lambda: self._renders_turns_in_a_row(role), "turns", role)

    @property
    def takes_user_after_tool(self) -> bool:
        """Whether the user may speak after the result of a tool. Refused where the result alone is not."""
        return self._once(self._renders_user_after_tool, "after tool")

    @property
    def takes_any_call_id(self) -> bool:
        """Whether ids of calls may have any form. Mistral's templates take nine letters and digits alone."""
        return self._once(self._renders_long_call_id, "id")

    @property
    def reads_pairs(self) -> bool:
        """Whether it is a reranker's: it shows messages of the roles query and document, and not those of any roles."""
        return self._once(self._finds_pairs, "pairs")

    def _once(self, find: Callable[[], T], *question: str) -> T:
        """Return the answer to a question, found at most once by each thread.

        Without a lock: the event loop must not wait for a trial in another thread, which may take as long as any.
        """
        if question not in self._answers:
            self._answers[question] = find()
        answer: T = self._answers[question]
        return answer

    def _finds_parts(self, role: str) -> bool:
        text = self._try(self._conversation(role, [{"type": "text", "text": _MARK}])) or ""
        return _MARK in text and "'text'" not in text and '"text"' not in text

    def _finds_pairs(self) -> bool:
        def shows(query: str, document: str) -> bool:
            pair = [{"role": query, "content": _MARK}, {"role": document, "content": _MARK_2}]
            return self._shows(pair, _MARK, _MARK_2)

        return shows("query", "document") and not shows("query_on_trial", "document_on_trial")

    def _find_absent_content(self) -> AbsentContent:
        for before, after in self._surroundings():
            for form, content in _WITHOUT_CONTENT.items():
                if self._shows([*before, {**_CALLING, **content}, *after], _CALLED, tools=[_TOOL]):
                    return form
        return self._absent_content_by_difference()

    def _surroundings(self) -> list[tuple[Messages, Messages]]:
        """Return what may come before and after a call, the usual first."""
        user = self._message("user", "x")
        return [([user], [{**_RESULT, "content": "x"}]), ([user], []), ([], [])]

    def _absent_content_by_difference(self) -> AbsentContent:
        """Return the form for a template that shows nothing of a call: null if it minds, else the first it takes."""
        texts: dict[AbsentContent, str | None] = {}
        for before, after in self._surroundings():
            texts = {form: self._try([*before, {**_CALLING, **_WITHOUT_CONTENT[form]}, *after]) for form in _FORMS}
            null = texts["null"]
            if null is not None and null != texts["left out"] and "None" not in null:
                return "null"
        return next((form for form, text in texts.items() if text is not None), "left out")

    def _depends_on_tools(self) -> bool:
        user, system = self._message("user", "x"), self._message("system", "x")
        conversations = [user], [system, user]
        texts = [(self._try(messages, [_TOOL]), self._try(messages)) for messages in conversations]
        return any(with_tools != without for with_tools, without in texts) or texts[0] == (None, None)

    def _shows_two_system_messages(self) -> bool:
        first, second = self._message("system", _MARK), self._message("system", _MARK_2)
        return self._shows([first, second, self._message("user", "x")], _MARK, _MARK_2)

    def _shows_later_system_message(self) -> bool:
        user, assistant = self._message("user", "x"), self._message("assistant", "x")
        return self._shows([user, assistant, self._message("system", _MARK), user], _MARK)

    def _renders_turns_in_a_row(self, role: str) -> bool:
        user, turn, system = self._message("user", "x"), self._message(role, "x"), self._message("system", "x")
        messages = [user, user] if role == "user" else [user, turn, turn, user]
        return any(self._try(trial) is not None for trial in (messages, [system, *messages]))

    def _renders_user_after_tool(self) -> bool:
        used = self._use_of_a_tool(_CALL_ID)
        if self._try([*used, self._message("user", "x")], [_TOOL]) is not None:
            return True
        return self._try(used, [_TOOL]) is None

    def _renders_long_call_id(self) -> bool:
        if self._try(self._use_of_a_tool(_LONG_CALL_ID), [_TOOL]) is not None:
            return True
        return self._try(self._use_of_a_tool(_CALL_ID), [_TOOL]) is None

    def _use_of_a_tool(self, call_id: str) -> Messages:
        user, call = self._message("user", "x"), {**_CALLING, **_WITHOUT_CONTENT[self.absent_content]}
        result = {**_RESULT, **self._message("tool", "x"), "tool_call_id": call_id}
        return [user, {**call, "tool_calls": [{**_CALL, "id": call_id}]}, result]

    def _conversation(self, role: str, content: Any) -> Messages:
        """Return one in which a message of this role has its usual place."""
        message = {"role": role, "content": content}
        if role == "user":
            return [message]
        user = self._message("user", "x")
        if role == "assistant":
            return [user, message, user]
        if role in ("tool", "function"):
            call = {**_CALLING, **_WITHOUT_CONTENT[self.absent_content]}
            return [user, call, {**_RESULT, **message}]
        return [message, user]

    def _message(self, role: str, text: str) -> dict[str, Any]:
        """Return a message as the template reads those of users, which is how it reads most."""
        is_text = self.reads_text("user") or not self.reads_parts("user")
        return {"role": role, "content": text if is_text else [{"type": "text", "text": text}]}

    def _shows(self, messages: Messages, *marks: str, tools: list[dict[str, Any]] | None = None) -> bool:
        text = self._try(messages, tools)
        return text is not None and all(mark in text for mark in marks)

    def _try(self, messages: Messages, tools: list[dict[str, Any]] | None = None) -> str | None:
        """Return the text, None where there is none."""
        try:
            return self._render(messages, tools)
        except RenderLimitError:
            raise
        except InvalidRequestError:
            return None
