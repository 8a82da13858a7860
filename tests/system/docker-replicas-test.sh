#!/bin/sh
# Starts three replicas with PostgreSQL, nginx and Prometheus, breaks and replaces them under load, and removes them.
set -eu
cd "$(dirname "$0")/../.."
export API_TOKEN=a-token-for-the-test POSTGRES_PASSWORD='p@ss/w%rd' # neither is the value in .env
project=energy2go-replicas-test
compose() {
    docker compose -p "$project" -f docker-compose.yml -f deploy/replicas.yml -f deploy/monitoring.yml "$@"
}

. tests/support/docker.sh
PUBLISH=$(free_port) PUBLISH_PROMETHEUS=$(free_port)
export PUBLISH PUBLISH_PROMETHEUS
url=http://127.0.0.1:$PUBLISH

# curl reads the token from here, as every user can read a command line.
bearer="Authorization: Bearer $API_TOKEN"

start() { compose up -d --wait --wait-timeout 180 --no-recreate "$@"; }

# roll: replaces each replica by a new one, one after the other.
roll() {
    for old in $(compose ps -q service); do
        start --scale service=4 --scale equipment=2 && docker stop "$old" && docker rm "$old" || return 1
    done
}

# readyz: what the first replica says of itself.
readyz() {
    compose exec -T service python -c '
from http.client import HTTPConnection
connection = HTTPConnection("127.0.0.1", 8000)
connection.request("GET", "/readyz")
print(connection.getresponse().read().decode())' 2>/dev/null
}

tells() { readyz | grep -Eq "$1"; }

# targets REGEX COUNT: so many of the replicas that Prometheus reads match.
targets() {
    found=$(curl -s --noproxy '*' "http://127.0.0.1:$PUBLISH_PROMETHEUS/api/v1/targets")
    [ "$(echo "$found" | grep -Eo "$1" | grep -c .)" = "$2" ]
}

follows() { curl -sN --noproxy '*' -m 3 -H "$bearer" "$url/events" | grep -q "^:"; }

compressed() {
    curl -s --noproxy '*' -H 'Accept-Encoding: gzip' -o /dev/null -D - "$url/swagger/swagger-ui-bundle.js" |
        grep -qi "^content-encoding: gzip"
}

trap take_down EXIT
trap 'exit 130' INT TERM HUP
take_down

check "the images can be built" quietly compose build
check "three replicas start and all is healthy" quietly start --scale service=3 --scale equipment=2
check "each of the nine containers has a healthcheck" healthy 9
check "no log can fill the disk" bounded
check "nginx and Prometheus are published, only on 127.0.0.1" \
    [ "$(published | xargs -n 2 | sort | xargs)" = "8080/tcp 127.0.0.1 9090/tcp 127.0.0.1" ]
for name in postgres nginx prometheus; do
    check "the $name is not root, has no capability, and has a read-only root" locked_up "$name"
done

check "a station is created through nginx" gets 201 '"id":' POST /stations -H "$bearer" -d '{"description": "Teste"}'
station=$(id)
check "a transaction gets its verdict" \
    gets 201 "$verdict" POST /transactions -H "$bearer" -H 'Prefer: wait=10' -d "{\"station_id\": $station}"
kept=$(id)
check "nginx answers with problems" gets 414 '^application/problem.json' GET "/$(printf '%09000d' 0)"
check "nginx does not pass on the metrics of one replica" gets 403 '^application/problem.json' GET /metrics
check "nginx passes on what the page needs" gets 200 '"broker":"ok"' GET /readyz
check "nginx compresses" compressed
check "events come through nginx at once" follows
check "Prometheus reads all three replicas" within 60 targets '"health":"up"' 3

check "clients send transactions" under_load post "$PUBLISH"
check "a replica is killed under load" quietly docker kill "$(compose ps -q service | head -n 1)"
check "more transactions are accepted" more
check "it is started again" quietly start --scale service=3 --scale equipment=2
check "more transactions are accepted" more
check "each replica is replaced by a new one" quietly roll
check "more transactions are accepted" more
check "no request has failed, and nothing is lost" unharmed
tail -n 2 "$log"
check "Prometheus reads the three new replicas" within 60 targets '"health":"up"' 3

API_TOKEN=wrong
check "Prometheus gets a wrong token" quietly compose up -d --no-deps --force-recreate --wait prometheus
check "it says so" within 60 targets '"lastError":"[^"]*401' 3
API_TOKEN=a-token-for-the-test

check "there is no replica" quietly start --scale service=0 --scale equipment=2
check "nginx says so" within 20 gets 502 '^application/problem.json.*No replica can be reached' GET /stations
POSTGRES_PASSWORD=another
check "a replica has a wrong password for PostgreSQL" quietly compose up -d --no-deps service
check "it says so" within 30 tells 'password authentication failed for user'
check "it stores nothing, and says why" within 10 gets 503 'password authentication failed' \
    POST /transactions -H "$bearer" -d "{\"station_id\": $station}"
check "PostgreSQL gets this password, too" \
    quietly compose exec -T postgres psql -U energy2go -c "ALTER ROLE energy2go PASSWORD '$POSTGRES_PASSWORD'"
check "the data is still there" within 30 gets 200 "$verdict" GET "/transactions/$kept" -H "$bearer"
echo "$passed passed"
