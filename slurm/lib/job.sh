# shellcheck shell=bash
# What the batch scripts in slurm/ share. They source it and call
#
#     bloodcell_job ARGUMENT...      one training, `python -m bloodcell_dist.train ARGUMENT...`, over the tasks of the job
#
# A training survives what happens to jobs: before its time limit (--signal=B:USR1@...), on preemption and on requeue it
# saves a checkpoint and ends with exit status 75, and the job goes back into the queue, where it keeps its number, its
# log and its run folder. A rank or a node that is lost, or a crash, costs what came after the last checkpoint; a run
# that ends BLOODCELL_MAX_FAILURES times (3) in a row without a new checkpoint is given up. scancel stops it, with a
# checkpoint. Bad input (exit status 2) is told at once and not tried again.
#
# Settings of the site stand in slurm/site.env (see site.env.example) or in the environment of sbatch, which wins.
set -euo pipefail

# shellcheck source=site.sh
. "$(dirname "${BASH_SOURCE[0]}")/site.sh"
# shellcheck source=record.sh
. "$(dirname "${BASH_SOURCE[0]}")/record.sh"

MAX_STARTS=10 # without a new checkpoint, whatever ended them: a limit for time limits that are too short

stopping='' interrupted='' training=''

hear_usr1() { # the time limit is near, or somebody asks
    interrupted=yes
    [ -z "$stopping" ] || return 0
    stopping=yes
    say "USR1: the training saves a checkpoint"
    if [ "${BLOODCELL_LAUNCHER:-auto}" = horovodrun ]; then
        [ -z "$training" ] || signal_family "$training"
    else
        scancel --signal=USR1 "$job" || true # to the steps, that is to all ranks
    fi
}

signal_family() { # PID: USR1 to all that it has started, on this node; one rank that hears it stops all
    local child
    # shellcheck disable=SC2013 # words, not lines
    for child in $(cat "/proc/$1/task/"*/children 2>/dev/null); do signal_family "$child"; done
    kill -USR1 "$1" 2>/dev/null || true
}

trap hear_usr1 USR1
trap 'interrupted=yes' TERM CONT # Slurm, cancelling or preempting, sends them to all ranks too: they save and end

start_training() { # ARGUMENT...
    local python=(${in_environment[@]+"${in_environment[@]}"} python -m bloodcell_dist.train)
    local step=(srun --kill-on-bad-exit=1 --export=ALL)
    local per_task=${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}
    unset "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}" # of the shell that sbatch was called from
    # Only this step's ranks know it: so no stranger on the network can pass for one.
    BLOODCELL_TOKEN=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
    export BLOODCELL_TOKEN
    case ${BLOODCELL_LAUNCHER:-auto} in
    auto) "${step[@]}" --mpi=none ${per_task:+"$per_task"} "${python[@]}" "$@" & ;;
    pmix) "${step[@]}" --mpi=pmix ${per_task:+"$per_task"} "${python[@]}" "$@" & ;;
    multiworker) # a task per node takes all its GPUs and cores; on one node it is MirroredStrategy
        local force=()
        [ "$SLURM_JOB_NUM_NODES" = 1 ] || force=(--set distribute.strategy=multiworker)
        env --unset={SLURM_GPUS_PER_TASK,SLURM_TRES_PER_TASK,SLURM_NTASKS_PER_GPU,SLURM_GPU_BIND} "${step[@]}" \
            --mpi=none --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
            --cpus-per-task="$SLURM_CPUS_ON_NODE" "${python[@]}" "$@" ${force[@]+"${force[@]}"} & ;;
    horovodrun) # by ssh, where there are several nodes
        (
            trap '' USR1 # the ranks take it up again; horovodrun, which goes on ignoring it, would end with it
            exec ${in_environment[@]+"${in_environment[@]}"} horovodrun --gloo -np "$(count_tasks)" \
                -H "$(hosts_with_slots)" python -m bloodcell_dist.train "$@"
        ) &
        ;;
    *)
        stop_for_good 2 "BLOODCELL_LAUNCHER=$BLOODCELL_LAUNCHER is unknown; it is auto, pmix, multiworker or horovodrun"
        ;;
    esac
    training=$!
}

