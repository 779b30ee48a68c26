// The TensorFlow operations of the layer: a whole sequence, forward and backward.
#include <tuple>

#include "launch.h"
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

// The layer's weights, by their names. Those that an operation does not have are left null.
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
    OP_REQUIRES_OK(context, context->GetAttr("masked", &masked_));
    OP_REQUIRES_OK(context, context->GetAttr("keep", &keep_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor *inputs, *c0;
    OP_REQUIRES_OK(context, context->input("inputs", &inputs));
    OP_REQUIRES_OK(context, context->input("c0", &c0));
    OP_REQUIRES(context, inputs->dims() == 3,
                InvalidArgument("inputs must have shape [time, batch, features], got ", inputs->shape().DebugString()));
    OP_REQUIRES(context, c0->dims() == 2 && c0->dim_size(1) > 0,
                InvalidArgument("c0 must have shape [batch, units], got ", c0->shape().DebugString()));
    const Sizes sizes{inputs->dim_size(0), inputs->dim_size(1), inputs->dim_size(2), c0->dim_size(1)};
    const int64_t time = sizes.time, batch = sizes.batch, units = sizes.units, width = sizes.width();
    Forward f{};
    f.sizes = sizes;
    f.inputs = Data(*inputs);
    OP_REQUIRES_OK(context, Expect(context, "masks", masked_ ? Shape({time, batch}) : Shape({0, 0}), &f.masks));
    if (!masked_) f.masks = nullptr;
    OP_REQUIRES_OK(context, Expect(context, "h0", Shape({batch, units}), &f.h0));
    OP_REQUIRES_OK(context, Expect(context, "c0", Shape({batch, units}), &f.c0));
    Weights weights{};
    OP_REQUIRES_OK(context, Expect(context, "kernel", Shape({sizes.features, 4 * units}), &weights.kernel));
    OP_REQUIRES_OK(context, ReadWeights(context, sizes, &weights));

    const int64_t kept = keep_ ? time : 0;
    const auto allocate = [&](int index, const TensorShape& shape, float** data) {
      Tensor* tensor = nullptr;
      const absl::Status status = context->allocate_output(index, shape, &tensor);
      if (status.ok() && (index < 3 || keep_)) *data = Data(*tensor);
      return status;
    };
    OP_REQUIRES_OK(context, allocate(0, Shape({time, batch, units}), &f.outputs));
    OP_REQUIRES_OK(context, allocate(1, Shape({batch, units}), &f.h));
    OP_REQUIRES_OK(context, allocate(2, Shape({batch, units}), &f.c));
    OP_REQUIRES_OK(context, allocate(3, Shape({kept, batch, 4 * width}), &f.x_hat));
    OP_REQUIRES_OK(context, allocate(4, Shape({kept, batch}), &f.x_scale));
    OP_REQUIRES_OK(context, allocate(5, Shape({kept, batch, 4 * width}), &f.gates));
    OP_REQUIRES_OK(context, allocate(6, Shape({kept, batch, width}), &f.cells));
    OP_REQUIRES_OK(context, allocate(7, Shape({kept, batch}), &f.r_scale));
    OP_REQUIRES_OK(context, allocate(8, Shape({kept, batch}), &f.c_scale));
    OP_REQUIRES_OK(context, LaunchForward(Threads(context), weights, f));
  }

 private:
  bool masked_, keep_;
};

