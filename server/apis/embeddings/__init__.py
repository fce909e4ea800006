"""POST /v1/embeddings. `body`: the parameters; `answer`: vectors as numbers or base64."""
