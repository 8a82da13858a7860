/* The equipment's log, bounded. report.h documents each function. */
#define _POSIX_C_SOURCE 200809L
#include "report.h"

#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#define REPEAT_MS 60000 /* the same line comes once a minute */
#define LINE_MS 3000    /* 20 lines may come at once, and then one every 3 s */
#define BURST_MS (20 * LINE_MS)
#define EXCERPT_MAX 64 /* payload bytes */

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

void report(struct report *report, const char *format, ...)
{
    char line[sizeof report->last], more[60] = "";
    int64_t now = now_ms();
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments); /* cut if it is too long */
    va_end(arguments);
    if (report->paid_ms >= now + BURST_MS || (now < report->repeat_ms && strcmp(line, report->last) == 0)) {
        report->left_out++;
        return;
    }
    if (report->left_out > 0)
        snprintf(more, sizeof more, " (%u lines before this one were left out)", report->left_out);
    say(stderr, "validator: %s%s\n", line, more);
    memcpy(report->last, line, sizeof line);
    report->repeat_ms = now + REPEAT_MS;
    report->paid_ms = (report->paid_ms > now ? report->paid_ms : now) + LINE_MS;
    report->left_out = 0;
}

void report_refusal(struct report *log, const char *why, const unsigned char *payload, size_t length)
{
    char excerpt[4 * EXCERPT_MAX + 1] = "", *end = excerpt;

    for (size_t i = 0; i < length && i < EXCERPT_MAX; i++) {
        bool printable = payload[i] >= 0x20 && payload[i] < 0x7F;
        end += snprintf(end, 5, printable ? "%c" : "\\x%02X", payload[i]); /* at most "\xNN" and a NUL */
    }
    report(log, "ignored, %s: %s%s", why, excerpt, length > EXCERPT_MAX ? " ..." : "");
}
