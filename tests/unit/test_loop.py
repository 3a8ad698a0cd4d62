"""The loop: which steps run, what is saved when, and how a stopped run goes on. The step itself is a fake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from bloodcell_dist.data.sampling import IndexPlan
from bloodcell_dist.errors import Preempted
from bloodcell_dist.training.loop import Actions, Length, call_lengths, run_loop
from bloodcell_dist.training.placement import Batch
from bloodcell_dist.training.preemption import StopRequest
from bloodcell_dist.training.record import EpochRecord
from bloodcell_dist.training.replication import SingleDevice
from bloodcell_dist.training.stages import lay_out
from bloodcell_dist.training.step import StepOutput

STEPS_PER_EPOCH = 5
PLAN = IndexPlan(labels=np.arange(20) % 2, global_batch_size=4, seed=3)
STAGES = lay_out([(1.0, "all", 1.0)], total_steps=15, learning_rate=1.0, warmup_steps=3, shape="cosine")


def feed(batches: np.ndarray, lengths: Sequence[int]) -> Iterator[Batch]:
    return (Batch(*parts) for parts in SingleDevice().feed(batches, lengths))


class Diary:
    """A fake step, and all that the loop does around it, in order."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[tuple[str, Any]] = []
        self.batches: dict[int, np.ndarray] = {}
        self.rates: dict[int, float] = {}
        self.calls: list[int] = []
        self.record = EpochRecord(SingleDevice())
        self.stop = StopRequest()
        self._stop_at = stop_at

    def step(self, batch: Batch, step: int, rates: Sequence[float]) -> list[StepOutput]:
        self.calls.append(len(rates))
        return [self._one(np.asarray(batch.indices)[place], step + place, rate) for place, rate in enumerate(rates)]

    def _one(self, indices: np.ndarray, step: int, rate: float) -> StepOutput:
        self.events.append(("step", step))
        self.batches[step], self.rates[step] = indices, rate
        if step == self._stop_at:
            self.stop.signal_name = "SIGUSR1"
        return StepOutput(np.full(4, step, np.float32), np.full((4, 2), 0.5, np.float32), 1.0, True, 0.0)  # type: ignore[arg-type]

    def end_epoch(self, epoch: int, step: int) -> None:
        self.events.append(("end_epoch", (epoch, step, sorted({int(loss) for loss in self.record.losses()}))))

    def save(self, step: int) -> None:
        self.events.append(("save", step))
        self.saved = (step, self.record.arrays())

    def settle(self) -> None:
        self.events.append(("settle", None))

    def run(
        self, first_step: int = 0, total_steps: int = 15, every_steps: int | None = None, steps_per_call: int = 1
    ) -> Diary:
        run_loop(
            self.step,
            feed=feed,
            plan=PLAN,
            stages=STAGES,
            replication=SingleDevice(),
            length=Length(STEPS_PER_EPOCH, total_steps),
            first_step=first_step,
            record=self.record,
            actions=Actions(self.end_epoch, self.save, self.settle),
            every_steps=every_steps,
            stop=self.stop,
            steps_per_call=steps_per_call,
        )
        return self

    def of(self, kind: str) -> list[Any]:
        return [value for name, value in self.events if name == kind]


def test_steps_run_in_order_with_the_batches_and_rates_of_the_plan() -> None:
    diary = Diary().run()
    assert diary.of("step") == list(range(15))
    for step in range(15):
        np.testing.assert_array_equal(diary.batches[step], PLAN.batch_at(step))
        assert diary.batches[step].dtype == np.int32
        assert diary.rates[step] == STAGES.learning_rate(step)


def test_an_epoch_ends_with_its_own_record_then_a_checkpoint() -> None:
    diary = Diary().run()
    assert diary.of("end_epoch") == [(0, 5, [0, 1, 2, 3, 4]), (1, 10, [5, 6, 7, 8, 9]), (2, 15, [10, 11, 12, 13, 14])]
    assert diary.of("save") == [5, 10, 15]
    ends = [index for index, (kind, _) in enumerate(diary.events) if kind == "end_epoch"]
    assert [diary.events[index + 1] for index in ends] == [("save", 5), ("save", 10), ("save", 15)]
    assert diary.saved == (15, {})


@pytest.mark.parametrize(
    ("every_steps", "saves"),
    [
        (None, [5, 10, 15]),
        (1, list(range(1, 16))),
        (3, [3, 5, 6, 9, 10, 12, 15]),
        (5, [5, 10, 15]),
        (7, [5, 7, 10, 14, 15]),
    ],
)
def test_checkpoints_come_every_so_many_steps_and_once_at_each_end(every_steps: int | None, saves: list[int]) -> None:
    assert Diary().run(every_steps=every_steps).of("save") == saves


@pytest.mark.parametrize("first", range(15))
def test_a_run_goes_on_from_any_step_and_visits_the_rest(first: int) -> None:
    whole = Diary().run()
    before = Diary()
    if first:
        before = Diary(stop_at=first - 1)
        with pytest.raises(Preempted):
            before.run()
    again = Diary()
    if first:
        again.record.restore(before.saved[1])
    again.run(first_step=first)
    assert again.of("step") == list(range(first, 15))
    for step in range(first, 15):
        np.testing.assert_array_equal(again.batches[step], whole.batches[step])
    assert before.of("end_epoch") + again.of("end_epoch") == whole.of("end_epoch")


