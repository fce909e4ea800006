"""A model that costs nothing: deterministic executors and a tokenizer of single bytes, for tests of what is around it.

Token ids 0 to 255 are the bytes themselves, so a test reads `[72, 105]` as "Hi"; the special tokens follow.
"""

import json
import math
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from orcinus.config.engine_config import EngineConfig
from orcinus.config.settings import Settings, load_settings
from orcinus.engine.core import Executor
from orcinus.engine.messages import (
    EngineInfo,
    Fault,
    PackedLogprobs,
    StepPlan,
    StepResult,
    TokenLogprobs,
    pack_logprobs,
)
from orcinus.engine.sampling_params import Pooling, SamplingParams

if TYPE_CHECKING:
    from orcinus.engine.platform.device import DeviceMonitor

END_OF_TEXT, MESSAGE_START, MESSAGE_END = 256, 257, 258
VOCAB_SIZE = 259
EMBEDDING_SIZE = 8

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

NextToken = Callable[[Sequence[int], Sequence[int]], int]
"""(prompt token ids, output token ids so far) -> the next token id."""


def says(text: str) -> NextToken:
    """Answer every prompt with `text`, then end of text."""
    reply = [*text.encode(), END_OF_TEXT]
    return lambda prompt, output: reply[min(len(output), len(reply) - 1)]


def alphabet(prompt: Sequence[int], output: Sequence[int]) -> int:
    """a, b, c, ... z, a, ... without end, whatever the prompt."""
    return ord("a") + len(output) % 26


def echoes(prompt: Sequence[int], output: Sequence[int]) -> int:
    """The prompt once more, then end of text."""
    return prompt[len(output)] if len(output) < len(prompt) else END_OF_TEXT


class Synchronous:
    """An executor whose steps are over when they are launched. Whatever fails is a request's fault."""

    device_monitor: "DeviceMonitor | None" = None
    runs_ahead = False

    def execute(self, plan: StepPlan) -> StepResult:
        raise NotImplementedError

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        result = self.execute(plan)
        return lambda: result

    def diagnose(self, error: Exception) -> Fault:
        return "request"

    def warm_up(self) -> None:
        """Everything is at hand."""


class FakeExecutor(Synchronous):
    """An executor whose tokens come from a function. `before_step` may block, raise or look at the plan.

    Each chosen token has log-probability -0.5; the alternatives are the ids after it, each one lower.
    """

    def __init__(
        self, next_token: NextToken = alphabet, before_step: Callable[[StepPlan], None] = lambda plan: None
    ) -> None:
        self._next_token = next_token
        self._before_step = before_step
        self._requests: dict[str, tuple[list[int], int, SamplingParams]] = {}
        self.plans: list[StepPlan] = []
        self.preparing: dict[str, Future[Any]] = {}

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        """Only what `preparing` names, by its grammar's source, takes time."""
        return None if sampling.grammar is None else self.preparing.get(sampling.grammar.source)

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        self._before_step(plan)
        for request_id in plan.released:
            self._requests.pop(request_id, None)  # unknown where the step that introduced it failed
        for new in plan.new_requests:
            self._requests[new.request_id] = (list(new.token_ids), new.num_prompt_tokens, new.sampling)
        result = StepResult(sampled_token_ids={}, logprobs={}, prompt_logprobs={})
        for scheduled in plan.scheduled:
            assert not scheduled.draft_token_ids, "drafts that it has not proposed"
            tokens, num_prompt_tokens, sampling = self._requests[scheduled.request_id]
            if sampling.prompt_logprobs is not None:
                start = scheduled.num_computed_tokens + 1
                known = tokens[start : min(start + scheduled.num_tokens, num_prompt_tokens)]
                result.prompt_logprobs[scheduled.request_id] = [
                    token_logprobs(token, sampling.prompt_logprobs) for token in known
                ]
            if scheduled.num_samples:
                token = self._next_token(tokens[:num_prompt_tokens], tokens[num_prompt_tokens:])
                tokens.append(token)
                result.sampled_token_ids[scheduled.request_id] = [token]
                if sampling.logprobs is not None:
                    result.logprobs[scheduled.request_id] = [token_logprobs(token, sampling.logprobs)]
            if sampling.pooling is not None and scheduled.num_computed_tokens + scheduled.num_tokens == len(tokens):
                labels = sampling.label_token_ids
                numbers = label_logits(tokens, labels) if labels else embedding(tokens, sampling.pooling)
                result.embeddings[scheduled.request_id] = array("f", numbers).tobytes()
        return result


