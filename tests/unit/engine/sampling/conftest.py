"""Two ways to sample: by the native kernel, where there is one, and by torch."""

import pytest

from orcinus.engine.kernels.library import load_library
from orcinus.engine.sampling import native

WAYS = ["native", "torch"] if load_library() is not None else ["torch"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sampling goes this way."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load_library", lambda: None)
    return str(request.param)
