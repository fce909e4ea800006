"""`python -m tests.models_table`: try every causal and image-text type of transformers, and write docs/models.md anew.

Words after the command are types to be tried; then nothing is written. It takes ten minutes on two cores.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NoReturn

from tests.models_table.report import write
from tests.models_table.trial import Trial, try_type

_LIMIT_S = 120


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.models_table", description="What of transformers is served.")
    parser.add_argument("types", nargs="*", help="the types to try (default: all, and the page is written)")
    chosen = parser.parse_args(argv).types
    classes = all_types()
    unknown = [name for name in chosen if name not in classes]
    if unknown:
        parser.error(f"transformers has no causal or image-text type {', '.join(unknown)}")
    trials = try_all({name: classes[name] for name in chosen or classes})
    if not chosen:
        write(trials)
    return int(any(trial.verdict == "differs" for trial in trials))


def all_types() -> dict[str, str]:
    """Return the class of each type; the image-text one where a type has both."""
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    image_text = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return dict(sorted((dict(causal) | dict(image_text)).items()))


def try_all(classes: dict[str, str]) -> list[Trial]:
    """Return what became of each, printed as it is known."""
    trials = []
    with ProcessPoolExecutor(os.cpu_count(), initializer=_prepare) as pool:
        for trial in pool.map(_try, classes.items()):
            print(f"{trial.model_type}: {trial.verdict} {trial.reason}", flush=True)
            trials.append(trial)
    return trials


def _prepare() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    signal.signal(signal.SIGALRM, _give_up)


def _give_up(number: int, frame: object) -> NoReturn:
    raise TimeoutError(f"not done in {_LIMIT_S} s")


def _try(of_type: tuple[str, str]) -> Trial:
    signal.alarm(_LIMIT_S)
    try:
        return try_type(*of_type)
    except TimeoutError as error:
        return Trial(*of_type, "not made", str(error))
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
