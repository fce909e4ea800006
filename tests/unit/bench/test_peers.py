"""The comparison with other servers, without any: what is asked, what it adds up to, and how an arm is handled."""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.peers.__main__ import compare, loads_of, parse_arguments
from bench.peers.arms import Launch, Setting, parse_arms
from bench.peers.drivers.conversation import Answer
from bench.peers.figures import Start, Surroundings, Window, median, of, ratios, rotated, window_of
from bench.peers.loads import (
    Load,
    fixed_load,
    parse_rates,
    parse_streams,
    poisson_load,
    sampled,
    skewed_load,
    wake_up_load,
    warm_up_of,
)
from bench.peers.machine import proc_bytes
from bench.peers.report import Comparison, format_report
from bench.peers.roofline import ModelBytes, bytes_read, ceiling_tokens_per_s, kv_bytes_per_token
from bench.peers.serving import RunningArm, load_run
from orcinus.engine.errors import OrcinusError
from orcinus.server.load.figures import summarize
from orcinus.server.load.prompts import LoadItem

VOCAB_SIZE = 1000
CONFIG = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}

# A driver of a peer that makes a token a second and says things where only answers belong.
FAKE_DRIVER = """
from bench.peers.drivers.conversation import Answer, converse

def run(requests, max_concurrency, sampling):
    print("the peer talks while it runs, by", sampling)
    return [Answer(len(prompt), 5.0, count, [6.0 + i for i in range(count)]) for prompt, count in requests]

def load():
    print("the peer talks while it loads")
    return run, {"threads": 2}

converse(load)
"""


def window(arm: str, number: int, tokens_per_s: float, load: str = "1 streams", **more: Any) -> Window:
    made = Window(
        arm=arm,
        load=load,
        round=number,
        tokens_per_s=tokens_per_s,
        ttft_ms=100.0,
        itl_p50_ms=10.0,
        itl_p99_ms=20.0,
        itl_max_ms=30.0,
        num_failed=0,
        missing_tokens=0,
        bandwidth_gb_per_s=40.0,
        arm_cores=1.9,
        foreign_cores=0.0,
        ceiling_tokens_per_s=80.0,
    )
    return dataclasses.replace(made, **more)


def comparison(windows: list[Window], arms: list[str], loads: list[str]) -> Comparison:
    starts = [Start(arm=arm, startup_s=2.5, peak_bytes=3 * 10**9) for arm in arms]
    return Comparison(heading="Peers", facts=["a machine"], arms=arms, loads=loads, windows=windows, starts=starts)


