"""Imports transformers' modelling code without what a serving process never uses: 3.4 s become 1.8 s.

On the way to any modelling file, transformers imports torch.compile's tracer (for decorators that mark functions it
should not trace) and torch.distributed's tensors and sharding, and with them sympy and the inductor. While its common
modules are imported, the tracer is represented by those decorators doing nothing, and torch says that it was built
without torch.distributed, as some builds are. Functions for tensors without numbers, which torch imports at its own
end, are left out as well: compiling needs them, and transformers' own loading. Afterwards all are back, and can be
imported and used.

A process that computes nothing, and needs transformers for a tokenizer only, does without torch altogether
(`hide_torch`).

This is for processes of our own: what is left out stays out of them for good.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from orcinus.engine.platform.gguf_reader import read_metadata

logger = logging.getLogger(__name__)

_TRACER = "torch._dynamo"
_TRACER_HELPER = "torch._dynamo._trace_wrapped_higher_order_op"
_META_FUNCTIONS = "torch._meta_registrations"
_IN_A_CIRCLE = (_TRACER, "torch._decomp", "torch._prims", "torch._refs", "torch.utils._content_store")
_GGUF_READER = "transformers.integrations.gguf.reader"
_COMMON_MODULES = (
    "transformers.modeling_utils",
    "transformers.modeling_layers",
    "transformers.masking_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.integrations.moe",
)


def hide_torch(*, trust_remote_code: bool) -> None:
    """Let no import find torch in this process, if it computes nothing and only needs the model's tokenizer.

    transformers imports torch for a tokenizer if it is there: 3.9 s and 190 MB more. Code that comes with a model may
    need it.
    """
    if not trust_remote_code:
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # or it says that there is no torch
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def is_torch_hidden() -> bool:
    """Return whether no import finds torch in this process."""
    return sys.modules.get("torch", ...) is None


def show_torch() -> None:
    """Undo `hide_torch`, for what cannot do without it. transformers is to be imported anew."""
    sys.modules.pop("torch")
    _forget_transformers(set())


@contextmanager
def gguf_read_without_torch() -> Iterator[None]:
    """Have transformers read GGUF files' settings and tokenizers although torch is hidden.

    Its reader names torch's types, so that ours takes its place, and its older one asks whether torch is there. What
    they read of tokenizers takes none of it. A release that needs more raises whatever it does without torch.
    """
    wait_for_transformers()
    reader = ModuleType(_GGUF_READER)
    setattr(reader, "read_gguf_metadata", lambda path, kept=(): read_metadata(Path(path), kept))  # noqa: B010
    older: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    is_there = older.is_torch_available
    older.is_torch_available = lambda: True
    try:
        with _represented({_GGUF_READER: reader}):
            yield
    finally:
        older.is_torch_available = is_there


def import_transformers() -> None:
    """Import what all modelling files share. Does nothing where some of it is there already; never raises.

    Should a version of transformers or torch not take the shortcut, its imports are undone, and what needs
    transformers imports it in full.
    """
    if "transformers.modeling_utils" in sys.modules or _TRACER in sys.modules:
        return
    before = set(sys.modules)
    try:
        _read_names_once()
        _import_torch()
        with _represented(_stand_ins_of_tracer()), _without_distributed():
            for name in _COMMON_MODULES:
                import_module(name)
    except (ImportError, AttributeError, TypeError) as error:
        logger.info("importing transformers in full: %s", error)
        _forget_transformers(before)


class _MetaFunctionsFirst(MetaPathFinder, Loader):
    """Imports functions for tensors without numbers before modules that are in a circle with them, as torch does."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname not in _IN_A_CIRCLE:
            return None
        import_meta_functions()
        # What has come with them is taken out and put in again: else it would be loaded once more.
        module = sys.modules.pop(fullname, None)
        return None if module is None else ModuleSpec(fullname, self, loader_state=(module, module.__spec__))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that is there already."""
        module: ModuleType = spec.loader_state[0]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it was when it was imported."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state[1]


def _import_torch() -> None:
    """Import torch without functions for tensors without numbers; see `import_meta_functions`."""
    if "torch" in sys.modules:
        return
    with _represented({_META_FUNCTIONS: ModuleType(_META_FUNCTIONS)}):
        import torch  # noqa: F401
    sys.meta_path.insert(0, _MetaFunctionsFirst())


def import_meta_functions() -> None:
    """Have torch compute the shapes of tensors without numbers by all of its functions."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _MetaFunctionsFirst)]
    import_module(_META_FUNCTIONS)


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Have tensors made that are without numbers, until the context ends."""
    import torch

    import_meta_functions()
    with torch.device("meta"):
        yield


def _forget_transformers(kept: set[str]) -> None:
    """Have transformers imported anew, but for the modules that are `kept`."""
    for name in set(sys.modules) - kept:
        if name.partition(".")[0] == "transformers":
            del sys.modules[name]


def _read_names_once() -> None:
    """Have transformers look for the names in its models' files once: it reads all 1700 when it is imported.

    Its package of models does so again, for the same names without a prefix.
    """
    import_utils: Any = import_module("transformers.utils.import_utils")
    read, folder = import_utils.define_import_structure, Path(import_utils.__file__).parents[1] / "models"

    def define_import_structure(module_path: Any, prefix: str | None = None) -> Any:
        if prefix is not None or Path(module_path) != folder / "__init__.py":
            return read(module_path, prefix)
        return {
            needed: {name.removeprefix("models."): kinds for name, kinds in names.items() if name.startswith("models.")}
            for needed, names in read(folder, prefix="models").items()
        }

    import_utils.define_import_structure = define_import_structure


@contextmanager
def _represented(stand_ins: dict[str, ModuleType]) -> Iterator[None]:
    """Have imports find these in place of the modules of their names, which nothing has imported."""
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _stand_ins_of_tracer() -> dict[str, ModuleType]:
    stand_ins = {_TRACER: ModuleType(_TRACER), _TRACER_HELPER: ModuleType(_TRACER_HELPER)}
    for name in ("disable", "assume_constant_result", "allow_in_graph"):
        setattr(stand_ins[_TRACER], name, _mark_nothing)
    setattr(stand_ins[_TRACER_HELPER], "TransformGetItemToIndex", _RealTransformGetItemToIndex)  # noqa: B010
    return stand_ins


def _mark_nothing(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """Stand in for a decorator of the tracer's, bare or called with options, and change nothing."""
    return _mark_nothing if function is None else function


class _RealTransformGetItemToIndex:
    """Becomes the real context manager when it is made: transformers does so when it builds a mask with vmap."""

    def __new__(cls) -> Any:
        return import_module(_TRACER_HELPER).TransformGetItemToIndex()


@contextmanager
def _without_distributed() -> Iterator[None]:
    import torch.distributed

    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = is_available


def wait_for_transformers() -> None:
    """Import transformers, and wait for its end where another thread has begun to.

    Its package puts another module in its own place when it is done. A thread that names something of it in the very
    statement that waits for that is handed the former module, which lacks it.
    """
    if is_torch_hidden() and "transformers.models" not in sys.modules:
        _read_names_once()
    import transformers  # noqa: F401
