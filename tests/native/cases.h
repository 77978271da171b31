/* cases.h - runs the cases of a test program: all of them, each in a process of its own, or the one
 * that is named. Arguments: a seed, how many percent of the work to do, and a case's name.
 */
#ifndef RINGCAST_TEST_CASES_H
#define RINGCAST_TEST_CASES_H

#include "harness.h"

typedef struct test_case {
    const char *name;
    void (*run)(void);
} test_case;

static void run_here(void (*run)(void))
{
    alarm(CASE_SECONDS + 5); /* for what hangs where no deadline is looked at */
    deadline = rc_now_ns() + CASE_SECONDS * INT64_C(1000000000);
    throw_with(0);
    run();
}

/* Run a case in a child, so that one that fails, hangs or dies does not end the others; `clean`, if
 * not NULL, removes what one that failed has left. */
static int run_in_child(const test_case *c, void (*clean)(pid_t))
{
    int status = -1;
    int64_t began = rc_now_ns();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* whoever kills the parent ends the case */
        run_here(c->run);
        exit(0); /* not _exit: the leak check is made here */
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    if (clean)
        clean(child);
    printf("%-6s %-30s %6.2f s", status ? "FAILED" : "ok", c->name,
           (double)(rc_now_ns() - began) / 1e9);
    if (WIFSIGNALED(status))
        printf("  signal %d", WTERMSIG(status));
    printf("\n");
    return status != 0;
}

static int run_cases(int argc, char **argv, const test_case *cases, size_t count,
                     void (*clean)(pid_t))
{
    int failures = 0;
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)rc_clock_ns(CLOCK_REALTIME);
    percent = argc > 2 ? strtoull(argv[2], NULL, 0) : 100;
    printf("seed %" PRIu64 ", %" PRIu64 " %%\n", seed, percent);
    for (size_t i = 0; i < count; i++)
        if (argc <= 3)
            failures += run_in_child(&cases[i], clean);
        else if (strcmp(argv[3], cases[i].name) == 0)
            run_here(cases[i].run);
    return failures != 0;
}

#endif
