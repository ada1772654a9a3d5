/* What the emulated library exports for tests beside library.h. */
#ifndef MTACTORS_MUSA_EMULATOR_CONTROL_H
#define MTACTORS_MUSA_EMULATOR_CONTROL_H

#include <stdint.h>

#include "library.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How later launches run, in this process. `seed` 0: blocks and threads in rising order, else in
 * an order drawn from it, anew after each barrier. `warp`: lanes of a hardware warp, 32 or 128.
 * `guard`: not 0 makes a touch of memory that is not there the launch's failure instead of the
 * process's; it takes over SIGSEGV and SIGBUS during launches. Returns 0, or 1 for another warp. */
MT_EXPORT int mt_emulator_configure(uint64_t seed, int warp, int guard);
/* Why the last launch failed: kernel, block, thread, reason. "" after one that did not. */
MT_EXPORT const char* mt_emulator_fault(void);
/* Launches since the library was loaded, failed ones included. */
MT_EXPORT int64_t mt_emulator_launches(void);
/* Device memory whose end, rounded up to `alignment`, lies before a page that may not be touched;
 * every byte 0xff. NULL when there is none. */
MT_EXPORT void* mt_emulator_allocate(int64_t bytes, int64_t alignment);
MT_EXPORT void mt_emulator_free(void* pointer);

#ifdef __cplusplus
}
#endif

#endif
