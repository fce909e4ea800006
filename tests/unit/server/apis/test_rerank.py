"""POST /v1/rerank and /v1/score: every form of texts, their limits, and what becomes of them on the way."""

import asyncio
import inspect
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcinus.engine.messages import StepPlan, StepResult
from orcinus.server.apis.judging import log_odds, probability
from orcinus.server.apis.rerank.body import RerankBody
from orcinus.server.apis.score.body import ScoreBody
from orcinus.server.requests.parameters import parameter_table
from tests.unit.engine.fakes import FakeExecutor, label_logits
from tests.unit.server.serving import Gate, Serving, answer_of, error_of, listening, serving, until

URL = "/v1/rerank"
SCORE = "/v1/score"
YES, NO = ord("y"), ord("n")  # the first tokens of the labels
PAIRS = (
    "{% for m in messages if m.role == 'system' %}{{ m.content }}|{% endfor %}"
    "{% for m in messages if m.role == 'query' %}{{ m.content }}{% endfor %}>"
    "{% for m in messages if m.role == 'document' %}{{ m.content }}{% endfor %}"
)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Serving]:
    """A model that is asked in a chat, and finds what has most y relevant."""
    async with serving(tmp_path) as served:
        yield served


@pytest.fixture
async def judging(tmp_path: Path) -> AsyncIterator[Serving]:
    """A reranker by its chat template: its prompts are the query, >, and the document."""
    async with serving(tmp_path, template=PAIRS) as served:
        yield served


def asked(query: str, document: str, before: str = "") -> str:
    """The prompt of the chat."""
    question = "Does the document answer the query? Answer with yes or no only."
    return f"<|start|>user\n{before}Query: {query}\nDocument: {document}\n{question}<|end|>\n<|start|>assistant\n"


def bare(text: str) -> str:
    """A prompt less its special tokens."""
    return text.replace("<|start|>", "").replace("<|end|>", "")


def expected(text: str) -> Any:
    yes, no = label_logits(list(bare(text).encode()), (YES, NO))
    return pytest.approx(1 / (1 + math.exp(no - yes)), abs=1e-6)


def num_tokens(*texts: str) -> int:
    return sum(len(bare(text)) + text.count("<|start|>") + text.count("<|end|>") for text in texts)


async def rerank(served: Serving, documents: Any, query: str = "q", **body: Any) -> dict[str, Any]:
    return answer_of(await served.post(URL, query=query, documents=documents, **body))


async def scores(served: Serving, **body: Any) -> list[float]:
    return [entry["score"] for entry in answer_of(await served.post(SCORE, **body))["data"]]


@pytest.mark.parametrize("path", [URL, "/v2/rerank", "/rerank"])
async def test_an_answer_has_what_each_api_declares(served: Serving, path: str) -> None:
    response = await served.post(
        path, query="q", documents=["a", {"text": "yy", "title": "t"}, "y"], model="fake-model"
    )
    answer = answer_of(response)
    assert list(answer) == ["id", "model", "results", "usage", "meta"]
    assert answer["id"].startswith("rerank-")
    assert answer["model"] == "fake-model"
    texts = [asked("q", each) for each in ("yy", "y", "a")]
    assert answer["results"] == [
        {"index": 1, "relevance_score": expected(texts[0]), "document": {"text": "yy", "title": "t"}},
        {"index": 2, "relevance_score": expected(texts[1]), "document": {"text": "y"}},
        {"index": 0, "relevance_score": expected(texts[2]), "document": {"text": "a"}},
    ]
    count = num_tokens(*texts)
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
    tokens = {"input_tokens": count, "output_tokens": 0}
    assert 0 <= answer["meta"].pop("cached_tokens") < count
    assert answer["meta"] == {"api_version": {"version": "2"}, "tokens": tokens}
    assert response.headers["server-timing"]


async def test_the_best_come_first_and_equals_in_their_order(served: Serving) -> None:
    documents = ["y", "n", "yyy", "y"]
    results = (await rerank(served, documents))["results"]
    assert [result["index"] for result in results] == [2, 0, 3, 1]
    assert (await rerank(served, documents, top_n=0))["results"] == results
    assert (await rerank(served, documents, top_n=9))["results"] == results
    assert (await rerank(served, documents, top_n=2))["results"] == results[:2]


