"""Embeddings, checked against transformers' own hidden states, in the engine and through a real server."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray
from openai import OpenAI
from openai.types import CreateEmbeddingResponse

from orcinus.config.settings import demo_model_path
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, EngineInfo, RequestDelta
from orcinus.engine.models import loader
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.runner.pooling import POOLING_FILE
from orcinus.engine.sampling_params import Pooling, SamplingParams
from orcinus.engine.startup.build import build_executor
from tests.integration.test_truth import poisoned_model
from tests.integration.tiny_models import VOCAB_SIZE, build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    core_with_few_blocks,
    info_with_blocks,
    prompts,
    random_tokens,
)
from tests.server_process import ServerProcess, StartServer

MODEL = "orcinus-demo"
TEXTS = ["The capital of France is Paris.", "A dog", "Once upon a time there was a small town by the sea."]

Vector = NDArray[np.float32]
Executor = tuple[EngineInfo, ModelRunner]


@dataclass
class Embedded:
    vectors: list[Vector]
    num_cached_tokens: int
    num_preemptions: int
    num_steps: int


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        return demo_model_path() if name == "demo" else build_model(name, tmp_path_factory.mktemp(name))

    return cache(find)


@pytest.fixture(scope="module")
def executor_of(model_of: Callable[[str], Path]) -> Callable[[str], Executor]:
    """Chunks of at most 16 tokens, and blocks of 4."""

    def load(name: str) -> Executor:
        return build_executor(engine_config(model_of(name), max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE))

    return cache(load)


def reference(directory: Path, pooling: Pooling, tokens: Sequence[list[int]]) -> list[Vector]:
    """One prompt at a time, by transformers alone."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    vectors = []
    for prompt in tokens:
        with torch.inference_mode():
            hidden = model.base_model(torch.tensor([prompt])).last_hidden_state[0]
        pooled = hidden.mean(0) if pooling == "mean" else hidden[-1]
        vectors.append((pooled / pooled.norm()).numpy())
    return vectors


def embed(
    core: EngineCore, pooling: Pooling, tokens: Sequence[list[int]], beside: Sequence[AddRequest] = ()
) -> Embedded:
    """All at once, with other requests that arrived before them."""
    for request in beside:
        core.add_request(request)
    for number, prompt in enumerate(tokens):
        sampling = SamplingParams(max_tokens=0, pooling=pooling)
        core.add_request(
            AddRequest(request_id=str(number), prompt_token_ids=prompt, sampling=sampling, arrival_time=1.0)
        )
    last: dict[str, RequestDelta] = {}
    num_cached = num_steps = 0
    while core.has_work:
        for delta in core.step().deltas:
            last[delta.request_id] = delta
            num_cached += delta.num_cached_tokens or 0
        core.scheduler.check_integrity()
        num_steps += 1
    deltas = [last[str(number)] for number in range(len(tokens))]
    assert {(delta.finish_reason, delta.error) for delta in deltas} == {("stop", None)}
    vectors = [np.frombuffer(delta.embedding or b"", dtype=np.float32) for delta in deltas]
    return Embedded(vectors, num_cached, sum(delta.num_preemptions for delta in deltas), num_steps)


def assert_close(got: Sequence[Vector], expected: Sequence[Vector]) -> None:
    for vector, wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose(vector, wanted, rtol=0, atol=1e-5)


def ragged_prompts(seed: int, count: int = 24) -> list[list[int]]:
    stream = prompts(random.Random(seed))
    return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "demo"])
