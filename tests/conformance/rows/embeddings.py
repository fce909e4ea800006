"""POST /v1/embeddings."""

import base64
import math
import struct

from orcinus.server.apis.embeddings.body import EmbeddingBody
from orcinus.server.requests.parameters import parameter_table
from tests.conformance.api import Api
from tests.conformance.registry import row


@row("embeddings.shape", "A list of `embedding` objects in the order of the inputs, with model and usage")
def shape(api: Api) -> None:
    answer = api.embed(["a cat", "a dog", "seven times nine"])
    assert set(answer) == {"object", "data", "model", "usage"}
    assert (answer["object"], answer["model"]) == ("list", api.model["id"])
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    assert {entry["object"] for entry in answer["data"]} == {"embedding"}
    tokens = sum(len(api.tokens(text)) for text in ("a cat", "a dog", "seven times nine"))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


@row("embeddings.input", "An input is a string, a list of strings, token ids, or lists of them, all with one vector")
def inputs(api: Api) -> None:
    ids = api.tokens("a cat")
    vectors = [vector for given in ("a cat", ["a cat"], ids, [ids, ids]) for vector in vectors_of(api, given)]
    assert len(vectors) == 5
    assert all(distance(vector, vectors[0]) < 0.02 for vector in vectors)
    assert distance(vectors_of(api, "seven times nine")[0], vectors[0]) > 0.02


def vectors_of(api: Api, given: object) -> list[list[float]]:
    return [entry["embedding"] for entry in api.embed(given)["data"]]


def distance(left: list[float], right: list[float]) -> float:
    return math.dist(left, right)


@row("embeddings.unit", "Every vector has length 1, all have one size, and equal inputs have equal vectors")
def unit(api: Api) -> None:
    vectors = vectors_of(api, ["a cat", "a longer text about nothing at all", "a cat"])
    assert len({len(vector) for vector in vectors}) == 1
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-3) for vector in vectors)
    assert distance(vectors[0], vectors[2]) < 0.02


@row("embeddings.base64", "`encoding_format: base64` gives the same numbers as little-endian float32")
def as_base64(api: Api) -> None:
    [entry] = api.embed("a cat", encoding_format="base64")["data"]
    raw = base64.b64decode(entry["embedding"], validate=True)
    numbers = [number for (number,) in struct.iter_unpack("<f", raw)]
    assert distance(numbers, vectors_of(api, "a cat")[0]) < 0.02


@row(
    "embeddings.dimensions",
    "`dimensions` keeps the first numbers, made of length 1 again; too many are a 400",
)
def dimensions(api: Api) -> None:
    [whole] = vectors_of(api, "a cat")
    [entry] = api.embed("a cat", dimensions=8)["data"]
    length = math.hypot(*whole[:8])
    assert distance(entry["embedding"], [number / length for number in whole[:8]]) < 0.02
    error = api.refuse("/v1/embeddings", {"input": "x", "dimensions": len(whole) + 1})
    assert (error["param"], str(len(whole)) in error["message"]) == ("dimensions", True)


@row("embeddings.refused", "No input, an empty one, a wrong one, too many or too long ones are refused by name")
def refused(api: Api) -> None:
    for given in (None, [], "", [""], 5, [1.5], [True], ["x"] * 2049):
        assert (api.refuse("/v1/embeddings", {"input": given})["param"] or "").startswith("input"), str(given)[:40]
    error = api.refuse("/v1/embeddings", {"input": [5] * (api.model["max_model_len"] + 1)})
    assert error["code"] == "context_length_exceeded"
    assert api.refuse("/v1/embeddings", {"input": "x", "model": "gpt-5"}, 404)["code"] == "model_not_found"


@row("embeddings.parameters", "Other parameters are accepted, ignored or refused as the table of parameters says")
def parameters(api: Api) -> None:
    rows = {
        row.name: row.support for row in parameter_table({"embeddings": EmbeddingBody}) if "embeddings" in row.endpoints
    }
    for name in (name for name, support in rows.items() if support == "ignored"):
        api.embed("x", **{name: "anything"})
    api.embed("x " * 5000, truncate_prompt_tokens=-1)
    api.embed("x", priority=3, cache_salt="s", timeout=30, add_special_tokens=False)
    assert api.refuse("/v1/embeddings", {"input": "x", "encoding": "float"})["param"] == "encoding"
    assert api.refuse("/v1/embeddings", {"input": "x", "encoding_format": "int8"})["param"] == "encoding_format"