class BackwardOp : public OpKernel {
 public:
  explicit BackwardOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("masked", &masked_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor* cells;
    const Tensor* c0;
    OP_REQUIRES_OK(context, context->input("cells", &cells));
    OP_REQUIRES_OK(context, context->input("c0", &c0));
    OP_REQUIRES(context, cells->dims() == 3 && c0->dims() == 2 && c0->dim_size(1) > 0,
                InvalidArgument("c0 must have shape [batch, units] and cells [time, batch, width], got ",
                                c0->shape().DebugString(), " and ", cells->shape().DebugString()));
    const Sizes sizes{cells->dim_size(0), cells->dim_size(1), 0, c0->dim_size(1)};
    const int64_t time = sizes.time, batch = sizes.batch, units = sizes.units, width = sizes.width();

    Backward b;
    b.sizes = sizes;
    const float* gram;
    OP_REQUIRES_OK(context, Expect(context, "masks", masked_ ? Shape({time, batch}) : Shape({0, 0}), &b.masks));
    if (!masked_) b.masks = nullptr;
    Weights weights{};
    OP_REQUIRES_OK(context, ReadWeights(context, sizes, &weights));
    OP_REQUIRES_OK(context, Expect(context, "gram", Shape({units, units}), &gram));
    OP_REQUIRES_OK(context, Expect(context, "h0", Shape({batch, units}), &b.h0));
    OP_REQUIRES_OK(context, Expect(context, "c0", Shape({batch, units}), &b.c0));
    OP_REQUIRES_OK(context, Expect(context, "outputs", Shape({time, batch, units}), &b.outputs));
    OP_REQUIRES_OK(context, Expect(context, "x_hat", Shape({time, batch, 4 * width}), &b.x_hat));
    OP_REQUIRES_OK(context, Expect(context, "x_scale", Shape({time, batch}), &b.x_scale));
    OP_REQUIRES_OK(context, Expect(context, "gates", Shape({time, batch, 4 * width}), &b.gates));
    OP_REQUIRES_OK(context, Expect(context, "cells", Shape({time, batch, width}), &b.cells));
    OP_REQUIRES_OK(context, Expect(context, "r_scale", Shape({time, batch}), &b.r_scale));
    OP_REQUIRES_OK(context, Expect(context, "c_scale", Shape({time, batch}), &b.c_scale));
    OP_REQUIRES_OK(context, Expect(context, "d_outputs", Shape({time, batch, units}), &b.d_outputs));
    OP_REQUIRES_OK(context, Expect(context, "d_h", Shape({batch, units}), &b.d_h));
    OP_REQUIRES_OK(context, Expect(context, "d_c", Shape({batch, units}), &b.d_c));

    // In place of what they come from, if nobody else wants that: two arrays of this size less in memory.
    const auto forwarded = [&](const char* input, int output, const TensorShape& shape, float** data) {
      int index, end;
      TF_RETURN_IF_ERROR(InputRange(input, &index, &end));
      Tensor* tensor;
      TF_RETURN_IF_ERROR(context->forward_input_or_allocate_output({index}, output, shape, &tensor));
      *data = Data(*tensor);
      return absl::OkStatus();
    };
    const auto allocated = [&](int output, const TensorShape& shape, float** data) {
      Tensor* tensor;
      TF_RETURN_IF_ERROR(context->allocate_output(output, shape, &tensor));
      *data = Data(*tensor);
      return absl::OkStatus();
    };
    Sums gradients;
    OP_REQUIRES_OK(context, forwarded("x_hat", 0, Shape({time, batch, 4 * width}), &b.d_product));
    OP_REQUIRES_OK(context, forwarded("gates", 1, Shape({time, batch, 4 * width}), &b.d_gain));
    OP_REQUIRES_OK(context, allocated(2, Shape({time, batch, width}), &b.entering_h));
    OP_REQUIRES_OK(context, allocated(3, Shape({time, batch}), &b.along));
    OP_REQUIRES_OK(context, allocated(4, Shape({batch, units}), &b.d_h0));
    OP_REQUIRES_OK(context, allocated(5, Shape({batch, units}), &b.d_c0));
    OP_REQUIRES_OK(context, allocated(6, Shape({4 * units}), &gradients.bias));
    OP_REQUIRES_OK(context, allocated(7, Shape({4 * units}), &gradients.kernel_gamma));
    OP_REQUIRES_OK(context, allocated(8, Shape({units}), &gradients.cell_gamma));
    OP_REQUIRES_OK(context, allocated(9, Shape({units}), &gradients.cell_beta));

    OP_REQUIRES_OK(context, LaunchBackward(Threads(context), weights, gram, b, gradients));
  }