def test_embeddings_are_those_of_transformers_whatever_shares_the_batch(
    name: str, pooling: Pooling, model_of: Callable[[str], Path], executor_of: Callable[[str], Executor]
) -> None:
    tokens = ragged_prompts(1)
    expected = reference(model_of(name), pooling, tokens)
    assert_close(embed(core_with_few_blocks(executor_of(name), 48), pooling, tokens).vectors, expected)
    for prompt, wanted in zip(tokens[:6], expected, strict=False):
        assert_close(embed(core_with_few_blocks(executor_of(name)), pooling, [prompt]).vectors, [wanted])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_do_not_depend_on_where_prompts_are_cut(
    pooling: Pooling, model_of: Callable[[str], Path], executor_of: Callable[[str], Executor]
) -> None:
    prompt = random_tokens(random.Random(2), 61)
    [expected] = reference(model_of("llama"), pooling, [prompt])
    info, runner = executor_of("llama")
    for budget, num_steps in ((4, 16), (7, 9), (16, 4), (64, 1)):
        fields = {name: getattr(info, name) for name in info.__struct_fields__}
        core = EngineCore(EngineInfo(**fields | {"max_num_batched_tokens": budget}), runner)
        embedded = embed(core, pooling, [prompt])
        assert embedded.num_steps == num_steps
        assert_close(embedded.vectors, [expected])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_shared_prefixes_change_nothing_and_spare_the_last_token_alone(
    pooling: Pooling, model_of: Callable[[str], Path], executor_of: Callable[[str], Executor]
) -> None:
    rng = random.Random(3)
    shared = random_tokens(rng, 33)
    tokens = [shared + random_tokens(rng, length) for length in (1, 5, 12, 20)]
    core = core_with_few_blocks(executor_of("llama"), 48)
    expected = reference(model_of("llama"), pooling, tokens)
    first, again = embed(core, pooling, tokens), embed(core, pooling, tokens)
    assert_close(first.vectors + again.vectors, expected * 2)
    assert (again.num_cached_tokens > 0) == (pooling == "last")
    others = embed(core, "last", tokens)  # which finds the blocks that the mean has computed
    assert others.num_cached_tokens > 0
    assert_close(others.vectors, reference(model_of("llama"), "last", tokens))


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gpt2", "gemma3"])
def test_a_checkpoint_without_a_head_embeds(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_of: Callable[[str], Path]
) -> None:
    from transformers import AutoModel

    base: Any = AutoModel.from_pretrained(model_of(family), dtype=torch.float32)
    base.save_pretrained(tmp_path)
    [architecture] = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert architecture == type(base).__name__
    tokens = ragged_prompts(8, 3)
    expected = reference(model_of(family), "mean", tokens)
    for _ in ("read by ourselves", "read by transformers"):
        info, runner = build_executor(engine_config(tmp_path, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE))
        assert (info.architecture, info.has_head) == (architecture, False)
        assert info.num_parameters == base.num_parameters()
        assert_close(embed(core_with_few_blocks((info, runner)), "mean", tokens).vectors, expected)
        monkeypatch.setattr(loader, "read_checkpoint", lambda *_: None)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_preempted_embedding_starts_over(
    pooling: Pooling, model_of: Callable[[str], Path], executor_of: Callable[[str], Executor]
) -> None:
    """Requests that generate take the blocks away while long prompts wait for their chunks."""
    rng = random.Random(4)
    writers = [
        AddRequest(
            request_id=f"writer {pooling} {number}",
            prompt_token_ids=random_tokens(rng, 8),
            sampling=SamplingParams(max_tokens=80, ignore_eos=True, seed=number),
            arrival_time=0.0,
            priority=-1,
        )
        for number in range(2)
    ]
    tokens = [random_tokens(rng, 60) for _ in range(4)]
    info, runner = executor_of("llama")
    core = EngineCore(info_with_blocks(info, 24, max_num_batched_tokens=5), runner)
    embedded = embed(core, pooling, tokens, writers)
    assert embedded.num_preemptions > 0
    assert_close(embedded.vectors, reference(model_of("llama"), pooling, tokens))


def test_embeddings_and_completions_share_a_step(
    model_of: Callable[[str], Path], executor_of: Callable[[str], Executor]
) -> None:
    prompt = random_tokens(random.Random(5), 6)
    sampling = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    alone = core_with_few_blocks(executor_of("llama"))
    tokens: list[list[int]] = []
    for core, others in ((alone, []), (core_with_few_blocks(executor_of("llama")), ragged_prompts(6, 3))):
        core.add_request(AddRequest(request_id="writer", prompt_token_ids=prompt, sampling=sampling, arrival_time=0.0))
        for number, other in enumerate(others):
            pooled = SamplingParams(max_tokens=0, pooling="mean")
            core.add_request(
                AddRequest(request_id=str(number), prompt_token_ids=other, sampling=pooled, arrival_time=0.0)
            )
        written: list[int] = []
        while core.has_work:
            written += [token for delta in core.step().deltas for token in delta.token_ids]
        tokens.append(written)
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_that_is_not_finite_fails_alone(
    pooling: Pooling, tmp_path: Path, model_of: Callable[[str], Path]
) -> None:
    poison = VOCAB_SIZE - 1
    directory = poisoned_model(model_of("llama"), tmp_path, poison)
    executor = build_executor(engine_config(directory, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE))
    healthy = [random_tokens(random.Random(7), length) for length in (5, 30)]
    healthy = [[token if token != poison else 5 for token in prompt] for prompt in healthy]
    core = core_with_few_blocks(executor)
    broken = AddRequest(
        request_id="broken",
        prompt_token_ids=[8, poison, *healthy[1]],
        sampling=SamplingParams(max_tokens=0, pooling=pooling),
        arrival_time=0.0,
    )
    core.add_request(broken)
    errors = []
    while core.has_work:
        errors += [delta.error for delta in core.step().deltas]
    assert errors == ["the model's embedding is not finite"]
    assert_close(embed(core, pooling, healthy).vectors, reference(directory, pooling, healthy))


