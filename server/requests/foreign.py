"""Parameters of other servers that have no place here, and the values by which they ask for nothing.

Clients that are written for several servers send them all the time, at the values that leave them off; those are
taken on every endpoint. Any other value is a 400 that says what to send in its place. A value that is zero, false or
empty leaves anything off unless it says otherwise here.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

_NOT_SUPPORTED = "no such sampling is supported"
_INSTEAD = "send it as {}"
_STRUCTURED = "send it as {} of structured_outputs"
_ONLY_TEXT = "only text is served"
_ONE_MODEL = "one model is served, as it is"
_ANSWER = "answers have one form here"
_NO_REACH = "no request ever leaves this server"


def asks_nothing(*neutral: Any) -> Callable[[Any], bool]:
    """Return a test for values that leave a parameter off: those given, and what is zero, false or empty."""
    return lambda value: not value or any(value == known and type(value) is type(known) for known in _spelt(neutral))


def _spelt(values: Iterable[Any]) -> list[Any]:
    """Return the values, whole numbers as integers and as floats."""
    spelt: list[Any] = []
    for value in values:
        spelt += [value, float(value)] if type(value) is int else [value]
    return spelt


def _nothing_but_true(value: Any) -> bool:
    return value is True


# For each the reason why it is refused, and what leaves it off.
FOREIGN: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    # sampling
    **dict.fromkeys(("typical_p", "typical", "tfs_z", "encoder_repetition_penalty"), (_NOT_SUPPORTED, asks_nothing(1))),
    **dict.fromkeys(
        (
            *("top_a", "eta_cutoff", "epsilon_cutoff", "mirostat", "mirostat_mode", "dry_multiplier"),
            *("xtc_probability", "dynatemp_range", "smoothing_factor", "no_repeat_ngram_size", "penalize_nl"),
            *("watermark", "logits_processors", "custom_logit_processor", "samplers", "repetition_detection"),
            *("negative_prompt", "penalty_alpha"),
        ),
        (_NOT_SUPPORTED, asks_nothing()),
    ),
    "guidance_scale": (_NOT_SUPPORTED, asks_nothing(1)),
    "do_sample": (_INSTEAD.format("temperature, 0 where it is false"), _nothing_but_true),
    "repeat_penalty": (_INSTEAD.format("repetition_penalty"), asks_nothing(1)),
    "num_beams": ("beam search is not supported", asks_nothing(1)),
    "early_stopping": ("beam search is not supported", asks_nothing()),
    "num_return_sequences": (_INSTEAD.format("n"), asks_nothing(1)),
    "n_predict": (_INSTEAD.format("max_tokens"), asks_nothing(-1)),
    "max_new_tokens": (_INSTEAD.format("max_tokens"), asks_nothing()),
    "num_predict": (_INSTEAD.format("max_tokens"), asks_nothing(-1)),
    "random_seed": (_INSTEAD.format("seed"), lambda value: False),
    "n_probs": (_INSTEAD.format("logprobs"), asks_nothing()),
    "n_keep": (_INSTEAD.format("truncate_prompt_tokens"), asks_nothing()),
    "truncation_side": ("the prompt's last tokens are kept", asks_nothing("left")),
    "spaces_between_special_tokens": (_ANSWER, _nothing_but_true),
    "detokenize": (_ANSWER, _nothing_but_true),
    # the form of the output
    "grammar": (_STRUCTURED.format("grammar"), asks_nothing()),
    "ebnf": (_STRUCTURED.format("grammar"), asks_nothing()),
    "regex": (_STRUCTURED.format("regex"), asks_nothing()),
    "json_schema": (_STRUCTURED.format("json"), asks_nothing()),
    "format": (_STRUCTURED.format("json"), asks_nothing()),
    "structural_tag": (_STRUCTURED.format("json"), asks_nothing()),
    "guided_whitespace_pattern": ("white space is up to the model", asks_nothing()),
    "stop_regex": (_INSTEAD.format("stop"), asks_nothing()),
    "no_stop_trim": (_INSTEAD.format("include_stop_str_in_output"), asks_nothing()),
    # models, prompts and media
    **dict.fromkeys(
        ("lora", "lora_path", "lora_adapters", "adapter_id", "plugins"),
        (_ONE_MODEL, asks_nothing()),
    ),
    **dict.fromkeys(
        ("mm_processor_kwargs", "media_io_kwargs", "image_data", "images", "vl_high_resolution_images"),
        (_ONLY_TEXT, asks_nothing()),
    ),
    **dict.fromkeys(
        ("documents", "template", "raw", "safe_prompt", "prompt_mode"),
        ("send it as one of chat_template_kwargs", asks_nothing()),
    ),
    "options": (
        "send what it holds as parameters of their own; the context is set at the start, by --max-model-len",
        asks_nothing(),
    ),
    "extra_body": ("a client's library puts its fields into the body itself: send them there", asks_nothing()),
    "extra_headers": ("headers are sent as headers", asks_nothing()),
    "think": (_INSTEAD.format("enable_thinking"), asks_nothing()),
    "thinking_config": (_INSTEAD.format("thinking"), asks_nothing()),
    "debug": (_ANSWER, asks_nothing()),
    **dict.fromkeys(("enable_search", "enable_code_interpreter", "search_parameters"), (_NO_REACH, asks_nothing())),
    **dict.fromkeys(("kv_transfer_params", "session_params", "vllm_xargs"), (_ONE_MODEL, asks_nothing())),
    # the form of the answer
    **dict.fromkeys(
        (
            *("return_tokens", "return_tokens_as_token_ids", "return_progress", "timings_per_token", "details"),
            *("post_sampling_probs", "decoder_input_details", "return_full_text", "return_hidden_states"),
            *("thinking_forced_open", "t_max_predict_ms", "n_indent"),
        ),
        (_ANSWER, asks_nothing()),
    ),
    **dict.fromkeys(
        ("separate_reasoning", "stream_reasoning", "parse_tool_calls", "incremental_output"),
        (_ANSWER, _nothing_but_true),
    ),
    "reasoning_format": (_ANSWER, asks_nothing("auto", "deepseek")),
    "result_format": (_ANSWER, asks_nothing("message")),
}

# Means nothing without another that is refused, or could not change the output here.
WITHOUT_MEANING: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("mirostat_tau", "mirostat_eta", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
            *("dry_sequence_breakers", "xtc_threshold", "dynatemp_exponent", "smoothing_curve", "repeat_last_n"),
        ),
        "part of a sampling that is not supported",
    ),
    **dict.fromkeys(("cache_prompt", "id_slot", "keep_alive"), "the prefix cache needs none"),
    **dict.fromkeys(("rid", "request_id"), "send x-request-id"),
    "guided_decoding_backend": "there is one",
    **dict.fromkeys(("session_id", "chat_id", "trace", "litellm_metadata"), "nothing is stored"),
    "tool_stream": "calls are streamed as they are written",
    "reasoning_split": "reasoning is always apart from the answer",
    "caching": "the prefix cache needs none",
    **dict.fromkeys(("drop_params", "allowed_openai_params"), "an order to a client's library"),
}
