"""What a person reads of a run: a line for each round as it ends, and a few for the whole."""

from tests.chaos.accounting import GENERATION_TOKENS, PREEMPTIONS, RESUMED, VerdictKind
from tests.chaos.run import RoundReport, RunReport

_KINDS: tuple[VerdictKind, ...] = ("complete", "refused", "late", "left", "bad", "wrong")
_COLUMNS = ("round", *_KINDS, "tokens", "deaths", "resumed", "preempted", "exact", "server MiB", "engine MiB", "s")
HEADER = " ".join(f"{name:>{max(len(name), 6)}}" for name in _COLUMNS)


def row(done: RoundReport) -> str:
    kinds = done.kinds
    cells = (
        str(done.number),
        *(str(kinds[kind]) for kind in _KINDS),
        *(f"{done.grown[GENERATION_TOKENS]:.0f}", str(done.deaths)),
        *(f"{done.grown[RESUMED]:.0f}", f"{done.grown[PREEMPTIONS]:.0f}"),
        *("yes" if done.is_exact else "bounds", str(done.memory.server >> 20), str(done.memory.engine >> 20)),
        f"{done.seconds:.1f}",
    )
    return " ".join(f"{cell:>{max(len(name), 6)}}" for cell, name in zip(cells, _COLUMNS, strict=True))


def summary(report: RunReport) -> str:
    kinds = report.kinds
    num_exact = sum(done.is_exact for done in report.rounds)
    lines = {
        "requests": f"{kinds.total()}: {', '.join(f'{kinds[kind]} {kind}' for kind in _KINDS)}",
        "rounds": f"{len(report.rounds)}, {num_exact} of them with every counter exact, the others within bounds",
        "tokens": f"{sum(done.grown[GENERATION_TOKENS] for done in report.rounds):.0f} generated",
        "engines": f"{sum(done.deaths for done in report.rounds)} killed or frozen,"
        f" {sum(done.grown[RESUMED] for done in report.rounds):.0f} sequences resumed",
        "preempted": f"{sum(done.grown[PREEMPTIONS] for done in report.rounds):.0f} sequences",
        "server MiB": " ".join(str(done.memory.server >> 20) for done in report.rounds),
        "engine MiB": " ".join(str(done.memory.engine >> 20) for done in report.rounds),
        "slowest probe": f"{report.worst_probe_s:.3f} s",
        "exit code": str(report.exit_code),
        "violations": str(len(report.problems)),
    }
    return "\n" + "\n".join(f"{name:<14} {value}" for name, value in lines.items())
