"""What the parts share: the settings of a run and its cells, and the networks that train on them, each built once."""

from __future__ import annotations

import functools

from bloodcell_dist import logs
from bloodcell_dist.bench.trainer import Trainer
from bloodcell_dist.config import replace
from bloodcell_dist.data.prepare import Prepared
from bloodcell_dist.settings import Settings
from bloodcell_dist.training.replication import Replication, SingleDevice


class Workbench:
    """The cells, and networks to measure.

    Args:
        settings: resolved.
        data: the cells.
        replication: of all replicas.
        rounds: how often each thing is measured.
    """

    def __init__(self, settings: Settings, data: Prepared, replication: Replication, rounds: int) -> None:
        self.settings, self.data, self.replication, self.rounds = settings, data, replication, rounds

    @functools.cached_property
    def trainer(self) -> Trainer:
        """As the settings say, of all replicas."""
        return Trainer(self.settings, self.data, self.replication)

    @functools.cached_property
    def plain(self) -> Trainer:
        """Without augmentation."""
        return self._other({"augment.policy": "none", "data.placement": self.trainer.placement})

    @functools.cached_property
    def alone(self) -> Trainer:
        """One replica on one device of this worker, which knows of no others; with a replica's share of a batch."""
        changes = {"train.global_batch_size": self.replica_batch_size, "data.placement": self.trainer.placement}
        return self._other(changes, SingleDevice())

    def placed(self, placement: str) -> Trainer:
        """With the cells elsewhere; `auto`: on the device if they fit there."""
        return self._other({"data.placement": placement})

    @property
    def replica_batch_size(self) -> int:
        """Pictures of a replica per update."""
        return self.settings.train.global_batch_size // self.replication.num_replicas

    def _other(self, changes: dict[str, object], replication: Replication | None = None) -> Trainer:
        with logs.silence():  # the first one has said it all
            return Trainer(replace(self.settings, changes), self.data, replication or self.replication)
