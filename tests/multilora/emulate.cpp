// Runs the GPU's kernels on the emulated one, as cuda.cu launches them.  False: a block sent something
// to one that had ended.
#include <cstring>

#include "gpu_kernels.cuh"

using namespace multilora;

extern "C" bool emulate(const char* way, void* y, const void* x, const void* table,
                        const int64_t* columns, const int32_t* slots, const float* weights,
                        const int32_t* plan, float* planes, const int64_t* sizes) {
  const auto [rows, inputs, outputs, slices, width, stride] =
      reinterpret_cast<const int64_t(&)[6]>(*sizes);
  const Call call{y,
                  x,
                  outputs,
                  inputs,
                  static_cast<const Descriptor*>(table),
                  columns,
                  slots,
                  weights,
                  Plan{plan, rows},
                  planes,
                  static_cast<int>(slices),
                  static_cast<int>(width),
                  static_cast<int>(inputs),
                  static_cast<int>(stride),
                  static_cast<int>(rows),
                  2};
  machine.is_lost = false;
  const unsigned units = call.plan.num_units() + 1;  // more than there is work for
  const unsigned groups = outputs / (call.group * WIDTH) + slices;
  // "with few blocks": each has to take several units
  const bool few = std::strstr(way, "with few blocks");
  if (!std::strcmp(way, "plain float32"))
    launch(plain<float>, call, {unsigned(rows), unsigned(slices)}, 256, 1);
  if (!std::strcmp(way, "plain"))
    launch(plain<__nv_bfloat16>, call, {unsigned(rows), unsigned(slices)}, 256, 1);
  if (!std::strncmp(way, "one node", 8))
    launch(decode_fused, call, {(few ? 2 : units * unsigned(slices) * 2) * SPLITS, 1}, THREADS,
           SPLITS);
  if (!std::strncmp(way, "two nodes", 9)) {
    launch(shrink_planes, call, {few ? 2 : units * unsigned(slices), SPLITS}, THREADS, 1);
    launch(expand_planes, call, {few ? 2 : units, groups}, THREADS, 1);
  }
  return !machine.is_lost;
}
