"""Reranking and scores, checked against transformers' own logits, in the engine and through a real server."""

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, EngineInfo, RequestDelta
from orcinus.engine.models.label_logits import LabelLogits
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor
from orcinus.engine.startup.label_tokens import LABELS_FILE
from orcinus.server.requests.rerank_templates import RERANK_TEMPLATES
from tests.integration.test_truth import poisoned_model
from tests.integration.tiny_models import VOCAB_SIZE, build_model, build_tokenizer, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    core_with_few_blocks,
    info_with_blocks,
    prompts,
    random_tokens,
)
from tests.server_process import ServerProcess, StartServer

MODEL = "Qwen3-Reranker-Tiny"
QUERY = "what do pandas eat?"
DOCUMENTS = ["Bamboo.", "The panda eats bamboo leaves, and now and then an egg.", "It rains.", "", "Pandas sleep."]
LABELS = (7, 300)

Executor = tuple[EngineInfo, ModelRunner]
Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: build_model(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="module")
def executor_of(model_of: Callable[[str], Path]) -> Callable[..., Executor]:
    """Chunks of at most 16 tokens, and blocks of 4."""

    def load(family: str, **settings: Any) -> Executor:
        sizes = {"max_model_len": MAX_MODEL_LEN, "block_size": BLOCK_SIZE}
        return build_executor(engine_config(model_of(family), **sizes, **settings))

    return cache(load)


