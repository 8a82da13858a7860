/* The environment, read once, typed and checked. */
#ifndef SETTINGS_H
#define SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

struct settings {
    const char *host; /* these point into the environment */
    const char *username;
    const char *password;
    const char *ca_file;
    const char *id;
    int port;
    double confirm_rate;
    uint64_t seed;
    int64_t delay_ms;
    bool verbose;
};

/* Returns NULL, or the sentence that names the first bad variable and says what it accepts. */
const char *settings_read(struct settings *settings);

#endif
