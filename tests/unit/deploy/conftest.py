"""What the tests of the deployment share."""

from unittest.mock import MagicMock

import pytest

from orcinus.config.settings import Settings


@pytest.fixture(scope="session")
def served_paths() -> set[str]:
    """Return the paths that the server answers."""
    from orcinus.server.app import create_app

    app = create_app(MagicMock(), Settings())
    return set(app.openapi()["paths"]) | {getattr(route, "path", "") for route in app.routes}
