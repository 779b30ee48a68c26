// The TensorFlow operation for the gradient of a convolution's filters.
#include <cstring>
#include <vector>

#include "launch.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace rl_lnlstm {
namespace {

class FilterGradientOp : public tensorflow::OpKernel {
 public:
  explicit FilterGradientOp(tensorflow::OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("kernel_size", &kernel_size_));
    OP_REQUIRES_OK(context, context->GetAttr("strides", &strides_));
    for (const auto* pair : {&kernel_size_, &strides_})
      OP_REQUIRES(context, pair->size() == 2 && (*pair)[0] > 0 && (*pair)[1] > 0,
                  tensorflow::errors::InvalidArgument("kernel_size and strides must have two positive numbers each"));
  }

  void Compute(tensorflow::OpKernelContext* context) override {
    const tensorflow::Tensor &images = context->input(0), &d_outputs = context->input(1);
    OP_REQUIRES(context,
                images.dims() == 4 && d_outputs.dims() == 4 && images.dim_size(1) >= kernel_size_[0] &&
                    images.dim_size(2) >= kernel_size_[1],
                tensorflow::errors::InvalidArgument(
                    "images and d_outputs must have shape [batch, rows, columns, channels], and images must not be "
                    "smaller than the kernel, got ",
                    images.shape().DebugString(), " and ", d_outputs.shape().DebugString()));
    const Convolution c{images.dim_size(1), images.dim_size(2), images.dim_size(3), kernel_size_[0], kernel_size_[1],
                        d_outputs.dim_size(3), strides_[0], strides_[1]};
    const int64_t batch = images.dim_size(0);
    OP_REQUIRES_OK(context, ExpectShape("d_outputs", d_outputs,
                                        Shape({batch, c.output_rows(), c.output_columns(), c.filters})));
    tensorflow::Tensor* gradient;
    OP_REQUIRES_OK(context, context->allocate_output(
                                0, Shape({c.kernel_rows, c.kernel_columns, c.channels, c.filters}), &gradient));
    OP_REQUIRES_OK(context, Launch(Threads(context), c, batch, Data(images), Data(d_outputs), Data(*gradient)));
  }

 private:
  static absl::Status Launch(ThreadPool* threads, const Convolution& c, int64_t batch, const float* images,
                             const float* d_outputs, float* gradient) {
    const int64_t filters = c.padded_filters(), sums_size = c.weights() * filters;
    const double work = static_cast<double>(batch) * c.output_rows() * c.output_columns() * c.weights() * c.filters;
    const Blocks blocks(threads, batch, work, kMostSums / (sums_size + c.scratch()));
    Buffer sums, scratch;  // of each block
    TF_RETURN_IF_ERROR(sums.Allocate(blocks.count() * sums_size));
    TF_RETURN_IF_ERROR(scratch.Allocate(blocks.count() * c.scratch()));
    blocks.Run([&](int64_t index, int64_t begin, int64_t end) {
      float* own = sums.data() + index * sums_size;
      std::memset(own, 0, sums_size * sizeof(float));
      ChooseCore().filter_gradient(c, images, d_outputs, begin, end, own, scratch.data() + index * c.scratch());
    });
    const auto add_up = [&](int64_t, int64_t begin, int64_t end) {
      std::memset(gradient + begin * c.filters, 0, (end - begin) * c.filters * sizeof(float));
      for (int64_t block = 0; block < blocks.count(); ++block)
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < c.filters; ++j)
            gradient[i * c.filters + j] += sums.data()[block * sums_size + i * filters + j];
    };
    Blocks(threads, c.weights(), static_cast<double>(sums_size) * blocks.count()).Run(add_up);
    return absl::OkStatus();
  }

  std::vector<int64_t> kernel_size_, strides_;
};

absl::Status FilterShape(tensorflow::shape_inference::InferenceContext* c) {
  tensorflow::shape_inference::ShapeHandle images, d_outputs;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &images));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &d_outputs));
  std::vector<int64_t> size;
  TF_RETURN_IF_ERROR(c->GetAttr("kernel_size", &size));
  if (size.size() != 2) return tensorflow::errors::InvalidArgument("kernel_size must have two numbers");
  c->set_output(0, c->MakeShape({c->MakeDim(size[0]), c->MakeDim(size[1]), c->Dim(images, 3), c->Dim(d_outputs, 3)}));
  return absl::OkStatus();
}

}  // namespace

// Images are [batch, rows, columns, channels], and the gradient is [*kernel_size, channels, filters].
REGISTER_OP("RlLnlstm>FilterGradient")
    .Input("images: float")
    .Input("d_outputs: float")
    .Attr("kernel_size: list(int)")
    .Attr("strides: list(int)")
    .Output("gradient: float")
    .SetShapeFn(FilterShape);

REGISTER_KERNEL_BUILDER(Name("RlLnlstm>FilterGradient").Device(tensorflow::DEVICE_CPU), FilterGradientOp);

}  // namespace rl_lnlstm
