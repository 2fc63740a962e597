// A CUDA driver library of the host for tests of what calls the real one by pycuda and ctypes: memory is host
// memory, launches run the emulated kernels of the libraries named in EMULATION_LIBRARIES, and what is put on a
// stream runs at once, or, while it is captured, when the graph is launched. Functions that are not here are
// added by `host_libcuda.py` and return CUDA_ERROR_NOT_SUPPORTED.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

using Work = std::function<int()>;
using Launcher = int (*)(unsigned, unsigned, const unsigned char*, std::size_t);

enum Code { kSuccess = 0, kInvalid = 1, kNoBinary = 209, kHandle = 400, kNotFound = 500, kCapture = 900, kLaunch = 719 };

struct Graph {
  std::vector<Work> work;
};
struct Function {
  std::string name;
  Launcher run;
};

static std::map<std::uintptr_t, std::size_t> memory;
static std::vector<void*> contexts;
static bool capturing;
static Graph recorded;
static double ran;  // ms: every piece of work takes one

struct Event {
  unsigned flags;
  double at;
};

static int put(const Work& work) {
  if (capturing) {
    recorded.work.push_back(work);
    return kSuccess;
  }
  return ran += 1, work();
}

static bool inside(std::uint64_t at, std::size_t bytes) {
  auto next = memory.upper_bound(at);
  if (next == memory.begin()) return false;
  --next;
  return at + bytes <= next->first + next->second;
}

static Launcher find(const std::string& name) {
  std::stringstream paths(std::getenv("EMULATION_LIBRARIES"));
  for (std::string path; std::getline(paths, path, ':');) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) continue;
    const std::string symbol = "launch_" + name.substr(std::strlen("unblemish_"));
    if (void* found = dlsym(library, symbol.c_str())) return reinterpret_cast<Launcher>(*static_cast<void**>(found));
  }
  return nullptr;
}

extern "C" {

int cuInit(unsigned) { return kSuccess; }
int cuDriverGetVersion(int* version) { return *version = 13000, kSuccess; }
int cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
int cuDeviceGet(int* device, int number) { return *device = number, number == 0 ? kSuccess : kInvalid; }
int cuDeviceComputeCapability(int* major, int* minor, int) { return *major = 9, *minor = 0, kSuccess; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  // Capability 9.0, two multiprocessors, a warp of 32, 64 KB of L2 cache.
  static const std::map<int, int> known = {{75, 9}, {76, 0}, {16, 2}, {10, 32}, {38, 65536}};
  *value = known.count(attribute) ? known.at(attribute) : 1024;
  return kSuccess;
}
int cuGetErrorString(int code, const char** text) {
  static std::string said;
  said = "host driver: code " + std::to_string(code);
  *text = said.c_str();
  return kSuccess;
}

int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &contexts, kSuccess; }
int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
int cuCtxPushCurrent_v2(void* context) { return contexts.push_back(context), kSuccess; }
int cuCtxPopCurrent_v2(void** context) {
  if (contexts.empty()) return kInvalid;
  if (context != nullptr) *context = contexts.back();
  contexts.pop_back();
  return kSuccess;
}
int cuCtxGetDevice(int* device) { return *device = 0, contexts.empty() ? 201 : kSuccess; }
int cuCtxDetach(void*) { return kSuccess; }
int cuCtxSynchronize() { return capturing ? kCapture : kSuccess; }

int cuMemAlloc_v2(std::uint64_t* pointer, std::size_t bytes) {
  if (capturing) return kCapture;
  void* room = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(room, 0xff, bytes);
  *pointer = reinterpret_cast<std::uintptr_t>(room);
  memory[*pointer] = bytes;
  return kSuccess;
}
int cuMemFree_v2(std::uint64_t pointer) {
  if (memory.erase(pointer) == 0) return kInvalid;
  std::free(reinterpret_cast<void*>(pointer));
  return kSuccess;
}
int cuMemHostAlloc(void** pointer, std::size_t bytes, unsigned) {
  return *pointer = std::malloc(bytes), capturing ? kCapture : kSuccess;
}
int cuMemFreeHost(void* pointer) { return std::free(pointer), kSuccess; }

