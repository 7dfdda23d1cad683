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

// Nobody passes the wait before all threads of the cluster have arrived.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Where the block at a place of the cluster has what is at `mine` in this block.
template <class T>
__device__ inline const T* in_block(T* mine, int place) {
  return cooperative_groups::this_cluster().map_shared_rank(mine, place);
}
#endif

// Starts to bring global memory into the L2 cache; address and bytes are multiples of 16.
__device__ inline void prefetch(const void* address, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes));
#endif
}

}  // namespace multilora

#endif
