// The thread pool: short spin, then futex; own range first, then stealing.

#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace mt {
namespace {

constexpr int kMaxThreads = 256;
// Long enough to bridge the gap between two kernels of a step, short enough to leave the core to
// the front, which needs it.
constexpr int64_t kSpinNanoseconds = 40000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * int64_t{1000000000} + t.tv_nsec;
}

void wait_on(std::atomic<uint32_t>* word, uint32_t value) {
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  if (word->load() == value) std::this_thread::yield();
#endif
}

void wake_all(std::atomic<uint32_t>* word) {
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, kMaxThreads, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

// Spin until the word differs from `value`; false when the time is up.
bool spin_on(const std::atomic<uint32_t>& word, uint32_t value) {
  const int64_t end = now() + kSpinNanoseconds;
  do {
    for (int i = 0; i < 32; ++i) {
      if (word.load(std::memory_order_acquire) != value) return true;
      relax();
    }
  } while (now() < end);
  return false;
}

// `next` is generation << 32 | chunk: a thread that comes late from an older job cannot claim a
// chunk of this one, because its generation does not match.
struct alignas(64) Range {
  std::atomic<uint64_t> next{0};
  std::atomic<uint32_t> end{0};
};

struct Pool {
  std::mutex in_use;
  int threads = 1;
  int started = 1;  // threads that exist, the caller included
  bool pin = false;
  alignas(64) std::atomic<uint32_t> generation{0};
  std::atomic<uint32_t> sleepers{0};
  alignas(64) std::atomic<uint32_t> pending{0};
  std::atomic<uint32_t> caller_waits{0};
  alignas(64) std::atomic<ChunkFn> fn{nullptr};
  std::atomic<void*> context{nullptr};
  std::atomic<int> ranges_used{0};
  Range ranges[kMaxThreads];
};

// Never freed: its threads may outlive static destructors.
std::atomic<Pool*> the_pool{nullptr};
std::mutex pool_made;

uint32_t range_begin(int range, int ranges, int chunks) {
  return static_cast<uint32_t>(int64_t{chunks} * range / ranges);
}

void take(Pool* pool, uint32_t generation, Range* range) {
  for (;;) {
    uint64_t next = range->next.load(std::memory_order_acquire);
    if (static_cast<uint32_t>(next >> 32) != generation) return;
    const uint32_t chunk = static_cast<uint32_t>(next);
    if (chunk >= range->end.load(std::memory_order_relaxed)) return;
    if (!range->next.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel)) continue;
    // The job cannot end, nor these fields change, before this chunk is counted below.
    pool->fn.load(std::memory_order_relaxed)(pool->context.load(std::memory_order_relaxed),
                                             static_cast<int>(chunk));
    if (pool->pending.fetch_sub(1, std::memory_order_seq_cst) == 1 &&
        pool->caller_waits.load(std::memory_order_seq_cst)) {
      wake_all(&pool->pending);
    }
  }
}

void work(Pool* pool, uint32_t generation, int self) {
  const int count = pool->ranges_used.load(std::memory_order_relaxed);
  for (int i = 0; i < count; ++i) take(pool, generation, &pool->ranges[(self + i) % count]);
}

void pin_to(int index) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(getpid(), sizeof(allowed), &allowed) != 0) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    if (index-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof(one), &one);
    return;
  }
#else
  (void)index;
#endif
}

void worker_main(Pool* pool, int self, int cpu) {
  if (cpu >= 0) pin_to(cpu);
  uint32_t seen = 0;
  for (;;) {
    if (!spin_on(pool->generation, seen)) {
      pool->sleepers.fetch_add(1, std::memory_order_seq_cst);
      while (pool->generation.load(std::memory_order_seq_cst) == seen) {
        wait_on(&pool->generation, seen);
      }
      pool->sleepers.fetch_sub(1, std::memory_order_seq_cst);
    }
    seen = pool->generation.load(std::memory_order_acquire);
    if (self < pool->ranges_used.load(std::memory_order_relaxed)) work(pool, seen, self);
  }
}

// In a forked child the worker threads are gone: start from nothing, with the same settings.
void after_fork() {
  Pool* old = the_pool.load();
  Pool* fresh = new Pool;
  if (old != nullptr) {
    fresh->threads = old->threads;
  }
  the_pool.store(fresh);
}

