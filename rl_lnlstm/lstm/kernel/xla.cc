// The layer's operations under XLA on CPUs. They become custom calls for known sizes.
#include <cstdint>
#include <string>
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
#include "xla/ffi/api/ffi.h"

namespace rl_lnlstm {
namespace {

namespace ffi = xla::ffi;

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

// The data of a custom call's input or output.
float* In(const ffi::RemainingArgs& inputs, size_t i) {
  return static_cast<float*>(inputs.get<ffi::AnyBuffer>(i)->untyped_data());
}
float* Out(const ffi::RemainingRets& outputs, size_t i) {
  return static_cast<float*>((*outputs.get<ffi::AnyBuffer>(i))->untyped_data());
}

Sizes SizesOf(const ffi::RemainingArgs& in, bool time_major) {
  const auto inputs = in.get<ffi::AnyBuffer>(0)->dimensions(), c0 = in.get<ffi::AnyBuffer>(3)->dimensions();
  return {inputs[time_major ? 0 : 1], inputs[time_major ? 1 : 0], inputs[2], c0[1], time_major};
}

ffi::Error ErrorOf(const absl::Status& status) {  // both have the same codes
  return ffi::Error(static_cast<XLA_FFI_Error_Code>(status.code()), std::string(status.message()));
}

// Inputs, outputs and attributes are the same as for RlLnlstm>Forward, and below for RlLnlstm>Backward.
ffi::Error CallForward(bool keep, bool masked, bool time_major, ffi::RemainingArgs in, ffi::RemainingRets out) {
  const auto kept = [&](int i) { return keep ? Out(out, i) : nullptr; };
  Forward f{};
  f.sizes = SizesOf(in, time_major);
  f.inputs = In(in, 0), f.masks = masked ? In(in, 1) : nullptr, f.h0 = In(in, 2), f.c0 = In(in, 3);
  const Weights weights{In(in, 4), In(in, 5), In(in, 6), In(in, 7), In(in, 8), In(in, 9), In(in, 10)};
  f.outputs = Out(out, 0), f.h = Out(out, 1), f.c = Out(out, 2);
  f.x_hat = kept(3), f.r_hat = kept(4), f.cells = kept(5);
  f.x_scale = kept(6), f.r_scale = kept(7), f.c_scale = kept(8);
  return ErrorOf(LaunchForward(threads, weights, f));
}

ffi::Error CallBackward(bool masked, bool time_major, ffi::RemainingArgs in, ffi::RemainingRets out) {
  Backward b{};
  b.sizes = SizesOf(in, time_major);
  b.inputs = In(in, 0), b.masks = masked ? In(in, 1) : nullptr, b.h0 = In(in, 2), b.c0 = In(in, 3);
  const Weights weights{nullptr, In(in, 4), In(in, 5), In(in, 6), In(in, 7), In(in, 8), In(in, 9)};
  b.outputs = In(in, 10), b.x_hat = In(in, 11), b.r_hat = In(in, 12), b.cells = In(in, 13);
  b.x_scale = In(in, 14), b.r_scale = In(in, 15), b.c_scale = In(in, 16);
  b.d_outputs = In(in, 17), b.d_h = In(in, 18), b.d_c = In(in, 19);
  b.d_product = Out(out, 0), b.d_h0 = Out(out, 1), b.d_c0 = Out(out, 2);
  return ErrorOf(LaunchBackward(threads, weights, b, {Out(out, 3), Out(out, 4), Out(out, 5), Out(out, 6), Out(out, 7),
                                                      Out(out, 8), Out(out, 9)}));
}

XLA_FFI_DEFINE_HANDLER(kForward, CallForward,
                       ffi::Ffi::Bind().Attr<bool>("keep").Attr<bool>("masked").Attr<bool>("time_major")
                           .RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER(kBackward, CallBackward,
                       ffi::Ffi::Bind().Attr<bool>("masked").Attr<bool>("time_major").RemainingArgs().RemainingRets());
XLA_FFI_REGISTER_HANDLER(XLA_FFI_GetApi(), "rl_lnlstm_forward", "Host", kForward);
XLA_FFI_REGISTER_HANDLER(XLA_FFI_GetApi(), "rl_lnlstm_backward", "Host", kBackward);

using tensorflow::TensorShape;
using tensorflow::XlaOpKernelContext;
using tensorflow::errors::InvalidArgument;

const char* Bool(bool value) { return value ? "true" : "false"; }

// Adds the custom call that replaces the operation. `attributes` are those of the call, as a dictionary of MLIR; `in`
// and `out` are the shapes of inputs and outputs.
void Emit(XlaOpKernelContext* context, const char* target, const std::string& attributes,
          const std::vector<TensorShape>& in, const std::vector<TensorShape>& out) {
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
      context->builder(), target, operands, xla::ShapeUtil::MakeTupleShape(shapes), attributes,
      /*has_side_effect=*/false, {}, nullptr, xla::CustomCallSchedule::SCHEDULE_NONE,
      xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
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
    Emit(context, "rl_lnlstm_forward",
         absl::StrCat("{keep = ", Bool(keep_), ", masked = ", Bool(masked_), ", time_major = ", Bool(time_major_), "}"),
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
    Emit(context, "rl_lnlstm_backward",
         absl::StrCat("{masked = ", Bool(masked_), ", time_major = ", Bool(time_major_), "}"),
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

}  // namespace rl_lnlstm
