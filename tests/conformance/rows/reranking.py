"""POST /v1/rerank and POST /v1/score. The demo model was not trained to judge: its scores differ, and mean little."""

import math
from typing import Any

import pytest

from orcinus.server.requests.rerank_templates import DEFAULT_LABELS, question
from tests.conformance.api import Api, talk
from tests.conformance.registry import row
from tests.conformance.rows.parameters import effect

RERANK = "/v1/rerank"
SCORE = "/v1/score"
QUERY = "What is the capital of France?"
OTHER = "What is seven times nine?"
DOCUMENTS = ["Seven times nine is 63.", "The capital of France is Paris.", "A cat sleeps."]
LONG = "one two three four " * 50
TOLERANCE = 0.1  # of log-odds, which other prompts in a step may change a little
NAMES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


def rerank(api: Api, documents: Any = DOCUMENTS, query: str = QUERY, path: str = RERANK, **body: Any) -> dict[str, Any]:
    """Return a whole answer, with the fields that there always are."""
    answer = api.ask("POST", path, {"query": query, "documents": documents, **body})
    assert set(answer) == {"id", "model", "results", "usage", "meta"}
    assert answer["model"] == api.model["id"]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"]
    tokens = {"input_tokens": answer["usage"]["prompt_tokens"], "output_tokens": 0}
    assert (answer["meta"]["tokens"], answer["meta"]["api_version"]) == (tokens, {"version": "2"})
    assert 0 <= answer["meta"]["cached_tokens"] < answer["usage"]["prompt_tokens"]
    return answer


def by_index(answer: dict[str, Any]) -> list[float]:
    """Return the scores of all documents in the order in which these were given."""
    scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
    return [scores[index] for index in range(len(scores))]


def score(api: Api, text_1: Any = QUERY, text_2: Any = DOCUMENTS, path: str = SCORE, **body: Any) -> dict[str, Any]:
    """Return a whole answer, with the fields that there always are."""
    return score_by(api, path, text_1=text_1, text_2=text_2, **body)


def score_by(api: Api, path: str = SCORE, **body: Any) -> dict[str, Any]:
    answer = api.ask("POST", path, body)
    assert set(answer) == {"id", "object", "created", "model", "data", "usage"}
    assert (answer["object"], answer["model"]) == ("list", api.model["id"])
    assert isinstance(answer["created"], int)
    assert [set(entry) for entry in answer["data"]] == [{"index", "object", "score"}] * len(answer["data"])
    assert [entry["index"] for entry in answer["data"]] == [*range(len(answer["data"]))]
    assert {entry["object"] for entry in answer["data"]} == {"score"}
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"]
    return answer


def odds(api: Api, text_1: Any = QUERY, text_2: Any = DOCUMENTS, **body: Any) -> list[float]:
    """Return the log-odds of each pair."""
    return [entry["score"] for entry in score(api, text_1, text_2, use_activation=False, **body)["data"]]


def num_tokens(api: Api, *documents: str, **body: Any) -> int:
    """Return how many tokens the model reads for these documents."""
    count: int = rerank(api, [*documents], **body)["usage"]["prompt_tokens"]
    return count


def close(expected: float | list[float]) -> Any:
    return pytest.approx(expected, abs=TOLERANCE)


def as_probability(number: float) -> float:
    return 1 / (1 + math.exp(-number))


@row("rerank.shape", "Results with index, score and document, model, usage, and `meta` as Cohere's SDK reads it")
def rerank_shape(api: Api) -> None:
    answer = rerank(api)
    assert len(answer["results"]) == len(DOCUMENTS)
    for result in answer["results"]:
        assert set(result) == {"index", "relevance_score", "document"}
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
        assert 0 < result["relevance_score"] < 1


@row("rerank.paths", "/v2/rerank and /rerank answer as /v1/rerank does")
def rerank_paths(api: Api) -> None:
    expected = by_index(rerank(api, use_activation=False))
    for path in ("/v2/rerank", "/rerank"):
        assert by_index(rerank(api, path=path, use_activation=False)) == close(expected)


@row("rerank.order", "The best come first, and each document once")
def rerank_order(api: Api) -> None:
    answer = rerank(api, [*DOCUMENTS, "Bamboo grows.", "It rains."])
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2, 3, 4]
    assert len(set(scores)) == 5


@row("rerank.documents", "A document is a string or an object with a `text`, which comes back with its other fields")
def rerank_documents(api: Api) -> None:
    given = [{"text": DOCUMENTS[0], "title": "Numbers"}, DOCUMENTS[1]]
    answer = rerank(api, given, use_activation=False)
    documents = {result["index"]: result["document"] for result in answer["results"]}
    assert documents == {0: given[0], 1: {"text": DOCUMENTS[1]}}
    assert by_index(answer) == close(odds(api)[:2])


@row(
    "rerank.score",
    "A score is how likely the model's next token is yes, against no, after the question in its template",
)
def rerank_score(api: Api) -> None:
    for document, given in zip(DOCUMENTS, odds(api), strict=True):
        assert given == close(log_odds_of_next(api, question(QUERY, document, None, DEFAULT_LABELS)))


