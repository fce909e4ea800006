"""What the server says of itself: the probes, its version, its metrics, and the page at /."""
