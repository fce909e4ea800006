"""A causal language model of transformers as two functions: flat tokens to hidden states, hidden states to logits.

Everything between the last layer and the logits (norms, scaling, soft-capping) stays the model class's own: its
`forward` runs both times, and for the second its decoder answers with the hidden states that are already known.
Knows nothing of requests or caches.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from orcinus.engine.models.bare import bare_architecture
from orcinus.engine.models.mtp_head import MtpHead
from orcinus.engine.models.positions import PositionFeed


class _ReplayingDecoder:
    """Stands in for the decoder's `forward`: runs it, or answers with hidden states given beforehand."""

    def __init__(self, decoder: nn.Module) -> None:
        self._forward = decoder.forward
        self._output_type: type[Any] | None = None
        self.replay: Tensor | None = None
        self.hidden_size = 0
        self.num_replays = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.replay is not None:
            assert self._output_type is not None
            self.num_replays += 1
            return self._output_type(last_hidden_state=self.replay)
        output = self._forward(*args, **kwargs)
        self._output_type = type(output)
        self.hidden_size = int(output.last_hidden_state.shape[-1])
        return output


def decoder_of(causal_lm: Any) -> nn.Module:
    """Return what the class's `forward` runs before its head. Some classes call their head `decoder`."""
    from transformers import PreTrainedModel

    candidates = [causal_lm.get_decoder(), causal_lm.base_model, *causal_lm.children()]
    part: Any = next(part for part in candidates if isinstance(part, PreTrainedModel) and part is not causal_lm)
    return decoder_of(part) if part.get_output_embeddings() is not None else part


class LanguageModel:
    """Wraps a loaded `...ForCausalLM`. Used under `torch.inference_mode` and inside a `step_context`."""

    def __init__(self, causal_lm: Any) -> None:
        self.causal_lm = causal_lm
        self._arithmetic: AbstractContextManager[Any] = nullcontext()
        self.config = causal_lm.config.get_text_config(decoder=True)
        self._decoder = decoder_of(causal_lm)
        self._replaying = _ReplayingDecoder(self._decoder)
        # nn.Module calls whatever `forward` the instance has.
        self._decoder.forward = self._replaying
        self._feed = PositionFeed(self._decoder)

    def use_arithmetic(self, arithmetic: AbstractContextManager[Any]) -> None:
        """Enter `arithmetic` around whatever the model computes from now on."""
        self._arithmetic = arithmetic

    @property
    def name(self) -> str:
        """Return the architecture, as the checkpoint names it."""
        return bare_architecture(self.causal_lm) or type(self.causal_lm).__name__

    @property
    def has_head(self) -> bool:
        """Return whether the checkpoint has a head, without which the logits mean nothing."""
        return bare_architecture(self.causal_lm) is None

    @property
    def mtp_head(self) -> MtpHead | None:
        """Return what guesses the token after the next one, if the model has that and it is used."""
        head: MtpHead | None = getattr(self.causal_lm, "mtp_head", None)
        return head

    def drop_mtp_head(self) -> None:
        """Serve the model without it."""
        del self.causal_lm.mtp_head

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    @property
    def hidden_size(self) -> int:
        """Return the width of hidden states, which a few models project; known once the model has run."""
        return self._replaying.hidden_size

    def hidden_states(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Compute (num_tokens, hidden_size), after the model's last norm, of (num_tokens,) ids and positions."""
        self._feed.positions = positions
        with self._arithmetic:
            output = self._decoder(
                input_ids=token_ids.unsqueeze(0),
                position_ids=positions.unsqueeze(0),
                use_cache=False,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def mtp_states(self, next_ids: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
        """Compute (num_tokens, hidden_size), of which `logits` makes those of the tokens behind the next ones.

        Of the ids (num_tokens,) of the next tokens, of `hidden_states` at these positions, and of the positions.
        """
        assert self.mtp_head is not None
        with self._arithmetic:
            states: Tensor = self.mtp_head(self.causal_lm.get_input_embeddings()(next_ids), hidden, positions)
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute (num_rows, vocab_size) of (num_rows, hidden_size), just as the model's own class does."""
        token_ids = torch.zeros(1, hidden.shape[0], dtype=torch.long, device=hidden.device)
        self._replaying.replay = hidden.unsqueeze(0)
        try:
            with self._arithmetic:
                logits: Tensor = self.causal_lm(input_ids=token_ids, use_cache=False).logits[0]
        finally:
            self._replaying.replay = None
        return logits

    def whole_logits(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Run the model's own `forward` whole, which is what the two halves must add up to."""
        self._feed.positions = positions
        with self._arithmetic:
            logits: Tensor = self.causal_lm(
                input_ids=token_ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False
            ).logits[0]
        return logits

    def cached_logits(self, token_ids: Tensor, positions: Tensor, split: int) -> Tensor:
        """Run the model's own `forward` over the first `split` tokens, then over the others with its own cache."""
        self._feed.positions = None
        given: dict[str, Any] = {}
        logits = []
        for part in (slice(None, split), slice(split, None)):
            output = self.causal_lm(
                input_ids=token_ids[part].unsqueeze(0),
                position_ids=positions[part].unsqueeze(0),
                use_cache=True,
                **given,
            )
            name = "cache" if "cache" in output else "past_key_values"  # before transformers 5.24
            given = {name: output[name]}
            logits.append(output.logits[0])
        return torch.cat(logits)

    @property
    def num_replays(self) -> int:
        """Return how often the decoder was asked for the hidden states given to `logits`: it must be once per call."""
        return self._replaying.num_replays
