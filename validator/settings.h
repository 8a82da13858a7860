/* The settings of the equipment: environment variables, read once, typed and checked. */
#ifndef SETTINGS_H
#define SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#define SETTINGS_ID_SIZE 65 /* as long as a host name on Linux, and its NUL */

struct settings {
    const char *host; /* the pointers point into the environment */
    const char *username;
    const char *password;
    const char *ca_file;
    char id[SETTINGS_ID_SIZE];
    int port;
    double confirm_rate;
    uint64_t seed;
    int64_t delay_ms;
    bool verbose;
};

/* Returns NULL, or the sentence that names the first bad variable and says what it accepts. */
const char *settings_read(struct settings *settings);

#endif
