"""LLM: offline generation with the real core, over a fake model and over the demo model."""

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orcinus import LLM, SamplingParams
from orcinus.config.settings import SettingsError
from orcinus.engine.errors import ContextLengthError, InvalidRequestError
from orcinus.engine.frontend.llm import GenerationResult
from orcinus.engine.frontend.output_buffer import OutputBuffer
from orcinus.engine.frontend.output_processor import OutputProcessor
from orcinus.engine.messages import AddRequest, RequestDelta, StepPlan
from orcinus.engine.outputs import RequestOutput
from tests.unit.engine.fakes import FakeExecutor, alphabet, builds, echoes, says, write_byte_tokenizer

DEMO_MODEL = Path(__file__).parents[2] / "engine" / "demo_model"


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_byte_tokenizer(tmp_path / "model"))


def fake_llm(model: str, executor: FakeExecutor, **info: Any) -> LLM:
    return LLM(model, build=builds(executor, **info))


def test_results_come_in_the_order_of_the_prompts_with_parameters_of_their_own(model: str) -> None:
    llm = fake_llm(model, FakeExecutor(echoes), max_num_seqs=2)
    prompts: list[str | list[int]] = ["one", [116, 119, 111], "a longer third one", "4"]
    params = [SamplingParams(max_tokens=n) for n in (50, 2, 50, 1)]
    results = llm.generate(prompts, params)
    assert [result.outputs[0].text for result in results] == ["one", "tw", "a longer third one", "4"]
    assert [result.outputs[0].finish_reason for result in results] == ["stop", "length", "stop", "length"]
    assert [result.prompt for result in results] == ["one", None, "a longer third one", "4"]
    assert results[1].prompt_token_ids == [116, 119, 111]


def test_one_prompt_may_be_given_alone(model: str) -> None:
    llm = fake_llm(model, FakeExecutor(says("yes")))
    assert [r.outputs[0].text for r in llm.generate("a question")] == ["yes"]
    assert [r.outputs[0].text for r in llm.generate([104, 105])] == ["yes"]
    assert llm.generate([]) == []


def test_samples_are_numbered_and_have_their_logprobs(model: str) -> None:
    llm = fake_llm(model, FakeExecutor(alphabet), max_num_seqs=2)
    (result,) = llm.generate(["x"], SamplingParams(n=3, max_tokens=4, logprobs=2, prompt_logprobs=0))
    assert [output.index for output in result.outputs] == [0, 1, 2]
    assert [len(output.logprobs or []) for output in result.outputs] == [4, 4, 4]
    assert result.prompt_logprobs == [None]


def test_stop_string_ends_a_request_and_frees_its_slot(model: str) -> None:
    executor = FakeExecutor(alphabet)
    llm = fake_llm(model, executor)
    (result,) = llm.generate("x", SamplingParams(max_tokens=200, stop=("de",)))
    assert (result.outputs[0].text, result.outputs[0].stop_reason) == ("abc", "de")
    assert len(executor.plans) == 5
    assert not llm._core.has_work


def test_chat_renders_the_template(model: str) -> None:
    llm = fake_llm(model, FakeExecutor(says("Hello.")))
    one = [{"role": "user", "content": "hi"}]
    (result,) = llm.chat(one, SamplingParams(max_tokens=20))
    assert result.prompt == "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    assert result.outputs[0].text == "Hello."
    assert len(llm.chat([one, one, one], SamplingParams(max_tokens=1))) == 3


@pytest.mark.parametrize(
    ("prompts", "params", "error"),
    [
        (["fine", ""], SamplingParams(), InvalidRequestError),
        (["fine", [300]], SamplingParams(), InvalidRequestError),
        (["fine", "x" * 300], SamplingParams(), ContextLengthError),
        (["fine", "fine"], [SamplingParams()], InvalidRequestError),
    ],
)
def test_bad_input_is_refused_before_anything_runs(model: str, prompts: Any, params: Any, error: Any) -> None:
    executor = FakeExecutor(alphabet)
    llm = fake_llm(model, executor)
    for ask in (llm.generate, llm.stream):
        with pytest.raises(error):
            ask(prompts, params)
    assert executor.plans == []
    assert not llm._core.has_work


