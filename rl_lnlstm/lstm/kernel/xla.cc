// The layer's operations under XLA on CPUs. They become custom calls for known sizes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "launch.h"
#if __has_include("xla/hlo/builder/xla_builder.h")
#include "xla/hlo/builder/xla_builder.h"
#else  // until TensorFlow 2.18
#include "xla/client/xla_builder.h"
#endif

// xla_op_kernel.h includes two headers only for these names. They would double the time to compile.
#define TENSORFLOW_COMPILER_TF2XLA_XLA_COMPILER_H_
#define XLA_CLIENT_CLIENT_H_
namespace tensorflow {
class XlaCompiler;
}
namespace xla {
class Client;
}
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"
#include "tensorflow/compiler/tf2xla/xla_op_registry.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "xla/service/custom_call_target_registry.h"

struct XlaCustomCallStatus_;

namespace rl_lnlstm {
namespace {

// XLA gives custom calls no threads, so they use the threads that RlLnlstm>UseThreads found.
ThreadPool* threads = nullptr;

// Passes TensorFlow's threads to the custom calls of this process. Returns their number.
class UseThreadsOp : public tensorflow::OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(tensorflow::OpKernelContext* context) override {
    threads = Threads(context);
    tensorflow::Tensor* count;
    OP_REQUIRES_OK(context, context->allocate_output(0, Shape({}), &count));
    count->scalar<int64_t>()() = threads->NumThreads();
  }
};

struct Call {
  Sizes sizes;
  int masked, keep;
};

std::string Text(const Call& call) {
  const Sizes& s = call.sizes;
  char text[160];
  std::snprintf(text, sizeof text, "%lld %lld %lld %lld %d %d %d", static_cast<long long>(s.time),
                static_cast<long long>(s.batch), static_cast<long long>(s.features), static_cast<long long>(s.units),
                s.time_major, call.masked, call.keep);
  return text;
}

// Parses what `Text` writes.
Call Parse(const char* text, size_t size) {
  long long time, batch, features, units;
  int time_major;
  Call call{};
  std::sscanf(std::string(text, size).c_str(), "%lld %lld %lld %lld %d %d %d", &time, &batch, &features, &units,
              &time_major, &call.masked, &call.keep);
  call.sizes = {time, batch, features, units, time_major != 0};
  return call;
}

// A custom call cannot return an error.
void NanUnless(const absl::Status& status, float* data, int64_t size) {
  if (!status.ok()) std::fill(data, data + size, NAN);
}

// Inputs and outputs are the same as for RlLnlstm>Forward, and below for RlLnlstm>Backward.
void CallForward(void* out, const void** in, const char* text, size_t size, XlaCustomCallStatus_*) {
  const Call call = Parse(text, size);
  const auto input = [&](int i) { return static_cast<const float*>(in[i]); };
  const auto output = [&](int i) { return static_cast<float*>(static_cast<void**>(out)[i]); };
  const auto kept = [&](int i) { return call.keep ? output(i) : nullptr; };
  Forward f{};
  f.sizes = call.sizes;
  f.inputs = input(0), f.masks = call.masked ? input(1) : nullptr, f.h0 = input(2), f.c0 = input(3);
  const Weights weights{input(4), input(5), input(6), input(7), input(8), input(9), input(10)};
  f.outputs = output(0), f.h = output(1), f.c = output(2);
  f.x_hat = kept(3), f.r_hat = kept(4), f.cells = kept(5);
  f.x_scale = kept(6), f.r_scale = kept(7), f.c_scale = kept(8);
  NanUnless(LaunchForward(threads, weights, f), f.outputs, f.sizes.steps() * f.sizes.units);
}

void CallBackward(void* out, const void** in, const char* text, size_t size, XlaCustomCallStatus_*) {
  const Call call = Parse(text, size);
  const auto input = [&](int i) { return static_cast<const float*>(in[i]); };
  const auto output = [&](int i) { return static_cast<float*>(static_cast<void**>(out)[i]); };
  Backward b{};
  b.sizes = call.sizes;
  b.inputs = input(0), b.masks = call.masked ? input(1) : nullptr, b.h0 = input(2), b.c0 = input(3);
  const Weights weights{nullptr, input(4), input(5), input(6), input(7), input(8), input(9)};
  b.outputs = input(10), b.x_hat = input(11), b.r_hat = input(12), b.cells = input(13);
  b.x_scale = input(14), b.r_scale = input(15), b.c_scale = input(16);
  b.d_outputs = input(17), b.d_h = input(18), b.d_c = input(19);
  b.d_product = output(0), b.d_h0 = output(1), b.d_c0 = output(2);
  NanUnless(LaunchBackward(threads, weights, b, {output(3), output(4), output(5), output(6), output(7), output(8),
                                                 output(9)}),
            b.d_product, b.sizes.steps() * 4 * b.sizes.width());
}

using tensorflow::TensorShape;
using tensorflow::XlaOpKernelContext;
using tensorflow::errors::InvalidArgument;

// Adds the custom call that replaces the operation. `shapes` are the shapes of inputs and outputs.
void Emit(XlaOpKernelContext* context, const char* target, const Call& call, const std::vector<TensorShape>& in,
          const std::vector<TensorShape>& out) {
  std::vector<xla::XlaOp> operands;
  for (int i = 0; i < context->num_inputs(); ++i) {
    OP_REQUIRES(context, context->InputShape(i) == in[i],
                InvalidArgument("input ", i, " of ", target, " must have shape ", in[i].DebugString(), ", got ",
                                context->InputShape(i).DebugString()));
    operands.push_back(context->Input(i));
  }
  std::vector<xla::Shape> shapes;
  for (const TensorShape& shape : out)
    shapes.push_back(xla::ShapeUtil::MakeShape(xla::F32, shape.dim_sizes()));
  const xla::XlaOp results = xla::CustomCall(
      context->builder(), target, operands, xla::ShapeUtil::MakeTupleShape(shapes), Text(call),
      /*has_side_effect=*/false, {}, nullptr, xla::CustomCallSchedule::SCHEDULE_NONE,
      xla::CustomCallApiVersion::API_VERSION_STATUS_RETURNING_UNIFIED);
  for (size_t i = 0; i < out.size(); ++i) context->SetOutput(i, xla::GetTupleElement(results, i));
}

class XlaForwardOp : public tensorflow::XlaOpKernel {
 public:
  explicit XlaForwardOp(tensorflow::OpKernelConstruction* context) : XlaOpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("time_major", &time_major_));
    OP_REQUIRES_OK(context, context->GetAttr("masked", &masked_));
    OP_REQUIRES_OK(context, context->GetAttr("keep", &keep_));
  }

  void Compile(XlaOpKernelContext* context) override {
    const TensorShape inputs = context->InputShape(0), c0 = context->InputShape(3);
    OP_REQUIRES(context, inputs.dims() == 3 && c0.dims() == 2 && c0.dim_size(1) > 0,
                InvalidArgument("inputs must have shape [time, batch, features], or batch first, and c0 [batch, units], "
                                "got ", inputs.DebugString(), " and ", c0.DebugString()));
    const int64_t outer = inputs.dim_size(0), inner = inputs.dim_size(1);
    const Sizes sizes{time_major_ ? outer : inner, time_major_ ? inner : outer, inputs.dim_size(2), c0.dim_size(1),
                      time_major_};
    const int64_t units = sizes.units, width = sizes.width(), kept = keep_ ? outer : 0;
    const TensorShape state = Shape({sizes.batch, units}), gain = Shape({4 * units}), cell = Shape({units});
    const TensorShape gates = Shape({kept, inner, 4 * width}), numbers = Shape({kept, inner});
    Emit(context, "rl_lnlstm_forward", {sizes, masked_, keep_},
         {inputs, masked_ ? Shape({outer, inner}) : Shape({0, 0}), state, state, Shape({sizes.features, 4 * units}),
          Shape({units, 4 * units}), gain, gain, gain, cell, cell},
         {Shape({outer, inner, units}), state, state, gates, gates, Shape({kept, inner, width}), numbers, numbers,
          numbers});
  }

 private:
  bool time_major_, masked_, keep_;
};

