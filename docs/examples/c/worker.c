/* worker.c - print each message of a ring; `worker NAME TEXT` sends TEXT to the manager first. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "ringcast.h"

static ringcast_status send_text(const char *name, const char *text)
{
    const int64_t second_ns = 1000000000;
    ringcast_sender *sender;
    ringcast_status status = ringcast_sender_attach(&sender, name, "c worker", 0);
    if (status != RINGCAST_OK)
        return status;
    status = ringcast_send(sender, text, strlen(text), RINGCAST_TEXT, second_ns, NULL);
    if (status == RINGCAST_OK)
        status = ringcast_flush(sender, 5 * second_ns);
    ringcast_sender_close(sender);
    return status;
}

/* Attach and read until something ends that. `options` say where, and then where to go on. */
static ringcast_status read_all(const char *name, ringcast_reader_options *options)
{
    ringcast_reader *reader;
    ringcast_message message;
    ringcast_status status = ringcast_reader_attach(&reader, name, options);
    if (status != RINGCAST_OK)
        return status;
    while ((status = ringcast_read(reader, &message, RINGCAST_FOREVER)) == RINGCAST_OK) {
        printf("%" PRIu64 " (%" PRIu64 " missed) %.*s\n", message.sequence, message.gap,
               (int)message.length, (const char *)message.payload);
        options->start = RINGCAST_SEQUENCE; /* read it again if the reader was evicted meanwhile */
        options->sequence = message.sequence + (ringcast_valid(reader) ? 1 : 0);
    }
    ringcast_reader_close(reader);
    return status;
}

int main(int argc, char **argv)
{
    ringcast_reader_options options = {.label = "c worker"};
    ringcast_status status = argc > 2 ? send_text(argv[1], argv[2]) : RINGCAST_OK;
    if (argc < 2)
        return fprintf(stderr, "usage: worker NAME [TEXT]\n"), 2;
    while (status == RINGCAST_OK || status == RINGCAST_EVICTED)
        status = read_all(argv[1], &options);
    if (status != RINGCAST_ENDED)
        fprintf(stderr, "%s\n", ringcast_last_error());
    return status != RINGCAST_ENDED;
}
