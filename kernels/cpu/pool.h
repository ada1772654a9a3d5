// The thread pool that every kernel shares, and scratch memory for each of its threads.
//
// Knows nothing of kernels: a job is a function called once per chunk. A job ends when all its
// chunks are done, not when every thread has reported, so a descheduled thread that holds no chunk
// is never waited for.

#ifndef MTACTORS_KERNELS_CPU_POOL_H
#define MTACTORS_KERNELS_CPU_POOL_H

#include <stddef.h>

namespace mt {

typedef void (*ChunkFn)(void* context, int chunk);

// Call fn(context, c) once for each c in 0..chunks-1 and return when all are done. Each thread
// walks its own contiguous range and then takes from the others'. Runs in the caller alone when the
// pool is in use (nested or from another thread).
void parallel(int chunks, ChunkFn fn, void* context);

// Whether the chunk after this one is not in the same thread's range, or there is none.
bool last_of_range(int chunk, int chunks);

// Threads that work on a job, the caller included.
int threads();

// Use `count` threads (1..256); with `pin`, bind caller and workers to the first CPUs allowed.
void set_threads(int count, bool pin);

// Scratch of the calling thread, 64-byte aligned, kept and grown; contents undefined. A slot is
// valid until the same thread asks for it again.
enum { kScratchA, kScratchB, kScratchC, kScratchD, kScratchSlots };
void* scratch(int slot, size_t bytes);

// Call f(chunk) for every chunk; f is taken by reference and may capture.
template <typename F>
static inline void parallel_for(int chunks, F& f) {
  parallel(
      chunks, [](void* context, int chunk) { (*static_cast<F*>(context))(chunk); }, &f);
}

}  // namespace mt

#endif