async def test_documents_are_left_out_where_that_is_asked_for(served: Serving) -> None:
    [result] = (await rerank(served, ["y"], return_documents=False))["results"]
    assert set(result) == {"index", "relevance_score"}


async def test_log_odds_are_given_without_an_activation(served: Serving) -> None:
    [result] = (await rerank(served, ["yyn"], use_activation=False))["results"]
    yes, no = label_logits(list(bare(asked("q", "yyn")).encode()), (YES, NO))
    assert result["relevance_score"] == yes - no
    assert await scores(served, text_1="q", text_2="yyn", use_activation=False) == [yes - no]


@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
async def test_scores_are_of_pairs_by_any_of_four_names(served: Serving, names: tuple[str, str]) -> None:
    first, second = names
    one = answer_of(await served.post(SCORE, **{first: "q", second: "y"}))
    assert list(one) == ["id", "object", "created", "model", "data", "usage"]
    assert (one["object"], one["model"]) == ("list", "fake-model")
    assert one["id"].startswith("score-")
    assert one["data"] == [{"index": 0, "object": "score", "score": expected(asked("q", "y"))}]
    count = num_tokens(asked("q", "y"))
    usage = {name: one["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    assert usage == {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
    wanted = [expected(asked("q", each)) for each in ("y", "n")]
    assert await scores(served, **{first: "q", second: ["y", {"text": "n"}]}) == wanted
    assert await scores(served, **{first: ["q"], second: ["y", "n"]}) == wanted
    wanted = [expected(asked("q", "y")), expected(asked("qy", "n"))]
    assert await scores(served, **{first: ["q", "qy"], second: ["y", "n"]}) == wanted


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "query", "required"),
        ({"query": "q"}, "documents", "required"),
        ({"query": None, "documents": ["a"]}, "query", "required"),
        ({"query": "q", "documents": None}, "documents", "required"),
        ({"query": "", "documents": ["a"]}, "query", "1"),
        ({"query": ["q"], "documents": ["a"]}, "query", "string"),
        ({"query": "q", "documents": []}, "documents", "an empty list"),
        ({"query": "q", "documents": "a"}, "documents", "must be a list"),
        ({"query": "q", "documents": ["a", 5]}, "documents[1]", "got 5"),
        ({"query": "q", "documents": ["a", None]}, "documents[1]", "got null"),
        ({"query": "q", "documents": [{"title": "a"}]}, "documents[0].text", "must be a string"),
        ({"query": "q", "documents": ["a"] * 2049}, "documents", "at most 2048 entries, got 2049"),
        ({"query": "q", "documents": ["a" * 300]}, "documents", "maximum context length is 256"),
        ({"query": "q" * 300, "documents": ["a"]}, "documents", "maximum context length is 256"),
        ({"query": "q", "documents": ["a"], "top_n": -1}, "top_n", "-1"),
        ({"query": "q", "documents": ["a"], "top_n": "1"}, "top_n", "integer"),
        ({"query": "q", "documents": ["a"], "max_tokens_per_doc": -1}, "max_tokens_per_doc", "-1"),
        ({"query": "q", "documents": ["a"], "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-1"),
        ({"query": "q", "documents": ["abc"], "truncate_prompt_tokens": 9}, "truncate_prompt_tokens", "9 tokens are"),
        ({"query": "q", "documents": ["a"], "instruction": ""}, "instruction", "1"),
        ({"query": "q", "documents": ["a"], "rank_fields": ["title"]}, "rank_fields", "text"),
        ({"query": "q", "documents": ["a"], "relevant_spans": {"mode": "enabled"}}, "relevant_spans", "whole"),
        ({"query": "q", "documents": ["a"], "temperature": 1}, "temperature", "unknown"),
        ({"query": "q", "documents": ["a"], "top_k": 1}, "top_k", "unknown"),
    ],
)
async def test_what_is_wrong_is_named_with_its_limit(
    served: Serving, body: dict[str, Any], param: str, said: str
) -> None:
    error = error_of(await served.post(URL, **body), 400)
    assert error["param"] == param
    assert said in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "text_1", "required"),
        ({"text_1": "q"}, "text_1", "give one of these pairs"),
        ({"text_1": "q", "documents": "a"}, "documents", "got documents, text_1"),
        ({"text_1": "q", "text_2": "a", "items": "b"}, "items", "got items, text_1, text_2"),
        ({"text_1": "", "text_2": "a"}, "text_1", "is empty"),
        ({"text_1": ["q", ""], "text_2": ["a", "b"]}, "text_1[1]", "is empty"),
        ({"text_1": ["q", "r"], "text_2": "a"}, "text_1", "got 2 and 1"),
        ({"text_1": ["q", "r"], "text_2": ["a", "b", "c"]}, "text_1", "got 2 and 3"),
        ({"text_1": [], "text_2": "a"}, "text_1", "an empty list"),
        ({"text_1": "q", "text_2": []}, "text_2", "an empty list"),
        ({"text_1": 5, "text_2": "a"}, "text_1", "got 5"),
        ({"text_1": "q", "text_2": ["a"] * 2049}, "text_2", "at most 2048 entries, got 2049"),
        ({"queries": "q", "documents": "a" * 300}, "documents", "maximum context length is 256"),
    ],
)
async def test_what_is_wrong_with_pairs_is_named(served: Serving, body: dict[str, Any], param: str, said: str) -> None:
    error = error_of(await served.post(SCORE, **body), 400)
    assert error["param"] == param
    assert said in error["message"]


