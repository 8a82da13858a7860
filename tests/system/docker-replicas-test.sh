#!/bin/sh
# Starts three replicas with PostgreSQL, nginx, Prometheus and Alertmanager, breaks and replaces them under load, and removes them.
set -eu
cd "$(dirname "$0")/../.."
export API_TOKEN=a-token-for-the-test POSTGRES_PASSWORD='p@ss/w%rd' # neither is the value in .env
project=energy2go-replicas-test
. tests/support/docker.sh
documented 'export COMPOSE_FILE=docker-compose.yml:deploy/replicas.yml'
documented 'replicas.yml:deploy/monitoring.yml'
PUBLISH=$(free_port) PUBLISH_PROMETHEUS=$(free_port)
export PUBLISH PUBLISH_PROMETHEUS
url=http://127.0.0.1:$PUBLISH

# curl reads the token from here, because every user can read a command line.
bearer="Authorization: Bearer $API_TOKEN"

start() { compose up -d --wait --wait-timeout 180 --no-recreate "$@"; }

# alertmanager: its image exists. Without a registry, we build one from Debian's package.
alertmanager() {
    image=$(sed -n 's/^ *image: \(prom.alertmanager.*\)/\1/p' deploy/monitoring.yml)
    docker image inspect "$image" >/dev/null 2>&1 || docker pull -q "$image" 2>/dev/null || docker build -q -t "$image" - <<'EOF'
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends prometheus-alertmanager busybox && ln -s busybox /usr/bin/wget \
 && ln -s prometheus-alertmanager /usr/bin/alertmanager && install -d -o nobody /alertmanager
USER nobody
ENTRYPOINT ["alertmanager"]
CMD ["--config.file=/etc/alertmanager/alertmanager.yml", "--storage.path=/alertmanager"]
EOF
}

alerted() {
    compose exec -T alertmanager wget -q -O - http://127.0.0.1:9093/api/v2/alerts | grep -q "\"alertname\":\"$1\""
}

filled_in() {
    compose exec -T alertmanager sh -c \
        'sed "s/# webhook/webhook/" /etc/alertmanager/alertmanager.yml | amtool check-config /dev/stdin' | grep -q "1 receivers"
}

back_up() {
    documented 'pg_dump' && dump=$(ls -t ./*.dump | head -n 1) && [ -s "$dump" ]
}

# tells REGEX: the first replica's own /readyz matches.
tells() {
    compose exec -T service python -c '
from http.client import HTTPConnection
connection = HTTPConnection("127.0.0.1", 8000)
connection.request("GET", "/readyz")
print(connection.getresponse().read().decode())' 2>/dev/null | grep -Eq "$1"
}

# targets REGEX COUNT: this many of the replicas that Prometheus reads match.
targets() {
    found=$(curl -s --noproxy '*' "http://127.0.0.1:$PUBLISH_PROMETHEUS/api/v1/targets")
    [ "$(echo "$found" | grep -Eo "$1" | grep -c .)" = "$2" ]
}

follows() { curl -sN --noproxy '*' -m 3 -H "$bearer" "$url/events" | grep -q "^event: begin"; }

dump=""
trap 'take_down; [ -z "$dump" ] || rm "$dump"' EXIT
trap 'exit 130' INT TERM HUP
take_down

check "there is an image of Alertmanager" quietly alertmanager
check "the images can be built" quietly documented 'docker compose build'
check "three replicas start and all is healthy" \
    quietly documented 'docker compose up -d --wait --scale service=3 --scale equipment=2'
check "nginx and Prometheus are published, only on 127.0.0.1" \
    [ "$(published | xargs -n 2 | sort | xargs)" = "8080/tcp 127.0.0.1 9090/tcp 127.0.0.1" ]
for name in postgres nginx prometheus alertmanager; do
    check "the $name is not root, has no capability, and has a read-only root" locked_up "$name"
done

check "a station is created through nginx" gets 201 '"id":' POST /stations -H "$bearer" -d '{"description": "Teste"}'
station=$(id)
check "a transaction gets its verdict" \
    gets 201 "$verdict" POST /transactions -H "$bearer" -H 'Prefer: wait=10' -d "{\"station_id\": $station}"
kept=$(id)
check "events come through nginx at once" follows
check "Prometheus reads all three replicas" within 60 targets '"health":"up"' 3
check "the receiver of alerts is one line to fill in" filled_in

check "clients send transactions" under_load post "$PUBLISH"
check "a replica is killed under load" quietly docker kill "$(compose ps -q service | head -n 1)"
check "it is started again" quietly start --scale service=3 --scale equipment=2
check "more transactions are accepted" more
check "each replica is replaced by a new one" quietly documented 'for old in'
check "more transactions are accepted" more
check "no request has failed, and nothing is lost" unharmed
tail -n 2 "$log"
check "Prometheus reads the three new replicas" within 60 targets '"health":"up"' 3

check "the database is backed up" back_up
check "a transaction comes after that" gets 201 '"status"' POST /transactions -H "$bearer" -d "{\"station_id\": $station}"
later=$(id)
check "the replicas stop" quietly documented 'docker compose stop service'
check "the backup is restored" quietly documented 'pg_restore'
check "the last migration is undone" undoes
check "all start and migrate again" quietly start --scale service=3 --scale equipment=2
check "nginx reads its configuration again" quietly documented '--force-recreate nginx'
check "what was backed up is there" within 30 gets 200 "$verdict" GET "/transactions/$kept" -H "$bearer"
check "what came later is not" gets 404 problem GET "/transactions/$later" -H "$bearer"

API_TOKEN=wrong
check "Prometheus gets a wrong token" quietly compose up -d --no-deps --force-recreate --wait prometheus
check "it says so" within 60 targets '"lastError":"[^"]*401' 3
check "Alertmanager gets the alert" within 180 alerted Down
API_TOKEN=a-token-for-the-test

check "there is no replica" quietly start --scale service=0 --scale equipment=2
check "nginx says so" within 20 gets 502 '^application/problem.json.*No replica can be reached' GET /stations
documented 'export POSTGRES_PASSWORD='
check "a replica has a wrong password for PostgreSQL" quietly compose up -d --no-deps service
check "it says so" within 30 tells 'password authentication failed for user'
check "it stores nothing, and says why" within 10 gets 503 'password authentication failed' \
    POST /transactions -H "$bearer" -d "{\"station_id\": $station}"
check "PostgreSQL gets this password, too" \
    quietly documented 'ALTER ROLE'
check "all replicas start with it" quietly documented 'docker compose up -d --wait --scale service=3 --scale equipment=2'
check "the data is still there" within 30 gets 200 "$verdict" GET "/transactions/$kept" -H "$bearer"
echo "$passed passed"
