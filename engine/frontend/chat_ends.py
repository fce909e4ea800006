"""What ends a chat beside the tokens that end any text (decision 38). Knows nothing of templates."""

import msgspec

from orcinus.engine.messages import EngineInfo
from orcinus.engine.sampling_params import SamplingParams


def ending_chats(sampling: SamplingParams, eos_token_id: int | None, info: EngineInfo) -> SamplingParams:
    """Return parameters for a chat with a model whose tokenizer has this end token: it ends the chat, too."""
    if eos_token_id is None or eos_token_id in info.eos_token_ids or eos_token_id >= info.vocab_size:
        return sampling
    return msgspec.structs.replace(sampling, more_eos_token_ids=(eos_token_id,))
