"""POST /v1/score and /score. `body`: the parameters; `answer`: a score for each pair of texts."""
