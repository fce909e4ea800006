"""POST /v1/chat/completions. `body`: the parameters; `answer`: messages, deltas and calls of tools."""
