"""Names of parameters in errors, as the API has them that the client speaks.

Every API that speaks in messages makes a chat of its body, and what reads that blames the parameters of a chat.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence

from orcinus.engine.errors import ContextLengthError, InvalidRequestError
from orcinus.server.requests.left_out import renaming_left_out

Renaming = tuple[re.Pattern[str], str]


@contextlib.contextmanager
def naming_parameters(names: Sequence[Renaming]) -> Iterator[None]:
    """Rename what an error blames, and what is left out: the parameters of a chat to those that the client knows."""
    try:
        with renaming_left_out(lambda place: _rename(place, names)):
            yield
    except InvalidRequestError as error:
        raise _renamed(error, names) from error


def _renamed(error: InvalidRequestError, names: Sequence[Renaming]) -> InvalidRequestError:
    """Return the same error with the other name, in our own words too: a template's come after them."""
    if error.param is None:
        return error
    # The bound on what is generated is named wherever the context is.
    told = {error.param, "max_tokens"} if isinstance(error, ContextLengthError) else {error.param}
    text = str(error)
    for name in told:
        whole_name = re.compile(rf"(?<![\w.]){re.escape(name)}(?!\w)")
        text = whole_name.sub(_rename(name, names).replace("\\", r"\\"), text, count=1)
    if isinstance(error, ContextLengthError):
        return type(error)(text, _rename(error.param, names), error.sizes)
    return type(error)(text, _rename(error.param, names))


def _rename(name: str, names: Sequence[Renaming]) -> str:
    for pattern, other in names:
        name = pattern.sub(other, name)
    return name
