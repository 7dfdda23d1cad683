// The operator on a GPU: which kernels run, and how they are launched.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "gpu_kernels.cuh"
#include "ops.h"

namespace multilora {
namespace {

constexpr int64_t PREFILL = 512;  // rows from which units have PREFILL_ROWS; so in batch.py
constexpr int RESIDENT = 4;        // blocks of a multiprocessor in prefill
constexpr int LARGEST_GROUP = 32;  // panels of outputs of a block

void check(cudaError_t status) {
  STD_TORCH_CHECK(status == cudaSuccess, "CUDA: ", cudaGetErrorString(status));
}

struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};

  Launch(dim3 grid, int threads, int shared, cudaStream_t stream, int cluster = 1) {
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = cluster > 1;
  }
  Launch(const Launch&) = delete;

  template <class Kernel>
  void operator()(Kernel kernel, const Call& call) const {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               config.dynamicSmemBytes));
    check(cudaLaunchKernelEx(&config, kernel, call));
  }
};

int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// How many clusters of decode_fused run at once.  The driver takes its time to say, so the last
// answer is kept.
int64_t clusters_at_once(int device, int shared) {
  static thread_local int of_device = -1, of_shared = -1, clusters = 0;
  if (device != of_device || shared != of_shared) {
    const Launch launch(dim3(SPLITS), THREADS, shared, nullptr, SPLITS);
    check(cudaFuncSetAttribute(decode_fused, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    check(cudaOccupancyMaxActiveClusters(&clusters, decode_fused, &launch.config));
    of_device = device;
    of_shared = shared;
  }
  return clusters;
}

bool fits_tiles(const Call& call, bool is_bf16) {
  const auto address = reinterpret_cast<uintptr_t>(call.x);
  return is_bf16 && call.inputs % 8 == 0 && call.x_stride % 8 == 0 && address % 16 == 0;
}

// `max_rank` bounds the sum of the ranks of any composition.  Inside a graph `rows` is what the graph
// was captured for and the plan may be of fewer: then its units are lower, and each kernel takes as
// many of them as there are.
void apply(Tensor y, const Tensor& x, const Tensor& table, const Tensor& columns,
           const Tensor& slots, const Tensor& weights, const Tensor& plan, int64_t max_rank) {
  check_shapes(y, x, table, columns);
  STD_TORCH_CHECK(plan.is_cuda() && table.is_cuda() && columns.is_cuda() && slots.is_cuda() &&
                      weights.is_cuda(),
                  "plan and tables are on the GPU");
  const bool is_bf16 = y.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(is_bf16 || y.scalar_type() == ScalarType::Float, "float32 or bfloat16");
  const int64_t rows = y.size(0), capacity = (plan.numel() - 2) / 4;
  Call call{y.data_ptr(), x.data_ptr(), y.stride(0), x.stride(0),
            static_cast<const Descriptor*>(table.data_ptr()),
            static_cast<const int64_t*>(columns.data_ptr()),
            static_cast<const int32_t*>(slots.data_ptr()),
            static_cast<const float*>(weights.data_ptr()),
            Plan{static_cast<const int32_t*>(plan.data_ptr()), capacity}, nullptr,
            static_cast<int>(table.size(1)), static_cast<int>(slots.size(1)),
            static_cast<int>(x.size(1)), static_cast<int>(max_rank), static_cast<int>(rows), 0};
  if (!rows || !max_rank) return;
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const auto stream = static_cast<cudaStream_t>(
      torch::stable::accelerator::getCurrentStream(device).nativeHandle());
  const bool is_decode = rows < PREFILL;
  const int tile_rows = is_decode ? DECODE_ROWS : PREFILL_ROWS;
  const int64_t units = std::min(rows, rows / tile_rows + slots.size(0));
  const int64_t panels = y.size(1) / WIDTH + call.slices;  // at least as many as there are
  const int processors = attribute_of(device, cudaDevAttrMultiProcessorCount);
  const int shared = attribute_of(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int of_fused = fused_bytes(call.slices, call.width, call.stride);
  const int of_shrink = shrink_bytes(call.width, call.stride);
  const int of_expand = expand_bytes(tile_rows, call.width, call.stride);
  const bool is_fused = is_decode && of_fused <= shared &&
                        attribute_of(device, cudaDevAttrComputeCapabilityMajor) >= 9;
  if (!fits_tiles(call, is_bf16) || (!is_fused && std::max(of_shrink, of_expand) > shared)) {
    const dim3 grid(rows, call.slices);
    const int plain_bytes = call.stride * sizeof(float);
    if (is_bf16)
      Launch(grid, 256, plain_bytes, stream)(plain<__nv_bfloat16>, call);
    else
      Launch(grid, 256, plain_bytes, stream)(plain<float>, call);
    return;
  }
  if (is_fused) {
    const int64_t at_once = std::max<int64_t>(1, clusters_at_once(device, of_fused));
    const int64_t shares = (panels + SPLITS * WARPS - 1) / (SPLITS * WARPS);
    const unsigned clusters = std::min(at_once, units * shares);
    Launch(dim3(clusters * SPLITS), THREADS, of_fused, stream, SPLITS)(decode_fused, call);
    return;
  }
  const Tensor planes = torch::stable::new_empty(
      x, {SPLITS * rows * call.slices * call.stride}, ScalarType::Float);
  call.planes = static_cast<float*>(planes.data_ptr());
  // as many blocks as run at once, unless their panels get too few or too many
  const int64_t share = panels * (rows / tile_rows + 1) / (processors * RESIDENT);
  call.group = std::clamp<int64_t>(share / ABREAST * ABREAST, WARPS * ABREAST / 2, LARGEST_GROUP);
  const unsigned groups = panels / call.group + call.slices;
  Launch(dim3(units * call.slices, SPLITS), THREADS, of_shrink, stream)(shrink_planes, call);
  Launch(dim3(units, groups), THREADS, of_expand, stream)(expand_planes, call);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(multilora, CUDA, m) { m.impl("apply_", TORCH_BOX(&apply)); }

}  // namespace multilora