def log_odds_of_next(api: Api, message: str) -> float:
    """Return how much likelier the first label is than the second as the answer's first token, as a logarithm."""
    ids = api.ask("POST", "/tokenize", {"messages": talk(message)})["tokens"]
    logprobs = []
    for label in DEFAULT_LABELS:
        first = api.ask("POST", "/tokenize", {"prompt": label, "add_special_tokens": False})["tokens"][0]
        [choice] = api.complete([*ids, first], max_tokens=0, prompt_logprobs=0)["choices"]
        logprobs.append(choice["prompt_logprobs"][-1][str(first)]["logprob"])
    number: float = logprobs[0] - logprobs[1]
    return number


@row("rerank.usage", "The usage counts what the model reads: the prompts of all documents, whatever `top_n` is")
def rerank_usage(api: Api) -> None:
    count = sum(num_tokens(api, document) for document in DOCUMENTS)
    for top_n in (0, 1):
        assert num_tokens(api, *DOCUMENTS, top_n=top_n) == count
    assert score(api)["usage"]["prompt_tokens"] == count


@row("rerank.refused", "No query, no documents, wrong, too many or too long ones are refused by name")
def rerank_refused(api: Api) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    for wrong_query in (None, "", 5, [QUERY]):
        assert api.refuse(RERANK, {**body, "query": wrong_query})["param"] == "query"
    for wrong in (None, [], "x", 5, [5], [None], [{"title": "x"}], [{"text": 5}], ["x"] * 2049):
        assert (api.refuse(RERANK, {**body, "documents": wrong})["param"] or "").startswith("documents"), str(wrong)[
            :40
        ]
    error = api.refuse(RERANK, {**body, "documents": ["x", "word " * 2 * api.model["max_model_len"]]})
    assert (error["param"], error["code"]) == ("documents", "context_length_exceeded")
    assert str(api.model["max_model_len"]) in error["message"]
    assert api.refuse(RERANK, {**body, "model": "gpt-5"}, 404)["code"] == "model_not_found"
    assert api.refuse(RERANK, {**body, "top_k": 1})["param"] == "top_k"


@row("score.shape", "A list of `score` objects in the order of the texts, with model and usage; also at /score")
def score_shape(api: Api) -> None:
    for path in (SCORE, "/score"):
        answer = score(api, path=path)
        assert len(answer["data"]) == len(DOCUMENTS)
        assert all(0 < entry["score"] < 1 for entry in answer["data"])


@row("score.pairs", "One query is for every text; as many as texts are each for the text in its place")
def score_pairs(api: Api) -> None:
    apart = [odds(api, query, DOCUMENTS[0])[0] for query in (QUERY, OTHER)]
    assert abs(apart[0] - apart[1]) > TOLERANCE
    assert odds(api, [QUERY, OTHER], [DOCUMENTS[0], {"text": DOCUMENTS[0]}]) == close(apart)
    for one in (QUERY, [QUERY], {"text": QUERY}):
        assert odds(api, one, [DOCUMENTS[0]] * 2) == close([apart[0]] * 2)


@row("score.names", "The texts come by one of four pairs of names, which all give the same scores")
def score_names(api: Api) -> None:
    for first, second in NAMES:
        body: dict[str, Any] = {first: QUERY, second: DOCUMENTS, "use_activation": False}
        answer = score_by(api, **body)
        assert [entry["score"] for entry in answer["data"]] == close(odds(api)), (first, second)


@row("score.refused", "No pair of texts, half of one, two of them, or lists that do not fit are refused by name")
def score_refused(api: Api) -> None:
    assert api.refuse(SCORE, {})["param"] == "text_1"
    for names in (("text_1",), ("documents",), ("text_1", "documents"), ("queries", "documents", "items")):
        error = api.refuse(SCORE, dict.fromkeys(names, "x"))
        assert error["param"] in names
        assert all(name in error["message"] for name in names)
    error = api.refuse(SCORE, {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]})
    assert (error["param"], "2" in error["message"], "3" in error["message"]) == ("text_1", True, True)
    for first, second in NAMES:
        for wrong in ("", 5, [], [5], [{"title": "x"}], ["x"] * 2049):
            assert (api.refuse(SCORE, {first: wrong, second: "x"})["param"] or "").startswith(first), str(wrong)[:40]
        for wrong in (5, [], [5], [{"title": "x"}], ["x"] * 2049):
            assert (api.refuse(SCORE, {first: "x", second: wrong})["param"] or "").startswith(second), str(wrong)[:40]
    assert api.refuse(SCORE, {"text_1": "x", "text_2": "x", "model": "gpt-5"}, 404)["code"] == "model_not_found"


@row("score.log-odds", "Scores are from 0 to 1, and the same ones as log-odds without an activation")
def score_log_odds(api: Api) -> None:
    probabilities = [entry["score"] for entry in score(api)["data"]]
    assert [math.log(number / (1 - number)) for number in probabilities] == close(odds(api))


# --- the effects of parameters --------------------------------------------------------------------------


