// Threads that share the tasks of a call, and scratch memory that each thread keeps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace openwork {

// Calls body(task) for every task in [0, tasks), on at most `threads` threads including the caller.
// A call made while the pool works for another one runs on its caller alone.
void parallel(int64_t tasks, int threads, const std::function<void(int64_t)>& body);

// Of an OpenMP runtime: `GOMP_parallel`, which runs fn(data) on a team of `threads`, the caller among them, and
// `omp_get_thread_num`.
struct Team {
  void (*run)(void (*fn)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*thread)() = nullptr;
};

// From now on calls run on this runtime's threads, which then do not wait for work on the cores that ours need; {}:
// on threads of our own, and so after a fork, which no team survives.
void share_team(Team);

// At least `floats` floats, aligned to 64 bytes and owned by the calling thread; `slot` tells apart those in use.
float* scratch(int slot, size_t floats);

}  // namespace openwork