def test_failed_request_is_marked_and_the_others_go_on(model: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail_first(plan: StepPlan) -> None:
        if any(new.request_id == "0.0" for new in plan.new_requests):
            raise RuntimeError("fault")

    llm = fake_llm(model, FakeExecutor(alphabet, before_step=fail_first), max_num_seqs=1)
    results = llm.generate(["x", "y"], SamplingParams(max_tokens=2))
    assert results[0].outputs[0].finish_reason == "error"
    assert "RuntimeError" in (results[0].outputs[0].error or "")
    assert results[1].outputs[0].text == "ab"


def test_interrupted_run_leaves_nothing_behind(model: str) -> None:
    def interrupt(plan: StepPlan) -> None:
        if len(executor.plans) == 3:
            raise KeyboardInterrupt

    executor = FakeExecutor(alphabet, before_step=interrupt)
    llm = fake_llm(model, executor)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["x", "y"], SamplingParams(max_tokens=9))
    assert not llm._core.has_work
    assert llm.generate("x", SamplingParams(max_tokens=2))[0].outputs[0].text == "ab"


def test_static_batching_waits_for_its_group_and_runs(model: str) -> None:
    llm = fake_llm(model, FakeExecutor(alphabet), batching="static")
    assert llm.generate("x", SamplingParams(max_tokens=2))[0].outputs[0].text == "ab"


# --- streams --------------------------------------------------------------------------------------------


def joined(outputs: Iterable[RequestOutput]) -> dict[tuple[int, int], RequestOutput]:
    """Return the outputs of each choice as one, by prompt and choice."""
    buffers: dict[tuple[int, int], OutputBuffer] = {}
    for output in outputs:
        key = output.prompt_index, output.index
        if key in buffers:
            buffers[key].add(output)
        else:
            buffers[key] = OutputBuffer(output)
    return {key: without_times(buffer.merged()) for key, buffer in buffers.items()}


def generated(results: list[GenerationResult]) -> dict[tuple[int, int], RequestOutput]:
    return {
        (output.prompt_index, output.index): without_times(output) for result in results for output in result.outputs
    }


def without_times(output: RequestOutput) -> RequestOutput:
    return msgspec.structs.replace(output, queue_time_s=None)


def num_running(llm: LLM) -> int:
    return llm._core.scheduler.num_running


STREAMED: dict[str, tuple[Any, Any]] = {
    "one prompt": ("hello", SamplingParams(max_tokens=12)),
    "token ids": ([104, 105], SamplingParams(max_tokens=12)),
    "two prompts of different lengths": (["a", "much longer than that"], SamplingParams(max_tokens=30)),
    "parameters of their own": (["a", "b"], [SamplingParams(max_tokens=3), SamplingParams(max_tokens=9, n=2)]),
    "log-probabilities": ("hi", SamplingParams(max_tokens=5, logprobs=2, prompt_logprobs=1)),
    "a stop string": ("hi", SamplingParams(max_tokens=50, stop=("de",))),
    "no tokens": ("hi", SamplingParams(max_tokens=0)),
    "nothing": ([], SamplingParams()),
}


@pytest.mark.parametrize("name", STREAMED)
def test_joined_outputs_of_a_stream_are_what_generate_gives(model: str, name: str) -> None:
    prompts, params = STREAMED[name]
    next_token = says("Grüße 🐋!") if name == "token ids" else alphabet
    llm = fake_llm(model, FakeExecutor(next_token), max_num_seqs=2, enable_prefix_caching=False)
    outputs = [*llm.stream(prompts, params)]
    assert joined(outputs) == generated(llm.generate(prompts, params))
    ends = [(output.prompt_index, output.index) for output in outputs if output.finish_reason is not None]
    assert len(ends) == len(set(ends)) == len(joined(outputs))
    assert not llm._core.has_work


def test_outputs_come_as_the_model_makes_them_and_those_of_several_prompts_by_turns(model: str) -> None:
    executor = FakeExecutor(alphabet)
    llm = fake_llm(model, executor)
    stream = llm.stream(["x", "y"], SamplingParams(max_tokens=3))
    assert executor.plans == []
    seen = []
    for output in stream:
        seen.append((output.prompt_index, output.text, output.token_ids))
        assert len(executor.plans) == (len(seen) + 1) // 2
    assert seen == [(prompt, text, [ord(text)]) for text in "abc" for prompt in (0, 1)]


