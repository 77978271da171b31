/* member.c - handle the messages of a ring together with the other members of a group. Start as many as
 * you like: `member NAME GROUP`. Each message is printed by one of them, and by another only if that one
 * died before it had said that it was done. */
#include <inttypes.h>
#include <stdio.h>
#include "ringcast.h"

/* What is to be done with a message; not 0 if that did not work. */
static int handle(const ringcast_message *message)
{
    return printf("%" PRIu64 " (delivery %" PRIu32 ") %.*s\n", message->sequence, message->deliveries,
                  (int)message->length, (const char *)message->payload) < 0 || fflush(stdout) != 0;
}

/* Join and handle messages until something ends that. */
static ringcast_status work(const char *name, const char *group)
{
    const ringcast_member_options options = {.start = RINGCAST_OLDEST, .label = "c member"};
    ringcast_member *member;
    ringcast_message message;
    ringcast_status status = ringcast_member_attach(&member, name, group, &options);
    if (status != RINGCAST_OK)
        return status;
    while ((status = ringcast_take(member, &message, RINGCAST_FOREVER)) == RINGCAST_OK) {
        int failed = handle(&message);
        status = (failed ? ringcast_give_back : ringcast_acknowledge)(member, &message, 1);
        if (status != RINGCAST_OK)
            break;
    }
    ringcast_member_close(member);
    return status;
}

int main(int argc, char **argv)
{
    ringcast_status status;
    if (argc < 3)
        return fprintf(stderr, "usage: member NAME GROUP\n"), 2;
    do /* a member that was evicted comes again: what it had in hand is others' */
        status = work(argv[1], argv[2]);
    while (status == RINGCAST_EVICTED);
    if (status != RINGCAST_ENDED)
        fprintf(stderr, "%s\n", ringcast_last_error());
    return status != RINGCAST_ENDED;
}
