// The TensorFlow operations for a convolution without padding and for its gradients. For their inputs and attributes
// see convolution_interface.cc.
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "activation.h"
#include "launch.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace rl_lnlstm {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;

TensorShape FiltersShape(const Convolution& c) {
  return Shape({c.kernel_rows, c.kernel_columns, c.channels, c.filters});
}

TensorShape OutputsShape(const Convolution& c, int64_t batch) {
  return Shape({batch, c.output_rows(), c.output_columns(), c.filters});
}

// Calls `work(begin, end, scratch)` for blocks of images.
template <typename Work>
absl::Status RunBlocks(ThreadPool* threads, const Convolution& c, int64_t batch, int64_t scratch_size, Work work) {
  const Blocks blocks(threads, batch, batch * c.multiplications());
  Buffer scratch;
  TF_RETURN_IF_ERROR(scratch.Allocate(blocks.count() * scratch_size));
  blocks.Run([&](int64_t index, int64_t begin, int64_t end) {
    work(begin, end, scratch.data() + index * scratch_size);
  });
  return absl::OkStatus();
}

// The images of an operation: floats, or bytes that are converted as in `Pixels`, one image at a time, so that an image
// is in the cache when it is used.
template <typename T>
class Images {
 public:
  absl::Status Get(OpKernelConstruction* context) {
    TF_RETURN_IF_ERROR(context->GetAttr("channels_first", &channels_first_));
    TF_RETURN_IF_ERROR(context->GetAttr("scale", &scale_));
    if (kBytes || (!channels_first_ && scale_ == 1)) return absl::OkStatus();
    return InvalidArgument("only bytes can be converted");
  }

  // The shape after the conversion.
  TensorShape Converted(const TensorShape& shape) const {
    if (!channels_first_ || shape.dims() != 4) return shape;
    return Shape({shape.dim_size(0), shape.dim_size(2), shape.dim_size(3), shape.dim_size(1)});
  }

  int64_t scratch(const Convolution& c) const { return kBytes ? RoundUp(Size(c), kPad) : 0; }  // floats

  // Calls `work(floats, first, count)` for parts of images `begin` to `end`: `floats` are the `count` images from image
  // `first` on.
  template <typename Work>
  void Run(const Convolution& c, const T* images, int64_t begin, int64_t end, float* scratch, Work work) const {
    if constexpr (!kBytes) {
      work(images + begin * Size(c), begin, end - begin);
    } else {
      const int64_t size = Size(c), channels = channels_first_ ? c.channels : 1;
      const int64_t pixels = channels_first_ ? c.rows * c.columns : size;
      for (int64_t i = begin; i < end; ++i) {
        ChooseCore().byte_pixels(images + i * size, channels, pixels, scale_, scratch);
        work(scratch, i, 1);
      }
    }
  }

 private:
  static constexpr bool kBytes = std::is_same_v<T, uint8_t>;
  static int64_t Size(const Convolution& c) { return c.rows * c.columns * c.channels; }

  bool channels_first_;
  float scale_;
};

// What the three operations have in common.
class ConvolutionBase : public OpKernel {
 public:
  explicit ConvolutionBase(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, Pair(context, "strides", strides_));
  }

 protected:
  static absl::Status Pair(OpKernelConstruction* context, const char* name, int64_t (&pair)[2]) {
    std::vector<int64_t> values;
    TF_RETURN_IF_ERROR(context->GetAttr(name, &values));
    if (values.size() != 2 || values[0] <= 0 || values[1] <= 0)
      return InvalidArgument(name, " must have two positive numbers");
    pair[0] = values[0], pair[1] = values[1];
    return absl::OkStatus();
  }

  absl::Status Make(const TensorShape& images, int64_t kernel_rows, int64_t kernel_columns, int64_t filters,
                    Convolution* c) const {
    if (images.dims() != 4)
      return InvalidArgument("images must have shape [batch, rows, columns, channels], got ", images.DebugString());
    *c = {images.dim_size(1), images.dim_size(2), images.dim_size(3), kernel_rows, kernel_columns,
          filters,            strides_[0],        strides_[1]};
    if (c->rows < kernel_rows || c->columns < kernel_columns)
      return InvalidArgument("images must not be smaller than the kernel, ", kernel_rows, " x ", kernel_columns,
                             ", got ", images.DebugString());
    return absl::OkStatus();
  }

  absl::Status Make(const TensorShape& images, const TensorShape& filters, Convolution* c) const {
    if (filters.dims() != 4 || filters.dim_size(0) == 0 || filters.dim_size(1) == 0)
      return InvalidArgument("filters must have shape [rows, columns, channels, filters], got ", filters.DebugString());
    return Make(images, filters.dim_size(0), filters.dim_size(1), filters.dim_size(3), c);
  }

 private:
  int64_t strides_[2];
};

