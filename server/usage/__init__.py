"""What each named key has used, by day and model, kept over restarts: `book` counts, `store` is the SQLite file."""
