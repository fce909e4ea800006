"""GET /v1/models and /v1/models/{model}: the names that are served."""

from typing import Any

from orcinus.server.context import ServingContext


def list_models(ctx: ServingContext) -> dict[str, Any]:
    """Return an entry for each name, the model's own first. Works while the model is still loading."""
    return {"object": "list", "data": [ctx.describe(name) for name in ctx.model_names]}


def retrieve_model(ctx: ServingContext, model: str) -> dict[str, Any]:
    """Return the entry of one name. Raises `ModelNotFoundError` if it is not served."""
    ctx.check_model(model)
    return ctx.describe(model)
