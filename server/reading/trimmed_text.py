"""The text of a message that comes in several parts, without the white space at its ends."""

from collections.abc import Callable


class TrimmedText:
    """Gives text on as it comes. White space at its end is held back until more follows.

    `separator` takes the place of the white space between two parts; None leaves it as it was. Without `strip` all of
    it is given.
    """

    def __init__(self, give: Callable[[str], None], *, strip: bool = True, separator: str | None = None) -> None:
        self._give = give
        self._strip = strip
        self._separator = separator
        self._has_begun = False  # so that white space belongs to the text
        self._has_given = False
        self._before = ""  # the text that comes next
        self._space: list[str] = []

    def begin_part(self) -> None:
        if self._separator is not None and (self._has_begun or self._before):
            self._restart(self._separator if self._has_given else "")

    def begin_again(self) -> None:
        """Leave out the white space that was held, and what comes next: something else stands between."""
        if self._strip:
            self._restart("")

    def give(self, text: str, *, is_prompt: bool = False) -> None:
        """Add text; what the prompt has written already only tells where the text stands."""
        if not self._strip:
            self._hand_on(text, is_prompt=is_prompt)
            return
        body = text.rstrip()
        space = text[len(body) :]
        if body:
            self._hand_on("".join(self._space) + body if self._has_begun else body.lstrip(), is_prompt=is_prompt)
            self._space.clear()
        if space and self._has_begun and not is_prompt:
            self._space.append(space)

    def give_untrimmed(self, text: str) -> None:
        """Add text that belongs here with the white space at its ends."""
        self._hand_on("".join(self._space) + text, is_prompt=False)
        self._space.clear()

    def _hand_on(self, text: str, *, is_prompt: bool) -> None:
        if text and not is_prompt:
            self._give(self._before + text)
            self._has_given = True
        self._before = ""
        self._has_begun = True

    def _restart(self, before: str) -> None:
        self._before = before
        self._space.clear()
        self._has_begun = False
