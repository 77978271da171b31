/* note.h - a few bytes that a writer publishes about itself, such as the state of its connection.
 *
 * They mean something to the application alone. The note is kept twice: copy number version & 1 is
 * the one to read and the writer works on the other, so a writer that dies meanwhile leaves a whole
 * note, and a reader never waits for a writer.
 */
#ifndef RINGCAST_NOTE_H
#define RINGCAST_NOTE_H

#include "base.h"
#include "layout.h"

/* Replace the note; one thread at a time, the writer's. */
static inline void rc_note_write(rc_header *header, const uint8_t *bytes, uint32_t length)
{
    uint64_t version = rc_load(&header->note_version);
    rc_note *note = &header->notes[(version + 1) & 1];
    /* release: pairs with the acquire fence in rc_note_read(): who sees a word of the new note sees
     * that the version is past the one before */
    atomic_thread_fence(memory_order_release);
    rc_store(&note->length, length);
    rc_store_words(note->words, (const char *)bytes, length);
    rc_store_release(&header->note_version, version + 1); /* acquire: rc_note_read() */
}

/* Copy the note, at most RC_NOTE_MAX bytes, and return its length; -1 if it
 * changed meanwhile (look again), or is impossible. */
static inline int32_t rc_note_read(const rc_header *header, uint8_t *bytes)
{
    uint64_t version = rc_load_acquire(&header->note_version);
    const rc_note *note = &header->notes[version & 1];
    uint64_t length = rc_load(&note->length);
    if (length > RC_NOTE_MAX)
        return -1;
    rc_load_words(note->words, (char *)bytes, length);
    rc_fence_acquire();
    return rc_load(&header->note_version) == version ? (int32_t)length : -1;
}

#endif
