"""Orcinus as an application of Ray Serve: a server on each replica, behind one HTTP endpoint for the whole cluster.

    serve run --working-dir deploy/ray orcinus_on_ray:build model=Qwen/Qwen3-0.6B max_replicas=4

The ingress takes HTTP and has `PrefixRouter` choose the replica that answers; replicas come and go by `by_queue_depth`.
The API is Orcinus's, to the byte. Ray does what is Ray's: placement, scaling, replacing what is dead.

Needs `ray[serve]` and httpx, and the command `orcinus` on each machine, in whichever environment.
"""

import json
import logging
import math
import shlex
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from orcinus_replica import Call, Head, OrcinusReplica, end_to_end
from prefix_router import PrefixRouter
from pydantic import BaseModel, Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

logger = logging.getLogger("ray.serve")

METHODS = ["GET", "HEAD", "POST", "DELETE", "OPTIONS"]
# What begins alike in two calls of one conversation, in the order in which a template writes it.
_PREFIX_FIELDS = ("tools", "instructions", "system", "messages", "input", "prompt")
_LOST = {
    "message": "the replica that answered this request is gone",
    "type": "server_error",
    "param": None,
    "code": "engine_unavailable",
}
_TARGET_UTILIZATION = 0.8  # of all slots, so that most calls find a free one

app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)


class Options(BaseModel):
    """Holds what `build` takes, from the command line (`name=value`) or from the file that `serve deploy` is given."""

    model: str | None = Field(None, description="Directory or hub id; the demo model without one.")
    orcinus: str = Field("orcinus", description="The command, on each machine.")
    flags: str = Field("", description="More flags of `orcinus serve`.")
    num_slots: int = Field(32, ge=1, description="Sequences that run at once in a replica (--max-num-seqs).")
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(2, ge=1)
    upscale_delay_s: float = Field(5.0, ge=0, description="Seconds for which more replicas were wanted.")
    downscale_delay_s: float = Field(300.0, ge=0)
    num_ingresses: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0, description="Of a replica.")
    num_gpus: float = Field(0.0, ge=0, description="Of a replica. Ray leaves it these alone.")


def by_queue_depth(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Return the replicas that are wanted: as many as have slots for all that runs and waits, and a quarter more.

    Each replica tells its own queue (`record_autoscaling_stats`); what has no replica yet waits in Ray's.
    """
    metrics = context.aggregated_metrics or {}
    queued, running, slots = (metrics.get(name, {}) for name in ("queue_depth", "slots_in_use", "slots"))
    demand = sum(queued.values()) + sum(running.values()) + context.total_queued_requests
    if not slots:
        return max(context.target_num_replicas, min(1, math.ceil(demand))), {}
    slots_of_one = max(slots.values()) or 1.0
    return math.ceil(demand / (slots_of_one * _TARGET_UTILIZATION)), {}


async def _call_of(request: Request) -> Call:
    body = await request.body()
    query = f"?{request.url.query}" if request.url.query else ""
    headers = end_to_end(request.headers.items())
    text, salt = _prefix_of(body)
    key = request.headers.get("authorization") or request.headers.get("x-api-key") or ""
    return Call(request.method, request.url.path + query, headers, body, text, f"{key} {salt}")


def _prefix_of(body: bytes) -> tuple[str, str]:
    """Return the text that a prompt begins with, and its `cache_salt`; nothing of what is no JSON object."""
    try:
        fields = json.loads(body) if body else None
    except ValueError:
        return "", ""
    if not isinstance(fields, dict):
        return "", ""
    given = [fields[name] for name in _PREFIX_FIELDS if fields.get(name)]
    return json.dumps(given, ensure_ascii=False), str(fields.get("cache_salt") or "")


async def _parts(parts: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for part in parts:
        yield part


async def _events(parts: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """Yield whole events, and an error as the last one where the replica is lost."""
    rest = b""
    try:
        async for part in parts:
            events, separator, rest = (rest + part).rpartition(b"\n\n")
            if separator:
                yield events + separator
    except (RayError, RayServeException) as error:
        logger.warning("a stream's replica is gone: %s", error)
        yield b"data: " + json.dumps({"error": _LOST}).encode() + b"\n\ndata: [DONE]\n\n"
        return
    if rest:
        yield rest


# Ray pickles the class with the functions that are there when it is decorated: they come before.
@serve.deployment(name="OrcinusIngress", max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(app)
class OrcinusIngress:
    """Takes HTTP, and has a replica answer."""

    def __init__(self, replicas: "DeploymentHandle[Any]") -> None:
        self._answer: Any = replicas.options(method_name="answer", stream=True)

    @app.api_route("/{path:path}", methods=METHODS)
    async def call(self, request: Request) -> Response:
        """Answer with what a replica says, as it says it."""
        call = await _call_of(request)
        parts = self._answer.remote(call)
        try:
            head: Head = await anext(parts)
        except (RayError, RayServeException, StopAsyncIteration) as error:
            logger.warning("%s %s: no replica answered: %s", call.method, call.path, error)
            return JSONResponse({"error": _LOST}, 503, {"retry-after": "1"})
        is_stream = any(name == "content-type" and "event-stream" in value for name, value in head.headers)
        response = StreamingResponse(_events(parts) if is_stream else _parts(parts), head.status)
        response.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head.headers]
        return response


def build(options: Options) -> serve.Application:
    """Return the application, for `serve run` and `serve deploy`."""
    replicas = serve.deployment(
        OrcinusReplica,
        name="OrcinusReplica",
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            upscale_delay_s=options.upscale_delay_s,
            downscale_delay_s=options.downscale_delay_s,
            look_back_period_s=max(15.0, options.upscale_delay_s),  # replicas tell their numbers every 10 s
            policy=AutoscalingPolicy(policy_function=by_queue_depth),
        ),
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"num_slots": options.num_slots}
        ),
        # Orcinus has a queue of its own, which its quotas and fair shares need to see.
        max_ongoing_requests=8 * options.num_slots,
        health_check_period_s=5,
        health_check_timeout_s=15,
        graceful_shutdown_timeout_s=60,
    ).bind(_command(options))
    return OrcinusIngress.options(num_replicas=options.num_ingresses).bind(replicas)


def _command(options: Options) -> list[str]:
    """Return what starts Orcinus, but for the address that it listens on."""
    model = [] if options.model is None else [options.model]
    slots = ["--max-num-seqs", str(options.num_slots)]
    return [*shlex.split(options.orcinus), "serve", *model, *slots, *shlex.split(options.flags)]
