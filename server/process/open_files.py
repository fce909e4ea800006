"""How many connections fit into the files that the process may have open. Knows nothing of what they are for."""

import logging
import sys

logger = logging.getLogger(__name__)

OTHER_FILES = 128  # that the process has open besides connections


def fit_open_files(max_connections: int) -> int:
    """Return how many of them the system allows; where it takes a higher limit on open files, that is set."""
    if sys.platform == "win32":
        return max_connections
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fitting = max_connections if soft == resource.RLIM_INFINITY else max(min(max_connections, soft - OTHER_FILES), 1)
    if fitting < max_connections:
        message = "at most %d connections can be open at once, not %d: the process may open %d files (ulimit -n)"
        logger.warning(message, fitting, max_connections, soft)
    return fitting
