"""All ranks of a launcher look, each at its own; rank 0 collects what they found, and measures with them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from bloodcell_dist import runtime  # before all others: it imports TensorFlow quietly
from bloodcell_dist.cluster.ending import Ending
from bloodcell_dist.cluster.environment import ProcessInfo
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.doctor import measure
from bloodcell_dist.doctor.alone import Read, look_alone
from bloodcell_dist.doctor.asked import Asked, judge_asked
from bloodcell_dist.doctor.between import judge_allreduce, judge_clocks, judge_network, judge_nodes
from bloodcell_dist.doctor.devices import look_at_gpus
from bloodcell_dist.doctor.examination import Examination, as_node, examine, judge
from bloodcell_dist.doctor.facts import in_words
from bloodcell_dist.doctor.findings import Finding, among_ranks, error, explained
from bloodcell_dist.doctor.layout import layout_of
from bloodcell_dist.doctor.report import BAD, Report
from bloodcell_dist.errors import RunEnded
from bloodcell_dist.launch import launched
from bloodcell_dist.training.replication import Joined, Replication, replicate

MEASURING_S = 120.0
"""A sum of gradients that takes longer hangs."""

SAY_AFTER_S = 30.0
LOST_S = 60.0

_NETWORK = (
    "the interface by which the nodes reach one another: NCCL_SOCKET_IFNAME, HOROVOD_GLOO_IFACE; is there a firewall?"
)


def look_together(
    read: Read, process: ProcessInfo, problem: str | None, strategy: str, report: Report, *, show_traceback: bool
) -> int:
    """The exit status of this rank. If the ranks do not meet, rank 0 says what it sees by itself.

    Args:
        read: what is asked for; only rank 0's answer counts.
        process: this one; one without others looks with TensorFlow too.
        problem: why the launcher's variables make no sense.
        strategy: the setting distribute.strategy.
        report: what rank 0 shows.
        show_traceback: of checks that fail themselves, on standard error.
    """
    met = False
    try:
        with _told_to_wait(process) as waiting, launched(process, strategy) as joined:
            waiting.cancel()
            met = True
            _look(read, joined, problem, report, show_traceback)
            status = int(joined.workers.share(report.exit_status if process.is_chief else None))
            if process.is_chief:
                report.show()
        return status
    except RunEnded as failure:
        if process.is_chief:
            if not met:
                report.lines += look_alone(read, process, problem, show_traceback=show_traceback)
                report.lines.append(explained("ranks", f"the processes do not meet: {failure}", _NETWORK))
            report.show()
        return BAD


@contextlib.contextmanager
def _told_to_wait(process: ProcessInfo) -> Iterator[threading.Timer]:
    """Say so, once, if the other ranks take long to come."""
    text = f"bloodcell-dist: waits for the other {process.world_size - 1} processes"
    timer = threading.Timer(SAY_AFTER_S, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    if process.is_chief and process.world_size > 1:
        timer.start()
    try:
        yield timer
    finally:
        timer.cancel()


def _look(read: Read, joined: Joined, problem: str | None, report: Report, show_traceback: bool) -> None:
    """Fills the report, on rank 0. A collective."""
    workers, process = joined.workers, joined.workers.process
    joined.go_by(LOST_S, lambda ending: _tell_ending(workers, report, ending))
    gpus = look_at_gpus(measure.gpus_of_tensorflow())
    mine = read(runtime.look_at_machine(process)) if workers.is_chief else None
    asked = Asked.model_validate_json(workers.share(mine and mine.model_dump_json()))
    replication, why = _replicate(joined, asked)

    layout = layout_of(process, os.environ, problem or why)
    found = examine(asked, layout, process, os.environ, gpus, deep=measure.look_deep(), show_traceback=show_traceback)
    everyone = [Examination.model_validate_json(t) for t in workers.each(found.model_dump_json())]
    clocks, network = measure.measure_clocks(workers), measure.name_network(workers, process.hostname)
    if workers.is_chief:
        report.lines += [*judge_asked(asked), *_judge_all(everyone), *judge_network(network)]
        report.lines += judge_clocks([(each.node, ahead) for each, ahead in zip(everyone, clocks, strict=True)])
    if not workers.any(replication is None) and replication is not None and replication.num_replicas > 1:
        with _limited(workers, report):
            measured = measure.measure_allreduce(replication, asked.settings.distribute.strategy)
        report.lines += judge_allreduce(measured, [each.node for each in everyone])


def _judge_all(everyone: Sequence[Examination]) -> list[Finding]:
    """The lines about all ranks, and what differs between their nodes."""
    firsts = {each.node: each for each in reversed(everyone) if each.software is not None}
    nodes = [firsts[name] for name in dict.fromkeys(each.node for each in everyone) if name in firsts]
    return [*among_ranks([(each.node, judge(each)) for each in everyone]), *judge_nodes([*map(as_node, nodes)])]


def _replicate(joined: Joined, asked: Asked) -> tuple[Replication | None, str | None]:
    """The way in which a run would sum gradients; None, and why, where this process cannot take part in it."""
    distribute = asked.settings.distribute
    if joined.problem is not None:
        return None, str(joined.problem)
    try:
        return replicate(joined, distribute.strategy, devices=distribute.devices), None
    except (RuntimeError, ValueError) as failure:
        return None, str(failure)


@contextlib.contextmanager
def _limited(workers: Workers, report: Report) -> Iterator[None]:
    """Ends all ranks if the block takes too long or fails; what was found so far is shown.

    A failure may be the echo of a lost rank: then `_tell_ending` names that one, and this process ends in here.
    """

    ending = threading.Lock()

    def end(why: str, clear: bool) -> None:
        ending.acquire()  # for good: who comes second, the echo of the first, waits here until the process is gone
        text = f"the sum of gradients {why}"
        if workers.lifeline is not None:
            workers.lifeline.fail(Ending(BAD, text, clear))
        if workers.is_chief:
            report.lines.append(error("all-reduce", text, _NETWORK))
            report.show()
        os._exit(BAD)

    timer = threading.Timer(MEASURING_S, end, [f"did not end within {MEASURING_S:g} s", True])
    timer.daemon = True
    before = signal.getsignal(signal.SIGTERM)
    if workers.is_chief:
        timer.start()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # launchers send it when a rank is lost; that is to be told first
    try:
        yield
    except Exception as failure:  # of Horovod, NCCL or gRPC, of many types
        end(f"failed: {in_words(failure)}", False)
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def _tell_ending(workers: Workers, report: Report, ending: Ending) -> None:
    """A rank is lost or has failed: show what was found so far, and that."""
    if workers.is_chief:
        report.lines.append(explained("ranks", ending.message, "see what that rank said itself, and run it again"))
        report.show()
