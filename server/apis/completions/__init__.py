"""POST /v1/completions. `body`: the parameters; `answer`: text, echo, the best of several, and log-probabilities."""