async def test_a_document_beyond_the_context_says_so_in_its_code_and_no_more_is_tokenized(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = served.engine.render_and_encode, []

    async def note(messages: Any, **options: Any) -> list[int]:
        encoded.append(messages)
        return await encode(messages, **options)

    monkeypatch.setattr(served.engine, "render_and_encode", note)
    error = error_of(await served.post(URL, query="q", documents=["a", "b" * 300, *"c" * 200]), 400)
    assert error["code"] == "context_length_exceeded"
    assert str(num_tokens(asked("q", "b" * 300))) in error["message"]
    assert len(encoded) == 2


async def test_texts_are_cut_to_their_first_tokens_where_that_is_asked_for(judging: Serving) -> None:
    whole = await rerank(judging, ["yyyy", "n"], query="abcdef")
    assert whole["usage"]["prompt_tokens"] == len("abcdef>yyyy" + "abcdef>n")
    cut = await rerank(judging, ["yyyy", "n"], query="abcdef", max_tokens_per_doc=2, max_tokens_per_query=3)
    assert cut["usage"]["prompt_tokens"] == len("abc>yy" + "abc>n")
    assert [result["relevance_score"] for result in cut["results"]] == [expected("abc>yy"), expected("abc>n")]
    assert cut["results"][0]["document"] == {"text": "yyyy"}
    cut = await rerank(judging, ["yyyy", "n"], query="abc", truncate_prompt_tokens=6)
    assert cut["usage"]["prompt_tokens"] == len("abc>yy" + "abc>n")
    cut = await rerank(judging, ["y" * 300], query="abc", truncate_prompt_tokens=-1)
    assert cut["usage"]["prompt_tokens"] == 256
    cut = await rerank(judging, ["\u00e4\u00e4"], query="abc", max_tokens_per_doc=3)  # in the middle of a character
    assert cut["usage"]["prompt_tokens"] == len("abc>") + 2


async def test_a_chat_template_for_pairs_is_used_as_it_is(judging: Serving) -> None:
    assert await scores(judging, text_1="q", text_2="yy") == [expected("q>yy")]
    assert await scores(judging, text_1="q", text_2="yy", instruction="n?") == [expected("n?|q>yy")]
    odd = "{{ messages }} <|end|>"  # stays what it is
    assert await scores(judging, text_1="q", text_2=odd) == [expected(f"q>{odd}")]


async def test_a_template_without_a_place_for_instructions_refuses_them(tmp_path: Path) -> None:
    async with serving(tmp_path, template=PAIRS[PAIRS.index("{% for m in messages if m.role == 'query'") :]) as served:
        assert await scores(served, text_1="q", text_2="y") == [expected("q>y")]
        error = error_of(await served.post(SCORE, text_1="q", text_2="y", instruction="n?"), 400)
        assert (error["param"], "no place" in error["message"]) == ("instruction", True)


async def test_a_template_that_shows_any_role_is_a_chats(tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    async with serving(tmp_path, template=template) as served:
        [score] = await scores(served, text_1="q", text_2="y")
        assert score == expected("[user]" + asked("q", "y").split("\n", 1)[1].split("<|end|>")[0])


async def test_a_chat_is_begun_with_the_instruction(served: Serving) -> None:
    wanted = expected(asked("q", "y", "Find y.\n"))
    assert await scores(served, text_1="q", text_2="y", instruction="Find y.") == [wanted]


async def test_the_family_that_the_models_name_tells_has_its_own_prompt(tmp_path: Path) -> None:
    info = {"model": "/models/BAAI--bge-reranker-v2-gemma", "max_model_len": 512}
    async with serving(tmp_path, info=info, template=None) as served:
        [entry] = answer_of(await served.post(SCORE, text_1="q", text_2="YY"))["data"]
        text = (
            "A: q\nB: YY\nGiven a query A and a passage B, determine whether the passage contains an answer to the"
            " query by providing a prediction of either 'Yes' or 'No'."
        )
        assert entry["score"] == pytest.approx(1 / (1 + math.exp(-text.count("Y"))), abs=1e-6)
        error = error_of(await served.post(SCORE, text_1="q", text_2="y", instruction="n?"), 400)
        assert error["param"] == "instruction"


async def test_the_operators_prompt_and_labels_win(tmp_path: Path) -> None:
    info = {"model": "Qwen3-Reranker", "label_token_ids": [NO, YES], "max_model_len": 512}
    settings: dict[str, Any] = {"rerank_template": "chat", "rerank_labels": ["yes", "no"]}
    async with serving(tmp_path, info=info, **settings) as served:
        assert await scores(served, text_1="q", text_2="y") == [expected(asked("q", "y"))]


async def test_the_checkpoints_labels_are_used(tmp_path: Path) -> None:
    async with serving(tmp_path, info={"label_token_ids": [ord("a")]}) as served:
        [score] = await scores(served, text_1="q", text_2="aa", use_activation=False)
        assert score == bare(asked("q", "aa")).count("a")


async def test_labels_without_tokens_of_their_own_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, rerank_labels=["yes", "yep"]) as served:
        error = error_of(await served.post(SCORE, text_1="q", text_2="y"), 400)
        assert "--rerank-labels" in error["message"]


async def test_a_model_without_any_prompt_says_what_it_lacks(tmp_path: Path) -> None:
    async with serving(tmp_path, template=None) as served:
        for path, body in ((URL, {"query": "q", "documents": ["a"]}), (SCORE, {"text_1": "q", "text_2": "a"})):
            error = error_of(await served.post(path, **body), 400)
            assert (error["param"], "--rerank-template" in error["message"]) == ("model", True)


async def test_a_model_without_a_head_scores_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, info={"has_head": False, "architecture": "MistralModel"}) as served:
        error = error_of(await served.post(SCORE, text_1="q", text_2="y"), 400)
        assert "(MistralModel) has no language-model head" in error["message"]


