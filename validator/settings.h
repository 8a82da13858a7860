/* The equipment's settings: environment variables, read once, typed and checked. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define SETTINGS_ID_SIZE 65 /* as long as a host name on Linux, and its NUL */

struct settings {
    const char *host, *username, *password, *ca_file; /* in the environment; all but the host may be NULL */
    char id[SETTINGS_ID_SIZE];
    double confirm_rate;
    uint64_t port, seed, delay_ms, verbose;
};

/* Returns NULL, or a sentence with the first bad variable and its good values. */
const char *settings_read(struct settings *settings);
