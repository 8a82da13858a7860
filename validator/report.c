/* The log of the equipment, bounded; report.h says what each function promises. */
#define _POSIX_C_SOURCE 200809L
#include "report.h"

#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#define TROUBLES_PER_MINUTE 10
#define REFUSALS_PER_SECOND 20
#define EXCERPT_MAX 64 /* bytes of a payload */

int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void say(FILE *to, const char *format, ...)
{
    /* A pipe that reports POLLOUT has room for PIPE_BUF bytes, and all our lines are shorter. */
    struct pollfd out = {.fd = fileno(to), .events = POLLOUT};
    struct timespec now;
    struct tm utc;
    char date[sizeof "2026-11-25T15:51:31"] = "";
    va_list arguments;

    if (poll(&out, 1, 0) != 1)
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    if (gmtime_r(&now.tv_sec, &utc) != NULL)
        strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);
    fprintf(to, "%s.%03ldZ ", date, now.tv_nsec / 1000000);
    va_start(arguments, format);
    vfprintf(to, format, arguments);
    va_end(arguments);
}

void report_state(struct report *report, bool trouble, const char *format, ...)
{
    char line[sizeof report->last];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments); /* cut if it is too long */
    va_end(arguments);
    if (now_ms() >= report->minute_end) {
        report->minute_end = now_ms() + 60000;
        report->troubles = 0;
        report->last[0] = '\0';
    }
    if (strcmp(line, report->last) == 0 || (trouble && report->troubles++ >= TROUBLES_PER_MINUTE))
        return;
    memcpy(report->last, line, sizeof line);
    say(stderr, "validator: %s\n", line);
}

void report_refusal(struct report *report, const char *why, const unsigned char *payload, size_t length)
{
    char excerpt[4 * EXCERPT_MAX + 1] = "", *end = excerpt;

    if (report->refusals == 0)
        report->second_end = now_ms() + 1000;
    if (report->refusals++ >= REFUSALS_PER_SECOND)
        return;
    for (size_t i = 0; i < length && i < EXCERPT_MAX; i++) {
        bool printable = payload[i] >= 0x20 && payload[i] < 0x7F;
        end += snprintf(end, 5, printable ? "%c" : "\\x%02X", payload[i]); /* at most "\xNN" and a NUL */
    }
    say(stderr, "validator: ignored, %s: %s%s\n", why, excerpt, length > EXCERPT_MAX ? " ..." : "");
}

void report_refused(struct report *report)
{
    if (report->refusals == 0 || now_ms() < report->second_end)
        return;
    if (report->refusals > REFUSALS_PER_SECOND)
        say(stderr, "validator: ignored %u more\n", report->refusals - REFUSALS_PER_SECOND);
    report->refusals = 0;
}
