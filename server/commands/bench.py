"""`orcinus bench`: measurements that anybody can repeat. Each is a module of its own."""

from collections.abc import Sequence
from importlib import import_module

from config.settings import SettingsError

_BENCHES = {"strategies": "the four batching strategies of the engine on one load of uneven lengths"}


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        return _print_help()
    if argv[0] not in _BENCHES:
        raise SettingsError(f"unknown measurement: {argv[0]}; there is {', '.join(_BENCHES)}")
    exit_code: int = import_module(f"server.commands.bench_{argv[0]}").main(argv[1:])
    return exit_code


def _print_help() -> int:
    print("usage: orcinus bench MEASUREMENT [OPTIONS]\n\nMeasurements:")
    for name, text in _BENCHES.items():
        print(f"  {name:<12} {text}")
    print("\nexample:\n  orcinus bench strategies --rounds 5 --json strategies.json --plot strategies.png")
    return 0