template <typename T>
class ConvolutionOp : public ConvolutionBase {
 public:
  explicit ConvolutionOp(OpKernelConstruction* context) : ConvolutionBase(context) {
    std::string name;
    OP_REQUIRES_OK(context, context->GetAttr("activation", &name));
    OP_REQUIRES_OK(context, FindActivation(name, &activation_));
    OP_REQUIRES_OK(context, images_.Get(context));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &images = context->input(0), &filters = context->input(1), &bias = context->input(2);
    Convolution c;
    OP_REQUIRES_OK(context, Make(images_.Converted(images.shape()), filters.shape(), &c));
    OP_REQUIRES_OK(context, ExpectShape("filters", filters, FiltersShape(c)));
    OP_REQUIRES_OK(context, ExpectShape("bias", bias, Shape({c.filters})));
    const int64_t batch = images.dim_size(0), size = c.outputs() * c.filters;
    Tensor* outputs;
    OP_REQUIRES_OK(context, context->allocate_output(0, OutputsShape(c, batch), &outputs));
    const Dense layer{c.weights(), c.filters, Data(filters), Data(bias), activation_};
    Buffer buffer;
    Matrix panels;
    OP_REQUIRES_OK(context, FilterPanels(c, Data(filters), &buffer, &panels));
    const auto run = [&](int64_t begin, int64_t end, float* scratch) {
      float* own = scratch + images_.scratch(c);
      images_.Run(c, images.flat<T>().data(), begin, end, scratch,
                  [&](const float* floats, int64_t first, int64_t count) {
                    ChooseCore().convolution(c, layer, panels, floats, 0, count, Data(*outputs) + first * size, own);
                  });
    };
    OP_REQUIRES_OK(context, RunBlocks(Threads(context), c, batch, images_.scratch(c) + c.scratch(), run));
  }

 private:
  Activation activation_;
  Images<T> images_;
};

template <typename T>
class FilterGradientOp : public ConvolutionBase {
 public:
  explicit FilterGradientOp(OpKernelConstruction* context) : ConvolutionBase(context) {
    OP_REQUIRES_OK(context, Pair(context, "kernel_size", kernel_size_));
    OP_REQUIRES_OK(context, images_.Get(context));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &images = context->input(0), &d_outputs = context->input(1);
    const int64_t filters = d_outputs.dims() == 4 ? d_outputs.dim_size(3) : 0;
    Convolution c;
    OP_REQUIRES_OK(context,
                   Make(images_.Converted(images.shape()), kernel_size_[0], kernel_size_[1], filters, &c));
    const int64_t batch = images.dim_size(0);
    OP_REQUIRES_OK(context, ExpectShape("d_outputs", d_outputs, OutputsShape(c, batch)));
    Tensor *d_filters, *d_bias;
    OP_REQUIRES_OK(context, context->allocate_output(0, FiltersShape(c), &d_filters));
    OP_REQUIRES_OK(context, context->allocate_output(1, Shape({c.filters}), &d_bias));
    OP_REQUIRES_OK(context, Launch(Threads(context), c, batch, images.flat<T>().data(), Data(d_outputs),
                                   Data(*d_filters), Data(*d_bias)));
  }

