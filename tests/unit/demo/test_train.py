"""The training script: its schedule, its way to go on after an interruption, and the card it writes."""

import argparse
from pathlib import Path
from random import Random

import pytest
import torch

from demo import corpus
from demo.batches import Encoder, Source
from demo.card import Facts, write_card
from demo.evaluate import Result
from demo.tokenizer import load_tokenizer, train_tokenizer
from demo.train import Trainer, rate_factor


@pytest.mark.parametrize(("done", "factor"), [(0.0, 0.02), (0.005, 0.5), (0.3, 1.0), (1.0, 0.0), (1.2, 0.0)])
def test_the_rate_rises_stays_and_falls(done: float, factor: float) -> None:
    assert rate_factor(done) == pytest.approx(factor)


def options(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(
        seed=1,
        rate=1e-3,
        batch_tokens=2048,
        accumulate=1,
        long_share=0.1,
        minutes=1,
        out=folder / "out",
        state=folder / "state.pt",
    )


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    first = Trainer(train_tokenizer(corpus.sample_texts(Random(1), 200), 600), options(tmp_path))
    first.step()
    first.save()
    second = Trainer(load_tokenizer(tmp_path / "out"), options(tmp_path))
    second.load()
    assert second.progress == first.progress
    for trainer in (first, second):
        trainer.source = Source(Encoder(trainer.tokenizer), 2, 2048)
        trainer.step()
    assert first.progress.losses == pytest.approx(second.progress.losses)
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_card_tells_the_accuracy(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"0" * 2_000_000)
    example = corpus.single("capital")(Random(1), "heldout")
    results = [Result("capital", example, "", True), Result("capital", example, "", False)]
    known = Facts(5, 256, 4, 2, 4_000_000, 2048, 2000, 9.5, 75.0, 2)
    write_card(tmp_path, known, results, "unknown")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "capital | 50%" in card
    assert "2.0 MB" in card
    assert "Overall: **50.0%**" in card
