"""A real Slurm cluster on this machine: one head and two nodes, each with its own hostname, address and processes.

Every node is a set of namespaces joined to a bridge by a virtual cable, so that it can be switched off. It needs root,
Linux and the programs of Slurm 22.05 (Debian: slurm-wlm, munge, iproute2), no systemd and no cgroups.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare", "setpriv")
CPUS_PER_NODE = 4
GPUS_PER_NODE = 2
CLIENT_S = 30.0
START_S = 30.0

CONF = """\
ClusterName=probe
SlurmctldHost=head(10.99.0.254)
SlurmctldPort=6817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/sock/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
TmpFS={base}/tmp/%n
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={base}/log/jobcomp.log
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=2,bf_interval=1
ReturnToService=2
JobRequeue=1
EnforcePartLimits=ALL
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmdTimeout=6
SlurmctldTimeout=10
MessageTimeout=10
TCPTimeout=2
KillWait={kill_wait}
CompleteWait=0
InactiveLimit=0
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-{nodes}] NodeAddr=10.99.0.[1-{nodes}] CPUs={cpus} RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=low  Nodes=ALL Default=YES PriorityTier=1  PreemptMode=REQUEUE GraceTime=0 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


@dataclasses.dataclass
class Job:
    """What `scontrol show job` says of one job, or of one task of an array."""

    fields: Mapping[str, str]

    @property
    def state(self) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, …"""
        return self.fields["JobState"]

    @property
    def restarts(self) -> int:
        """How often it was requeued."""
        return int(self.fields["Restarts"])

    @property
    def exit_status(self) -> int:
        """Of the batch script; 128 and its number for a signal."""
        status, number = map(int, self.fields["ExitCode"].split(":"))
        return status or (128 + number if number else 0)


class Cluster:
    """The head and its nodes, in a folder of their own.

    Args:
        base: an empty folder with a short path: those of sockets end at 108 bytes.
        nodes: how many.
        kill_wait_s: Slurm's KillWait: from TERM to KILL.
    """

    def __init__(self, base: Path, nodes: int = 2, kill_wait_s: int = 20) -> None:
        self.base, self.nodes = base, nodes
        self._kill_wait_s = kill_wait_s
        self._boxes: dict[str, subprocess.Popen[bytes]] = {}
        self._munged: subprocess.Popen[bytes] | None = None

    # ---- switching on and off

    def start(self) -> None:
        """Switch all on and wait until the nodes are idle."""
        for name in ("etc", "sock", "munge", "state", "run", "log", "dev", "tmp", "spool"):
            (self.base / name).mkdir()
        self.base.chmod(0o755)  # munged's clients have to reach its socket
        (self.base / "munge").chmod(0o700)
        self._configure()
        self._start_munged()
        self._boxes["head"] = self._box("head", "slurmctld -D")
        self._in("head", "ip link add br0 type bridge forward_delay 0")
        self._in("head", "ip addr add 10.99.0.254/24 dev br0")
        self._in("head", "ip link set br0 up")
        self.wait_for(self._answers, "slurmctld answers", START_S)
        for number in range(1, self.nodes + 1):
            self.switch_on(f"n{number}")
        self.wait_for(lambda: self._states() == {"IDLE"}, "all nodes are idle", START_S)

    def switch_on(self, node: str) -> None:
        """Start a node and plug it in."""
        (self.base / "tmp" / node).mkdir(exist_ok=True)
        (self.base / "spool" / node).mkdir(exist_ok=True)
        box = self._boxes[node] = self._box(node, f"slurmd -D -N {node}", wait_for_cable=True)
        number = node.removeprefix("n")
        self._in("head", f"ip link add v{node} type veth peer name eth0 netns {self._pid_inside(box)}")
        self._in("head", f"ip link set v{node} master br0 up")
        self._in(node, f"ip addr add 10.99.0.{number}/24 dev eth0")
        self._in(node, "ip link set eth0 up")

    def switch_off(self, node: str) -> None:
        """Take the power away: every process of the node is gone at once."""
        box = self._boxes.pop(node)
        box.kill()
        box.wait()

    def stop(self) -> None:
        """Switch all off."""
        for box in self._boxes.values():
            box.kill()
        for box in self._boxes.values():
            box.wait()
        if self._munged is not None:
            self._munged.terminate()
            self._munged.wait()

    def _configure(self) -> None:
        conf = CONF.format(
            base=self.base,
            nodes=self.nodes,
            cpus=CPUS_PER_NODE,
            gpus=GPUS_PER_NODE,
            kill_wait=self._kill_wait_s,
        )
        (self.base / "etc/slurm.conf").write_text(conf)
        gres = f"NodeName=n[1-{self.nodes}] Name=gpu File={self.base}/dev/nvidia[0-{GPUS_PER_NODE - 1}]\n"
        (self.base / "etc/gres.conf").write_text(gres)
        for number in range(GPUS_PER_NODE):  # a character device each, or CUDA_VISIBLE_DEVICES stays empty
            os.mknod(self.base / f"dev/nvidia{number}", 0o20666, os.makedev(1, 3))
        names = [f"10.99.0.{number} n{number}" for number in range(1, self.nodes + 1)]
        (self.base / "etc/hosts").write_text("\n".join(["127.0.0.1 localhost", *names, "10.99.0.254 head", ""]))
        key = self.base / "munge/key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)

    def _start_munged(self) -> None:
        places = {"key-file": "munge/key", "socket": "sock/munge.sock", "pid-file": "munge/pid"}
        places |= {"log-file": "munge/log", "seed-file": "munge/seed"}
        arguments = [f"--{name}={self.base / place}" for name, place in places.items()]
        with open(self.base / "log/munged.log", "ab") as log:
            self._munged = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "munged", "-F", *arguments], stdout=log, stderr=log
            )

    def _box(self, name: str, daemon: str, wait_for_cable: bool = False) -> subprocess.Popen[bytes]:
        """A machine: namespaces that end with this process, and in them a daemon."""
        cable = (
            "until ip -4 addr show dev eth0 2>/dev/null | grep -q inet; do sleep .02; done\n" if wait_for_cable else ""
        )
        script = f"""
            hostname {name}
            mount --bind {self.base}/etc/hosts /etc/hosts
            mount -t tmpfs tmpfs /dev/shm
            ip link set lo up
            {cable}
            export SLURM_CONF={self.base}/etc/slurm.conf
            {daemon} &
            while :; do wait; sleep .2; done
        """
        namespaces = ("--mount", "--uts", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
        with open(self.base / f"log/box-{name}.log", "ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, "bash", "-c", script],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=clean_environment(os.environ),
            )

    def _pid_inside(self, box: subprocess.Popen[bytes]) -> int:
        """The process id, as seen from here, of a machine's first process."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            children = Path(f"/proc/{box.pid}/task/{box.pid}/children")
            with contextlib.suppress(OSError):
                found = children.read_text().split()
                # its namespaces are complete once bash runs
                if found and Path(f"/proc/{found[0]}/comm").read_text().strip() == "bash":
                    return int(found[0])
            time.sleep(0.005)
        raise AssertionError("a machine did not start")

    def _in(self, name: str, command: str) -> None:
        """Run a command in a machine's network."""
        pid = self._pid_inside(self._boxes[name])
        done = subprocess.run(
            ["nsenter", "-t", str(pid), "--net", *shlex.split(command)],
            capture_output=True,
            text=True,
            timeout=CLIENT_S,
        )
        assert done.returncode == 0, f"{name}: {command}: {done.stderr}"

    def _answers(self) -> bool:
        return self.run("scontrol", "ping", check=False).stdout.find("is UP") >= 0

    def _states(self) -> set[str]:
        return set(re.findall(r"State=([A-Z+*_]+)", self.run("scontrol", "show", "nodes", check=False).stdout))

    # ---- using it

    def run(
        self,
        *command: str | os.PathLike[str],
        cwd: str | os.PathLike[str] = "/",
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout_s: float = CLIENT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a client on the head, as a user would on a login node."""
        pid = self._pid_inside(self._boxes["head"])
        environment = clean_environment(os.environ) | {"SLURM_CONF": f"{self.base}/etc/slurm.conf"} | dict(env or {})
        namespaces = ("--mount", "--uts", "--pid", "--net")
        done = subprocess.run(
            ["nsenter", "-t", str(pid), *namespaces, f"--wd={cwd}", *map(str, command)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout_s,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def on(self, node: str, *command: str | os.PathLike[str]) -> str:
        """Run a command on a machine, with its view of the file system; what it prints."""
        pid = self._pid_inside(self._boxes[node])
        namespaces = ("--mount", "--uts", "--pid", "--net")
        done = subprocess.run(
            ["nsenter", "-t", str(pid), *namespaces, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=CLIENT_S,
        )
        assert done.returncode == 0, f"{node}: {command}: {done.stderr}"
        return done.stdout

    def sbatch(
        self, *arguments: str | os.PathLike[str], cwd: str | os.PathLike[str], env: Mapping[str, str] | None = None
    ) -> str:
        """Submit; the job's number."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, env=env).stdout.strip()

    def job(self, number: str) -> Job:
        """A job as it is now."""
        text = self.run("scontrol", "--oneliner", "show", "job", number).stdout.splitlines()[0]
        return Job(dict(re.findall(r"([A-Za-z:/]+)=(\S*)", text)))

    def wait(self, number: str, timeout_s: float = 300.0) -> Job:
        """The job when it has ended for good."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
        self.wait_for(lambda: self.job(number).state in over, f"job {number} has ended", timeout_s)
        return self.job(number)

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
        """Return as soon as the condition holds; an AssertionError with the logs if it takes too long."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError(f"not after {timeout_s:g} s: {what}\n{self.describe()}")

    def describe(self) -> str:
        """Queue, nodes and the ends of the logs, for the message of a failed test."""
        parts = []
        with contextlib.suppress(Exception):
            parts += [self.run(*command, check=False).stdout for command in (("squeue", "-l"), ("sinfo", "-N", "-l"))]
        for log in sorted((self.base / "log").glob("*.log")):
            parts.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(parts)

    def cancel_all(self) -> None:
        """Leave nothing behind for the next test."""
        numbers = self.run("squeue", "--noheader", "--format=%A").stdout.split()
        if numbers:
            self.run("scancel", *sorted(set(numbers)))
            with contextlib.suppress(AssertionError):
                self.wait_for(lambda: not self.run("squeue", "--noheader").stdout.strip(), "the queue is empty", 40)


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """This environment without what an enclosing job has put there, quiet, and with few threads."""
    foreign = ("SLURM_", "SBATCH_", "PMI", "OMPI_", "HOROVOD_", "BLOODCELL_", "TF_NUM_", "OMP_NUM_")
    kept = {name: value for name, value in environ.items() if not name.startswith(foreign) and name != "TF_CONFIG"}
    threads = {name: "1" for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")}
    return kept | threads | {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}


def _reason() -> str | None:
    """Why there can be no cluster here; None if there can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"a Slurm cluster needs {', '.join(missing)}: apt-get install slurm-wlm munge iproute2"
    if os.geteuid() != 0:
        return "a Slurm cluster on one machine needs root, for namespaces"
    tried = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, check=False)
    return f"no namespaces here: {tried.stderr.decode().strip()}" if tried.returncode else None


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(shared_programs: None) -> None:
    """Most of these jobs compile what others have compiled."""


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """Two nodes with four cores and two (drawn) GPUs each; CI must have it, a laptop may not."""
    if reason := _reason():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as base:
        made = Cluster(Path(base))
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture
def cluster(slurm: Cluster) -> Iterator[Cluster]:
    """The cluster, idle before and after the test."""
    yield slurm
    slurm.cancel_all()


class Desk:
    """A user's folder on the cluster's shared disk, from which jobs are submitted.

    Args:
        cluster: with the nodes.
        folder: where the user works; runs/ appears here.
        slurm_folder: with the templates.
    """

    def __init__(self, cluster: Cluster, folder: Path, slurm_folder: Path = ROOT / "slurm") -> None:
        self.cluster, self.folder, self.slurm_folder = cluster, folder, slurm_folder
        self.environment = {
            "BLOODCELL_VENV": sys.prefix,
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def train(self, template: str, *settings: str, sbatch: Sequence[str] = (), options: Sequence[str] = ()) -> str:
        """Submit slurm/train_<template>.sh with the smallest cells and these settings; the job's number."""
        script = str(self.slurm_folder / f"train_{template}.sh")
        arguments = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
        return self.cluster.sbatch(
            *("--cpus-per-task=1", "--gpus-per-node=0", *sbatch, script, *arguments, *options),
            cwd=self.folder,
            env=self.environment,
        )

    def log(self, job: str) -> str:
        """What the job has printed so far, in all its lives."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob(f"*-{job}.log")))

    def record(self, job: str) -> list[str]:
        """The lines that job.sh has kept, without their times."""
        path = self.folder / "runs/.jobs" / job
        return [line.split(" ", 1)[1] for line in path.read_text().splitlines()] if path.exists() else []

    def run(self) -> Path:
        """The one run folder."""
        (found,) = [path for path in (self.folder / "runs").iterdir() if not path.name.startswith(".")]
        return found

    def wait_for_step(self, job: str, step: int) -> None:
        """Wait until the training has saved a checkpoint of this step or a later one."""
        self.cluster.wait_for(
            lambda: any(int(path.name[5:]) >= step for path in self.folder.glob("runs/*/checkpoints/step-*")),
            f"step {step} is saved:\n{self.log(job)}",
        )

    def finish(self, job: str, timeout_s: float = 240.0) -> str:
        """Wait until the job has completed; its log."""
        found = self.cluster.wait(job, timeout_s)
        assert (found.state, found.exit_status) == ("COMPLETED", 0), self.log(job)
        return self.log(job)


SMALL = (
    "data.source=synthetic",
    "data.synthetic_examples=200",
    "data.image_size=32",
    "data.balance=none",
    "train.global_batch_size=16",
    "train.xla=off",
    "evaluate.bootstrap=0",
)


@pytest.fixture
def desk(cluster: Cluster, tmp_path: Path) -> Desk:
    """An empty folder on the cluster."""
    return Desk(cluster, tmp_path)


@pytest.fixture
def desk_in(cluster: Cluster) -> type[Desk]:
    """The class, since test modules cannot import this file."""
    return Desk
