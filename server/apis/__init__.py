"""One package an API: its body becomes a request to the engine, and what the engine gives becomes its answer."""