async def test_an_unknown_model_is_a_404(served: Serving) -> None:
    refused = await served.post(URL, query="q", documents=["a"], model="rerank-v3.5")
    assert error_of(refused, 404)["code"] == "model_not_found"


async def test_more_documents_than_fit_slots_and_queue_are_refused_with_both_numbers(tmp_path: Path) -> None:
    async with serving(tmp_path, info={"max_num_seqs": 4}, max_queue_len=3) as served:
        assert len((await rerank(served, ["a"] * 7))["results"]) == 7
        error = error_of(await served.post(URL, query="q", documents=["a"] * 8), 400)
        assert error["param"] == "documents"
        assert "7" in error["message"]
        assert "8" in error["message"]


async def test_priority_salt_and_deadline_reach_the_engine(served: Serving) -> None:
    requests = []
    submit = served.engine.submit

    def recording(request: Any) -> Any:
        requests.append(request)
        return submit(request)

    served.engine.submit = recording  # type: ignore[method-assign]
    await rerank(served, ["a"], priority=-3, cache_salt="salt", timeout=2.5)
    [request] = requests
    assert (request.priority, request.cache_salt, request.timeout_s) == (-3, "salt", 2.5)
    assert (request.sampling.pooling, request.sampling.label_token_ids) == ("last", (YES, NO))


