#!/bin/sh
# Starts the broker: mosquitto.sh DIRECTORY [LISTENER]. It writes the passwords and copies of mosquitto.conf and
# mosquitto.acl to DIRECTORY. LISTENER is "PORT [ADDRESS]", as in mosquitto.conf(5).
set -eu
PATH=$PATH:/usr/sbin  # Debian installs mosquitto there
directory=$1
[ "${MQTT_HOST:-}" = ::1 ] && address=::1 || address=127.0.0.1
listener=${2:-"$MQTT_PORT $address"}
here=$(dirname "$0")

for account in MQTT VALIDATOR; do
    eval "name=\${${account}_USERNAME:-} password=\${${account}_PASSWORD:-}"
    case $name in
        "" | *[!A-Za-z0-9_-]*) echo "${account}_USERNAME: must be letters, digits, - and _" >&2; exit 2 ;;
    esac
    case $password in  # mosquitto_passwd would cut such a password
        "" | *[[:cntrl:]:]* | " "* | *" ")
            echo "${account}_PASSWORD: must not be empty, hold a colon, or begin or end with a space" >&2; exit 2 ;;
    esac
done
[ "$MQTT_USERNAME" != "$VALIDATOR_USERNAME" ] || { echo "VALIDATOR_USERNAME: must differ from MQTT_USERNAME" >&2; exit 2; }

umask 077
mkdir -p "$directory"
# Remove files from an earlier start: their permissions may be too wide.
rm -f "$directory/passwords" "$directory/mosquitto.acl" "$directory/mosquitto.conf"
printf '%s:%s\n' "$MQTT_USERNAME" "$MQTT_PASSWORD" "$VALIDATOR_USERNAME" "$VALIDATOR_PASSWORD" > "$directory/passwords"
mosquitto_passwd -U "$directory/passwords"
sed -e "s/^user MQTT_USERNAME$/user $MQTT_USERNAME/" -e "s/^user VALIDATOR_USERNAME$/user $VALIDATOR_USERNAME/" \
    "$here/mosquitto.acl" > "$directory/mosquitto.acl"
sed -e "s|^listener .*|listener $listener|" -e "s|/mosquitto/config/|$directory/|" \
    "$here/../mosquitto.conf" > "$directory/mosquitto.conf"
# If root starts mosquitto, it switches to a user that cannot read this directory.
[ "$(id -u)" != 0 ] || echo "user root" >> "$directory/mosquitto.conf"

export TZ=UTC  # for the times in its log
exec mosquitto -c "$directory/mosquitto.conf"
