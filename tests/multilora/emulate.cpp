// Runs the GPU's kernels on the emulated one, as cuda.cu launches them.
#include <cstring>

#include "gpu_kernels.cuh"

using namespace multilora;

extern "C" void emulate(const char* way, void* y, const void* x, const void* table,
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
                  static_cast<int>(rows)};
  const unsigned blocks = (call.plan.num_units() + 1) * slices;  // more than there is work for
  const unsigned threads = 32 * WARPS;
  if (!std::strcmp(way, "plain float32"))
    launch(plain<float>, call, {unsigned(rows), unsigned(slices)}, 256, 1);
  if (!std::strcmp(way, "plain"))
    launch(plain<__nv_bfloat16>, call, {unsigned(rows), unsigned(slices)}, 256, 1);
  if (!std::strcmp(way, "fused decode"))
    launch(decode_fused, call, {blocks * SPLITS, 1}, threads, SPLITS);
  if (!std::strcmp(way, "decode")) {
    launch(decode_shrink, call, {blocks, SPLITS}, threads, 1);
    launch(expand_planes<DECODE_ROWS>, call, {blocks, 2}, threads, 1);
  }
  if (!std::strncmp(way, "prefill", 7)) {  // "with few blocks": each has to take several units
    const unsigned launched = std::strlen(way) > 7 ? 2 : blocks;
    launch(prefill_shrink, call, {launched, SPLITS}, threads, 1);
    launch(expand_planes<PREFILL_ROWS>, call, {launched, 2}, threads, 1);
  }
}