def test_a_chat_is_streamed_as_it_is_answered(model: str) -> None:
    llm = fake_llm(model, FakeExecutor(echoes), enable_prefix_caching=False)
    one, other = ([{"role": "user", "content": content}] for content in ("hi", "you"))
    params = SamplingParams(max_tokens=60)
    assert joined(llm.stream_chat(one, params)) == generated(llm.chat(one, params))
    options = {"add_generation_prompt": False}
    both = joined(llm.stream_chat([one, other], params, **options))
    assert both == generated(llm.chat([one, other], params, **options))
    assert both[1, 0].text == "user\nyou"  # the end of the turn ends the answer


def test_leaving_a_stream_early_frees_its_slots_at_once(model: str) -> None:
    executor = FakeExecutor(alphabet)
    llm = fake_llm(model, executor, max_num_seqs=2)
    for output in llm.stream(["x", "y", "z"], SamplingParams(max_tokens=200)):
        assert num_running(llm) == 2
        if output.text == "c":
            break
    assert num_running(llm) == 0
    assert not llm._core.has_work
    assert len(executor.plans) == 3
    assert llm.generate("x", SamplingParams(max_tokens=2))[0].outputs[0].text == "ab"


def test_a_stream_that_is_closed_and_one_whose_reader_fails_are_ended(model: str) -> None:
    llm = fake_llm(model, FakeExecutor(alphabet))
    stream = llm.stream("x", SamplingParams(max_tokens=200))
    assert next(stream).text == "a"
    stream.close()
    assert not llm._core.has_work

    def fail() -> None:
        for _ in llm.stream("x", SamplingParams(max_tokens=200)):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert not llm._core.has_work


def test_an_interrupted_step_ends_the_stream(model: str) -> None:
    def interrupt(plan: StepPlan) -> None:
        if len(executor.plans) == 3:
            raise KeyboardInterrupt

    executor = FakeExecutor(alphabet, before_step=interrupt)
    llm = fake_llm(model, executor)
    with pytest.raises(KeyboardInterrupt):
        [*llm.stream(["x", "y"], SamplingParams(max_tokens=9))]
    assert not llm._core.has_work


def test_a_stream_that_nobody_begins_to_read_costs_nothing(model: str) -> None:
    executor = FakeExecutor(alphabet)
    llm = fake_llm(model, executor)
    llm.stream("x").close()
    unread = llm.stream("x")
    assert not llm._core.has_work
    del unread
    assert executor.plans == []


def test_calls_may_be_made_while_a_stream_is_read_and_nothing_of_it_is_lost(model: str) -> None:
    executor = FakeExecutor(alphabet)
    llm = fake_llm(model, executor)
    stream = llm.stream("x", SamplingParams(max_tokens=6))
    assert next(stream).text == "a"
    assert llm.generate("y", SamplingParams(max_tokens=4))[0].outputs[0].text == "abcd"
    assert next(stream).text == "bcde"
    other = llm.stream("z", SamplingParams(max_tokens=9))
    assert next(other).text == "a"
    last = next(stream)
    assert (last.text, last.finish_reason) == ("f", "length")
    assert [*stream] == []
    assert "".join(output.text for output in other) == "bcdefghi"
    assert len(executor.plans) == 5 + 9


def test_a_stream_that_is_closed_during_a_step_of_another_one_is_ended_after_it(model: str) -> None:
    """As the collector may do with one that was dropped."""

    def close(plan: StepPlan) -> None:
        if len(executor.plans) == 4:
            dropped.close()
            still_running.append(num_running(llm))

    still_running: list[int] = []
    executor = FakeExecutor(alphabet, before_step=close)
    llm = fake_llm(model, executor)
    dropped = llm.stream("x", SamplingParams(max_tokens=200))
    next(dropped)
    assert llm.generate("y", SamplingParams(max_tokens=6))[0].outputs[0].text == "abcdef"
    assert still_running == [2]
    assert [len(plan.scheduled) for plan in executor.plans] == [1, 2, 2, 2, 1, 1, 1]
    assert not llm._core.has_work


