"""Writes what became of each model type into docs/models.md, in place of what the page had of it."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.models_table.trial import NUM_REQUESTS, Trial

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEADING = "## Every type, tried\n"


def write(trials: list[Trial]) -> None:
    """Replace the page's last section."""
    page = PAGE.read_text()
    PAGE.write_text(page.split(HEADING)[0].rstrip() + "\n\n" + section(trials))


def section(trials: list[Trial]) -> str:
    """Return the section: what is served, what is refused and why, what nothing is known of."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT

    served = [trial for trial in trials if trial.verdict == "served"]
    causal, wrapped = ([t for t in served if (t.model_type in IMAGE_TEXT) is is_in] for is_in in (False, True))
    rows = [("served, causal", causal), ("served by their language model", wrapped)]
    rows += [(f"refused: {reason}", group) for reason, group in sorted(_by_reason(trials).items())]
    rows += [("**differs from `generate`**", [t for t in trials if t.verdict == "differs"])]
    rows += [("not known: none could be made small", [t for t in trials if t.verdict == "not made"])]
    table = "".join(f"| {name} | {len(group)} | {_names(group)} |\n" for name, group in rows if group)
    return f"""{HEADING}
Written by `python -m tests.models_table` with transformers {transformers.__version__}: each causal and image-text
type, with its default configuration made small and random weights, written to disk by its own class, served in
float32, and {NUM_REQUESTS} requests compared with its own `generate`, token for token. Hybrids whose small default has
attention alone count as that.

| | types | |
|---|---|---|
{table}"""


def _by_reason(trials: list[Trial]) -> dict[str, list[Trial]]:
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        if trial.verdict == "refused":
            groups[_reason(trial)].append(trial)
    return groups


def _reason(trial: Trial) -> str:
    """Return a reason without whom it is about, so that equal ones are."""
    reason = re.sub(r"^\S+ (?=has|does|is|keeps|attends|computes|cannot|runs)", "", trial.reason).replace("|", "\\|")
    return re.sub(r" \(relative error [^)]*\)", "", reason)


def _names(trials: Iterable[Trial]) -> str:
    return ", ".join(f"`{trial.model_type}`" for trial in trials)
