#include "launch.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace rl_lnlstm {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;

namespace {

constexpr int64_t kBlocksOfAThread = 4, kRowsOfABlock = 16;
constexpr double kWorkOfAThread = 2.5e6;  // multiplications, about 70 us, as long as waking a thread takes

void Pad(const float* values, int64_t parts, int64_t count, int64_t width, float* padded) {
  std::memset(padded, 0, parts * width * sizeof(float));
  for (int64_t part = 0; part < parts; ++part)
    std::memcpy(padded + part * width, values + part * count, count * sizeof(float));
}

// Multiplications of a forward pass. A backward pass has about twice as many.
double Work(const Sizes& sizes) {
  return static_cast<double>(sizes.steps()) * (sizes.features + sizes.units) * 4 * sizes.units;
}

// Asks Linux for huge pages in a large array that has not been written yet. Otherwise, the first write to every 4 KiB
// interrupts the thread.
void AdviseHugePages(float* data, int64_t size) {
#ifdef MADV_HUGEPAGE
  if (data == nullptr) return;
  constexpr uintptr_t kHuge = 2 << 20, kSmallest = 2 * kHuge;
  const uintptr_t first = RoundUp(reinterpret_cast<uintptr_t>(data), kHuge);
  const uintptr_t end = reinterpret_cast<uintptr_t>(data + size) / kHuge * kHuge;
  if (end >= first + kSmallest) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

float Mean(const float* row, int64_t size) {
  constexpr int64_t kSums = 8;  // independent sums, so that additions do not wait for each other
  double sums[kSums] = {};
  int64_t j = 0;
  for (; j + kSums <= size; j += kSums)
    for (int64_t k = 0; k < kSums; ++k) sums[k] += row[j + k];
  for (; j < size; ++j) sums[0] += row[j];
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum / size;
}

}  // namespace

const Core& ChooseCore() {
  static const Core* const core = [] {
    const char* wanted = std::getenv("RL_LNLSTM_ISA");  // for tests, and for clusters of mixed processors
    const std::string name = wanted == nullptr ? "" : wanted;
#ifdef RL_LNLSTM_X86
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx512 && name != "avx2" && name != "portable") return &kAvx512;
    if (avx2 && name != "portable") return &kAvx2;
#endif
    return &kGeneric;
  }();
  return *core;
}

TensorShape Shape(std::initializer_list<int64_t> sizes) {
  TensorShape shape;
  for (const int64_t size : sizes) shape.AddDim(size);
  return shape;
}

absl::Status ExpectShape(const char* name, const Tensor& tensor, const TensorShape& shape) {
  if (tensor.shape() == shape) return absl::OkStatus();
  return InvalidArgument(name, " must have shape ", shape.DebugString(), ", got ", tensor.shape().DebugString());
}

absl::Status Expect(OpKernelContext* context, const char* name, const TensorShape& shape, const float** data) {
  const Tensor* tensor;
  TF_RETURN_IF_ERROR(context->input(name, &tensor));
  TF_RETURN_IF_ERROR(ExpectShape(name, *tensor, shape));
  *data = Data(*tensor);
  return absl::OkStatus();
}

ThreadPool* Threads(OpKernelContext* context) {
  return context->device()->tensorflow_cpu_worker_threads()->workers;
}

absl::Status Buffer::Allocate(int64_t size) {
  constexpr int64_t kLine = 64;
  const int64_t bytes = std::max(kLine, RoundUp(size * static_cast<int64_t>(sizeof(float)), kLine));
  data_.reset(static_cast<float*>(std::aligned_alloc(kLine, bytes)));
  if (data_ == nullptr) return tensorflow::errors::ResourceExhausted("no memory for ", bytes, " bytes");
  return absl::OkStatus();
}

absl::Status PaddedGains::Make(const Sizes& sizes, const Weights& weights) {
  const int64_t units = sizes.units, width = sizes.width();
  TF_RETURN_IF_ERROR(buffer_.Allocate(15 * width));
  float* to = buffer_.data();
  const auto pad = [&](const float* values, int64_t parts) {
    Pad(values, parts, units, width, to);
    return std::exchange(to, to + parts * width);
  };
  gains_.kernel_gamma = pad(weights.kernel_gamma, 4);
  gains_.recurrent_gamma = pad(weights.recurrent_gamma, 4);
  gains_.bias = pad(weights.bias, 4);
  gains_.cell_gamma = pad(weights.cell_gamma, 1);
  gains_.cell_beta = pad(weights.cell_beta, 1);
  for (int64_t j = 0; j < width; ++j) to[j] = j < units ? 1.0f : 0.0f;
  gains_.valid = to;
  return absl::OkStatus();
}

