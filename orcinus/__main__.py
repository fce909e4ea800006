"""`python -m orcinus`: the same as `orcinus`, where the command is not on the path."""

import sys

from orcinus.server.cli import main

if __name__ == "__main__":
    sys.exit(main())
