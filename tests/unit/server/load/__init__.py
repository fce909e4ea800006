"""Tests of the load generator behind `orcinus bench serve` and `orcinus bench sweep`."""
