// A small pool of persistent threads that share the blocks of one job.
#pragma once

#include <cstddef>
#include <memory>

namespace unblemish::cpu {

class Pool {
 public:
  // Starts no thread: the first job that is worth it does.
  explicit Pool(unsigned threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  unsigned threads() const { return threads_; }

  // Call body(block) once for each block in [0, blocks), in any order and on any thread, and return when
  // all are done. `bytes` is the memory the job touches: small jobs stay on the caller's thread. A pool
  // that is busy (another Python thread) or was inherited through fork() runs the job on the caller.
  template <class Body>
  void for_each(std::size_t blocks, std::size_t bytes, const Body& body) {
    run(blocks, bytes, [](const void* b, std::size_t i) { (*static_cast<const Body*>(b))(i); }, &body);
  }

 private:
  using Call = void (*)(const void*, std::size_t);
  struct Team;

  void run(std::size_t blocks, std::size_t bytes, Call call, const void* body);

  unsigned threads_;
  std::unique_ptr<Team> team_;
};

}  // namespace unblemish::cpu