 private:
  bool masked_;
};

absl::Status ForwardShapes(InferenceContext* c) {
  const auto inputs = c->input(0), state = c->input(3);
  if (!c->RankKnown(inputs) || !c->RankKnown(state)) return tensorflow::shape_inference::UnknownShape(c);
  const DimensionHandle time = c->Dim(inputs, 0), batch = c->Dim(inputs, 1), units = c->Dim(state, 1);
  const DimensionHandle kept = c->UnknownDim();  // the gradient may still set `keep`
  DimensionHandle width = c->UnknownDim(), gates = c->UnknownDim();
  if (c->ValueKnown(units)) width = c->MakeDim(RoundUp(c->Value(units), kPad)), gates = c->MakeDim(4 * c->Value(width));
  c->set_output(0, c->MakeShape({time, batch, units}));
  c->set_output(1, c->MakeShape({batch, units}));
  c->set_output(2, c->MakeShape({batch, units}));
  c->set_output(3, c->MakeShape({kept, batch, gates}));
  c->set_output(4, c->MakeShape({kept, batch}));
  c->set_output(5, c->MakeShape({kept, batch, gates}));
  c->set_output(6, c->MakeShape({kept, batch, width}));
  c->set_output(7, c->MakeShape({kept, batch}));
  c->set_output(8, c->MakeShape({kept, batch}));
  return absl::OkStatus();
}

absl::Status BackwardShapes(InferenceContext* c) {
  const auto state = c->input(2), x_hat = c->input(10), cells = c->input(13), gamma = c->input(5);
  c->set_output(0, x_hat);
  c->set_output(1, x_hat);
  c->set_output(2, cells);
  c->set_output(3, c->input(11));
  c->set_output(4, state);
  c->set_output(5, state);
  c->set_output(6, gamma);
  c->set_output(7, gamma);
  c->set_output(8, c->input(7));
  c->set_output(9, c->input(7));
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
    .Attr("masked: bool")
    .Attr("keep: bool")
    .Output("outputs: float")
    .Output("h: float")
    .Output("c: float")
    .Output("x_hat: float")
    .Output("x_scale: float")
    .Output("gates: float")
    .Output("cells: float")
    .Output("r_scale: float")
    .Output("c_scale: float")
    .SetShapeFn(ForwardShapes);

// Its gradient, up to the matrix products over all steps.
REGISTER_OP("RlLnlstm>Backward")
    .Input("masks: float")             // 0
    .Input("h0: float")
    .Input("c0: float")
    .Input("recurrent_kernel: float")
    .Input("kernel_gamma: float")
    .Input("recurrent_gamma: float")   // 5
    .Input("bias: float")
    .Input("cell_gamma: float")
    .Input("cell_beta: float")
    .Input("outputs: float")
    .Input("x_hat: float")             // 10
    .Input("x_scale: float")
    .Input("gates: float")
    .Input("cells: float")
    .Input("r_scale: float")
    .Input("c_scale: float")           // 15
    .Input("gram: float")
    .Input("d_outputs: float")
    .Input("d_h: float")
    .Input("d_c: float")
    .Attr("masked: bool")
    .Output("d_product: float")
    .Output("d_gain: float")
    .Output("entering_h: float")
    .Output("along: float")
    .Output("d_h0: float")
    .Output("d_c0: float")
    .Output("d_bias: float")
    .Output("d_kernel_gamma: float")
    .Output("d_cell_gamma: float")
    .Output("d_cell_beta: float")
    .SetShapeFn(BackwardShapes);

REGISTER_KERNEL_BUILDER(Name("RlLnlstm>Forward").Device(tensorflow::DEVICE_CPU), ForwardOp);
REGISTER_KERNEL_BUILDER(Name("RlLnlstm>Backward").Device(tensorflow::DEVICE_CPU), BackwardOp);

}  // namespace rl_lnlstm