 private:
  absl::Status Launch(ThreadPool* threads, const Convolution& c, int64_t batch, const T* images,
                      const float* d_outputs, float* d_filters, float* d_bias) const {
    const int64_t filters = c.padded_filters(), rows = c.weights() + 1, sums_size = rows * filters;
    const int64_t scratch_size = images_.scratch(c) + c.scratch();
    const Blocks blocks(threads, batch, batch * c.multiplications(), kMostSums / (sums_size + scratch_size));
    Buffer sums, scratch;  // of each block
    TF_RETURN_IF_ERROR(sums.Allocate(blocks.count() * sums_size));
    TF_RETURN_IF_ERROR(scratch.Allocate(blocks.count() * scratch_size));
    blocks.Run([&](int64_t index, int64_t begin, int64_t end) {
      float *sum = sums.data() + index * sums_size, *converted = scratch.data() + index * scratch_size;
      std::memset(sum, 0, sums_size * sizeof(float));
      images_.Run(c, images, begin, end, converted,
                  [&](const float* floats, int64_t first, int64_t count) {
                    ChooseCore().filter_gradient(c, floats, d_outputs + first * c.outputs() * c.filters, 0, count, sum,
                                                 converted + images_.scratch(c));
                  });
    });
    const auto add_up = [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* to = i < c.weights() ? d_filters + i * c.filters : d_bias;
        std::memset(to, 0, c.filters * sizeof(float));
        for (int64_t block = 0; block < blocks.count(); ++block)
          for (int64_t j = 0; j < c.filters; ++j) to[j] += sums.data()[block * sums_size + i * filters + j];
      }
    };
    Blocks(threads, rows, static_cast<double>(sums_size) * blocks.count()).Run(add_up);
    return absl::OkStatus();
  }

  int64_t kernel_size_[2];
  Images<T> images_;
};

class ImageGradientOp : public ConvolutionBase {
 public:
  using ConvolutionBase::ConvolutionBase;

  void Compute(OpKernelContext* context) override {
    const Tensor &sizes = context->input(0), &filters = context->input(1), &d_outputs = context->input(2);
    TensorShape images;
    OP_REQUIRES_OK(context, tensorflow::TensorShapeUtils::MakeShape(sizes.flat<int32_t>(), &images));
    Convolution c;
    OP_REQUIRES_OK(context, Make(images, filters.shape(), &c));
    OP_REQUIRES_OK(context, ExpectShape("filters", filters, FiltersShape(c)));
    const int64_t batch = images.dim_size(0);
    OP_REQUIRES_OK(context, ExpectShape("d_outputs", d_outputs, OutputsShape(c, batch)));
    Tensor* d_images;
    OP_REQUIRES_OK(context, context->allocate_output(0, images, &d_images));
    Buffer packed;
    OP_REQUIRES_OK(context, packed.Allocate(PackedSize(c.filters, c.weights())));
    const Matrix filters_t = PackTransposed(Data(filters), c, packed.data());
    const auto run = [&](int64_t begin, int64_t end, float* scratch) {
      ChooseCore().image_gradient(c, filters_t, Data(d_outputs), begin, end, Data(*d_images), scratch);
    };
    OP_REQUIRES_OK(context, RunBlocks(Threads(context), c, batch, c.scratch(), run));
  }

 private:
  // The transpose of the filters [weights, filters].
  static Matrix PackTransposed(const float* filters, const Convolution& c, float* packed) {
    const int64_t panel = ChooseCore().panel;
    std::memset(packed, 0, PackedSize(c.filters, c.weights()) * sizeof(float));
    for (int64_t i = 0; i < c.weights(); ++i)
      for (int64_t j = 0; j < c.filters; ++j)
        packed[i / panel * c.filters * panel + j * panel + i % panel] = filters[i * c.filters + j];
    return {packed, panel, c.filters * panel};
  }
};

}  // namespace

#define RL_LNLSTM_REGISTER(name, Op, T) \
  REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), Op<T>)
RL_LNLSTM_REGISTER("RlLnlstm>Convolution", ConvolutionOp, float);
RL_LNLSTM_REGISTER("RlLnlstm>Convolution", ConvolutionOp, uint8_t);
RL_LNLSTM_REGISTER("RlLnlstm>FilterGradient", FilterGradientOp, float);
RL_LNLSTM_REGISTER("RlLnlstm>FilterGradient", FilterGradientOp, uint8_t);
REGISTER_KERNEL_BUILDER(Name("RlLnlstm>ImageGradient").Device(tensorflow::DEVICE_CPU), ImageGradientOp);

}  // namespace rl_lnlstm
