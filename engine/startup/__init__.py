"""From a configuration to an executor that is ready: load, probe, size the cache, warm up. Runs once."""
