"""The keys that clients send: what one may do, and the files that hold them, plain or YAML.

A plain file has one key a line. A YAML file has a list `keys`, whose entries have names and limits; it is told by its
first line, `keys:`, or by its ending. No key is ever part of a message. Knows nothing of how keys are sent.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orcinus.config.limits import NO_LIMITS, ClientLimits, Limit
from orcinus.config.near_names import near_names
from orcinus.config.text_files import TextFileError, read_text

if TYPE_CHECKING:
    import yaml

MAX_NAMED_KEYS = 1000
MAX_LIMIT = 10**12
_CLIENT_BYTES = 8  # of a key's digest: enough to tell clients apart
_NAMED = "name:"  # what the client of a named key begins with; no digest does, and no name has a colon
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Holds the SHA-256 of a key, and what it may do.

    `models` are those that it may ask for, None: all. `expires_at` is in seconds since the epoch, None: never.
    """

    digest: bytes
    name: str = ""
    models: frozenset[str] | None = None
    expires_at: float | None = None
    is_admin: bool = False
    limits: ClientLimits = NO_LIMITS

    @property
    def client(self) -> str:
        """The name of the client inside the server: one for each name, or for each key that has none."""
        return f"{_NAMED}{self.name}" if self.name else self.digest[:_CLIENT_BYTES].hex()

    def may_use(self, model: str) -> bool:
        """Return whether it may ask for a model by this name."""
        return self.models is None or model in self.models


NO_KEY = ApiKey(b"")


def key_name(client: str | None) -> str | None:
    """Return the name of the key that a client has; None if it has none."""
    return client.removeprefix(_NAMED) if client and client.startswith(_NAMED) else None


def digest_of(key: str, where: str) -> bytes:
    """Return the SHA-256 of a key, which may be given as that: `sha256:` and 64 hexadecimal digits.

    Raises `ValueError`, without the key, if no client could send it, or it begins as a hash and is none.
    """
    check_key(key, where)
    if not key.lower().startswith("sha256:"):
        return hashlib.sha256(key.encode()).digest()
    match = _HASH.fullmatch("sha256:" + key[7:])
    if match is None:
        raise ValueError(f"{where} begins with sha256: and must have 64 hexadecimal digits after it")
    return bytes.fromhex(match[1])


def check_key(key: str, where: str) -> None:
    """Raise `ValueError`, without the key, if no client could send it: headers take no control characters."""
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in key):
        raise ValueError(f"{where} has a control character, which no header can carry")
    if key != key.strip(" \t"):
        raise ValueError(f"{where} begins or ends with a space, which headers do not keep")
    if any(0xD800 <= ord(character) < 0xE000 for character in key):
        raise ValueError(f"{where} has half of a character, which UTF-8 cannot write")


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys in a file, of either form. Raises `TextFileError`, which names the line and no key."""
    text = read_text(path)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    try:
        if path.suffix in (".yaml", ".yml") or (lines and re.fullmatch(r"---|keys\s*:.*", lines[0][1])):
            return _read_yaml(text)
        return tuple(_read_line(number, line) for number, line in lines)
    except ValueError as error:
        raise TextFileError(path, str(error)) from None


def check_distinct(keys: Sequence[ApiKey], others: Iterable[ApiKey] = ()) -> None:
    """Raise `ValueError` where a named key is among `others`, which have none and would leave open whose it is."""
    unnamed = {key.digest for key in others if not key.name}
    for key in keys:
        if key.name and key.digest in unnamed:
            raise ValueError(f"the key of {key.name} is given as api_key, too: whose is it?")


def _read_line(number: int, line: str) -> ApiKey:
    """Return the key in a line of a plain file. What was meant as YAML must not open as it is written."""
    if re.match(rf"(-\s+)?({'|'.join(_Entry.model_fields)})\s*:(\s|$)", line):
        raise ValueError(f"line {number} looks like YAML: let the file begin with the line 'keys:'")
    return ApiKey(digest_of(line, f"the key in line {number}"))


# --- YAML ---------------------------------------------------------------------------------------------------

_Count = Annotated[int | None, Field(ge=1, le=MAX_LIMIT)]


class _Entry(BaseModel):
    """An entry of `keys`, as it is written."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    name: str = Field(pattern=_NAME)
    key: str | list[str] = Field(min_length=1)
    models: list[str] | None = Field(None, min_length=1)
    expires: datetime | date | str | None = None
    admin: bool = False
    max_requests: _Count = None
    max_requests_per_minute: _Count = None
    max_tokens_per_minute: _Count = None
    max_tokens: _Count = None


_ALLOWED = {
    "name": "1 to 64 letters, digits and . _ - @ that begin with a letter or a digit (in quotes where it is a number)",
    "key": "the key (in quotes where it is a number), sha256: and its hash, or a list of such",
    "models": "a list of names that are served",
    "expires": "a date or a time such as 2027-01-31 or 2027-01-31T12:00:00Z",
    "admin": "true or false",
    **dict.fromkeys((each.name for each in fields(ClientLimits)), f"a whole number from 1 to {MAX_LIMIT}"),
}