absl::Status ForwardWeights::Make(const Sizes& sizes, const Weights& weights) {
  const int64_t units = sizes.units, width = sizes.width(), panel = ChooseCore().panel;
  TF_RETURN_IF_ERROR(kernel_buffer_.Allocate(PackedSize(sizes.features, 4 * width)));
  TF_RETURN_IF_ERROR(recurrent_buffer_.Allocate(PackedSize(units, 4 * width)));
  kernel_ = Pack(weights.kernel, sizes.features, units, width, panel, kernel_buffer_.data());
  recurrent_kernel_ = Pack(weights.recurrent_kernel, units, units, width, panel, recurrent_buffer_.data());
  return gains_.Make(sizes, weights);
}

Matrix Pack(const float* kernel, int64_t rows, int64_t units, int64_t width, int64_t panel, float* packed) {
  if (units != width) std::memset(packed, 0, PackedSize(rows, 4 * width) * sizeof(float));
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = kernel + i * 4 * units;
    const float mean = Mean(row, 4 * units);
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t j = 0; j < units;) {
        const int64_t column = gate * width + j, offset = column % panel;
        const int64_t run = std::min(units - j, panel - offset);
        float* to = packed + column / panel * rows * panel + i * panel + offset;
        const float* from = row + gate * units + j;
        for (int64_t k = 0; k < run; ++k) to[k] = from[k] - mean;
        j += run;
      }
  }
  return {packed, panel, rows * panel};
}

Matrix PackTransposed(const float* matrix, int64_t units, int64_t width, int64_t panel, float* packed) {
  const int64_t columns = 4 * units;
  std::memset(packed, 0, PackedSize(4 * width, width) * sizeof(float));
  for (int64_t first = 0; first < units; first += panel) {
    const int64_t count = std::min(panel, units - first);
    float means[kPanel];
    for (int64_t u = 0; u < count; ++u) means[u] = Mean(matrix + (first + u) * columns, columns);
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t j = 0; j < units; ++j) {
        float* to = packed + first * 4 * width + (gate * width + j) * panel;
        const float* from = matrix + first * columns + gate * units + j;
        for (int64_t u = 0; u < count; ++u) to[u] = from[u * columns] - means[u];
      }
  }
  return {packed, panel, 4 * width * panel};
}

absl::Status FilterPanels(const Convolution& c, const float* filters, Buffer* buffer, Matrix* panels) {
  const int64_t panel = ChooseCore().panel, padded = RoundUp(c.filters, panel);
  *panels = {filters, c.filters, panel};
  if (padded == c.filters) return absl::OkStatus();
  TF_RETURN_IF_ERROR(buffer->Allocate(c.weights() * padded));
  std::memset(buffer->data(), 0, c.weights() * padded * sizeof(float));
  for (int64_t i = 0; i < c.weights(); ++i)
    std::memcpy(buffer->data() + i * padded, filters + i * c.filters, c.filters * sizeof(float));
  *panels = {buffer->data(), padded, panel};
  return absl::OkStatus();
}

Blocks::Blocks(ThreadPool* threads, int64_t rows, double work, int64_t most) : threads_(threads), rows_(rows) {
  const int64_t useful = std::max<int64_t>(1, work / kWorkOfAThread);
  // Several blocks for each thread, if they are large: then nobody waits for a thread that others disturb.
  const int64_t threads_count = threads_ == nullptr ? 0 : threads_->NumThreads();
  const int64_t large = std::min({kBlocksOfAThread * threads_count, rows_ / kRowsOfABlock, most});
  const int64_t wanted = std::max({int64_t{1}, threads_count, large});
  count_ = std::min({rows_, wanted, useful});
  size_ = count_ == 0 ? 0 : (rows_ + count_ - 1) / count_;
  if (size_ > 0) count_ = (rows_ + size_ - 1) / size_;
}

// Free threads take the next block, and so does the caller. The caller never waits for a thread that has not started.
// Otherwise two callers that are threads of the pool themselves, as under XLA, could wait for each other.
void Blocks::Run(const std::function<void(int64_t, int64_t, int64_t)>& work) const {
  struct Progress {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable changed;
    int64_t done = 0;
  };
  const auto progress = std::make_shared<Progress>();  // shared: a thread may start after the caller has returned
  const auto take = [progress, work = &work, count = count_, size = size_, rows = rows_] {
    for (int64_t i; (i = progress->next++) < count;) {
      (*work)(i, i * size, std::min(rows, (i + 1) * size));
      std::lock_guard<std::mutex> lock(progress->mutex);
      if (++progress->done == count) progress->changed.notify_one();
    }
  };
  for (int64_t i = 1; i < count_; ++i) threads_->Schedule(take);
  take();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->changed.wait(lock, [&] { return progress->done == count_; });
}

absl::Status LaunchForward(ThreadPool* threads, const Weights& weights, Forward pass) {
  ForwardWeights packed;
  TF_RETURN_IF_ERROR(packed.Make(pass.sizes, weights));
  return LaunchForward(threads, packed, pass);
}