Pool* pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found != nullptr) return found;
  std::lock_guard<std::mutex> lock(pool_made);
  found = the_pool.load(std::memory_order_acquire);
  if (found == nullptr) {
    found = new Pool;
    the_pool.store(found, std::memory_order_release);
    pthread_atfork(nullptr, nullptr, after_fork);
  }
  return found;
}

void start_threads(Pool* pool) {
  while (pool->started < pool->threads) {
    const int self = pool->started;
    // Signals belong to the main thread: Python installs its handlers there.
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    std::thread(worker_main, pool, self, pool->pin ? self : -1).detach();
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
    ++pool->started;
  }
}

struct ThreadScratch {
  void* data[kScratchSlots] = {};
  size_t size[kScratchSlots] = {};
  ~ThreadScratch() {
    for (void* p : data) free(p);
  }
};

}  // namespace

void set_threads(int count, bool pin) {
  Pool* p = pool();
  std::lock_guard<std::mutex> lock(p->in_use);
  p->threads = count < 1 ? 1 : count > kMaxThreads ? kMaxThreads : count;
  p->pin = pin;
  start_threads(p);
  // After the workers exist: they would inherit the caller's single CPU.
  if (pin) pin_to(0);
}

int threads() { return pool()->threads; }

bool last_of_range(int chunk, int chunks) {
  const int count = std::min(pool()->threads, chunks);
  // The first range that does not begin before the next chunk.
  const int range = static_cast<int>((int64_t{chunk + 1} * count + chunks - 1) / chunks);
  return range_begin(range, count, chunks) == static_cast<uint32_t>(chunk + 1);
}

void parallel(int chunks, ChunkFn fn, void* context) {
  Pool* p = pool();
  std::unique_lock<std::mutex> lock(p->in_use, std::defer_lock);
  if (chunks <= 1 || p->threads <= 1 || !lock.try_lock()) {
    for (int c = 0; c < chunks; ++c) fn(context, c);
    return;
  }
  start_threads(p);
  const int count = p->threads < chunks ? p->threads : chunks;
  const uint32_t generation = p->generation.load(std::memory_order_relaxed) + 1;
  p->fn.store(fn, std::memory_order_relaxed);
  p->context.store(context, std::memory_order_relaxed);
  p->pending.store(static_cast<uint32_t>(chunks), std::memory_order_relaxed);
  p->ranges_used.store(count, std::memory_order_relaxed);
  for (int i = 0; i < count; ++i) {
    const uint32_t begin = range_begin(i, count, chunks);
    const uint32_t end = range_begin(i + 1, count, chunks);
    p->ranges[i].end.store(end, std::memory_order_relaxed);
    p->ranges[i].next.store(uint64_t{generation} << 32 | begin, std::memory_order_release);
  }
  p->generation.store(generation, std::memory_order_seq_cst);
  if (p->sleepers.load(std::memory_order_seq_cst) != 0) wake_all(&p->generation);
  work(p, generation, 0);
  for (;;) {
    uint32_t left = p->pending.load(std::memory_order_acquire);
    if (left == 0) break;
    const int64_t end = now() + kSpinNanoseconds;
    while (left != 0 && now() < end) {
      for (int i = 0; i < 16 && left != 0; ++i) {
        relax();
        left = p->pending.load(std::memory_order_acquire);
      }
    }
    if (left == 0) break;
    p->caller_waits.store(1, std::memory_order_seq_cst);
    left = p->pending.load(std::memory_order_seq_cst);
    if (left != 0) wait_on(&p->pending, left);
    p->caller_waits.store(0, std::memory_order_relaxed);
  }
}

void* scratch(int slot, size_t bytes) {
  static thread_local ThreadScratch mine;
  if (mine.size[slot] < bytes) {
    free(mine.data[slot]);
    mine.size[slot] = 0;
    const size_t rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    mine.data[slot] = aligned_alloc(4096, rounded);
    if (mine.data[slot] == nullptr) throw std::bad_alloc();
    mine.size[slot] = rounded;
  }
  return mine.data[slot];
}

}  // namespace mt
