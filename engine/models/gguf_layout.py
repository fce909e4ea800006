"""What a GGUF file calls each weight of a model, and how it has laid the weight out, by architecture.

transformers knows both for the architectures that it reads: by tables of names with a processor for the layout, or, for
newer ones, by renamings with conversions. Here they look alike, and the names of a few more are added. Experts, which
lie in the same way in the files of all architectures, are in `gguf_experts.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """The model's name for each of the file's tensors that it has, and what lays a tensor out as the model has it.

    `arrange` gets the name in the file, the values, and the weights that there are already, where it may put some.
    """

    names: dict[str, str]
    arrange: Callable[[str, Values, dict[str, Tensor]], Values | None]

    def row_order(self, name: str, num_rows: int) -> NDArray[np.int64] | None:
        """Return where each row of the model's weight lies in the file's; None if it is more than moved rows.

        What undoes llama.cpp's layout is given the numbers of the rows in place of them.
        """
        return self._order(name, np.arange(num_rows).reshape(-1, 1))

    def column_order(self, name: str, num_columns: int) -> NDArray[np.int64] | None:
        """Return the same of columns."""
        return self._order(name, np.arange(num_columns).reshape(1, -1))

    def _order(self, name: str, numbers: NDArray[np.int64]) -> NDArray[np.int64] | None:
        others: dict[str, Tensor] = {}
        try:
            order = self.arrange(name, numbers.copy(), others)
        except (ValueError, IndexError, TypeError, RuntimeError):  # it looks at the other side, too
            return None
        if order is None or others or order.shape != numbers.shape:
            return None
        return order.ravel() if np.array_equal(np.sort(order.ravel()), numbers.ravel()) else None


def layout_of(architecture: str, causal_lm: Any, tensors: Sequence[str]) -> Layout:
    """Return the layout of a file's tensors. Raises `NotImplementedError` or `ImportError` where nobody knows it."""
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    by_conversions = is_gguf_arch_supported(architecture)
    return (_by_conversions if by_conversions else _by_tables)(architecture, causal_lm, tensors)


def _by_tables(architecture: str, causal_lm: Any, tensors: Sequence[str]) -> Layout:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    make: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    processor = make(config=causal_lm.config.to_dict())
    own_name = architecture if causal_lm.config.model_type in _NAMED_BY_THE_FILE else None
    with _name_map_made_once():
        names: dict[str, str] = get_gguf_hf_weights_map(causal_lm, processor, own_name)
    names = {f"{name}.weight" if f"{name}.weight" in tensors else name: ours for name, ours in names.items()}

    def arrange(name: str, values: Values, weights: dict[str, Tensor]) -> Values | None:
        parsed = {"tensors": weights}
        done = processor.process(weights=values, name=name, tensor_key_mapping=names, parsed_parameters=parsed)
        return done.weights if done.name == name else None

    return Layout(names, arrange)


# Types of models whose names in the file are those of its architecture, which transformers has no name for.
_NAMED_BY_THE_FILE = ("mixtral",)


def _by_conversions(architecture: str, causal_lm: Any, tensors: Sequence[str]) -> Layout:
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    from transformers.integrations.gguf.utils import get_gguf_conversion_mapping

    mapping: Any = get_gguf_conversion_mapping(architecture, causal_lm.config)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    renamed = {name: rename_source_key(name, renamings, converters) for name in tensors}
    model_names = causal_lm.state_dict().keys()
    names = {name: ours for name, (ours, _) in renamed.items() if ours in model_names}

    def arrange(name: str, values: Values, weights: dict[str, Tensor]) -> Values | None:
        converter: Any = by_pattern.get(renamed[name][1] or "")
        tensor = torch.from_numpy(np.require(values, requirements="W"))  # of what is mapped torch makes a warning
        for operation in () if converter is None else converter.operations:
            converted = operation.convert({name: tensor}, source_patterns=[name], target_patterns=[name])
            tensor = converted[name]
        return tensor.numpy()

    return Layout(names, arrange)


@contextmanager
def _name_map_made_once() -> Iterator[None]:
    """Keep gguf's table of names, which transformers asks for once for every module: 40 ms each time."""
    import gguf

    make = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(make)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = make
