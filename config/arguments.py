"""Command-line flags made from the declarations in `config.settings`, with their help.

Values are passed on as text: `Settings` validates them, from whichever source they come. Knows nothing of commands.
"""

import argparse
from collections.abc import Collection, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo

from orcinus.config.foreign_flags import FOREIGN_FLAGS, explain_foreign
from orcinus.config.near_names import near_names
from orcinus.config.settings import GROUPS, Settings, SettingsError, load_settings
from orcinus.config.sources import env_name, flag_name
from orcinus.config.values import format_default, group_of, is_size, metavar_of, value_kind

_POSITIONAL_MODEL = "positional_model"
_SETTINGS_FLAG = "--max-model-len"  # where it is, there are settings


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `SettingsError` with close matches, instead of printing its usage and exiting."""

    def __init__(self, prog: str, usage: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse as `parse_args` does, and name what an unknown flag may have meant."""
        self._refuse_foreign(argv)
        args, unknown = self.parse_known_args(argv)
        if unknown:
            raise SettingsError("\n".join(self._explain(word) for word in unknown if self._is_shown(word, unknown)))
        return args

    def _refuse_foreign(self, argv: Sequence[str]) -> None:
        """Name what the flags of other servers are here, and whatever else is unknown beside them.

        Before argparse sees them: it would read `-hf` as `-h` and an `f`.
        """
        names = [word.partition("=")[0] for word in argv if word.startswith("-")]
        unknown = list(dict.fromkeys(name for name in names if name not in self._option_string_actions))
        if _SETTINGS_FLAG in self._option_string_actions and any(self._foreign(name) for name in unknown):
            lines = [
                self._foreign(name) or self._explain(name)
                for name in unknown
                if name.startswith("--") or self._foreign(name)
            ]
            raise SettingsError("\n".join(lines))

    def _foreign(self, name: str) -> str | None:
        return explain_foreign(name, frozenset(self._option_string_actions))

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)

    def _is_shown(self, word: str, unknown: Sequence[str]) -> bool:
        return word.startswith("-") or not any(other.startswith("-") for other in unknown)

    def _explain(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected argument: {word}"
        name = word.partition("=")[0]
        own = [flag for flag in self._option_string_actions if flag.startswith("--")]
        foreign = [flag for flag in sorted(FOREIGN_FLAGS) if flag.startswith("--")] if _SETTINGS_FLAG in own else []
        if close := near_names(name, own):
            hint = f"did you mean {' or '.join(close)}?"
        elif close := near_names(name, foreign, count=1):
            hint = f"did you mean {close[0]}? {self._foreign(close[0])}"
        else:
            hint = f"{self.prog} --help lists what there is"
        return f"unknown flag: {name}; {hint}"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formats help wide enough for a flag beside its text, and keeps the lines of a description."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Write `-o, --output FILE` in place of `-o FILE, --output FILE`."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def add_settings(
    parser: argparse.ArgumentParser,
    *,
    groups: Collection[str] = tuple(GROUPS),
    without: Collection[str] = (),
    positional_model: bool = False,
) -> None:
    """Give `parser` a flag for each setting of `groups`, grouped as in docs/reference/settings.md."""
    for group, meaning in GROUPS.items():
        if group not in groups:
            continue
        section = parser.add_argument_group(f"{group} ({meaning})")
        if group == "Model" and positional_model:
            section.add_argument(
                _POSITIONAL_MODEL, metavar="MODEL", nargs="?", default=argparse.SUPPRESS, help="same as --model"
            )
        for name, field in Settings.model_fields.items():
            if group_of(field) == group and name not in without:
                _add_flag(section, name, field)


def settings_from(args: argparse.Namespace) -> Settings:
    """Return the settings in force, of which `args` are the flags that were given. Raises `SettingsError`."""
    given = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    positional = getattr(args, _POSITIONAL_MODEL, None)
    if positional is not None:
        if given.get("model", positional) != positional:
            raise SettingsError(f"two models are given: {positional} and --model {given['model']}")
        given["model"] = positional
    return load_settings(**given)


def _add_flag(section: "argparse._ArgumentGroup", name: str, field: FieldInfo) -> None:
    section.add_argument(
        flag_name(name),
        dest=name,
        default=argparse.SUPPRESS,
        help=_help_text(name, field).replace("%", "%%"),
        **_flag_kind(name, field),
    )


def _flag_kind(name: str, field: FieldInfo) -> dict[str, Any]:
    kind = value_kind(field)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"metavar": "{" + ",".join(get_args(kind)) + "}"}
    metavar = metavar_of(field) or name.upper()
    return {"metavar": metavar, "action": "append" if get_origin(kind) is tuple else "store"}


def _help_text(name: str, field: FieldInfo) -> str:
    default = format_default(field)
    sized = " (bytes, or with a unit: 4GiB, 512MiB, 2G)" if is_size(field) else ""
    shown = f"default: {default}; " if default else ""
    return f"{field.description}{sized} [{shown}{env_name(name)}]"
