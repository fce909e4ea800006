"""`orcinus usage`: what named keys have used, from the file that the server keeps. It may run beside the server."""

import json
from collections.abc import Sequence

from orcinus.config.arguments import Parser, add_settings, settings_from
from orcinus.config.settings import Settings, SettingsError
from orcinus.server.usage.query import parse_by, parse_since, rows_of
from orcinus.server.usage.store import Groups, Usage, read_usage

_DESCRIPTION = """\
Show what each named key has used, by the file that `orcinus serve --usage-db FILE` keeps. The server need not run.

Counted are requests that have ended; errors are those that ended by an error or by their deadline. Days are of UTC.
"""
_EPILOG = """\
examples:
  orcinus usage --usage-db usage.db
  orcinus usage --usage-db usage.db --since 2027-01-01 --by day,key
  orcinus usage --usage-db usage.db --by key --by model --json
"""


def main(argv: Sequence[str]) -> int:
    """Print a table, or JSON. Raises `SettingsError`, and `UsageUnavailableError`."""
    parser = Parser("orcinus usage", "[OPTIONS]", _DESCRIPTION, _EPILOG)
    parser.add_argument("--since", metavar="DAY", default="", help="first day that counts, such as 2027-01-31")
    parser.add_argument(
        "--by", metavar="NAMES", action="append", default=[], help="sum by day, key or model, or several of them [key]"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, as GET /v1/usage answers")
    wanted = ("usage_db", "config")
    add_settings(
        parser, groups=("Server", "General"), without=[name for name in Settings.model_fields if name not in wanted]
    )
    args = parser.parse(argv)
    try:
        by = parse_by(args.by)
        since = parse_since(args.since) if args.since else ""
    except ValueError as error:
        raise SettingsError(f"--{error}") from None
    path = settings_from(args).usage_db
    if path is None:
        raise SettingsError("which file? give --usage-db FILE, as to the server")
    if not path.exists():
        raise SettingsError(
            f"there is no {path}: a server with --usage-db makes it when a named key has asked something"
        )
    groups = read_usage(path, by, since)
    print(_as_json(groups, by) if args.json else _as_table(groups, by))
    return 0


def _as_json(groups: Groups, by: Sequence[str]) -> str:
    return json.dumps({"object": "list", "by": [*by], "data": [*rows_of(groups, by)]}, indent=2)


def _as_table(groups: Groups, by: Sequence[str]) -> str:
    """Return aligned columns, texts to the left and counts to the right, with their sum in the last line."""
    total = Usage()
    for usage in groups.values():
        total = total.plus(usage)
    header = [*by, *(name.replace("_", " ") for name in Usage._fields)]
    lines = [header, *([*group, *(f"{n:,}" for n in usage)] for group, usage in groups.items())]
    lines.append(["total", *[""] * (len(by) - 1), *(f"{n:,}" for n in total)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(_aligned(line, widths, len(by))).rstrip() for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int], num_texts: int) -> list[str]:
    pairs = zip(line, widths, strict=True)
    return [text.ljust(width) if i < num_texts else text.rjust(width) for i, (text, width) in enumerate(pairs)]