@pytest.mark.parametrize(("stop_at", "step"), [(0, 1), (2, 3), (4, 5), (8, 9)])
def test_a_stop_request_saves_and_raises(stop_at: int, step: int) -> None:
    diary = Diary(stop_at=stop_at)
    with pytest.raises(Preempted, match=f"stopped by SIGUSR1 after step {step}, which is saved; run the same command"):
        diary.run()
    assert diary.of("step")[-1] == stop_at
    assert diary.events[-2:] == [("save", step), ("settle", None)]  # only what is on disk is called saved


def test_a_stop_after_the_last_step_lets_the_run_finish() -> None:
    assert Diary(stop_at=14).run().of("save") == [5, 10, 15]


def test_a_stop_on_another_rank_is_named_so() -> None:
    class TwoRanks(SingleDevice):
        def any(self, flag: bool) -> bool:
            return True

    diary = Diary()
    with pytest.raises(Preempted, match="stopped by a signal to another rank after step 1"):
        run_loop(
            diary.step,
            feed=feed,
            plan=PLAN,
            stages=STAGES,
            replication=TwoRanks(),
            length=Length(STEPS_PER_EPOCH, 15),
            first_step=0,
            record=diary.record,
            actions=Actions(diary.end_epoch, diary.save, diary.settle),
            every_steps=None,
            stop=diary.stop,
        )


@pytest.mark.parametrize(
    ("total", "ends"),
    [(1, [(0, 1)]), (5, [(0, 5)]), (7, [(0, 5), (1, 7)]), (12, [(0, 5), (1, 10), (2, 12)])],
)
def test_max_steps_cuts_the_last_epoch(total: int, ends: list[tuple[int, int]]) -> None:
    diary = Diary().run(total_steps=total)
    assert diary.of("step") == list(range(total))
    assert [end[:2] for end in diary.of("end_epoch")] == ends
    assert diary.of("save")[-1] == total


@pytest.mark.parametrize("total", [7, 10, 15])
def test_a_run_whose_steps_are_all_made_trains_nothing_and_ends_no_epoch_again(total: int) -> None:
    """A run may be killed after its last checkpoint, before its report."""
    assert Diary().run(first_step=total, total_steps=total).events == [("settle", None)]


@pytest.mark.parametrize(
    ("total", "epochs", "ends"), [(15, 3, [5, 10, 15]), (12, 3, [5, 10, 12]), (3, 1, [3]), (5, 1, [5])]
)
def test_length_counts_epochs_and_their_ends(total: int, epochs: int, ends: list[int]) -> None:
    length = Length(STEPS_PER_EPOCH, total)
    assert length.epochs == epochs
    assert [length.end_of(epoch) for epoch in range(epochs)] == ends


@pytest.mark.parametrize(
    ("total", "step", "finished"),
    [(15, 0, 0), (15, 4, 0), (15, 5, 1), (15, 14, 2), (15, 15, 3), (12, 11, 2), (12, 12, 3)],
)
def test_length_knows_which_epochs_are_over(total: int, step: int, finished: int) -> None:
    assert Length(STEPS_PER_EPOCH, total).finished_epochs(step) == finished


def test_seconds_of_training_leave_out_saving_and_evaluating(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("bloodcell_dist.training.loop.time.monotonic", lambda: now[0])
    seen: list[float] = []
    timed: list[int] = []

    class Slow(Diary):
        def step(self, batch: Batch, step: int, rates: Sequence[float]) -> list[StepOutput]:
            now[0] += 1.0
            return super().step(batch, step, rates)

        def save(self, step: int) -> None:
            now[0] += 100.0

        def end_epoch(self, epoch: int, step: int) -> None:
            seen.append(self.record.times.seconds)
            timed.append(self.record.times.examples)
            now[0] += 1000.0

    Slow().run(every_steps=2)
    assert timed == [16, 20, 20]
    assert seen == [4.0, 5.0, 5.0]  # the first step of a life compiles, and is not counted


@pytest.mark.parametrize(
    ("first", "end", "steps_per_call", "stops", "lengths"),
    [
        (0, 5, 1, (), [1] * 5),
        (0, 8, 4, (), [4, 4]),
        (0, 7, 3, (), [3, 3, 1]),
        (5, 9, 4, (), [4]),
        (0, 8, 4, (4,), [4, 4]),
        (0, 8, 4, (3,), [1, 1, 1, 4, 1]),
        (0, 8, 4, (3, 6), [1, 1, 1, 1, 1, 1, 1, 1]),
        (7, 7, 4, (), []),
        (0, 3, 8, (), [1, 1, 1]),
    ],
)
def test_calls_are_cut_where_the_host_has_something_to_do(
    first: int, end: int, steps_per_call: int, stops: tuple[int, ...], lengths: list[int]
) -> None:
    assert call_lengths(first, end, steps_per_call, lambda step: step in stops) == lengths


def test_several_steps_per_call_are_the_same_training() -> None:
    one, several = Diary().run(every_steps=7), Diary().run(every_steps=7, steps_per_call=2)
    assert several.calls == [2, 2, 1, 2, 2, 1, 2, 2, 1]
    assert several.events == one.events
    assert several.rates == one.rates
    for step in range(15):
        np.testing.assert_array_equal(several.batches[step], one.batches[step])
