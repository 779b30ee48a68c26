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
#include "xla/ffi/api/c_api.h"

namespace xla::ffi {
const XLA_FFI_Api* GetXlaFfiApi();  // the header that declares it includes much else
}

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

// A call of XLA's foreign function interface, as C structures, because the header for C++ is only in newer packages.
class Call {
 public:
  explicit Call(XLA_FFI_CallFrame* frame) : frame_(*frame) {}

  // Whether XLA only asks for the version of the interface. If so, answers.
  bool AnswersVersion() const {
    const XLA_FFI_Extension_Base* extension = frame_.extension_start;
    if (extension == nullptr || extension->type != XLA_FFI_Extension_Metadata) return false;
    auto* metadata = reinterpret_cast<const XLA_FFI_Metadata_Extension*>(extension)->metadata;
    metadata->api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    return true;
  }

  float* input(int64_t i) const { return Data(frame_.args.args[i]); }
  float* output(int64_t i) const { return Data(frame_.rets.rets[i]); }

  // A bool attribute. They are in alphabetical order.
  bool attribute(int64_t i) const {
    return *static_cast<bool*>(static_cast<XLA_FFI_Scalar*>(frame_.attrs.attrs[i])->value);
  }

  Sizes sizes(bool time_major) const {
    const int64_t *inputs = Buffer(frame_.args.args[0])->dims, *c0 = Buffer(frame_.args.args[3])->dims;
    return {inputs[time_major ? 0 : 1], inputs[time_major ? 1 : 0], inputs[2], c0[1], time_major};
  }

  // What the function returns to XLA.
  XLA_FFI_Error* Result(const absl::Status& status) const {
    if (status.ok()) return nullptr;
    const std::string message(status.message());
    XLA_FFI_Error_Create_Args error{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, message.c_str(),
                                    static_cast<XLA_FFI_Error_Code>(status.code())};  // both have the same codes
    return frame_.api->XLA_FFI_Error_Create(&error);
  }

 private:
  static XLA_FFI_Buffer* Buffer(void* buffer) { return static_cast<XLA_FFI_Buffer*>(buffer); }
  static float* Data(void* buffer) { return static_cast<float*>(Buffer(buffer)->data); }

  const XLA_FFI_CallFrame& frame_;
};

// Inputs and outputs are the same as for RlLnlstm>Forward. The attributes are keep, masked and time_major.
XLA_FFI_Error* CallForward(XLA_FFI_CallFrame* frame) {
  const Call call(frame);
  if (call.AnswersVersion()) return nullptr;
  const auto input = [&](int i) { return call.input(i); };
  const auto kept = [&](int i) { return call.attribute(0) ? call.output(i) : nullptr; };
  Forward f{};
  f.sizes = call.sizes(call.attribute(2));
  f.inputs = input(0), f.masks = call.attribute(1) ? input(1) : nullptr, f.h0 = input(2), f.c0 = input(3);
  const Weights weights{input(4), input(5), input(6), input(7), input(8), input(9), input(10)};
  f.outputs = call.output(0), f.h = call.output(1), f.c = call.output(2);
  f.x_hat = kept(3), f.r_hat = kept(4), f.cells = kept(5);
  f.x_scale = kept(6), f.r_scale = kept(7), f.c_scale = kept(8);
  return call.Result(LaunchForward(threads, weights, f));
}

// Inputs and outputs are the same as for RlLnlstm>Backward. The attributes are masked and time_major.
XLA_FFI_Error* CallBackward(XLA_FFI_CallFrame* frame) {
  const Call call(frame);
  if (call.AnswersVersion()) return nullptr;
  const auto input = [&](int i) { return call.input(i); };
  const auto output = [&](int i) { return call.output(i); };
  Backward b{};
  b.sizes = call.sizes(call.attribute(1));
  b.inputs = input(0), b.masks = call.attribute(0) ? input(1) : nullptr, b.h0 = input(2), b.c0 = input(3);
  const Weights weights{nullptr, input(4), input(5), input(6), input(7), input(8), input(9)};
  b.outputs = input(10), b.x_hat = input(11), b.r_hat = input(12), b.cells = input(13);
  b.x_scale = input(14), b.r_scale = input(15), b.c_scale = input(16);
  b.d_outputs = input(17), b.d_h = input(18), b.d_c = input(19);
  b.d_product = output(0), b.d_h0 = output(1), b.d_c0 = output(2);
  return call.Result(LaunchBackward(threads, weights, b, {output(3), output(4), output(5), output(6), output(7),
                                                          output(8), output(9)}));
}

bool Register(std::string name, XLA_FFI_Handler* function) {
  const std::string platform = "Host";
  XLA_FFI_Handler_Register_Args registration{XLA_FFI_Handler_Register_Args_STRUCT_SIZE};
  registration.name = {name.data(), name.size()};
  registration.platform = {platform.data(), platform.size()};
  registration.bundle.execute = function;
  return xla::ffi::GetXlaFfiApi()->XLA_FFI_Handler_Register(&registration) == nullptr;
}
const bool registered = Register("rl_lnlstm_forward", CallForward) && Register("rl_lnlstm_backward", CallBackward);

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
    const TensorShape x_hat = Shape({kept, inner, 4 * width}), numbers = Shape({kept, inner});
    const TensorShape r_hat = Shape({sizes.keeps_r_hat() ? kept : 0, inner, 4 * width});
    Emit(context, "rl_lnlstm_forward",
         absl::StrCat("{keep = ", Bool(keep_), ", masked = ", Bool(masked_), ", time_major = ", Bool(time_major_), "}"),
         {inputs, masked_ ? Shape({outer, inner}) : Shape({0, 0}), state, state, Shape({sizes.features, 4 * units}),
          Shape({units, 4 * units}), gain, gain, gain, cell, cell},
         {Shape({outer, inner, units}), state, state, x_hat, r_hat, Shape({kept, inner, width}), numbers, numbers,
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
    const TensorShape x_hat = Shape({outer, inner, 4 * width}), numbers = Shape({outer, inner});
    const TensorShape r_hat = Shape({sizes.keeps_r_hat() ? outer : 0, inner, 4 * width});
    const TensorShape cells = Shape({outer, inner, width}), outputs = Shape({outer, inner, units});
    Emit(context, "rl_lnlstm_backward",
         absl::StrCat("{masked = ", Bool(masked_), ", time_major = ", Bool(time_major_), "}"),
         {inputs, masked_ ? numbers : Shape({0, 0}), state, state, recurrent_kernel, gain, gain, gain, cell, cell,
          outputs, x_hat, r_hat, cells, numbers, numbers, numbers, outputs, state, state},
         {x_hat, state, state, kernel, recurrent_kernel, gain, gain, gain, cell, cell});
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
