#!/bin/bash
# Runs an array job on this machine, without Slurm, to try it on a few recordings:
#
#   deploy/slurm/try-here.sh 4 deploy/slurm/naturelm-array.sh infer --manifest some.csv ...
#
# AT_ONCE  tasks that run at a time; 2 by default
# STOP     "TASK SECONDS SIGNAL", such as "2 30 TERM": a task that is stopped after so many seconds
#          of its first start. TERM is what the script gets at its time limit; KILL is a lost node.
# LOGS     folder of what the tasks print; the current folder by default
#
# Exit code 1 where a task failed.

set -u
tasks=$1 script=$2
shift 2
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
cat > "$state/scontrol" <<'END'
#!/bin/bash
[ "$1" = requeue ] && touch "$(dirname "$0")/again-$SLURM_ARRAY_TASK_ID"
END
chmod +x "$state/scontrol"
read -r stop_task stop_after stop_signal <<< "${STOP:-0 0 TERM}"

run_task() {
    local task=$1 starts=0 code pid log
    shift
    log="${LOGS:-.}/naturelm-$$_$task.log"
    while :; do
        PATH="$state:$PATH" SLURM_ARRAY_JOB_ID=$$ SLURM_ARRAY_TASK_ID=$task \
            SLURM_ARRAY_TASK_COUNT=$tasks SLURM_RESTART_COUNT=$starts \
            setsid bash "$script" "$@" >> "$log" 2>&1 &
        pid=$!
        if [ "$task" = "$stop_task" ] && [ "$starts" = 0 ]; then
            sleep "$stop_after"
            if [ "$stop_signal" = KILL ]; then
                kill -KILL -- "-$pid" # the shell and the program, as a node does that goes down
                touch "$state/again-$task"
            else
                kill "-$stop_signal" "$pid"
            fi
        fi
        wait "$pid" 2>/dev/null
        code=$?
        [ -e "$state/again-$task" ] || break
        rm "$state/again-$task"
        starts=$((starts + 1))
        echo "task $task: stopped, and started again"
    done
    echo "task $task: exit code $code"
    return "$code"
}

failed=0 running=0
for task in $(seq "$tasks"); do
    if [ "$running" -ge "${AT_ONCE:-2}" ]; then
        wait -n || failed=1
        running=$((running - 1))
    fi
    run_task "$task" "$@" &
    running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
    wait -n || failed=1
    running=$((running - 1))
done
exit "$failed"
