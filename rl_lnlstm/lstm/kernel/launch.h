// Runs the vector code: checks shapes, packs matrices, pads gains, and divides the rows of the batch among TensorFlow's
// threads.
#ifndef RL_LNLSTM_KERNEL_LAUNCH_H_
#define RL_LNLSTM_KERNEL_LAUNCH_H_

#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>

#include "core.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace rl_lnlstm {

// The functions for the best instruction set of this machine.
const Core& ChooseCore();

inline float* Data(tensorflow::Tensor& tensor) { return tensor.flat<float>().data(); }
inline const float* Data(const tensorflow::Tensor& tensor) { return tensor.flat<float>().data(); }

tensorflow::TensorShape Shape(std::initializer_list<int64_t> sizes);

// Returns an error that names the tensor, unless it has the shape.
absl::Status ExpectShape(const char* name, const tensorflow::Tensor& tensor, const tensorflow::TensorShape& shape);

// Gets an input by its name, and checks its shape.
absl::Status Expect(tensorflow::OpKernelContext* context, const char* name, const tensorflow::TensorShape& shape,
                    const float** data);

using ThreadPool = tensorflow::thread::ThreadPool;

// TensorFlow's threads for the work within an operation.
ThreadPool* Threads(tensorflow::OpKernelContext* context);

// A temporary array, aligned to cache lines.
class Buffer {
 public:
  absl::Status Allocate(int64_t size);
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float, Free> data_;
};

// The weights of the layer, neither packed nor padded.
struct Weights {
  const float *kernel, *recurrent_kernel;                 // [features, 4 * units], [units, 4 * units]
  const float *kernel_gamma, *recurrent_gamma, *bias;     // [4 * units]
  const float *cell_gamma, *cell_beta;                    // [units]
};

class PaddedGains {
 public:
  absl::Status Make(const Sizes& sizes, const Weights& weights);
  const Gains& gains() const { return gains_; }

 private:
  Buffer buffer_;
  Gains gains_;
};

// What a forward pass needs of the weights. It serves any number of passes of any length and batch size.
class ForwardWeights {
 public:
  absl::Status Make(const Sizes& sizes, const Weights& weights);
  const Matrix& kernel() const { return kernel_; }
  const Matrix& recurrent_kernel() const { return recurrent_kernel_; }
  const Gains& gains() const { return gains_.gains(); }

 private:
  Buffer kernel_buffer_, recurrent_buffer_;
  Matrix kernel_, recurrent_kernel_;
  PaddedGains gains_;
};

// Packs a kernel [rows, 4 * units], centred, into panels of `panel` columns, with each gate padded to `width` columns.
Matrix Pack(const float* kernel, int64_t rows, int64_t units, int64_t width, int64_t panel, float* packed);

// Packs the transpose of `matrix` [units, 4 * units], centred, as [4 * width, width].
Matrix PackTransposed(const float* matrix, int64_t units, int64_t width, int64_t panel, float* packed);

// The filters of a convolution in whole panels. If their number is no multiple of a panel, they are copied to `buffer`
// and padded.
absl::Status FilterPanels(const Convolution& c, const float* filters, Buffer* buffer, Matrix* panels);

// Floats that blocks use for sums: 32 blocks, four for each of 8 threads, of 512 features and units.
constexpr int64_t kMostSums = 68'000'000;

// Divides rows into blocks, at most so many that each is worth waking a thread for its part of the `work`, in
// multiplications. There are no more than `most` unless there are more threads.
class Blocks {
 public:
  Blocks(ThreadPool* threads, int64_t rows, double work, int64_t most = std::numeric_limits<int64_t>::max());

  int64_t count() const { return count_; }
  int64_t size() const { return size_; }

  // Runs `work(index, begin, end)` for each block.
  void Run(const std::function<void(int64_t, int64_t, int64_t)>& work) const;

 private:
  ThreadPool* threads_;
  int64_t rows_, count_, size_;
};

// Runs the forward pass that `pass` describes, with matrices and gains from `weights`. `threads` may be null: then the
// caller does all the work.
absl::Status LaunchForward(ThreadPool* threads, const ForwardWeights& weights, Forward pass);
absl::Status LaunchForward(ThreadPool* threads, const Weights& weights, Forward pass);

// Runs the backward pass. `gradients` receives the gradients of the weights, without padding.
absl::Status LaunchBackward(ThreadPool* threads, const Weights& weights, Backward pass,
                            const WeightGradients& gradients);

}  // namespace rl_lnlstm

#endif  // RL_LNLSTM_KERNEL_LAUNCH_H_
