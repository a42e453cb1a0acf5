/* team.h - the ranks: pinned threads started once, the hand-off of a step to them, how they meet, and the
 * account of what each of them did.
 *
 * Rank threads run one function at a time, all of them the same one (SPMD). Between steps they sleep in the
 * kernel (an idle team uses no CPU). Three ways to meet, all with bounded spinning and then sleeping, so that
 * more threads than CPUs works:
 *   rank_barrier()  the threads of one rank
 *   team_meet()     all threads of all ranks: publishes everything written before it to everyone after it
 *   all-reduce      reduce.h, built on the same epochs
 * A rank whose thread neither waits for others nor shows progress for longer than the stall limit fails the
 * whole team: every wait returns nonzero from then on, team_run() returns the error, and the team can only be
 * closed. Progress is every wait and every worker_progress(), so a thread in a long stretch of work must call
 * that.
 *
 * Threads: team_open/run/close from one thread (the engine's); the rest from rank threads inside team_run. */
#ifndef HW_TEAM_H
#define HW_TEAM_H

#include "base/err.h"
#include "hw/topo.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct team;

/* What a rank thread knows about itself; passed to every function that runs on one. */
struct worker {
    struct team *team;
    int rank, n_ranks;
    int thread, n_threads; /* within the rank */
};

/* One rank's account since the team was opened. Times are of its thread 0. */
struct rank_counters {
    uint64_t steps, all_reduces, weight_bytes_read, busy_ns, wait_ns;
    uint64_t cpus_seen[16]; /* bit set of CPUs (OS index, up to 1024) its threads were found on */
};

typedef void team_fn(struct worker *w, void *arg);

/* Starts n_ranks * n_threads pinned threads (pinning refused by the kernel is no error). stall_seconds: the
 * limit above (10 in the product; tests use less). */
MUST_CHECK int team_open(struct team **out, const struct topo *t, double stall_seconds, struct err *err);
/* After a stall it does not join threads that never come back: then it returns false, and what they may still
 * read or write (see team_run) must stay where it is until the process ends. */
bool team_close(struct team *team);

/* Runs fn(arg) on every rank thread and returns when all have finished, or when the team has failed: then the
 * error names the rank, and what the others waited for. After a failure a hung thread may still hold `arg`
 * and what it leads to (memory of the step, of the arenas): leave them alone until the process ends. */
MUST_CHECK int team_run(struct team *team, team_fn *fn, void *arg, struct err *err);

/* All of these return 0, or nonzero once the team has failed (return from fn at once then).
 * `what` names the wait for the error message: a string literal such as "all-reduce of layer 3, attention".
 */
MUST_CHECK int rank_barrier(struct worker *w, const char *what);
MUST_CHECK int team_meet(struct worker *w, const char *what);

/* A thread in a long stretch of work says that it is alive. Cheap (one relaxed store). */
void worker_progress(struct worker *w);
/* Adds to the rank's account; thread-safe. */
void worker_count(struct worker *w, uint64_t steps, uint64_t all_reduces, uint64_t weight_bytes);

/* Snapshot of a rank's account; any thread, at any time. */
void team_counters(const struct team *team, int rank, struct rank_counters *out);
/* Starts all accounts afresh; not while team_run() runs. */
void team_counters_reset(struct team *team);

/* Test aid: makes `rank` stop for good at its next wait, as a hung rank would. */
void team_inject_stall(struct team *team, int rank);

#endif
