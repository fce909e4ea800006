"""Load on a server over HTTP, and what it measured: shared by `orcinus bench serve` and `orcinus bench sweep`."""