# --- through the server ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected_of_texts() -> Callable[[Pooling], list[Vector]]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(demo_model_path())
    tokens = [tokenizer(text).input_ids for text in TEXTS]
    return cache(lambda pooling: reference(demo_model_path(), pooling, tokens))


@pytest.fixture(scope="module")
def float32_server() -> Any:
    running = ServerProcess("--dtype", "float32")
    yield running
    running.close()


def client_of(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def vectors_of(answer: CreateEmbeddingResponse) -> list[Vector]:
    CreateEmbeddingResponse.model_validate(answer.to_dict(), strict=True)
    assert [entry.index for entry in answer.data] == list(range(len(answer.data)))
    return [np.array(entry.embedding, dtype=np.float32) for entry in answer.data]


def test_the_sdk_gets_vectors_in_every_format(
    float32_server: ServerProcess, expected_of_texts: Callable[[Pooling], list[Vector]]
) -> None:
    expected = expected_of_texts("mean")
    with client_of(float32_server) as client:
        packed = client.embeddings.create(model=MODEL, input=TEXTS)  # as base64, which the SDK decodes
        plain = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
        one = client.embeddings.create(model=MODEL, input=TEXTS[1])
        assert_close(vectors_of(packed), expected)
        assert_close(vectors_of(plain), expected)
        assert_close(vectors_of(one), expected[1:2])
        assert packed.model == MODEL
        assert packed.usage.prompt_tokens == packed.usage.total_tokens > len(TEXTS)


def test_the_sdk_gets_vectors_of_token_ids(float32_server: ServerProcess) -> None:
    tokens = [[5, 6, 7], [8]]
    with client_of(float32_server) as client:
        many = client.embeddings.create(model=MODEL, input=tokens)
        one = client.embeddings.create(model=MODEL, input=tokens[0], encoding_format="float")
    assert_close(vectors_of(many), reference(demo_model_path(), "mean", tokens))
    assert_close(vectors_of(one), vectors_of(many)[:1])
    assert many.usage.prompt_tokens == 4


def test_the_sdk_gets_fewer_dimensions(
    float32_server: ServerProcess, expected_of_texts: Callable[[Pooling], list[Vector]]
) -> None:
    with client_of(float32_server) as client:
        short = vectors_of(client.embeddings.create(model=MODEL, input=TEXTS, dimensions=16))
        with pytest.raises(openai.BadRequestError) as too_many:
            client.embeddings.create(model=MODEL, input="x", dimensions=100_000)
    wanted = [vector[:16] / np.linalg.norm(vector[:16]) for vector in expected_of_texts("mean")]
    assert_close(short, wanted)
    assert too_many.value.param == "dimensions"


@pytest.mark.slow
def test_pooling_is_the_operators_choice(
    start_server: StartServer, expected_of_texts: Callable[[Pooling], list[Vector]]
) -> None:
    server = start_server("--dtype", "float32", "--pooling", "last")
    with client_of(server) as client:
        assert_close(vectors_of(client.embeddings.create(model=MODEL, input=TEXTS)), expected_of_texts("last"))
    assert server.metric('orcinus_requests_total{outcome="stop"}') == len(TEXTS)


def test_a_model_brings_its_own_pooling(tmp_path: Path, model_of: Callable[[str], Path]) -> None:
    (directory := tmp_path / "model").mkdir()
    for file in model_of("llama").iterdir():
        (directory / file.name).symlink_to(file)
    path = directory / POOLING_FILE
    path.parent.mkdir()
    path.write_text('{"word_embedding_dimension": 48, "pooling_mode_lasttoken": true}')
    assert build_executor(engine_config(directory))[0].pooling == "last"
    assert build_executor(engine_config(directory, pooling="mean"))[0].pooling == "mean"
