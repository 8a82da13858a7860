/* The equipment's log: lines that neither block nor flood. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Zero-initialise. */
struct report {
    char last[400];    /* the last line */
    int64_t repeat_ms; /* when it may come again */
    int64_t paid_ms;   /* each line moves this on; how far it may be ahead of now is limited */
    unsigned left_out; /* lines since the last one */
};

/* Milliseconds on the monotonic clock. */
int64_t now_ms(void);

/* Writes to a stream, unless that would block: a log that no one reads must not stop the equipment. */
__attribute__((format(printf, 2, 3))) void say(FILE *to, const char *format, ...);

/* Logs a line, unless there are too many of them. The next one counts the lines left out. */
__attribute__((format(printf, 2, 3))) void report(struct report *report, const char *format, ...);

/* Logs why a question is refused, and how it begins. */
void report_refusal(struct report *log, const char *why, const unsigned char *payload, size_t length);
