"""A trace of some calls of the step, and of no others."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from bloodcell_dist.training.profile import LEFT_OUT, TRACED, Profile

pytestmark = pytest.mark.slow  # the profiler takes seconds to write


def run(profile: Profile, calls: int, compiles: tuple[int, ...] = (0,)) -> None:
    """So many calls of a step that adds numbers."""
    step = tf.function(lambda numbers: numbers + 1.0, autograph=False)
    for call in range(calls):
        with profile.around(call, call in compiles):
            step(tf.ones([4])).numpy()


def traced_steps(folder: Path) -> list[int]:
    """The numbers of the steps in the only trace."""
    [file] = folder.rglob("*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(file.read_bytes())
    found = set()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            stats = {plane.stat_metadata[stat.metadata_id].name: stat for stat in event.stats}
            if plane.event_metadata[event.metadata_id].name == "train" and "step_num" in stats:
                found.add(stats["step_num"].int64_value)
    return sorted(found)


def test_ten_calls_are_traced_after_those_that_compile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    profile = Profile(tmp_path)
    run(profile, 30)
    assert traced_steps(tmp_path) == list(range(LEFT_OUT + 1, LEFT_OUT + 1 + TRACED))
    assert caplog.messages == [f"traced 10 calls of the step: tensorboard --logdir {tmp_path}"]
    profile.end()  # nothing is left to write


def test_a_run_that_ends_sooner_leaves_what_there_was(tmp_path: Path) -> None:
    profile = Profile(tmp_path)
    run(profile, LEFT_OUT + 4)
    profile.end()
    assert traced_steps(tmp_path) == [LEFT_OUT + 1, LEFT_OUT + 2, LEFT_OUT + 3]


def test_a_new_stage_compiles_and_is_waited_for(tmp_path: Path) -> None:
    profile = Profile(tmp_path)
    run(profile, 30, compiles=(0, 2))
    assert traced_steps(tmp_path)[0] == 2 + LEFT_OUT + 1


@pytest.mark.parametrize("calls", [0, LEFT_OUT + 1])
def test_a_run_too_short_leaves_nothing(tmp_path: Path, calls: int) -> None:
    profile = Profile(tmp_path)
    run(profile, calls)
    profile.end()
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_another_trace_may_run(tmp_path: Path) -> None:
    with tf.profiler.experimental.Profile(str(tmp_path)):  # there can be one at a time
        run(Profile(None), LEFT_OUT + TRACED)
    assert traced_steps(tmp_path) == []
