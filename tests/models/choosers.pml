/*
 * A reader that chooses among topics, and sleeps until something comes that it
 * wants.
 *
 * The writer puts messages of topic 1, which the table has, and adds topic 2 at
 * some time.  A batch is one message or more.  After each batch it fences and
 * looks at the chooser bit; if that is set, at the interest rows of the
 * messages of the batch (and, if a topic was added since the last batch, at the
 * row of those who wait for topics), and only if one of these has the reader's
 * bit it takes the chooser bit and posts a token.
 *
 * The reader has two threads, of which one at a time works it (the GIL).  One
 * takes messages: it hands out what the filter wants and passes over the rest.
 * When nothing is left it learns the topics that have arrived, copies where it
 * stands, and sleeps without the GIL: chooser bit, fence, then it passes over
 * messages in its copy, and looks for topics that have arrived; only then it
 * waits.  The other thread subscribes and unsubscribes: it changes the filter
 * and the interest row, and after a subscription it posts a token if the first is
 * about to sleep and none lies there.
 *
 * What is wanted is a list; the filter (`wanted`, up to topic `known`) and the
 * interest rows follow from it.  Topic 2 is wanted by its name, or with -DPATTERN
 * by a pattern, which stays open for topics that are still to come.
 *
 * The memory here is weaker than x86: the writer's stores wait in a buffer,
 * which keeps their order since they are releases, and the reader's fetch_or of
 * its chooser bit may become visible after later loads.  The process `memory`
 * drains them when it likes; a fence waits until the fencing process's buffer is
 * empty.  The interest rows are changed by seq_cst read-modify-writes, and the
 * filter before them, so both change at once.
 *
 * Three configurations, all of which must hold:
 *
 *   (none), -DPATTERN  Waits have no time-out and nobody dies.  When nothing can
 *               happen any more, nothing that is wanted is unread, and no topic
 *               has arrived that may be wanted and is not known.
 *   -DTIMEOUTS  A wait may time out whenever it likes, and the writer may die
 *               between any two steps.  The reader ends with all that was
 *               published read.
 *
 * In all of them the semaphore never holds more than four tokens: one that came
 * too late to be taken back, one of the present sleep, and one of a subscription
 * before each of them.  What was published after a subscription returned is not passed
 * over before its end begins, and nothing is handed out after its end returned.
 *
 * Left out: room in the ring and cursors (choosers_room.pml), messages without a
 * topic (which are one more row), other readers, and how a thread that spins
 * looks.  The reader looks once more for any message at all before it sleeps,
 * which can only keep it awake.
 *
 * Mutants, and what each breaks:
 *
 *   WRITER_NO_FENCE    the writer looks for choosers before its message is
 *                      visible.
 *   READER_NO_FENCE    the same from the other side.
 *   LOOK_BEFORE_BIT    a message between look and bit wakes nobody.
 *   NO_TOPICS_LOOK     a topic between the last learning and the bit is missed.
 *   INTEREST_AT_COMMIT the writer collects whom to wake as it puts messages: a
 *                      subscription, or a topic learned, in between is missed.
 *   ARRIVAL_AT_ONCE    the writer takes the bits of those who wait for a topic
 *                      when it adds the row, before a fence, and not later.
 *   TAKE_ALL           the writer takes the bit, as it does with readers that
 *                      want everything, and then posts only if something is
 *                      wanted.
 *   LEARN_NO_MARK      a topic that was learned stands in the filter alone.
 *   NO_ROUSE           the thread that sleeps is not told of a subscription.
 *   ROUSE_FIRST        it is told before the filter and interest have changed.
 *   SUBSCRIBE_LATE     subscribe() returns before the filter has changed.
 *   UNSUBSCRIBE_LATE   unsubscribe() likewise.
 *   ROUSE_ALWAYS       each subscription posts, though a token lies there already:
 *                      they pile up.
 */

#ifdef ROUSE_ALWAYS
#define MESSAGES 1
#define CHANGES 6
#else
#define MESSAGES 2
#ifdef TIMEOUTS
#define CHANGES 2
#else
#define CHANGES 3
#endif
#endif
#define TOPIC_2 0          /* in the writer's buffer: topic 2 was added */

