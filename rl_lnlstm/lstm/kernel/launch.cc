#include "launch.h"

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

constexpr double kWorkOfAThread = 4e6;         // multiplications, about 50 us, as long as waking a thread takes
constexpr int64_t kRowsNotWorthPacking = 64;   // for acting: matrices stay unpacked, products are centred

void Pad(const float* values, int64_t parts, int64_t count, int64_t width, float* padded) {
  std::memset(padded, 0, parts * width * sizeof(float));
  for (int64_t part = 0; part < parts; ++part)
    std::memcpy(padded + part * width, values + part * count, count * sizeof(float));
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
    const char* wanted = std::getenv("RL_LNLSTM_ISA");  // for tests of other instruction sets
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

Matrix Pack(const float* matrix, int64_t rows, int64_t parts, int64_t count, int64_t width, int64_t panel, bool centred,
            float* packed) {
  const int64_t columns = parts * count;
  if (parts * width % panel != 0 || count != width) std::memset(packed, 0, PackedSize(rows, parts * width) * 4);
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = matrix + i * columns;
    const float mean = centred ? Mean(row, columns) : 0.0f;
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t j = 0; j < count;) {
        const int64_t column = part * width + j, offset = column % panel;
        const int64_t run = std::min(count - j, panel - offset);
        float* to = packed + column / panel * rows * panel + i * panel + offset;
        const float* from = row + part * count + j;
        for (int64_t k = 0; k < run; ++k) to[k] = from[k] - mean;
        j += run;
      }
  }
  return {packed, panel, rows * panel};
}

Matrix PackTransposed(const float* matrix, const float* gain, int64_t units, int64_t width, int64_t panel,
                      float* packed) {
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
        for (int64_t u = 0; u < count; ++u) to[u] = (from[u * columns] - means[u]) * gain[gate * units + j];
      }
  }
  return {packed, panel, 4 * width * panel};
}

void Unpad(const float* padded, int64_t parts, int64_t count, int64_t width, float* values) {
  for (int64_t part = 0; part < parts; ++part)
    std::memcpy(values + part * count, padded + part * width, count * sizeof(float));
}

Blocks::Blocks(ThreadPool* threads, const Sizes& sizes) : threads_(threads), batch_(sizes.batch) {
  const double work = static_cast<double>(sizes.steps()) * (sizes.features + sizes.units) * 4 * sizes.units;
  const int64_t useful = std::max<int64_t>(1, work / kWorkOfAThread);
  count_ = std::min<int64_t>({batch_, threads_->NumThreads(), useful});
  size_ = count_ == 0 ? 0 : (batch_ + count_ - 1) / count_;
  if (size_ > 0) count_ = (batch_ + size_ - 1) / size_;
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
  const auto take = [progress, work = &work, count = count_, size = size_, batch = batch_] {
    for (int64_t i; (i = progress->next++) < count;) {
      (*work)(i, i * size, std::min(batch, (i + 1) * size));
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
  const Core& core = ChooseCore();
  const Sizes& sizes = pass.sizes;
  const int64_t units = sizes.units, width = sizes.width();
  PaddedGains gains;
  TF_RETURN_IF_ERROR(gains.Make(sizes, weights));
  pass.gains = gains.gains();
  Blocks blocks(threads, sizes);
  Buffer packed_kernel, packed_recurrent, scratch;
  const int64_t scratch_size = RoundUp(core.scratch(sizes, blocks.size()), kPad);
  TF_RETURN_IF_ERROR(scratch.Allocate(scratch_size * blocks.count()));

  pass.centred = width != units || sizes.steps() > kRowsNotWorthPacking;
  if (pass.centred) {
    TF_RETURN_IF_ERROR(packed_kernel.Allocate(PackedSize(sizes.features, 4 * width)));
    TF_RETURN_IF_ERROR(packed_recurrent.Allocate(PackedSize(units, 4 * width)));
    pass.kernel = Pack(weights.kernel, sizes.features, 4, units, width, core.panel, true, packed_kernel.data());
    pass.recurrent_kernel =
        Pack(weights.recurrent_kernel, units, 4, units, width, core.panel, true, packed_recurrent.data());
  } else {
    pass.kernel = {weights.kernel, 4 * units, core.panel};
    pass.recurrent_kernel = {weights.recurrent_kernel, 4 * units, core.panel};
  }
  blocks.Run([&](int64_t index, int64_t begin, int64_t end) {
    core.forward(pass, begin, end, scratch.data() + index * scratch_size);
  });
  return absl::OkStatus();
}

absl::Status LaunchBackward(ThreadPool* threads, const Weights& weights, const float* gram, Backward pass,
                            const Sums& gradients) {
  const Core& core = ChooseCore();
  const Sizes& sizes = pass.sizes;
  const int64_t units = sizes.units, width = sizes.width(), sums_size = 10 * width;
  PaddedGains gains;
  TF_RETURN_IF_ERROR(gains.Make(sizes, weights));
  pass.gains = gains.gains();
  Blocks blocks(threads, sizes);
  const int64_t scratch_size = RoundUp(core.scratch(sizes, blocks.size()), kPad);
  const int64_t sums_count = sums_size * std::max<int64_t>(1, blocks.count());
  Buffer packed_kernel, packed_gram, scratch, sums;
  TF_RETURN_IF_ERROR(packed_kernel.Allocate(PackedSize(4 * width, width)));
  TF_RETURN_IF_ERROR(packed_gram.Allocate(PackedSize(units, width)));
  TF_RETURN_IF_ERROR(scratch.Allocate(scratch_size * blocks.count()));
  TF_RETURN_IF_ERROR(sums.Allocate(sums_count));
  std::memset(sums.data(), 0, sums_count * sizeof(float));
  pass.recurrent_kernel_t = PackTransposed(weights.recurrent_kernel, weights.recurrent_gamma, units, width, core.panel,
                                           packed_kernel.data());
  pass.gram = Pack(gram, units, 1, units, width, core.panel, false, packed_gram.data());
  blocks.Run([&](int64_t index, int64_t begin, int64_t end) {
    float* own = sums.data() + index * sums_size;
    core.backward(pass, begin, end, {own, own + 4 * width, own + 8 * width, own + 9 * width},
                  scratch.data() + index * scratch_size);
  });
  for (int64_t j = sums_size; j < sums_count; ++j) sums.data()[j % sums_size] += sums.data()[j];
  Unpad(sums.data(), 4, units, width, gradients.bias);
  Unpad(sums.data() + 4 * width, 4, units, width, gradients.kernel_gamma);
  Unpad(sums.data() + 8 * width, 1, units, width, gradients.cell_gamma);
  Unpad(sums.data() + 9 * width, 1, units, width, gradients.cell_beta);
  return absl::OkStatus();
}

}  // namespace rl_lnlstm