tasks_of_nodes() { # 2(x2),1 is 2 2 1
    local part times
    for part in ${SLURM_TASKS_PER_NODE//,/ }; do
        times=1
        [[ ! $part =~ \(x([0-9]+)\) ]] || times=${BASH_REMATCH[1]}
        for ((; times > 0; times--)); do echo "${part%%(*}"; done
    done
}

count_tasks() { echo $(($(tasks_of_nodes | paste -sd +))); }

hosts_with_slots() { paste -d : <(scontrol show hostnames "$SLURM_JOB_NODELIST") <(tasks_of_nodes) | paste -sd ,; }

wait_for_training() { # its exit status; a signal only interrupts the waiting
    local status=0 seen
    while :; do
        interrupted=''
        seen=0
        wait "$training" || seen=$?
        [ "$seen" = 127 ] || status=$seen # 127: it was gone already when the last signal came
        [ -n "$interrupted" ] || break
    done
    return "$status"
}

check_machine() { # ARGUMENT...
    local check=${BLOODCELL_PREFLIGHT:-stop}
    [ "$check" != off ] || return 0
    bloodcell_run bloodcell-dist doctor --quick "$@" || [ "$check" = warn ]
}

bloodcell_job() { # ARGUMENT...
    local restart=${SLURM_RESTART_COUNT:-0} status=0 said started
    [ -z "${BLOODCELL_TEST_SET:-}" ] || set -- --set "data.test_path=$BLOODCELL_TEST_SET" "$@"
    export BLOODCELL_SCRATCH=${BLOODCELL_SCRATCH:-${SLURM_TMPDIR:-}}
    [ "$restart" != 0 ] || rm -f "$BLOODCELL_RECORD" "$BLOODCELL_RECORD".run* # of an older job with this number
    [ ! -f "$BLOODCELL_RECORD.run" ] || mv "$BLOODCELL_RECORD.run" "$BLOODCELL_RECORD.run-before"
    record "start job=$job restart=$restart nodes=$SLURM_JOB_NODELIST at=$(newest_checkpoint)"
    say "job $job ($SLURM_JOB_NAME), start $((restart + 1)), nodes $SLURM_JOB_NODELIST"

    started=$(count_fruitless started)
    if [ "$started" -gt $MAX_STARTS ]; then
        give_up 3 "was started $started times without a new checkpoint"
    fi
    if ! check_machine "$@"; then
        [ "$restart" = 0 ] || end_failed 3 # it was well before, so this node is not
        stop_for_good 2 "the check above found an error (BLOODCELL_PREFLIGHT=warn goes on anyway)"
    fi
    [ -z "$stopping" ] || requeue 75 "requeued before it began"
    start_training "$@"
    wait_for_training || status=$?
    said=$(last_words)
    status=${said:-$status}
    case $status in
    0) record "end status=0 done" ;;
    2) stop_for_good 2 "bad input, see above" ;;
    75) requeue 75 requeued ;;
    *)
        [ -z "$stopping" ] || requeue "$status" "requeued: it was asked to stop and left no checkpoint of that moment"
        end_failed "$status"
        ;;
    esac
}

end_failed() { # STATUS
    local failures=$(($(count_fruitless failed) + 1))
    if [ "$failures" -ge "${BLOODCELL_MAX_FAILURES:-3}" ]; then
        give_up "$1" "ended $failures times in a row without a new checkpoint, at last with exit status $1"
    fi
    requeue "$1" "failed $failures of ${BLOODCELL_MAX_FAILURES:-3} times, requeued"
}

give_up() { # STATUS WHY
    record "end status=$1 stopped: $2"
    say "GIVEN UP: the training $2; see above for the reason. Mended? Submit it again, it goes on from its last checkpoint"
    exit "$1"
}

stop_for_good() { # STATUS WHY
    record "end status=$1 stopped: $2"
    say "stopped: $2"
    exit "$1"
}

patiently() { # COMMAND...: slurmctld may be restarting, or busy with an array that came to its time limit at once
    local try
    for try in 1 2 3 4 5 6; do
        "$@" && return
        [ "$try" = 6 ] || sleep "${BLOODCELL_RETRY_S:-10}"
    done
    return 1
}

requeue() { # STATUS WHAT
    local state
    state=$(patiently scontrol show job "$job" 2>/dev/null | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' | head -n 1) || true
    if [ "${state:-RUNNING}" != RUNNING ]; then # cancelled, preempted or requeued by others: Slurm knows what comes next
        record "end status=$1 ${2/requeued/left to Slurm}"
        say "exit status $1; Slurm ends this job itself ($state)"
        exit "$1"
    fi
    record "end status=$1 $2"
    say "exit status $1: $2"
    if ! patiently scontrol requeue "$job"; then
        record "end status=$1 stopped: Slurm does not requeue it"
        say "it cannot be requeued; submit it again, it goes on from its last checkpoint"
    fi
    exit "$1"
}

enter_environment
