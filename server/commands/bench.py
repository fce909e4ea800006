"""`orcinus bench`: measurements that anybody can repeat. Each is a module of its own."""

from collections.abc import Sequence
from importlib import import_module

from orcinus.config.settings import SettingsError

_BENCHES = {
    "strategies": "the batching strategies and naive baselines on one load of uneven lengths",
    "serve": "load on any running server with an OpenAI API: throughput and latencies",
    "sweep": "the same at one batch size after the other",
}
_EXAMPLES = """\
examples:
  orcinus bench strategies --rounds 5 --json strategies.json --plot strategies.png
  orcinus bench serve --base-url http://127.0.0.1:8000 --max-concurrency 32
  orcinus bench sweep --concurrency 1,8,64 --ignore-eos --plot sweep.png"""


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        return _print_help()
    if argv[0] not in _BENCHES:
        raise SettingsError(f"unknown measurement: {argv[0]}; there is {', '.join(_BENCHES)}")
    exit_code: int = import_module(f"orcinus.server.commands.bench_{argv[0]}").main(argv[1:])
    return exit_code


def _print_help() -> int:
    print("usage: orcinus bench MEASUREMENT [OPTIONS]\n\nMeasurements:")
    for name, text in _BENCHES.items():
        print(f"  {name:<12} {text}")
    print(f"\n{_EXAMPLES}")
    return 0
