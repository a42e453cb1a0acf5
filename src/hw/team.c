/* team.c - see team.h.
 *
 * Everything is built on epochs: 32-bit counters that one thread advances and others wait for. A thread
 * arrives at a barrier by advancing its own epoch (after its children in a tree of fan-in 8), thread 0 of the
 * rank then advances the rank's `released`; a meeting of all ranks puts an exchange of the ranks' `arrived`
 * epochs between the two. Every epoch has a cache line of its own, so an arrival costs one line moving
 * between cores.
 *
 * Waiting: a bounded spin if every thread has a CPU to itself, then the futex. An advance enters the kernel
 * only when someone sleeps on that epoch: the waiter announces itself in `sleepers` before it looks at
 * `value` a last time, the advancer writes `value` before it looks at `sleepers`, all four sequentially
 * consistent, so at least one of them sees the other.
 *
 * The watchdog is the thread in team_run(), which has nothing else to do. It only looks at what the rank
 * threads leave in their slots. It alone declares a failure; the others see it when they next wait or wake.
 */
#include "hw/team.h"

#include <assert.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { TREE_FAN_IN = 8, SHORT_WAIT_POLLS = 8 };

/* A sleep and a wake-up cost 5 to 50 us: spinning about as long as that again and a little more loses least.
 * Between steps the engine's thread needs a CPU, so waiting for a step spins shorter and yields. */
static const int64_t meet_spin_ns = 200000, step_spin_ns = 50000;
/* Sleepers look up this often, in case the team failed between their last look and their sleep. */
static const int64_t nap_ns = 100000000;
/* After a failure, how long the healthy threads are given to come back. */
static const int64_t grace_ns = 1000000000;

struct epoch {
    alignas(64) _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
};

enum slot_state { SLOT_IDLE, SLOT_RUNNING, SLOT_WAITING };

/* One rank thread. */
struct slot {
    struct epoch arrived; /* barriers that it and those below it in the tree have come to */

    alignas(64) struct worker worker;
    int cpu; /* to run on */
    pthread_t thread;
    uint32_t barriers, meets; /* its own counts; meets of thread 0 only */
    uint64_t waited_ns;       /* in this step; of thread 0 only */

    /* Written by the thread, read by the watchdog. */
    _Atomic uint32_t progress;
    _Atomic int state;           /* enum slot_state; SLOT_WAITING only while asleep */
    _Atomic int waits_for;       /* a rank */
    const char *_Atomic wait_at; /* what for */

    /* The watchdog's own. */
    alignas(64) uint32_t seen_progress;
    int64_t still_ns; /* watched without seeing progress */
};

struct rank {
    struct epoch arrived;  /* meetings that this rank has come to */
    struct epoch released; /* barriers that its threads may leave */
    alignas(64) _Atomic uint64_t steps, all_reduces, weight_bytes_read, busy_ns, wait_ns;
    _Atomic uint64_t cpus_seen[16];
};

struct team {
    int n_ranks, n_threads, n_slots;
    int n_started;
    bool spin;
    double stall_seconds;
    team_fn *fn;
    void *arg;
    bool closing;
    uint32_t step_number;
    struct err failure;

    alignas(64) _Atomic bool failed;
    _Atomic int stalled_rank; /* team_inject_stall(), else -1 */
    struct epoch step;        /* steps handed out */
    struct epoch done;        /* steps finished */
    alignas(64) _Atomic int n_running;
    struct rank ranks[MAX_RANKS];
    struct slot slots[]; /* (n_ranks, n_threads) */
};

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* ---- epochs ---- */

static bool epoch_reached(struct epoch *e, uint32_t target)
{
    /* Pairs with the store in epoch_advance(); by difference, so that the counter may wrap around. */
    return (int32_t)(atomic_load(&e->value) - target) >= 0;
}

