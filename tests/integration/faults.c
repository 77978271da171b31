/* faults.c - die of SIGKILL at a numbered step of the protocol (RC_FAULT in broadcast.h).
 *
 * The environment says where: RINGCAST_FAULT=step:nth, at the nth time that step is reached. It is
 * read once. Without it nothing happens. Linked into builds with -DRC_FAULTS only; for processes
 * with one thread.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void rc_fault(int step);

void rc_fault(int step)
{
    static int wanted = -2, left;
    if (wanted == -2) {
        const char *where = getenv("RINGCAST_FAULT");
        if (!where || sscanf(where, "%d:%d", &wanted, &left) != 2)
            wanted = -1;
    }
    if (step == wanted && --left == 0)
        kill(getpid(), SIGKILL); /* delivered before kill() returns */
}
