"""Trains the demo model within a time budget: `python -m demo.train --minutes 75 --out engine/demo_model`.

Owns the optimisers, the schedule and the training state, from which a run goes on when it was interrupted.
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from demo import corpus
from demo.artefact import model_config, save_model, save_tokenizer
from demo.batches import Batch, Encoder, Source
from demo.card import Facts, write_card
from demo.evaluate import Result, evaluate, failures, report
from demo.talk import UNKNOWN
from demo.tokenizer import load_tokenizer, train_tokenizer

VOCABULARY: Final = 2048
WARM: Final = 0.01
DECAY: Final = 0.45


@dataclass
class Progress:
    """Tells how far a run has come; `seconds` counts training time over all its parts."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def line(self) -> str:
        recent = self.losses[-50:]
        loss = sum(recent) / max(1, len(recent))
        rate = self.tokens / max(1.0, self.seconds)
        return (
            f"step {self.steps} loss {loss:.3f} tokens {self.tokens / 1e6:.2f}M {rate:.0f}/s {self.seconds / 60:.1f}min"
        )


def rate_factor(done: float) -> float:
    """The learning rate at the share `done` of the budget: up, level, then down to zero."""
    if done < WARM:
        return max(0.02, done / WARM)
    return min(1.0, max(0.0, (1 - done) / DECAY))


def _optimisers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, which it trains in fewer steps, and AdamW for the rest."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    tables = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" not in name]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": tables, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    muon = torch.optim.Muon(inner, lr=rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [adam, muon]


class Trainer:
    """A model in training, with everything that is needed to go on later."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.tokenizer = tokenizer
        self.model = LlamaForCausalLM(model_config(tokenizer))
        self.source = Source(Encoder(tokenizer), options.seed, options.batch_tokens)
        self.progress = Progress()
        self.optimisers = _optimisers(self.model, options.rate)

    def _loss(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model(batch.ids, attention_mask=batch.mask(), position_ids=batch.positions, use_cache=False)
        logits = output.logits[:, :-1].float().flatten(0, 1)
        losses = functional.cross_entropy(logits, batch.ids[:, 1:].flatten(), reduction="none")
        # The first token of a document follows nothing: it cannot be learned.
        wanted = (batch.weights[:, 1:] * (batch.positions[:, 1:] > 0)).flatten()
        return (losses * wanted).sum() / wanted.sum()

    def _batch(self) -> Batch:
        return self.source.long() if self.source.rng.random() < self.options.long_share else self.source.short()

    def _backward(self) -> float:
        """The gradients of one step, summed over its batches; returns the mean loss."""
        count: int = self.options.accumulate
        total = 0.0
        for _ in range(count):
            batch = self._batch()
            loss = self._loss(batch)
            torch.autograd.backward(loss / count)
            total += float(loss.detach())
            self.progress.tokens += int((batch.documents > 0).sum())
        return total / count

    def step(self) -> None:
        started = time.monotonic()
        factor = rate_factor(self.progress.seconds / (60 * self.options.minutes))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.options.rate * factor
        self.progress.losses = [*self.progress.losses[-99:], self._backward()]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.progress.steps += 1
        self.progress.seconds += time.monotonic() - started

    def save(self) -> None:
        """Writes the artefact, and beside it the state from which this run can go on."""
        save_model(self.model, self.options.out)
        save_tokenizer(self.tokenizer, self.options.out)
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "progress": vars(self.progress),
            "random": self.source.rng.getstate(),
        }
        self.options.state.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.options.state)

    def load(self) -> None:
        state = torch.load(self.options.state)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.progress = Progress(**state["progress"])
        self.source.rng.setstate(state["random"])

    def check(self, per_kind: int) -> list[Result]:
        """Prints the accuracy on held-out wordings as it is now."""
        model: Any = self.model
        results = evaluate(model.eval(), self.tokenizer, per_kind)
        print(self.progress.line(), report(results), failures(results, 20), sep="\n", flush=True)
        model.train()
        return results

    def finish(self) -> None:
        """Writes the artefact for the last time, with a model card that says how good it is."""
        self.save()
        # The card is about the weights as they ship.
        model: Any = self.model
        model.to(torch.bfloat16).to(torch.float32)
        write_card(self.options.out, self._known(), self.check(self.options.per_kind), UNKNOWN)

    def _known(self) -> Facts:
        config: Any = self.model.config
        return Facts(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            parameters=self.model.num_parameters(),
            context=config.max_position_embeddings,
            vocabulary=config.vocab_size,
            tokens=self.progress.tokens / 1e6,
            minutes=self.progress.seconds / 60,
            threads=self.options.threads,
        )

    def run(self) -> None:
        """Trains until the budget is spent, and saves every few minutes."""
        try:
            self._run()
        except KeyboardInterrupt:
            self.save()
            raise
        self.finish()

    def _run(self) -> None:
        saved = time.monotonic()
        while self.progress.seconds < 60 * self.options.minutes:
            self.step()
            if self.progress.steps % 50 == 0:
                print(self.progress.line(), flush=True)
            if time.monotonic() - saved > 60 * self.options.save_minutes:
                self.save()
                self.check(per_kind=3)
                saved = time.monotonic()


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer, trained on a sample of the corpus; the same seed gives the same one."""
    return train_tokenizer(corpus.sample_texts(Random(seed), 30_000), VOCABULARY)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--out", type=Path, default=Path("engine/demo_model"))
    parser.add_argument("--state", type=Path, default=Path("build/demo/state.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from --state")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--long-share", type=float, default=0.06, help="how many of the batches are long")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-minutes", type=float, default=10)
    parser.add_argument("--per-kind", type=int, default=50)
    return parser.parse_args()


def main() -> None:
    """Trains, saves and reports."""
    options = _options()
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.out) if options.resume else make_tokenizer(options.seed)
    trainer = Trainer(tokenizer, options)
    if options.resume:
        trainer.load()
    trainer.run()


if __name__ == "__main__":
    main()
