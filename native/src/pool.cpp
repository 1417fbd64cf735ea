#include "pool.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define OW_PAUSE() _mm_pause()
#define OW_FENCE() _mm_sfence()  // outputs that went past the caches are there for other threads
#else
#define OW_FENCE()
#define OW_PAUSE() std::this_thread::yield()
#endif

namespace openwork {
namespace {

constexpr int kBits = 16;
constexpr int kSpins = 2000;  // some tens of microseconds: layers follow each other closely

// The tasks of one call. Every thread has the same stretch of them in every call, so that it finds in its cache what
// it wrote or read before; who is done takes what is left of the others' stretches.
class Tasks {
 public:
  Tasks(int64_t count, int threads, const std::function<void(int64_t)>& body) : stretches_(threads), body_(body) {
    for (int i = 0; i < threads; ++i) {
      stretches_[i].next = count * i / threads;
      stretches_[i].end = count * (i + 1) / threads;
    }
  }

  void work(int thread) {
    const int all = static_cast<int>(stretches_.size());
    try {
      for (int i = 0; i < all; ++i) {
        Stretch& s = stretches_[(thread + i) % all];
        for (int64_t t; (t = s.next.fetch_add(1, std::memory_order_relaxed)) < s.end;) body_(t);
      }
      OW_FENCE();
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      problem_ = std::current_exception();
    }
  }

  void finish() {
    if (problem_) std::rethrow_exception(problem_);
  }

 private:
  struct alignas(64) Stretch {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  std::vector<Stretch> stretches_;
  const std::function<void(int64_t)>& body_;
  std::mutex mutex_;
  std::exception_ptr problem_;
};

class Pool {
 public:
  Pool() : owner_(getpid()) {}

  bool inherited() const { return owner_ != getpid(); }  // after a fork the threads are gone

  void run(Tasks& tasks, int threads) {
    threads = 1 + grow(threads - 1);
    tasks_ = &tasks;
    pending_.store(threads - 1, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      uint64_t round = state_.load(std::memory_order_relaxed) >> kBits;
      state_.store((round + 1) << kBits | static_cast<uint64_t>(threads - 1), std::memory_order_release);
    }
    wake_.notify_all();
    tasks.work(0);
    for (int spin = 0; pending_.load(std::memory_order_acquire) > 0; ++spin)
      spin < kSpins ? OW_PAUSE() : std::this_thread::yield();
  }

 private:
  // Threads beyond the caller; fewer than `count` when the system gives no more.
  int grow(int count) {
    while (static_cast<int>(threads_.size()) < count) {
      uint64_t id = threads_.size();
      try {
        threads_.emplace_back([this, id, seen = state_.load()] { live(id, seen); });
      } catch (const std::system_error&) {
        return static_cast<int>(id);
      }
      threads_.back().detach();
    }
    return count;
  }

  void live(uint64_t id, uint64_t seen) {
    for (;;) {
      for (int spin = 0; spin < kSpins && state_.load(std::memory_order_acquire) == seen; ++spin) OW_PAUSE();
      if (state_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return state_.load(std::memory_order_acquire) != seen; });
      }
      seen = state_.load(std::memory_order_acquire);
      if (id >= (seen & ((1u << kBits) - 1))) continue;
      tasks_->work(static_cast<int>(id) + 1);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  pid_t owner_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> state_{0};  // number of the round and how many threads it wants, read in one go
  std::atomic<int> pending_{0};
  Tasks* tasks_ = nullptr;
};

std::mutex busy;
Pool* pool = nullptr;
Team team{};
pid_t team_owner = 0;

struct Arena {
  float* data = nullptr;
  size_t floats = 0;
  ~Arena() { std::free(data); }
};

}  // namespace

void share_team(Team other) {
  team = other;
  team_owner = getpid();
}

void parallel(int64_t tasks, int threads, const std::function<void(int64_t)>& body) {
  std::unique_lock<std::mutex> lock(busy, std::defer_lock);
  if (threads <= 1 || tasks <= 1 || !lock.try_lock()) {
    for (int64_t t = 0; t < tasks; ++t) body(t);
    OW_FENCE();
    return;
  }
  Tasks all(tasks, threads, body);
  if (team.run != nullptr && team_owner == getpid()) {  // on as many threads as its other users, or it would be built anew
    team.run([](void* those) { static_cast<Tasks*>(those)->work(team.thread()); }, &all, static_cast<unsigned>(threads), 0);
  } else {
    if (pool == nullptr || pool->inherited()) pool = new Pool();  // never freed: its threads outlive main
    pool->run(all, static_cast<int>(std::min<int64_t>(threads, tasks)));
  }
  all.finish();
}

float* scratch(int slot, size_t floats) {
  thread_local Arena arenas[4];
  Arena& a = arenas[slot];
  floats = std::max<size_t>(floats, 1);
#if defined(__SANITIZE_ADDRESS__)
  // Exactly what was asked for, and new every time: what is read or written outside of it, or kept too long, is found.
  std::free(a.data);
  a.data = nullptr;
  if (posix_memalign(reinterpret_cast<void**>(&a.data), 64, floats * sizeof(float)) != 0) throw std::bad_alloc();
  for (size_t i = 0; i < floats; ++i) a.data[i] = __builtin_nanf("");
  return a.data;
#else
  if (a.floats < floats) {
    constexpr size_t page = size_t{2} << 20;
    size_t bytes = floats * sizeof(float);
    size_t unit = bytes >= page / 4 ? page : 4096;
    bytes = (bytes + unit - 1) / unit * unit;
    std::free(a.data);
    a.data = nullptr;
    a.floats = 0;
    void* p = std::aligned_alloc(unit, bytes);
    if (p == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (unit == page) madvise(p, bytes, MADV_HUGEPAGE);  // 4 KiB pages cost 3 to 7 %
#endif
    a.data = static_cast<float*>(p);
    a.floats = bytes / sizeof(float);
  }
  return a.data;
#endif
}

}  // namespace openwork
