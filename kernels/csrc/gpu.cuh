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

__device__ inline float* shared_memory() {
  extern __shared__ float4 memory[];
  return reinterpret_cast<float*>(memory);
}

#if __CUDA_ARCH__ >= 900
__device__ inline int cluster_place() { return cooperative_groups::this_cluster().block_rank(); }

__device__ inline void cluster_sync() { cooperative_groups::this_cluster().sync(); }

// Where the block at a place of the cluster has what is at `mine` in this block.
__device__ inline const float* in_block(float* mine, int place) {
  return cooperative_groups::this_cluster().map_shared_rank(mine, place);
}
#endif

}  // namespace multilora

#endif
