/* The equipment's settings. A variable that is unset or empty means its default; only VALIDATOR_ID keeps the
 * two apart. Numbers are strict: strtod() and strtoull() accept "0.6x", " 1", "-1" and "nan", and we don't. */
#define _POSIX_C_SOURCE 200809L /* gethostname() */
#include "settings.h"

#include <errno.h>
#include <mosquitto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DIGITS "0123456789"
#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define MQTT_STRING_MAX 65535 /* bytes; libmosquitto would send a longer one's length wrong */

static const char *text(const char *name, const char *standard)
{
    const char *value = getenv(name);
    return value != NULL && *value != '\0' ? value : standard;
}

static bool consists_of(const char *value, const char *characters)
{
    return value[strspn(value, characters)] == '\0';
}

static bool whole(const char *name, const char *standard, uint64_t low, uint64_t high, uint64_t *number)
{
    const char *value = text(name, standard);

    errno = 0;
    *number = strtoull(value, NULL, 10);
    return consists_of(value, DIGITS) && errno == 0 && *number >= low && *number <= high;
}

static bool share(const char *name, const char *standard, double *number)
{
    const char *value = text(name, standard);
    char *end;

    *number = strtod(value, &end);
    return consists_of(value, DIGITS ".") && end != value && *end == '\0' && *number <= 1;
}

/* One colon would be "host:port"; an IPv6 address has more. */
static bool is_host(const char *value)
{
    const char *colon = strchr(value, ':');
    return consists_of(value, LETTERS DIGITS ".-_:%") && (colon == NULL || strchr(colon + 1, ':') != NULL);
}

/* The client id is also a topic level, where '/', '+' and '#' have a meaning. */
static bool is_id(const char *value)
{
    return *value != '\0' && strlen(value) < SETTINGS_ID_SIZE && consists_of(value, LETTERS DIGITS "_-");
}

static bool is_mqtt_string(const char *value)
{
    size_t length = strlen(value);
    return length <= MQTT_STRING_MAX && mosquitto_validate_utf8(value, (int)length) == MOSQ_ERR_SUCCESS;
}

static const char *read_id(char id[SETTINGS_ID_SIZE])
{
    const char *value = getenv("VALIDATOR_ID");

    if (value == NULL)
        value = "validator-1";
    if (*value != '\0') {
        snprintf(id, SETTINGS_ID_SIZE, "%s", value);
        return is_id(value) ? NULL : "VALIDATOR_ID must be 1 to 64 letters, digits, '_' and '-', or empty";
    }
    /* Empty means the host name: each container of `docker compose up --scale equipment=3` has its own. */
    if (gethostname(id, SETTINGS_ID_SIZE) != 0)
        *id = '\0';
    for (char *dot = id; (dot = strchr(dot, '.')) != NULL;)
        *dot = '-';
    return is_id(id) ? NULL : "VALIDATOR_ID must be set: the host name has other characters";
}

const char *settings_read(struct settings *settings)
{
    settings->host = text("MQTT_HOST", "127.0.0.1");
    settings->username = text("VALIDATOR_USERNAME", NULL);
    settings->password = text("VALIDATOR_PASSWORD", NULL);
    settings->ca_file = text("MQTT_CA_FILE", NULL);

    if (!is_host(settings->host))
        return "MQTT_HOST must be a host name or an address such as ::1, without a scheme or a port";
    if (!whole("MQTT_PORT", "18830", 1, 65535, &settings->port))
        return "MQTT_PORT must be a whole number from 1 to 65535";
    if (settings->username != NULL && !is_mqtt_string(settings->username))
        return "VALIDATOR_USERNAME must be UTF-8 of at most 65535 bytes";
    if (settings->password != NULL && strlen(settings->password) > MQTT_STRING_MAX)
        return "VALIDATOR_PASSWORD must be at most 65535 bytes long";
    if (!share("VALIDATOR_CONFIRM_RATE", "0.6", &settings->confirm_rate))
        return "VALIDATOR_CONFIRM_RATE must be a decimal number from 0 to 1, such as 0.6";
    if (!whole("VALIDATOR_SEED", "1", 0, UINT64_MAX, &settings->seed))
        return "VALIDATOR_SEED must be a whole number from 0 to 18446744073709551615";
    if (!whole("VALIDATOR_DELAY_MS", "0", 0, 3600000, &settings->delay_ms))
        return "VALIDATOR_DELAY_MS must be a whole number of milliseconds from 0 to 3600000";
    if (!whole("VALIDATOR_VERBOSE", "0", 0, 1, &settings->verbose))
        return "VALIDATOR_VERBOSE must be 0 or 1";
    return read_id(settings->id);
}
