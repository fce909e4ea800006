"""The table of endpoints: for each its path and methods, what answers it, its body, its answer, and who may ask for it.

Everything that has to know which endpoints there are reads this table: the routes, the layers in front of them, the
metrics, the OpenAPI document, `orcinus generate` and the reference of parameters. To add an endpoint is to add its
package in `server.apis` and its row here. Knows what starts the work, and nothing of bytes and layers.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from orcinus.server.apis.answer_schemas import AnswerSchema, Schema
from orcinus.server.apis.chat.answer import CHAT_COMPLETION, start_chat_completion
from orcinus.server.apis.chat.body import ChatBody
from orcinus.server.apis.completions.answer import COMPLETION, start_completion
from orcinus.server.apis.completions.body import CompletionBody
from orcinus.server.apis.embeddings.answer import EMBEDDINGS, start_embeddings
from orcinus.server.apis.embeddings.body import EmbeddingBody
from orcinus.server.apis.events.answer import events
from orcinus.server.apis.generation import Generation
from orcinus.server.apis.messages.answer import MESSAGE, MESSAGE_TOKENS, count_tokens, start_message
from orcinus.server.apis.messages.body import MessagesBody
from orcinus.server.apis.models.answer import (
    list_models,
    list_models_for_anthropic,
    retrieve_model,
    retrieve_model_for_anthropic,
)
from orcinus.server.apis.page.answer import FILES, page, page_file
from orcinus.server.apis.reference.answer import SCRIPT, START, STYLE, document, reference_file, reference_page
from orcinus.server.apis.rerank.answer import RERANKING, start_rerank
from orcinus.server.apis.rerank.body import RerankBody
from orcinus.server.apis.responses.answer import (
    RESPONSE,
    RESPONSE_TOKENS,
    compacted_response,
    count_input_tokens,
    start_response,
    stored_response,
)
from orcinus.server.apis.responses.body import ResponseBody
from orcinus.server.apis.score.answer import SCORES, start_score
from orcinus.server.apis.score.body import ScoreBody
from orcinus.server.apis.status.answer import exposition, live, ready, version
from orcinus.server.apis.tokens.answer import TEXT, TOKENS, detokenize, tokenize
from orcinus.server.apis.tokens.body import DetokenizeBody, TokenizeBody
from orcinus.server.apis.usage.answer import PARAMETERS, USAGE, usage
from orcinus.server.context import ServingContext
from orcinus.server.requests.bodies import Body
from orcinus.server.requests.caller import Caller

OTHER = "other"  # what the metrics call all paths that are not in the table
_MAX_PREFIX = 3  # parts of a path that may stand wrongly before one that exists


@dataclass(frozen=True, slots=True)
class Operation:
    """A row of the table; each kind of operation says how its requests are answered.

    `path` is written as starlette does (`{model:path}` takes slashes). `name` is what its `operationId` in the OpenAPI
    document begins with; `tag` and `summary` are shown there, if `is_documented`. `is_guarded` operations need a key
    where the server has keys; `is_polled` ones are asked for by machines all the time, and not logged; `is_of_page`
    ones are there where the page is. `methods` are those that have an answer of their own, and `allowed_methods` all
    that are answered. Where the metrics have a port of their own, `is_on_metrics_port` ones are there, and
    `is_on_main_port` ones on the other.
    """

    path: str
    _: KW_ONLY
    name: str
    tag: str = ""
    summary: str | None = None
    methods: tuple[str, ...] = ("GET",)
    is_documented: bool = True
    is_guarded: bool = True
    is_polled: bool = False
    is_of_page: bool = False
    is_on_main_port: bool = True
    is_on_metrics_port: bool = False

    @property
    def allowed_methods(self) -> tuple[str, ...]:
        """The methods that a request may have: HEAD wherever there is GET."""
        return (*self.methods, "HEAD") if "GET" in self.methods else self.methods

    @property
    def needs_room(self) -> bool:
        """Whether a request takes a place in the engine, and is refused before it is read where there is none."""
        return False

    @property
    def shown_path(self) -> str:
        """The path as the OpenAPI document has it."""
        return self.path.replace(":path}", "}")


@dataclass(frozen=True, slots=True)
class GenerationOperation(Operation):
    """An operation whose requests run in the engine: `start` admits one, and its answer is one object or a stream.

    `gen_ai_name` is what OpenTelemetry's conventions call it.
    """

    _: KW_ONLY
    start: Callable[[ServingContext, Mapping[str, Any], Caller], Awaitable[Generation]]
    body: type[Body]
    answer: AnswerSchema
    is_streamed: bool = True
    gen_ai_name: str = "chat"
    methods: tuple[str, ...] = ("POST",)

    @property
    def needs_room(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class BodyOperation(Operation):
    """An operation that `work` answers, with a JSON object made of the body, without a place in the engine."""

    _: KW_ONLY
    work: Callable[[ServingContext, Mapping[str, Any]], Awaitable[dict[str, Any]]]
    body: type[Body]
    answer: AnswerSchema
    methods: tuple[str, ...] = ("POST",)


@dataclass(frozen=True, slots=True)
class LookupOperation(Operation):
    """An operation that `look_up` answers, with a JSON object, whatever is in the body.

    It is called with the context and the parameters of the path, by name. Clients of Anthropic's API are answered by
    `anthropic_look_up`, if there is one.
    """

    _: KW_ONLY
    look_up: Callable[..., dict[str, Any]]
    anthropic_look_up: Callable[..., dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class PageOperation(Operation):
    """An operation without a body whose answer is a text of one of `media_types`, made by `respond`."""

    _: KW_ONLY
    respond: Callable[[Request], Response]
    media_types: tuple[str, ...]
    is_endless: bool = False  # the answer to GET goes on until the client leaves


@dataclass(frozen=True, slots=True)
class AdminOperation(Operation):
    """An operation for keys with `admin: true`: `work` answers with a JSON object, made of the query's `parameters`.

    It is there where the server keeps what administrators may ask for.
    """

    _: KW_ONLY
    work: Callable[[Request], Awaitable[dict[str, Any]]]
    parameters: tuple[Schema, ...]
    answer: AnswerSchema


class OperationTable:
    """Operations, in the order of the OpenAPI document, to be looked up by the path of a request.

    No row may stand in the way of a later one, so that for a path all who read the table find the row that is routed.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._operations = tuple(operations)
        self._by_path = {operation.path: operation for operation in self._operations}
        self._patterns = [(compile_path(row.path)[0], row) for row in self._operations if "{" in row.path]
        assert len(self._by_path) == len(self._operations), "a path has one row"
        assert all(self._is_first_at_its_path(i) for i in range(len(self._operations))), "a row is hidden by another"

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations)

    def without_page(self) -> "OperationTable":
        """Return the table of a server that shows no page."""
        return OperationTable(operation for operation in self._operations if not operation.is_of_page)

    def without_admin(self) -> "OperationTable":
        """Return the table of a server that keeps nothing for administrators."""
        return OperationTable(row for row in self._operations if not isinstance(row, AdminOperation))

    def at(self, path: str) -> Operation | None:
        """Return the operation that a request for this path is about, whatever its method."""
        return self._by_path.get(path) or self._find(path)

    def on_main_port(self) -> "OperationTable":
        """Return those that stay on the main port where the metrics have one of their own."""
        return OperationTable(row for row in self._operations if row.is_on_main_port)

    def is_public(self, path: str) -> bool:
        """Return whether a request for this path needs no key. One for a path that does not exist needs one."""
        operation = self.at(path)
        return operation is not None and not operation.is_guarded

    def is_polled(self, path: str) -> bool:
        """Return whether machines ask for this path all the time."""
        operation = self.at(path)
        return operation is not None and operation.is_polled

    def needs_room(self, path: str, method: str) -> bool:
        """Return whether such a request takes a place in the engine."""
        operation = self.at(path)
        return operation is not None and operation.needs_room and method in operation.methods

    def label(self, path: str) -> str:
        """Return what the metrics call requests for this path: one of a fixed set, whatever a client asks for."""
        operation = self.at(path)
        return OTHER if operation is None else operation.shown_path

    def likely_path(self, path: str) -> str | None:
        """Return the path that was probably meant by one that does not exist: one with or without `/v1`, say."""
        names = [name for name in path.split("/") if name]
        for start in range(min(len(names), _MAX_PREFIX + 1)):
            rest = "/" + "/".join(names[start:])
            for likely in (rest, "/v1" + rest, rest.lower(), "/v1" + rest.lower()):
                if likely != path and self.at(likely) is not None:
                    return likely
        return None

    def labels(self) -> Iterator[tuple[str, str]]:
        """Give what the metrics call each operation, with each of its methods."""
        for operation in self._operations:
            if (label := self.label(operation.path)) != OTHER:
                yield from ((label, method) for method in operation.methods)

    @property
    def bodies(self) -> tuple[type[Body], ...]:
        """The bodies of all operations, each once."""
        kinds = (row.body for row in self._operations if isinstance(row, (GenerationOperation, BodyOperation)))
        return tuple(dict.fromkeys(kinds))

    def _find(self, path: str) -> Operation | None:
        """Return the first row whose pattern matches; a parameter is never empty."""
        matches = ((pattern.match(path), row) for pattern, row in self._patterns)
        return next((row for match, row in matches if match is not None and all(match.groups())), None)

    def _is_first_at_its_path(self, index: int) -> bool:
        """Return whether no earlier row, which would be routed first, matches the path of this one."""
        path, earlier = self._operations[index].path, {row.path for row in self._operations[:index]}
        return not any(row.path in earlier and pattern.match(path) for pattern, row in self._patterns)


