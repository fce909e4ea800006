"""Text files that people write, with whatever editor: UTF-8, with or without a byte order mark.

Knows nothing of what is in them.
"""

import codecs
from pathlib import Path

BOM = codecs.BOM_UTF8
# The longest first: UTF-32's begins as UTF-16's does.
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class TextFileError(ValueError):
    """A file cannot be read as text. `reason` says why, the message names the file too."""

    def __init__(self, name: Path | str, reason: str) -> None:
        super().__init__(f"cannot read {name}: {reason}")
        self.reason = reason


def read_text(path: Path) -> str:
    """Return the text of a file, without a byte order mark. Raises `TextFileError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TextFileError(path, error.strerror or str(error)) from None
    check_encoding(content, path)
    try:
        return content.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextFileError(path, f"it is not UTF-8 text, at byte {error.start + 1}") from None


def check_encoding(beginning: bytes, name: Path | str) -> None:
    """Raise `TextFileError` for text that begins as UTF-16 or UTF-32 does, with a byte order mark or without."""
    found = next((encoding for mark, encoding in _OTHER_ENCODINGS.items() if beginning.startswith(mark)), None)
    if found is None and b"\x00" in beginning[:4]:
        found = "UTF-16 or UTF-32"
    if found is not None:
        raise TextFileError(name, f"it is not UTF-8 text but {found}: save it as UTF-8")
