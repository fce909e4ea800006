"""Tries one type of model: made tiny, written to disk, served from there, five requests compared with `generate`."""

import random
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch

from orcinus.engine.core import EngineCore
from orcinus.engine.errors import ModelLoadError, reason_of
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor
from tests.integration.tiny_models import engine_config
from tests.integration.truth import FIRST_TOKEN, TIE, Case, generate_alone, serve
from tests.models_table.shrink import CHANGES, FIRST_MARKER, tiny_config, tiny_model

NUM_REQUESTS = 5
MAX_TOKENS = 8
_FEWEST_TOKENS = 3  # that all requests get: an encoder's layers, made causal, have no more to say
_LENGTHS = (3, 41, 1, 20, 33)

Verdict = Literal["served", "refused", "differs", "not made"]


@dataclass(frozen=True, slots=True)
class Trial:
    """Says what became of a type: why it was refused, or where it could not be made tiny."""

    model_type: str
    class_name: str
    verdict: Verdict
    reason: str = ""


def try_type(model_type: str, class_name: str) -> Trial:
    """Return what becomes of a type's class. Raises nothing: whatever goes wrong is the verdict.

    A type is made with one set of sizes after the other, until one is right for it.
    """
    verdict: tuple[Verdict, str] = "not made", "it has no sizes"
    first: tuple[Verdict, str] | None = None
    for change in CHANGES:
        try:
            import transformers

            with towers_without_timm():
                config = tiny_config(model_type, change)
                model = tiny_model(getattr(transformers, class_name), config, seed=change.get("seed", 20))
            verdict = _verdict(model)
        except Exception as error:  # its own code decides what is a configuration
            verdict = "not made", reason_of(error)
        first = first or verdict
        is_told = not any(words in verdict[1] for words in _OF_SIZES) or _WANTS_MORE.search(verdict[1])
        if verdict[0] in {"served", "differs", "refused"} and is_told:
            return Trial(model_type, class_name, *verdict)
    return Trial(model_type, class_name, *first) if first else Trial(model_type, class_name, *verdict)


_FIRST_RUN = "the first run of"
# Of a model's own code, over what is no matter of sizes.
_WANTS_MORE = re.compile(r"missing \d+ required|cannot be None|have to specify|has to be not-None")
_REPEATS = "generate repeats a token"
# What may be due to the sizes alone: others are tried.
_OF_SIZES = (_FIRST_RUN, _REPEATS, "max_model_len is")


def _verdict(model: Any) -> tuple[Verdict, str]:
    """Return what becomes of a model. One that cannot generate as it is made may still be refused for what it is."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        try:
            return compare(model, Path(directory))
        except ModelLoadError as error:
            return "refused", _plain(str(error), directory)
        except Exception as error:  # of `generate`
            reason = reason_of(error)
        try:
            served_tokens(Path(directory), [])
        except ModelLoadError as error:
            if _FIRST_RUN not in str(error) or _WANTS_MORE.search(str(error)):
                return "refused", _plain(str(error), directory)
        return "not made", _plain(reason, directory)


@contextmanager
def towers_without_timm() -> Iterator[None]:
    """Let a model be made whose tower is timm's, which is not installed: text never runs it."""
    import transformers

    class Tower(torch.nn.Module):
        pass

    def from_config(config: Any, **options: Any) -> Any:
        try:
            return plain(config, **options)
        except ImportError:
            return Tower()

    plain: Any = transformers.AutoModel.from_config
    with patch.object(transformers.AutoModel, "from_config", from_config):
        yield


def reference_of(model: Any) -> Any:
    """Return the model, or its language model with its head where its own class fails on text (Llama 4's)."""
    inner = getattr(model, "language_model", getattr(model, "text_model", None))
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([[FIRST_TOKEN]]))
    except (AttributeError, TypeError, ValueError):
        if inner is None or not inner.can_generate():
            raise
        return inner
    return model


def compare(model: Any, directory: Path, **overrides: Any) -> tuple[Verdict, str]:
    """Serve what was written, and compare with the model itself. Raises `ModelLoadError` where it is refused."""
    cases = cases_of(reference_of(model))
    for case, token_ids in zip(cases, served_tokens(directory, cases, **overrides), strict=True):
        if token_ids != case.expected:
            return "differs", f"{token_ids} in place of {case.expected}"
    if len({token for case in cases for token in case.expected}) < _FEWEST_TOKENS:
        return "not made", f"{_REPEATS}, which tells nothing"
    return "served", ""


def served_tokens(directory: Path, cases: list[Case], **overrides: Any) -> list[list[int]]:
    """Return what the requests get from a model on the disk, served together. Raises `ModelLoadError`."""
    executor = build_executor(engine_config(directory, **{"max_model_len": 64, "block_size": 4} | overrides))
    outcomes = serve(EngineCore(*executor), cases, random.Random(1)).outcomes
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        raise ModelLoadError(f"a request failed: {errors[0]}")
    return [outcome.token_ids for outcome in outcomes]


def cases_of(model: Any, count: int = NUM_REQUESTS, tie: float = TIE) -> list[Case]:
    """Return requests with what `generate` makes of them. Raises what the model raises."""
    rng = random.Random(3)
    model.generation_config.eos_token_id = None
    sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    cases: list[Case] = []
    markers = _markers(model.config)
    for _ in range(8 * count):
        length = _LENGTHS[len(cases) % len(_LENGTHS)]
        prompt = [rng.randrange(FIRST_TOKEN, FIRST_MARKER) for _ in range(length)]
        expected = generate_alone(model, prompt, MAX_TOKENS, tie)
        if expected is not None and markers.isdisjoint(expected):
            cases.append(Case(prompt, sampling, expected))
        if len(cases) == count:
            return cases
    raise ValueError(f"generate meets ties in most of {8 * count} requests")


def _markers(config: Any) -> set[int]:
    """Return the tokens that stand for images and the like, which a multimodal model does not embed as text."""
    named = [value for name, value in vars(config).items() if name.endswith(("_token_id", "_token_index"))]
    return {value for value in named if isinstance(value, int) and value >= FIRST_MARKER}


def _plain(reason: str, directory: str) -> str:
    return reason.replace(directory, "the model")
