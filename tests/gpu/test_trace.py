"""The sums that the tests of a GPU's copies rely on; needs no GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest


@pytest.fixture
def space() -> Any:
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    return xplane_pb2.XSpace()


def add_plane(space: Any, name: str, events: Sequence[tuple[str, str, str]], *, by_reference: bool = True) -> None:
    """A plane with events of (name, stat, the stat's text); CUPTI's collector gives the texts by reference."""
    plane = space.planes.add(name=name)
    line = plane.lines.add(name="Stream #7(MemcpyH2D,Compute)")
    for number, (event_name, stat_name, text) in enumerate(events, start=1):
        plane.event_metadata[number].name = event_name
        plane.stat_metadata[10 * number].name = stat_name
        plane.stat_metadata[10 * number + 1].name = text
        stat = line.events.add(metadata_id=number).stats.add(metadata_id=10 * number)
        if by_reference:
            stat.ref_value = 10 * number + 1
        else:
            stat.str_value = text


def copy(direction: str, size: int) -> tuple[str, str, str]:
    return direction, "memcpy_details", f"kind_src:pageable kind_dst:device size:{size} dest:0 async:1"


@pytest.mark.parametrize("by_reference", [True, False])
def test_copies_are_summed_by_direction(space: Any, copies_in: Callable[[Any], Any], by_reference: bool) -> None:
    events = [copy("MemcpyH2D", 4096), copy("MemcpyD2H", 32), copy("MemcpyD2D", 999), copy("MemcpyH2D", 4)]
    kernel = ("fusion_1", "kernel_details", "regs:32 grid:8,1,1 block:256,1,1")
    add_plane(space, "/device:GPU:0", [*events, kernel], by_reference=by_reference)
    assert copies_in(space) == (4100, 32, 1)


def test_several_gpus_are_summed_and_the_hosts_view_is_left_out(space: Any, copies_in: Callable[[Any], Any]) -> None:
    for name in ("/device:GPU:0", "/device:GPU:1", "/host:CUPTI", "/host:CPU"):
        add_plane(space, name, [copy("MemcpyH2D", 100)])
    assert copies_in(space).to_device == 200


def test_a_copy_of_unknown_size_is_no_copy_of_nothing(space: Any, copies_in: Callable[[Any], Any]) -> None:
    add_plane(space, "/device:GPU:0", [("MemcpyH2D", "memcpy_details", "kind:pinned")])
    with pytest.raises(AssertionError, match="unknown size: 'kind:pinned'"):
        copies_in(space)
