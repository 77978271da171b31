/*
 * The uplink: many senders, one receiver, one order (shm/mpsc.h).
 *
 * A ticket is a message's place in the order.  A sender writes a record at the
 * end of its own lane, stores `written`, writes ticket t into the record, and
 * swaps the ticket's word from free(t) to filled(t, lane); by that step, and by
 * no other, the message is sent.  Whoever finds the word filled goes on to the
 * next ticket.  Where to begin is the receiver's `head`, or a hint, believed if
 * the word before it is filled; the hint here is any ticket at all.
 *
 * The receiver takes the message of head's word: note in `taking` what is to be
 * done, free the word, move head, count the message, free the lane's bytes.  By
 * the second of these steps, and by no other, it is taken.  Later, in the order
 * of tickets, it acknowledges what it has taken.
 *
 * A successor walks over the words that were freed before head was moved, stores
 * head, does what the note tells, and gives up what was taken and not answered:
 * `unconfirmed` is the total of those of all deaths.
 *
 * A sender's lock on its lane is its life.  It frees a lane in which all is taken
 * and acknowledged; any other the receiver frees, under the lock, once head has
 * passed the end of the filled words as they were when it first held the lock
 * (`free_at`) and all that was taken is acknowledged, by the tickets or by the
 * counts.  It may cut a sender off whose message it has not acknowledged.
 *
 * Proved, with hands that may stop for ever between any two steps:
 *
 *   - the messages whose swaps succeeded are taken once each, in the order of
 *     tickets, whole, and no other is; but those of a sender that was evicted;
 *     so over a receiver's death a message is taken at most once;
 *   - tickets have no holes, and the ring of tickets is never full;
 *   - a successor finds lane, count and head as if its predecessor had finished,
 *     also if that one died while it succeeded another; and `unconfirmed` is the
 *     number of messages that were taken and not answered;
 *   - the first record in a lane is the one that is due: a record that was never
 *     committed lies after all that were, and goes when the lane is freed;
 *   - a lane's new owner finds it empty; it is not freed, nor evicted, nor are
 *     acknowledgements counted, for what an owner before it did;
 *   - what the receiver stores again now and then (head, a lane's `taken`, and
 *     `written` if the lane is free) is what is there already;
 *   - nobody waits for the dead: every sender that lives, and is not evicted,
 *     sends all it has, all is acknowledged or unconfirmed, and every lane is free in
 *     the end.  A step is repeated only after another's success, so whoever waits
 *     in vain leaves the model in an invalid end state.
 *
 * Configurations, to be put together:
 *
 *   (none)              two senders of two messages, a lane of one record each.
 *   LANES_OF_TWO        lanes of two records.
 *   REUSE               two owners of lane 0, one of lane 1; a message each, but
 *                       two with EVICT, so that one is dropped.
 *   SENDER_DIES         one, at any step.
 *   RECEIVER_DIES       once, at any step, a successor's first ones included.
 *   RECEIVER_DIES_TWICE
 *   EVICT             the receiver cuts a sender off.
 *   WINDOW              a sender has one message that is not acknowledged.
 *
 * Memory is sequentially consistent here: but for sleeping, in uplink_wake.pml,
 * nobody stores one word and then looks at another that the other side stores
 * before it looks at the first; what is written before a release is seen after
 * the acquire that sees it, and a dead process's stores are visible before the
 * kernel gives its lock to another.
 *
 * Left out: lengths and padding, wider windows, hostile senders, the voiding of
 * holes, which there are none of, and the receiver's end.
 *
 * Mutants, and what each breaks:
 *
 *   TWO_STEPS          the ticket is written into the record after the swap: the
 *                      receiver finds a record that is not whole.
 *   BLIND_HINT         a hint is believed if its own word is free: a hole, and
 *                      what lies behind it is never taken.
 *   TAKEN_IS_NEXT      a sender that finds its ticket taken goes on to the ticket
 *                      that the word is free for, not to the next: a hole.
 *   BYTES_FIRST        the lane's bytes are freed before the word: there are more
 *                      records than tickets.
 *   BYTES_BEFORE_HEAD  they are freed before head is moved: the freed word is
 *                      filled anew, and a successor does not know it was freed.
 *   HEAD_LATE          the same by a successor that does what the note tells,
 *                      dies, and had not stored head.
 *   NO_WALK            a successor does not look for words that were freed.
 *   NO_NOTE            a message is neither counted nor are its bytes freed.
 *   NOTE_NOT_CLEARED   the note of one message is overwritten by that of the
 *                      next; a receiver that dies meanwhile leaves a mixture.
 *   COUNT_FIRST        a message is counted before its word is freed, and stays.
 *   UNCONFIRMED_ADDED       a successor adds to `unconfirmed` what is outstanding, dies,
 *                      and the next adds it again.
 *   UNCONFIRMED_OUTSTANDING (WINDOW) what is unconfirmed counts as not acknowledged: its
 *                      sender waits for ever for the dead one's answer.
 *   LEAVE_UNANSWERED   a sender frees a lane with messages that are not
 *                      acknowledged: the next owner gets the answer.
 *   NOT_SETTLED        the receiver does.
 *   NO_FREE_AT         a dead sender's lane is freed though tickets of it are
 *                      outstanding.
 *   NO_SECOND_LOOK     the receiver, the lock in hand, does not look whether the
 *                      lane is free by now: it keeps a `free_at` that is too
 *                      early for the next owner, and frees its lane.
 *   WRITTEN_STAYS      what was never committed is left to the next owner.
 *   EVICT_LATE       a sender is evicted for a message that is acknowledged: it
 *                      is the next owner by then.
 */

