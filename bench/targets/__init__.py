"""Measures on one machine what tables of throughput do not show, each against its target."""
