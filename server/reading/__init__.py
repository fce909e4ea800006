"""What a model wrote, read while it is written.

`message_format` finds out from the chat template how the model writes, and makes a `message_reader` for each choice,
which splits the text into `pieces`: content, reasoning (`reasoning`, between the tags of `thought_tags`) and calls
(`tools`), or all of it out of gpt-oss's channels (`harmony`). `output_pieces` reads the outputs of
the engine. `incoming_text` is what all readers read from. Knows no API.
"""
