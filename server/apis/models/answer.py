"""GET /v1/models and /v1/models/{model}: the names that are served, in the forms of OpenAI's and Anthropic's API."""

from datetime import UTC, datetime
from typing import Any

from orcinus.server.context import ServingContext


def list_models(ctx: ServingContext) -> dict[str, Any]:
    """Return an entry for each name that the key may use, the model's own first. Works while the model is loading."""
    return {"object": "list", "data": [ctx.describe(name) for name in ctx.usable_models]}


def retrieve_model(ctx: ServingContext, model: str) -> dict[str, Any]:
    """Return the entry of one name. Raises `ModelNotFoundError` if it is not served."""
    ctx.check_model(model)
    return ctx.describe(model)


def list_models_for_anthropic(ctx: ServingContext) -> dict[str, Any]:
    """Return one page with all names."""
    data = [_describe_for_anthropic(ctx, name) for name in ctx.usable_models]
    return {
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def retrieve_model_for_anthropic(ctx: ServingContext, model: str) -> dict[str, Any]:
    """Return the entry of one name. Raises `ModelNotFoundError` if it is not served."""
    ctx.check_model(model)
    return _describe_for_anthropic(ctx, model)


def _describe_for_anthropic(ctx: ServingContext, name: str) -> dict[str, Any]:
    described = ctx.describe(name)
    created_at = datetime.fromtimestamp(described["created"], UTC).isoformat().replace("+00:00", "Z")
    length = described["max_model_len"]
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": created_at,
        "lifecycle": "active",
        "max_input_tokens": length,
        "max_tokens": length,
    }
