/* interrupt.c - see interrupt.h. */
#include "interrupt.h"
#include "command.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>

static pthread_t main_thread;
/* The handler and the main thread are the same thread: signal-safe accesses are all that is needed. */
static struct yoke_request *_Atomic watched;
static atomic_int interrupts; /* also read by progress callbacks */

static void on_interrupt(int signal_number)
{
    int saved = errno;

    if (!pthread_equal(pthread_self(), main_thread)) {
        pthread_kill(main_thread, signal_number);
        errno = saved;
        return;
    }
    if (atomic_fetch_add(&interrupts, 1) > 0)
        _exit(EXIT_INTERRUPTED);
    struct yoke_request *request = atomic_load(&watched);
    if (request)
        yoke_cancel(request);
    errno = saved;
}

void interrupt_install(bool restart)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = restart ? SA_RESTART : 0};

    main_thread = pthread_self();
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

bool interrupt_pending(void)
{
    return atomic_load(&interrupts) > 0;
}

void interrupt_watch(struct yoke_request *request)
{
    atomic_store(&watched, request);
    if (request && interrupt_pending())
        yoke_cancel(request);
}
