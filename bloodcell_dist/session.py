"""The parts of one run put together: built, resumed, trained."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tensorflow as tf

from bloodcell_dist.arithmetic import work_out
from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.augment.policies import Policy, build_policy
from bloodcell_dist.data.cleaning_report import write_cleaning_report
from bloodcell_dist.data.prepare import Prepared
from bloodcell_dist.data.sampling import class_weights
from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.epochs import EpochEnd, Evaluation, Standing
from bloodcell_dist.evaluation.predict import make_forward
from bloodcell_dist.history import rewrite_metrics
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.models.finetune import Depth, Part, batchnorm_layers, weight_names
from bloodcell_dist.models.transfer import load_weights
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.runtime import describe_environment
from bloodcell_dist.settings import Settings
from bloodcell_dist.training.checkpoint import Checkpoint, Checkpoints
from bloodcell_dist.training.checks import with_checks
from bloodcell_dist.training.loop import Actions, run_loop
from bloodcell_dist.training.losses import make_loss
from bloodcell_dist.training.optimizers import make_rule
from bloodcell_dist.training.preemption import StopRequest
from bloodcell_dist.training.record import EpochRecord
from bloodcell_dist.training.replication import Replication
from bloodcell_dist.training.stages import Stage, StagedStep
from bloodcell_dist.training.state import TrainingState
from bloodcell_dist.training.step import Compile, Step, StepFunction, gradient_function
from bloodcell_dist.training.update import Update

log = logging.getLogger(__name__)


class Session:
    """A run in memory.

    Args:
        settings: resolved.
        run: its folder; nothing is written before `introduce`, and only by the chief.
        data: its cells.
        replication: how the replicas work together.
        weights: Keras file that the network begins with; None draws its weights, or leaves them to a checkpoint.
    """

    def __init__(
        self,
        settings: Settings,
        run: RunDir,
        data: Prepared,
        replication: Replication,
        weights: Path | None = None,
    ) -> None:
        self.settings, self.run, self.data = settings, run, data
        self.replication = replication
        self.arithmetic = work_out(settings, data.train.labels, self.replication.num_replicas)
        self.record = EpochRecord(self.replication)
        self.standing = Standing()
        self.environment = describe_environment(replication.process) | {"replicas": replication.num_replicas}
        self._checkpoints = Checkpoints(run.checkpoints, settings.checkpoint.keep)
        self._born = time.monotonic()
        self._first_step = 0
        self._build(weights)

    def _build(self, weights: Path | None) -> None:
        """Network, optimizer, step and evaluation."""
        settings, data = self.settings, self.data
        self._policy = self._augmentation()
        on, parts = settings.train.xla == "on", settings.train.xla in ("on", "parts")
        self._compile = Compile(model=on and self._policy.deterministic, parts=parts and self._policy.deterministic)
        # Only what every worker makes in the same order: with several, each variable made in here is a collective.
        with self.replication.scope():
            self.model = build_classifier(
                settings.model.backbone,
                image_size=settings.data.image_size,
                num_classes=len(data.train.class_names),
                dropout=settings.model.dropout,
                seed=settings.train.seed,
                input_size=settings.model.input_size,
                drop_path=settings.model.drop_path,
            )
            self._depth = Depth(self.model)
            self._update = self._optimizer(parts)
        if weights is not None:
            load_weights(self.model, weights, data.train.class_names)
            self._update.restart_averages()
        self._step = Step(
            self._gradients(),
            self._update,
            self.replication,
            images=data.train.images,
            labels=data.train.labels,
            per_replica_batch_size=self.arithmetic.per_replica_batch_size,
        )
        self.step = StagedStep(self.arithmetic.stages, self._begin_stage, self._step)
        self.state = TrainingState(self.model, self._update, self.record)
        self.evaluation = Evaluation(
            self.model,
            make_forward(self.model, logits=True, xla=on),
            self.state,
            self.replication,
            train=data.train,
            plan=self.arithmetic.plan,
            batch_size=settings.evaluate.batch_size_per_replica,
            xla=on,
        )

    def _begin_stage(self, stage: Stage, now: bool) -> None:
        """Freeze what does not train in a stage; the step, the update and the evaluation are traced anew for it.

        Args:
            stage: to be in.
            now: it begins at this step; else it began before a restart.
        """
        previous = self.arithmetic.stages.before(stage)
        if now and previous is not None:
            self._settle_statistics(previous, stage)
        variables = self._freeze(stage)
        self._update.select([self._places[id(variable)] for variable in variables])
        self._step.renew(self._gradients())
        self.evaluation.layers_changed()
        if len(self.settings.finetune.stages) > 1:
            log.info(
                "stage %s: steps %d to %d, %s of %s weights train, learning rate up to %.2g",
                *(stage.train, stage.first_step + 1, stage.end_step),
                *(f"{sum(math.prod(v.shape) for v in variables):,}", f"{self.model.count_params():,}"),
                stage.schedule.peak,
            )

    def _settle_statistics(self, previous: Stage, stage: Stage) -> None:
        """Where a stage freezes BatchNorm layers that trained, it goes on with statistics of their last weights."""
        self._freeze(stage)
        still_live = {id(layer) for layer in batchnorm_layers(self.model)}
        self._freeze(previous)
        if any(id(layer) not in still_live for layer in batchnorm_layers(self.model)):
            self.evaluation.layers_changed()
            self.evaluation.recalibrate()

    def _freeze(self, stage: Stage) -> list[Any]:
        """Freeze all but what trains in a stage; the variables that train."""
        return self._depth.freeze(Part(stage.train, self.settings.finetune.batchnorm == "freeze"))

    def _augmentation(self) -> Policy:
        settings, size = self.settings, self.arithmetic.per_replica_batch_size
        policy = build_policy(
            settings.augment.policy,
            engine=settings.augment.engine,
            image_size=settings.data.image_size,
            num_classes=len(self.data.train.class_names),
            magnitude=settings.augment.magnitude,
        )
        if size % policy.group_size:
            parts = self.settings.train.global_batch_size // size
            unit = parts * policy.group_size
            fitting = -(-self.settings.train.global_batch_size // unit) * unit
            raise UserError(
                f"augment.policy={policy.name} mixes cells in groups of {policy.group_size}, and {size} cells per "
                f"replica and pass are not a multiple of it; use train.global_batch_size={fitting} or another "
                f"multiple of {unit}"
            )
        if not policy.deterministic:
            log.warning("augment.engine=kerascv is not compiled, and a resumed run will not be bit-identical")
        return policy

    def _gradients(self) -> Callable[..., Any]:
        """The gradient function of the weights that train now."""
        settings, labels, policy = self.settings, self.data.train.labels, self._policy
        num_classes = len(self.data.train.class_names)
        weigh = settings.data.balance == "class_weights"
        loss = make_loss(
            settings.optimizer.loss,
            label_smoothing=settings.optimizer.label_smoothing,
            focal_gamma=settings.optimizer.focal_gamma,
            class_weights=class_weights(labels, num_classes).tolist() if weigh else None,
        )
        return gradient_function(
            self.model,
            policy if policy.deterministic else tf.function(policy),  # KerasCV's layers count on autograph
            loss,
            num_classes=num_classes,
            global_batch_size=settings.train.global_batch_size,
            seed=settings.train.seed,
            compile=self._compile,
        )

    def _optimizer(self, xla: bool) -> Update:
        """The state of the optimizer for all weights that train in any stage."""
        optimizer, model = self.settings.optimizer, self.model
        trained = {id(variable) for stage in self.arithmetic.stages.stages for variable in self._freeze(stage)}
        rates = self._depth.rates(self.settings.finetune.layer_decay)
        rows = [row for row in zip(model.weights, weight_names(model), rates, strict=True) if id(row[0]) in trained]
        self._places = {id(variable): place for place, (variable, _, _) in enumerate(rows)}
        return Update(
            [variable.value for variable, _, _ in rows],
            [name for _, name, _ in rows],
            make_rule(optimizer.name, optimizer.momentum),
            multipliers=[rate for _, _, rate in rows],
            weight_decay=optimizer.weight_decay,
            clip_norm=optimizer.clip_norm,
            ema_decay=optimizer.ema_decay,
            loss_scaling=self._scales_loss,
            xla=xla,
        )

    @property
    def _scales_loss(self) -> bool:
        """Whether anything is computed or sent as float16, whose small numbers are few."""
        settings = self.settings
        return settings.train.precision == "mixed_float16" or settings.distribute.gradient_compression == "float16"

    def describe(self) -> str:
        """The one line that says how big everything is."""
        data = self.data
        return (
            f"{self.model.name}, {self.model.count_params() / 1e6:.2f} M weights; {data.train.num_examples} training, "
            f"{data.val.num_examples} validation, {data.test.num_examples if data.test else 0} test cells; "
            f"{self.arithmetic}"
        )

    def introduce(self) -> None:
        """Tell and write what describes the run; on the chief."""
        log.info(self.describe())
        if len(self.arithmetic.stages.stages) > 1:
            log.info("stages: %s", self.arithmetic.stages)
        if self.data.cleaning is not None:
            log.info(self.data.cleaning.summary())
        if self.data.cleaning is not None and not self.run.cleaning.exists():
            write_cleaning_report(self.data.cleaning, self.data.loaded, self.run.path)
        atomic_write_json(self.run.environment, self.environment)

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Take up a checkpoint if there is one. A collective: the chief has it, and gives the others what they need."""
        if checkpoint is not None:
            self.state.restore(checkpoint.arrays)
            self._update.begin_scaling()
            log.info("the run continues after step %d of %d", checkpoint.step, self.arithmetic.length.total_steps)
        found = checkpoint and {"step": checkpoint.step, "progress": checkpoint.progress}
        taken_up = self.replication.share(found)
        if taken_up:
            self._first_step, progress = taken_up["step"], taken_up["progress"]
            self.standing = Standing(**progress["standing"])
            self.record.seconds = progress["epoch_seconds"]
            self.record.timed_examples = progress["epoch_timed_examples"]
        self.replication.broadcast(self.state.variables())
        self.step.enter(min(self._first_step, self.arithmetic.length.total_steps - 1))
        if self.replication.is_chief:
            rewrite_metrics(self.run.metrics, self.arithmetic.length.finished_epochs(self._first_step))

    def train(self, stop: StopRequest) -> None:
        """Train to the end of the run. Raises Preempted or TrainingFailed.

        Args:
            stop: looked at after every step; Ctrl-C sets it too.
        """
        end_epoch = EpochEnd(
            self.run if self.replication.is_chief else None,
            self.evaluation,
            self.replication,
            val=self.data.val,
            train_labels=self.data.train.labels,
            plan=self.arithmetic.plan,
            record=self.record,
            standing=self.standing,
            select_by=self.settings.evaluate.select_by,
            stages=self.arithmetic.stages,
            epochs=self.arithmetic.length.epochs,
        )
        step: StepFunction = self.step
        if self.settings.train.checks:
            step = with_checks(
                self.step,
                self.data.train.labels,
                len(self.data.train.class_names),
                self.replication.local,
                loss_scaling=self._scales_loss,
            )
        with stop.listening("INT"):
            run_loop(
                step,
                plan=self.arithmetic.plan,
                stages=self.arithmetic.stages,
                replication=self.replication,
                length=self.arithmetic.length,
                first_step=self._first_step,
                record=self.record,
                actions=Actions(end_epoch, self._save),
                every_steps=self.settings.checkpoint.every_steps,
                stop=stop,
                steps_per_call=self.settings.train.steps_per_call,
            )

    def _save(self, step: int) -> None:
        self.age()
        self.record.read()  # a collective
        if not self.replication.is_chief:
            return
        progress: dict[str, Any] = {
            "standing": asdict(self.standing),
            "epoch_seconds": self.record.seconds,
            "epoch_timed_examples": self.record.timed_examples,
        }
        self._checkpoints.save(step, self.state.arrays(), progress)

    def age(self) -> None:
        """Bring the run's lived time up to date."""
        now = time.monotonic()
        self.standing.wall_seconds += now - self._born
        self._born = now
