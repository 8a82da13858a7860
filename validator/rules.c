/* What the equipment decides, in pure functions; rules.h says what each one promises. */
#include "rules.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

const char *rules_sentence(enum rules_code code)
{
    switch (code) {
    case RULES_OK: return "the question is good";
    case RULES_TOO_LONG: return "the question is too long";
    case RULES_HOLDS_NUL: return "the question holds a NUL byte";
    case RULES_NOT_UTF8: return "the question is not UTF-8";
    case RULES_NOT_JSON: return "the question is not JSON";
    case RULES_NOT_AN_OBJECT: return "the question is not a JSON object";
    case RULES_ID_MISSING: return "transaction_id is missing";
    case RULES_ID_NOT_A_STRING: return "transaction_id is not a string";
    case RULES_ID_NOT_A_UUID: return "transaction_id is not a UUID";
    case RULES_STATION_MISSING: return "station_id is missing";
    case RULES_STATION_NOT_WHOLE: return "station_id is not a whole number from 1 to 2147483647";
    case RULES_NO_ROOM: return "the answer does not fit";
    }
    return "unknown code";
}

/* RFC 3629: no overlong form, no surrogate, nothing past U+10FFFF; all three show in the second byte. */
static bool is_utf8(const unsigned char *text, size_t length)
{
    for (size_t i = 0; i < length;) {
        unsigned char lead = text[i++];
        if (lead < 0x80)
            continue;
        size_t more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
        if (lead < 0xC2 || lead > 0xF4 || length - i < more)
            return false;
        unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        if (text[i] < low || text[i] > high)
            return false;
        for (size_t k = 1; k < more; k++)
            if ((text[i + k] & 0xC0) != 0x80)
                return false;
        i += more;
    }
    return true;
}

/* cJSON takes any control character for a blank, and \u0000, or a \u without its digits, for the end of a
 * string: RFC 8259 allows neither the first nor the last, and no id needs the other. */
static bool cjson_would_misread(const char *text)
{
    for (const char *c = text; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 && strchr("\t\n\r", *c) == NULL)
            return true;
    for (const char *c = text; (c = strchr(c, '\\')) != NULL && c[1] != '\0'; c += 2)
        if (c[1] == 'u' && (strspn(c + 2, "0123456789abcdefABCDEF") < 4 || strncmp(c + 2, "0000", 4) == 0))
            return true;
    return false;
}

static bool read_uuid(const char *text, char id[RULES_ID_SIZE])
{
    if (strlen(text) != RULES_ID_SIZE - 1)
        return false;
    for (size_t i = 0; i < RULES_ID_SIZE; i++) {
        unsigned char c = (unsigned char)text[i];
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (c != '\0' && (dash ? c != '-' : !isxdigit(c)))
            return false;
        id[i] = (char)tolower(c);
    }
    return true;
}

static enum rules_code read_object(const cJSON *object, struct question *question)
{
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(object, "transaction_id");
    const cJSON *station = cJSON_GetObjectItemCaseSensitive(object, "station_id");

    if (!cJSON_IsObject(object))
        return RULES_NOT_AN_OBJECT;
    if (id == NULL)
        return RULES_ID_MISSING;
    if (!cJSON_IsString(id))
        return RULES_ID_NOT_A_STRING;
    if (!read_uuid(id->valuestring, question->id))
        return RULES_ID_NOT_A_UUID;
    if (station == NULL)
        return RULES_STATION_MISSING;
    /* valueint is valuedouble cut to an int, so the two differ for a fraction and for what is too large. */
    if (!cJSON_IsNumber(station) || station->valueint < 1 || station->valuedouble != (double)station->valueint)
        return RULES_STATION_NOT_WHOLE;
    question->station = station->valueint;
    return RULES_OK;
}

enum rules_code rules_read(const void *payload, size_t length, struct question *question)
{
    char text[RULES_QUESTION_MAX + 1];

    if (length > RULES_QUESTION_MAX)
        return RULES_TOO_LONG;
    if (length == 0)
        return RULES_NOT_JSON;
    if (memchr(payload, '\0', length) != NULL)
        return RULES_HOLDS_NUL;
    if (!is_utf8(payload, length))
        return RULES_NOT_UTF8;
    memcpy(text, payload, length);
    text[length] = '\0';
    if (cjson_would_misread(text))
        return RULES_NOT_JSON;

    cJSON *json = cJSON_ParseWithOpts(text, NULL, true); /* true: nothing may follow the value */
    if (json == NULL)
        return RULES_NOT_JSON;
    enum rules_code code = read_object(json, question);
    cJSON_Delete(json);
    return code;
}

/* The finalizer of splitmix64: each bit of the result depends on every bit of x. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

bool rules_confirm(const char *id, uint64_t seed, double rate)
{
    /* FNV-1a over the id, begun from the seed. Plain FNV barely moves its high bits, hence mix(). */
    uint64_t hash = UINT64_C(0xCBF29CE484222325) ^ mix(seed + UINT64_C(0x9E3779B97F4A7C15));
    for (; *id != '\0'; id++)
        hash = (hash ^ (unsigned char)*id) * UINT64_C(0x100000001B3);
    /* The upper 53 bits, as many as a double holds, make a number in [0, 1): 0 confirms none, 1 all. */
    return (double)(mix(hash) >> 11) * 0x1p-53 < rate;
}

const char *rules_status(bool confirmed)
{
    return confirmed ? "COMPLETED" : "ERROR";
}

enum rules_code rules_write(const char *id, bool confirmed, char *buffer, size_t size)
{
    int length = snprintf(buffer, size, "{\"transaction_id\":\"%s\",\"status\":\"%s\"}", id, rules_status(confirmed));
    return length >= 0 && (size_t)length < size ? RULES_OK : RULES_NO_ROOM;
}
