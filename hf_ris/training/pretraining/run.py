"""What the programs that pretrain encoders share: their options, the steps of AdamW, log.jsonl and pretraining.json."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hf_ris.environment import git_revision, hardware, versions
from hf_ris.training.order import seed_of


def options_parser(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """--recipe, --out, the options that `Run` reads, and overrides of the recipe; `defaults` are theirs by name."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="of the model that it is for: a name or a YAML file")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int, help="images")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--evaluate-every", type=int, help="steps")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--save-every", type=int, metavar="STEPS", help="so often, what --resume goes on from")
    parser.add_argument("--resume", action="store_true", help="go on from what a run with --save-every left in --out")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    parser.set_defaults(**{"save_every": 500} | defaults)
    return parser


def run(pretrain: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, arguments: list[str] | None):
    options = parser.parse_intermixed_args(arguments)
    try:
        pretrain(options)
    except (OSError, ValueError) as error:  # the user's to mend: one sentence, no traceback
        parser.error(str(error))


class Run:
    """Steps of AdamW with a warm-up and a cosine, and what they leave in the folder `options.out`.

    With `options.resume` it begins where a run that was killed saved itself last, at step `steps`, and ends as that one
    would have, if its data follow from the step alone. So does what else is random: every step is seeded.

    Args:
        seed: of the whole run.
        modules: all that learns. decayed, others: their parameters with weight decay 0.05 and without.
        log_every: steps whose mean loss is a line of the log; `options.save_every` is a multiple of it.
        measure: figures of the validation split, for every `options.evaluate_every`th line and the last.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        seed: int,
        modules: list[nn.Module],
        decayed: list[Tensor],
        others: list[Tensor],
        warmup_steps: int,
        log_every: int,
        measure: Callable[[], dict[str, float]],
    ):
        self.options, self.warmup_steps, self.log_every, self.measure = options, warmup_steps, log_every, measure
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
        options.out.mkdir(parents=True, exist_ok=True)
        self.steps, self.losses, self.log, self.since, self.before = 0, [], [], time.perf_counter(), 0.0
        self.modules, self.checkpoint = nn.ModuleList(modules), options.out / "checkpoint.pt"
        if options.save_every % log_every:
            raise ValueError(f"--save-every must be a multiple of {log_every}, got {options.save_every}.")
        if options.resume:
            self.load()
        self.seed, self.revision = seed, git_revision()  # of the code that runs, whatever the folder holds at the end

    def load(self) -> None:
        """Go on from the checkpoint.

        Raises:
            ValueError: there is none, or it is of a run with other steps, batches or learning rate.
        """
        if not self.checkpoint.is_file():
            raise ValueError(f"--resume: there is no {self.checkpoint}.")
        saved = torch.load(self.checkpoint, weights_only=True)
        if saved["arguments"] != self.arguments():
            raise ValueError(f"--resume: {self.checkpoint} is of a run with {saved['arguments']}.")
        self.modules.load_state_dict(saved["modules"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.steps, self.log, self.before = saved["steps"], saved["log"], saved["seconds"]

    def save(self) -> None:
        """Write the checkpoint; a kill meanwhile leaves the one before."""
        saved = {
            "arguments": self.arguments(),
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "log": self.log,
            "seconds": self.seconds(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(saved, partial)
        partial.replace(self.checkpoint)

    def arguments(self) -> dict[str, Any]:
        """What a resumed run must share; the last but `overrides` are one program's alone."""
        names = ("steps", "batch_size", "learning_rate", "bf16", "weight", "refine_every", "hints_first", "overrides")
        return {name: vars(self.options)[name] for name in names if name in vars(self.options)}

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.since

    def seeded(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, with a bar; the random numbers that follow on each depend on the seed and the step alone."""
        for batch in tqdm(batches, unit="step", initial=self.steps, total=self.options.steps):
            torch.manual_seed(seed_of(self.seed, self.steps))
            yield batch

    def step(self, loss: Tensor, shown: Tensor | None = None) -> None:
        """One step down `loss`; the log shows `shown`, where that is not the same."""
        rise, progress = min(1.0, (self.steps + 1) / self.warmup_steps), self.steps / self.options.steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * rise * (1 + math.cos(math.pi * progress)) / 2
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.losses.append((loss if shown is None else shown).detach())
        last = self.steps == self.options.steps
        if self.steps % self.log_every == 0 or last:
            self.log.append({"step": self.steps, "loss": torch.stack(self.losses).mean().item()})
            self.losses.clear()
            if self.steps % self.options.evaluate_every == 0 or last:
                self.log[-1] |= self.measure()
                tqdm.write(json.dumps(self.log[-1]), file=sys.stderr)
        if self.steps % self.options.save_every == 0 and not last:
            self.save()

    def write(self, **further: Any) -> None:
        """log.jsonl and pretraining.json: arguments, seconds, the last line of the log, versions and hardware."""
        (self.options.out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.log))
        told = {
            **further,
            "recipe": str(self.options.recipe),
            **self.arguments(),
            "seed": self.seed,
            "seconds": round(self.seconds()),
            **self.log[-1],
            "revision": self.revision,
            "versions": versions(),
            "hardware": hardware(),
        }
        (self.options.out / "pretraining.json").write_text(json.dumps(told, indent=2) + "\n")
        self.checkpoint.unlink(missing_ok=True)


def by_dimensions(parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices and kernels, which decay; vectors, which do not."""
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
