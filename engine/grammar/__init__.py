"""Output that must match a schema, a regex or a grammar: which tokens may come next, and how to try a grammar out."""