class XlaBackwardOp : public tensorflow::XlaOpKernel {
 public:
  explicit XlaBackwardOp(tensorflow::OpKernelConstruction* context) : XlaOpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("time_major", &time_major_));
    OP_REQUIRES_OK(context, context->GetAttr("masked", &masked_));
  }

  void Compile(XlaOpKernelContext* context) override {
    const TensorShape inputs = context->InputShape(0), c0 = context->InputShape(3);
    OP_REQUIRES(context, inputs.dims() == 3 && c0.dims() == 2 && c0.dim_size(1) > 0,
                InvalidArgument("inputs must have shape [time, batch, features], or batch first, and c0 [batch, units], "
                                "got ", inputs.DebugString(), " and ", c0.DebugString()));
    const int64_t outer = inputs.dim_size(0), inner = inputs.dim_size(1), features = inputs.dim_size(2);
    const Sizes sizes{time_major_ ? outer : inner, time_major_ ? inner : outer, features, c0.dim_size(1), time_major_};
    const int64_t units = sizes.units, width = sizes.width();
    const TensorShape state = Shape({sizes.batch, units}), gain = Shape({4 * units}), cell = Shape({units});
    const TensorShape kernel = Shape({features, 4 * units}), recurrent_kernel = Shape({units, 4 * units});
    const TensorShape gates = Shape({outer, inner, 4 * width}), numbers = Shape({outer, inner});
    const TensorShape cells = Shape({outer, inner, width}), outputs = Shape({outer, inner, units});
    Emit(context, "rl_lnlstm_backward", {sizes, masked_, true},
         {inputs, masked_ ? numbers : Shape({0, 0}), state, state, recurrent_kernel, gain, gain, gain, cell, cell,
          outputs, gates, gates, cells, numbers, numbers, numbers, outputs, state, state},
         {gates, state, state, kernel, recurrent_kernel, gain, gain, gain, cell, cell});
  }

 private:
  bool time_major_, masked_;
};

}  // namespace

// Do not use REGISTER_XLA_OP: TensorFlow notices it only before the first use of XLA.
REGISTER_KERNEL_BUILDER(Name("RlLnlstm>Forward").Device(tensorflow::DEVICE_CPU_XLA_JIT), XlaForwardOp);
REGISTER_KERNEL_BUILDER(Name("RlLnlstm>Backward").Device(tensorflow::DEVICE_CPU_XLA_JIT), XlaBackwardOp);

REGISTER_OP("RlLnlstm>UseThreads")
    .Output("count: int64")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape);
REGISTER_KERNEL_BUILDER(Name("RlLnlstm>UseThreads").Device(tensorflow::DEVICE_CPU), UseThreadsOp);

XLA_REGISTER_CUSTOM_CALL_TARGET_WITH_SYM("rl_lnlstm_forward", CallForward, "Host");
XLA_REGISTER_CUSTOM_CALL_TARGET_WITH_SYM("rl_lnlstm_backward", CallBackward, "Host");

}  // namespace rl_lnlstm
