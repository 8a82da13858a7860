#!/bin/sh
# Builds and starts the containers, uses and breaks them from outside, and removes them.
# It has its own project, port, images and volume, so it doesn't affect a running `docker compose up`.
set -eu
cd "$(dirname "$0")/../.."
export API_TOKEN= # not the value in .env
project=energy2go-test
alone=$project-alone
. tests/support/docker.sh
PUBLISH=$(free_port)
export PUBLISH

# walk WHEN: uses the service like a client; sets $station and $transaction.
walk() {
    url=http://127.0.0.1:$PUBLISH
    check "$1, the service is ready" within 30 gets 200 '"equipment":\{"[^"]+":"online"' GET /readyz
    check "$1, a station is created" gets 201 '^application/json \{"id":' POST /stations -d '{"description": "Teste"}'
    station=$(id)
    check "$1, a transaction gets a verdict" \
        gets 201 "$verdict" POST /transactions -H 'Prefer: wait=5' -d "{\"station_id\": $station}"
    transaction=$(id)
}

image() { docker inspect -f '{{.Image}}' "$(compose ps -aq "$1")"; }

size() { docker image inspect -f '{{.Size}}' "$1"; }

# adds SERVICE MEGABYTES BASE: its image is at most this much larger than its base image.
adds() { [ "$(size "$(image "$1")")" -lt $(($(size "$3") + $2 * 1000000)) ]; }

lacks() { variables=$(compose exec -T "$1" env) && ! echo "$variables" | grep -q "^$2="; }

online() { gets 200 '"equipment":\{("[^"]+":"online",?){'"$1"'}\}' GET /readyz; }

ended_well() { [ "$(docker inspect -f '{{.State.ExitCode}}' $(compose ps -aq) | xargs)" = "0 0 0" ]; }

# The commands of docs/operations.md.
copy=""
back_up() { documented 'copy=$(' && documented 'docker compose cp' && [ -s "${copy#var/}" ]; }

refuses() { ! said=$(documented "$1" 2>&1) && echo "$said" | grep -q 'stop the service first'; }

second() { documented 'energy2go-2' && curl -s --noproxy '*' http://127.0.0.1:8001/healthz | grep -q ok; }

remove_second() { COMPOSE_PROJECT_NAME=energy2go-2 docker compose down -v --rmi local -t 3; }

trap '{ docker rm -fv "$alone"; take_down; remove_second; rm -f "${copy#var/}"; } >/dev/null 2>&1' EXIT
trap 'exit 130' INT TERM HUP
take_down

check "the images can be built" quietly compose build
check "everything starts and is healthy" quietly documented 'docker compose up --wait'
check "the image of the service adds 45 MB to Python's" adds service 45 python:3.13-slim
check "the image of the equipment adds 3 MB to Debian's" adds equipment 3 debian:trixie-slim
check "only 8000 is published, and only on 127.0.0.1" [ "$(published)" = "8000/tcp 127.0.0.1" ]
for name in broker equipment service; do
    check "the $name is not root, has no capability, and has a read-only root" locked_up "$name"
done
check "the equipment does not know the service's password" lacks equipment MQTT_PASSWORD
check "the service does not know the equipment's password" lacks service VALIDATOR_PASSWORD
check "the service's image has no .env and no tests" compose exec -T service sh -c '! ls -A | grep -E "env|test"'
walk "at first"
check "the API can be browsed" gets 200 SwaggerUI GET /swagger/swagger-ui-bundle.js

kept=$transaction
check "the database is backed up while the service runs" back_up
check "a transaction comes after that" gets 201 '"status"' POST /transactions -d "{\"station_id\": $station}"
later=$(id)
check "while the service runs, nothing is restored" refuses 'kit.backup restore'
check "and no migration is undone" refuses 'kit.undo'
check "the service stops" quietly documented 'docker compose stop service'
check "the backup is restored" quietly documented 'kit.backup restore'
check "the last migration is undone" undoes
check "the service starts and migrates again" quietly documented 'docker compose start service'
url=http://$(compose port service 8000)
check "what was backed up is there" within 30 gets 200 "$verdict" GET "/transactions/$kept"
check "what came later is not" gets 404 problem GET "/transactions/$later"

check "a second checkout can run beside it" quietly second
check "and is removed" quietly remove_second

check "it warns that there is no token, however it is reached" \
    says service "no API_TOKEN is set, so every machine that can reach BIND=0.0.0.0:8000 can use the service"
check "there is room for every request that may wait" [ "$(compose logs service | grep -c "leave room")" = 0 ]
check "two more containers of the equipment start" quietly compose up -d --scale equipment=3 --no-recreate
check "each has its own name" within 30 online 3
check "one is left" quietly compose up -d --scale equipment=1 --no-recreate

check "clients send transactions" under_load break "$PUBLISH"
check "the service is stopped under load" quietly compose stop service
check "it did not have to be killed" [ "$(docker inspect -f '{{.State.ExitCode}}' "$(compose ps -aq service)")" = 0 ]
check "it is started again" quietly compose up -d --wait
check "more transactions are accepted" more
check "each client was told what is stored, and nothing is lost" unharmed
tail -n 2 "$log"

check "the broker is killed" quietly compose kill broker
check "without it, the service says what is wrong" within 10 gets 503 '"detail":"broker: ' GET /readyz
check "without it, the service is alive" gets 200 '"ok"' GET /healthz
check "without it, a transaction is accepted" \
    gets 201 '"status":"PENDING"' POST /transactions -d "{\"station_id\": $station}"
kept=$(id)
check "the broker is started again" quietly compose start broker
check "the transaction is settled" within 60 gets 200 "$verdict" GET "/transactions/$kept"

check "the log can be read" quietly documented 'docker compose logs'
check "everything stops" quietly documented 'docker compose stop'
check "nothing had to be killed" ended_well
check "new containers start" quietly compose up --wait --wait-timeout 120 --force-recreate
walk "in new containers"
check "the data is still there" gets 200 "$verdict" GET "/transactions/$kept"

check "the service starts alone" quietly docker run -d --name "$alone" -p 127.0.0.1::8000 "$(image service)"
url=http://$(docker port "$alone" 8000)
check "alone, it is alive" within 30 gets 200 '"ok"' GET /healthz
check "alone, it says what is wrong" gets 503 '"detail":"broker: ' GET /readyz
echo "$passed passed"
