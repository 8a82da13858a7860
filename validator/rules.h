/* What the equipment decides: read a question, take the verdict, write the answer.
 * Nothing here knows of MQTT, prints, or keeps state. */
#ifndef RULES_H
#define RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RULES_QUESTION_MAX 1024 /* bytes; a good question has about 75, and this bounds JSON's nesting too */
#define RULES_ID_SIZE 37        /* a UUID and its NUL */
#define RULES_ANSWER_SIZE 96    /* the longest answer has 78 bytes and its NUL */

enum rules_code {
    RULES_OK,
    RULES_TOO_LONG,
    RULES_HOLDS_NUL,
    RULES_NOT_UTF8,
    RULES_NOT_JSON,
    RULES_NOT_AN_OBJECT,
    RULES_ID_MISSING,
    RULES_ID_NOT_A_STRING,
    RULES_ID_NOT_A_UUID,
    RULES_STATION_MISSING,
    RULES_STATION_NOT_WHOLE,
    RULES_NO_ROOM
};

struct question {
    char id[RULES_ID_SIZE]; /* in lower case, however it was written */
    int32_t station;
};

/* The sentence that says what is wrong. Never NULL. */
const char *rules_sentence(enum rules_code code);

/* Fills in the question when the payload is one, and says why when it is not. */
enum rules_code rules_read(const void *payload, size_t length, struct question *question);

/* True for the share `rate` of all ids, chosen by `seed`, and always the same for one id. */
bool rules_confirm(const char *id, uint64_t seed, double rate);

/* "COMPLETED" or "ERROR", as the answer spells it. */
const char *rules_status(bool confirmed);

/* Writes the answer and its NUL; the id is one that rules_read() gave. */
enum rules_code rules_write(const char *id, bool confirmed, char *buffer, size_t size);

#endif
