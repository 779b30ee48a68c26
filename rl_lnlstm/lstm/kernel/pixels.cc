// The TensorFlow operation that converts images to floats with the channels last.
#include "launch.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace rl_lnlstm {
namespace {

void Convert(const uint8_t* image, int64_t channels, int64_t pixels, float scale, float* to) {
  ChooseCore().byte_pixels(image, channels, pixels, scale, to);
}

void Convert(const float* image, int64_t channels, int64_t pixels, float scale, float* to) {
  ChooseCore().float_pixels(image, channels, pixels, scale, to);
}

template <typename T>
class PixelsOp : public tensorflow::OpKernel {
 public:
  explicit PixelsOp(tensorflow::OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("channels_first", &channels_first_));
    OP_REQUIRES_OK(context, context->GetAttr("scale", &scale_));
  }

  void Compute(tensorflow::OpKernelContext* context) override {
    const tensorflow::Tensor& images = context->input(0);
    OP_REQUIRES(context, images.dims() == 4,
                tensorflow::errors::InvalidArgument("images must have four axes, got ", images.shape().DebugString()));
    const int64_t batch = images.dim_size(0), first = images.dim_size(1), second = images.dim_size(2);
    const int64_t third = images.dim_size(3), size = first * second * third;
    tensorflow::Tensor* to;
    OP_REQUIRES_OK(context, context->allocate_output(0, channels_first_ ? Shape({batch, second, third, first})
                                                                        : images.shape(), &to));
    const int64_t channels = channels_first_ ? first : 1;
    constexpr double kWork = 8;  // of a value, in multiplications, most of it to read and write memory
    Blocks(Threads(context), batch, kWork * batch * size).Run([&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin * size; i < end * size; i += size)
        Convert(images.flat<T>().data() + i, channels, channels > 0 ? size / channels : 0, scale_, Data(*to) + i);
    });
  }

 private:
  bool channels_first_;
  float scale_;
};

absl::Status PixelsShape(tensorflow::shape_inference::InferenceContext* c) {
  tensorflow::shape_inference::ShapeHandle images;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &images));
  bool channels_first;
  TF_RETURN_IF_ERROR(c->GetAttr("channels_first", &channels_first));
  c->set_output(0, !channels_first ? images
                                   : c->MakeShape({c->Dim(images, 0), c->Dim(images, 2), c->Dim(images, 3),
                                                   c->Dim(images, 1)}));
  return absl::OkStatus();
}

}  // namespace

// Images are [batch, rows, columns, channels], or [batch, channels, rows, columns] with `channels_first`.
REGISTER_OP("RlLnlstm>Pixels")
    .Input("images: T")
    .Attr("T: {uint8, float}")
    .Attr("channels_first: bool")
    .Attr("scale: float")
    .Output("pixels: float")
    .SetShapeFn(PixelsShape);

REGISTER_KERNEL_BUILDER(Name("RlLnlstm>Pixels").Device(tensorflow::DEVICE_CPU).TypeConstraint<uint8_t>("T"),
                        PixelsOp<uint8_t>);
REGISTER_KERNEL_BUILDER(Name("RlLnlstm>Pixels").Device(tensorflow::DEVICE_CPU).TypeConstraint<float>("T"),
                        PixelsOp<float>);

}  // namespace rl_lnlstm
