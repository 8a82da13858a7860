/* Tests for rules.c: the answer, and the verdicts' statistics. tests/system/validator asks the whole program. */
#include "rules.h"

#include <stdio.h>
#include <string.h>

#define ID "01890a5d-ac96-774b-bcce-b302099a8057"
#define MANY 100000

static int passed, failed;

static void check(bool good, const char *what)
{
    if (good) {
        passed++;
    } else {
        failed++;
        fprintf(stderr, "FAILED: %s\n", what);
    }
}

static void test_answers(void)
{
    char buffer[RULES_ANSWER_SIZE];
    const char *completed =
        "{\"transaction_id\":\"" ID "\",\"status\":\"COMPLETED\",\"reason\":\"fine\",\"equipment\":\"one\"}";
    char longest[65];
    int reasons = 0;

    check(rules_write(ID, true, "fine", "one", buffer) == (int)strlen(completed)
              && strcmp(buffer, completed) == 0,
          completed);
    memset(longest, 'x', 64);
    longest[64] = '\0';
    for (uint64_t seed = 0; seed < 100; seed++) {
        const char *reason = rules_reason(ID, seed, seed % 2 == 0);
        check(rules_write(ID, true, reason, longest, buffer) == (int)strlen(buffer), "an answer fits");
        check(strcmp(reason, rules_reason(ID, seed, seed % 2 == 0)) == 0, "the reason is always the same");
        reasons += strcmp(reason, rules_reason(ID, 1, false)) != 0;
    }
    check(reasons > 60 && reasons < 99, "there are several reasons");
}

/* Ids as the service makes them: they begin with the time, so neighbours have most digits in common. */
static void make_id(char id[RULES_ID_SIZE], unsigned number)
{
    snprintf(id, RULES_ID_SIZE, "01890a5d-%04x-7%03x-8000-%012x", number >> 12 & 0xFFFF, number & 0xFFF,
             number * 7);
}

static void test_share(uint64_t seed, double rate)
{
    char id[RULES_ID_SIZE], what[80];
    int confirmed = 0, pairs = 0, agreed = 0;
    bool last = false;

    for (unsigned number = 0; number < MANY; number++) {
        make_id(id, number);
        bool verdict = rules_confirm(id, seed, rate);
        confirmed += verdict;
        pairs += verdict && last;
        agreed += rules_confirm(id, seed, 0.5) == rules_confirm(id, seed + 1, 0.5);
        last = verdict;
    }
    double share = (double)confirmed / MANY - rate, in_pairs = (double)pairs / MANY - rate * rate;
    snprintf(what, sizeof what, "seed %llu, rate %g: confirmed %d", (unsigned long long)seed, rate,
             confirmed);
    check(share > -0.01 && share < 0.01, what);
    check(in_pairs > -0.01 && in_pairs < 0.01, "a verdict tells nothing about the next one");
    check(rate > 0 || confirmed == 0, "rate 0 confirms none");
    check(rate < 1 || confirmed == MANY, "rate 1 confirms all");
    check(agreed > MANY * 0.49 && agreed < MANY * 0.51, "two seeds agree on half of all ids");
}

/* A verdict must outlive an upgrade, since the service may ask again after one. */
static void test_known_verdicts(void)
{
    char verdicts[17] = "", id[RULES_ID_SIZE];

    for (unsigned number = 0; number < 16; number++) {
        make_id(id, number);
        verdicts[number] = rules_confirm(id, 1, 0.6) ? 'y' : 'n';
    }
    check(strcmp(verdicts, "yynyyyyyyyynyynn") == 0, verdicts);
}

int main(void)
{
    const double rates[] = {0, 0.01, 0.6, 1};

    test_answers();
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        test_share(1, rates[i]);
        test_share(UINT64_MAX, rates[i]);
    }
    test_known_verdicts();
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
