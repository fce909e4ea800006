"""Positions for decoders that count them themselves and take none, as those of encoder-decoder families do.

They hand what they have counted to a module with a table of positions. In a step with tokens of several sequences that
is the place in the step: the module is given the tokens' positions in place of it.
"""

import inspect
from typing import Any

from torch import Tensor, nn

_NAME = "position_ids"


class PositionFeed:
    """Gives each run's positions, (num_tokens,), to the decoder's tables of positions where it takes none itself."""

    def __init__(self, decoder: nn.Module) -> None:
        self.positions: Tensor | None = None
        if _takes_positions(decoder):
            return
        for module in decoder.modules():
            if isinstance(module, nn.Embedding) and _takes_positions(module):
                module.register_forward_pre_hook(self._give, with_kwargs=True)

    def _give(
        self, _table: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        counted = given.get(_NAME)
        if self.positions is None or not isinstance(counted, Tensor) or counted.numel() != self.positions.numel():
            return None
        return inputs, given | {_NAME: self.positions.view_as(counted)}


def _takes_positions(module: nn.Module) -> bool:
    return _NAME in inspect.signature(type(module).forward).parameters