static void epoch_wake(struct epoch *e)
{
    syscall(SYS_futex, &e->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void epoch_advance(struct epoch *e, uint32_t value)
{
    atomic_store(&e->value, value);
    if (atomic_load(&e->sleepers)) /* pairs with the increment in epoch_nap() */
        epoch_wake(e);
}

/* Sleeps once: until the epoch changes, the time is over (timeout_ns < 0: no limit) or for no reason. */
static void epoch_nap(struct epoch *e, uint32_t target, int64_t timeout_ns)
{
    struct timespec timeout = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    atomic_fetch_add(&e->sleepers, 1); /* pairs with the load in epoch_advance() */
    uint32_t value = atomic_load(&e->value);
    if ((int32_t)(value - target) < 0)
        syscall(SYS_futex, &e->value, FUTEX_WAIT_PRIVATE, value, timeout_ns < 0 ? NULL : &timeout, NULL, 0);
    atomic_fetch_sub(&e->sleepers, 1);
}

/* ---- waiting of rank threads ---- */

static struct slot *slot_of(const struct worker *w)
{
    return &w->team->slots[w->rank * w->n_threads + w->thread];
}

/* Single writer: a load and a store are enough. */
static void slot_progress(struct slot *s)
{
    atomic_store_explicit(&s->progress, atomic_load_explicit(&s->progress, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

static bool wait_spin(struct epoch *e, uint32_t target, int64_t start)
{
    do {
        for (int i = 0; i < 32; i++) {
            if (epoch_reached(e, target))
                return true;
            cpu_pause();
        }
    } while (now_ns() - start < meet_spin_ns);
    return false;
}

static void wait_sleep(struct slot *s, struct epoch *e, uint32_t target, int rank, const char *what)
{
    struct team *team = s->worker.team;
    atomic_store_explicit(&s->waits_for, rank, memory_order_relaxed);
    atomic_store_explicit(&s->wait_at, what, memory_order_relaxed);
    atomic_store_explicit(&s->state, SLOT_WAITING, memory_order_release); /* pairs with watch() */
    while (!epoch_reached(e, target) && !atomic_load(&team->failed))
        epoch_nap(e, target, nap_ns);
    /* Progress before the state: the watchdog must not take a wait that is over for a hung thread. */
    slot_progress(s);
    atomic_store_explicit(&s->state, SLOT_RUNNING, memory_order_release);
}

/* Waits until the epoch, which `rank` advances, reaches the target; nonzero when the team failed instead. */
static int wait_for(struct slot *s, struct epoch *e, uint32_t target, int rank, const char *what)
{
    /* Most waits of ranks in step are shorter than reading the clock: not worth accounting for. */
    for (int i = 0; i < SHORT_WAIT_POLLS; i++) {
        if (epoch_reached(e, target))
            return 0;
        cpu_pause();
    }
    int64_t start = now_ns();
    if (!s->worker.team->spin || !wait_spin(e, target, start))
        wait_sleep(s, e, target, rank, what);
    s->waited_ns += (uint64_t)(now_ns() - start);
    return epoch_reached(e, target) ? 0 : -1;
}

/* At the entrance of every wait. */
static int wait_enter(struct slot *s)
{
    struct team *team = s->worker.team;
    slot_progress(s);
    while (atomic_load_explicit(&team->stalled_rank, memory_order_relaxed) == s->worker.rank)
        sleep(3600);
    return atomic_load(&team->failed) ? -1 : 0;
}

static void note_cpu(struct worker *w)
{
    struct rank *rank = &w->team->ranks[w->rank];
    int cpu = sched_getcpu();
    if (cpu < 0 || cpu >= 1024)
        return;
    _Atomic uint64_t *word = &rank->cpus_seen[cpu / 64];
    uint64_t bit = 1ull << (cpu % 64);
    if (!(atomic_load_explicit(word, memory_order_relaxed) &
          bit)) /* usually set: no write to a shared line */
        atomic_fetch_or_explicit(word, bit, memory_order_relaxed);
}

/* Waits for the threads below this one in the tree, then reports upwards. Thread 0 is the root. */
static int gather(struct slot *s, const char *what)
{
    const struct worker *w = &s->worker;
    struct slot *rank_slots = s - w->thread;
    s->barriers++;
    int first = w->thread * TREE_FAN_IN + 1;
    for (int child = first; child < first + TREE_FAN_IN && child < w->n_threads; child++)
        if (wait_for(s, &rank_slots[child].arrived, s->barriers, w->rank, what))
            return -1;
    if (w->thread > 0)
        epoch_advance(&s->arrived, s->barriers);
    return 0;
}

static int release(struct slot *s, const char *what)
{
    const struct worker *w = &s->worker;
    struct epoch *released = &w->team->ranks[w->rank].released;
    if (w->thread > 0)
        return wait_for(s, released, s->barriers, w->rank, what);
    if (w->n_threads > 1)
        epoch_advance(released, s->barriers);
    return 0;
}

int rank_barrier(struct worker *w, const char *what)
{
    struct slot *s = slot_of(w);
    if (wait_enter(s) || gather(s, what))
        return -1;
    return release(s, what);
}

int team_meet(struct worker *w, const char *what)
{
    struct slot *s = slot_of(w);
    note_cpu(w);
    if (wait_enter(s) || gather(s, what))
        return -1;
    if (w->thread == 0) {
        s->meets++;
        epoch_advance(&w->team->ranks[w->rank].arrived, s->meets);
        for (int rank = 0; rank < w->n_ranks; rank++)
            if (rank != w->rank && wait_for(s, &w->team->ranks[rank].arrived, s->meets, rank, what))
                return -1;
    }
    return release(s, what);
}

void worker_progress(struct worker *w)
{
    slot_progress(slot_of(w));
}

/* ---- the account ---- */

static void count(_Atomic uint64_t *counter, uint64_t n)
{
    if (n)
        atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

void worker_count(struct worker *w, uint64_t steps, uint64_t all_reduces, uint64_t weight_bytes)
{
    struct rank *rank = &w->team->ranks[w->rank];
    count(&rank->steps, steps);
    count(&rank->all_reduces, all_reduces);
    count(&rank->weight_bytes_read, weight_bytes);
}

void team_counters(const struct team *team, int rank, struct rank_counters *out)
{
    assert(rank >= 0 && rank < team->n_ranks);
    const struct rank *r = &team->ranks[rank];
    *out = (struct rank_counters){
        .steps = atomic_load_explicit(&r->steps, memory_order_relaxed),
        .all_reduces = atomic_load_explicit(&r->all_reduces, memory_order_relaxed),
        .weight_bytes_read = atomic_load_explicit(&r->weight_bytes_read, memory_order_relaxed),
        .busy_ns = atomic_load_explicit(&r->busy_ns, memory_order_relaxed),
        .wait_ns = atomic_load_explicit(&r->wait_ns, memory_order_relaxed),
    };
    for (int i = 0; i < 16; i++)
        out->cpus_seen[i] = atomic_load_explicit(&r->cpus_seen[i], memory_order_relaxed);
}

void team_counters_reset(struct team *team)
{
    for (int i = 0; i < team->n_ranks; i++) {
        struct rank *r = &team->ranks[i];
        _Atomic uint64_t *const counters[] = {&r->steps, &r->all_reduces, &r->weight_bytes_read, &r->busy_ns,
                                              &r->wait_ns};
        for (size_t j = 0; j < sizeof counters / sizeof *counters; j++)
            atomic_store_explicit(counters[j], 0, memory_order_relaxed);
        for (int j = 0; j < 16; j++)
            atomic_store_explicit(&r->cpus_seen[j], 0, memory_order_relaxed);
    }
}

void team_inject_stall(struct team *team, int rank)
{
    atomic_store(&team->stalled_rank, rank);
}

/* ---- rank threads ---- */

static void wait_step(struct team *team, uint32_t step)
{
    if (team->spin) {
        int64_t start = now_ns();
        while (!epoch_reached(&team->step, step) && now_ns() - start < step_spin_ns)
            sched_yield();
    }
    while (!epoch_reached(&team->step, step))
        epoch_nap(&team->step, step, -1);
}

static void run_step(struct slot *s, uint32_t step)
{
    struct worker *w = &s->worker;
    struct team *team = w->team;
    s->waited_ns = 0;
    slot_progress(s);
    atomic_store_explicit(&s->state, SLOT_RUNNING, memory_order_release); /* pairs with watch() */
    note_cpu(w);
    int64_t start = now_ns();
    team->fn(w, team->arg);
    if (w->thread == 0) {
        uint64_t took = (uint64_t)(now_ns() - start), waited = s->waited_ns < took ? s->waited_ns : took;
        count(&team->ranks[w->rank].wait_ns, waited);
        count(&team->ranks[w->rank].busy_ns, took - waited);
    }
    atomic_store_explicit(&s->state, SLOT_IDLE, memory_order_release);
    if (atomic_fetch_sub(&team->n_running, 1) ==
        1) /* the last one sees all others' writes and passes them on */
        epoch_advance(&team->done, step);
}

static void pin_to(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu < CPU_SETSIZE) {
        CPU_SET(cpu, &set);
        pthread_setaffinity_np(pthread_self(), sizeof set,
                               &set); /* refused in some containers: then unpinned */
    }
}

static void *thread_main(void *arg)
{
    struct slot *s = arg;
    struct team *team = s->worker.team;
    char name[16];
    snprintf(name, sizeof name, "rank%d.%d", s->worker.rank, s->worker.thread);
    pthread_setname_np(pthread_self(), name);
    pin_to(s->cpu);
    for (uint32_t step = 1;; step++) {
        wait_step(team, step);
        if (team->closing)
            return NULL;
        run_step(s, step);
    }
}

/* ---- open, close ---- */

/* Spinning for a thread that has no CPU of its own to run on only keeps it from running. */
static bool may_spin(const struct topo *t)
{
    cpu_set_t allowed, used;
    CPU_ZERO(&used);
    if (sched_getaffinity(0, sizeof allowed, &allowed) || t->n_ranks * t->n_threads > CPU_COUNT(&allowed))
        return false;
    for (int r = 0; r < t->n_ranks; r++) {
        const struct place *p = &t->places[r];
        for (int i = 0; i < t->n_threads; i++) {
            int cpu = p->cpus[i % p->n_cpus];
            if (cpu >= CPU_SETSIZE || CPU_ISSET(cpu, &used))
                return false;
            CPU_SET(cpu, &used);
        }
    }
    return true;
}

static int start_threads(struct team *team, struct err *err)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old); /* inherited: signals are for the program's own threads */
    int failed = 0;
    for (; team->n_started < team->n_slots; team->n_started++) {
        struct slot *s = &team->slots[team->n_started];
        failed = pthread_create(&s->thread, NULL, thread_main, s);
        if (failed)
            break;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed)
        return err_set(err, ERR_SYSTEM, "cannot start thread %d of %d: %s", team->n_started + 1,
                       team->n_slots, strerror(failed));
    return 0;
}

int team_open(struct team **out, const struct topo *t, double stall_seconds, struct err *err)
{
    assert(stall_seconds > 0);
    *out = NULL;
    if (t->synthetic)
        return err_set(err, ERR_USAGE, "this machine is only described: nothing can run on it");
    int n_slots = t->n_ranks * t->n_threads;
    size_t bytes = sizeof(struct team) + (size_t)n_slots * sizeof(struct slot);
    struct team *team = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!team)
        return err_set(err, ERR_SYSTEM, "out of memory for a team of %d threads", n_slots);
    memset(team, 0, bytes);
    team->n_ranks = t->n_ranks;
    team->n_threads = t->n_threads;
    team->n_slots = n_slots;
    team->spin = may_spin(t);
    team->stall_seconds = stall_seconds;
    atomic_init(&team->stalled_rank, -1);
    for (int i = 0; i < n_slots; i++) {
        int rank = i / t->n_threads, thread = i % t->n_threads;
        const struct place *p = &t->places[rank];
        team->slots[i].cpu = p->cpus[thread % p->n_cpus];
        team->slots[i].worker = (struct worker){
            .team = team, .rank = rank, .n_ranks = t->n_ranks, .thread = thread, .n_threads = t->n_threads};
    }
    int rc = start_threads(team, err);
    if (rc) {
        team_close(team);
        return rc;
    }
    *out = team;
    return 0;
}

/* Joins what returns within the grace time; false when a thread does not. */
static bool join_healthy(struct team *team)
{
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_nsec += grace_ns / 4;
    deadline.tv_sec += deadline.tv_nsec / 1000000000;
    deadline.tv_nsec %= 1000000000;
    bool all = true;
    for (int i = 0; i < team->n_started; i++) {
        if (pthread_timedjoin_np(team->slots[i].thread, NULL, &deadline) != 0) {
            pthread_detach(team->slots[i].thread);
            all = false;
        }
    }
    return all;
}

bool team_close(struct team *team)
{
    if (!team)
        return true;
    team->closing = true;
    epoch_advance(&team->step, team->step_number + 1);
    if (!atomic_load(&team->failed)) {
        for (int i = 0; i < team->n_started; i++)
            pthread_join(team->slots[i].thread, NULL);
    } else if (!join_healthy(team)) {
        return false; /* the team's memory is left to the threads that hang in it */
    }
    free(team);
    return true;
}

/* ---- running a step, and the watchdog ---- */

static void watch_reset(struct team *team)
{
    for (int i = 0; i < team->n_slots; i++) {
        team->slots[i].seen_progress = atomic_load_explicit(&team->slots[i].progress, memory_order_relaxed);
        team->slots[i].still_ns = 0;
    }
}

/* The rank to blame, or -1 while all is well: one with a thread that neither waits nor makes progress; or,
 * when all who have not finished wait (ranks that disagree about how often they meet), the one that is waited
 * for. `elapsed_ns`: since the last look. */
static int watch(struct team *team, int64_t elapsed_ns)
{
    const int64_t limit_ns = (int64_t)(team->stall_seconds * 1e9);
    int waited_for = -1;
    bool anyone_moves = false;
    for (int i = 0; i < team->n_slots; i++) {
        struct slot *s = &team->slots[i];
        int state =
            atomic_load_explicit(&s->state, memory_order_acquire); /* before progress, see wait_sleep() */
        uint32_t progress = atomic_load_explicit(&s->progress, memory_order_relaxed);
        s->still_ns = progress == s->seen_progress ? s->still_ns + elapsed_ns : 0;
        s->seen_progress = progress;
        if (state == SLOT_IDLE)
            continue;
        if (s->still_ns < limit_ns) {
            anyone_moves = true;
        } else if (state == SLOT_RUNNING) {
            return s->worker.rank;
        } else {
            /* A thread that waits for its own rank's thread 0 knows less than that one. */
            int rank = atomic_load_explicit(&s->waits_for, memory_order_relaxed);
            if (waited_for < 0 || rank != s->worker.rank)
                waited_for = rank;
        }
    }
    return anyone_moves ? -1 : waited_for;
}

/* What others wait for the rank at, NULL when nobody does. */
static const char *wait_for_rank(struct team *team, int rank)
{
    for (int i = 0; i < team->n_slots; i++) {
        struct slot *s = &team->slots[i];
        if (atomic_load_explicit(&s->state, memory_order_acquire) == SLOT_WAITING &&
            atomic_load_explicit(&s->waits_for, memory_order_relaxed) == rank)
            return atomic_load_explicit(&s->wait_at, memory_order_relaxed);
    }
    return NULL;
}

/* All but the blamed rank's threads have left the step. */
static bool others_idle(struct team *team, int blamed)
{
    for (int i = 0; i < team->n_slots; i++)
        if (team->slots[i].worker.rank != blamed &&
            atomic_load_explicit(&team->slots[i].state, memory_order_acquire) != SLOT_IDLE)
            return false;
    return true;
}

static void fail(struct team *team, int blamed)
{
    const char *what = wait_for_rank(team, blamed);
    if (what)
        err_set(&team->failure, ERR_SYSTEM,
                "rank %d made no progress for %g s while others waited for it at: %s", blamed,
                team->stall_seconds, what);
    else
        err_set(&team->failure, ERR_SYSTEM, "rank %d made no progress for %g s within a step", blamed,
                team->stall_seconds);
    atomic_store(&team->failed, true);
    for (int r = 0; r < team->n_ranks; r++) {
        epoch_wake(&team->ranks[r].arrived);
        epoch_wake(&team->ranks[r].released);
    }
    for (int i = 0; i < team->n_slots; i++)
        epoch_wake(&team->slots[i].arrived);
    /* The caller may free what the step works on as soon as this returns, so let go who can. */
    for (int64_t start = now_ns(); !others_idle(team, blamed) && now_ns() - start < grace_ns;)
        usleep(1000);
}

int team_run(struct team *team, team_fn *fn, void *arg, struct err *err)
{
    if (!atomic_load(&team->failed)) {
        const double tick_seconds = team->stall_seconds < 1 ? team->stall_seconds / 10 : 0.1;
        const int64_t tick_ns = (int64_t)(tick_seconds * 1e9);
        const uint32_t step = ++team->step_number;
        team->fn = fn;
        team->arg = arg;
        atomic_store(&team->n_running, team->n_slots);
        watch_reset(team);
        epoch_advance(&team->step, step);
        while (!epoch_reached(&team->done, step)) {
            int64_t start = now_ns();
            epoch_nap(&team->done, step, tick_ns);
            /* Longer than asked means that this process was stopped or the machine slept: nobody's fault. */
            int64_t elapsed = now_ns() - start;
            int blamed = watch(team, elapsed < 2 * tick_ns ? elapsed : 2 * tick_ns);
            if (blamed >= 0 && !epoch_reached(&team->done, step)) {
                fail(team, blamed);
                break;
            }
        }
    }
    if (atomic_load(&team->failed)) {
        if (err)
            *err = team->failure;
        return team->failure.code;
    }
    return 0;
}
