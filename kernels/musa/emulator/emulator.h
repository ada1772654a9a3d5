/* Runs a kernel's threads on the host and watches what they do; no CUDA or MUSA names here.
 *
 * A launch fails, with a text that names kernel, block and thread, when threads of a block wait at
 * different barriers, when one ends while others wait, when a shuffle is not reached by its whole
 * hardware warp or with other operands than the width allows, when it asks for more than 28 KiB of
 * shared memory, when a 16-byte access is not aligned, or (configured with `guard`) when a thread
 * touches memory that is not there. Shared memory starts as NaN in every block.
 */
#ifndef MTACTORS_MUSA_EMULATOR_H
#define MTACTORS_MUSA_EMULATOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <tuple>

namespace mt_emulator {

enum ShuffleKind { kXor, kIndex, kUp };

/* `grid` and `block` are three numbers each. */
void run(const char* name, void (*body)(void*), void* argument, const unsigned* grid,
         const unsigned* block, size_t shared_bytes);

void barrier(const char* file, int line);
uint32_t shuffle_bits(ShuffleKind kind, unsigned mask, uint32_t bits, int operand, int width,
                      const char* file, int line);
/* The block's array of a declaration, told apart by the address of a variable beside it. */
void* shared_array(const void* site, size_t bytes, size_t alignment);
unsigned char* dynamic_shared();
void check_aligned(const void* pointer, size_t alignment);

template <typename T>
inline T shuffle(ShuffleKind kind, unsigned mask, T value, int operand, int width,
                 const char* file, int line) {
  static_assert(sizeof(T) == 4, "the hardware shuffles 4 bytes");
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = shuffle_bits(kind, mask, bits, operand, width, file, line);
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace mt_emulator

#endif
