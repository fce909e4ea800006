"""One module for each command of `orcinus`, found by its name in `server.cli`; each has a `main`.

`serve` runs the server, `chat` talks to one, `generate` answers a file of requests without one, `bench` measures
(`bench_serve`, `bench_sweep`, `bench_strategies` with its plot in `strategies_plot`).
"""
