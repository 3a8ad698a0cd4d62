"""What was measured, as numbers with units in their names; pure arithmetic over seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value per round."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Speed:
    """How fast batches are worked off."""

    images_per_s: Spread
    batch_ms: Spread

    @classmethod
    def of(cls, seconds: Sequence[float], pictures: int) -> Speed:
        """Of batches of so many pictures; seconds: a batch's mean, for each round."""
        return cls(Spread.of([pictures / each for each in seconds]), Spread.of([1e3 * each for each in seconds]))


def ratio(of: Sequence[float], to: Sequence[float]) -> Spread:
    """One by the other, round by round: what disturbs a round disturbs both."""
    return Spread.of([one / other for one, other in zip(of, to, strict=True)])


@dataclass(frozen=True)
class Skipped:
    """A part that cannot be measured here, and why."""

    skipped: str


@dataclass(frozen=True)
class StepFigures:
    """The package's own step.

    Attributes:
        policy: augment.policy.
        global_batch_size: pictures per step.
        augmented: with that policy.
        plain: with the policy none; None if that is the policy.
        augmentation_share: of the step's time, what is more than without.
        first_step_s: with tracing and compiling.
        peak_memory_mb: at most, in `peak_memory_of`: a GPU, or the whole process.
    """

    policy: str
    global_batch_size: int
    augmented: Speed
    plain: Speed | None
    augmentation_share: Spread | None
    first_step_s: float
    peak_memory_mb: float
    peak_memory_of: str


@dataclass(frozen=True)
class AugmentationFigures:
    """Each policy alone, on one device of each worker; `draws` batches per round."""

    batch_size: int
    draws: int
    policies: Mapping[str, Speed]


@dataclass(frozen=True)
class Feed:
    """One placement: batches fed to nobody, and the share of a step's time for which the loop waits for them."""

    alone: Speed
    waiting_share: Spread


@dataclass(frozen=True)
class InputFigures:
    """The feed by placement; `host_reads_from`: a memory map of the decoded cells, or memory where none are cached."""

    global_batch_size: int
    placements: Mapping[str, Feed]
    host_reads_from: str
    left_out: str | None = None


@dataclass(frozen=True)
class Sum:
    """An all-reduce; GB/s of the vector, and of what each link carries in a ring."""

    megabytes: float
    reduce_ms: Spread
    algorithm_gb_per_s: Spread
    bus_gb_per_s: Spread

    @classmethod
    def of(cls, seconds: Sequence[float], num_bytes: int, replicas: int) -> Sum:
        """Of vectors of so many bytes; seconds: a sum's mean, for each round.

        In a ring each replica sends and receives 2(n-1)/n of the vector, which is what a network's speed compares to.
        """
        rates = [num_bytes / 1e9 / each for each in seconds]
        links = 2 * (replicas - 1) / replicas
        return cls(
            num_bytes / 1e6,
            Spread.of([1e3 * each for each in seconds]),
            Spread.of(rates),
            Spread.of([links * rate for rate in rates]),
        )


@dataclass(frozen=True)
class AllreduceFigures:
    """The sum of the network's gradients over all replicas, by the type in which they travel."""

    replicas: int
    parameters: int
    formats: Mapping[str, Sum]


@dataclass(frozen=True)
class ScalingFigures:
    """One replica, all of them each on its own, all together; each has the same number of pictures.

    Attributes:
        alone, apart, together: images/s over all that work; apart is None where a process has several replicas.
        efficiency: together / (replicas x alone).
        of_apart: together / apart; what the exchange costs, whatever the replicas share.
        how: what was measured, in words.
    """

    replicas: int
    replica_batch_size: int
    alone_images_per_s: Spread
    apart_images_per_s: Spread | None
    together_images_per_s: Spread
    efficiency: Spread
    of_apart: Spread | None
    how: str


def scaling_figures(seconds: Mapping[str, Sequence[float]], pictures: int, replicas: int, how: str) -> ScalingFigures:
    """From the seconds per update of `alone`, `together` and perhaps `apart`; pictures: of each replica."""
    alone, together, apart = seconds["alone"], seconds["together"], seconds.get("apart")
    return ScalingFigures(
        replicas=replicas,
        replica_batch_size=pictures,
        alone_images_per_s=Spread.of([pictures / each for each in alone]),
        apart_images_per_s=Spread.of([replicas * pictures / each for each in apart]) if apart else None,
        together_images_per_s=Spread.of([replicas * pictures / each for each in together]),
        efficiency=ratio(alone, together),
        of_apart=ratio(apart, together) if apart else None,
        how=how,
    )


Figures = StepFigures | AugmentationFigures | InputFigures | AllreduceFigures | ScalingFigures | Skipped