def reference(directory: Path, tokens: Sequence[list[int]], labels: Sequence[int] = LABELS) -> list[Logits]:
    """One prompt at a time, by transformers alone."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).logits[0, -1, list(labels)].numpy() for prompt in tokens]


def judge(
    core: EngineCore, tokens: Sequence[list[int]], labels: tuple[int, ...] = LABELS, others: Sequence[AddRequest] = ()
) -> tuple[list[Logits], int, int]:
    """All at once, with other requests before them: their logits, cached tokens and preemptions."""
    for other in others:
        core.add_request(other)
    sampling = SamplingParams(max_tokens=0, pooling="last", label_token_ids=labels)
    for number, prompt in enumerate(tokens):
        core.add_request(AddRequest(str(number), prompt, sampling, arrival_time=1.0))
    last: dict[str, RequestDelta] = {}
    num_cached = 0
    while core.has_work:
        for delta in core.step().deltas:
            last[delta.request_id] = delta
            num_cached += delta.num_cached_tokens or 0
        core.scheduler.check_integrity()
    deltas = [last[str(number)] for number in range(len(tokens))]
    assert {(delta.finish_reason, delta.error) for delta in deltas} == {("stop", None)}
    logits = [np.frombuffer(delta.embedding or b"", dtype=np.float32) for delta in deltas]
    return logits, num_cached, sum(delta.num_preemptions for delta in deltas)


def assert_close(got: Sequence[Logits], expected: Sequence[Logits], atol: float = 2e-5) -> None:
    for logits, wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=atol)


def ragged_prompts(seed: int, count: int = 12) -> list[list[int]]:
    stream = prompts(random.Random(seed))
    return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2", "qwen3_5"])
def test_label_logits_are_those_of_transformers_whatever_shares_the_batch(
    family: str, model_of: Callable[[str], Path], executor_of: Callable[..., Executor]
) -> None:
    tokens = ragged_prompts(1)
    expected = reference(model_of(family), tokens)
    atol = 5e-4 if family == "qwen3_5" else 2e-5  # whose states are added up in another order
    core = core_with_few_blocks(executor_of(family), 48)
    for _ in ("first", "with what is cached by then"):
        assert_close(judge(core, tokens)[0], expected, atol)
    [alone], _, _ = judge(core_with_few_blocks(executor_of(family)), tokens[:1])
    assert_close([alone], expected[:1], atol)


def test_documents_share_what_comes_before_them(
    model_of: Callable[[str], Path], executor_of: Callable[..., Executor]
) -> None:
    rng = random.Random(2)
    shared = random_tokens(rng, 40)
    tokens = [shared + random_tokens(rng, length) for length in (1, 4, 9, 16, 25, 30)]
    logits, num_cached, _ = judge(core_with_few_blocks(executor_of("qwen3"), 96), tokens)
    assert num_cached >= 40  # of the slots that came free within the request
    assert_close(logits, reference(model_of("qwen3"), tokens))


def test_a_preempted_prompt_starts_over(model_of: Callable[[str], Path], executor_of: Callable[..., Executor]) -> None:
    rng = random.Random(3)
    writing = SamplingParams(max_tokens=80, ignore_eos=True, seed=1)
    writers = [AddRequest(f"w{i}", random_tokens(rng, 8), writing, arrival_time=0.0, priority=-1) for i in range(2)]
    tokens = [random_tokens(rng, 60) for _ in range(4)]
    info, runner = executor_of("qwen3")
    core = EngineCore(info_with_blocks(info, 24, max_num_batched_tokens=5), runner)
    logits, _, num_preemptions = judge(core, tokens, others=writers)
    assert num_preemptions > 0
    assert_close(logits, reference(model_of("qwen3"), tokens))


def test_prompts_of_several_labels_run_together(
    model_of: Callable[[str], Path], executor_of: Callable[..., Executor]
) -> None:
    core = core_with_few_blocks(executor_of("qwen3"))
    prompt = random_tokens(random.Random(4), 5)
    asked = {"one": (9,), "three": (300, 4, 9), "vector": ()}
    for name, labels in asked.items():
        sampling = SamplingParams(max_tokens=0, pooling="last", label_token_ids=labels)
        core.add_request(AddRequest(name, prompt, sampling, arrival_time=0.0))
    found: dict[str, bytes] = {}
    while core.has_work:
        found |= {delta.request_id: delta.embedding or b"" for delta in core.step().deltas}
    for name in ("one", "three"):
        assert_close([np.frombuffer(found[name], np.float32)], reference(model_of("qwen3"), [prompt], asked[name]))
    assert np.linalg.norm(np.frombuffer(found["vector"], np.float32)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_logits_have_the_same_bits_alone_and_in_a_crowd(
    dtype: str, executor_of: Callable[..., Executor]
) -> None:
    num_threads = torch.get_num_threads()
    try:
        executor = executor_of("qwen3", dtype=dtype, deterministic=True)
        tokens = ragged_prompts(5)
        together, _, _ = judge(core_with_few_blocks(executor, 48), tokens)
        alone = [judge(core_with_few_blocks(executor), [prompt])[0][0] for prompt in tokens]
        assert [logits.tobytes() for logits in together] == [logits.tobytes() for logits in alone]
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_logits_of_a_model_in_low_precision_are_not_rounded_to_it(
    quantization: str | None, executor_of: Callable[..., Executor]
) -> None:
    """So that documents whose scores are nearly the same are still in order."""
    info, runner = executor_of("qwen3", dtype="bfloat16", quantization=quantization)
    hidden = torch.randn(64, info.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        logits = LabelLogits(runner._model)(hidden, LABELS)
        whole = runner._model.logits(hidden)[:, list(LABELS)].float()
    assert logits.dtype is torch.float32
    torch.testing.assert_close(logits, whole, rtol=0.05, atol=0.15)
    assert (logits != logits.bfloat16().float()).float().mean() > 0.9


def test_a_head_without_rows_is_computed_whole(executor_of: Callable[..., Executor]) -> None:
    class Opaque(torch.nn.Module):
        def __init__(self, head: Any) -> None:
            super().__init__()
            self.head = head

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(hidden)
            return logits

    _, runner = executor_of("llama")
    causal_lm = runner._model.causal_lm
    head = causal_lm.get_output_embeddings()
    hidden = torch.randn(3, head.in_features, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        by_rows = LabelLogits(runner._model)(hidden, LABELS)
        causal_lm.set_output_embeddings(Opaque(head))
        try:
            whole = LabelLogits(runner._model)(hidden, LABELS)
        finally:
            causal_lm.set_output_embeddings(head)
    torch.testing.assert_close(by_rows, whole, rtol=0, atol=1e-5)


def test_logits_that_are_not_finite_fail_alone(tmp_path: Path, model_of: Callable[[str], Path]) -> None:
    poison = VOCAB_SIZE - 1
    directory = poisoned_model(model_of("qwen3"), tmp_path, poison)
    executor = build_executor(engine_config(directory, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE))
    core = core_with_few_blocks(executor)
    sampling = SamplingParams(max_tokens=0, pooling="last", label_token_ids=LABELS)
    core.add_request(AddRequest("broken", [8, poison, 9], sampling, arrival_time=0.0))
    core.add_request(AddRequest("healthy", [8, 9], sampling, arrival_time=0.0))
    errors: dict[str, str | None] = {}
    while core.has_work:
        errors |= {delta.request_id: delta.error for delta in core.step().deltas}
    assert errors == {"broken": "the model's logits are not finite", "healthy": None}


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"true_token_id": 7, "false_token_id": 300}, [7, 300]),
        ({"true_token_id": 7, "false_token_id": None}, [7]),
        ({"true_token_id": 7}, [7]),
        ({"true_token_id": VOCAB_SIZE}, []),
        ({"false_token_id": 7}, []),
        ({"true_token_id": None, "false_token_id": 7}, []),
        ({"true_token_id": "yes"}, []),
        ([7], []),
    ],
)
def test_a_checkpoint_says_which_tokens_its_labels_are(
    tmp_path: Path, model_of: Callable[[str], Path], config: Any, labels: list[int]
) -> None:
    (directory := tmp_path / "model").mkdir()
    for file in model_of("qwen3").iterdir():
        (directory / file.name).symlink_to(file)
    path = directory / LABELS_FILE
    path.parent.mkdir()
    path.write_text(json.dumps(config))
    assert build_executor(engine_config(directory))[0].label_token_ids == labels


# --- through the server ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, with a name by which its family is known."""
    directory = tmp_path_factory.mktemp("models") / MODEL
    build_model("qwen3", directory, max_position_embeddings=2048)
    return build_tokenizer(directory)


