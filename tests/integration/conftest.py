"""Where the tests of this folder find `ServerProcess`."""

from tests.server_process import ROOT, ServerProcess, StartServer

__all__ = ["ROOT", "ServerProcess", "StartServer"]
