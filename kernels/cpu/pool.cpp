#include "pool.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(_WIN32)
#include <process.h>
static int process_id() { return _getpid(); }
#else
#include <unistd.h>
static int process_id() { return static_cast<int>(getpid()); }
#endif

namespace unblemish::cpu {
namespace {

// Some 70 microseconds of one core, against about 10 to wake another.
constexpr std::size_t kWorthwhileBytes = 4u << 20;

}  // namespace

struct Pool::Team {
  struct Job {
    std::size_t blocks;
    Call call;
    const void* body;
    std::atomic<std::size_t> next{0};

    void work() {
      for (std::size_t i = next.fetch_add(1); i < blocks; i = next.fetch_add(1)) call(body, i);
    }
  };

  std::mutex busy;  // held by the thread that owns the job
  std::mutex guard;  // of everything below
  std::condition_variable wake;
  std::condition_variable idle;
  Job* job = nullptr;
  unsigned working = 0;
  unsigned long long serial = 0;
  bool stopping = false;
  int process = process_id();
  std::vector<std::thread> workers;

  void start(unsigned count) {
    while (workers.size() < count) workers.emplace_back([this] { loop(); });
  }

  void loop() {
    unsigned long long seen = 0;
    std::unique_lock lock(guard);
    for (;;) {
      wake.wait(lock, [&] { return stopping || (job != nullptr && serial != seen); });
      if (stopping) return;
      seen = serial;
      Job& mine = *job;
      ++working;
      lock.unlock();
      mine.work();
      lock.lock();
      if (--working == 0) idle.notify_one();
    }
  }

  void share(Job& mine) {
    {
      const std::lock_guard lock(guard);
      job = &mine;
      ++serial;
    }
    wake.notify_all();
    mine.work();
    // Every block is taken. A thread that wakes only now finds no job; those inside are waited for.
    std::unique_lock lock(guard);
    job = nullptr;
    idle.wait(lock, [&] { return working == 0; });
  }

  void stop() {
    {
      const std::lock_guard lock(guard);
      stopping = true;
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
  }
};

Pool::Pool(unsigned threads) : threads_(threads), team_(std::make_unique<Team>()) {}

Pool::~Pool() {
  if (team_->process == process_id()) {
    team_->stop();
  } else {
    // In a forked child the threads do not exist: joining them would never return.
    static_cast<void>(team_.release());
  }
}

void Pool::run(std::size_t blocks, std::size_t bytes, Call call, const void* body) {
  if (threads_ > 1 && blocks > 1 && bytes >= kWorthwhileBytes && team_->process == process_id()) {
    const std::unique_lock<std::mutex> owner(team_->busy, std::try_to_lock);
    if (owner.owns_lock()) {
      team_->start(threads_ - 1);
      Team::Job job{blocks, call, body};
      team_->share(job);
      return;
    }
  }
  for (std::size_t i = 0; i < blocks; ++i) call(body, i);
}

}  // namespace unblemish::cpu
