"""The printed summary of a load, laid out and named as users of other load generators know it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from orcinus.server.load.figures import Spread, Summary

_LABEL_WIDTH = 44
_VALUE_WIDTH = 12
_BUSY_CLIENT = 0.8
_MERGED = 1.05  # tokens per chunk; below are answers whose last token has no text


def format_summary(summary: Summary, objectives_ms: Mapping[str, float]) -> str:
    sections = [
        _section("Serving benchmark", "=", _totals(summary)),
        *(_section(title, "-", _latency(name, spread)) for title, name, spread in _latencies(summary)),
    ]
    if summary.goodput is not None:
        sections.append(_section("Goodput", "-", _goodput(summary, objectives_ms)))
    sections.append(_section("Client", "-", [("Client CPU (share of one core):", f"{summary.client_cpu:.1%}")]))
    return "\n".join([*sections, "=" * (_LABEL_WIDTH + _VALUE_WIDTH), *notes_on([summary])])


def notes_on(summaries: Sequence[Summary]) -> list[str]:
    """A line for each thing that makes the numbers less than they seem."""
    return [f"Note: {note}" for note in dict.fromkeys(note for summary in summaries for note in _notes(summary))]


def _section(title: str, rule: str, rows: Iterable[tuple[str, str]]) -> str:
    heading = f" {title} ".center(_LABEL_WIDTH + _VALUE_WIDTH, rule)
    return "\n".join([heading, *(f"{label:<{_LABEL_WIDTH}}{value:>{_VALUE_WIDTH}}" for label, value in rows)])


def _totals(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "Successful requests:", f"{summary.num_succeeded}"
    yield "Failed requests:", f"{summary.num_failed}"
    for reason, count in summary.failures.items():
        yield f"  {reason}", f"{count}"
    yield "Benchmark duration (s):", f"{summary.duration_s:.2f}"
    yield "Prompt tokens, asked for:", _count(summary.asked_prompt_tokens)
    yield "Prompt tokens, counted by the server:", _count(summary.prompt_tokens)
    yield "  of them from its cache:", _count(summary.cached_tokens)
    yield "Generated tokens, at most:", f"{summary.asked_output_tokens}"
    yield "Generated tokens:", f"{summary.output_tokens}"
    yield "Request throughput (req/s):", f"{summary.requests_per_s:.2f}"
    yield "Output token throughput (tok/s):", f"{summary.output_tokens_per_s:.2f}"
    yield "Peak output token throughput (tok/s):", f"{summary.peak_output_tokens_per_s:.2f}"
    yield "Total token throughput (tok/s):", _decimal(summary.total_tokens_per_s)
    yield "Peak concurrent requests:", f"{summary.peak_concurrency}"


def _latencies(summary: Summary) -> list[tuple[str, str, Spread | None]]:
    return [
        ("Time to first token", "TTFT", summary.ttft_ms),
        ("Time per output token (after the first)", "TPOT", summary.tpot_ms),
        ("Inter-token latency (between chunks)", "ITL", summary.itl_ms),
        ("End-to-end latency", "E2EL", summary.e2el_ms),
    ]


def _latency(name: str, spread: Spread | None) -> Iterator[tuple[str, str]]:
    shown = ("mean", "median", "p90", "p99", "std")
    for statistic in shown:
        value = None if spread is None else getattr(spread, statistic)
        yield f"{statistic.capitalize()} {name} (ms):", _decimal(value)


def _goodput(summary: Summary, objectives_ms: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    assert summary.goodput is not None
    limits = ", ".join(f"{name} {limit_ms:g} ms" for name, limit_ms in objectives_ms.items())
    yield "Request goodput (req/s):", f"{summary.goodput.requests_per_s:.2f}"
    yield f"Within {limits}:", f"{summary.goodput.share:.1%}"


def _notes(summary: Summary) -> Iterator[str]:
    if not summary.are_tokens_counted:
        yield "the server counts no tokens: every chunk is taken for one"
    elif summary.tokens_per_chunk > _MERGED:
        yield f"a chunk holds {summary.tokens_per_chunk:.2f} tokens on average: ITL is per chunk, TPOT per token"
    if summary.cached_tokens:
        yield "the server had seen some prompts before; another --seed makes new ones"
    if summary.client_cpu > _BUSY_CLIENT:
        yield "this client was short of CPU: the server may be faster than measured"


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