chan buffer = [MESSAGES + 1] of { byte };  /* the writer's stores, in their order */
byte seq;                  /* messages that are visible */
byte topics = 1;           /* rows of the table that are visible */
byte topic_of[MESSAGES + 1];
bool arrivals;             /* the writer's own: a topic was added since its last look */
bool writer_done, writer_dead;

bool chooser;              /* the reader's bit */
bool or_pending;           /* it is not visible yet */
byte tokens;
bool interest[3];          /* the reader's bit in the row of each topic */
bool interest_arrivals;    /* and in that of topics to come */

bool gil;                  /* one thread works the reader */
bool list[3];              /* what is wanted */
bool wanted[3];            /* the filter: the same of topics 1 .. known */
byte known = 1;
bool open;                 /* more of the topics to come may be wanted */
bool sleeping;             /* one thread has the semaphore; under a mutex */
byte next;                 /* messages taken */

bool claimed[3];           /* a subscription has returned, its end has not begun */
bool dropped[3] = true;    /* the end has returned, or there was no subscription */
bool promised[MESSAGES + 1];
bool changed;              /* no more changes */
bool over;                 /* nothing can happen any more */

#ifdef TIMEOUTS
#define MAY_DIE if :: skip :: goto dead fi
#define MAY_TIME_OUT skip
#else
#define MAY_DIE skip
#define MAY_TIME_OUT false
#endif

#ifdef PATTERN
#define OPEN list[2]
#else
#define OPEN (list[2] && known < 2)
#endif

#ifdef READER_NO_FENCE
#define FENCED true
#else
#define FENCED !or_pending
#endif

#define TAKE_GIL atomic { !gil -> gil = true }

active proctype memory()
{
    end:
    do
    :: atomic {
        buffer ? [TOPIC_2] -> buffer ? TOPIC_2; topics = 2
       }
    :: atomic {
        nempty(buffer) && !buffer ? [TOPIC_2] -> buffer ? seq
       }
    :: atomic { or_pending -> chooser = true; or_pending = false }
    od
}

inline post()
{
    atomic { taken = chooser; chooser = false }
    MAY_DIE;
    if
    :: taken && found -> atomic { tokens++; assert(tokens <= 4) }
    :: else
    fi
}

inline release()
{
#ifndef WRITER_NO_FENCE
    empty(buffer);
#endif
    if
    :: chooser ->
#ifndef INTEREST_AT_COMMIT
        found = false;
#endif
#ifndef ARRIVAL_AT_ONCE
        if
        :: arrivals -> found = found || interest_arrivals
        :: else
        fi;
#endif
#ifndef INTEREST_AT_COMMIT
        for (k : first .. message) {
            found = found || interest[topic_of[k]]
        }
#endif
        if
#ifdef TAKE_ALL
        :: true ->
#else
        :: found ->
#endif
            post()
#ifndef TAKE_ALL
        :: else
#endif
        fi
    :: else
    fi;
    atomic { arrivals = false; first = message + 1; found = false; k = 0; taken = false }
}

active proctype writer()
{
    byte message, first = 1, k, count = 1;
    bool found, taken;

    for (message : 1 .. MESSAGES) {
        if
        :: count == 1 ->
            atomic { count = 2; buffer ! TOPIC_2; arrivals = true }
            MAY_DIE;
#ifdef ARRIVAL_AT_ONCE
            if
            :: chooser && interest_arrivals -> found = true; post(); found = false
            :: else
            fi
#endif
        :: true
        fi;
        atomic {
            select (k : 1 .. count);
            topic_of[message] = k;
            promised[message] = claimed[k];
            buffer ! message;
#ifdef INTEREST_AT_COMMIT
            found = found || interest[k];
#endif
            k = 0
        }
        MAY_DIE;
        if
        :: message < MESSAGES  /* the batch goes on */
        :: true -> release()
        fi
    }
    MAY_DIE;
    goto done;
dead:
    writer_dead = true;
done:
    writer_done = true
}

/* Match the topics that have arrived. */
inline learn()
{
    if
    :: known < topics ->
        if
        :: atomic {
            list[2] ->
            wanted[2] = true;
#ifndef LEARN_NO_MARK
            interest[2] = true
#endif
           }
        :: else
        fi;
        atomic { known = 2; open = OPEN; interest_arrivals = open }
    :: else
    fi
}

