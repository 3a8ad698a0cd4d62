"""The parts of one run put together: built, resumed, trained."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bloodcell_dist.arithmetic import work_out
from bloodcell_dist.assembly import Assembly
from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.data.prepare import Prepared
from bloodcell_dist.evaluation.epochs import EpochEnd, Standing
from bloodcell_dist.history import rewrite_metrics
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.runtime import describe_environment
from bloodcell_dist.settings import Settings
from bloodcell_dist.training.checkpoint import BackgroundSaves, Checkpoint, Checkpoints
from bloodcell_dist.training.checks import with_checks
from bloodcell_dist.training.loop import Actions, run_loop
from bloodcell_dist.training.preemption import StopRequest
from bloodcell_dist.training.profile import Profile
from bloodcell_dist.training.record import EpochRecord, Times
from bloodcell_dist.training.replication import Replication
from bloodcell_dist.training.step import StepFunction

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
        self._saves = BackgroundSaves(Checkpoints(run.checkpoints, settings.checkpoint.keep))
        self._born = time.monotonic()
        self._num_gpus = replication.num_replicas if any("GPU" in name for name in self.environment["devices"]) else 0
        self._first_step = 0
        self.assembly = Assembly(settings, data, self.arithmetic, replication, self.record, weights)
        self.model, self.evaluation = self.assembly.model, self.assembly.evaluation

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
            from bloodcell_dist.data.cleaning_report import write_cleaning_report  # the chief alone needs matplotlib

            write_cleaning_report(self.data.cleaning, self.data.loaded, self.run.path)
        atomic_write_json(self.run.environment, self.environment)

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Take up a checkpoint if there is one. A collective: the chief has it, and gives the others what they need."""
        if checkpoint is not None:
            self.assembly.state.restore(checkpoint.arrays)
            self.assembly.update.begin_scaling()
            log.info("the run continues after step %d of %d", checkpoint.step, self.arithmetic.length.total_steps)
        found = checkpoint and {"step": checkpoint.step, "progress": checkpoint.progress}
        taken_up = self.replication.share(found)
        if taken_up:
            self._first_step, progress = taken_up["step"], taken_up["progress"]
            self.standing = Standing(**progress["standing"])
            self.record.times = Times(**progress.get("epoch_times", {}))  # older checkpoints have none
        self.replication.broadcast(self.assembly.state.variables())
        self.assembly.step.enter(min(self._first_step, self.arithmetic.length.total_steps - 1))
        if self.replication.is_chief:
            rewrite_metrics(self.run.metrics, self.arithmetic.length.finished_epochs(self._first_step))

    def train(self, stop: StopRequest, profile: bool = False) -> None:
        """Train to the end of the run. Raises Preempted or TrainingFailed.

        Args:
            stop: looked at after every step; Ctrl-C sets it too.
            profile: trace a few steps for TensorBoard, on the chief.
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
        step: StepFunction = self.assembly.step
        if self.settings.train.checks:
            step = with_checks(
                self.assembly.step,
                self.data.train.labels,
                len(self.data.train.class_names),
                self.replication.local,
                loss_scaling=self.assembly.scales_loss,
            )
        with stop.listening("INT"):
            run_loop(
                step,
                feed=self.assembly.cells.feed,
                plan=self.arithmetic.plan,
                stages=self.arithmetic.stages,
                replication=self.replication,
                length=self.arithmetic.length,
                first_step=self._first_step,
                record=self.record,
                actions=Actions(end_epoch, self._save, self._saves.settle),
                every_steps=self.settings.checkpoint.every_steps,
                stop=stop,
                steps_per_call=self.settings.train.steps_per_call,
                profile=Profile(self.run.tensorboard if profile and self.replication.is_chief else None),
            )

    def _save(self, step: int) -> None:
        self.age()
        self.record.read()  # a collective
        if not self.replication.is_chief:
            return
        progress: dict[str, Any] = {
            "standing": asdict(self.standing),
            "epoch_times": asdict(self.record.times),
        }
        self._saves.save(step, self.assembly.state.arrays(), progress)

    def age(self) -> None:
        """Bring the run's lived time and its GPUs' up to date."""
        now = time.monotonic()
        self.standing.wall_seconds += now - self._born
        self.standing.gpu_seconds += (now - self._born) * self._num_gpus
        self._born = now
