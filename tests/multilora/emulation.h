// A GPU in slow motion: the threads of a cluster as coroutines on one CPU thread.
//
// Each runs until it has to wait for others; barriers, shuffles and matrix products meet there.
// By chance blocks and warps are left behind, and what is sent to another block arrives later.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#undef __device__
#undef __host__
#undef __global__
#undef __launch_bounds__
#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)
#define __CUDA_ARCH__ 900

namespace multilora {

using std::max;
using std::min;

struct Index {
  unsigned x = 0, y = 0;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

struct Group {  // that waits together
  int size, arrived = 0, round = 0;
};

constexpr int STACK = 32 << 10;  // bytes

struct Machine {
  struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    Index thread, block;
    int place;  // in the cluster
    bool done = false;
  };
  std::vector<Thread> threads;
  std::vector<std::vector<float>> memory;  // of each block
  std::vector<Group> warps, blocks;
  Group cluster;
  std::vector<float> lanes;  // what threads show the others of their warp
  struct Sent {
    float4* to;
    float4 value;
    struct Barrier* told;
    int place;
  };
  std::vector<Sent> sent;  // and not yet there
  std::minstd_rand random;
  bool is_lost = false;  // whether something was sent to a block that had ended
  ucontext_t scheduler;
  Thread* current = nullptr;
};
inline Machine machine;

inline int number() { return &*machine.current - machine.threads.data(); }

inline void wait(Group& group) {
  const int round = group.round;
  if (++group.arrived == group.size) {
    group.arrived = 0;
    ++group.round;
  }
  auto* self = machine.current;
  while (group.round == round) swapcontext(&self->context, &machine.scheduler);
}

inline void __syncthreads() { wait(machine.blocks[machine.current->place]); }
inline void cluster_meet() { wait(machine.cluster); }
inline int cluster_place() { return machine.current->place; }
inline char* shared_memory() {
  return reinterpret_cast<char*>(machine.memory[machine.current->place].data());
}
template <class T>
inline T* in_block(T* mine, int place) {
  char* there = reinterpret_cast<char*>(machine.memory[place].data());
  return reinterpret_cast<T*>(there + (reinterpret_cast<char*>(mine) - shared_memory()));
}

struct Barrier {
  int bytes;
  short pending, round;

  void init() { *this = {0, 1, 0}; }
  void expect(int more) {
    bytes += more;
    --pending;
    pass();
  }
  void pass() {
    if (bytes || pending) return;
    pending = 1;
    ++round;
  }
  void wait(int passed) {
    while ((round ^ passed) % 2 == 0) swapcontext(&machine.current->context, &machine.scheduler);
  }
};

inline void send(float4* mine, const float4& value, Barrier* barrier, int place) {
  machine.sent.push_back({in_block(mine, place), value, in_block(barrier, place), place});
}

// Some of what is on its way, in any order.
inline void deliver() {
  auto& sent = machine.sent;
  for (auto count = machine.random() % (sent.size() + 1); count; --count) {
    std::swap(sent[machine.random() % sent.size()], sent.back());
    const auto [to, value, told, place] = sent.back();
    sent.pop_back();
    const auto* threads = &machine.threads[place * blockDim.x];
    machine.is_lost |= std::all_of(threads, threads + blockDim.x, [](auto& t) { return t.done; });
    *to = value;
    told->bytes -= sizeof(value);
    told->pass();
  }
}
inline void copy_async(void* shared, const void* global) { std::memcpy(shared, global, 16); }
inline void commit_copies() {}
template <int left>
inline void wait_copies() {}
template <class T>
inline T __ldg(const T* p) {
  return *p;
}

constexpr int SHOWN = 16;  // floats of a thread

// Shows `count` floats to the warp; use(lane, i) then reads float i of a lane.
template <class Use>
inline void exchange_in_warp(const float* mine, int count, const Use& use) {
  Group& warp = machine.warps[number() / 32];
  for (int i = 0; i < count; ++i) machine.lanes[number() * SHOWN + i] = mine[i];
  wait(warp);
  const float* first = machine.lanes.data() + number() / 32 * 32 * SHOWN;
  use([first](int lane, int i) { return first[lane * SHOWN + i]; });
  wait(warp);
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  float result = 0;
  exchange_in_warp(&value, 1, [&](auto shown) { result = shown((number() % 32) ^ mask, 0); });
  return result;
}

inline void unpack(uint32_t word, float* pair) {
  const auto& two = reinterpret_cast<const __nv_bfloat162&>(word);
  const float2 floats = __bfloat1622float2(two);
  pair[0] = floats.x;
  pair[1] = floats.y;
}

// The fragments of mma.m16n8k16 and .m16n8k8 as the PTX manual gives them.
template <int K>
inline void mma(float (&c)[4], const uint32_t* a, const uint32_t* b) {
  constexpr int A = K / 4, B = K / 8;
  float mine[2 * (A + B)];
  for (int i = 0; i < A; ++i) unpack(a[i], mine + 2 * i);
  for (int i = 0; i < B; ++i) unpack(b[i], mine + 2 * (A + i));
  exchange_in_warp(mine, 2 * (A + B), [&](auto shown) {
    const int group = number() % 32 / 4, pair = number() % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = group + i / 2 * 8, column = 2 * pair + i % 2;
      for (int k = 0; k < K; ++k) {
        const float left = shown(row % 8 * 4 + k % 8 / 2, 2 * (row / 8 + k / 8 * 2) + k % 2);
        c[i] += left * shown(column * 4 + k % 8 / 2, 2 * (A + k / 8) + k % 2);
      }
    }
  });
}
inline void mma16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                  uint32_t b1) {
  const uint32_t a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  mma<16>(c, a, b);
}
inline void mma8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  const uint32_t a[2] = {a0, a1};
  mma<8>(c, a, &b0);
}

inline std::function<void()> body;

inline void enter() {
  body();
  machine.current->done = true;
  swapcontext(&machine.current->context, &machine.scheduler);
}

inline void run_cluster(Index first, int size) {
  const int threads = blockDim.x, all = size * threads;
  machine.threads = std::vector<Machine::Thread>(all);
  machine.memory.assign(size, std::vector<float>(48 << 10, NAN));
  machine.warps.assign(all / 32, {32});
  machine.blocks.assign(size, {threads});
  machine.cluster = {all};
  machine.lanes.assign(all * SHOWN, 0);
  for (int i = 0; i < all; ++i) {
    auto& thread = machine.threads[i];
    thread.place = i / threads;
    thread.thread.x = i % threads;
    thread.block = {first.x + thread.place, first.y};
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = STACK;
    makecontext(&thread.context, enter, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    deliver();
    const int left = machine.random() % all;  // behind: its block, its warp, or all other blocks
    const int which = machine.random() % 4;
    for (auto& thread : machine.threads) {
      if (thread.done) continue;
      alive = true;
      const int i = &thread - machine.threads.data();
      const bool in_block = thread.place == left / threads, in_warp = i / 32 == left / 32;
      if ((which == 0 && in_block) || (which == 1 && in_warp) || (which == 2 && !in_block)) continue;
      machine.current = &thread;
      threadIdx = thread.thread;
      blockIdx = thread.block;
      swapcontext(&machine.scheduler, &thread.context);
    }
  }
  machine.is_lost |= !machine.sent.empty();
  machine.sent.clear();
}

template <class Kernel, class Call>
void launch(Kernel kernel, const Call& call, Index grid, unsigned threads, int cluster) {
  gridDim = grid;
  blockDim = {threads, 1};
  body = [&] { kernel(call); };
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; x += cluster) run_cluster({x, y}, cluster);
}

}  // namespace multilora
