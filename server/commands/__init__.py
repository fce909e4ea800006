"""The commands of `orcinus`, one module each; every one has a `main(argv)` that returns the exit code."""
