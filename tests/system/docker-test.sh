#!/bin/sh
# Builds and starts the containers, uses and breaks them from outside, and removes them. Needs Docker and curl.
# It has its own project, port, images and volume, so a running `docker compose up` is not affected.
set -eu
cd "$(dirname "$0")/../.."
export PUBLISH=0  # any free port
export API_TOKEN= # not the value in .env
project=energy2go-test
alone=$project-alone
backup=$(mktemp)
verdict='"status":"(COMPLETED|ERROR)"'
answer=none
passed=0
newline='
'

compose() { docker compose -p "$project" -f docker-compose.yml "$@"; }

take_down() {
    docker rm -fv "$alone" || :
    compose down -v --remove-orphans --rmi local || :
    rm -f "$backup"
} >/dev/null 2>&1

# check SENTENCE COMMAND…: counts a success; a failure ends the test.
check() {
    sentence=$1
    shift
    if ! "$@"; then
        { docker logs --tail 20 "$alone" 2>/dev/null || compose logs --tail 20 || :; } >&2
        printf 'The last answer: %s\nFAILED: %s\n' "$answer" "$sentence" >&2
        exit 1
    fi
    passed=$((passed + 1))
    echo "ok: $sentence"
}

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

# walk WHEN: does what a user would do; sets $station and $transaction.
walk() {
    url=http://$(compose port service 8000)
    check "$1, the service is ready" within 30 gets 200 '"equipment":\{"[^"]+":"online"' GET /readyz
    check "$1, a station is created" gets 201 '^application/json \{"id":' POST /stations -d '{"description": "Teste"}'
    station=$(id)
    check "$1, a transaction gets a verdict" \
        gets 201 "$verdict" POST /transactions -H 'Prefer: wait=5' -d "{\"station_id\": $station}"
    transaction=$(id)
    check "$1, the list shows it" gets 200 "\"id\":\"$transaction\"" GET /transactions
    check "$1, an error is a problem" gets 422 '^application/problem.json .*"detail":"' POST /transactions -d '{}'
    check "$1, the API can be browsed" gets 200 swagger-ui GET /swagger/
    check "$1, with scripts from here" gets 200 SwaggerUI GET /swagger/swagger-ui-bundle.js
}

image() { docker inspect -f '{{.Image}}' "$(compose ps -aq "$1")"; }

smaller() { [ "$(docker image inspect -f '{{.Size}}' "$(image "$1")")" -lt "$2"000000 ]; }

published() {
    docker inspect -f '{{range $port, $at := .NetworkSettings.Ports}}{{range $at}}{{$port}} {{.HostIp}} {{end}}{{end}}' \
        $(compose ps -q) | xargs
}

locked_up() {
    compose exec -T "$1" sh -c '
        grep -q "^Uid:.[1-9]" /proc/1/status && grep -q "^CapBnd:.0*$" /proc/1/status &&
        grep -q "^NoNewPrivs:.1" /proc/1/status && grep -q "^[^ ]* / [^ ]* ro[, ]" /proc/mounts'
}

lacks() { variables=$(compose exec -T "$1" env) && ! echo "$variables" | grep -q "^$2="; }

# says REGEX: the service's log has such a line.
says() { compose logs service 2>&1 | grep -Eq "$1"; }

silent_about() { ! says "$1"; }

online() { gets 200 '"equipment":\{("[^"]+":"online",?){'"$1"'}\}' GET /readyz; }

ended_well() { [ "$(docker inspect -f '{{.State.ExitCode}}' $(compose ps -aq) | xargs)" = "0 0 0" ]; }

# The commands of docs/operations.md.
back_up() {
    name=$(compose exec -T service python -m kit.backup) &&
        compose cp "service:/energy2go/$name" "$backup" 2>/dev/null && [ -s "$backup" ]
}

restore() { compose run --rm --no-deps -T service python -m kit.backup restore /dev/stdin <"$backup"; }

refuses_to_restore() { ! said=$(restore 2>&1) && echo "$said" | grep -q 'stop the service first'; }

trap take_down EXIT
trap 'exit 130' INT TERM HUP
take_down

check "the images can be built" quietly compose build
check "everything starts and is healthy" quietly compose up --wait --wait-timeout 120
check "the image of the service is below 320 MB" smaller service 320
check "the image of the equipment is below 140 MB" smaller equipment 140
check "only 8000 is published, and only on 127.0.0.1" [ "$(published)" = "8000/tcp 127.0.0.1" ]
for name in broker equipment service; do
    check "the $name is not root, has no capability, and has a read-only root" locked_up "$name"
done
check "the equipment does not know the service's password" lacks equipment MQTT_PASSWORD
check "the service does not know the equipment's password" lacks service VALIDATOR_PASSWORD
check "the service's image has no .env and no tests" compose exec -T service sh -c '! ls -A | grep -E "env|test"'
walk "at first"

kept=$transaction
check "the database is backed up while the service runs" back_up
check "a transaction comes after that" gets 201 '"status"' POST /transactions -d "{\"station_id\": $station}"
later=$(id)
check "while the service runs, nothing is restored" refuses_to_restore
check "the service stops" quietly compose stop service
check "the backup is restored" quietly restore
check "the service starts again" quietly compose start service
url=http://$(compose port service 8000)
check "what was backed up is there" within 30 gets 200 "$verdict" GET "/transactions/$kept"
check "what came later is not" gets 404 problem GET "/transactions/$later"

check "there is room for every request that may wait" silent_about "leave room"
check "two more containers of the equipment start" quietly compose up -d --scale equipment=3 --no-recreate
check "each has its own name" within 30 online 3
walk "with three"
check "one is left" quietly compose up -d --scale equipment=1 --no-recreate

check "the broker is killed" quietly compose kill broker
check "without it, the service says what is wrong" within 10 gets 503 '"detail":"broker: ' GET /readyz
check "without it, the service is alive" gets 200 '"ok"' GET /healthz
check "without it, a transaction is accepted" \
    gets 201 '"status":"PENDING"' POST /transactions -d "{\"station_id\": $station}"
kept=$(id)
check "the broker is started again" quietly compose start broker
check "the transaction is settled" within 60 gets 200 "$verdict" GET "/transactions/$kept"
walk "with the broker back"

check "everything stops" quietly compose stop
check "nothing had to be killed" ended_well
check "new containers start" quietly compose up --wait --wait-timeout 120 --force-recreate
walk "in new containers"
check "the data is still there" gets 200 "$verdict" GET "/transactions/$kept"

check "the service starts alone" quietly docker run -d --name "$alone" -p 127.0.0.1::8000 "$(image service)"
url=http://$(docker port "$alone" 8000)
check "alone, it is alive" within 30 gets 200 '"ok"' GET /healthz
check "alone, it says what is wrong" gets 503 '"detail":"broker: ' GET /readyz
check "alone, it creates a station" gets 201 '"id":1,' POST /stations -d '{"description": "Teste"}'
check "alone, it accepts a transaction" gets 201 '"status":"PENDING"' POST /transactions -d '{"station_id": 1}'
echo "$passed passed"
