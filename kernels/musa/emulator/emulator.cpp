// The scheduler of emulated launches: blocks one by one, their threads as fibres.
//
// A thread runs until it waits or ends, a hardware warp until not all of it waits at one shuffle,
// then the next; when all wait, the block goes on if it is whole at one barrier, and anything else
// is the launch's failure. Between two barriers warps thus run one after another, in a chosen
// order: a missing barrier shows as a wrong or poisoned value. Single accesses do not race.

#include "emulator.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>

#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "fibre.h"
#include "musa_runtime.h"
#include "shared_memory.h"
#include "status.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace mt_emulator {
namespace {

constexpr int kSubWarp = 32;

enum class State { kReady, kBarrier, kShuffle, kDone };

struct Thread {
  Fibre fibre;
  State state = State::kDone;
  const char* file = "";
  int line = 0;
  ShuffleKind kind = kXor;
  int operand = 0;
  uint32_t value = 0, result = 0;
};

// What a launch needs; one launch at a time.
struct Machine {
  uint64_t random = 0;
  int warp = 32;
  const char* kernel = "";
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  int count = 0;     // threads of the block
  int current = -1;  // the one that runs, -1 outside
  bool failed = false;
  Context scheduler;
  std::deque<Thread> threads;  // a deque does not move what it holds
  std::vector<int> warps, lanes;  // in the order in which they run
  SharedMemory shared;
};

Machine& machine() {
  // Never destroyed: fibres may be in the midst of a launch when the process ends.
  static Machine* const made = new Machine;
  return *made;
}

// splitmix64
uint64_t next_random(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

void shuffle_order(std::vector<int>& order, Machine& m) {
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[next_random(m.random) % i]);
  }
}

std::vector<int> rising(int count) {
  std::vector<int> numbers(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) numbers[static_cast<size_t>(i)] = i;
  return numbers;
}

