// The TensorFlow operations: shapes checked, matrices packed, and the vector code run over the batch's rows.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace rl_lnlstm {
namespace {

using tensorflow::DT_FLOAT;
using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;

constexpr double kWorkOfAThread = 4e6;  // multiplications, some 50 us: to wake a thread takes as long

constexpr int64_t kRowsNotWorthPacking = 64;  // acting: the matrices are used as they are, and products centred

const Core& ChooseCore() {
  static const Core* const core = [] {
    const char* wanted = std::getenv("RL_LNLSTM_ISA");  // for tests: what this machine would not choose
    const std::string name = wanted == nullptr ? "" : wanted;
#ifdef RL_LNLSTM_X86
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx512 && name != "avx2" && name != "portable") return &kAvx512;
    if (avx2 && name != "portable") return &kAvx2;
#endif
    return &kGeneric;
  }();
  return *core;
}

float* Data(Tensor& tensor) { return tensor.flat<float>().data(); }
const float* Data(const Tensor& tensor) { return tensor.flat<float>().data(); }

TensorShape Shape(std::initializer_list<int64_t> sizes) {
  TensorShape shape;
  for (const int64_t size : sizes) shape.AddDim(size);
  return shape;
}

absl::Status Expect(OpKernelContext* context, const char* name, const TensorShape& shape, const Tensor** tensor) {
  TF_RETURN_IF_ERROR(context->input(name, tensor));
  if ((*tensor)->shape() != shape)
    return InvalidArgument(name, " must have shape ", shape.DebugString(), ", got ",
                           (*tensor)->shape().DebugString());
  return absl::OkStatus();
}

// Rows that are centred: from a row of 4 * units to one whose mean is zero.
std::vector<float> Centred(const float* matrix, int64_t rows, int64_t columns) {
  std::vector<float> centred(rows * columns);
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = matrix + i * columns;
    double sum = 0;
    for (int64_t j = 0; j < columns; ++j) sum += row[j];
    const float mean = sum / columns;
    for (int64_t j = 0; j < columns; ++j) centred[i * columns + j] = row[j] - mean;
  }
  return centred;
}

// Packs [rows, parts * count], each part padded to `width` columns, into panels of `panel` columns.
Matrix Pack(const float* matrix, int64_t rows, int64_t parts, int64_t count, int64_t width, int64_t panel,
            float* packed) {
  std::memset(packed, 0, PackedSize(rows, parts * width) * sizeof(float));
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t j = 0; j < count;) {
      const int64_t column = part * width + j, offset = column % panel;
      const int64_t run = std::min(count - j, panel - offset);
      float* to = packed + column / panel * rows * panel + offset;
      const float* from = matrix + part * count + j;
      for (int64_t i = 0; i < rows; ++i)
        std::memcpy(to + i * panel, from + i * parts * count, run * sizeof(float));
      j += run;
    }
  return {packed, panel, rows * panel};
}

void Pad(const float* values, int64_t parts, int64_t count, int64_t width, float* padded) {
  std::memset(padded, 0, parts * width * sizeof(float));
  for (int64_t part = 0; part < parts; ++part)
    std::memcpy(padded + part * width, values + part * count, count * sizeof(float));
}

void Unpad(const float* padded, int64_t parts, int64_t count, int64_t width, float* values) {
  for (int64_t part = 0; part < parts; ++part)
    std::memcpy(values + part * count, padded + part * width, count * sizeof(float));
}

// A temporary array, aligned as tensors are.
class Buffer {
 public:
  absl::Status Allocate(OpKernelContext* context, int64_t size) {
    return context->allocate_temp(DT_FLOAT, Shape({size}), &tensor_);
  }
  float* data() { return Data(tensor_); }

 private:
  Tensor tensor_;
};

struct PaddedGains {
  Buffer buffer;
  Gains gains;

  absl::Status Make(OpKernelContext* context, const Sizes& sizes) {
    const int64_t units = sizes.units, width = sizes.width();
    TF_RETURN_IF_ERROR(buffer.Allocate(context, 15 * width));
    float* to = buffer.data();
    for (auto [name, parts, field] : {std::tuple{"kernel_gamma", 4, &gains.kernel_gamma},
                                      std::tuple{"recurrent_gamma", 4, &gains.recurrent_gamma},
                                      std::tuple{"bias", 4, &gains.bias},
                                      std::tuple{"cell_gamma", 1, &gains.cell_gamma},
                                      std::tuple{"cell_beta", 1, &gains.cell_beta}}) {
      const Tensor* tensor;
      TF_RETURN_IF_ERROR(Expect(context, name, Shape({parts * units}), &tensor));
      Pad(Data(*tensor), parts, units, width, to);
      *field = to;
      to += parts * width;
    }
    for (int64_t j = 0; j < width; ++j) to[j] = j < units ? 1.0f : 0.0f;
    gains.valid = to;
    return absl::OkStatus();
  }
};