#ifdef LANES_OF_TWO
#define SIZE 2             /* records a lane holds */
#else
#define SIZE 1
#endif

#ifdef REUSE
#define LIVES(lane) (2 - (lane))    /* owners of a lane, one after another */
#else
#define LIVES(lane) 1
#endif

#if defined(REUSE) && !defined(EVICT)
#define MESSAGES 1                  /* in a sender's life */
#else
#define MESSAGES 2
#endif

#ifdef SENDER_DIES
#define SENDER_DEATHS 1
#else
#define SENDER_DEATHS 0
#endif

#if defined(RECEIVER_DIES_TWICE)
#define RECEIVER_DEATHS 2
#elif defined(RECEIVER_DIES)
#define RECEIVER_DEATHS 1
#else
#define RECEIVER_DEATHS 0
#endif

#ifdef EVICT
#define CUTS 1
#else
#define CUTS 0
#endif

#define LANES 2
#define TICKETS (LANES * SIZE)
#define LAST (MESSAGES * (LIVES(0) + LIVES(1)))   /* no more tickets are claimed */

#define FREE_WORD(t) ((t) * 4)
#define FILLED_WORD(t, s) ((t) * 4 + (s) + 1)
#define TICKET(w) ((w) / 4)
#define OWNER(w) ((w) % 4)
#define WORD(t) word[(t) % TICKETS]
#define FILLED(t) (TICKET(WORD(t)) == (t) && OWNER(WORD(t)))
#define RECORD(s, p) ((s) * SIZE + (p) % SIZE)
#ifdef WINDOW
#define IN_WINDOW (my_sent - done_count[me] < 1)
#else
#define IN_WINDOW true
#endif
#ifdef LEAVE_UNANSWERED
#define ANSWERED true
#else
#define ANSWERED (done_count[me] == my_sent)
#endif
#define MESSAGE(life, n) ((life) * 16 + (n))
#define LIFE(m) ((m) / 16)

mtype = { FREE, ACTIVE, DEAD, EVICTED };
mtype = { NOBODY, SENDER, RECEIVER };

byte word[TICKETS];
byte shared_head;
byte taking, taking_position, taking_count;

byte written[LANES], taken[LANES], taken_count[LANES], answered[LANES];
byte unconfirmed[LANES], done_count[LANES];
mtype state[LANES] = FREE;
mtype lock[LANES] = NOBODY;
byte record_ticket[LANES * SIZE], record_message[LANES * SIZE];

byte sender_deaths, receiver_deaths, cuts;

