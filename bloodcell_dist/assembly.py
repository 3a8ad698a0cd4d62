"""The parts that train put together: network, augmentation, optimizer, step, evaluation, and the change of stages."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from bloodcell_dist.arithmetic import Arithmetic
from bloodcell_dist.augment.policies import Policy, build_policy
from bloodcell_dist.data.prepare import Prepared
from bloodcell_dist.data.sampling import class_weights
from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.epochs import Evaluation
from bloodcell_dist.evaluation.predict import make_forward
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.models.finetune import Depth, Part, batchnorm_layers, weight_names
from bloodcell_dist.models.transfer import load_weights
from bloodcell_dist.settings import Settings
from bloodcell_dist.training.losses import make_loss
from bloodcell_dist.training.optimizers import make_rule
from bloodcell_dist.training.placement import place
from bloodcell_dist.training.record import EpochRecord
from bloodcell_dist.training.replication import Replication
from bloodcell_dist.training.stages import Stage, StagedStep
from bloodcell_dist.training.state import TrainingState
from bloodcell_dist.training.step import Compile, Step, gradient_function
from bloodcell_dist.training.update import Update

log = logging.getLogger(__name__)


def what_to_compile(xla: str, policy: Policy) -> Compile:
    """By `train.xla` as resolved (on, parts or off), this machine's devices, and whether a policy can be compiled."""
    whole = xla == "on" and policy.deterministic
    some = xla in ("on", "parts")
    augments = policy.deterministic and bool(policy.layers)  # nothing to compile: a copy of all pictures less
    gpus = tf.config.list_logical_devices("GPU")
    return Compile(model=whole, parts=some and augments, kernels=some and not whole and not gpus)


class Assembly:
    """A network with all that trains and evaluates it.

    Args:
        settings: resolved.
        data: the cells.
        arithmetic: of the run.
        replication: how the replicas work together.
        record: of the running epoch; part of the state.
        weights: Keras file that the network begins with, on the chief; None draws its weights.

    Attributes:
        model: raw pictures to logits.
        update: the optimizer's state.
        state: what a checkpoint holds.
        cells: where the training pictures lie; feeds the step.
        step: makes updates, each in its stage.
        evaluation: predicts.
    """

    def __init__(
        self,
        settings: Settings,
        data: Prepared,
        arithmetic: Arithmetic,
        replication: Replication,
        record: EpochRecord,
        weights: Path | None,
    ) -> None:
        self._settings, self._data, self._arithmetic = settings, data, arithmetic
        self._policy = self._augmentation()
        on, parts = settings.train.xla == "on", settings.train.xla in ("on", "parts")
        self._compile = what_to_compile(settings.train.xla, self._policy)
        # Only what every worker makes in the same order: with several, each variable made in here is a collective.
        with replication.scope():
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
            self.update = self._optimizer(parts)
        if weights is not None:
            load_weights(self.model, weights, data.train.class_names)
            self.update.restart_averages()
        self.cells = place(settings.data.placement, data.train.images, data.train.labels, replication)
        self._step = Step(
            self._gradients(),
            self.update,
            replication,
            cells=self.cells,
            per_replica_batch_size=arithmetic.per_replica_batch_size,
        )
        self.step = StagedStep(arithmetic.stages, self._begin_stage, self._step)
        self.state = TrainingState(self.model, self.update, record)
        self.evaluation = Evaluation(
            self.model,
            make_forward(self.model, logits=True, xla=on),
            self.state,
            replication,
            train=data.train,
            plan=arithmetic.plan,
            batch_size=settings.evaluate.batch_size_per_replica,
            xla=on,
        )

    def _begin_stage(self, stage: Stage, now: bool) -> None:
        """Freeze what does not train in a stage; the step, the update and the evaluation are traced anew for it.

        Args:
            stage: to be in.
            now: it begins at this step; else it began before a restart.
        """
        previous = self._arithmetic.stages.before(stage)
        if now and previous is not None:
            self._settle_statistics(previous, stage)
        variables = self._freeze(stage)
        self.update.select([self._places[id(variable)] for variable in variables])
        self._step.renew(self._gradients())
        self.evaluation.layers_changed()
        if len(self._settings.finetune.stages) > 1:
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
        return self._depth.freeze(Part(stage.train, self._settings.finetune.batchnorm == "freeze"))

    def _augmentation(self) -> Policy:
        settings, size = self._settings, self._arithmetic.per_replica_batch_size
        policy = build_policy(
            settings.augment.policy,
            engine=settings.augment.engine,
            image_size=settings.data.image_size,
            num_classes=len(self._data.train.class_names),
            magnitude=settings.augment.magnitude,
        )
        if size % policy.group_size:
            parts = self._settings.train.global_batch_size // size
            unit = parts * policy.group_size
            fitting = -(-self._settings.train.global_batch_size // unit) * unit
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
        settings, labels, policy = self._settings, self._data.train.labels, self._policy
        num_classes = len(self._data.train.class_names)
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
        optimizer, model = self._settings.optimizer, self.model
        trained = {id(variable) for stage in self._arithmetic.stages.stages for variable in self._freeze(stage)}
        rates = self._depth.rates(self._settings.finetune.layer_decay)
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
            loss_scaling=self.scales_loss,
            xla=xla,
        )

    @property
    def scales_loss(self) -> bool:
        """Whether anything is computed or sent as float16, whose small numbers are few."""
        settings = self._settings
        return settings.train.precision == "mixed_float16" or settings.distribute.gradient_compression == "float16"
