"""How a model's layers run on a CPU: native decoder layers, packed linear layers, and row-by-row arithmetic."""