@pytest.fixture(scope="module")
def server(reranker: Path) -> Iterator[ServerProcess]:
    running = ServerProcess("--model", str(reranker), "--dtype", "float32")
    try:
        yield running
    finally:
        running.close()


def prompt_of(query: str, document: str, instruction: str = "") -> str:
    """The prompt of the model's card."""
    instruction = instruction or "Given a web search query, retrieve relevant passages that answer the query"
    system = (
        "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".'
    )
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n"
        f"<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def scores_by_transformers(directory: Path, texts: Sequence[str]) -> list[float]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (*texts, "yes", "no")]
    logits = reference(directory, ids[:-2], [ids[-2][0], ids[-1][0]])
    return [float(torch.softmax(torch.tensor(each), dim=-1)[0]) for each in logits]


def ask(server: ServerProcess, path: str, **body: Any) -> Any:
    answer = server.http.post(path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_scores_are_the_probabilities_of_yes_as_the_models_card_computes_them(
    server: ServerProcess, reranker: Path
) -> None:
    expected = scores_by_transformers(reranker, [prompt_of(QUERY, document) for document in DOCUMENTS])
    assert max(expected) - min(expected) > 0.01
    answer = ask(server, "/v1/score", text_1=QUERY, text_2=DOCUMENTS)
    assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected, abs=1e-6)
    odds = ask(server, "/v1/score", text_1=QUERY, text_2=DOCUMENTS, use_activation=False)
    wanted = [math.log(score / (1 - score)) for score in expected]
    assert [entry["score"] for entry in odds["data"]] == pytest.approx(wanted, abs=1e-4)