def test_a_stream_that_is_closed_while_the_core_takes_a_request_is_ended_after_it(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = fake_llm(model, FakeExecutor(alphabet))
    dropped = llm.stream("x", SamplingParams(max_tokens=200))
    next(dropped)
    still_running: list[int] = []
    add_request = llm._core.add_request

    def close_and_add(request: AddRequest) -> None:
        dropped.close()
        still_running.append(num_running(llm))
        add_request(request)

    monkeypatch.setattr(llm._core, "add_request", close_and_add)
    assert llm.generate("y", SamplingParams(max_tokens=3))[0].outputs[0].text == "abc"
    assert still_running == [1]
    assert not llm._core.has_work


def test_a_stream_that_is_closed_while_its_last_tokens_are_read_is_ended(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = fake_llm(model, FakeExecutor(alphabet))
    dropped = llm.stream("x", SamplingParams(max_tokens=2))
    next(dropped)
    process = OutputProcessor.process

    def close_and_process(processor: OutputProcessor, delta: RequestDelta) -> RequestOutput:
        dropped.close()
        return process(processor, delta)

    monkeypatch.setattr(OutputProcessor, "process", close_and_process)
    assert llm.generate("y", SamplingParams(max_tokens=3))[0].outputs[0].text == "abc"
    assert not llm._core.has_work


def test_a_request_that_fails_ends_its_part_of_a_stream(model: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(plan: StepPlan) -> None:
        if any(new.token_ids[0] == ord("x") for new in plan.new_requests):
            raise RuntimeError("fault")

    llm = fake_llm(model, FakeExecutor(alphabet, before_step=fail), max_num_seqs=1)
    outputs = joined(llm.stream(["x", "y"], SamplingParams(max_tokens=2)))
    assert (outputs[0, 0].finish_reason, outputs[1, 0].text) == ("error", "ab")
    assert "RuntimeError" in (outputs[0, 0].error or "")


def test_unknown_settings_are_refused(model: str) -> None:
    with pytest.raises(SettingsError):
        LLM(model, max_sequences=3)


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM(device="cpu", dtype="float32", max_num_seqs=3, kv_cache_memory="32MiB")


def test_loading_a_model_leaves_the_callers_objects_to_the_collector() -> None:
    """Frozen objects are never freed: a library has no business with that."""
    num_frozen = gc.get_freeze_count()
    LLM(device="cpu", dtype="float32", max_num_seqs=1, kv_cache_memory="8MiB")
    assert gc.isenabled()
    assert gc.get_freeze_count() == num_frozen


def test_demo_model_gives_the_greedy_tokens_that_transformers_gives(demo: LLM) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    reference: Any = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    prompts = ["The capital of", "1, 2, 3,", "Hello", "Bonjour 你好", "{"]
    results = demo.generate(prompts, SamplingParams(max_tokens=24, temperature=0))
    for prompt, result in zip(prompts, results, strict=True):
        ids = demo.tokenizer.encode(prompt)
        expected = reference.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
        assert result.outputs[0].token_ids == expected
        assert result.outputs[0].text == demo.tokenizer.decode(expected)


def test_demo_model_streams_the_tokens_and_the_text_that_it_generates(demo: LLM) -> None:
    prompts = ["The capital of", "1, 2, 3,", "Hello", "Bonjour 你好", "{"]
    params = [SamplingParams(max_tokens=n, temperature=0, logprobs=1) for n in (24, 5, 1, 40, 17)]
    streamed, whole = joined(demo.stream(prompts, params)), generated(demo.generate(prompts, params))
    assert streamed.keys() == whole.keys()
    for key, output in streamed.items():
        assert (output.text, output.token_ids) == (whole[key].text, whole[key].token_ids)
        assert output.finish_reason == whole[key].finish_reason
        assert len(output.logprobs or []) == len(output.token_ids)


def test_demo_model_repeats_sampled_tokens_with_a_seed(demo: LLM) -> None:
    params = SamplingParams(max_tokens=16, temperature=1.0, seed=11, ignore_eos=True)
    alone = demo.generate("Hello", params)
    among_others = demo.generate(["one", "Hello", "two", "three"], params)
    assert alone[0].outputs[0].token_ids == among_others[1].outputs[0].token_ids
    samples = demo.generate("Hello", SamplingParams(n=2, max_tokens=16, seed=11, ignore_eos=True))[0].outputs
    assert samples[0].token_ids == alone[0].outputs[0].token_ids
    assert samples[1].token_ids != samples[0].token_ids
