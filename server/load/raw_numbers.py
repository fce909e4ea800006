"""All numbers of loads in a JSON file: what was asked for, what it adds up to, and every request."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from orcinus.server.load.answers import RequestRecord
from orcinus.server.load.figures import Summary
from orcinus.server.load.run import LoadRun


def write_numbers(
    file: Path, description: str, args: argparse.Namespace, measured: Sequence[tuple[LoadRun, Summary]]
) -> None:
    """Write one report; times of requests are in seconds after the start of their load. The key is left out."""
    report = {
        "description": description,
        "arguments": {name: value for name, value in vars(args).items() if name != "api_key"},
        "runs": [
            {"summary": asdict(summary), "requests": [_request(record) for record in run.records]}
            for run, summary in measured
        ],
    }
    file.write_bytes(msgspec.json.encode(report, enc_hook=str) + b"\n")


def _request(record: RequestRecord) -> dict[str, Any]:
    return {**asdict(record), "ttft_s": record.ttft_s, "tpot_s": record.tpot_s, "e2e_s": record.e2e_s}
