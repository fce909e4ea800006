"""The server as a process: listening, draining, its summary, its log, its memory, its orphans."""
