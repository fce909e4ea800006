"""Which of the models that a client would be content with answers it."""

from collections.abc import Sequence

from orcinus.server.context import ServingContext
from orcinus.server.requests.left_out import leave_out


def check_models(ctx: ServingContext, name: str | None, others: Sequence[str]) -> None:
    """Check the first of the names that is served to whoever asks, or else the first of all.

    Raises what `ServingContext.check_model` raises.
    """
    names = [*([] if name is None else [name]), *others]
    usable = ctx.usable_models
    ctx.check_model(next((each for each in names if each in usable), names[0] if names else None))
    if others:
        leave_out("models")
