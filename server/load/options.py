"""The flags that `orcinus bench serve` and `orcinus bench sweep` have in common, and what can be wrong with them."""

import argparse
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from orcinus.config.arguments import Parser
from orcinus.config.settings import SettingsError
from orcinus.engine.errors import OrcinusError
from orcinus.server.load.lengths import parse_lengths
from orcinus.server.load.report import NO_MATPLOTLIB

_DEFAULT_URL = "http://127.0.0.1:8000"


def whole_number(text: str) -> int:
    """A number from 1. Raises `ArgumentTypeError`."""
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def positive_number(text: str) -> float:
    """Above 0 and finite. Raises `ArgumentTypeError`."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def rate(text: str) -> float:
    """A number above 0, or `inf`. Raises `ArgumentTypeError`."""
    return math.inf if text == "inf" else positive_number(text)


def add_target_options(parser: Parser) -> None:
    target = parser.add_argument_group("Server")
    target.add_argument(
        "--base-url",
        default=_DEFAULT_URL,
        metavar="URL",
        help=f"where it is; unix:/path for a Unix socket [default: {_DEFAULT_URL}]",
    )
    target.add_argument(
        "--cacert", type=Path, metavar="FILE", help="certificates to trust, where the server's is nobody else's"
    )
    target.add_argument("--model", metavar="NAME", help="model to ask [default: the first of /v1/models]")
    target.add_argument(
        "--endpoint",
        choices=("completions", "chat"),
        default="completions",
        help="which API [default: completions]",
    )
    target.add_argument("--api-key", metavar="KEY", help="key to send")
    target.add_argument(
        "--timeout-s",
        type=positive_number,
        default=600.0,
        metavar="S",
        help="a request that takes longer has failed [default: 600]",
    )


def add_prompt_options(parser: Parser) -> None:
    prompts = parser.add_argument_group(
        "Prompts and outputs", "LENGTH is 128, uniform:32..128 or exponential:64,8..256 (mean, shortest..longest)."
    )
    for name, default, text in (
        ("prompt-tokens", "128", "tokens of a prompt"),
        ("output-tokens", "64", "most tokens of an answer"),
    ):
        prompts.add_argument(
            f"--{name}",
            type=parse_lengths,
            default=parse_lengths(default),
            metavar="LENGTH",
            help=f"{text} [default: {default}]",
        )
    prompts.add_argument(
        "--shared-prefix-tokens", type=_count, default=0, metavar="N", help="more tokens, the same in all prompts"
    )
    prompts.add_argument(
        "--num-prefixes",
        type=whole_number,
        default=1,
        metavar="N",
        help="different shared prefixes, in turn [default: 1]",
    )
    prompts.add_argument(
        "--prompt-form",
        choices=("auto", "tokens", "text"),
        default="auto",
        help="random token ids or random words [default: token ids where the server gives and takes them]",
    )
    prompts.add_argument(
        "--vocab-size", type=whole_number, metavar="N", help="take token ids below N [default: ask /tokenize for some]"
    )
    prompts.add_argument(
        "--dataset",
        type=Path,
        metavar="FILE",
        help='JSONL instead of random prompts: {"prompt": ...} or {"messages": ...}, and perhaps "max_tokens"',
    )
    prompts.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same load [default: 0]")
    _add_generation_options(prompts)


def add_report_options(parser: Parser, plot_help: str) -> "argparse._ArgumentGroup":
    """The group of these flags, for more of them."""
    report = parser.add_argument_group("Report")
    report.add_argument("--json", type=Path, metavar="FILE", help="write all numbers of all requests to FILE")
    report.add_argument("--plot", type=Path, metavar="FILE", help=plot_help)
    return report


def check_options(args: argparse.Namespace) -> None:
    """Raise `SettingsError` or `OrcinusError` for what can be known to be wrong before anything is sent."""
    if args.endpoint == "chat" and (args.prompt_form == "tokens" or args.vocab_size is not None):
        raise SettingsError("the chat endpoint takes no token ids; use --endpoint completions")
    if args.dataset is not None and (args.prompt_form, args.vocab_size, args.shared_prefix_tokens) != ("auto", None, 0):
        raise SettingsError("a dataset has its own prompts; leave out what random ones are made of")
    if args.num_prefixes > 1 and not args.shared_prefix_tokens:
        raise SettingsError("--num-prefixes needs --shared-prefix-tokens")
    for file in (args.json, args.plot):
        if file is not None and not file.parent.is_dir():
            raise SettingsError(f"there is no directory {file.parent} to write {file} in")
    if args.plot is not None and find_spec("matplotlib") is None:
        raise OrcinusError(NO_MATPLOTLIB)


def _add_generation_options(group: "argparse._ArgumentGroup") -> None:
    add_sampling_options(group)
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        help="generate all tokens (sends ignore_eos, which not every server has)",
    )
    group.add_argument(
        "--warmup", type=_count, default=0, metavar="N", help="requests before, not counted [default: 0]"
    )


def add_sampling_options(group: "argparse._ActionsContainer") -> None:
    """Add the flags for how tokens are chosen; see `sampling_fields`."""
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 for the likeliest tokens [default: 0]"
    )
    group.add_argument("--top-p", type=float, metavar="P", help="sample from the nucleus [default: not sent]")
    group.add_argument(
        "--top-k",
        type=whole_number,
        metavar="K",
        help="sample from the K likeliest tokens (not every server knows top_k) [default: not sent]",
    )


def sampling_fields(args: argparse.Namespace) -> dict[str, float]:
    """Return the fields of a request that say how tokens are chosen: the temperature, and what else was given."""
    given = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
    return {name: value for name, value in given.items() if value is not None}


def describe_sampling(fields: Mapping[str, float]) -> str:
    """Return them as `temperature 0.7, top_k 20`."""
    return ", ".join(f"{name} {value:g}" for name, value in fields.items())


def _count(text: str) -> int:
    return 0 if text == "0" else whole_number(text)
