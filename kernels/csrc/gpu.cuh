// What the kernels ask of the hardware.  tests/multilora/emulation.h has the same for a CPU, so that
// their code runs, thread by thread, where there is no GPU.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#ifdef MULTILORA_EMULATION
#include "emulation.h"
#else

#include <cooperative_groups.h>

namespace multilora {

__device__ inline void mma16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                             uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void mma8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

__device__ inline char* shared_memory() {
  extern __shared__ float4 memory[];
  return reinterpret_cast<char*>(memory);
}

#if __CUDA_ARCH__ >= 900
__device__ inline int cluster_place() { return cooperative_groups::this_cluster().block_rank(); }

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// A barrier in shared memory, which one thread of the block and the bytes that it tells of pass.
struct Barrier {
  uint64_t state;

  __device__ void init() {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(this)));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __device__ void expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(this)),
                 "r"(bytes)
                 : "memory");
  }
  // Rounds count from 0; only the last bit matters.
  __device__ void wait(int round) {
    uint32_t is_over = 0;
    while (!is_over)
      asm volatile(
          "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(is_over)
          : "r"(shared_address(this)), "r"(round & 1)
          : "memory");
  }
};

// Writes to what another block of the cluster has in the place of `mine`, and to its barrier.
// A fence for the whole GPU, as barrier.cluster has it, would empty the L1 cache.
__device__ inline void send(float4* mine, const float4& value, Barrier* barrier, int place) {
  asm volatile(
      "{\n.reg .u32 a, b;\nmapa.shared::cluster.u32 a, %0, %6;\n"
      "mapa.shared::cluster.u32 b, %1, %6;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [a], {%2,%3,%4,%5}, [b];\n}" ::
          "r"(shared_address(mine)),
      "r"(shared_address(barrier)), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w),
      "r"(place)
      : "memory");
}

// Until all blocks of the cluster have come this far; says nothing of their memory.
__device__ inline void cluster_meet() {
  asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory");
}
#endif

// Sixteen bytes to shared memory, past the registers.
__device__ inline void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `left` of the thread's last commits are on their way.
template <int left>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

}  // namespace multilora

#endif
