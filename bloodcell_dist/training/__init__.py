"""The training: update rules, the split step, the loop, checkpoints, replication."""
