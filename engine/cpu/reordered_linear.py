"""Linear layers whose weight has its inputs in another order than they come in, as some checkpoints have them.

Knows nothing of models.
"""

from torch import Tensor, nn

from orcinus.engine.cpu.native_linear import NativeLinear


class ReorderedLinear(nn.Module):
    """Computes `F.linear` of inputs that are brought into the order (in_features,) of a packed weight's columns."""

    def __init__(self, linear: NativeLinear, order: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self._order = order
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    @property
    def weight(self) -> Tensor:
        """Return the weight unpacked again, (out_features, in_features), with its inputs as they come."""
        return self.linear.weight[:, self._order.argsort()]

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.linear(x[..., self._order])
        return product
