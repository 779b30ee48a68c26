// Reads the weights of a policy's network from TensorFlow's variables.
#ifndef RL_LNLSTM_KERNEL_NETWORK_WEIGHTS_H_
#define RL_LNLSTM_KERNEL_NETWORK_WEIGHTS_H_

#include <algorithm>
#include <utility>
#include <vector>

#include "launch.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"

namespace rl_lnlstm {

using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using Variables = std::vector<tensorflow::core::RefCountPtr<tensorflow::Var>>;

// Reads the tensors of the variables, one after the other.
class WeightReader {
 public:
  explicit WeightReader(const Variables& variables) {
    for (const auto& variable : variables) {
      tensorflow::tf_shared_lock lock(*variable->mu());
      tensors_.push_back(*variable->tensor());  // keeps the memory: a later assignment gets new memory
      sparse_ |= variable->copy_on_read_mode.load();
    }
  }

  // The number of all weights, which is about the number of multiplications for a row.
  int64_t size() const {
    int64_t size = 0;
    for (const Tensor& tensor : tensors_) size += tensor.NumElements();
    return size;
  }

  // Whether some variable had a sparse update. Later ones then write to the same memory.
  bool sparse() const { return sparse_; }

  absl::Status Next(const TensorShape& shape, const float** data) {
    const Tensor* tensor;
    TF_RETURN_IF_ERROR(Take(tensorflow::DT_FLOAT, &tensor));
    TF_RETURN_IF_ERROR(ExpectShape("a weight", *tensor, shape));
    *data = Data(*tensor);
    return absl::OkStatus();
  }

  // The next statistic of observations with this size, in any shape.
  absl::Status NextStatistic(int64_t size, const double** data) {
    const Tensor* tensor;
    TF_RETURN_IF_ERROR(Take(tensorflow::DT_DOUBLE, &tensor));
    if (tensor->NumElements() != size)
      return InvalidArgument("a statistic must have ", size, " elements, got ", tensor->NumElements());
    *data = tensor->flat<double>().data();
    return absl::OkStatus();
  }

  // The next kernel and bias. The kernel's columns give the number of outputs.
  absl::Status NextDense(int64_t inputs, Activation activation, Dense* layer) {
    const int64_t outputs = next_ < tensors_.size() && tensors_[next_].dims() == 2 ? tensors_[next_].dim_size(1) : 0;
    layer->inputs = inputs, layer->outputs = outputs, layer->activation = activation;
    TF_RETURN_IF_ERROR(Next(Shape({inputs, outputs}), &layer->kernel));
    return Next(Shape({outputs}), &layer->bias);
  }

  // The next filters and bias. Sets the size of the filters in `c`, which has the rest.
  absl::Status NextConvolution(Activation activation, Convolution* c, Dense* layer) {
    if (next_ < tensors_.size() && tensors_[next_].dims() == 4) {
      const Tensor& filters = tensors_[next_];
      c->kernel_rows = filters.dim_size(0), c->kernel_columns = filters.dim_size(1), c->filters = filters.dim_size(3);
    }
    if (c->kernel_rows < 1 || c->kernel_columns < 1 || c->kernel_rows > c->rows || c->kernel_columns > c->columns)
      return InvalidArgument("filters of ", c->kernel_rows, " x ", c->kernel_columns, " for images of ", c->rows, " x ",
                             c->columns);
    layer->inputs = c->weights(), layer->outputs = c->filters, layer->activation = activation;
    const TensorShape shape = Shape({c->kernel_rows, c->kernel_columns, c->channels, c->filters});
    TF_RETURN_IF_ERROR(Next(shape, &layer->kernel));
    return Next(Shape({c->filters}), &layer->bias);
  }

  // Skips the weights of an LSTM layer, which `NextLayer` has read before.
  void SkipLayer() { next_ += 7; }

  // The weights of the next LSTM layer, and their tensors.
  absl::Status NextLayer(const Sizes& sizes, Weights* weights, std::vector<Tensor>* tensors) {
    const int64_t units = sizes.units, first = next_;
    TF_RETURN_IF_ERROR(Next(Shape({sizes.features, 4 * units}), &weights->kernel));
    TF_RETURN_IF_ERROR(Next(Shape({units, 4 * units}), &weights->recurrent_kernel));
    for (const float** gates : {&weights->kernel_gamma, &weights->recurrent_gamma, &weights->bias})
      TF_RETURN_IF_ERROR(Next(Shape({4 * units}), gates));
    for (const float** cell : {&weights->cell_gamma, &weights->cell_beta})
      TF_RETURN_IF_ERROR(Next(Shape({units}), cell));
    tensors->assign(tensors_.begin() + first, tensors_.begin() + next_);
    return absl::OkStatus();
  }

 private:
  absl::Status Take(tensorflow::DataType dtype, const Tensor** tensor) {
    if (next_ == tensors_.size()) return InvalidArgument("weights: ", tensors_.size(), " are too few");
    *tensor = &tensors_[next_++];
    if ((*tensor)->dtype() == dtype) return absl::OkStatus();
    return InvalidArgument("a weight must be ", DataTypeString(dtype), ", got ", DataTypeString((*tensor)->dtype()));
  }

  std::vector<Tensor> tensors_;
  size_t next_ = 0;
  bool sparse_ = false;
};

}  // namespace rl_lnlstm

#endif  // RL_LNLSTM_KERNEL_NETWORK_WEIGHTS_H_
