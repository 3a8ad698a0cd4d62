# shellcheck shell=bash
# What is remembered between the lives of a job: a file with a line per event, which `sweep report` reads too.
#
#     2026-11-25T08:20:59+0000 start job=12_3 restart=0 nodes=n[1-2] at=none
#     2026-11-25T08:30:59+0000 end status=75 requeued
#     2026-11-25T08:31:59+0000 end status=139 stopped: ended 3 times in a row without a new checkpoint
#
# A life that is cut short, by a lost node or a full preemption, has no end line. `at` is the newest checkpoint.

export BLOODCELL_RUNS=${BLOODCELL_RUNS:-$PWD/runs}
case $BLOODCELL_RUNS in /*) ;; *) BLOODCELL_RUNS=$PWD/$BLOODCELL_RUNS ;; esac
export BLOODCELL_RECORD=${BLOODCELL_RECORD:-$BLOODCELL_RUNS/.jobs/$job}

record() {
    mkdir -p "$(dirname "$BLOODCELL_RECORD")"
    printf '%s %s\n' "$(date +%Y-%m-%dT%H:%M:%S%z)" "$*" >>"$BLOODCELL_RECORD"
}

# The training names its run folder in .run; .run-before is what it named in an earlier life.
run_folder() { cat "$BLOODCELL_RECORD.run" 2>/dev/null || cat "$BLOODCELL_RECORD.run-before" 2>/dev/null || true; }

newest_checkpoint() {
    local run newest=none checkpoint
    run=$(run_folder)
    if [ -n "$run" ]; then
        for checkpoint in "$run"/checkpoints/step-*; do # in order: their numbers have leading zeros
            [ ! -d "$checkpoint" ] || newest=${checkpoint##*/}
        done
    fi
    echo "$newest"
}

count_fruitless() { # failed|started: lives since the newest checkpoint came
    awk -v now="at=$(newest_checkpoint)" -v what="$1" '
        $2 == "start" && $NF != now { failed = started = 0 }
        $2 == "start" { started += same = ($NF == now) }
        $2 == "end" && /failed/ { failed += same }
        $2 == "end" && /stopped:/ { failed = started = 0 } # given up; somebody has requeued it by hand
        END { print (what == "failed" ? failed : started) + 0 }' "$BLOODCELL_RECORD"
}

last_words() { # the exit status that the chief of this life has written down: srun may make another of it
    [ -f "$BLOODCELL_RECORD.run" ] || return 0
    sed -n 's/.*"exit_status": *\([0-9][0-9]*\).*/\1/p' "$(cat "$BLOODCELL_RECORD.run")/status.json" 2>/dev/null || true
}
