// A small pool of threads, and scratch memory that each thread keeps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace openwork {

// Calls body(task) for every task in [0, tasks), on at most `threads` threads including the caller.
// A call made while the pool works for another one runs on its caller alone.
void parallel(int64_t tasks, int threads, const std::function<void(int64_t)>& body);

// At least `floats` floats, aligned to 64 bytes and owned by the calling thread; `slot` tells apart those in use.
float* scratch(int slot, size_t floats);

}  // namespace openwork
