// y += sum of w B (A x) on a CPU: all shrinks, then all expands, each cut evenly over the threads.
#include "cpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ops.h"

namespace multilora {
namespace {

constexpr int64_t STRIPE = 8;  // panels of one expand task

// A composition without materialising it: its parts lie side by side in one virtual rank.
struct Slice {  // of a unit
  int64_t unit, index, first_part, num_parts, rank, scratch;
};

struct Shrink {
  int64_t slice, column, cost;
  const char* a;
  float weight;
};

struct Expand {
  int64_t slice, first, last, cost;
};

// What is to be done in one call; kept by each thread so that its vectors stay allocated.
struct Work {
  std::vector<Slice> slices;
  std::vector<Part> parts;
  std::vector<Shrink> shrinks;
  std::vector<Expand> expands;
  std::vector<const void*> x;
  std::vector<void*> y;
  std::vector<float> scratch;

  void clear() {
    slices.clear();
    parts.clear();
    shrinks.clear();
    expands.clear();
  }
};

const Kernels* supported(const char* name) {
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!std::strcmp(name, "avx2")) return has_avx2 ? &avx2 : nullptr;
  if (!std::strcmp(name, "avx512")) return has_avx512 ? &avx512 : nullptr;
  if (!std::strcmp(name, "avx512_bf16"))
    return has_avx512 && __builtin_cpu_supports("avx512bf16") ? &avx512_bf16 : nullptr;
  return nullptr;
}

const Kernels* selected = nullptr;

template <class T>
void add_slice(Work& work, const Unit& unit, int64_t u, int64_t s, const Linear& linear,
               const Compositions& compositions) {
  Slice slice{u, s, static_cast<int64_t>(work.parts.size()), 0, 0, 0};
  const int64_t block = RANKS * ((linear.inputs + PANEL - 1) / PANEL * PANEL) * sizeof(T);
  const int32_t* slots = compositions.slots + unit.composition * compositions.width;
  for (int64_t p = 0; p < compositions.width && slots[p] >= 0; ++p) {
    STD_TORCH_CHECK(slots[p] < linear.num_slots, "there is no slot ", slots[p]);
    const Descriptor& d = linear.table[slots[p] * linear.num_slices + s];
    if (!d.rank) continue;
    const float weight = compositions.weights[unit.composition * compositions.width + p];
    for (int64_t j = 0; j < d.rank; j += RANKS)
      work.shrinks.push_back({static_cast<int64_t>(work.slices.size()), slice.rank + j,
                              unit.rows + 2, reinterpret_cast<const char*>(d.a) + j / RANKS * block,
                              weight});
    work.parts.push_back({reinterpret_cast<const void*>(d.b), d.rank});
    slice.rank += d.rank;
    ++slice.num_parts;
  }
  if (!slice.rank) return;
  const int64_t panels = (linear.offsets[s + 1] - linear.offsets[s] + PANEL - 1) / PANEL;
  for (int64_t n = 0; n < panels; n += STRIPE) {
    const int64_t last = std::min(n + STRIPE, panels);
    work.expands.push_back({static_cast<int64_t>(work.slices.size()), n, last,
                            (last - n) * (slice.rank + 2) * (unit.rows + 2)});
  }
  work.slices.push_back(slice);
}

// Runs task(i) for all i; each thread gets a run of tasks that cost about the same in sum.
template <class Tasks, class Run>
void in_parallel(const Tasks& tasks, bool alone, const Run& run) {
  const int64_t threads = alone ? 1 : torch::stable::get_num_threads();
  const auto all = static_cast<int64_t>(tasks.size());
  if (threads < 2 || all < 2) {
    for (int64_t i = 0; i < all; ++i) run(tasks[i]);
    return;
  }
  int64_t total = 0;
  for (const auto& task : tasks) total += task.cost;
  std::vector<int64_t> cut(threads + 1, all);
  int64_t sum = 0, next = 0;
  for (int64_t i = 0; i < all; ++i) {
    while (next < threads && sum * threads >= next * total) cut[next++] = i;
    sum += tasks[i].cost;
  }
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = cut[begin]; i < cut[end]; ++i) run(tasks[i]);
  });
}

template <class T>
void point_at_rows(Work& work, const Rows& rows, const Plan& plan) {
  const int64_t sorted = plan.num_rows();
  work.x.resize(sorted);
  work.y.resize(sorted);
  for (int64_t i = 0; i < sorted; ++i) {
    const int64_t row = plan.order()[i];
    STD_TORCH_CHECK(row < rows.count, "the plan is not one of these rows");
    work.x[i] = rows.x + row * rows.x_stride * sizeof(T);
    work.y[i] = rows.y + row * rows.y_stride * sizeof(T);
  }
}

}  // namespace

template <class T>
void apply_cpu(const Rows& rows, const Linear& linear, const Compositions& compositions,
               const Plan& plan) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4);
  STD_TORCH_CHECK(selected, "this processor has none of the instruction sets of multilora");
  constexpr bool wide = sizeof(T) == 4;
  const auto shrink = wide ? selected->shrink_float : selected->shrink_bf16;
  const auto expand = wide ? selected->expand_float : selected->expand_bf16;
  thread_local Work work;
  work.clear();
  point_at_rows<T>(work, rows, plan);
  for (int64_t u = 0; u < plan.num_units(); ++u) {
    const Unit unit = plan.unit(u);
    STD_TORCH_CHECK(unit.composition < compositions.count, "no composition ", unit.composition);
    for (int64_t s = 0; s < linear.num_slices; ++s)
      add_slice<T>(work, unit, u, s, linear, compositions);
  }
  int64_t size = 0;
  for (Slice& slice : work.slices) {
    slice.scratch = size;
    size += slice.rank * plan.unit(slice.unit).rows;
  }
  if (static_cast<int64_t>(work.scratch.size()) < size) work.scratch.resize(size);
  Work& shared = work;  // the threads below have their own `work`
  const bool small = size * linear.inputs < (1 << 17);

  in_parallel(shared.shrinks, small, [&](const Shrink& task) {
    const Slice& slice = shared.slices[task.slice];
    const Unit unit = plan.unit(slice.unit);
    shrink(shared.x.data() + unit.first, unit.rows, task.a, linear.inputs, task.weight,
           shared.scratch.data() + slice.scratch + task.column, slice.rank);
  });
  in_parallel(shared.expands, small, [&](const Expand& task) {
    const Slice& slice = shared.slices[task.slice];
    const Unit unit = plan.unit(slice.unit);
    const int64_t offset = linear.offsets[slice.index];
    expand(shared.scratch.data() + slice.scratch, slice.rank, unit.rows,
           shared.parts.data() + slice.first_part, slice.num_parts, task.first, task.last,
           shared.y.data() + unit.first, offset, linear.offsets[slice.index + 1] - offset);
  });
}

template void apply_cpu<float>(const Rows&, const Linear&, const Compositions&, const Plan&);
template void apply_cpu<bf16>(const Rows&, const Linear&, const Compositions&, const Plan&);

}  // namespace multilora

// Chooses an instruction set by name; false, and nothing changes, when the processor lacks it.
extern "C" __attribute__((visibility("default"))) bool multilora_select(const char* name) {
  const multilora::Kernels* kernels = multilora::supported(name);
  if (kernels) multilora::selected = kernels;
  return kernels != nullptr;
}
