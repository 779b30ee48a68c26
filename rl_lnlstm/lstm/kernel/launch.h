// How the vector code is run on TensorFlow's side: shapes checked, matrices packed, gains padded, and the batch's rows
// divided among TensorFlow's own threads.
#ifndef RL_LNLSTM_KERNEL_LAUNCH_H_
#define RL_LNLSTM_KERNEL_LAUNCH_H_

#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <memory>

#include "core.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace rl_lnlstm {

// That of the best instruction set which this machine has.
const Core& ChooseCore();

inline float* Data(tensorflow::Tensor& tensor) { return tensor.flat<float>().data(); }
inline const float* Data(const tensorflow::Tensor& tensor) { return tensor.flat<float>().data(); }

tensorflow::TensorShape Shape(std::initializer_list<int64_t> sizes);

// An error that names the tensor, unless it has the shape.
absl::Status ExpectShape(const char* name, const tensorflow::Tensor& tensor, const tensorflow::TensorShape& shape);

// The input of that name, if it has the shape.
absl::Status Expect(tensorflow::OpKernelContext* context, const char* name, const tensorflow::TensorShape& shape,
                    const float** data);

using ThreadPool = tensorflow::thread::ThreadPool;

// TensorFlow's own, for the work within an operation.
ThreadPool* Threads(tensorflow::OpKernelContext* context);

// A temporary array, aligned to the cache's lines.
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

// The layer's weights, as it has them.
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

// Packs [rows, parts * count], each part padded to `width` columns, into panels of `panel` columns. If `centred`, each
// row of all parts is made to have a mean of zero.
Matrix Pack(const float* matrix, int64_t rows, int64_t parts, int64_t count, int64_t width, int64_t panel, bool centred,
            float* packed);

// The same of transpose(matrix, centred, * gain), where `matrix` is [units, 4 * units]: [4 * width, width].
Matrix PackTransposed(const float* matrix, const float* gain, int64_t units, int64_t width, int64_t panel,
                      float* packed);

// From parts that are padded to `width` columns to those of `count`.
void Unpad(const float* padded, int64_t parts, int64_t count, int64_t width, float* values);

// Divides the batch into blocks of rows, as many as threads pay for.
class Blocks {
 public:
  Blocks(ThreadPool* threads, const Sizes& sizes);

  int64_t count() const { return count_; }
  int64_t size() const { return size_; }

  // Runs `work(index, begin, end)` for each.
  void Run(const std::function<void(int64_t, int64_t, int64_t)>& work) const;

 private:
  ThreadPool* threads_;
  int64_t batch_, count_, size_;
};

// Runs the forward pass that `pass` describes, but for the matrices and gains, which are made from `weights`.
absl::Status LaunchForward(ThreadPool* threads, const Weights& weights, Forward pass);

// The same backward. `gram` is recurrent_kernel @ transpose(recurrent_kernel), of the centred one, and `gradients` are
// those of the gains and biases, not padded.
absl::Status LaunchBackward(ThreadPool* threads, const Weights& weights, const float* gram, Backward pass,
                            const Sums& gradients);

}  // namespace rl_lnlstm

#endif  // RL_LNLSTM_KERNEL_LAUNCH_H_
