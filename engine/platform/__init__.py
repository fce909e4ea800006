"""The machine: devices, memory, child processes, and what the imports of large packages cost. Knows no model."""
