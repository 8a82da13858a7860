/* What the equipment says: lines that neither block nor flood. */
#ifndef REPORT_H
#define REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* All zero at first. */
struct report {
    char last[400]; /* the last line of report_state() */
    int64_t minute_end;
    int troubles; /* within the minute */
    int64_t second_end;
    unsigned refusals; /* within the second that began with the first of them */
};

/* Milliseconds of a clock that nobody sets. */
int64_t now_ms(void);

/* Writes to a stream, unless that would block: a log that nobody reads must not stop the equipment. */
__attribute__((format(printf, 2, 3))) void say(FILE *to, const char *format, ...);

/* Tells on standard error how things are: in a minute the same thing once, and at most ten troubles. */
__attribute__((format(printf, 3, 4))) void report_state(struct report *report, bool trouble, const char *format, ...);

/* Tells on standard error what is wrong with a payload, and how it begins; of a flood, the rest is counted. */
void report_refusal(struct report *report, const char *why, const unsigned char *payload, size_t length);

/* Tells that count once its second is over; to be called about as often. */
void report_refused(struct report *report);

#endif