def _open_page(
    path: str, name: str, respond: Callable[[Request], Response], media_type: str, *, is_of_page: bool = False
) -> PageOperation:
    """Return a page that needs no key and is not in the API's own document."""
    return PageOperation(
        path,
        name=name,
        respond=respond,
        media_types=(media_type,),
        is_documented=False,
        is_guarded=False,
        is_of_page=is_of_page,
    )


def _alias(row: GenerationOperation, path: str) -> GenerationOperation:
    """Return the row of another path that clients ask for, which the API's document leaves out."""
    return replace(row, path=path, summary=None, is_documented=False)


_RERANK = GenerationOperation(
    "/v1/rerank",
    name="rerank",
    tag="reranking",
    summary="Documents by their relevance to a query; also at /v2/rerank and /rerank",
    start=start_rerank,
    body=RerankBody,
    answer=RERANKING,
    is_streamed=False,
    gen_ai_name="rerank",
)
_SCORE = GenerationOperation(
    "/v1/score",
    name="score",
    tag="reranking",
    summary="How relevant texts are to queries; also at /score",
    start=start_score,
    body=ScoreBody,
    answer=SCORES,
    is_streamed=False,
    gen_ai_name="score",
)

OPERATIONS = OperationTable(
    [
        _open_page("/", "page", page, "text/html", is_of_page=True),
        *(
            _open_page(path, "page_file", page_file(path), media_type, is_of_page=True)
            for path, media_type in FILES.items()
        ),
        _open_page("/openapi.json", "document", document, "application/json"),
        _open_page("/docs", "reference_page", reference_page, "text/html"),
        *(
            _open_page(path, "reference_file", reference_file(path), media_type)
            for path, media_type in ((SCRIPT, "text/javascript"), (STYLE, "text/css"), (START, "text/javascript"))
        ),
        LookupOperation(
            "/live",
            name="live",
            tag="operations",
            summary="Whether the process answers",
            look_up=live,
            is_guarded=False,
            is_polled=True,
            is_on_metrics_port=True,
        ),
        LookupOperation(
            "/ready",
            name="ready",
            tag="operations",
            summary="Whether new requests are taken",
            look_up=ready,
            is_guarded=False,
            is_polled=True,
            is_on_metrics_port=True,
        ),
        LookupOperation(
            "/health",
            name="ready",
            tag="operations",
            summary="Whether new requests are taken",
            look_up=ready,
            is_guarded=False,
            is_polled=True,
            is_on_metrics_port=True,
        ),
        LookupOperation(
            "/version", name="version", tag="operations", summary="The version of the server", look_up=version
        ),
        PageOperation(
            "/metrics",
            name="exposition",
            tag="operations",
            summary="Metrics for Prometheus",
            respond=exposition,
            media_types=("text/plain", "application/openmetrics-text"),
            is_guarded=False,
            is_polled=True,
            is_on_main_port=False,
            is_on_metrics_port=True,
        ),
        PageOperation(
            "/events",
            name="events",
            tag="operations",
            summary="What the page at / shows, as server-sent events",
            respond=events,
            media_types=("text/event-stream",),
            is_of_page=True,
            is_endless=True,
        ),
        LookupOperation(
            "/v1/models",
            name="list_models",
            tag="models",
            summary="The names that are served",
            look_up=list_models,
            anthropic_look_up=list_models_for_anthropic,
        ),
        LookupOperation(
            "/v1/models/{model:path}",
            name="retrieve_model",
            tag="models",
            summary="One of them",
            look_up=retrieve_model,
            anthropic_look_up=retrieve_model_for_anthropic,
        ),
        GenerationOperation(
            "/v1/completions",
            name="completions",
            tag="generation",
            start=start_completion,
            body=CompletionBody,
            answer=COMPLETION,
            gen_ai_name="text_completion",
        ),
        GenerationOperation(
            "/v1/chat/completions",
            name="chat_completions",
            tag="generation",
            start=start_chat_completion,
            body=ChatBody,
            answer=CHAT_COMPLETION,
        ),
        GenerationOperation(
            "/v1/responses",
            name="responses",
            tag="generation",
            start=start_response,
            body=ResponseBody,
            answer=RESPONSE,
        ),
        BodyOperation(
            "/v1/responses/input_tokens",
            name="response_tokens",
            tag="tokens",
            work=count_input_tokens,
            body=ResponseBody,
            answer=RESPONSE_TOKENS,
        ),
        LookupOperation(
            "/v1/responses/compact",
            name="compacted_response",
            look_up=compacted_response,
            methods=("POST",),
            is_documented=False,
        ),
        LookupOperation(
            "/v1/responses/{response_id}",
            name="stored_response",
            look_up=stored_response,
            methods=("GET", "DELETE"),
            is_documented=False,
        ),
        LookupOperation(
            "/v1/responses/{response_id}/cancel",
            name="cancelled_response",
            look_up=stored_response,
            methods=("POST",),
            is_documented=False,
        ),
        LookupOperation(
            "/v1/responses/{response_id}/input_items",
            name="stored_input",
            look_up=stored_response,
            is_documented=False,
        ),
        GenerationOperation(
            "/v1/messages", name="messages", tag="generation", start=start_message, body=MessagesBody, answer=MESSAGE
        ),
        BodyOperation(
            "/v1/messages/count_tokens",
            name="message_tokens",
            tag="tokens",
            work=count_tokens,
            body=MessagesBody,
            answer=MESSAGE_TOKENS,
        ),
        GenerationOperation(
            "/v1/embeddings",
            name="embeddings",
            tag="embeddings",
            start=start_embeddings,
            body=EmbeddingBody,
            answer=EMBEDDINGS,
            is_streamed=False,
            gen_ai_name="embeddings",
        ),
        _RERANK,
        _alias(_RERANK, "/v2/rerank"),
        _alias(_RERANK, "/rerank"),
        _SCORE,
        _alias(_SCORE, "/score"),
        AdminOperation(
            "/v1/usage",
            name="usage",
            tag="operations",
            summary="What named keys have used",
            work=usage,
            parameters=PARAMETERS,
            answer=USAGE,
        ),
        BodyOperation("/tokenize", name="tokenize", tag="tokens", work=tokenize, body=TokenizeBody, answer=TOKENS),
        BodyOperation(
            "/detokenize", name="detokenize", tag="tokens", work=detokenize, body=DetokenizeBody, answer=TEXT
        ),
    ]
)
