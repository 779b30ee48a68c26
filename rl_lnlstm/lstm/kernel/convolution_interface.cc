// The inputs, attributes and shapes of the operations in convolution.cc.
#include <vector>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace rl_lnlstm {
namespace {

using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status ConvolutionShape(InferenceContext* c) {
  ShapeHandle images, filters;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &images));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &filters));
  std::vector<int64_t> strides;
  TF_RETURN_IF_ERROR(c->GetAttr("strides", &strides));
  if (strides.size() != 2) return InvalidArgument("strides must have two positive numbers");
  DimensionHandle sizes[2];
  bool channels_first;
  TF_RETURN_IF_ERROR(c->GetAttr("channels_first", &channels_first));
  for (int i = 0; i < 2; ++i)
    TF_RETURN_IF_ERROR(tensorflow::shape_inference::GetWindowedOutputSizeFromDims(
        c, c->Dim(images, i + (channels_first ? 2 : 1)), c->Dim(filters, i), strides[i], tensorflow::Padding::VALID,
        &sizes[i]));
  c->set_output(0, c->MakeShape({c->Dim(images, 0), sizes[0], sizes[1], c->Dim(filters, 3)}));
  return absl::OkStatus();
}

absl::Status FilterGradientShape(InferenceContext* c) {
  ShapeHandle images, d_outputs;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &images));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &d_outputs));
  std::vector<int64_t> size;
  TF_RETURN_IF_ERROR(c->GetAttr("kernel_size", &size));
  if (size.size() != 2) return InvalidArgument("kernel_size must have two positive numbers");
  bool channels_first;
  TF_RETURN_IF_ERROR(c->GetAttr("channels_first", &channels_first));
  c->set_output(0, c->MakeShape({c->MakeDim(size[0]), c->MakeDim(size[1]), c->Dim(images, channels_first ? 1 : 3),
                                 c->Dim(d_outputs, 3)}));
  c->set_output(1, c->MakeShape({c->Dim(d_outputs, 3)}));
  return absl::OkStatus();
}

absl::Status ImageGradientShape(InferenceContext* c) {
  ShapeHandle images;
  TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(0, &images));
  TF_RETURN_IF_ERROR(c->WithRank(images, 4, &images));
  c->set_output(0, images);
  return absl::OkStatus();
}

}  // namespace

// Images are [batch, rows, columns, channels], and filters [rows, columns, channels, filters]. Images of bytes are
// converted, with `channels_first` and `scale` as for Pixels.
REGISTER_OP("RlLnlstm>Convolution")
    .Input("images: T")
    .Input("filters: float")
    .Input("bias: float")
    .Attr("T: {uint8, float}")
    .Attr("channels_first: bool = false")
    .Attr("scale: float = 1")
    .Attr("strides: list(int)")
    .Attr("activation: string")
    .Output("outputs: float")
    .SetShapeFn(ConvolutionShape);

// `d_outputs` is the gradient before the activation.
REGISTER_OP("RlLnlstm>FilterGradient")
    .Input("images: T")
    .Input("d_outputs: float")
    .Attr("T: {uint8, float}")
    .Attr("channels_first: bool = false")
    .Attr("scale: float = 1")
    .Attr("kernel_size: list(int)")
    .Attr("strides: list(int)")
    .Output("d_filters: float")
    .Output("d_bias: float")
    .SetShapeFn(FilterGradientShape);

REGISTER_OP("RlLnlstm>ImageGradient")
    .Input("sizes: int32")  // of the images
    .Input("filters: float")
    .Input("d_outputs: float")
    .Attr("strides: list(int)")
    .Output("d_images: float")
    .SetShapeFn(ImageGradientShape);

}  // namespace rl_lnlstm