__attribute__((format(printf, 2, 3))) void fail(Machine& m, const char* format, ...) {
  if (m.failed) return;
  char reason[512], where[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(reason, sizeof reason, format, arguments);
  va_end(arguments);
  const int length = snprintf(where, sizeof where, "kernel %s", m.kernel);
  if (m.count > 0 && length > 0 && static_cast<size_t>(length) < sizeof where) {
    snprintf(where + length, sizeof where - static_cast<size_t>(length), ", block (%u, %u, %u)",
             blockIdx.x, blockIdx.y, blockIdx.z);
  }
  m.failed = true;
  status().fault = std::string(where) + ": " + reason;
}

// Ends the running thread's part in a launch that failed.
[[noreturn]] void leave(Machine& m) {
  switch_context(m.threads[static_cast<size_t>(m.current)].fibre.context, m.scheduler);
  __builtin_unreachable();
}

void yield(Machine& m, State state) {
  Thread& self = m.threads[static_cast<size_t>(m.current)];
  self.state = state;
  switch_context(self.fibre.context, m.scheduler);
}

// What each fibre runs, block after block.
void thread_main() {
  Machine& m = machine();
  for (;;) {
    m.body(m.argument);
    yield(m, State::kDone);
  }
}

const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

std::string describe(const Machine& m, int index) {
  const Thread& t = m.threads[static_cast<size_t>(index)];
  const std::string place = std::string(base_name(t.file)) + ":" + std::to_string(t.line);
  const std::string name = "thread " + std::to_string(index);
  if (t.state == State::kDone) return name + " has ended";
  if (t.state == State::kBarrier) return name + " waits at the barrier of " + place;
  return name + " waits at the shuffle of " + place + ", operand " + std::to_string(t.operand);
}

bool together(const Thread& a, const Thread& b) {
  if (a.state != b.state) return false;
  if (a.state == State::kDone) return true;
  if (a.line != b.line || a.kind != b.kind || strcmp(a.file, b.file) != 0) return false;
  // Only an index may differ from lane to lane.
  return a.kind == kIndex || a.operand == b.operand;
}

// Index of the first thread of begin..end that is not where `begin` is; -1 when there is none.
int first_apart(const Machine& m, int begin, int end) {
  for (int i = begin + 1; i < end; ++i) {
    if (!together(m.threads[static_cast<size_t>(begin)], m.threads[static_cast<size_t>(i)])) {
      return i;
    }
  }
  return -1;
}

void exchange(Machine& m, int begin, int end) {
  for (int i = begin; i < end; ++i) {
    Thread& t = m.threads[static_cast<size_t>(i)];
    const int lane = i % kSubWarp, base = i - lane;
    int from = lane;
    if (t.kind == kXor) from = lane ^ t.operand;
    if (t.kind == kIndex) from = t.operand;
    if (t.kind == kUp && lane >= t.operand) from = lane - t.operand;
    if (from < 0 || from >= kSubWarp) {
      fail(m, "thread %d shuffles with lane %d of %d", i, from, kSubWarp);
      return;
    }
    t.result = m.threads[static_cast<size_t>(base + from)].value;
    t.state = State::kReady;
  }
}

// Lets a warp go on that is whole at one shuffle.
bool release_warp(Machine& m, int begin) {
  if (m.threads[static_cast<size_t>(begin)].state != State::kShuffle) return false;
  if (first_apart(m, begin, begin + m.warp) >= 0) return false;
  exchange(m, begin, begin + m.warp);
  return !m.failed;
}

// Lets a block go on that is whole at one barrier. False when it has ended or failed.
bool release_block(Machine& m) {
  const int apart = first_apart(m, 0, m.count);
  const State state = m.threads[0].state;
  if (apart < 0 && state == State::kDone) return false;
  if (apart < 0 && state == State::kBarrier) {
    for (int i = 0; i < m.count; ++i) m.threads[static_cast<size_t>(i)].state = State::kReady;
    return true;
  }
  // Some warp is whole at one shuffle unless threads of a block went different ways.
  int first = 0, second = apart;
  for (int begin = 0; begin < m.count; begin += m.warp) {
    const int other = first_apart(m, begin, begin + m.warp);
    if (other >= 0) {
      first = begin;
      second = other;
      break;
    }
  }
  fail(m, "%s while %s (hardware warps of %d)", describe(m, first).c_str(),
       describe(m, second).c_str(), m.warp);
  return false;
}

// Runs a thread until it waits or ends.
void resume(Machine& m, int index) {
  Thread& thread = m.threads[static_cast<size_t>(index)];
  if (thread.state != State::kReady) return;
  m.current = index;
  threadIdx = dim3(static_cast<unsigned>(index), 0, 0);
  switch_context(m.scheduler, thread.fibre.context);
  m.current = -1;
}

// Runs a warp until it waits for others.
void run_warp(Machine& m, int begin) {
  do {
    if (status().seed != 0) shuffle_order(m.lanes, m);
    for (const int lane : m.lanes) {
      resume(m, begin + lane);
      if (m.failed) return;
    }
  } while (release_warp(m, begin));
}

void run_block(Machine& m) {
  m.shared.poison();
  for (int i = 0; i < m.count; ++i) m.threads[static_cast<size_t>(i)].state = State::kReady;
  do {
    if (status().seed != 0) shuffle_order(m.warps, m);
    for (const int warp : m.warps) {
      run_warp(m, warp * m.warp);
      if (m.failed) return;
    }
  } while (release_block(m));
  if (!m.failed && !m.shared.intact()) fail(m, "a thread wrote past the end of a shared array");
}

bool prepare(Machine& m, const unsigned* grid, const unsigned* block, size_t shared_bytes) {
  m.failed = false;
  status().fault.clear();
  m.count = 0;
  if (block[1] != 1 || block[2] != 1 || block[0] == 0 || block[0] > 1024 || block[0] % 128 != 0) {
    fail(m, "a block of %u x %u x %u threads: 128 to 1024 in steps of 128 are possible", block[0],
         block[1], block[2]);
  } else if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 0x7fffffffu ||
             grid[1] > 65535 || grid[2] > 65535) {
    fail(m, "a grid of %u x %u x %u blocks", grid[0], grid[1], grid[2]);
  } else if (shared_bytes > kSharedLimit) {
    fail(m, "%zu bytes of shared memory: %zu are there", shared_bytes, kSharedLimit);
  }
  if (m.failed) {
    status().error = musaErrorInvalidConfiguration;
    return false;
  }
  while (m.threads.size() < block[0]) {
    m.threads.emplace_back();
    m.threads.back().fibre.prepare(thread_main);
  }
  m.count = static_cast<int>(block[0]);
  m.warps = rising(m.count / m.warp);
  m.lanes = rising(m.warp);
  m.shared.reset(shared_bytes);
  blockDim = dim3(block[0], 1, 1);
  gridDim = dim3(grid[0], grid[1], grid[2]);
  m.random = status().seed;
  return true;
}

