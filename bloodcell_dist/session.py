"""The parts of one run put together, in three acts: resume, train, finish."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.augment.policies import build_policy
from bloodcell_dist.data.cleaning_report import write_cleaning_report
from bloodcell_dist.data.prepare import Prepared
from bloodcell_dist.data.sampling import IndexPlan, class_weights
from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.epochs import EpochEnd, Evaluation, Standing
from bloodcell_dist.evaluation.finish import draw_plots, make_result, measure, summary, write_run_report
from bloodcell_dist.evaluation.predict import make_forward
from bloodcell_dist.history import rewrite_metrics
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.runtime import describe_environment
from bloodcell_dist.serving.export import export_model
from bloodcell_dist.settings import Settings
from bloodcell_dist.training.checkpoint import Checkpoints
from bloodcell_dist.training.checks import with_checks
from bloodcell_dist.training.loop import Actions, Length, run_loop
from bloodcell_dist.training.losses import make_loss
from bloodcell_dist.training.optimizers import make_rule
from bloodcell_dist.training.preemption import StopRequest
from bloodcell_dist.training.record import EpochRecord
from bloodcell_dist.training.replication import SingleDevice
from bloodcell_dist.training.schedule import Schedule
from bloodcell_dist.training.state import TrainingState
from bloodcell_dist.training.step import Compile, Step, gradient_function
from bloodcell_dist.training.update import Update

log = logging.getLogger(__name__)


class Session:
    """A run in memory.

    Args:
        settings: resolved.
        run: its folder; nothing is written before `resume`.
        data: its cells.
    """

    def __init__(self, settings: Settings, run: RunDir, data: Prepared) -> None:
        self.settings, self.run, self.data = settings, run, data
        self.replication = SingleDevice()
        self.plan = IndexPlan(
            data.train.labels,
            settings.train.global_batch_size,
            settings.train.seed,
            settings.data.balance,
            settings.data.target_per_class,
        )
        self.length = _length(self.plan, settings)
        self.per_replica_batch_size = _per_replica_batch_size(settings, self.replication.num_replicas)
        self.schedule = _schedule(settings, self.plan)
        self.record = EpochRecord(self.replication)
        self.standing = Standing()
        self._checkpoints = Checkpoints(run.checkpoints, settings.checkpoint.keep)
        sets = (data.train, data.val, data.test)
        self._fingerprint = [None if cells is None else cells.fingerprint() for cells in sets]
        self._born = time.monotonic()
        self._first_step = 0
        with self.replication.scope():
            self._build()

    def _build(self) -> None:
        """Network, optimizer, step and evaluation."""
        settings, data = self.settings, self.data
        num_classes = len(data.train.class_names)
        compile = Compile(model=settings.train.xla == "on", parts=settings.train.xla in ("on", "parts"))
        policy = build_policy(
            settings.augment.policy,
            engine=settings.augment.engine,
            image_size=settings.data.image_size,
            num_classes=num_classes,
            magnitude=settings.augment.magnitude,
        )
        if self.per_replica_batch_size % policy.group_size:
            raise UserError(
                f"augment.policy={policy.name} mixes cells in groups of {policy.group_size}, and "
                f"{self.per_replica_batch_size} cells per replica and pass are not a multiple of it; change "
                "train.global_batch_size or optimizer.accumulate_steps"
            )
        if not policy.deterministic:
            compile = Compile(model=False, parts=False)
            log.warning("augment.engine=kerascv is not compiled, and a resumed run will not be bit-identical")
        self.model = build_classifier(
            settings.model.backbone,
            image_size=settings.data.image_size,
            num_classes=num_classes,
            dropout=settings.model.dropout,
            total_steps=self.length.total_steps,
            seed=settings.train.seed,
        )
        weigh = settings.data.balance == "class_weights"
        gradients = gradient_function(
            self.model,
            policy,
            make_loss(
                settings.optimizer.loss,
                label_smoothing=settings.optimizer.label_smoothing,
                focal_gamma=settings.optimizer.focal_gamma,
                class_weights=class_weights(data.train.labels, num_classes).tolist() if weigh else None,
            ),
            num_classes=num_classes,
            global_batch_size=settings.train.global_batch_size,
            seed=settings.train.seed,
            compile=compile,
        )
        update = Update(
            [variable.value for variable in self.model.trainable_variables],
            [variable.path for variable in self.model.trainable_variables],
            make_rule(settings.optimizer.name, settings.optimizer.momentum),
            weight_decay=settings.optimizer.weight_decay,
            clip_norm=settings.optimizer.clip_norm,
            ema_decay=settings.optimizer.ema_decay,
            loss_scaling=settings.train.precision == "mixed_float16",
            xla=compile.parts,
        )
        self.step = Step(
            gradients,
            update,
            self.replication,
            images=data.train.images,
            labels=data.train.labels,
            per_replica_batch_size=self.per_replica_batch_size,
        )
        self.state = TrainingState(self.model, update, self.record)
        self.evaluation = Evaluation(
            self.model,
            make_forward(self.model, logits=True, xla=compile.model),
            self.state,
            train=data.train,
            plan=self.plan,
            batch_size=settings.evaluate.batch_size_per_replica,
            xla=compile.model,
        )

    def resume(self) -> None:
        """Write what describes the run, then take up the newest intact checkpoint if there is one."""
        log.info(self.arithmetic())
        if self.data.cleaning is not None:
            log.info(self.data.cleaning.summary())
        if self.data.cleaning is not None and not self.run.cleaning.exists():
            write_cleaning_report(self.data.cleaning, self.data.loaded, self.run.path)
        atomic_write_json(self.run.environment, describe_environment())
        checkpoint = self._checkpoints.newest()
        if checkpoint is not None:
            if checkpoint.progress["fingerprint"] != self._fingerprint:
                raise UserError(
                    f"{self.run.path}: the cells are not those this run began with; put the old ones "
                    "back, or give another --run-dir for a new run"
                )
            self.state.restore(checkpoint.arrays)
            self.standing = Standing(**checkpoint.progress["standing"])
            self.record.seconds = checkpoint.progress["epoch_seconds"]
            self.record.timed_examples = checkpoint.progress["epoch_timed_examples"]
            self._first_step = checkpoint.step
            log.info("continues after step %d of %d", checkpoint.step, self.length.total_steps)
        rewrite_metrics(self.run.metrics, self.length.finished_epochs(self._first_step))

    def train(self, stop: StopRequest) -> None:
        """Train to the end of the run. Raises Preempted or TrainingFailed.

        Args:
            stop: looked at after every step; Ctrl-C sets it too.
        """
        end_epoch = EpochEnd(
            self.run,
            self.model,
            self.evaluation,
            val=self.data.val,
            train_labels=self.data.train.labels,
            plan=self.plan,
            record=self.record,
            standing=self.standing,
            select_by=self.settings.evaluate.select_by,
            learning_rate=self.schedule,
        )
        checks = self.settings.train.checks
        num_classes = len(self.data.train.class_names)
        with stop.listening("INT"):
            run_loop(
                with_checks(self.step, self.data.train.labels, num_classes) if checks else self.step,
                plan=self.plan,
                schedule=self.schedule,
                replication=self.replication,
                length=self.length,
                first_step=self._first_step,
                record=self.record,
                actions=Actions(end_epoch, self._save),
                every_steps=self.settings.checkpoint.every_steps,
                stop=stop,
            )

    def finish(self) -> None:
        """Measure, export and report; result.json comes last, since it says that the run is finished."""
        settings, data = self.settings, self.data
        log.info("measures the best and the last model")
        measured = measure(
            self.run,
            self.model,
            self.evaluation,
            data,
            self.standing,
            resamples=settings.evaluate.bootstrap,
            seed=settings.train.seed,
        )
        export_model(self.model, self.run.model)
        self._age()
        environment = describe_environment()
        result = make_result(
            self.run,
            data,
            measured,
            self.standing,
            backbone=settings.model.backbone,
            seed=settings.train.seed,
            select_by=settings.evaluate.select_by,
            versions=environment["versions"],
        )
        counts = self._class_counts()
        write_run_report(
            self.run,
            data,
            result,
            class_counts=counts,
            pictures=draw_plots(self.run, data, measured, counts),
            environment=environment,
            test_source=_test_source(settings),
            test_is_same_source=True if settings.data.source in ("synthetic", "medmnist") else None,
            notes=self._notes(),
        )
        atomic_write_json(self.run.result, result)
        log.info(summary(result))
        log.info("report: %s", self.run.report)

    def arithmetic(self) -> str:
        """The one line that says how big everything is."""
        train = self.settings.train
        return (
            f"{self.settings.model.backbone}, {self.model.count_params() / 1e6:.2f} M weights; "
            f"{self.data.train.num_examples} training, {self.data.val.num_examples} validation, "
            f"{self.data.test.num_examples if self.data.test else 0} test cells; "
            f"{self.plan.examples_per_epoch} examples per epoch; global batch {train.global_batch_size} = "
            f"{self.per_replica_batch_size} per replica x {self.replication.num_replicas} replicas x "
            f"{self.settings.optimizer.accumulate_steps} accumulation steps; "
            f"{self.plan.steps_per_epoch} steps per epoch, {self.length.epochs} epochs, "
            f"{self.length.total_steps} steps"
        )

    def _save(self, step: int) -> None:
        self._age()
        progress: dict[str, Any] = {
            "fingerprint": self._fingerprint,
            "standing": asdict(self.standing),
            "epoch_seconds": self.record.seconds,
            "epoch_timed_examples": self.record.timed_examples,
        }
        self._checkpoints.save(step, self.state.arrays(), progress)

    def _age(self) -> None:
        """Bring the run's lived time up to date."""
        now = time.monotonic()
        self.standing.wall_seconds += now - self._born
        self._born = now

    def _class_counts(self) -> dict[str, list[int]]:
        sets = {"as found": self.data.loaded, "training": self.data.train, "validation": self.data.val}
        counts = {name: cells.class_counts() for name, cells in sets.items()}
        order = self.plan.epoch_order(0)
        counts["one epoch, balanced" if self.settings.data.balance == "oversample" else "one epoch"] = np.bincount(
            self.data.train.labels[order], minlength=len(self.data.train.class_names)
        )
        if self.data.test is not None:
            counts["test"] = self.data.test.class_counts()
        return {name: values.tolist() for name, values in counts.items()}

    def _notes(self) -> list[str]:
        notes = []
        if self.settings.data.source == "synthetic":
            notes.append("The cells are drawn by a program. The figures say nothing about real blood.")
        if self.settings.data.max_examples:
            notes.append(f"Each set was cut to {self.settings.data.max_examples} examples.")
        if self.length.total_steps < self.plan.steps_per_epoch * int(self.settings.train.epochs):
            notes.append(f"Training was cut short by train.max_steps={self.settings.train.max_steps}.")
        return notes