/* What is true, whatever is in shared memory. */
byte claimed;                             /* swaps that succeeded */
byte passed;                              /* tickets below are delivered or dropped */
byte message_of[LAST + TICKETS + 1], lane_of[LAST + TICKETS + 1];
byte truly_taken[LANES];
byte life_in[LANES];                      /* the lane's newest owner */
bool leaving[LANES];                      /* its owner, alive, is about to free it */
byte ended;                               /* senders that come no more */

/* Right after a step: later is before the next. */
#define SENDER_MAY_DIE if :: true :: sender_deaths < SENDER_DEATHS -> goto die fi
#define RECEIVER_MAY_DIE if :: true :: receiver_deaths < RECEIVER_DEATHS -> goto die fi

#ifdef BLIND_HINT
#define BELIEVED(hint) (WORD(hint) == FREE_WORD(hint))
#else
#define BELIEVED(hint) FILLED((hint) - 1)
#endif

/* The hint may be any ticket. */
inline first_try()
{
    first = shared_head;
    hint = first;
    do
    :: hint < first + TICKETS ->
        hint++;
        if
        :: BELIEVED(hint) -> first = hint; break
        :: true
        fi
    :: break
    od;
    hint = 0
}

/* `seen` is not free(t). */
inline next_try()
{
    if
#ifdef TAKEN_IS_NEXT
    :: TICKET(seen) > t -> t = TICKET(seen)
#else
    :: TICKET(seen) > t ->
        first_try();
        t = (first > t -> first : t + 1)
#endif
    :: TICKET(seen) == t -> t++
    :: TICKET(seen) < t -> assert(false)    /* the ring is full */
    fi;
    first = 0;
    seen = 0
}

proctype sender(byte me)
{
    byte my_written, my_sent, t, first, hint, seen, life, message;

    for (life : 1 .. LIVES(me)) {
        atomic { lock[me] == NOBODY && state[me] == FREE -> lock[me] = SENDER };
        atomic {
            assert(written[me] == taken[me] && taken_count[me] == done_count[me]);
            my_written = written[me];
            my_sent = taken_count[me];
            life_in[me] = life;
            state[me] = ACTIVE;
            SENDER_MAY_DIE
        };
        for (message : 1 .. MESSAGES) {
            atomic {
                state[me] != ACTIVE || (my_written + 1 - taken[me] <= SIZE && IN_WINDOW);
                if
                :: state[me] != ACTIVE -> assert(state[me] == EVICTED); goto leave
                :: else
                fi;
                assert(taken[me] <= my_written);
                record_message[RECORD(me, my_written)] = MESSAGE(life, message);
                written[me] = my_written + 1;
                SENDER_MAY_DIE
            };
            atomic { first_try(); t = first; first = 0 };
again:
            atomic {
                seen = WORD(t);
                if
                :: seen == FREE_WORD(t) ->
#ifndef TWO_STEPS
                    record_ticket[RECORD(me, my_written)] = t;
#endif
                    SENDER_MAY_DIE
                :: else -> next_try(); goto again
                fi
            };
            atomic {
                seen = WORD(t);
                if
                :: seen == FREE_WORD(t) ->
                    WORD(t) = FILLED_WORD(t, me);
                    claimed++;
                    message_of[t] = MESSAGE(life, message);
                    lane_of[t] = me
                :: else -> next_try(); goto again
                fi;
                seen = 0;
#ifdef TWO_STEPS
            };
            atomic {
                record_ticket[RECORD(me, my_written)] = t;
#endif
                t = 0;
                my_written++;
                my_sent++;
                SENDER_MAY_DIE
            }
        }
leave:
        atomic {
            if
            :: taken[me] == my_written && ANSWERED && state[me] == ACTIVE ->
                written[me] = taken[me];
                done_count[me] = taken_count[me];
                leaving[me] = true;
                SENDER_MAY_DIE
            :: else ->
                state[me] = (state[me] == ACTIVE -> DEAD : state[me]);
                goto gone
            fi
        };
        state[me] = FREE;
        goto gone;
die:
        sender_deaths++;
gone:
        atomic {
            lock[me] = NOBODY;
            leaving[me] = false;
            my_written = 0; my_sent = 0; t = 0; first = 0; hint = 0; seen = 0; message = 0
        }
    };
    atomic { ended++; life = 0 }
}

