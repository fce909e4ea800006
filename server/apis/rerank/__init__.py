"""POST /v1/rerank, /v2/rerank and /rerank. `body`: the parameters; `answer`: documents by their score."""
