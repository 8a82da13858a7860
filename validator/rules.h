/* The equipment's rules: read a question, choose the verdict, write the answer.
 * Pure functions: they don't know MQTT, print or keep state. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RULES_QUESTION_MAX 1024 /* bytes; a good one has about 75. It also limits how deep JSON nests. */
#define RULES_ID_SIZE 37        /* a UUID and its NUL */
#define RULES_ANSWER_SIZE 256   /* the longest answer has 199 bytes and its NUL */

struct question {
    char id[RULES_ID_SIZE]; /* always in lower case */
    int32_t station;
};

/* Reads a question from a payload. Returns NULL, or a sentence about its first mistake. */
const char *rules_read(const void *payload, size_t length, struct question *question);

/* True for the share `rate` of all ids. The same seed and id always give the same verdict. */
bool rules_confirm(const char *id, uint64_t seed, double rate);

/* The verdict as the answer spells it: "COMPLETED" or "ERROR". */
const char *rules_status(bool confirmed);

/* Why this is the verdict. The same seed, id and verdict always give the same reason. */
const char *rules_reason(const char *id, uint64_t seed, bool confirmed);

/* Writes the answer to the question with this id and returns its length. It never needs escapes. */
int rules_write(const char id[RULES_ID_SIZE], bool confirmed, const char *reason, const char *equipment,
                char answer[RULES_ANSWER_SIZE]);
