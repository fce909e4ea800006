"""Tests of the kernels as they are compiled for machines that this one is not."""
