// The TensorFlow operations of the layer: a whole sequence, forward and backward.
#include <tuple>

#include "launch.h"
#include "packed_layer.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace rl_lnlstm {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;

// Gets the layer's weights by their names. Weights that an operation does not have stay null.
absl::Status ReadWeights(OpKernelContext* context, const Sizes& sizes, Weights* weights) {
  const int64_t units = sizes.units;
  for (const auto& [name, shape, data] :
       {std::tuple{"recurrent_kernel", Shape({units, 4 * units}), &weights->recurrent_kernel},
        std::tuple{"kernel_gamma", Shape({4 * units}), &weights->kernel_gamma},
        std::tuple{"recurrent_gamma", Shape({4 * units}), &weights->recurrent_gamma},
        std::tuple{"bias", Shape({4 * units}), &weights->bias},
        std::tuple{"cell_gamma", Shape({units}), &weights->cell_gamma},
        std::tuple{"cell_beta", Shape({units}), &weights->cell_beta}})
    TF_RETURN_IF_ERROR(Expect(context, name, shape, data));
  return absl::OkStatus();
}

class ForwardOp : public OpKernel {
 public:
  explicit ForwardOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("time_major", &time_major_));
    OP_REQUIRES_OK(context, context->GetAttr("masked", &masked_));
    OP_REQUIRES_OK(context, context->GetAttr("keep", &keep_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor *inputs, *c0;
    OP_REQUIRES_OK(context, context->input("inputs", &inputs));
    OP_REQUIRES_OK(context, context->input("c0", &c0));
    OP_REQUIRES(context, inputs->dims() == 3,
                InvalidArgument("inputs must have shape [time, batch, features], or batch first, got ",
                                inputs->shape().DebugString()));
    OP_REQUIRES(context, c0->dims() == 2 && c0->dim_size(1) > 0,
                InvalidArgument("c0 must have shape [batch, units], got ", c0->shape().DebugString()));
    const int64_t outer = inputs->dim_size(0), inner = inputs->dim_size(1);
    const Sizes sizes{time_major_ ? outer : inner, time_major_ ? inner : outer, inputs->dim_size(2), c0->dim_size(1),
                      time_major_};
    const int64_t batch = sizes.batch, units = sizes.units, width = sizes.width();
    Forward f{};
    f.sizes = sizes;
    f.inputs = Data(*inputs);
    OP_REQUIRES_OK(context, Expect(context, "masks", masked_ ? Shape({outer, inner}) : Shape({0, 0}), &f.masks));
    if (!masked_) f.masks = nullptr;
    OP_REQUIRES_OK(context, Expect(context, "h0", Shape({batch, units}), &f.h0));
    OP_REQUIRES_OK(context, Expect(context, "c0", Shape({batch, units}), &f.c0));
    Weights weights{};
    OP_REQUIRES_OK(context, Expect(context, "kernel", Shape({sizes.features, 4 * units}), &weights.kernel));
    OP_REQUIRES_OK(context, ReadWeights(context, sizes, &weights));

    const int64_t kept = keep_ ? outer : 0;
    const auto allocate = [&](int index, const TensorShape& shape, float** data) {
      Tensor* tensor = nullptr;
      const absl::Status status = context->allocate_output(index, shape, &tensor);
      if (status.ok() && (index < 3 || keep_)) *data = Data(*tensor);
      return status;
    };
    OP_REQUIRES_OK(context, allocate(0, Shape({outer, inner, units}), &f.outputs));
    OP_REQUIRES_OK(context, allocate(1, Shape({batch, units}), &f.h));
    OP_REQUIRES_OK(context, allocate(2, Shape({batch, units}), &f.c));
    OP_REQUIRES_OK(context, allocate(3, Shape({kept, inner, 4 * width}), &f.x_hat));
    OP_REQUIRES_OK(context, allocate(4, Shape({sizes.keeps_r_hat() ? kept : 0, inner, 4 * width}), &f.r_hat));
    OP_REQUIRES_OK(context, allocate(5, Shape({kept, inner, width}), &f.cells));
    OP_REQUIRES_OK(context, allocate(6, Shape({kept, inner}), &f.x_scale));
    OP_REQUIRES_OK(context, allocate(7, Shape({kept, inner}), &f.r_scale));
    OP_REQUIRES_OK(context, allocate(8, Shape({kept, inner}), &f.c_scale));
    OP_REQUIRES_OK(context, Launch(context, weights, f));
  }

 private:
  // A pass with `keep` is part of training, where the weights change each time. Other passes use packed weights again.
  absl::Status Launch(OpKernelContext* context, const Weights& weights, const Forward& f) {
    if (keep_) return LaunchForward(Threads(context), weights, f);
    int first, last, end;  // the weights are inputs next to each other
    TF_RETURN_IF_ERROR(InputRange("kernel", &first, &end));
    TF_RETURN_IF_ERROR(InputRange("cell_beta", &last, &end));
    std::vector<Tensor> tensors;
    for (int i = first; i <= last; ++i) tensors.push_back(context->input(i));
    std::shared_ptr<const ForwardWeights> packed;
    TF_RETURN_IF_ERROR(layer_.Get(f.sizes, weights, std::move(tensors), true, &packed));
    return LaunchForward(Threads(context), *packed, f);
  }

  bool time_major_, masked_, keep_;
  PackedLayer layer_;
};