@effect("query", "is required, and changes the scores", at="rerank")
def query(api: Api) -> None:
    assert api.refuse(RERANK, {"documents": DOCUMENTS})["param"] == "query"
    changed = by_index(rerank(api, query=OTHER, use_activation=False))
    assert changed == close(odds(api, OTHER))
    assert changed != close(odds(api))


@effect("documents", "is required", at="rerank")
def rerank_documents_required(api: Api) -> None:
    assert api.refuse(RERANK, {"query": QUERY})["param"] == "documents"


@effect("top_n", "gives the best of all; 0 and more than there are give all", at="rerank")
def top_n(api: Api) -> None:
    order = [result["index"] for result in rerank(api)["results"]]
    for given in (1, 2):
        assert [result["index"] for result in rerank(api, top_n=given)["results"]] == order[:given]
    for given in (0, 9):
        assert len(rerank(api, top_n=given)["results"]) == len(DOCUMENTS)


@effect("return_documents", "false leaves them out", at="rerank")
def return_documents(api: Api) -> None:
    for result in rerank(api, return_documents=False)["results"]:
        assert set(result) == {"index", "relevance_score"}


@effect("instruction", "stands before the query in the prompt", at="rerank")
def instruction(api: Api) -> None:
    given = "Find what cats do."
    [number] = odds(api, QUERY, DOCUMENTS[2], instruction=given)
    assert number == close(log_odds_of_next(api, question(QUERY, DOCUMENTS[2], given, DEFAULT_LABELS)))
    assert number != close(odds(api, QUERY, DOCUMENTS[2])[0])


@effect("max_tokens_per_doc", "keeps the first tokens of each document; 0 all of them", at="rerank")
def max_tokens_per_doc(api: Api) -> None:
    assert num_tokens(api, LONG, max_tokens_per_doc=5) + 100 < num_tokens(api, LONG)
    assert num_tokens(api, LONG, LONG, max_tokens_per_doc=5) == 2 * num_tokens(api, LONG, max_tokens_per_doc=5)
    assert num_tokens(api, LONG, max_tokens_per_doc=0) == num_tokens(api, LONG, max_tokens_per_doc=999)


@effect("max_tokens_per_query", "keeps the first tokens of each query; 0 all of them", at="rerank")
def max_tokens_per_query(api: Api) -> None:
    assert num_tokens(api, "x", query=LONG, max_tokens_per_query=5) + 100 < num_tokens(api, "x", query=LONG)
    assert num_tokens(api, "x", query=LONG, max_tokens_per_query=0) == num_tokens(api, "x", query=LONG)


@effect("truncate_prompt_tokens", "cuts the document until the prompt fits; -1 is what the context allows", at="rerank")
def truncate_prompt_tokens(api: Api) -> None:
    limit = num_tokens(api, "x") + 20
    assert limit - 5 < num_tokens(api, LONG, truncate_prompt_tokens=limit) <= limit
    assert num_tokens(api, "x", truncate_prompt_tokens=limit) == limit - 20
    most: int = api.model["max_model_len"]
    assert most - 5 < num_tokens(api, "word " * 2 * most, truncate_prompt_tokens=-1) <= most
    error = api.refuse(RERANK, {"query": QUERY, "documents": ["x"], "truncate_prompt_tokens": 5})
    assert error["param"] == "truncate_prompt_tokens"


@effect("use_activation", "false gives log-odds in place of probabilities", at="rerank")
def use_activation(api: Api) -> None:
    bare = by_index(rerank(api, use_activation=False))
    assert bare == close(odds(api))
    assert by_index(rerank(api)) == pytest.approx([as_probability(number) for number in bare], abs=TOLERANCE / 4)


def check_pair(api: Api, first: str, second: str) -> None:
    """Check that both names together are a pair of texts, and that either of them alone is refused."""
    answer = score_by(api, **{first: QUERY, second: DOCUMENTS[1]}, use_activation=False)
    assert [entry["score"] for entry in answer["data"]] == close(odds(api, QUERY, DOCUMENTS[1]))
    for name in (first, second):
        assert api.refuse(SCORE, {name: "x"})["param"] == name


@effect("text_1", "is required with `text_2`", at="score")
def text_1(api: Api) -> None:
    check_pair(api, "text_1", "text_2")


@effect("text_2", "is required with `text_1`", at="score")
def text_2(api: Api) -> None:
    check_pair(api, "text_1", "text_2")


@effect("queries", "with `documents` or `items` are in place of `text_1` and `text_2`", at="score")
def queries(api: Api) -> None:
    check_pair(api, "queries", "documents")
    check_pair(api, "queries", "items")


@effect("documents", "with `queries` are in place of `text_2`", at="score")
def score_documents(api: Api) -> None:
    check_pair(api, "queries", "documents")


@effect("items", "with `queries` are in place of `text_2`", at="score")
def items(api: Api) -> None:
    check_pair(api, "queries", "items")


@effect("data_1", "with `data_2` is in place of `text_1`", at="score")
def data_1(api: Api) -> None:
    check_pair(api, "data_1", "data_2")


@effect("data_2", "with `data_1` is in place of `text_2`", at="score")
def data_2(api: Api) -> None:
    check_pair(api, "data_1", "data_2")
