// Fibres with a switch of six registers on x86-64 (5 ns) and ucontext elsewhere (a system call).

#include "fibre.h"

#include <stdint.h>
#include <sys/mman.h>

#include <new>

namespace mt_emulator {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kGuardBytes = 64 * 1024;  // a multiple of every page size in use

// Stacks that all begin at the same place of a page would share a few lines of the cache.
size_t next_colour() {
  static size_t made = 0;
  return made++ % 127 * 320;
}

}  // namespace

Fibre::Fibre() : bytes_(kStackBytes - next_colour()) {
  void* mapped = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapped, kGuardBytes, PROT_NONE);
  stack_ = static_cast<unsigned char*>(mapped) + kGuardBytes;
}

#if defined(MT_EMULATOR_UCONTEXT)

void Fibre::prepare(void (*entry)()) {
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = stack_;
  context.saved.uc_stack.ss_size = bytes_;
  context.saved.uc_link = nullptr;
  makecontext(&context.saved, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }

#else

extern "C" void mt_emulator_switch(void** from, void* to);
// Saves what a call must keep, leaves the stack pointer in *from and goes on where `to` stopped.
// A jump, because a return would be predicted from the stack that was left.
asm(R"(
  .text
  .p2align 4
  .type mt_emulator_switch, @function
mt_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
  .size mt_emulator_switch, . - mt_emulator_switch
)");

void Fibre::prepare(void (*entry)()) {
  // Six registers, the address to return to, and a word that aligns the stack as after a call.
  auto* top = reinterpret_cast<uintptr_t*>(stack_ + bytes_) - 8;
  for (int i = 0; i < 8; ++i) top[i] = 0;
  top[6] = reinterpret_cast<uintptr_t>(entry);
  context.stack_pointer = top;
}

void switch_context(Context& from, Context& to) {
  mt_emulator_switch(&from.stack_pointer, to.stack_pointer);
}

#endif

}  // namespace mt_emulator