def cells(report: str, row: str) -> list[list[str]]:
    """The rows of all tables that begin with `row`."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines()]
    return [line for line in lines if line[0] == row]


def test_every_arm_is_asked_the_same_and_every_round_something_else() -> None:
    load = fixed_load(4, 16, 8)
    assert load.items(VOCAB_SIZE, "round 0") == load.items(VOCAB_SIZE, "round 0")
    assert load.items(VOCAB_SIZE, "round 0") != load.items(VOCAB_SIZE, "round 1")
    assert [(item.prompt_tokens, item.max_tokens) for item in load.items(VOCAB_SIZE, "round 1")] == [(16, 8)] * 4


def test_the_skewed_load_has_the_same_lengths_in_every_round() -> None:
    load = skewed_load(64, 16)
    first, second = load.items(VOCAB_SIZE, "round 0"), load.items(VOCAB_SIZE, "round 1")
    assert [item.max_tokens for item in first] == [item.max_tokens for item in second]
    assert (load.num_requests, load.max_concurrency, load.longest) == (64, 16, 384)
    assert {32 <= len(item.prompt) <= 128 and 8 <= item.max_tokens <= 256 for item in first} == {True}


def test_prompts_have_no_special_tokens_and_no_bytes() -> None:
    ids = itertools.chain.from_iterable(item.prompt for item in fixed_load(8, 64, 4).items(VOCAB_SIZE, ""))
    assert {259 <= int(str(token)) < VOCAB_SIZE for token in ids} == {True}


@pytest.mark.parametrize("load", [fixed_load(32, 128, 128), skewed_load(64, 16)])
def test_an_arm_is_warmed_up_with_as_many_streams_and_as_long_prompts_that_do_not_come_again(load: Load) -> None:
    warm_up = warm_up_of(load, 16)
    assert (warm_up.max_concurrency, warm_up.num_requests) == (load.max_concurrency, load.max_concurrency)
    assert warm_up.shape.prompt_tokens == load.shape.prompt_tokens
    assert {item.max_tokens for item in warm_up.items(VOCAB_SIZE, "arm")} == {16}
    prompts = {tuple(item.prompt) for item in load.items(VOCAB_SIZE, "round 0")}
    assert prompts.isdisjoint(tuple(item.prompt) for item in warm_up.items(VOCAB_SIZE, "arm"))


def test_an_arm_is_woken_up_by_one_short_request() -> None:
    assert (wake_up_load().num_requests, wake_up_load().longest) == (1, 40)


def test_streams_are_whole_numbers() -> None:
    assert parse_streams("1,4,16") == [1, 4, 16]
    with pytest.raises(argparse.ArgumentTypeError, match="'1,0'"):
        parse_streams("1,0")


def test_rates_are_numbers_above_0() -> None:
    assert parse_rates("0.4,1") == [0.4, 1.0]
    with pytest.raises(argparse.ArgumentTypeError, match="'0'"):
        parse_rates("0.4,0")


def test_requests_at_a_rate_come_at_the_same_random_times_for_every_arm() -> None:
    load = poisson_load(0.5, 200, seed=0)
    assert load.arrivals == poisson_load(0.5, 200, seed=0).arrivals != poisson_load(0.5, 200, seed=1).arrivals
    assert load.arrivals[0] == 0.0
    assert load.arrivals[-1] == pytest.approx(400, rel=0.2)
    lengths = [(item.prompt_tokens or 0, item.max_tokens) for item in load.items(VOCAB_SIZE, "round 0")]
    assert {64 <= prompt <= 768 and 32 <= output <= 160 for prompt, output in lengths} == {True}
    assert lengths == [(item.prompt_tokens, item.max_tokens) for item in load.items(VOCAB_SIZE, "round 1")]


def test_the_warm_up_of_requests_at_a_rate_is_all_at_once() -> None:
    warm_up = warm_up_of(poisson_load(0.5, 50, seed=0), 16)
    assert (warm_up.num_requests, warm_up.max_concurrency, warm_up.arrivals) == (32, 32, ())
    assert warm_up_of(poisson_load(0.5, 4, seed=0), 16).num_requests == 4


def test_a_step_reads_the_weights_once_and_the_cache_of_every_sequence() -> None:
    model = ModelBytes(weights=1000, kv_per_token=10)
    assert bytes_read(model, [(4, 3)], slots=1) == 3 * 1000 + (4 + 5 + 6) * 10
    assert bytes_read(model, [(4, 3), (4, 3)], slots=2) == 3 * 1000 + 2 * (4 + 5 + 6) * 10
    assert bytes_read(model, [(4, 3), (4, 3)], slots=1) == 6 * 1000 + 2 * (4 + 5 + 6) * 10


def test_the_longest_answer_needs_as_many_steps_however_many_slots_there_are() -> None:
    assert bytes_read(ModelBytes(1000, 0), [(1, 50), (1, 2), (1, 2)], slots=3) == 50 * 1000


def test_the_ceiling_is_the_tokens_over_the_time_to_read() -> None:
    assert ceiling_tokens_per_s(ModelBytes(10**9, 0), [(128, 128)], 1, bandwidth_gb_per_s=40.0) == pytest.approx(40.0)
    assert ceiling_tokens_per_s(ModelBytes(10**9, 0), [(128, 8)] * 4, 4, 40.0) == pytest.approx(160.0)


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1), st.integers(1, 64))
def test_more_slots_never_lower_the_ceiling(lengths: list[tuple[int, int]], slots: int) -> None:
    model = ModelBytes(1000, 3)
    assert ceiling_tokens_per_s(model, lengths, slots + 1, 40.0) >= ceiling_tokens_per_s(model, lengths, slots, 40.0)


def test_the_cache_of_a_token_is_told_from_the_configuration() -> None:
    assert kv_bytes_per_token(CONFIG) == 2 * 2 * 28 * 8 * 128
    assert kv_bytes_per_token({"n_layer": 12, "n_head": 12, "n_embd": 768}) == 2 * 2 * 12 * 768


def test_another_arm_is_the_first_in_each_round() -> None:
    orders = [rotated("abc", number) for number in range(4)]
    assert ["".join(order) for order in orders] == ["abc", "bca", "cab", "abc"]


def test_ratios_are_taken_within_a_round() -> None:
    windows = [
        window("a", 0, 10.0),
        window("b", 0, 5.0),
        window("b", 1, 40.0),
        window("a", 1, 20.0),
        window("a", 2, 9.0),
    ]
    assert ratios(windows, "a", "b", "1 streams") == [2.0, 0.5]
    assert ratios(windows, "a", "b", "another load") == []


def test_a_median_is_over_the_rounds_that_have_the_figure() -> None:
    windows = [window("a", number, 1.0, itl_max_ms=itl_ms) for number, itl_ms in enumerate((None, 4.0, 2.0))]
    assert median(windows, lambda w: w.itl_max_ms) == 3.0
    assert median(of(windows, "b", "1 streams"), lambda w: w.tokens_per_s) is None


def test_a_window_tells_the_longest_gap_and_the_tokens_that_did_not_come() -> None:
    items = [LoadItem(prompt=[1, 2], max_tokens=4, prompt_tokens=2)] * 2
    answers = [Answer(2, 10.0, 4, [11.0, 11.1, 11.2, 11.3]), Answer(2, 10.0, 3, [11.0, 11.5, 12.0])]
    run = load_run(answers, items)
    around = Surroundings(
        arm="a",
        load="x",
        round=1,
        bandwidth_gb_per_s=40.0,
        arm_cores=1.5,
        foreign_cores=0.5,
        ceiling_tokens_per_s=35.0,
    )
    measured = window_of(run, summarize(run, {}), around)
    assert measured.tokens_per_s == pytest.approx(7 / 2)
    assert measured.share_of_ceiling == pytest.approx(0.1)
    assert measured.ttft_ms == pytest.approx(1000.0)
    assert measured.itl_max_ms == pytest.approx(500.0)
    assert (measured.missing_tokens, measured.num_failed) == (1, 0)
    assert (measured.arm_cores, measured.foreign_cores) == (1.5, 0.5)


def test_an_answer_without_tokens_has_failed() -> None:
    items = [LoadItem(prompt=[1], max_tokens=1, prompt_tokens=1)] * 2
    run = load_run([Answer(1, 0.0, 1, [1.0]), Answer(1, 0.0, error="out of memory")], items)
    assert [(record.failure, record.error) for record in run.records] == [(None, None), ("no answer", "out of memory")]


def test_the_report_has_medians_ratios_and_shares() -> None:
    windows = [window("ours", number, speed) for number, speed in enumerate((40.0, 20.0, 30.0))]
    windows += [window("theirs", number, speed) for number, speed in enumerate((20.0, 20.0, 20.0))]
    report = format_report(comparison(windows, ["ours", "theirs"], ["1 streams"]))
    ours, start = cells(report, "ours")
    assert ours[1:8] == ["30.0", "20.0", "40.0", "100.0", "10.0", "20.0", "30.0"]
    assert ours[8:] == ["80.0", "38%", "40.0", "1.90", "0.00"]
    assert start == ["ours", "1", "2.5", "3.0"]
    assert cells(report, "over theirs") == [["over theirs", "1.50x (1.00 to 2.00)"]]
    assert "not quiet" not in report


def test_the_report_says_when_others_were_busy_and_what_did_not_come() -> None:
    windows = [window("ours", 0, 40.0, foreign_cores=1.25), window("ours", 1, 40.0, missing_tokens=7, num_failed=1)]
    report = format_report(comparison(windows, ["ours"], ["1 streams"]))
    assert "in 1 of 2 windows others took more than 0.1 cores, 1.25 at most" in report
    assert "**ours**: 1 requests failed, 7 tokens that were asked for did not come." in report


def test_a_plot_is_drawn_even_of_an_arm_that_measured_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.peers.plots import plot_comparison

    plot_comparison(comparison([window("ours", 0, 40.0)], ["ours", "theirs"], ["1 streams"]), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_report_of_requests_at_a_rate_has_what_they_waited_and_no_ratio_of_speeds() -> None:
    more = {"ttft_p99_ms": 900.0, "e2e_p50_ms": 4000.0, "goodput": 0.9}
    windows = [window(arm, 0, 40.0, load="0.4 requests/s", **more) for arm in ("ours", "theirs")]
    made = comparison(windows, ["ours", "theirs"], ["0.4 requests/s"])
    report = format_report(dataclasses.replace(made, open_loads=["0.4 requests/s"]))
    ours, _ = cells(report, "ours")
    assert ours[1:] == ["40.0", "100.0", "900.0", "10.0", "20.0", "4000.0", "0.90", "1.90", "0.00"]
    assert "over the others" not in report


def test_an_arm_may_have_arguments_of_its_own() -> None:
    plain, without_cache = parse_arms("orcinus, orcinus:--no-enable-prefix-caching --seed 3")
    setting = Setting(model=Path("model"), slots=4, max_model_len=256, kv_gib=2)
    command = plain.launch(setting, 8123).command
    with_more = without_cache.launch(setting, 8123).command
    assert with_more == [*command[:-2], "--no-enable-prefix-caching", "--seed", "3", *command[-2:]]
    assert command[command.index("--max-num-seqs") + 1] == "4"
    assert command[command.index("--kv-cache-memory") + 1] == "2GiB"


def test_the_loop_alone_is_set_as_the_server_is() -> None:
    server, loop = parse_arms("orcinus:--quantization=int8,orcinus-loop:--quantization=int8")
    setting = Setting(model=Path("model"), slots=4, max_model_len=256, kv_gib=2)
    served, alone = server.launch(setting, 8123).command, loop.launch(setting, 8123).command
    assert alone[alone.index("model") :] == served[served.index("model") : served.index("--port")]
    assert alone[-1] == "--quantization=int8"


def test_a_server_may_have_an_environment_of_its_own() -> None:
    setting = Setting(model=Path("model"), slots=4, max_model_len=256, kv_gib=2)
    for arm in parse_arms("orcinus:OMP_WAIT_POLICY=PASSIVE --seed 3,vllm:OMP_WAIT_POLICY=PASSIVE"):
        launch = arm.launch(setting, 8123)
        assert launch.environment["OMP_WAIT_POLICY"] == "PASSIVE"
        assert not any("PASSIVE" in word for word in launch.command)


def test_openvino_tells_what_is_for_its_conversion_from_what_is_for_its_plugin() -> None:
    setting = Setting(model=Path("model"), slots=4, max_model_len=256, kv_gib=2)
    plain, other = parse_arms("openvino,openvino:--weight-format int8 KV_CACHE_PRECISION=bf16")
    assert other.launch(setting, 0).command[3:] == [
        f"{Path('model').resolve()}-openvino-weight-format-int8",
        "4",
        "2",
        "KV_CACHE_PRECISION=bf16",
    ]
    assert plain.launch(setting, 0).command[3:] == [f"{Path('model').resolve()}-openvino", "4", "2"]


def test_vllm_is_given_all_cores_and_as_much_cache() -> None:
    [arm] = parse_arms("vllm")
    launch = arm.launch(Setting(model=Path("model"), slots=4, max_model_len=256, kv_gib=2), 8123)
    assert launch.environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert len(launch.environment["VLLM_CPU_OMP_THREADS_BIND"].split(",")) == len(psutil.Process().cpu_affinity() or [])


def test_llamacpp_and_this_server_are_given_the_same_file() -> None:
    setting = Setting(model=Path("model"), slots=4, max_model_len=300, kv_gib=2)
    theirs, ours = parse_arms(
        "llamacpp:GGUF=Q8_0 n_ubatch=256,orcinus:GGUF=Q8_0 --kernels avx2 OMP_WAIT_POLICY=PASSIVE"
    )
    file = f"{Path('model').resolve()}-Q8_0.gguf"
    command = theirs.launch(setting, 8123).command
    assert command[-5:] == [file, "8123", "4", str(4 * 512), "n_ubatch=256"]
    launch = ours.launch(setting, 8123)
    assert (file in launch.command, "--kernels" in launch.command) == (True, True)
    assert launch.environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "GGUF" not in launch.environment


def test_a_llama_server_of_ones_own_takes_the_place_of_the_wheel() -> None:
    [arm] = parse_arms("llamacpp:SERVER=/opt/llama-server --flash-attn on")
    launch = arm.launch(Setting(model=Path("model"), slots=4, max_model_len=256, kv_gib=2), 8123)
    assert launch.command[:3] == ["/opt/llama-server", "--model", f"{Path('model').resolve()}-Q4_0.gguf"]
    assert launch.command[-2:] == ["--flash-attn", "on"]
    assert launch.command[launch.command.index("--ctx-size") + 1] == str(4 * 256)


def test_types_that_are_not_written_are_refused_before_anything_is(tmp_path: Path) -> None:
    [arm] = parse_arms("orcinus:GGUF=Q3_K")
    with pytest.raises(OrcinusError, match="Q3_K is no type"):
        arm.install(tmp_path / "model")


def test_every_arm_without_a_server_gets_the_same_cache(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    setting = Setting(model=tmp_path, slots=4, max_model_len=256, kv_gib=2)
    [arm] = parse_arms("transformers")
    assert arm.launch(setting, 0).command[-3:] == [str(tmp_path), "4", str(2 * 2**30 // kv_bytes_per_token(CONFIG))]


@pytest.mark.parametrize("text", ["orcinus,orcinus", "ollama", "transformers:--fast", ""])
def test_arms_that_cannot_be_compared_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_arms(text)


def load_of(streams: int, sampling: dict[str, float]) -> Load:
    [load] = sampled([fixed_load(streams, 3, 4)], [sampling])
    return load


@pytest.fixture
def fake_arm(tmp_path: Path) -> Iterator[RunningArm]:
    launch = Launch(command=[sys.executable, "-c", FAKE_DRIVER])
    with RunningArm(launch, 0, tmp_path / "log") as arm:
        yield arm


def test_a_driver_answers_load_after_load_whatever_its_peer_prints(fake_arm: RunningArm, tmp_path: Path) -> None:
    items = [LoadItem(prompt=[7, 8, 9], max_tokens=count, prompt_tokens=3) for count in (2, 4)]
    for _ in range(2):
        run, _ = fake_arm.run(items, load_of(2, {"temperature": 0.7, "top_k": 20}))
        assert [record.output_tokens for record in run.records] == [2, 4]
        assert [record.ttft_s for record in run.records] == [1.0, 1.0]
        assert run.duration_s == 4.0
    assert fake_arm.startup_s > 0
    assert fake_arm.facts == {"threads": 2}
    log = (tmp_path / "log").read_text()
    assert "talks while it loads" in log
    assert "runs, by {'temperature': 0.7, 'top_k': 20}" in log


def test_a_driver_cannot_be_sent_requests_one_by_one(fake_arm: RunningArm) -> None:
    with pytest.raises(OrcinusError, match="only a server"):
        fake_arm.run([LoadItem(prompt=[7], max_tokens=1, prompt_tokens=1)], poisson_load(1.0, 1, seed=0))


def test_a_comparison_at_a_rate_takes_servers_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["--request-rate", "1", "--arms", "orcinus,openvino", "--model", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["peers", *arguments])
    with pytest.raises(OrcinusError, match="openvino is none"):
        compare(parse_arguments())


def test_each_load_is_measured_with_each_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = ["--temperature", "0.7", "--top-k", "20"]
    monkeypatch.setattr(sys, "argv", ["peers", "--streams", "4", *shipped])
    [load] = loads_of(parse_arguments())
    assert (load.name, load.sampling) == ("4 streams", {"temperature": 0.7, "top_k": 20})
    several = ["--sampling", "temperature=0", "--sampling", "temperature=1,top_p=0.95"]
    monkeypatch.setattr(sys, "argv", ["peers", "--streams", "4,8", *several])
    assert [(load.name, dict(load.sampling)) for load in loads_of(parse_arguments())] == [
        ("4 streams, temperature 0", {"temperature": 0.0}),
        ("4 streams, temperature 1, top_p 0.95", {"temperature": 1.0, "top_p": 0.95}),
        ("8 streams, temperature 0", {"temperature": 0.0}),
        ("8 streams, temperature 1, top_p 0.95", {"temperature": 1.0, "top_p": 0.95}),
    ]


@pytest.mark.parametrize("text", ["0.7", "temperature", "seed=3", "top_k=0.5", ""])
def test_samplings_that_no_request_has_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["peers", "--sampling", text])
    with pytest.raises(SystemExit):
        parse_arguments()


def test_an_arm_that_samples_all_requests_alike_is_not_measured_with_several(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ["--sampling", "temperature=0", "--sampling", "temperature=1", "--arms", "orcinus,transformers"]
    monkeypatch.setattr(sys, "argv", ["peers", *arguments, "--model", str(tmp_path)])
    with pytest.raises(OrcinusError, match="transformers takes one"):
        compare(parse_arguments())


def test_with_a_rate_and_no_streams_requests_come_one_by_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["peers", "--request-rate", "0.4,1", "--requests", "7"])
    loads = loads_of(parse_arguments())
    assert [(load.name, load.num_requests) for load in loads] == [("0.4 requests/s", 7), ("1 requests/s", 7)]
    monkeypatch.setattr(sys, "argv", ["peers", "--request-rate", "0.4", "--streams", "4"])
    assert [load.name for load in loads_of(parse_arguments())] == ["4 streams", "0.4 requests/s"]
    monkeypatch.setattr(sys, "argv", ["peers", "--skewed"])
    names = [load.name for load in loads_of(parse_arguments())]
    assert names == ["1 stream", "4 streams", "16 streams", "32 streams", "skewed"]


@pytest.mark.timeout(30)
def test_an_arm_that_is_held_takes_no_cpu_and_goes_on_after_it(fake_arm: RunningArm) -> None:
    fake_arm.hold()
    os.waitid(os.P_PID, fake_arm.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert fake_arm.process.status() == psutil.STATUS_STOPPED
    fake_arm.resume()
    run, _ = fake_arm.run([LoadItem(prompt=[7], max_tokens=1, prompt_tokens=1)], fixed_load(1, 1, 1))
    assert [record.failure for record in run.records] == [None]


@pytest.mark.timeout(20)  # killing it comes later
def test_an_arm_that_is_held_can_be_stopped(fake_arm: RunningArm) -> None:
    fake_arm.hold()
    fake_arm.stop()
    assert not fake_arm.process.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_peak_of_an_arm_is_known_once_it_is_held(fake_arm: RunningArm) -> None:
    assert fake_arm.peak_bytes == 0
    fake_arm.hold()
    assert 2**20 < fake_arm.peak_bytes <= 2 * fake_arm.process.memory_info().rss


def test_variables_of_the_shell_reach_no_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ORCINUS_MAX_NUM_SEQS", "1")
    script = "import json, os; print(json.dumps({**os.environ}), flush=True); input()"
    launch = Launch(command=[sys.executable, "-c", script], environment={"OMP_WAIT_POLICY": "PASSIVE"})
    with RunningArm(launch, 0, tmp_path / "log") as arm:
        names = {name for name in arm.facts if name.startswith(("OMP_", "ORCINUS_"))}
    assert names == {"OMP_WAIT_POLICY"}


def test_memory_that_processes_share_is_counted_once() -> None:
    text = "Rss:     3072 kB\nPss:     1024 kB\nPss_Anon:   10 kB\n"
    assert (proc_bytes(text, "Rss"), proc_bytes(text, "Pss"), proc_bytes(text, "VmHWM")) == (3 * 2**20, 2**20, 0)


def test_an_arm_that_does_not_start_says_where_its_output_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no memory')"]
    for ready_path in (None, "/health"):
        with pytest.raises(OrcinusError, match=f"its output is in {tmp_path}/log"):
            RunningArm(Launch(command=command, ready_path=ready_path), 1, tmp_path / "log")
        assert "no memory" in (tmp_path / "log").read_text()