def test_an_instruction_stands_where_the_models_card_has_it(server: ServerProcess, reranker: Path) -> None:
    texts = [prompt_of(QUERY, document, "Find food.") for document in DOCUMENTS]
    answer = ask(server, "/v1/score", queries=QUERY, documents=DOCUMENTS, instruction="Find food.")
    expected = scores_by_transformers(reranker, texts)
    assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_come_in_the_order_of_their_scores(server: ServerProcess, reranker: Path, path: str) -> None:
    expected = scores_by_transformers(reranker, [prompt_of(QUERY, document) for document in DOCUMENTS])
    order = sorted(range(len(DOCUMENTS)), key=lambda index: -expected[index])
    results = ask(server, path, query=QUERY, documents=DOCUMENTS, model=MODEL)["results"]
    assert [result["index"] for result in results] == order
    assert [result["relevance_score"] for result in results] == pytest.approx([expected[i] for i in order], abs=1e-6)
    assert [result["document"] for result in results] == [{"text": DOCUMENTS[i]} for i in order]
    best = ask(server, path, query=QUERY, documents=DOCUMENTS, top_n=2, return_documents=False)["results"]
    assert best == [{key: result[key] for key in ("index", "relevance_score")} for result in results[:2]]


def test_a_document_is_cut_where_that_is_asked_for(server: ServerProcess, reranker: Path) -> None:
    long = "z" * 5000  # tokens of one letter each
    [expected] = scores_by_transformers(reranker, [prompt_of(QUERY, "z" * 10)])
    [result] = ask(server, "/v1/rerank", query=QUERY, documents=[long], max_tokens_per_doc=10)["results"]
    assert result["relevance_score"] == pytest.approx(expected, abs=1e-6)
    whole = ask(server, "/v1/rerank", query=QUERY, documents=[long], truncate_prompt_tokens=-1)
    assert whole["usage"]["prompt_tokens"] == 2048
    refused = server.http.post("/v1/rerank", json={"query": QUERY, "documents": ["x", long]})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "2048" in refused.json()["error"]["message"]


def test_the_query_is_computed_once_for_many_documents(server: ServerProcess) -> None:
    documents = [f"{number} is a number." for number in range(40)]
    answer = ask(server, "/v1/rerank", query="which number is even?", documents=documents)
    assert answer["meta"]["cached_tokens"] > answer["usage"]["prompt_tokens"] / 2
    assert server.metric('orcinus_requests_total{outcome="stop"}') >= len(documents)


@pytest.mark.slow
def test_a_chat_template_for_pairs_and_the_files_labels_are_used(
    start_server: StartServer, reranker: Path, tmp_path: Path
) -> None:
    """As newer checkpoints come: roles query and document, an instruction of the system, and the tokens of labels."""
    directory = tmp_path / "judge"
    shutil.copytree(reranker, directory)
    (directory / "chat_template.jinja").write_text(
        "{% for m in messages if m.role == 'system' %}I: {{ m.content }}\n{% endfor %}"
        "Q: {{ (messages | selectattr('role', 'eq', 'query') | first).content }}\n"
        "D: {{ (messages | selectattr('role', 'eq', 'document') | first).content }}\nA:"
    )
    (directory / LABELS_FILE).parent.mkdir()
    (directory / LABELS_FILE).write_text('{"true_token_id": 50, "false_token_id": 60}')
    server = start_server("--model", str(directory), "--dtype", "float32")
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    for body, start in (({}, ""), ({"instruction": "Find food."}, "I: Find food.\n")):
        ids = [tokenizer(f"{start}Q: {QUERY}\nD: {each}\nA:", add_special_tokens=False).input_ids for each in DOCUMENTS]
        logits = reference(directory, ids, [50, 60])
        answer = ask(server, "/v1/score", text_1=QUERY, text_2=DOCUMENTS, **body)
        expected = [float(torch.softmax(torch.tensor(each), dim=-1)[0]) for each in logits]
        assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_the_operator_says_which_prompt_and_labels(start_server: StartServer, reranker: Path) -> None:
    options = ("--rerank-template", "bge-gemma", "--rerank-labels", "o")
    server = start_server("--model", str(reranker), "--dtype", "float32", *options)
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(reranker)
    text = RERANK_TEMPLATES["bge-gemma"].render(QUERY, "Bamboo.", None)
    [ids, [label]] = [tokenizer(each).input_ids for each in (text, "o")]
    [[logit]] = reference(reranker, [ids], [label])
    [entry] = ask(server, "/v1/score", text_1=QUERY, text_2="Bamboo.")["data"]
    assert entry["score"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
    refused = server.http.post("/v1/score", json={"text_1": QUERY, "text_2": "x", "instruction": "Find food."})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "instruction")
