"""How replicas work together: the four ways to run, behind one small interface.

worker = one process; replica = one copy of the model on one device; rank 0 is the chief. The step computes gradients on
each replica, asks for their sum here, then applies it. Nothing else in the package imports `tf.distribute` or Horovod.
"""

from bloodcell_dist.training.replication.base import Replication
from bloodcell_dist.training.replication.join import Joined, join, replicate
from bloodcell_dist.training.replication.single import SingleDevice

__all__ = ["Joined", "Replication", "SingleDevice", "join", "replicate"]
