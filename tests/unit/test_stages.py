"""Stages: which step belongs to which, the rates, and when the step function is built anew."""

from __future__ import annotations

from typing import Any

import pytest

from bloodcell_dist.errors import UserError
from bloodcell_dist.training.stages import StagedStep, lay_out


def three(total_steps: int = 100, warmup_steps: int = 0, shape: Any = "constant"):
    parts = [(0.1, "head", 2.0), (0.4, "last:0.4", 1.0), (0.5, "all", 0.1)]
    return lay_out(parts, total_steps=total_steps, learning_rate=0.01, warmup_steps=warmup_steps, shape=shape)


def test_stages_follow_each_other_without_a_gap() -> None:
    stages = three()
    assert [(stage.train, stage.first_step, stage.end_step) for stage in stages.stages] == [
        ("head", 0, 10),
        ("last:0.4", 10, 50),
        ("all", 50, 100),
    ]
    assert stages.first_steps == {0, 10, 50}
    for step, train in [(0, "head"), (9, "head"), (10, "last:0.4"), (49, "last:0.4"), (50, "all"), (250, "all")]:
        assert stages.at(step).train == train


def test_each_stage_has_its_multiple_of_the_rate() -> None:
    stages = three()
    assert [stages.learning_rate(step) for step in (0, 9, 10, 49, 50, 99)] == pytest.approx(
        [0.02, 0.02, 0.01, 0.01, 0.001, 0.001]
    )


def test_each_stage_warms_up_and_decays_by_itself() -> None:
    stages = three(warmup_steps=20, shape="cosine")
    for stage, peak in zip(stages.stages, (0.02, 0.01, 0.001), strict=True):
        rates = [stages.learning_rate(step) for step in range(stage.first_step, stage.end_step)]
        warmup = min(20, len(rates) // 2)
        assert rates[0] == pytest.approx(peak / (warmup + 1))
        assert max(rates) == rates[warmup] == pytest.approx(peak)
        assert rates[-1] < 0.25 * peak


@pytest.mark.parametrize(("warmup", "expected"), [(3, 3), (20, 15)])
def test_a_warm_up_takes_half_of_a_stage_at_most(warmup: int, expected: int) -> None:
    stages = lay_out([(1.0, "all", 1.0)], total_steps=30, learning_rate=0.1, warmup_steps=warmup, shape="cosine")
    assert stages.stages[0].schedule.warmup_steps == expected


def test_the_stage_before_another() -> None:
    stages = three()
    assert [stages.before(stage) for stage in stages.stages] == [None, *stages.stages[:2]]
    only = lay_out([(1.0, "all", 1.0)], total_steps=3, learning_rate=0.1, warmup_steps=0, shape="constant")
    assert only.before(only.at(99)) is None


def test_the_stage_before_is_found_though_two_train_the_same() -> None:
    parts = [(0.5, "all", 1.0), (0.5, "all", 1.0)]
    stages = lay_out(parts, total_steps=10, learning_rate=0.1, warmup_steps=0, shape="constant")
    assert stages.before(stages.at(9)) is stages.at(0)
    assert stages.before(stages.at(0)) is None


def test_the_plan_in_one_line() -> None:
    assert str(three()) == "head in steps 1 to 10, last:0.4 in steps 11 to 50, all in steps 51 to 100"


@pytest.mark.parametrize(("shares", "ends"), [((0.33, 0.33, 0.33), [10, 20, 30]), ((0.5, 0.505), [15, 30])])
def test_shares_that_nearly_add_up_fill_the_run(shares: tuple[float, ...], ends: list[int]) -> None:
    parts = [(share, "all", 1.0) for share in shares]
    stages = lay_out(parts, total_steps=30, learning_rate=1.0, warmup_steps=0, shape="constant")
    assert [stage.end_step for stage in stages.stages] == ends


def test_a_stage_without_a_step_is_the_persons_mistake() -> None:
    message = r"finetune.stages\[0\].share=0.1 of 4 steps is less than one step; make it larger, raise train.epochs"
    with pytest.raises(UserError, match=message):
        three(total_steps=4)


def test_a_stage_begins_with_its_first_step_and_only_then() -> None:
    begun: list[tuple[str, bool]] = []

    def update(*given: Any) -> Any:
        return *given, begun[-1]

    step: Any = StagedStep(three(), lambda stage, now: begun.append((stage.train, now)), update)
    head, last, everything = ("head", False), ("last:0.4", True), ("all", False)
    assert [step("rows", number, [0.5]) for number in (8, 9, 10, 11)] == [
        ("rows", 8, [0.5], head),
        ("rows", 9, [0.5], head),
        ("rows", 10, [0.5], last),
        ("rows", 11, [0.5], last),
    ]
    assert begun == [head, last]
    step.enter(99)
    assert begun == [head, last, everything]
    assert step("rows", 99, [0.5]) == ("rows", 99, [0.5], everything)
    assert begun == [head, last, everything]
