"""What a model wrote, read while it is written: content, reasoning and calls of tools."""
