/* Fibres: stacks of their own that one host thread switches between. Knows nothing of kernels. */
#ifndef MTACTORS_MUSA_EMULATOR_FIBRE_H
#define MTACTORS_MUSA_EMULATOR_FIBRE_H

#if !defined(__x86_64__) && !defined(MT_EMULATOR_UCONTEXT)
#define MT_EMULATOR_UCONTEXT
#endif

#include <stddef.h>

#if defined(MT_EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace mt_emulator {

/* Where something stopped, to go on from there. */
struct Context {
#if defined(MT_EMULATOR_UCONTEXT)
  ucontext_t saved;
#else
  void* stack_pointer = nullptr;
#endif
};

/* A stack with a page behind it that may not be touched. Never freed: fibres are used again. */
class Fibre {
 public:
  Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;
  /* Makes the next switch to `context` call entry(), which must never return. */
  void prepare(void (*entry)());
  Context context;

 private:
  unsigned char* stack_;
  size_t bytes_;
};

void switch_context(Context& from, Context& to);

}  // namespace mt_emulator

#endif