class BackwardOp : public OpKernel {
 public:
  explicit BackwardOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("time_major", &time_major_));
    OP_REQUIRES_OK(context, context->GetAttr("masked", &masked_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor *inputs, *c0;
    OP_REQUIRES_OK(context, context->input("inputs", &inputs));
    OP_REQUIRES_OK(context, context->input("c0", &c0));
    OP_REQUIRES(context, inputs->dims() == 3 && c0->dims() == 2 && c0->dim_size(1) > 0,
                InvalidArgument("inputs must have shape [time, batch, features], or batch first, and c0 [batch, units], "
                                "got ", inputs->shape().DebugString(), " and ", c0->shape().DebugString()));
    const int64_t outer = inputs->dim_size(0), inner = inputs->dim_size(1), features = inputs->dim_size(2);
    const Sizes sizes{time_major_ ? outer : inner, time_major_ ? inner : outer, features, c0->dim_size(1), time_major_};
    const int64_t batch = sizes.batch, units = sizes.units, width = sizes.width();

    Backward b;
    b.sizes = sizes;
    b.inputs = Data(*inputs);
    OP_REQUIRES_OK(context, Expect(context, "masks", masked_ ? Shape({outer, inner}) : Shape({0, 0}), &b.masks));
    if (!masked_) b.masks = nullptr;
    Weights weights{};
    OP_REQUIRES_OK(context, ReadWeights(context, sizes, &weights));
    OP_REQUIRES_OK(context, Expect(context, "h0", Shape({batch, units}), &b.h0));
    OP_REQUIRES_OK(context, Expect(context, "c0", Shape({batch, units}), &b.c0));
    OP_REQUIRES_OK(context, Expect(context, "outputs", Shape({outer, inner, units}), &b.outputs));
    OP_REQUIRES_OK(context, Expect(context, "x_hat", Shape({outer, inner, 4 * width}), &b.x_hat));
    OP_REQUIRES_OK(context, Expect(context, "r_hat", Shape({sizes.keeps_r_hat() ? outer : 0, inner, 4 * width}),
                                   &b.r_hat));
    OP_REQUIRES_OK(context, Expect(context, "cells", Shape({outer, inner, width}), &b.cells));
    OP_REQUIRES_OK(context, Expect(context, "x_scale", Shape({outer, inner}), &b.x_scale));
    OP_REQUIRES_OK(context, Expect(context, "r_scale", Shape({outer, inner}), &b.r_scale));
    OP_REQUIRES_OK(context, Expect(context, "c_scale", Shape({outer, inner}), &b.c_scale));
    OP_REQUIRES_OK(context, Expect(context, "d_outputs", Shape({outer, inner, units}), &b.d_outputs));
    OP_REQUIRES_OK(context, Expect(context, "d_h", Shape({batch, units}), &b.d_h));
    OP_REQUIRES_OK(context, Expect(context, "d_c", Shape({batch, units}), &b.d_c));

    // Write over x_hat if nothing else uses it, which saves an array of this size.
    int x_hat, end;
    OP_REQUIRES_OK(context, InputRange("x_hat", &x_hat, &end));
    Tensor* d_product;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({x_hat}, 0, Shape({outer, inner, 4 * width}),
                                                                      &d_product));
    b.d_product = Data(*d_product);
    const auto allocated = [&](int output, const TensorShape& shape, float** data) {
      Tensor* tensor;
      TF_RETURN_IF_ERROR(context->allocate_output(output, shape, &tensor));
      *data = Data(*tensor);
      return absl::OkStatus();
    };
    WeightGradients gradients;
    OP_REQUIRES_OK(context, allocated(1, Shape({batch, units}), &b.d_h0));
    OP_REQUIRES_OK(context, allocated(2, Shape({batch, units}), &b.d_c0));
    OP_REQUIRES_OK(context, allocated(3, Shape({features, 4 * units}), &gradients.kernel));
    OP_REQUIRES_OK(context, allocated(4, Shape({units, 4 * units}), &gradients.recurrent_kernel));
    OP_REQUIRES_OK(context, allocated(5, Shape({4 * units}), &gradients.kernel_gamma));
    OP_REQUIRES_OK(context, allocated(6, Shape({4 * units}), &gradients.recurrent_gamma));
    OP_REQUIRES_OK(context, allocated(7, Shape({4 * units}), &gradients.bias));
    OP_REQUIRES_OK(context, allocated(8, Shape({units}), &gradients.cell_gamma));
    OP_REQUIRES_OK(context, allocated(9, Shape({units}), &gradients.cell_beta));
    OP_REQUIRES_OK(context, LaunchBackward(Threads(context), weights, b, gradients));
  }

 private:
  bool time_major_, masked_;
};

