"""LLM: offline generation with the real core, over a fake model and over the demo model."""

from pathlib import Path
from typing import Any

import pytest

from orcinus import LLM, SamplingParams
from orcinus.config.settings import SettingsError
from orcinus.engine.errors import ContextLengthError, InvalidRequestError
from orcinus.engine.messages import StepPlan
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
    with pytest.raises(error):
        llm.generate(prompts, params)
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


def test_unknown_settings_are_refused(model: str) -> None:
    with pytest.raises(SettingsError):
        LLM(model, max_sequences=3)


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM(device="cpu", dtype="float32", max_num_seqs=3, kv_cache_memory="32MiB")


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


def test_demo_model_repeats_sampled_tokens_with_a_seed(demo: LLM) -> None:
    params = SamplingParams(max_tokens=16, temperature=1.0, seed=11, ignore_eos=True)
    alone = demo.generate("Hello", params)
    among_others = demo.generate(["one", "Hello", "two", "three"], params)
    assert alone[0].outputs[0].token_ids == among_others[1].outputs[0].token_ids
    samples = demo.generate("Hello", SamplingParams(n=2, max_tokens=16, seed=11, ignore_eos=True))[0].outputs
    assert samples[0].token_ids == alone[0].outputs[0].token_ids
    assert samples[1].token_ids != samples[0].token_ids