def _length(plan: IndexPlan, settings: Settings) -> Length:
    steps = plan.steps_per_epoch * int(settings.train.epochs)
    return Length(plan.steps_per_epoch, min(steps, settings.train.max_steps or steps))


def _schedule(settings: Settings, plan: IndexPlan) -> Schedule:
    optimizer = settings.optimizer
    return Schedule(
        peak=optimizer.learning_rate,
        total_steps=plan.steps_per_epoch * int(settings.train.epochs),
        warmup_steps=round(optimizer.warmup_epochs * plan.steps_per_epoch),
        shape=optimizer.schedule,
    )


def _per_replica_batch_size(settings: Settings, num_replicas: int) -> int:
    """Examples per replica and pass; UserError if the global batch does not divide."""
    size = settings.train.global_batch_size
    parts = num_replicas * settings.optimizer.accumulate_steps
    if size % parts:
        lower = size // parts * parts
        good = " or ".join(str(value) for value in (lower, lower + parts) if value)
        raise UserError(
            f"train.global_batch_size={size} is not divisible by {num_replicas} replicas x "
            f"optimizer.accumulate_steps={settings.optimizer.accumulate_steps}; use {good}"
        )
    return size // parts


def _test_source(settings: Settings) -> str | None:
    if settings.data.test_path is not None:
        return settings.data.test_path
    return {"synthetic": "drawn cells", "medmnist": "the source's own test part"}.get(settings.data.source)