// Runs `work(index, begin, end)` over blocks of the batch, on TensorFlow's own threads.
class Blocks {
 public:
  Blocks(OpKernelContext* context, const Sizes& sizes)
      : pool_(context->device()->tensorflow_cpu_worker_threads()->workers), batch_(sizes.batch) {
    const double work = static_cast<double>(sizes.steps()) * (sizes.features + sizes.units) * 4 * sizes.units;
    const int64_t useful = std::max<int64_t>(1, work / kWorkOfAThread);
    count_ = std::min<int64_t>({batch_, pool_->NumThreads(), useful});
    size_ = count_ == 0 ? 0 : (batch_ + count_ - 1) / count_;
    if (size_ > 0) count_ = (batch_ + size_ - 1) / size_;
  }

  int64_t count() const { return count_; }
  int64_t size() const { return size_; }

  template <typename Work>
  void Run(Work work) {
    const auto run = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) work(i, i * size_, std::min(batch_, (i + 1) * size_));
    };
    if (count_ <= 1) {
      run(0, count_);
    } else {
      pool_->ParallelFor(count_, 1'000'000'000, run);
    }
  }

 private:
  tensorflow::thread::ThreadPool* pool_;
  int64_t batch_, count_, size_;
};

class ForwardOp : public OpKernel {
 public:
  explicit ForwardOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("masked", &masked_));
    OP_REQUIRES_OK(context, context->GetAttr("keep", &keep_));
  }

  void Compute(OpKernelContext* context) override {
    const Core& core = ChooseCore();
    const Tensor *inputs, *masks, *h0, *c0, *kernel, *recurrent_kernel;
    OP_REQUIRES_OK(context, context->input("inputs", &inputs));
    OP_REQUIRES_OK(context, context->input("c0", &c0));
    OP_REQUIRES(context, inputs->dims() == 3,
                InvalidArgument("inputs must have shape [time, batch, features], got ", inputs->shape().DebugString()));
    OP_REQUIRES(context, c0->dims() == 2 && c0->dim_size(1) > 0,
                InvalidArgument("c0 must have shape [batch, units], got ", c0->shape().DebugString()));
    const Sizes sizes{inputs->dim_size(0), inputs->dim_size(1), inputs->dim_size(2), c0->dim_size(1)};
    const int64_t time = sizes.time, batch = sizes.batch, units = sizes.units, width = sizes.width();
    OP_REQUIRES_OK(context, Expect(context, "masks", masked_ ? Shape({time, batch}) : Shape({0, 0}), &masks));
    OP_REQUIRES_OK(context, Expect(context, "h0", Shape({batch, units}), &h0));
    OP_REQUIRES_OK(context, Expect(context, "c0", Shape({batch, units}), &c0));
    OP_REQUIRES_OK(context, Expect(context, "kernel", Shape({sizes.features, 4 * units}), &kernel));
    OP_REQUIRES_OK(context, Expect(context, "recurrent_kernel", Shape({units, 4 * units}), &recurrent_kernel));

    Tensor *outputs, *h, *c, *x_hat, *x_scale, *gates, *cells, *r_scale, *c_scale;
    const int64_t kept = keep_ ? time : 0;
    OP_REQUIRES_OK(context, context->allocate_output(0, Shape({time, batch, units}), &outputs));
    OP_REQUIRES_OK(context, context->allocate_output(1, Shape({batch, units}), &h));
    OP_REQUIRES_OK(context, context->allocate_output(2, Shape({batch, units}), &c));
    OP_REQUIRES_OK(context, context->allocate_output(3, Shape({kept, batch, 4 * width}), &x_hat));
    OP_REQUIRES_OK(context, context->allocate_output(4, Shape({kept, batch}), &x_scale));
    OP_REQUIRES_OK(context, context->allocate_output(5, Shape({kept, batch, 4 * width}), &gates));
    OP_REQUIRES_OK(context, context->allocate_output(6, Shape({kept, batch, width}), &cells));
    OP_REQUIRES_OK(context, context->allocate_output(7, Shape({kept, batch}), &r_scale));
    OP_REQUIRES_OK(context, context->allocate_output(8, Shape({kept, batch}), &c_scale));

    PaddedGains gains;
    OP_REQUIRES_OK(context, gains.Make(context, sizes));
    Buffer packed_kernel, packed_recurrent, scratch;
    Blocks blocks(context, sizes);
    const int64_t scratch_size = RoundUp(core.scratch(sizes, blocks.size()), kPad);
    OP_REQUIRES_OK(context, scratch.Allocate(context, scratch_size * blocks.count()));

    Forward f;
    f.centred = width != units || sizes.steps() > kRowsNotWorthPacking;
    if (f.centred) {
      OP_REQUIRES_OK(context, packed_kernel.Allocate(context, PackedSize(sizes.features, 4 * width)));
      OP_REQUIRES_OK(context, packed_recurrent.Allocate(context, PackedSize(units, 4 * width)));
      f.kernel = Pack(Centred(Data(*kernel), sizes.features, 4 * units).data(), sizes.features, 4, units, width,
                      core.panel, packed_kernel.data());
      f.recurrent_kernel = Pack(Centred(Data(*recurrent_kernel), units, 4 * units).data(), units, 4, units, width,
                                core.panel, packed_recurrent.data());
    } else {
      f.kernel = {Data(*kernel), 4 * units, core.panel};
      f.recurrent_kernel = {Data(*recurrent_kernel), 4 * units, core.panel};
    }
    f.sizes = sizes;
    f.inputs = Data(*inputs), f.masks = masked_ ? Data(*masks) : nullptr, f.h0 = Data(*h0), f.c0 = Data(*c0);
    f.gains = gains.gains;
    f.outputs = Data(*outputs), f.h = Data(*h), f.c = Data(*c);
    f.x_hat = keep_ ? Data(*x_hat) : nullptr, f.x_scale = keep_ ? Data(*x_scale) : nullptr;
    f.gates = keep_ ? Data(*gates) : nullptr, f.cells = keep_ ? Data(*cells) : nullptr;
    f.r_scale = keep_ ? Data(*r_scale) : nullptr, f.c_scale = keep_ ? Data(*c_scale) : nullptr;
    blocks.Run([&](int64_t index, int64_t begin, int64_t end) {
      core.forward(f, begin, end, scratch.data() + index * scratch_size);
    });
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
    const Core& core = ChooseCore();
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
    const Tensor *masks, *kernel, *gram, *gamma, *x_hat, *gates;
    const auto expect = [&](const char* name, const TensorShape& shape, const float** data) {
      const Tensor* tensor = nullptr;
      const absl::Status status = Expect(context, name, shape, &tensor);
      if (status.ok()) *data = Data(*tensor);
      return status;
    };
    OP_REQUIRES_OK(context, Expect(context, "masks", masked_ ? Shape({time, batch}) : Shape({0, 0}), &masks));
    b.masks = masked_ ? Data(*masks) : nullptr;
    OP_REQUIRES_OK(context, Expect(context, "recurrent_kernel", Shape({units, 4 * units}), &kernel));
    OP_REQUIRES_OK(context, Expect(context, "gram", Shape({units, units}), &gram));
    OP_REQUIRES_OK(context, Expect(context, "recurrent_gamma", Shape({4 * units}), &gamma));
    OP_REQUIRES_OK(context, Expect(context, "x_hat", Shape({time, batch, 4 * width}), &x_hat));
    OP_REQUIRES_OK(context, Expect(context, "gates", Shape({time, batch, 4 * width}), &gates));
    b.x_hat = Data(*x_hat), b.gates = Data(*gates);
    OP_REQUIRES_OK(context, expect("h0", Shape({batch, units}), &b.h0));
    OP_REQUIRES_OK(context, expect("c0", Shape({batch, units}), &b.c0));
    OP_REQUIRES_OK(context, expect("outputs", Shape({time, batch, units}), &b.outputs));
    OP_REQUIRES_OK(context, expect("x_scale", Shape({time, batch}), &b.x_scale));
    OP_REQUIRES_OK(context, expect("cells", Shape({time, batch, width}), &b.cells));
    OP_REQUIRES_OK(context, expect("r_scale", Shape({time, batch}), &b.r_scale));
    OP_REQUIRES_OK(context, expect("c_scale", Shape({time, batch}), &b.c_scale));
    OP_REQUIRES_OK(context, expect("d_outputs", Shape({time, batch, units}), &b.d_outputs));
    OP_REQUIRES_OK(context, expect("d_h", Shape({batch, units}), &b.d_h));
    OP_REQUIRES_OK(context, expect("d_c", Shape({batch, units}), &b.d_c));

    PaddedGains gains;
    OP_REQUIRES_OK(context, gains.Make(context, sizes));
    b.gains = gains.gains;
    Blocks blocks(context, sizes);
    const int64_t scratch_size = RoundUp(core.scratch(sizes, blocks.size()), kPad), sums_size = 10 * width;
    Buffer packed_kernel, packed_gram, scratch, sums;
    OP_REQUIRES_OK(context, packed_kernel.Allocate(context, PackedSize(4 * width, width)));
    OP_REQUIRES_OK(context, packed_gram.Allocate(context, PackedSize(units, width)));
    OP_REQUIRES_OK(context, scratch.Allocate(context, scratch_size * blocks.count()));
    OP_REQUIRES_OK(context, sums.Allocate(context, sums_size * std::max<int64_t>(1, blocks.count())));
    std::memset(sums.data(), 0, sums_size * std::max<int64_t>(1, blocks.count()) * sizeof(float));
    b.recurrent_kernel_t = PackTransposed(Centred(Data(*kernel), units, 4 * units), Data(*gamma), units, width,
                                          core.panel, packed_kernel.data());
    b.gram = Pack(Data(*gram), units, 1, units, width, core.panel, packed_gram.data());

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
    float *d_bias, *d_kernel_gamma, *d_cell_gamma, *d_cell_beta;
    OP_REQUIRES_OK(context, forwarded("x_hat", 0, Shape({time, batch, 4 * width}), &b.d_product));
    OP_REQUIRES_OK(context, forwarded("gates", 1, Shape({time, batch, 4 * width}), &b.d_gain));
    OP_REQUIRES_OK(context, allocated(2, Shape({time, batch, width}), &b.entering_h));
    OP_REQUIRES_OK(context, allocated(3, Shape({time, batch}), &b.along));
    OP_REQUIRES_OK(context, allocated(4, Shape({batch, units}), &b.d_h0));
    OP_REQUIRES_OK(context, allocated(5, Shape({batch, units}), &b.d_c0));
    OP_REQUIRES_OK(context, allocated(6, Shape({4 * units}), &d_bias));
    OP_REQUIRES_OK(context, allocated(7, Shape({4 * units}), &d_kernel_gamma));
    OP_REQUIRES_OK(context, allocated(8, Shape({units}), &d_cell_gamma));
    OP_REQUIRES_OK(context, allocated(9, Shape({units}), &d_cell_beta));

    blocks.Run([&](int64_t index, int64_t begin, int64_t end) {
      float* own = sums.data() + index * sums_size;
      core.backward(b, begin, end, {own, own + 4 * width, own + 8 * width, own + 9 * width},
                    scratch.data() + index * scratch_size);
    });
    for (int64_t index = 1; index < blocks.count(); ++index)
      for (int64_t j = 0; j < sums_size; ++j) sums.data()[j] += sums.data()[index * sums_size + j];
    Unpad(sums.data(), 4, units, width, d_bias);
    Unpad(sums.data() + 4 * width, 4, units, width, d_kernel_gamma);
    Unpad(sums.data() + 8 * width, 1, units, width, d_cell_gamma);
    Unpad(sums.data() + 9 * width, 1, units, width, d_cell_beta);
  }

 private:
  // transpose(kernel * gamma), [4 * width, width].
  static Matrix PackTransposed(const std::vector<float>& kernel, const float* gamma, int64_t units, int64_t width,
                               int64_t panel, float* packed) {
    std::memset(packed, 0, PackedSize(4 * width, width) * sizeof(float));
    for (int64_t u = 0; u < units; ++u) {
      float* to = packed + u / panel * 4 * width * panel + u % panel;
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t j = 0; j < units; ++j)
          to[(gate * width + j) * panel] = kernel[u * 4 * units + gate * units + j] * gamma[gate * units + j];
    }
    return {packed, panel, 4 * width * panel};
  }

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
