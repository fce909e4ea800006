"""The largest logit of each row and its token: by a kernel of our own where there is one, by torch elsewhere."""

import torch
from torch import Tensor

from orcinus.engine.kernels.library import load_library

_LEAST_WIDTH = 16


def row_maxima(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(num_rows, width) to the largest values and the first of their places. NaN counts as largest."""
    library = load_library() if logits.device.type == "cpu" else None
    if library is None or not library.has_argmax or not _is_readable(logits):
        best, places = logits.max(dim=-1)
        return best, places
    values = torch.empty(logits.shape[0], dtype=torch.float32)
    indices = torch.empty(logits.shape[0], dtype=torch.int64)
    num_rows, width = logits.shape
    library.argmax(
        logits.data_ptr(), num_rows, width, logits.stride(0), values=values.data_ptr(), indices=indices.data_ptr()
    )
    return values, indices


def _is_readable(logits: Tensor) -> bool:
    return logits.dtype is torch.bfloat16 and logits.stride(1) == 1 and logits.shape[1] >= _LEAST_WIDTH
