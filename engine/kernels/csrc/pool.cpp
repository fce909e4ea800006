// Threads of our own that take part in a job if they come in time.
//
// An OpenMP team ends a job when every thread has arrived, also the one that something else keeps off its core, and
// whose share the others have long done. Here nobody waits for a thread that has not begun.

#include <pthread.h>
#include <time.h>

#include "common.h"

// Since glibc 2.34 in libc, under a new version.
FIRST_VERSION(pthread_create)
FIRST_VERSION(pthread_detach)

#if defined(__x86_64__)
#define PAUSE() _mm_pause()
#else
#define PAUSE() sched_yield()
#endif

namespace {

// How long a thread looks for its next job before it sleeps. Within a step one follows the other.
const long SPIN_NS = 100000;
const unsigned MAX_THREADS = 1024;

long now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

class Pool {
public:
    void run(void (*function)(void*), void* data, unsigned num_threads) {
        pthread_mutex_lock(&running_);  // one job at a time
        start_threads(num_threads - 1);
        function_ = function;
        data_ = data;
        num_done_.store(0, std::memory_order_relaxed);
        const uint64_t job = (tickets_.load(std::memory_order_relaxed) >> 32) + 1;
        tickets_.store(job << 32 | (num_threads - 1));
        if (num_sleeping_.load() > 0) wake();
        function(data);
        const uint64_t left = tickets_.exchange(job << 32) & 0xffffffff;
        wait_for(num_threads - 1 - static_cast<unsigned>(left));
        pthread_mutex_unlock(&running_);
    }

private:
    static void* work(void* pool) {
        static_cast<Pool*>(pool)->work();
        return nullptr;
    }

    [[noreturn]] void work() {
        for (;;) {
            while (!take_ticket()) sleep();
            function_(data_);
            num_done_.fetch_add(1, std::memory_order_release);
        }
    }

    // Whoever has one of a job's tickets is waited for, so that the job lasts. False when none came for a while.
    bool take_ticket() {
        const long until = now_ns() + SPIN_NS;
        for (unsigned i = 0;; i++) {
            uint64_t seen = tickets_.load(std::memory_order_acquire);
            if ((seen & 0xffffffff) > 0 && tickets_.compare_exchange_weak(seen, seen - 1)) return true;
            PAUSE();
            if (i % 64 == 63 && now_ns() > until) return false;
        }
    }

    void sleep() {
        pthread_mutex_lock(&mutex_);
        num_sleeping_.fetch_add(1);
        while ((tickets_.load() & 0xffffffff) == 0) pthread_cond_wait(&has_tickets_, &mutex_);
        num_sleeping_.fetch_sub(1);
        pthread_mutex_unlock(&mutex_);
    }

    void wake() {
        pthread_mutex_lock(&mutex_);
        pthread_cond_broadcast(&has_tickets_);
        pthread_mutex_unlock(&mutex_);
    }

    void wait_for(unsigned num_taken) {
        for (unsigned i = 0; num_done_.load(std::memory_order_acquire) < num_taken; i++) {
            PAUSE();
            if (i % 1024 == 1023) sched_yield();
        }
    }

    // As many as could be started: the work gets done by those that there are.
    void start_threads(unsigned count) {
        for (; num_threads_ < least(count, MAX_THREADS); num_threads_++) {
            pthread_t thread;
            if (pthread_create(&thread, nullptr, work, this) != 0) return;
            pthread_detach(thread);
        }
    }

    pthread_mutex_t running_ = PTHREAD_MUTEX_INITIALIZER, mutex_ = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t has_tickets_ = PTHREAD_COND_INITIALIZER;
    unsigned num_threads_ = 0;
    void (*function_)(void*) = nullptr;
    void* data_ = nullptr;
    alignas(64) std::atomic<uint64_t> tickets_{0};  // the job's number, and how many threads may still join it
    alignas(64) std::atomic<unsigned> num_done_{0};
    alignas(64) std::atomic<int> num_sleeping_{0};
};

Pool* the_pool = nullptr;

// Gives a forked child a pool of its own: it has none of the parent's threads, and their locks may be held for ever.
void renew_pool() { the_pool = new Pool; }  // never deleted: threads outlive everything

__attribute__((constructor)) void create_pool() {
    renew_pool();
    pthread_atfork(nullptr, nullptr, renew_pool);
}

}  // namespace

extern "C" {

// Runs function(data) in the calling thread and in up to num_threads - 1 others. They must find their shares
// themselves, and the calling thread must do whatever nobody has taken.
EXPORT void orcinus_parallel(void (*function)(void*), void* data, unsigned num_threads, unsigned) {
    the_pool->run(function, data, num_threads);
}
}