absl::Status LaunchForward(ThreadPool* threads, const ForwardWeights& weights, Forward pass) {
  const Core& core = ChooseCore();
  const Sizes& sizes = pass.sizes;
  pass.kernel = weights.kernel(), pass.recurrent_kernel = weights.recurrent_kernel(), pass.gains = weights.gains();
  if (!sizes.keeps_r_hat()) pass.r_hat = nullptr;
  AdviseHugePages(pass.outputs, sizes.steps() * sizes.units);
  AdviseHugePages(pass.cells, sizes.steps() * sizes.width());
  for (float* hat : {pass.x_hat, pass.r_hat}) AdviseHugePages(hat, sizes.steps() * 4 * sizes.width());
  Blocks blocks(threads, sizes.batch, Work(sizes));
  Buffer scratch;
  const int64_t scratch_size = RoundUp(core.scratch(sizes, blocks.size()), kPad);
  TF_RETURN_IF_ERROR(scratch.Allocate(scratch_size * blocks.count()));
  blocks.Run([&](int64_t index, int64_t begin, int64_t end) {
    core.forward(pass, begin, end, scratch.data() + index * scratch_size);
  });
  return absl::OkStatus();
}

absl::Status LaunchBackward(ThreadPool* threads, const Weights& weights, Backward pass,
                            const WeightGradients& gradients) {
  const Core& core = ChooseCore();
  const Sizes& sizes = pass.sizes;
  const int64_t units = sizes.units, width = sizes.width(), gates = 4 * width;
  PaddedGains gains;
  TF_RETURN_IF_ERROR(gains.Make(sizes, weights));
  pass.gains = gains.gains();
  if (!sizes.keeps_r_hat()) pass.r_hat = nullptr;
  // Each block sums up gradients of its own: rows of both kernels, then rows of gains and biases.
  const int64_t kernel_rows = sizes.features + units, sums_size = (kernel_rows + 3) * gates + 2 * width;
  Blocks blocks(threads, sizes.batch, 2 * Work(sizes), kMostSums / sums_size);
  const int64_t scratch_size = RoundUp(core.scratch(sizes, blocks.size()), kPad);
  const int64_t sums_count = std::max<int64_t>(1, blocks.count());
  Buffer packed_kernel, packed_transpose, scratch, sums;
  TF_RETURN_IF_ERROR(packed_kernel.Allocate(pass.r_hat == nullptr ? PackedSize(units, gates) : 0));
  TF_RETURN_IF_ERROR(packed_transpose.Allocate(PackedSize(gates, width)));
  TF_RETURN_IF_ERROR(scratch.Allocate(scratch_size * blocks.count()));
  TF_RETURN_IF_ERROR(sums.Allocate(sums_size * sums_count));
  if (pass.r_hat == nullptr)
    pass.recurrent_kernel = Pack(weights.recurrent_kernel, units, units, width, core.panel, packed_kernel.data());
  pass.recurrent_kernel_t = PackTransposed(weights.recurrent_kernel, units, width, core.panel, packed_transpose.data());
  if (blocks.count() == 0) std::memset(sums.data(), 0, sums_size * sizeof(float));
  blocks.Run([&](int64_t index, int64_t begin, int64_t end) {
    float* own = sums.data() + index * sums_size;
    std::memset(own, 0, sums_size * sizeof(float));
    float *recurrent = own + sizes.features * gates, *gain = recurrent + units * gates;
    core.backward(pass, begin, end,
                  {own, recurrent, gain, gain + gates, gain + 2 * gates, gain + 3 * gates, gain + 3 * gates + width},
                  scratch.data() + index * scratch_size);
  });

  // Adds up the sums of all blocks for `parts` gates or states from `first` on, and removes their padding.
  const auto total = [&](int64_t first, int64_t parts, float* to) {
    float* sum = sums.data() + first;
    for (int64_t block = 1; block < sums_count; ++block)
      for (int64_t j = 0; j < parts * width; ++j) sum[j] += sums.data()[block * sums_size + first + j];
    for (int64_t part = 0; part < parts; ++part)
      std::memcpy(to + part * units, sum + part * width, units * sizeof(float));
  };
  Blocks(threads, kernel_rows, kernel_rows * gates * sums_count).Run([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* to = row < sizes.features ? gradients.kernel + row * 4 * units
                                       : gradients.recurrent_kernel + (row - sizes.features) * 4 * units;
      total(row * gates, 4, to);
      const float mean = Mean(to, 4 * units);  // a constant in a row of a kernel changes nothing
      for (int64_t j = 0; j < 4 * units; ++j) to[j] -= mean;
    }
  });
  const int64_t first = kernel_rows * gates;
  total(first, 4, gradients.kernel_gamma);
  total(first + gates, 4, gradients.recurrent_gamma);
  total(first + 2 * gates, 4, gradients.bias);
  total(first + 3 * gates, 1, gradients.cell_gamma);
  total(first + 3 * gates + width, 1, gradients.cell_beta);
  return absl::OkStatus();
}

}  // namespace rl_lnlstm

// The instruction set that this process uses. Rollouts depend on it in their last bits.
extern "C" const char* rl_lnlstm_instruction_set() { return rl_lnlstm::ChooseCore().name; }