/* The filter's answer for a message. */
inline ask(sequence)
{
    topic = topic_of[sequence + 1];
    wants = topic <= known && wanted[topic];
    to_learn = topic > known && open
}

active proctype reader()
{
    byte copy, topic;
    bool took, was_set, ready, wants, to_learn;

work:
    TAKE_GIL;
    do
    :: atomic {
        next < seq ->
        ask(next);
        if
        :: to_learn
        :: wants -> assert(!dropped[topic]); next++
        :: else -> assert(!promised[next + 1] || !claimed[topic]); next++
        fi;
        promised[next] = false; topic = 0; wants = false
       }
       if
       :: to_learn -> to_learn = false; learn()
       :: else
       fi
    :: atomic { next == seq -> break }
    od;
    learn();
    atomic { copy = next; gil = false }
#ifdef TIMEOUTS
    if
    :: writer_done && empty(buffer) && next == seq && changed -> goto done
    :: else
    fi;
#endif
    atomic {
        sleeping = true;
#ifndef LOOK_BEFORE_BIT
        or_pending = true
#endif
    }
    do
    :: atomic {
        FENCED && copy < seq ->
        ask(copy);
        copy++;
        ready = wants || to_learn;
        topic = 0; wants = false; to_learn = false;
        if
        :: ready -> break
        :: else
        fi
       }
    :: atomic { FENCED && copy == seq -> break }
    od;
#ifndef NO_TOPICS_LOOK
    ready = ready || (open && topics > known);
#endif
#ifdef LOOK_BEFORE_BIT
    or_pending = true;
    !or_pending;
#endif
    if
    :: ready
    :: else ->
        if
        :: atomic { tokens > 0 -> tokens--; took = true }
        :: MAY_TIME_OUT
        :: over -> goto done
        fi
    fi;
    atomic { !or_pending; was_set = chooser; chooser = false }
    atomic {
        if
        :: !was_set && !took && tokens > 0 -> tokens--
        :: else
        fi;
        took = false; was_set = false; ready = false; copy = 0
    }
    sleeping = false;
    goto work;
done:
    skip
}

/* Under a mutex. */
inline rouse()
{
    atomic {
        if
#ifdef ROUSE_ALWAYS
        :: sleeping -> tokens++; assert(tokens <= 4)
#else
        :: sleeping && tokens == 0 -> tokens++
#endif
        :: else
        fi
    }
}

inline subscribe(t)
{
    atomic { !gil -> gil = true; dropped[t] = false; list[t] = true }
#ifdef ROUSE_FIRST
    rouse();
#endif
#ifdef SUBSCRIBE_LATE
    claimed[t] = true;
    gil = false;
    TAKE_GIL;
#endif
    if
    :: t <= known -> wanted[t] = true; interest[t] = true
    :: else
    fi;
    open = OPEN;
    interest_arrivals = open;
#if !defined(NO_ROUSE) && !defined(ROUSE_FIRST)
    rouse();
#endif
    atomic { claimed[t] = true; gil = false }
}

inline unsubscribe(t)
{
    atomic { !gil -> gil = true; claimed[t] = false; list[t] = false }
#ifdef UNSUBSCRIBE_LATE
    dropped[t] = true;
    gil = false;
    TAKE_GIL;
#endif
    if
    :: t <= known -> wanted[t] = false; interest[t] = false
    :: else
    fi;
    open = OPEN;
    interest_arrivals = open;
    atomic { dropped[t] = true; gil = false }
}

active proctype chooses()
{
    byte change;

    for (change : 1 .. CHANGES) {
        if
#ifdef ROUSE_ALWAYS
        :: subscribe(1)  /* once more changes nothing else */
#else
        :: !list[1] -> subscribe(1)
#endif
        :: list[1] -> unsubscribe(1)
        :: !list[2] -> subscribe(2)
        :: list[2] -> unsubscribe(2)
        :: true -> break
        fi
    }
    changed = true
}

#ifndef TIMEOUTS
/* Nothing can happen any more, so the reader sleeps, for good. */
active proctype judge()
{
    byte k;

    timeout;
    assert(writer_done && changed);
    for (k : next + 1 .. seq) {
        assert(!list[topic_of[k]])
    }
    assert(arrivals || known == topics || !list[2]);
    over = true
}
#endif
