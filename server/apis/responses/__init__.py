"""OpenAI's Responses API: POST /v1/responses. Nothing is stored.

`body`: the parameters; `input`: from items to a chat; `output`: the items that are said; `answer`: the response around
them, and its numbered events.
"""