void on_signal(int number, siginfo_t* info, void*) {
  Machine& m = machine();
  if (m.current < 0) {
    // Not a kernel's: dies as it would have without us.
    signal(number, SIG_DFL);
    raise(number);
    return;
  }
  fail(m, "thread %d touched memory at %p that is not there", m.current, info->si_addr);
  leave(m);
}

// Catches bad accesses while it lives, on a stack of its own: the fibre's may be what is full.
class SignalGuard {
 public:
  explicit SignalGuard(bool active) : active_(active), stack_(active ? 64 * 1024 : 0) {
    if (!active_) return;
    stack_t alternative = {};
    alternative.ss_sp = stack_.data();
    alternative.ss_size = stack_.size();
    sigaltstack(&alternative, &old_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    // The handler does not return, so nothing would unblock the signal again.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &old_segv_);
    sigaction(SIGBUS, &action, &old_bus_);
  }
  ~SignalGuard() {
    if (!active_) return;
    sigaction(SIGSEGV, &old_segv_, nullptr);
    sigaction(SIGBUS, &old_bus_, nullptr);
    sigaltstack(&old_stack_, nullptr);
  }
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

 private:
  const bool active_;
  std::vector<char> stack_;
  stack_t old_stack_ = {};
  struct sigaction old_segv_ = {}, old_bus_ = {};
};

}  // namespace

void run(const char* name, void (*body)(void*), void* argument, const unsigned* grid,
         const unsigned* block, size_t shared_bytes) {
  const std::lock_guard<std::mutex> lock(status().launching);
  Machine& m = machine();
  m.warp = status().warp;
  m.kernel = name;
  m.body = body;
  m.argument = argument;
  ++status().launches;
  // As on a device, nothing runs after a failure that nobody has asked about.
  if (status().error != musaSuccess) return;
  if (!prepare(m, grid, block, shared_bytes)) return;
  const SignalGuard guard(status().guard);
  const int64_t plane = static_cast<int64_t>(grid[0]) * grid[1];
  std::vector<int> blocks = rising(static_cast<int>(plane * grid[2]));
  if (status().seed != 0) shuffle_order(blocks, m);
  for (const int index : blocks) {
    const unsigned within = static_cast<unsigned>(index % plane);
    blockIdx = dim3(within % grid[0], within / grid[0], static_cast<unsigned>(index / plane));
    run_block(m);
    if (m.failed) break;
  }
  if (!m.failed) return;
  status().error = musaErrorLaunchFailure;
  // Their stacks hold threads that will never go on.
  for (Thread& thread : m.threads) thread.fibre.prepare(thread_main);
}

void barrier(const char* file, int line) {
  Machine& m = machine();
  Thread& self = m.threads[static_cast<size_t>(m.current)];
  self.file = file;
  self.line = line;
  self.operand = 0;
  self.kind = kXor;
  yield(m, State::kBarrier);
}

uint32_t shuffle_bits(ShuffleKind kind, unsigned mask, uint32_t bits, int operand, int width,
                      const char* file, int line) {
  Machine& m = machine();
  Thread& self = m.threads[static_cast<size_t>(m.current)];
  if (mask != 0xffffffffu || width != kSubWarp) {
    fail(m, "thread %d shuffles with mask %x and width %d: only whole sub-warps of 32 are known",
         m.current, mask, width);
    leave(m);
  }
  self.file = file;
  self.line = line;
  self.kind = kind;
  self.operand = operand;
  self.value = bits;
  yield(m, State::kShuffle);
  return self.result;
}

void* shared_array(const void* site, size_t bytes, size_t alignment) {
  Machine& m = machine();
  void* array = m.shared.array(site, bytes, alignment);
  if (array == nullptr) {
    fail(m, "%zu bytes of shared memory: %zu are there", m.shared.bytes(), kSharedLimit);
    leave(m);
  }
  return array;
}

unsigned char* dynamic_shared() { return machine().shared.dynamic(); }

void check_aligned(const void* pointer, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignment == 0) return;
  Machine& m = machine();
  fail(m, "thread %d accesses %zu bytes at %p, which is not aligned", m.current, alignment,
       pointer);
  leave(m);
}

}  // namespace mt_emulator
