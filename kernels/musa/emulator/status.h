/* What outlives a launch: how launches are to run, and what became of the last one. */
#ifndef MTACTORS_MUSA_EMULATOR_STATUS_H
#define MTACTORS_MUSA_EMULATOR_STATUS_H

#include <stdint.h>

#include <mutex>
#include <string>

#include "musa_runtime.h"

namespace mt_emulator {

struct Status {
  std::mutex launching; /* held by a launch, and to change what follows */
  uint64_t seed = 0;
  int warp = 32;
  bool guard = false;
  int64_t launches = 0;
  std::string fault;
  musaError_t error = musaSuccess; /* until it is asked for */
};

Status& status();

}  // namespace mt_emulator

#endif
