"""Text to tokens and back, and chat templates. Runs in the server's process, without torch."""
