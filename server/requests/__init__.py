"""What a client may send, checked: bodies, parameters, prompts, and what the engine is asked for in their place."""
