// Shared memory of a block, and device allocations between pages that may not be touched.

#include "shared_memory.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <new>

namespace mt_emulator {
namespace {

constexpr size_t kRedZone = 64;
constexpr size_t kArenaBytes = 4 * kSharedLimit;  // arrays, their red zones, the dynamic part

struct Mapping {
  void* start;
  size_t bytes;
};
std::mutex mappings_mutex;
std::map<void*, Mapping> mappings;

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

unsigned char* guarded_arena() {
  void* made = allocate_guarded(kArenaBytes, 16);
  if (made == nullptr) throw std::bad_alloc();
  return static_cast<unsigned char*>(made);
}

bool untouched(const unsigned char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    if (from[i] != 0xff) return false;
  }
  return true;
}

}  // namespace

void* allocate_guarded(size_t bytes, size_t alignment) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t inside = round_up(bytes, page);
  const size_t whole = inside + 2 * page;
  void* mapped =
      mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* start = static_cast<unsigned char*>(mapped);
  memset(start, 0xff, whole);
  mprotect(start, page, PROT_NONE);
  mprotect(start + page + inside, page, PROT_NONE);
  void* pointer = start + page + inside - round_up(bytes, alignment);
  const std::lock_guard<std::mutex> lock(mappings_mutex);
  mappings[pointer] = Mapping{mapped, whole};
  return pointer;
}

void free_guarded(void* pointer) {
  const std::lock_guard<std::mutex> lock(mappings_mutex);
  const auto found = mappings.find(pointer);
  if (found == mappings.end()) return;
  munmap(found->second.start, found->second.bytes);
  mappings.erase(found);
}

SharedMemory::SharedMemory() : arena_(guarded_arena()) {}

void SharedMemory::reset(size_t dynamic_bytes) {
  arrays_.clear();
  static_bytes_ = 0;
  next_ = arena_ + kRedZone;
  dynamic_bytes_ = dynamic_bytes;
  dynamic_ = arena_ + kArenaBytes - round_up(dynamic_bytes, 16);
}

void SharedMemory::poison() {
  memset(arena_, 0xff, static_cast<size_t>(next_ - arena_));
  memset(dynamic_ - kRedZone, 0xff, kRedZone + round_up(dynamic_bytes_, 16));
}

void* SharedMemory::array(const void* site, size_t bytes, size_t alignment) {
  for (const Array& array : arrays_) {
    if (array.site == site) return array.start;
  }
  static_bytes_ = round_up(static_bytes_, alignment) + bytes;
  if (static_bytes_ + dynamic_bytes_ > kSharedLimit || arrays_.size() >= kSharedLimit / kRedZone) {
    return nullptr;
  }
  unsigned char* start = next_;
  next_ = start + round_up(bytes, kRedZone) + kRedZone;
  // A site that is met first in the midst of a launch begins as poison as well.
  memset(start, 0xff, static_cast<size_t>(next_ - start));
  arrays_.push_back(Array{site, start, bytes});
  return start;
}

bool SharedMemory::intact() const {
  if (!untouched(arena_, kRedZone) || !untouched(dynamic_ - kRedZone, kRedZone)) return false;
  for (const Array& array : arrays_) {
    const unsigned char* end = array.start + array.bytes;
    const size_t zone = round_up(array.bytes, kRedZone) + kRedZone - array.bytes;
    if (!untouched(end, zone)) return false;
  }
  return true;
}

}  // namespace mt_emulator
