// The layer's operations as custom calls of XLA on CPUs, for sizes that are known when a function is traced.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>

#include "launch.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "xla/service/custom_call_target_registry.h"

struct XlaCustomCallStatus_;

namespace rl_lnlstm {
namespace {

// XLA gives a custom call no threads: these are those that RlLnlstm>UseThreads found.
ThreadPool* threads = nullptr;

// Names TensorFlow's threads to the custom calls of this process; returns their number.
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

// From what kernel/__init__.py writes.
Call Parse(const char* text, size_t size) {
  long long time, batch, features, units;
  int time_major;
  Call call{};
  std::sscanf(std::string(text, size).c_str(), "%lld %lld %lld %lld %d %d %d", &time, &batch, &features, &units,
              &time_major, &call.masked, &call.keep);
  call.sizes = {time, batch, features, units, time_major != 0};
  return call;
}

// There is no way to return an error.
void NanUnless(const absl::Status& status, float* data, int64_t size) {
  if (!status.ok()) std::fill(data, data + size, NAN);
}

// Inputs and outputs are those of RlLnlstm>Forward, and below of RlLnlstm>Backward.
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
  f.x_hat = kept(3), f.x_scale = kept(4), f.gates = kept(5);
  f.cells = kept(6), f.r_scale = kept(7), f.c_scale = kept(8);
  NanUnless(LaunchForward(threads, weights, f), f.outputs, f.sizes.steps() * f.sizes.units);
}

void CallBackward(void* out, const void** in, const char* text, size_t size, XlaCustomCallStatus_*) {
  const Call call = Parse(text, size);
  const auto input = [&](int i) { return static_cast<const float*>(in[i]); };
  const auto output = [&](int i) { return static_cast<float*>(static_cast<void**>(out)[i]); };
  Backward b{};
  b.sizes = call.sizes;
  b.masks = call.masked ? input(0) : nullptr, b.h0 = input(1), b.c0 = input(2);
  const Weights weights{nullptr, input(3), input(4), input(5), input(6), input(7), input(8)};
  b.outputs = input(9), b.x_hat = input(10), b.x_scale = input(11), b.gates = input(12), b.cells = input(13);
  b.r_scale = input(14), b.c_scale = input(15), b.d_outputs = input(17), b.d_h = input(18), b.d_c = input(19);
  b.d_product = output(0), b.d_gain = output(1), b.entering_h = output(2), b.along_h = output(3);
  b.d_h0 = output(4), b.d_c0 = output(5);
  NanUnless(LaunchBackward(threads, weights, input(16), b, {output(6), output(7), output(8), output(9)}), b.d_product,
            b.sizes.steps() * 4 * b.sizes.width());
}

}  // namespace

REGISTER_OP("RlLnlstm>UseThreads")
    .Output("count: int64")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape);
REGISTER_KERNEL_BUILDER(Name("RlLnlstm>UseThreads").Device(tensorflow::DEVICE_CPU), UseThreadsOp);

XLA_REGISTER_CUSTOM_CALL_TARGET_WITH_SYM("rl_lnlstm_forward", CallForward, "Host");
XLA_REGISTER_CUSTOM_CALL_TARGET_WITH_SYM("rl_lnlstm_backward", CallBackward, "Host");

}  // namespace rl_lnlstm