inline finish()
{
    if
    :: atomic { taking && TICKET(taking) < head ->
            lane = OWNER(taking) - 1;
            taken_count[lane] = taking_count;
            RECEIVER_MAY_DIE
        };
        atomic { taken[lane] = taking_position; RECEIVER_MAY_DIE }
    :: else
    fi;
    atomic { lane = 0; taking = 0; RECEIVER_MAY_DIE }
}

inline open_lane(i)
{
    atomic {
        private_taken[i] = taken[i];
#ifdef UNCONFIRMED_ADDED
        unconfirmed[i] = unconfirmed[i] + taken_count[i] - done_count[i];
#else
        unconfirmed[i] = taken_count[i] - answered[i];
#endif
        RECEIVER_MAY_DIE
    };
    atomic {
#ifndef UNCONFIRMED_OUTSTANDING
        done_count[i] = taken_count[i];
#endif
        assert(taken_count[i] == truly_taken[i]);
        assert(unconfirmed[i] == truly_taken[i] - answered[i]);
        RECEIVER_MAY_DIE
    }
}

/* The one step by which a message is taken. */
inline free_word()
{
    atomic {
        assert(head == passed && item == message_of[head] && lane == lane_of[head]);
        WORD(head) = FREE_WORD(head + TICKETS);
        passed++;
        truly_taken[lane]++;
        RECEIVER_MAY_DIE
    }
}

inline move_head() { atomic { head++; shared_head = head; RECEIVER_MAY_DIE } }
inline count_it() { atomic { taken_count[lane] = count; RECEIVER_MAY_DIE } }
inline free_bytes()
{
    atomic { private_taken[lane] = position; taken[lane] = position; RECEIVER_MAY_DIE }
}

inline take()
{
    atomic {
        assert(FILLED(head));
        lane = OWNER(WORD(head)) - 1;
        assert(state[lane] != FREE);
        if
        :: state[lane] == EVICTED ->        /* voided: what it has sent is dropped */
            assert(LIFE(message_of[head]) == life_in[lane]);
            WORD(head) = FREE_WORD(head + TICKETS);
            message_of[head] = 0;
            passed++;
            RECEIVER_MAY_DIE;
            goto voided
        :: else
        fi;
        position = private_taken[lane];
        assert(written[lane] > position && written[lane] - position <= SIZE);
        assert(record_ticket[RECORD(lane, position)] == head);
        item = record_message[RECORD(lane, position)];
        position++;
        count = taken_count[lane] + 1;
#ifndef NOTE_NOT_CLEARED
        taking = 0;
#endif
        RECEIVER_MAY_DIE
    };
#ifndef NO_NOTE
    atomic { taking_position = position; taking_count = count; RECEIVER_MAY_DIE };
    atomic { taking = FILLED_WORD(head, lane); RECEIVER_MAY_DIE };
#endif
#ifdef BYTES_FIRST
    free_bytes();
#endif
#ifdef COUNT_FIRST
    count_it();
#endif
    free_word();
#ifdef BYTES_BEFORE_HEAD
    free_bytes();
#endif
    move_head();
#ifndef COUNT_FIRST
    count_it();
#endif
#if !defined(BYTES_FIRST) && !defined(BYTES_BEFORE_HEAD)
    free_bytes();
#endif
    goto took;
voided:
    move_head();
took:
    atomic { lane = 0; position = 0; count = 0; item = 0 }
}

inline acknowledge()
{
    atomic {
        lane = lane_of[acknowledged];
        assert(state[lane] != FREE && LIFE(message_of[acknowledged]) == life_in[lane]);
        answered[lane]++;
        RECEIVER_MAY_DIE
    };
    atomic { done_count[lane]++; acknowledged++; lane = 0; RECEIVER_MAY_DIE }
}

inline evicted(ticket)
{
    atomic {
        cuts++;
        lane = lane_of[ticket];
        if
        :: state[lane] == FREE
        :: else ->
            assert(LIFE(message_of[ticket]) == life_in[lane]);
            state[lane] = EVICTED
        fi;
        lane = 0
    }
}