def _read_yaml(text: str) -> tuple[ApiKey, ...]:
    """Return the keys of a YAML file. Raises `ValueError`, of one line."""
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        entries = [_read_entry(loader, node) for node in _entries(loader.get_single_node())]
    except yaml.YAMLError as error:
        raise ValueError(_explain_yaml(error, text)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    finally:
        loader.dispose()
    if len(entries) > MAX_NAMED_KEYS:
        raise ValueError(f"it has {len(entries)} named keys, and may have {MAX_NAMED_KEYS}")
    names = Counter(keys[0].name for keys in entries)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two entries have the name {twice[0]}")
    return tuple(_distinct([key for keys in entries for key in keys]))


def _entries(root: "yaml.Node | None") -> list["yaml.Node"]:
    """Return the nodes of the list `keys`."""
    from yaml import MappingNode, SequenceNode

    if root is None:
        return []
    if not isinstance(root, MappingNode) or [key.value for key, _ in root.value] != ["keys"]:
        raise ValueError("it must hold the list 'keys:' and nothing beside it")
    entries = root.value[0][1]
    if entries.tag == "tag:yaml.org,2002:null":
        return []
    if not isinstance(entries, SequenceNode):
        raise ValueError("'keys:' must hold a list, whose entries begin with '- name: '")
    return list(entries.value)


def _read_entry(loader: "yaml.SafeLoader", node: "yaml.Node") -> list[ApiKey]:
    """Return the keys of one entry: more than one where one takes the place of another."""
    from yaml import MappingNode

    where = f"the entry in line {node.start_mark.line + 1}"
    if not isinstance(node, MappingNode):
        raise ValueError(f"{where} must have a name and a key, such as '- name: batch'")
    given = [str(key.value) for key, _ in node.value]
    if twice := [field for field in dict.fromkeys(given) if given.count(field) > 1]:
        raise ValueError(f"{where} has {twice[0][:40]} twice")
    try:
        written = loader.construct_object(node, deep=True)
    except ValueError:  # of a date that there is not
        raise ValueError(f"{where}: expires must be {_ALLOWED['expires']}") from None
    try:
        return _to_keys(_Entry.model_validate(written), where)
    except ValidationError as error:
        raise ValueError(_explain_entry(error, written, where)) from None


def _to_keys(entry: _Entry, where: str) -> list[ApiKey]:
    limits = {
        each.name: Limit(value, f"{each.name} of key {entry.name}")
        for each in fields(ClientLimits)
        if (value := getattr(entry, each.name)) is not None
    }
    written = [entry.key] if isinstance(entry.key, str) else entry.key
    if not all(written):
        raise ValueError(f"{where}: key must be {_ALLOWED['key']}")
    return [
        ApiKey(
            digest_of(key, f"the key of {entry.name}, in {where},"),
            entry.name,
            None if entry.models is None else frozenset(entry.models),
            _timestamp(entry.expires, where),
            entry.admin,
            ClientLimits(**limits),
        )
        for key in written
    ]


def _timestamp(when: datetime | date | str | None, where: str) -> float | None:
    """Return seconds since the epoch. A time without an offset is UTC's, and a date its first moment."""
    if when is None:
        return None
    if isinstance(when, str):
        text = when
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{where}: expires must be {_ALLOWED['expires']}, got {text[:40]!r}") from None
    if not isinstance(when, datetime):
        when = datetime(when.year, when.month, when.day, tzinfo=UTC)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _distinct(keys: Sequence[ApiKey]) -> Sequence[ApiKey]:
    """Return the keys. Raises `ValueError` where one is there twice."""
    owners: dict[bytes, ApiKey] = {}
    for key in keys:
        other = owners.setdefault(key.digest, key)
        if other is not key:
            whose = (
                f"{other.name} has a key twice" if other.name == key.name else f"{other.name} and {key.name} have one"
            )
            raise ValueError(f"{whose}: each key must be of one name")
    return keys


def _explain_entry(error: ValidationError, written: Any, where: str) -> str:
    """Return one line about the first fault of an entry. What it has as key is not shown."""
    problem: Any = error.errors(include_url=False)[0]
    field = str(problem["loc"][0])
    if field not in _ALLOWED:
        close = near_names(field, list(_ALLOWED), count=1)
        known = f"did you mean {close[0]}?" if close else f"known are {', '.join(_ALLOWED)}"
        return f"{where} has an unknown field {field[:40]!r}; {known}"
    if problem["type"] == "missing":
        return f"{where} has no {field}"
    got = "" if field == "key" else f", got {str(written[field])[:60]!r}"
    return f"{where}: {field} must be {_ALLOWED[field]}{got}"


def _explain_yaml(error: "yaml.YAMLError", text: str) -> str:
    """Return where a file ceases to be YAML. The parser's own words quote the line, which may hold a key."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return "it is not YAML"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    hint = ": indent with spaces, not with tabs" if "\t" in line[: len(line) - len(line.lstrip())] else ""
    return f"it is not YAML in line {mark.line + 1}, column {mark.column + 1}{hint}"