static int move(std::uintptr_t to, std::uintptr_t from, std::size_t bytes, bool ours) {
  if (!ours) return kInvalid;
  return put([=] { return std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), 0; });
}
int cuMemcpyHtoDAsync_v2(std::uint64_t to, const void* from, std::size_t bytes, void*) {
  return move(to, reinterpret_cast<std::uintptr_t>(from), bytes, inside(to, bytes));
}
int cuMemcpyDtoHAsync_v2(void* to, std::uint64_t from, std::size_t bytes, void*) {
  return move(reinterpret_cast<std::uintptr_t>(to), from, bytes, inside(from, bytes));
}
int cuMemcpyDtoDAsync_v2(std::uint64_t to, std::uint64_t from, std::size_t bytes, void*) {
  return move(to, from, bytes, inside(to, bytes) && inside(from, bytes));
}
int cuMemsetD32Async(std::uint64_t to, unsigned word, std::size_t count, void*) {
  if (!inside(to, 4 * count)) return kInvalid;
  return put([=] {
    for (std::size_t i = 0; i < count; ++i) reinterpret_cast<unsigned*>(to)[i] = word;
    return 0;
  });
}

int cuModuleLoadDataEx(void** module, const void* image, unsigned, void*, void**) {
  static std::set<std::string> images;
  const auto kept = images.insert(static_cast<const char*>(image)).first;
  *module = const_cast<char*>(kept->c_str());
  return std::strncmp(kept->c_str(), "stale", 5) == 0 ? kNoBinary : kSuccess;
}
int cuModuleUnload(void*) { return kSuccess; }
int cuModuleGetFunction(void** function, void*, const char* name) {
  const Launcher run = find(name);
  if (run == nullptr) return kNotFound;
  return *function = new Function{name, run}, kSuccess;
}
int cuFuncSetBlockShape(void*, int, int, int) { return kSuccess; }
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned, void*, void** arguments, void** extra) {
  if (gz != 1 || bx != 256 || by != 1 || bz != 1 || arguments != nullptr) return kInvalid;
  const auto* packed = static_cast<const unsigned char*>(extra[1]);
  const std::vector<unsigned char> kept(packed, packed + *static_cast<std::size_t*>(extra[3]));
  const Launcher run = static_cast<Function*>(function)->run;
  return put([=] { return run(gx, gy, kept.data(), kept.size()) == 0 ? kSuccess : kLaunch; });
}

int cuStreamCreate(void** stream, unsigned flags) { return *stream = new int(7), flags == 1 ? kSuccess : kInvalid; }
int cuStreamDestroy_v2(void*) { return kSuccess; }
int cuStreamSynchronize(void*) { return capturing ? kCapture : kSuccess; }
int cuStreamWaitEvent(void*, void*, unsigned) { return kSuccess; }
int cuEventCreate(void** event, unsigned flags) { return *event = new Event{flags, -1}, kSuccess; }
int cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), kSuccess; }
int cuEventRecord(void* event, void*) { return static_cast<Event*>(event)->at = ran, kSuccess; }
int cuEventElapsedTime_v2(float* passed, void* before, void* after) {
  const auto *first = static_cast<Event*>(before), *last = static_cast<Event*>(after);
  // CU_EVENT_DISABLE_TIMING
  if ((first->flags | last->flags) & 2 || first->at < 0 || last->at < 0) return kHandle;
  return *passed = static_cast<float>(last->at - first->at), kSuccess;
}
int cuEventElapsedTime(float* passed, void* before, void* after) {
  return cuEventElapsedTime_v2(passed, before, after);
}
int cuEventQuery(void*) { return kSuccess; }
int cuEventSynchronize(void*) { return kSuccess; }

int cuStreamBeginCapture_v2(void*, int) { return capturing = true, recorded.work.clear(), kSuccess; }
int cuStreamEndCapture(void*, void** graph) { return capturing = false, *graph = new Graph(recorded), kSuccess; }
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  return *executable = new Graph(*static_cast<Graph*>(graph)), kSuccess;
}
int cuGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), kSuccess; }
int cuGraphExecDestroy(void* graph) { return delete static_cast<Graph*>(graph), kSuccess; }
int cuGraphLaunch(void* graph, void*) {
  for (const Work& work : static_cast<Graph*>(graph)->work)
    if (const int code = (ran += 1, work())) return code;
  return kSuccess;
}
}
