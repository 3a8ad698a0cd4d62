"""The place of a process in its run, on environments recorded under each launcher."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bloodcell_dist.cluster.environment import ProcessInfo, process_info
from bloodcell_dist.cluster.hostlist import expand_hostlist
from bloodcell_dist.errors import UserError

Environ = dict[str, str]


def variables(text: str) -> Environ:
    return dict(pair.split("=", 1) for pair in text.split())


# Two nodes with two workers each; Horovod 0.28.1 with Gloo, Open MPI 4.1.4, Slurm 22.05.8. What concerns paths, users
# and processors is left out, addresses are made up.

# horovodrun -np 4 -H n1:2,n2:2
HOROVOD = [
    variables(
        f"""HOROVOD_HOSTNAME=n{node + 1} HOROVOD_RANK={2 * node + local} HOROVOD_SIZE=4 HOROVOD_LOCAL_RANK={local}
        HOROVOD_LOCAL_SIZE=2 HOROVOD_CROSS_RANK={node} HOROVOD_CROSS_SIZE=2 HOROVOD_GLOO_RENDEZVOUS_ADDR=10.0.0.1
        HOROVOD_GLOO_RENDEZVOUS_PORT=24211 HOROVOD_CONTROLLER=gloo HOROVOD_CPU_OPERATIONS=gloo HOROVOD_GLOO_IFACE=ib0"""
    )
    for node in range(2)
    for local in range(2)
]

# mpirun --host n1:2,n2:2 -np 4
OPENMPI = [
    variables(
        f"""OMPI_APP_CTX_NUM_PROCS=4 OMPI_COMMAND=python OMPI_COMM_WORLD_LOCAL_RANK={local} OMPI_COMM_WORLD_LOCAL_SIZE=2
        OMPI_COMM_WORLD_NODE_RANK={local} OMPI_COMM_WORLD_RANK={2 * node + local} OMPI_COMM_WORLD_SIZE=4
        OMPI_FIRST_RANKS=0 OMPI_MCA_orte_ess_node_rank={local} OMPI_MCA_orte_ess_num_procs=4 OMPI_MCA_orte_num_nodes=2
        OMPI_NUM_APP_CTX=1 OMPI_UNIVERSE_SIZE=6 PMIX_HOSTNAME=n{node + 1} PMIX_NAMESPACE=386531329
        PMIX_RANK={2 * node + local} PMIX_VERSION=4.2.2rc2"""
    )
    for node in range(2)
    for local in range(2)
]


def srun_task(rank: int, node: int, local: int, num_tasks: int = 4, per_node: str = "2(x2)") -> Environ:
    return variables(
        f"""SLURMD_NODENAME=n{node + 1} SLURM_CPUS_ON_NODE=2 SLURM_JOBID=1 SLURM_JOB_CPUS_PER_NODE=2(x2) SLURM_JOB_ID=1
        SLURM_JOB_NODELIST=n[1-2] SLURM_JOB_NUM_NODES=2 SLURM_LOCALID={local} SLURM_NNODES=2 SLURM_NODEID={node}
        SLURM_NODELIST=n[1-2] SLURM_NPROCS={num_tasks} SLURM_NTASKS={num_tasks} SLURM_PROCID={rank} SLURM_STEPID=0
        SLURM_STEP_ID=0 SLURM_STEP_NODELIST=n[1-2] SLURM_STEP_NUM_NODES=2 SLURM_STEP_NUM_TASKS={num_tasks}
        SLURM_STEP_TASKS_PER_NODE={per_node} SLURM_TASKS_PER_NODE={per_node} SLURM_TASK_PID=32276"""
    )


# srun -N2 -n4; with -m cyclic; srun -N2 -n3
SRUN = [srun_task(rank, rank // 2, rank % 2) for rank in range(4)]
CYCLIC = [srun_task(rank, rank % 2, rank // 2) for rank in range(4)]
UNEQUAL = [srun_task(rank, rank // 2, rank % 2, 3, "2,1") for rank in range(3)]

# In a script of sbatch -N2, where Slurm sets no SLURM_NTASKS, and with --ntasks-per-node=2.
BATCH = variables(
    """SLURMD_NODENAME=n1 SLURM_CPUS_ON_NODE=2 SLURM_GTIDS=0 SLURM_JOBID=6 SLURM_JOB_CPUS_PER_NODE=2(x2) SLURM_JOB_ID=6
    SLURM_JOB_NODELIST=n[1-2] SLURM_JOB_NUM_NODES=2 SLURM_LOCALID=0 SLURM_NNODES=2 SLURM_NODEID=0 SLURM_NODELIST=n[1-2]
    SLURM_PROCID=0 SLURM_TASKS_PER_NODE=2(x2) SLURM_TASK_PID=32621"""
)
BATCH_OF_TASKS = BATCH | variables("SLURM_NPROCS=4 SLURM_NTASKS=4 SLURM_NTASKS_PER_NODE=2")

# srun -n2 -N1 in that script
SMALL_STEP = [
    BATCH_OF_TASKS
    | variables(
        f"""SLURM_LOCALID={rank} SLURM_NNODES=1 SLURM_NPROCS=2 SLURM_NTASKS=2 SLURM_PROCID={rank} SLURM_STEP_ID=0
        SLURM_STEP_NODELIST=n1 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2
        SLURM_TASKS_PER_NODE=2"""
    )
    for rank in range(2)
]

# srun --pty bash
PTY = variables(
    """SLURMD_NODENAME=n1 SLURM_JOB_ID=4 SLURM_JOB_NODELIST=n1 SLURM_JOB_NUM_NODES=1 SLURM_LOCALID=0 SLURM_NNODES=1
    SLURM_NODEID=0 SLURM_NODELIST=n1 SLURM_NPROCS=1 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_STEPID=0 SLURM_STEP_ID=0
    SLURM_STEP_NODELIST=n1 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NUM_TASKS=1 SLURM_STEP_TASKS_PER_NODE=1
    SLURM_TASKS_PER_NODE=1"""
)

# salloc -N2 -n4 where it opens its shell on the first node
SALLOC_SHELL = variables(
    """SLURMD_NODENAME=n1 SLURM_JOB_ID=11 SLURM_JOB_NODELIST=n[1-2] SLURM_LOCALID=0 SLURM_NNODES=2 SLURM_NODEID=0
    SLURM_NODELIST=n[1-2] SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_STEPID=4294967290 SLURM_STEP_ID=4294967290
    SLURM_STEP_NODELIST=n1 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NUM_TASKS=1 SLURM_STEP_TASKS_PER_NODE=1
    SLURM_TASKS_PER_NODE=2(x2)"""
)

# mpirun in a script of sbatch -N2 --ntasks-per-node=2: ranks on other nodes see the step of mpirun's daemons.
MPIRUN_IN_SLURM = [
    srun_task(node, node, 0, 2, "1(x2)") | OPENMPI[2 * node + local] for node in range(2) for local in range(2)
]
HOROVODRUN_IN_SLURM = [BATCH_OF_TASKS | environ for environ in HOROVOD]


def tf_configs(**cluster: list[str]) -> list[Environ]:
    tasks = [{"type": kind, "index": index} for kind in cluster for index in range(len(cluster[kind]))]
    return [{"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} for task in tasks]


TWO_HOSTS = tf_configs(worker=["n1:2222", "n1:2223", "n2:2222", "n2:2223"])
WITH_CHIEF = tf_configs(chief=["n1:2222"], worker=["n1:2223", "n2:2222", "n2:2223"])
ONE_HOST = tf_configs(worker=["localhost:2222", "localhost:2223"])
TF_CONFIG_IN_SLURM = [step | config for step, config in zip(SRUN, TWO_HOSTS, strict=True)]


def places(environs: list[Environ]) -> list[tuple[int, ...]]:
    found = [process_info(environ, "given") for environ in environs]
    return [(i.rank, i.world_size, i.local_rank, i.local_size, i.node_rank, i.num_nodes) for i in found]


TWO_BY_TWO = [(0, 4, 0, 2, 0, 2), (1, 4, 1, 2, 0, 2), (2, 4, 0, 2, 1, 2), (3, 4, 1, 2, 1, 2)]


@pytest.mark.parametrize(
    ("environs", "launcher", "expected"),
    [
        pytest.param(HOROVOD, "horovod", TWO_BY_TWO, id="horovodrun"),
        pytest.param(HOROVODRUN_IN_SLURM, "horovod", TWO_BY_TWO, id="horovodrun in Slurm"),
        pytest.param(OPENMPI, "openmpi", TWO_BY_TWO, id="mpirun"),
        pytest.param(MPIRUN_IN_SLURM, "openmpi", TWO_BY_TWO, id="mpirun in Slurm"),
        pytest.param(SRUN, "slurm", TWO_BY_TWO, id="srun"),
        pytest.param(
            CYCLIC,
            "slurm",
            [(0, 4, 0, 2, 0, 2), (1, 4, 0, 2, 1, 2), (2, 4, 1, 2, 0, 2), (3, 4, 1, 2, 1, 2)],
            id="srun -m cyclic",
        ),
        pytest.param(
            UNEQUAL, "slurm", [(0, 3, 0, 2, 0, 2), (1, 3, 1, 2, 0, 2), (2, 3, 0, 1, 1, 2)], id="srun, unequal nodes"
        ),
        pytest.param(SMALL_STEP, "slurm", [(0, 2, 0, 2, 0, 1), (1, 2, 1, 2, 0, 1)], id="srun on a part of the job"),
        pytest.param([PTY], "slurm", [(0, 1, 0, 1, 0, 1)], id="srun --pty"),
        pytest.param(TWO_HOSTS, "tf_config", TWO_BY_TWO, id="TF_CONFIG"),
        pytest.param(WITH_CHIEF, "tf_config", TWO_BY_TWO, id="TF_CONFIG with a chief"),
        pytest.param(TF_CONFIG_IN_SLURM, "tf_config", TWO_BY_TWO, id="TF_CONFIG in Slurm"),
        pytest.param(ONE_HOST, "tf_config", [(0, 2, 0, 2, 0, 1), (1, 2, 1, 2, 0, 1)], id="TF_CONFIG on one host"),
        pytest.param(tf_configs(chief=["n1:1"]), "tf_config", [(0, 1, 0, 1, 0, 1)], id="TF_CONFIG of one"),
        pytest.param([BATCH], "none", [(0, 1, 0, 1, 0, 1)], id="batch script"),
        pytest.param([BATCH_OF_TASKS], "none", [(0, 1, 0, 1, 0, 1)], id="batch script with tasks"),
        pytest.param([SALLOC_SHELL], "none", [(0, 1, 0, 1, 0, 1)], id="shell of salloc"),
        pytest.param([{"TF_CONFIG": " "}], "none", [(0, 1, 0, 1, 0, 1)], id="blank TF_CONFIG"),
        pytest.param([{"HOROVOD_TIMELINE": "t.json"}], "none", [(0, 1, 0, 1, 0, 1)], id="a setting of Horovod"),
        pytest.param([{}], "none", [(0, 1, 0, 1, 0, 1)], id="nothing"),
    ],
)
def test_places(environs: list[Environ], launcher: str, expected: list[tuple[int, ...]]) -> None:
    assert places(environs) == expected
    assert {process_info(environ, "given").launcher for environ in environs} == {launcher}


@pytest.mark.parametrize(
    ("launcher", "environ"),
    [("horovod", HOROVOD[3]), ("tf_config", ONE_HOST[1]), ("openmpi", OPENMPI[3]), ("slurm", SRUN[3]), ("none", BATCH)],
)
def test_the_innermost_launcher_decides(launcher: str, environ: Environ) -> None:
    order = [HOROVOD[3], ONE_HOST[1], OPENMPI[3], SRUN[3], BATCH]
    beneath = order[order.index(environ) :]
    merged = {name: value for outer in reversed(beneath) for name, value in outer.items()}
    assert process_info(merged, "given").launcher == launcher


@pytest.mark.parametrize(
    ("environ", "hostname", "hostnames", "workers"),
    [
        (HOROVOD[2], "n2", (), ()),
        (OPENMPI[2], "n2", (), ()),
        (SRUN[2], "n2", ("n1", "n2"), ()),
        (SMALL_STEP[1], "n1", ("n1",), ()),
        (WITH_CHIEF[2], "n2", ("n1", "n2"), ("n1:2222", "n1:2223", "n2:2222", "n2:2223")),
        (tf_configs(worker=["[::1]:2222", "[fd00::2]:2222"])[1], "fd00::2", ("::1", "fd00::2"), None),
        (tf_configs(worker=["b:1", "a:1", "b:2"])[2], "b", ("b", "a"), ("b:1", "a:1", "b:2")),
        ({"TF_CONFIG": '{"task": {"type": "worker", "index": 0}}'}, "given", (), ()),
        ({"TF_CONFIG": '{"cluster": {}, "task": {"type": "chief", "index": 0}}'}, "given", (), ()),
        (BATCH, "given", (), ()),
        ({}, "given", (), ()),
    ],
)
def test_hosts(environ: Environ, hostname: str, hostnames: tuple[str, ...], workers: tuple[str, ...] | None) -> None:
    info = process_info(environ, "given")
    assert (info.hostname, info.hostnames) == (hostname, hostnames)
    assert workers is None or info.workers == workers


@pytest.mark.parametrize("environ", [HOROVOD[1], OPENMPI[1], SRUN[1]])
def test_the_given_name_where_the_launcher_tells_none(environ: Environ) -> None:
    names = ("HOROVOD_HOSTNAME", "PMIX_HOSTNAME", "SLURMD_NODENAME")
    without = {name: value for name, value in environ.items() if name not in names}
    assert process_info(without, "given").hostname == "given"


@pytest.mark.parametrize(
    ("removed", "hostnames"),
    [
        (["NUM_TASKS", "NUM_NODES", "TASKS_PER_NODE", "NODELIST"], ("n1", "n2")),
        (["NODELIST"], ("n1", "n2")),
    ],
)
def test_variables_of_the_job_stand_in_for_those_of_the_step(removed: list[str], hostnames: tuple[str, ...]) -> None:
    without = {name: value for name, value in SRUN[3].items() if name.removeprefix("SLURM_STEP_") not in removed}
    assert places([without]) == [TWO_BY_TWO[3]]
    assert process_info(without, "given").hostnames == hostnames


def test_the_nodes_of_a_larger_job_are_not_those_of_the_step() -> None:
    del (environ := dict(SMALL_STEP[0]))["SLURM_STEP_NODELIST"]
    assert process_info(environ, "given").hostnames == ()


def test_the_chief_is_rank_0() -> None:
    assert [process_info(environ, "given").is_chief for environ in SRUN] == [True, False, False, False]


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (HOROVOD[3], "rank 3 of 4 on n2 (local rank 1 of 2, node 1 of 2), started by horovodrun"),
        (OPENMPI[0], "rank 0 of 4 on n1 (local rank 0 of 2, node 0 of 2), started by mpirun"),
        (SRUN[1], "rank 1 of 4 on n1 (local rank 1 of 2, node 0 of 2), started by srun"),
        (ONE_HOST[1], "rank 1 of 2 on localhost (local rank 1 of 2, node 0 of 1), placed by TF_CONFIG"),
        ({}, "rank 0 of 1 on given (local rank 0 of 1, node 0 of 1), started without a launcher"),
    ],
)
def test_line_of_the_log(environ: Environ, line: str) -> None:
    assert str(process_info(environ, "given")) == line


# ---- unequal nodes: what the launchers do not tell


def test_horovodrun_counts_the_hosts_that_have_this_local_rank() -> None:
    # horovodrun -np 3 -H n1:1,n2:2: the last rank is on the second node, and the only one with local rank 1.
    last = HOROVOD[0] | variables(
        """HOROVOD_HOSTNAME=n2 HOROVOD_RANK=2 HOROVOD_SIZE=3 HOROVOD_LOCAL_RANK=1 HOROVOD_LOCAL_SIZE=2
        HOROVOD_CROSS_RANK=0 HOROVOD_CROSS_SIZE=1"""
    )
    assert process_info(last, "given") == ProcessInfo("horovod", 2, 3, 1, 2, 0, 1, "n2")


@pytest.mark.parametrize(("rank", "local_rank", "local_size", "node"), [(0, 0, 2, (0, 2)), (2, 0, 1, (2, 3))])
def test_open_mpi_with_unequal_nodes_is_a_guess(rank: int, local_rank: int, local_size: int, node: Any) -> None:
    environ = variables(
        f"""OMPI_COMM_WORLD_RANK={rank} OMPI_COMM_WORLD_SIZE=3 OMPI_COMM_WORLD_LOCAL_RANK={local_rank}
        OMPI_COMM_WORLD_LOCAL_SIZE={local_size}"""
    )
    info = process_info(environ, "given")
    assert (info.node_rank, info.num_nodes) == node
    assert (info.rank, info.world_size, info.local_rank, info.local_size) == (rank, 3, local_rank, local_size)


# ---- host lists


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", "n1"),
        ("n[1-3]", "n1 n2 n3"),
        ("n[1-2,05-07],login,a[1-2]b[3-4]", "n1 n2 n05 n06 n07 login a1b3 a1b4 a2b3 a2b4"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("n[8-11]", "n8 n9 n10 n11"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("n[7]", "n7"),
        ("r[1-2]-n[1,3].hpc", "r1-n1.hpc r1-n3.hpc r2-n1.hpc r2-n3.hpc"),
        ("[1-2]", "1 2"),
        ("n2,n1,n2", "n2 n1 n2"),
    ],
)
def test_host_lists(text: str, names: str) -> None:
    assert expand_hostlist(text) == tuple(names.split())


@pytest.mark.parametrize("text", ["", "n[1-2", "n1-2]", "n[]", "n[a-b]", "n[1-]", "n[3-1]", "n1,", ",n1", "n1 n2"])
def test_what_is_no_host_list(text: str) -> None:
    with pytest.raises(UserError) as caught:
        expand_hostlist(text)
    assert str(caught.value) == (
        f"host list={text!r} is not Slurm's notation: expected names such as n[1-2,05-07],login; "
        "compare with `scontrol show hostnames`"
    )


# ---- errors

HOROVOD_FIX = "; start the run with horovodrun, or unset the variables HOROVOD_RANK to HOROVOD_CROSS_SIZE"
OPENMPI_FIX = "; start the run with mpirun, or unset the variables that begin with OMPI_COMM_WORLD_"
SLURM_FIX = "; start the run with srun, or unset SLURM_STEP_ID to run one process alone"


@pytest.mark.parametrize(
    ("environ", "changes", "message"),
    [
        (HOROVOD[1], "HOROVOD_RANK=one", "HOROVOD_RANK='one' is not a whole number from 0 on" + HOROVOD_FIX),
        (HOROVOD[1], "HOROVOD_RANK=-1", "HOROVOD_RANK='-1' is not a whole number from 0 on" + HOROVOD_FIX),
        (HOROVOD[1], "HOROVOD_RANK=", "HOROVOD_RANK='' is not a whole number from 0 on" + HOROVOD_FIX),
        (HOROVOD[1], "HOROVOD_RANK=4", "HOROVOD_RANK=4 is not below HOROVOD_SIZE=4" + HOROVOD_FIX),
        (HOROVOD[1], "HOROVOD_LOCAL_RANK=2", "HOROVOD_LOCAL_RANK=2 is not below HOROVOD_LOCAL_SIZE=2" + HOROVOD_FIX),
        (HOROVOD[1], "HOROVOD_CROSS_RANK=2", "HOROVOD_CROSS_RANK=2 is not below HOROVOD_CROSS_SIZE=2" + HOROVOD_FIX),
        (
            OPENMPI[1],
            "OMPI_COMM_WORLD_SIZE=four",
            "OMPI_COMM_WORLD_SIZE='four' is not a whole number from 0 on" + OPENMPI_FIX,
        ),
        (
            OPENMPI[1],
            "OMPI_COMM_WORLD_LOCAL_SIZE=0",
            "OMPI_COMM_WORLD_LOCAL_RANK=1 is not below OMPI_COMM_WORLD_LOCAL_SIZE=0" + OPENMPI_FIX,
        ),
        (SRUN[1], "SLURM_STEP_ID=x", "SLURM_STEP_ID='x' is not a whole number from 0 on" + SLURM_FIX),
        (SRUN[1], "SLURM_PROCID=9", "SLURM_PROCID=9 is not below SLURM_STEP_NUM_TASKS=4" + SLURM_FIX),
        (SRUN[1], "SLURM_NODEID=2", "SLURM_NODEID=2 is not below SLURM_STEP_NUM_NODES=2" + SLURM_FIX),
        (SRUN[1], "SLURM_LOCALID=2", "SLURM_LOCALID=2 is not below 2, the number of tasks on its node" + SLURM_FIX),
        (
            SRUN[1],
            "SLURM_STEP_TASKS_PER_NODE=2",
            "SLURM_STEP_TASKS_PER_NODE='2' does not tell the tasks of 2 nodes, as 2(x2),1 does" + SLURM_FIX,
        ),
        (
            SRUN[1],
            "SLURM_STEP_TASKS_PER_NODE=2(y2),2,2",
            "SLURM_STEP_TASKS_PER_NODE='2(y2),2,2' does not tell the tasks of 2 nodes, as 2(x2),1 does" + SLURM_FIX,
        ),
        (
            SRUN[1],
            "SLURM_STEP_NODELIST=n[1-2",
            "SLURM_STEP_NODELIST='n[1-2' is not Slurm's notation: expected names such as n[1-2,05-07],login; "
            "compare with `scontrol show hostnames`",
        ),
    ],
)
def test_values_that_cannot_be(environ: Environ, changes: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        process_info(environ | variables(changes), "given")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("environ", "prefix", "names", "fix"),
    [
        (HOROVOD[1], "HOROVOD_", "RANK SIZE LOCAL_RANK LOCAL_SIZE CROSS_RANK CROSS_SIZE", HOROVOD_FIX),
        (OPENMPI[1], "OMPI_COMM_WORLD_", "RANK SIZE LOCAL_RANK LOCAL_SIZE", OPENMPI_FIX),
        (SRUN[1], "SLURM_", "PROCID NODEID LOCALID", SLURM_FIX),
    ],
)
def test_launchers_set_all_their_variables(environ: Environ, prefix: str, names: str, fix: str) -> None:
    for name in (prefix + short for short in names.split()):
        with pytest.raises(UserError) as caught:
            process_info({other: value for other, value in environ.items() if other != name}, "given")
        assert str(caught.value) == f"{name} is not set, though others of its launcher are{fix}"


@pytest.mark.parametrize(
    ("pair", "step_name"),
    [
        ("SLURM_STEP_NUM_TASKS SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
        ("SLURM_STEP_NUM_NODES SLURM_NNODES", "SLURM_STEP_NUM_NODES"),
        ("SLURM_STEP_TASKS_PER_NODE SLURM_TASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE"),
    ],
)
def test_a_step_without_its_sizes_is_refused(pair: str, step_name: str) -> None:
    with pytest.raises(UserError, match=f"^{step_name} is not set"):
        process_info({name: value for name, value in SRUN[1].items() if name not in pair.split()}, "given")


TASK = {"type": "worker", "index": 0}
WORKERS = {"worker": ["n1:1", "n2:1"]}
UNKNOWN_TASKS = "are unknown here; there are no parameter servers and no evaluators"


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("worker 0", "'worker 0' is not JSON (Expecting value: line 1 column 1 (char 0))"),
        ("[1]", "'[1]' is no JSON object"),
        ({}, "task=None does not have a type and an index"),
        ({"cluster": WORKERS}, "task=None does not have a type and an index"),
        ({"cluster": WORKERS, "task": {"index": 0}}, "task={'index': 0} does not have a type and an index"),
        ({"cluster": WORKERS, "task": "worker"}, "task='worker' does not have a type and an index"),
        ({"cluster": WORKERS, "task": {"type": "ps", "index": 0}}, f"tasks of type 'ps' {UNKNOWN_TASKS}"),
        ({"cluster": WORKERS, "task": {"type": "evaluator", "index": 0}}, f"tasks of type 'evaluator' {UNKNOWN_TASKS}"),
        ({"cluster": WORKERS | {"ps": ["n3:1"]}, "task": TASK}, f"tasks of type 'ps' {UNKNOWN_TASKS}"),
        (
            {"cluster": WORKERS, "task": {"type": "worker", "index": 2}},
            "task.index=2 is no number from 0 on below 2, the size of cluster.worker",
        ),
        (
            {"cluster": WORKERS, "task": {"type": "worker", "index": -1}},
            "task.index=-1 is no number from 0 on below 2, the size of cluster.worker",
        ),
        (
            {"cluster": WORKERS, "task": {"type": "worker", "index": True}},
            "task.index=True is no number from 0 on below 2, the size of cluster.worker",
        ),
        (
            {"cluster": WORKERS, "task": {"type": "chief", "index": 0}},
            "task.index=0 is no number from 0 on below 0, the size of cluster.chief",
        ),
        (
            {"task": {"type": "worker", "index": 1}},
            "task.index=1 is no number from 0 on below 1, the size of cluster.worker",
        ),
        ({"cluster": ["n1:1"], "task": TASK}, "cluster=['n1:1'] is no JSON object"),
        ({"cluster": {"worker": "n1:1"}, "task": TASK}, "cluster.worker='n1:1' is no list of addresses"),
        ({"cluster": {"worker": [1]}, "task": TASK}, "cluster.worker=[1] is no list of addresses"),
        (
            {"cluster": {"chief": ["n1:1", "n2:1"]}, "task": {"type": "chief", "index": 0}},
            "cluster.chief=['n1:1', 'n2:1'] has more than one address",
        ),
        ({"cluster": {"worker": ["n1"]}, "task": TASK}, "address 'n1' is no host:port"),
        ({"cluster": {"worker": ["::1:2222"]}, "task": TASK}, "address '::1:2222' is no host:port"),
    ],
)
def test_what_tf_config_cannot_be(config: Any, problem: str) -> None:
    text = config if isinstance(config, str) else json.dumps(config)
    with pytest.raises(UserError) as caught:
        process_info({"TF_CONFIG": text}, "given")
    assert str(caught.value) == (
        f'TF_CONFIG: {problem}; expected {{"cluster": {{"worker": ["host:port", ...]}}, "task": {{"type": "worker", '
        '"index": 0}}, with one "chief" beside the workers or without; correct TF_CONFIG, or unset it to run one '
        "process alone"
    )
