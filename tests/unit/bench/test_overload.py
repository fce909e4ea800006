from bench.overload import HEAD, Load, Refusal, Sample, table
from orcinus.server.load.answers import RequestRecord


def answered(sent_s: float, times_s: list[float]) -> RequestRecord:
    return RequestRecord(
        sent_s=sent_s,
        ended_s=times_s[-1],
        asked_prompt_tokens=8,
        asked_output_tokens=2 * len(times_s),
        chunk_times_s=times_s,
        completion_tokens=2 * len(times_s),
    )


def load(factor: float, *outcomes: RequestRecord | Refusal) -> Load:
    samples = [Sample(100.0, 50 * 2**20, 1.0, 2.0), Sample(110.0, 51 * 2**20, 6.0, 4.0)]
    return Load(factor=factor, started_s=100.0, seconds=10.0, outcomes=[*outcomes], samples=samples)


def test_goodput_counts_tokens_of_answered_requests_while_the_load_was_steady() -> None:
    steady = load(1, answered(100.0, [101.0, 103.0, 105.0, 111.0]), Refusal(429, "3"))
    assert steady.goodput(steady.answered) == 4 / 8


def test_a_row_tells_what_became_of_every_request() -> None:
    quick, slow = answered(103.0, [104.0, 105.0]), answered(103.0, [106.0, 107.0])
    refusals = [Refusal(429, "3"), Refusal(429, "7"), Refusal(0, "the connection was closed")]
    text = table([load(1, quick, slow), load(10, quick, *refusals)], {"ttft": 2000.0})
    head, _, first, second = text.splitlines()
    assert head == HEAD
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        *("1x", "0.2", "2", "0", "0", "1", "100%", "0", "2000", "2980", "1000", "1000", "-"),
        *("0.50", "0.20", "50 to 51"),
    ]
    assert [cell.strip() for cell in second.strip("|").split("|")][2:7] == ["1", "2", "1", "0", "50%"]
    assert "3 to 7" in second
