/* A block's shared memory: NaN at first, with red zones that tell of writes past an array. */
#ifndef MTACTORS_MUSA_EMULATOR_SHARED_MEMORY_H
#define MTACTORS_MUSA_EMULATOR_SHARED_MEMORY_H

#include <stddef.h>

#include <vector>

namespace mt_emulator {

constexpr size_t kSharedLimit = 28 * 1024;

class SharedMemory {
 public:
  SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  /* For a launch: forgets the arrays and takes `dynamic_bytes` at the end, before the guard. */
  void reset(size_t dynamic_bytes);
  /* For a block: every byte 0xff, which is NaN in float, half and bfloat16. */
  void poison();
  unsigned char* dynamic() { return dynamic_; }
  /* The array of a declaration; NULL when the limit is passed. */
  void* array(const void* site, size_t bytes, size_t alignment);
  /* True where nothing was written between the arrays. */
  bool intact() const;
  size_t bytes() const { return static_bytes_ + dynamic_bytes_; }

 private:
  struct Array {
    const void* site;
    unsigned char* start;
    size_t bytes;
  };
  unsigned char* const arena_;
  unsigned char* dynamic_ = nullptr;
  size_t dynamic_bytes_ = 0, static_bytes_ = 0;
  unsigned char* next_ = nullptr;
  std::vector<Array> arrays_;
};

/* `bytes` of 0xff whose end (rounded up to `alignment`) is where memory ends, with a page before
 * and behind that may not be touched. NULL when there is no memory. */
void* allocate_guarded(size_t bytes, size_t alignment);
void free_guarded(void* pointer);

}  // namespace mt_emulator

#endif
