"""The loop of a training run: steps, logs, evaluations and checkpoints at their intervals, by a recipe."""

import hashlib
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration, broadcast, set_seed
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from hf_ris.data import RisCollator, VideoCollator, VideoTrainingRows
from hf_ris.data.collator import batches_of
from hf_ris.data.transforms import expression_counts, expression_texts
from hf_ris.environment import check_launch
from hf_ris.evaluation.answers import evaluate_model
from hf_ris.evaluation.videos import evaluate_videos
from hf_ris.metrics import leading_metrics
from hf_ris.training.build import build_config, build_model, build_rows
from hf_ris.training.figures import Figures
from hf_ris.training.optimizer import AveragedWeights, build_optimizer, freeze, learning_rate_factor
from hf_ris.training.order import StepBatches, seed_of
from hf_ris.training.recipe import Recipe
from hf_ris.training.run_folder import RunFolder, flat_recipe


_EARLY = {"early_end": True}  # in a line of log.jsonl that a run which goes on would not have


@dataclass
class Progress:
    """What a resumed run must know besides weights and optimizer; saved with every checkpoint."""

    step: int = 0
    best: float = -1.0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class Training:
    """One run: the recipe's parts, the loop, and what it leaves behind."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator, folder: RunFolder):
        self.recipe, self.accelerator, self.folder = recipe, accelerator, folder
        data, settings = recipe.data, recipe.training
        if recipe.initialize.weights in ("scratch", "encoders"):  # what is wrong with it shows before anything is read
            build_config(recipe, words=50_000)
        set_seed(settings.seed)
        with accelerator.main_process_first():  # the first one fills the cache of generated data
            corpus, self.rows, self.validation = build_rows(data, settings.seed)
        self.order(0, 0)  # a batch size that the data or the processes cannot give shows before a model is made
        if not any(expression_counts(self.validation)):
            raise ValueError(f"data.validation_split {data.validation_split} has no expression to evaluate.")
        self.videos = isinstance(self.rows, VideoTrainingRows)
        self.module, self.processor = build_model(recipe, corpus)
        recipe.architecture = self.module.config.model_type  # where it was any
        self.tell_unknown_words(corpus)
        vocabulary = json.dumps(sorted(self.processor.tokenizer.get_vocab().items()))
        beside = {} if data.images is None else {"videos": self.rows.videos}  # of what is counted as images
        folder.facts = {
            "read": {"training": _size(corpus) | beside, "validation": _size(self.validation)},
            "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        }
        if settings.sync_batch_norm and accelerator.num_processes > 1:
            self.module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.module)
        self.still = freeze(self.module, recipe.optimizer)
        if settings.gradient_checkpointing:
            self.module.gradient_checkpointing_enable()
        if settings.channels_last:
            self.module.to(memory_format=torch.channels_last)
        self.module.to(accelerator.device)
        self.average = AveragedWeights(self.module, settings.ema_decay) if settings.ema_decay else None
        self.model, self.optimizer = accelerator.prepare(self.module, build_optimizer(self.module, recipe.optimizer))
        self.progress, self.meter = Progress(), Meter(accelerator)
        self.figures = Figures(folder.path, self.validation, recipe.evaluation.pictures, accelerator)
        accelerator.register_for_checkpointing(self.progress, self.meter, *([self.average] if self.average else []))
        self.steps_per_epoch = len(self.rows) // settings.batch_size
        self.total_steps = settings.max_steps or round(settings.epochs * self.steps_per_epoch)
        if self.total_steps < 1:
            raise ValueError(
                f"training.epochs {settings.epochs} of {self.steps_per_epoch} steps each are no step at all."
            )

    def tell_unknown_words(self, corpus) -> None:
        """Say what share of the words the vocabulary lacks; the processor then does not warn of them any more."""
        for what, rows in (("training", corpus), ("validation", self.validation)):
            found = self.processor.unknown_words(expression_texts(rows))
            whole = self.recipe.initialize.weights not in ("scratch", "encoders")
            hint = "; initialize.extend_vocabulary=unknown adds them" if whole and what == "training" else ""
            if found.unknown:
                self.accelerator.print(f"{what}: {found}{hint}")
        self.processor.warns_of_unknown_words = False

    def resume(self) -> None:
        """Load the newest whole checkpoint, if there is one; the optimizer's settings are the recipe's.

        Raises:
            ValueError: it is of another model than the recipe's, or lies beyond the recipe's last step.
        """
        before, newest = self.folder.recorded(), self.folder.newest_checkpoint()
        if newest is not None:
            architecture, own = before["recipe"]["architecture"], self.recipe.architecture
            if architecture != own:
                raise ValueError(f"{self.folder.path} holds a run of {architecture}, which cannot go on as {own}.")
            if before.get("vocabulary") != self.folder.facts["vocabulary"]:
                raise ValueError(
                    f"The recipe gives another vocabulary than that of the run in {self.folder.path}, whose words it "
                    "would confuse: keep data and processor as they were, or give another output_dir."
                )
            try:
                self.accelerator.load_state(str(newest))
            except (RuntimeError, LookupError, ValueError, OSError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"{newest} does not fit the recipe, whose model or training.ema_decay or training.mixed_precision "
                    f"is another than the run's was: {reason:.500}"
                ) from error
            if self.progress.step > self.total_steps:
                raise ValueError(f"{newest} lies beyond the last step of the recipe, {self.total_steps}.")
            self.accelerator.print(f"resumed at step {self.progress.step} from {newest}")
        self.folder.resumed_at = self.progress.step
        self.folder.cut_log(-1 if newest is None else self.progress.step)  # what stands at 0 is then logged anew

    def run(self, stop: int) -> None:
        """Steps up to `stop`, with logs, evaluations and checkpoints at their intervals and at the end."""
        settings, start = self.recipe.training, self.progress.step
        batches = self.batches(start, stop)
        bar = tqdm(total=stop, initial=start, unit="step", disable=not self.accelerator.is_main_process)
        if start == 0 and self.recipe.evaluation.at_start:
            self.evaluate()
        self.meter.go_on()
        for step in range(start, stop):
            pieces = [next(batches) for _ in range(settings.accumulation)]
            self.meter.add(self.step(step, pieces))
            self.progress.step = step + 1
            bar.update()
            due = self.due(step + 1)
            if not due and step + 1 < stop:
                continue
            self.progress.seconds += self.meter.pause()
            if "log" in due:
                bar.set_postfix(self.log())
            if "evaluate" in due or "save" in due or step + 1 == stop:
                self.check_finite()
            if "evaluate" in due:
                self.evaluate()
            if "save" in due or step + 1 == stop:
                self.meter.settle()
                self.folder.save_checkpoint(step + 1)
            if step + 1 == stop:
                self.end_early(due)
            self.meter.go_on()
        bar.close()
        self.folder.save_model("last", *self.saveable())

    def due(self, step: int) -> set[str]:
        """What is to be done after `step` steps in a run that nothing ends early."""
        settings = self.recipe.training
        intervals = {"log": settings.log_every, "evaluate": settings.evaluate_every, "save": settings.save_every}
        return {name for name, every in intervals.items() if step == self.total_steps or every and step % every == 0}

    def end_early(self, due: set[str]) -> None:
        """Log and evaluate at a step where a run that goes on would not; a resumed one forgets it (`cut_log`)."""
        if "log" not in due:
            self.log(early_end=True)
        if "evaluate" not in due:
            self.evaluate(early_end=True)

    def check_finite(self) -> None:
        """Weights that are not finite are never saved.

        Raises:
            ValueError: some are not.
        """
        modules = [self.model, *([self.average.model] if self.average else [])]
        good = [_local(p).isfinite().all() for module in modules for p in module.parameters()]
        # a buffer may hold -inf, as a causal mask does
        good += [~_local(b).isnan().any() for module in modules for b in module.buffers()]
        bad = self.accelerator.reduce((~torch.stack(good)).sum().to(torch.float32), "sum").item()
        if bad:
            steps = self.folder.steps()
            newest = f"the newest checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint yet"
            raise ValueError(
                f"At step {self.progress.step} the weights are not finite any more, so they were not saved; {newest}. "
                "Lower optimizer.learning_rate, or clip the gradient by training.clip_norm."
            )

    def order(self, start: int, stop: int) -> StepBatches:
        """The keys of this process's rows of steps [start, stop)."""
        settings, accelerator = self.recipe.training, self.accelerator
        processes = accelerator.process_index, accelerator.num_processes
        return StepBatches(
            len(self.rows), settings.batch_size, settings.seed, start, stop, *processes, settings.accumulation
        )

    def batches(self, start: int, stop: int):
        """An iterator over this process's batches of steps [start, stop)."""
        settings, accelerator = self.recipe.training, self.accelerator
        return batches_of(
            torch.utils.data.DataLoader(
                self.rows,
                batch_sampler=self.order(start, stop),
                collate_fn=(VideoCollator if self.videos else RisCollator)(self.processor),
                num_workers=settings.workers,
                pin_memory=accelerator.device.type == "cuda",
            )
        )

    def step(self, step: int, pieces: list) -> dict[str, torch.Tensor]:
        """One optimizer step over the pieces of its batch; returns sums over this process for the log."""
        settings, accelerator = self.recipe.training, self.accelerator
        set_seed(seed_of(settings.seed, step, accelerator.process_index))
        self.model.train()
        for module in self.still:
            module.eval()
        factor = learning_rate_factor(self.recipe.schedule, step, self.total_steps, self.steps_per_epoch)
        for group in self.optimizer.param_groups:  # no scheduler object: nothing to save, nothing that steps twice
            group["lr"] = group["initial_lr"] * factor
        record = {"images": torch.tensor(0.0), "expressions": torch.tensor(0.0)}
        weights = self.weights([len(piece["input_ids"]) for piece in pieces])
        for piece, weight in zip(pieces, weights):
            piece = self.to_device(piece)
            with accelerator.accumulate(self.model):
                output = self.model(**piece)
                loss = output.loss if weight == 1 else output.loss * weight
                accelerator.backward(loss)
                if accelerator.sync_gradients and settings.clip_norm:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
                    # of a sharded model the norm is one of its whole, but comes as a sharded tensor
                    record["gradient_norm"] = (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach()
                self.optimizer.step()
                self.optimizer.zero_grad()
            terms = {"loss": output.loss, **output.losses}
            for name, value in terms.items():
                record[name] = record.get(name, 0) + value.detach() * weight / len(pieces)
            record["images"] += len(piece[self.module.main_input_name])
            record["expressions"] += len(piece["input_ids"])
        if self.average:
            self.average.update(self.module, step)
        return record

    def weights(self, counts: list[int]) -> list[float]:
        """Factors that make the mean over pieces the mean over all expressions of the step, wherever they lie."""
        pieces = len(counts) * self.accelerator.num_processes
        if pieces == 1:
            return [1.0]
        total = torch.tensor(float(sum(counts)), device=self.accelerator.device)
        total = self.accelerator.reduce(total, "sum").item()
        return [count * pieces / total for count in counts]

    def to_device(self, batch) -> dict[str, torch.Tensor]:
        batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
        if self.recipe.training.channels_last:
            batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        return batch

    def log(self, early_end: bool = False) -> dict[str, str]:
        """One line of log.jsonl, the trackers' values, and what the bar shows.

        Raises:
            ValueError: the loss is not finite.
        """
        values = self.meter.summary()
        if not math.isfinite(values["loss"]):
            raise ValueError(f"The loss is {values['loss']} at step {self.progress.step}; lower the learning rate.")
        values["learning_rate"] = max(group["lr"] for group in self.optimizer.param_groups)
        step = self.progress.step
        line = {"step": step, "epoch": step / self.steps_per_epoch, **values, "seconds": self.progress.seconds}
        self.folder.log(line | _EARLY if early_end else line)
        self.accelerator.log({f"train/{name}": value for name, value in line.items() if name != "step"}, step=step)
        return {"loss": f"{values['loss']:.4g}", "images/s": f"{values['images_per_second']:.1f}"}

    def evaluate(self, early_end: bool = False) -> None:
        """Metrics on the validation split; the best model so far, by mIoU or J&F, is kept in best/.

        At an early end, where a run that goes on would not look, only a run without any best model gets one.
        """
        settings, step = self.recipe.evaluation, self.progress.step
        model, processor, state = self.saveable()
        if self.average:  # batch statistics differ between processes: those of the first are saved
            broadcast(list(self.average.model.buffers()))
        answering = self.average.model if self.average else self.model
        chosen = {"protocols": [settings.protocol], "max_expressions": settings.max_expressions}
        if self.videos:
            evaluator = evaluate_videos(self.accelerator, answering, processor, self.validation, **chosen)
        else:
            evaluator = evaluate_model(
                self.accelerator,
                answering,
                processor,
                self.validation,
                batch_size=settings.batch_size,
                channels_last=self.recipe.training.channels_last,
                look=self.figures.look,
                **chosen,
            )
        metrics = evaluator.compute(settings.protocol)
        self.progress.metrics = metrics
        line = {"step": step, "evaluation": metrics, "seconds": self.progress.seconds}
        self.folder.log(line | _EARLY if early_end else line)
        self.accelerator.log({f"validation/{name}": value for name, value in metrics.items()}, step=step)
        shown = leading_metrics(metrics)
        if self.accelerator.is_main_process:
            tqdm.write(f"step {step}: " + ", ".join(f"{name} {metrics[name]:.4f}" for name in shown), file=sys.stderr)
        if metrics[shown[0]] > self.progress.best and not (early_end and self.progress.best >= 0):
            self.progress.best = metrics[shown[0]]
            self.folder.save_model("best", model, processor, state)
        self.figures.draw(step, last=early_end or step == self.total_steps)

    def saveable(self) -> tuple:
        """(model, processor, weights) to be saved: the average where there is one."""
        if self.average:
            return self.average.model, self.processor, self.average.model.state_dict()
        return self.module, self.processor, self.accelerator.get_state_dict(self.model)


def _size(rows) -> dict[str, int]:
    """What of a data set is read, for run.json and the card."""
    counts = expression_counts(rows)
    return {"images": sum(count > 0 for count in counts), "expressions": sum(counts)}


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that is sharded."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


class Meter:
    """Means of what `Training.step` returns since the last summary, and its speed without pauses."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.sums: dict[str, torch.Tensor] = {}
        self.steps, self.seconds, self.since = 0, 0.0, time.perf_counter()

    def add(self, record: dict[str, torch.Tensor]) -> None:
        for name, value in record.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.steps += 1

    def settle(self) -> None:
        """Let every process hold the means of all: a checkpoint has one meter, and a run that goes on from it logs the
        same as one that was not interrupted, bit for bit."""
        if self.sums:
            self.sums = self._means()

    def _means(self) -> dict[str, torch.Tensor]:
        """Of the sums, over processes."""
        sums = torch.stack([value.to(self.accelerator.device, torch.float32) for value in self.sums.values()])
        return dict(zip(self.sums, self.accelerator.reduce(sums, "mean").unbind()))

    def state_dict(self) -> dict[str, Any]:
        sums = {name: float(value) for name, value in self.sums.items()}
        return {"sums": sums, "steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.accelerator.device
        self.sums = {name: torch.tensor(value, device=device) for name, value in state["sums"].items()}
        self.steps, self.seconds = state["steps"], state["seconds"]

    def pause(self) -> float:
        """Stop the clock; returns the seconds since it was last started."""
        passed = time.perf_counter() - self.since
        self.seconds += passed
        return passed

    def go_on(self) -> None:
        self.since = time.perf_counter()

    def summary(self) -> dict[str, float]:
        """Means over steps and processes; resets."""
        values = {name: value.item() for name, value in self._means().items()}
        processes = self.accelerator.num_processes
        images, expressions = (values.pop(name) * processes for name in ("images", "expressions"))
        means = {name: value / self.steps for name, value in values.items()}
        means["images_per_second"], means["expressions_per_second"] = images / self.seconds, expressions / self.seconds
        self.sums, self.steps, self.seconds = {}, 0, 0.0
        return means


def build_accelerator(recipe: Recipe, output: Path) -> Accelerator:
    """The accelerator of a run.

    Raises:
        ValueError: accelerate's environment contradicts the recipe, or a tracker is not installed.
    """
    check_launch(recipe.training.mixed_precision, recipe.training.accumulation)
    tracker = recipe.tracking.name
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=recipe.training.mixed_precision,
        gradient_accumulation_steps=recipe.training.accumulation,
        log_with=None if tracker == "none" else tracker,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "tracking")),
    )
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharded and accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            "accelerate is set up for FSDP, but shards only where there are several processes with a GPU each: launch "
            "with train/accelerate/cpu_two.yaml or without accelerate instead."
        )
    policy = accelerator.state.fsdp_plugin.auto_wrap_policy if sharded else None
    if policy is size_based_auto_wrap_policy:
        raise ValueError(
            "FSDP's SIZE_BASED_WRAP also picks lists of modules, which have no forward to gather their parameters in: "
            "set fsdp_auto_wrap_policy to NO_WRAP, as train/accelerate/fsdp.yaml does."
        )
    if tracker != "none" and not accelerator.log_with:
        raise ValueError(f"tracking.name is {tracker}, which is not installed: pip install 'hf_ris[train]'.")
    return accelerator


def train(
    recipe: Recipe, accelerator: Accelerator, output: Path, resume: bool = False, stop_at_step: int | None = None
) -> dict[str, Any]:
    """A whole run, which leaves its folder `output`; returns steps, seconds, best mIoU or J&F, last metrics.

    Args:
        accelerator: of `build_accelerator`. resume: go on from the newest checkpoint in `output`.
        stop_at_step: end early, on the full run's schedule.

    Raises:
        ValueError: a recipe that cannot be trained here, or a folder that holds another run.
    """
    if stop_at_step is not None and stop_at_step < 1:
        raise ValueError(f"A run stops at step 1 or later, not at {stop_at_step}.")
    if recipe.training.ema_decay and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("training.ema_decay needs whole weights in every process; FSDP shards them.")
    with RunFolder(output, accelerator, resume, recipe.training.keep_checkpoints) as folder:
        training = Training(recipe, accelerator, folder)
        if resume:
            training.resume()
        folder.describe(recipe, training.module)
        # of the steps that are done again, tensorboard forgets what it was told before
        again = {"tensorboard": {"purge_step": training.progress.step + 1}} if resume else {}
        accelerator.init_trackers(recipe.tracking.project, config=flat_recipe(recipe), init_kwargs=again)
        training.run(min(stop_at_step or training.total_steps, training.total_steps))
        progress = training.progress
        chief = leading_metrics(progress.metrics)[0]
        result = {"steps": progress.step, "seconds": progress.seconds, f"best_{chief}": progress.best}
        result["last"] = progress.metrics
        folder.finish(result)
    accelerator.print(f"{progress.step} steps in {progress.seconds:.0f} s, best {chief} {progress.best:.4f}: {output}")
    accelerator.end_training()
    return result