def embedding(token_ids: Sequence[int], pooling: Pooling) -> list[float]:
    """A vector of length 1 that tells how often each residue is among the tokens, or that of the last one."""
    pooled = token_ids if pooling == "mean" else token_ids[-1:]
    counts = [sum(token_id % EMBEDDING_SIZE == residue for token_id in pooled) for residue in range(EMBEDDING_SIZE)]
    return [count / math.hypot(*counts) for count in counts]


def label_logits(token_ids: Sequence[int], labels: Sequence[int]) -> list[float]:
    """How often each label is among the tokens, less 2 for each after the first: the more of it, the likelier."""
    return [token_ids.count(label) - 2.0 * (number > 0) for number, label in enumerate(labels)]


def packed(entries: Sequence[TokenLogprobs | None]) -> PackedLogprobs:
    return PackedLogprobs(pack_logprobs(entries))


def token_logprobs(token_id: int, num_top: int) -> TokenLogprobs:
    top = [((token_id + i) % VOCAB_SIZE, -0.5 - i) for i in range(num_top)]
    return TokenLogprobs(token_id=token_id, logprob=-0.5, top=top)


def fake_info(**overrides: Any) -> EngineInfo:
    info = EngineInfo(
        model="fake",
        architecture="FakeForCausalLM",
        num_parameters=0,
        weight_bytes=0,
        dtype="float32",
        device="cpu",
        device_name="none",
        attention_backend="none",
        vocab_size=VOCAB_SIZE,
        eos_token_ids=[END_OF_TEXT],
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        num_kv_blocks=128,
        block_size=16,
        kv_cache_bytes=0,
        enable_prefix_caching=True,
        batching="continuous",
        load_time_s=0.0,
        hidden_size=EMBEDDING_SIZE,
    )
    return msgspec.structs.replace(info, **overrides)


def fake_config(model: str | Path, **overrides: Any) -> EngineConfig:
    """`model` is a directory with a tokenizer, such as `write_byte_tokenizer` makes."""
    config = EngineConfig(
        model=str(model),
        dtype="auto",
        device="cpu",
        quantization=None,
        trust_remote_code=False,
        use_generation_config=True,
        pooling="auto",
        max_model_len=None,
        max_num_seqs=None,
        max_num_batched_tokens=None,
        target_itl_ms=None,
        target_ttft_ms=500.0,
        kv_cache_memory=None,
        state_cache_memory=None,
        block_size=None,
        enable_prefix_caching=True,
        batching="continuous",
        batch_wait_ms=50.0,
        deterministic=False,
        seed=0,
        log_level="info",
        log_format="text",
    )
    return replace(config, **overrides)


def fake_settings(model: str | Path, **overrides: Any) -> Settings:
    """Settings for a model like that of `fake_config`. Not validated: a test may set times too short for users."""
    return load_settings(model=str(model)).model_copy(update=overrides)


def builds(executor: Executor, **info: Any) -> Callable[[EngineConfig], tuple[EngineInfo, Executor]]:
    """The `build` argument of `InProcessTransport`: `lambda: InProcessTransport(builds(FakeExecutor(says("Hi"))))`."""
    return lambda config: (fake_info(**info), executor)


def write_byte_tokenizer(
    directory: Path, chat_template: str | None = CHAT_TEMPLATE, response_template: Any = None
) -> Path:
    """Put a tokenizer whose ids are bytes into `directory`, in the files that models come with."""
    vocab = {character: byte for byte, character in byte_characters().items()}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|start|>", "<|end|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|end|>",
        "chat_template": chat_template,
        "response_template": response_template,
        "clean_up_tokenization_spaces": False,
    }
    present = {key: value for key, value in settings.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(present))
    return directory


def byte_characters() -> dict[int, str]:
    """The printable stand-in that byte-level BPE uses for each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
