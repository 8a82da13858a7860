# Functions for the tests of containers, which set $project. Needs Docker, curl and .venv/dev.
verdict='"status":"(COMPLETED|ERROR)"'
answer=none
passed=0
newline='
'

load="" # the pid of a load
export COMPOSE_PROJECT_NAME="$project"
compose() { docker compose "$@"; }
log=$(mktemp)

take_down() {
    [ -z "$load" ] || kill "$load"
    rm -f "$log"
    compose down -v --remove-orphans --rmi local -t 3 || :
} >/dev/null 2>&1

# check SENTENCE COMMAND…: counts a success; a failure ends the test.
check() {
    sentence=$1
    shift
    if ! "$@"; then
        compose logs --tail 20 >&2 || :
        cat "$log" >&2
        printf 'The last answer: %s\nFAILED: %s\n' "$answer" "$sentence" >&2
        exit 1
    fi
    passed=$((passed + 1))
    echo "ok: $sentence"
}

# documented TEXT: runs the command in docs/operations.md that equals or contains this text.
documented() { command=$(.venv/bin/python tests/support/documents.py "$1") && eval "$command"; }

undoes() { documented 'kit.undo' | grep -q '^Undone: 0003_'; }

# quietly COMMAND…: shows the command's output only if it fails.
quietly() { said=$("$@" 2>&1) || { echo "$said" >&2; return 1; }; }

# within SECONDS COMMAND…: repeats the command until it succeeds.
within() {
    deadline=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$deadline" ] || return 1
        sleep 0.2
    done
}

# gets STATUS REGEX METHOD PATH [CURL OPTION…]: the answer has this status, and "TYPE BODY" matches.
gets() {
    status=$1 regex=$2 method=$3 path=$4
    shift 4
    answer=$(curl -s --noproxy '*' -m 40 -X "$method" -w '\n%{content_type} %{http_code}' \
        -H 'Content-Type: application/json' "$@" "$url$path") || :
    body=${answer%"$newline"*} head=${answer##*"$newline"}
    [ "${head##* }" = "$status" ] && printf '%s %s' "${head% *}" "$body" | grep -Eq "$regex"
}

id() { printf '%s' "$body" | sed 's/^{"id":"\{0,1\}\([^",]*\).*/\1/'; }

free_port() { .venv/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# under_load COMMAND PORT: starts a load, see docker_load.py. Its output is in $log.
under_load() {
    : >"$log"
    PYTHONPATH=.:tests/support .venv/bin/python tests/support/docker_load.py "$@" >"$log" 2>&1 &
    load=$!
    more
}

# more: waits until 200 more transactions are accepted.
more() { goal=$(($(grep -c . "$log") + 2)); within 60 reached; }
reached() { [ "$(grep -c . "$log")" -ge "$goal" ]; }

# unharmed: ends the load; nothing was lost, and nothing failed.
unharmed() {
    ended=$load load=""
    kill "$ended"
    wait "$ended"
}

published() {
    docker inspect -f '{{range $port, $at := .NetworkSettings.Ports}}{{range $at}}{{$port}} {{.HostIp}} {{end}}{{end}}' \
        $(compose ps -q) | xargs
}

locked_up() {
    compose exec -T "$1" sh -c '
        grep -q "^Uid:.[1-9]" /proc/1/status && grep -q "^CapBnd:.0*$" /proc/1/status &&
        grep -q "^NoNewPrivs:.1" /proc/1/status && grep -q "^[^ ]* / [^ ]* ro[, ]" /proc/mounts'
}

# says SERVICE REGEX: its log has such a line.
says() { compose logs "$1" 2>&1 | grep -Eq "$2"; }