absl::Status ForwardShapes(InferenceContext* c) {
  tensorflow::shape_inference::ShapeHandle inputs, state;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &inputs));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 2, &state));
  bool time_major;
  TF_RETURN_IF_ERROR(c->GetAttr("time_major", &time_major));
  const DimensionHandle outer = c->Dim(inputs, 0), inner = c->Dim(inputs, 1);
  const DimensionHandle batch = time_major ? inner : outer, units = c->Dim(state, 1);
  const DimensionHandle kept = c->UnknownDim();  // the gradient may still set `keep`
  DimensionHandle width = c->UnknownDim(), gates = c->UnknownDim();
  if (c->ValueKnown(units)) width = c->MakeDim(RoundUp(c->Value(units), kPad)), gates = c->MakeDim(4 * c->Value(width));
  c->set_output(0, c->MakeShape({outer, inner, units}));
  c->set_output(1, c->MakeShape({batch, units}));
  c->set_output(2, c->MakeShape({batch, units}));
  c->set_output(3, c->MakeShape({kept, inner, gates}));
  c->set_output(4, c->MakeShape({kept, inner, gates}));
  c->set_output(5, c->MakeShape({kept, inner, width}));
  c->set_output(6, c->MakeShape({kept, inner}));
  c->set_output(7, c->MakeShape({kept, inner}));
  c->set_output(8, c->MakeShape({kept, inner}));
  return absl::OkStatus();
}

absl::Status BackwardShapes(InferenceContext* c) {
  tensorflow::shape_inference::ShapeHandle inputs, recurrent_kernel;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &inputs));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 2, &recurrent_kernel));
  c->set_output(0, c->input(11));
  c->set_output(1, c->input(3));
  c->set_output(2, c->input(3));
  c->set_output(3, c->MakeShape({c->Dim(inputs, 2), c->Dim(recurrent_kernel, 1)}));
  for (int i = 0; i < 6; ++i) c->set_output(4 + i, c->input(4 + i));
  return absl::OkStatus();
}

}  // namespace

// The whole sequence; see recurrence.unroll. `keep` stores what RlLnlstm>Backward needs.
REGISTER_OP("RlLnlstm>Forward")
    .Input("inputs: float")
    .Input("masks: float")
    .Input("h0: float")
    .Input("c0: float")
    .Input("kernel: float")
    .Input("recurrent_kernel: float")
    .Input("kernel_gamma: float")
    .Input("recurrent_gamma: float")
    .Input("bias: float")
    .Input("cell_gamma: float")
    .Input("cell_beta: float")
    .Attr("time_major: bool")
    .Attr("masked: bool")
    .Attr("keep: bool")
    .Output("outputs: float")
    .Output("h: float")
    .Output("c: float")
    .Output("x_hat: float")
    .Output("r_hat: float")
    .Output("cells: float")
    .Output("x_scale: float")
    .Output("r_scale: float")
    .Output("c_scale: float")
    .SetShapeFn(ForwardShapes);

// The gradient of the sequence, except for the inputs': that is d_product @ transpose(kernel).
REGISTER_OP("RlLnlstm>Backward")
    .Input("inputs: float")            // 0
    .Input("masks: float")
    .Input("h0: float")
    .Input("c0: float")
    .Input("recurrent_kernel: float")
    .Input("kernel_gamma: float")      // 5
    .Input("recurrent_gamma: float")
    .Input("bias: float")
    .Input("cell_gamma: float")
    .Input("cell_beta: float")
    .Input("outputs: float")           // 10
    .Input("x_hat: float")
    .Input("r_hat: float")
    .Input("cells: float")
    .Input("x_scale: float")
    .Input("r_scale: float")           // 15
    .Input("c_scale: float")
    .Input("d_outputs: float")
    .Input("d_h: float")
    .Input("d_c: float")
    .Attr("time_major: bool")
    .Attr("masked: bool")
    .Output("d_product: float")
    .Output("d_h0: float")
    .Output("d_c0: float")
    .Output("d_kernel: float")
    .Output("d_recurrent_kernel: float")
    .Output("d_kernel_gamma: float")
    .Output("d_recurrent_gamma: float")
    .Output("d_bias: float")
    .Output("d_cell_gamma: float")
    .Output("d_cell_beta: float")
    .SetShapeFn(BackwardShapes);

REGISTER_KERNEL_BUILDER(Name("RlLnlstm>Forward").Device(tensorflow::DEVICE_CPU), ForwardOp);
REGISTER_KERNEL_BUILDER(Name("RlLnlstm>Backward").Device(tensorflow::DEVICE_CPU), BackwardOp);

}  // namespace rl_lnlstm
