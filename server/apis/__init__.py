"""One package for each API: `body` says what may be asked, `answer` starts the work and writes what comes of it.

`completions`, `chat` and `responses` are OpenAI's, `messages` is Anthropic's; `embeddings` and `tokens` take texts, and
`models` and `status` are looked up. Where a conversation has a form of its own, `input` makes a chat of it.

What they share lies beside them: `chat_request` (from a chat's body to what the engine is asked for), `generation` (a
request in the engine, whole or streamed), `single_choice` (the APIs that answer with one message), `logprobs`,
`timings`, and `answer_schemas` for the OpenAPI document. Nothing here knows HTTP, routes or keys.
"""
