/* A watchdog in the host's time: Python gets to look around (Ctrl-C, host timeouts) whatever the guest does.
 *
 * The budget of blocks alone does not see to that: a block usually takes nanoseconds, but code that overwrites
 * itself is translated again after every store, a millisecond each. Looking changes nothing of the guest, its time
 * included, so runs stay equal although looks come at any moment.
 */
#include "native.h"

#include <signal.h>
#include <time.h>

enum { WATCH_NS = 40 * 1000 * 1000, NS = 1000 * 1000 * 1000 };

static void request_look(struct lz_machine *m)
{
    /* The order matters: the engine sees the request when it looks why its chain of blocks was to be left. A bit that
     * the engine's own thread loses by writing at the same moment comes again with the next look. */
    __atomic_store_n(&m->look, true, __ATOMIC_RELEASE);
    __atomic_fetch_or(&C32(interrupt_request), LZ_REQUEST, __ATOMIC_RELEASE);
    __atomic_fetch_or(m->icount_decr, 0xffff0000u, __ATOMIC_RELEASE);
}

static void *watch(void *machine)
{
    struct lz_machine *m = machine;
    struct timespec next;

    pthread_mutex_lock(&m->watch_lock);
    clock_gettime(CLOCK_MONOTONIC, &next);
    while (!m->watch_ends) {
        next.tv_nsec += WATCH_NS;
        if (next.tv_nsec >= NS) {
            next.tv_nsec -= NS;
            next.tv_sec++;
        }
        while (!m->watch_ends && !pthread_cond_timedwait(&m->watch_end, &m->watch_lock, &next))
            ;
        if (!m->watch_ends && __atomic_load_n(&m->running, __ATOMIC_ACQUIRE))
            request_look(m);
        /* After the host slept, one look is enough. */
        clock_gettime(CLOCK_MONOTONIC, &next);
    }
    pthread_mutex_unlock(&m->watch_lock);
    return 0;
}

/* Without a thread to be had the guest runs unwatched. */
void lz_watch(struct lz_machine *m)
{
    if (m->watched)
        return;
    pthread_condattr_t clock;
    sigset_t all, before;

    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&m->watch_end, &clock);
    pthread_condattr_destroy(&clock);
    pthread_mutex_init(&m->watch_lock, 0);
    /* Signals are for the program's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    m->watched = !pthread_create(&m->watcher, 0, watch, m);
    pthread_sigmask(SIG_SETMASK, &before, 0);
}

void lz_unwatch(struct lz_machine *m)
{
    if (!m->watched)
        return;
    pthread_mutex_lock(&m->watch_lock);
    m->watch_ends = true;
    pthread_cond_signal(&m->watch_end);
    pthread_mutex_unlock(&m->watch_lock);
    pthread_join(m->watcher, 0);
    m->watched = false;
}