async def test_a_document_that_fails_fails_its_request_alone(tmp_path: Path) -> None:
    class Broken(FakeExecutor):
        def execute(self, plan: StepPlan) -> StepResult:
            result = super().execute(plan)
            for new in plan.new_requests:
                if 0 in new.token_ids:
                    result.embeddings.pop(new.request_id, None)
                    result.errors[new.request_id] = "the model's logits are not finite"
            return result

    async with serving(tmp_path, Broken()) as served:
        error = error_of(await served.post(URL, query="q", documents=["a", "\0", "b"]), 500)
        assert error["message"] == "the model's logits are not finite"
        assert len((await rerank(served, ["a"]))["results"]) == 1


async def test_leaving_ends_the_request_and_frees_its_slots(tmp_path: Path) -> None:
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(before_step=gate)) as served, listening(served) as (_, port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            asking = asyncio.create_task(client.post(URL, json={"query": "q", "documents": ["a", "b"]}))
            await until(lambda: served.engine.num_queued)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: served.engine.num_running + served.engine.num_queued == 0)
        assert await served.metric("orcinus_requests_total", outcome="abort") == 2
        gate.open()


async def test_metrics_count_prompts_and_no_generated_token(served: Serving) -> None:
    answer = await rerank(served, ["abc", "de"])
    assert await served.metric("orcinus_prompt_tokens_total") == answer["usage"]["prompt_tokens"]
    assert await served.metric("orcinus_generation_tokens_total") == 0
    assert await served.metric("orcinus_requests_total", outcome="stop") == 2
    assert await served.metric("orcinus_time_to_first_token_seconds_count") == 0


async def test_two_thousand_documents_are_one_answer(tmp_path: Path) -> None:
    async with serving(tmp_path, template=PAIRS, max_queue_len=2048) as served:
        documents = ["y" * (number % 7) for number in range(2048)]
        results = (await rerank(served, documents))["results"]
        assert sorted(result["index"] for result in results) == [*range(2048)]
        found = [result["relevance_score"] for result in results]
        assert found == sorted(found, reverse=True)


def test_every_parameter_has_a_description_and_a_decision() -> None:
    rows = parameter_table({"rerank": RerankBody, "score": ScoreBody})
    decided = {row.name for row in rows if "rerank" in row.endpoints}
    # Those of Cohere's SDK: v1 and v2.
    assert {"query", "documents", "model", "top_n", "rank_fields", "return_documents", "max_chunks_per_doc"} <= decided
    assert {"max_tokens_per_doc", "priority", "relevant_spans"} <= decided
    # Those of vLLM.
    both = {row.name for row in rows if {"rerank", "score"} <= {*row.endpoints}}
    assert {"truncate_prompt_tokens", "instruction", "max_tokens_per_query", "use_activation", "user"} <= both
    for body in (RerankBody, ScoreBody):
        assert all(field.description for field in body.model_fields.values())
        assert inspect.getdoc(body)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=5))
def test_any_logits_make_a_probability_that_agrees_with_the_odds(logits: list[float]) -> None:
    odds = log_odds(logits)
    score = probability(odds)
    assert 0 <= score <= 1
    if len(logits) == 1:
        assert odds == logits[0]
    else:
        highest = max(logits)
        share = math.exp(logits[0] - highest) / math.fsum(math.exp(each - highest) for each in logits)
        assert score == pytest.approx(share, abs=1e-9)
