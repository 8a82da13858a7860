/* The log of the equipment: lines that neither block nor flood. */
#ifndef REPORT_H
#define REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Starts as all zero. */
struct report {
    char last[400]; /* the last line of report_state() */
    int64_t minute_end;
    int troubles; /* within the minute */
    int64_t second_end;
    unsigned refusals; /* within the second that began with the first of them */
};

/* Milliseconds of the monotonic clock. */
int64_t now_ms(void);

/* Writes to a stream, unless that would block: a log that is not read must not stop the equipment. */
__attribute__((format(printf, 2, 3))) void say(FILE *to, const char *format, ...);

/* Logs the state of the connection: each line once a minute, and at most ten troubles a minute. */
__attribute__((format(printf, 3, 4))) void report_state(struct report *report, bool trouble,
                                                        const char *format, ...);

/* Logs why a question is refused, and how it begins: at most twenty a second. */
void report_refusal(struct report *report, const char *why, const unsigned char *payload, size_t length);

/* Logs how many were left out, once the second is over. Call it at least once a second. */
void report_refused(struct report *report);

#endif
