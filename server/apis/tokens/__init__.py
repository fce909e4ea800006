"""POST /tokenize and /detokenize. `body`: their parameters; `answer`: token ids of texts and chats, and back."""