#ifdef NOT_SETTLED
#define SETTLED(i) true
#else
#define SETTLED(i) (acknowledged >= free_at[i] - 1 || done_count[i] == taken_count[i])
#endif

/* The first look.  The real one is at the state alone, and again and again; looks that lead to
   nothing are left out, so that a lane nobody will ever free stops the model. */
#define MAY_REAP(i) (state[i] != FREE && (lock[i] == NOBODY || leaving[i]) && \
                     (!free_at[i] || (head >= free_at[i] - 1 && SETTLED(i))))

inline reap()
{
    if
    :: lock[lane] != NOBODY -> goto reaped
    :: atomic { lock[lane] == NOBODY -> lock[lane] = RECEIVER }
    fi;
    if
#ifndef NO_SECOND_LOOK
    :: state[lane] == FREE -> goto unlock
#endif
    :: else
    fi;
    if
    :: free_at[lane] == 0 ->
        end = head;
#ifndef NO_FREE_AT
        do
        :: end < head + TICKETS && FILLED(end) -> end++
        :: else -> break
        od;
#endif
        atomic { free_at[lane] = end + 1; end = 0 }
    :: else
    fi;
    if
    :: head >= free_at[lane] - 1 && SETTLED(lane) ->
        atomic { free_at[lane] = 0; taken[lane] = private_taken[lane]; RECEIVER_MAY_DIE };
        atomic {
#ifndef WRITTEN_STAYS
            written[lane] = taken[lane];
#endif
            done_count[lane] = taken_count[lane];
            RECEIVER_MAY_DIE
        };
        atomic { state[lane] = FREE; RECEIVER_MAY_DIE }
    :: else
    fi;
unlock:
    atomic {
        assert(shared_head == head && taken[lane] == private_taken[lane]);
        assert(written[lane] == taken[lane] || state[lane] != FREE);
        lock[lane] = NOBODY
    };
reaped:
    lane = 0
}

proctype receiver()
{
    byte head, lane, position, count, item, end, acknowledged;
    byte private_taken[LANES], free_at[LANES];

open:
    head = shared_head;
#ifndef NO_WALK
    do
    :: atomic { WORD(head) == FREE_WORD(head + TICKETS) -> head++ }
    :: else -> break
    od;
#endif
#ifndef HEAD_LATE
    atomic { shared_head = head; RECEIVER_MAY_DIE };
#endif
    finish();
    open_lane(0);
    open_lane(1);
    atomic { shared_head = head; acknowledged = head };
    do
    :: WORD(head) != FREE_WORD(head) -> take()
    :: acknowledged < head && message_of[acknowledged] -> acknowledge()
    :: acknowledged < head && !message_of[acknowledged] -> acknowledged++    /* voided */
#ifdef EVICT_LATE
    :: acknowledged > 0 && message_of[acknowledged - 1] && cuts < CUTS -> evicted(acknowledged - 1)
#else
    :: acknowledged < head && message_of[acknowledged] && cuts < CUTS -> evicted(acknowledged)
#endif
    :: MAY_REAP(0) -> lane = 0; goto try_reap
    :: MAY_REAP(1) -> lane = 1; goto try_reap
    :: false ->
try_reap:
        reap()
    :: ended == LANES && acknowledged == head && WORD(head) == FREE_WORD(head) &&
       state[0] == FREE && state[1] == FREE -> break
    :: false ->
die:
        atomic {
            receiver_deaths++;
            head = 0; lane = 0; position = 0; count = 0; item = 0; end = 0; acknowledged = 0;
            private_taken[0] = 0; private_taken[1] = 0; free_at[0] = 0; free_at[1] = 0;
            lock[0] = (lock[0] == RECEIVER -> NOBODY : lock[0]);
            lock[1] = (lock[1] == RECEIVER -> NOBODY : lock[1])
        };
        goto open
    od;
    assert(passed == claimed)
}

init
{
    byte t;

    atomic {
        for (t : 0 .. TICKETS - 1) { WORD(t) = FREE_WORD(t) }
        t = 0;
        run receiver();
        run sender(0);
        run sender(1)
    }
}
