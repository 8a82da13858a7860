/* The environment, read once: a variable that is unset or empty means its default, and a number is nothing but
 * a number ("0.6x", " 1", "-1" and "nan", all welcome to strtod and strtoull, are mistakes here). */
#include "settings.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DIGITS "0123456789"
#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define ID_MAX 64

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

const char *settings_read(struct settings *settings)
{
    uint64_t port, seed, delay, verbose;

    settings->host = text("MQTT_HOST", "127.0.0.1");
    settings->username = text("VALIDATOR_USERNAME", NULL);
    settings->password = text("VALIDATOR_PASSWORD", NULL);
    settings->ca_file = text("MQTT_CA_FILE", NULL);
    settings->id = text("VALIDATOR_ID", "validator-1");

    if (!whole("MQTT_PORT", "18830", 1, 65535, &port))
        return "MQTT_PORT must be a whole number from 1 to 65535";
    /* The id is a client id and a level of a topic, where '/', '+' and '#' have a meaning. */
    if (strlen(settings->id) > ID_MAX || !consists_of(settings->id, LETTERS DIGITS "_-"))
        return "VALIDATOR_ID must be 1 to 64 letters, digits, '_' and '-'";
    if (!share("VALIDATOR_CONFIRM_RATE", "0.6", &settings->confirm_rate))
        return "VALIDATOR_CONFIRM_RATE must be a decimal number from 0 to 1, such as 0.6";
    if (!whole("VALIDATOR_SEED", "1", 0, UINT64_MAX, &seed))
        return "VALIDATOR_SEED must be a whole number from 0 to 18446744073709551615";
    if (!whole("VALIDATOR_DELAY_MS", "0", 0, 3600000, &delay))
        return "VALIDATOR_DELAY_MS must be a whole number of milliseconds from 0 to 3600000";
    if (!whole("VALIDATOR_VERBOSE", "0", 0, 1, &verbose))
        return "VALIDATOR_VERBOSE must be 0 or 1";

    settings->port = (int)port;
    settings->seed = seed;
    settings->delay_ms = (int64_t)delay;
    settings->verbose = verbose == 1;
    return NULL;
}
