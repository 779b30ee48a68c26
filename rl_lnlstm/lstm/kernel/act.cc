// One step of a policy, as a plain C function on arrays. A TensorFlow operation would cost
// about 30 us for each tensor. Each call reads the weights from the memory of TensorFlow's variables.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "encoder.h"
#include "launch.h"
#include "network_weights.h"
#include "packed_layer.h"
#include "rows.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"

// The arrays of a call; the same as `Arrays` in compiled_step.py.
extern "C" struct RlLnlstmArrays {
  int64_t batch, parameters;      // of the distribution of actions
  const double* observations;     // [batch, observation_size]; null if `images` is given
  const uint8_t* images;          // [batch, observation_size]; null unless the encoder has convolutions
  const float *h, *c;             // [batch, lstm_layers * units]
  const uint8_t* episode_starts;  // [batch]
  const float* noise;             // [batch, parameters]
  const uint8_t* action_masks;    // [batch, parameters], 0 where illegal; null if all are legal
  int64_t* numbered_actions;      // [batch]; null unless actions are Discrete
  float* actions;                 // [batch, parameters]; null if actions are Discrete
  float *values, *log_probs;      // [batch]
  float *new_h, *new_c;           // as h and c
};

namespace rl_lnlstm {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;

// The structure of a policy's network, which never changes.
struct Design {
  EncoderDesign encoder;
  int64_t units, lstm_layers;
  std::vector<Activation> heads;  // the activation of each layer
};

class Network {
 public:
  Network(Design design, Variables variables, ThreadPool* threads)
      : design_(std::move(design)), variables_(std::move(variables)), threads_(threads) {}

  absl::Status Act(const RlLnlstmArrays& arrays) {
    WeightReader weights(variables_);
    Encoder encoder(design_.encoder);
    TF_RETURN_IF_ERROR(encoder.Read(weights));
    TF_RETURN_IF_ERROR(PackLayers(encoder.features(), weights));
    const Blocks blocks(threads_, arrays.batch, arrays.batch * (encoder.multiplications() + weights.size()));
    std::vector<absl::Status> statuses(blocks.count());
    blocks.Run([&](int64_t index, int64_t begin, int64_t end) {
      statuses[index] = ActRows(RowsOf(arrays, begin, end), encoder, weights);
    });
    for (const absl::Status& status : statuses) TF_RETURN_IF_ERROR(status);
    return absl::OkStatus();
  }

 private:
  // `arrays` from row `begin` to `end`.
  RlLnlstmArrays RowsOf(RlLnlstmArrays arrays, int64_t begin, int64_t end) const {
    const int64_t state = begin * design_.lstm_layers * design_.units, parameters = begin * arrays.parameters;
    arrays.batch = end - begin;
    if (arrays.images != nullptr) arrays.images += begin * design_.encoder.observation_size;
    if (arrays.observations != nullptr) arrays.observations += begin * design_.encoder.observation_size;
    arrays.h += state, arrays.c += state, arrays.new_h += state, arrays.new_c += state;
    arrays.episode_starts += begin, arrays.values += begin, arrays.log_probs += begin;
    arrays.noise += parameters;
    if (arrays.action_masks != nullptr) arrays.action_masks += parameters;
    if (arrays.numbered_actions != nullptr) arrays.numbered_actions += begin;
    if (arrays.actions != nullptr) arrays.actions += parameters;
    return arrays;
  }

  // Packs the weights of the LSTM layers, for all blocks of rows.
  absl::Status PackLayers(int64_t features, WeightReader weights) {
    for (int64_t index = 0; index < design_.lstm_layers; ++index) {
      const Sizes sizes{1, 1, features + 1, design_.units, true};
      Weights layer;
      std::vector<Tensor> tensors;
      TF_RETURN_IF_ERROR(weights.NextLayer(sizes, &layer, &tensors));
      TF_RETURN_IF_ERROR(layers_[index].Get(sizes, layer, std::move(tensors), !weights.sparse(), &packed_[index]));
    }
    return absl::OkStatus();
  }

  absl::Status ActRows(const RlLnlstmArrays& arrays, const Encoder& encoder, WeightReader weights) const {
    const int64_t batch = arrays.batch;
    Rows features;
    TF_RETURN_IF_ERROR(arrays.images != nullptr ? encoder.Encode(batch, arrays.images, features)
                                                : encoder.Encode(batch, arrays.observations, features));
    Rows outputs[2];
    TF_RETURN_IF_ERROR(Remember(arrays, weights, features, outputs));

    Rows &actor = outputs[0], &critic = outputs[1];
    for (Rows* rows : {&actor, &critic}) TF_RETURN_IF_ERROR(Apply(batch, design_.heads, weights, *rows));
    TF_RETURN_IF_ERROR(Apply(batch, {Activation::kLinear}, weights, actor));
    if (actor.columns() != arrays.parameters)
      return InvalidArgument("the action head has ", actor.columns(), " outputs, expected ", arrays.parameters);
    if (arrays.numbered_actions != nullptr) {
      SampleCategorical(arrays, actor);
    } else {
      const float* log_std;
      TF_RETURN_IF_ERROR(weights.Next(Shape({actor.columns()}), &log_std));
      SampleGaussian(arrays, actor, log_std);
    }
    TF_RETURN_IF_ERROR(Apply(batch, {Activation::kLinear}, weights, critic));
    for (int64_t i = 0; i < batch; ++i) arrays.values[i] = critic[i][0];
    return absl::OkStatus();
  }

  // Applies the next dense layers to `rows`, in place.
  static absl::Status Apply(int64_t batch, const std::vector<Activation>& activations, WeightReader& weights,
                            Rows& rows) {
    for (const Activation activation : activations) {
      Dense layer;
      TF_RETURN_IF_ERROR(weights.NextDense(rows.columns(), activation, &layer));
      TF_RETURN_IF_ERROR(rl_lnlstm::Apply(layer, batch, rows));
    }
    return absl::OkStatus();
  }

  // Runs the LSTM layers, and makes the inputs of actor and critic: the output of an LSTM layer, then the features.
  absl::Status Remember(const RlLnlstmArrays& arrays, WeightReader& weights, const Rows& features,
                        Rows (&outputs)[2]) const {
    const int64_t batch = arrays.batch, units = design_.units, state = design_.lstm_layers * units;
    const int64_t size = features.columns() + 1;  // the features, and the constant beside them
    Buffer inputs, masks, parts;
    TF_RETURN_IF_ERROR(inputs.Allocate(batch * size));
    TF_RETURN_IF_ERROR(masks.Allocate(batch));
    TF_RETURN_IF_ERROR(parts.Allocate(5 * batch * units));
    CopyColumns(batch, size - 1, features[0], features.stride(), inputs.data(), size);
    for (int64_t i = 0; i < batch; ++i) {
      inputs.data()[i * size + size - 1] = 1.0f;
      masks.data()[i] = arrays.episode_starts[i] ? 0.0f : 1.0f;
    }
    float *h0 = parts.data(), *c0 = h0 + batch * units, *output = c0 + batch * units;
    float *h = output + batch * units, *c = h + batch * units;
    for (int64_t index = 0; index < 2; ++index) {
      Rows& rows = outputs[index];
      TF_RETURN_IF_ERROR(rows.Allocate(batch, units + size - 1));
      if (index < design_.lstm_layers) {
        const int64_t column = index * units;
        CopyColumns(batch, units, arrays.h + column, state, h0, units);
        CopyColumns(batch, units, arrays.c + column, state, c0, units);
        Forward pass{};
        pass.sizes = {1, batch, size, units, true};
        weights.SkipLayer();
        pass.inputs = inputs.data(), pass.masks = masks.data(), pass.h0 = h0, pass.c0 = c0;
        pass.outputs = output, pass.h = h, pass.c = c;
        TF_RETURN_IF_ERROR(LaunchForward(nullptr, *packed_[index], pass));
        CopyColumns(batch, units, h, units, arrays.new_h + column, state);
        CopyColumns(batch, units, c, units, arrays.new_c + column, state);
      }
      CopyColumns(batch, units, output, units, rows[0], rows.stride());
      CopyColumns(batch, size - 1, features[0], features.stride(), rows[0] + units, rows.stride());
    }
    return absl::OkStatus();
  }

  // Like Categorical in distributions.py.
  static void SampleCategorical(const RlLnlstmArrays& arrays, const Rows& logits) {
    const int64_t size = logits.columns();
    for (int64_t i = 0; i < arrays.batch; ++i) {
      float* row = logits[i];
      const float* noise = arrays.noise + i * size;
      if (arrays.action_masks != nullptr)
        for (int64_t j = 0; j < size; ++j)
          if (!arrays.action_masks[i * size + j]) row[j] = -std::numeric_limits<float>::infinity();
      int64_t best = 0;
      for (int64_t j = 1; j < size; ++j)
        if (row[j] + noise[j] > row[best] + noise[best]) best = j;
      const float most = *std::max_element(row, row + size);
      float sum = 0;
      for (int64_t j = 0; j < size; ++j) sum += std::exp(row[j] - most);
      arrays.numbered_actions[i] = best;
      arrays.log_probs[i] = row[best] - most - std::log(sum);
    }
  }

  // Like DiagonalGaussian in distributions.py.
  static void SampleGaussian(const RlLnlstmArrays& arrays, const Rows& mean, const float* log_std) {
    constexpr float kHalfLogTwoPi = 0.918938533f;
    const int64_t size = mean.columns();
    for (int64_t i = 0; i < arrays.batch; ++i) {
      float log_prob = 0;
      for (int64_t j = 0; j < size; ++j) {
        const float action = mean[i][j] + std::exp(log_std[j]) * arrays.noise[i * size + j];
        const float z = (action - mean[i][j]) * std::exp(-log_std[j]);
        arrays.actions[i * size + j] = action;
        log_prob -= 0.5f * z * z + log_std[j] + kHalfLogTwoPi;
      }
      arrays.log_probs[i] = log_prob;
    }
  }

  Design design_;
  Variables variables_;
  ThreadPool* threads_;
  PackedLayer layers_[2];
  std::shared_ptr<const ForwardWeights> packed_[2];  // for the rows of a call
};

// Makes a network, and returns its address for calls of rl_lnlstm_act.
class NetworkOp : public OpKernel {
 public:
  explicit NetworkOp(OpKernelConstruction* context) : OpKernel(context) {
    EncoderDesign& encoder = design_.encoder;
    OP_REQUIRES_OK(context, context->GetAttr("observation_size", &encoder.observation_size));
    OP_REQUIRES_OK(context, context->GetAttr("normalized", &encoder.normalized));
    OP_REQUIRES_OK(context, context->GetAttr("clip", &encoder.clip));
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &encoder.epsilon));
    OP_REQUIRES_OK(context, context->GetAttr("image", &encoder.image));
    OP_REQUIRES_OK(context, context->GetAttr("channels_first", &encoder.channels_first));
    OP_REQUIRES_OK(context, context->GetAttr("scale", &encoder.scale));
    OP_REQUIRES_OK(context, context->GetAttr("strides", &encoder.strides));
    OP_REQUIRES_OK(context, Activations(context, "convolutions", &encoder.convolutions));
    OP_REQUIRES_OK(context, Activations(context, "encoder", &encoder.layers));
    OP_REQUIRES_OK(context, encoder.Check());
    OP_REQUIRES_OK(context, context->GetAttr("units", &design_.units));
    OP_REQUIRES_OK(context, context->GetAttr("lstm_layers", &design_.lstm_layers));
    OP_REQUIRES(context, design_.lstm_layers == 1 || design_.lstm_layers == 2,
                InvalidArgument("lstm_layers must be 1 or 2"));
    OP_REQUIRES_OK(context, Activations(context, "heads", &design_.heads));
  }

  void Compute(OpKernelContext* context) override {
    tensorflow::OpInputList handles;
    OP_REQUIRES_OK(context, context->input_list("weights", &handles));
    Variables variables(handles.size());
    for (int i = 0; i < handles.size(); ++i)
      OP_REQUIRES_OK(context,
                     LookupResource(context, handles[i].scalar<tensorflow::ResourceHandle>()(), &variables[i]));
    Tensor* address;
    OP_REQUIRES_OK(context, context->allocate_output(0, Shape({}), &address));
    address->scalar<int64_t>()() =
        reinterpret_cast<intptr_t>(new Network(design_, std::move(variables), Threads(context)));
  }

 private:
  static absl::Status Activations(OpKernelConstruction* context, const char* name, std::vector<Activation>* values) {
    std::vector<std::string> names;
    TF_RETURN_IF_ERROR(context->GetAttr(name, &names));
    values->resize(names.size());
    for (size_t i = 0; i < names.size(); ++i) TF_RETURN_IF_ERROR(FindActivation(names[i], &(*values)[i]));
    return absl::OkStatus();
  }

  Design design_;
};

}  // namespace

// The order of `weights`: mean and variance of observations, if `normalized`; filters and bias of each convolution;
// kernel and bias of each encoder layer; the seven weights of each LSTM layer; kernels and biases of the actor's
// layers, then of the critic's; kernel and bias of the action head; log_std, unless actions are Discrete; kernel and
// bias of the value head. For the attributes of the encoder see EncoderDesign.
REGISTER_OP("RlLnlstm>Network")
    .Input("weights: count * resource")
    .Attr("count: int >= 1")
    .Attr("observation_size: int")
    .Attr("units: int >= 1")
    .Attr("lstm_layers: int")
    .Attr("normalized: bool")
    .Attr("clip: float")
    .Attr("epsilon: float")
    .Attr("image: list(int)")
    .Attr("channels_first: bool")
    .Attr("scale: float")
    .Attr("strides: list(int)")
    .Attr("convolutions: list(string)")  // the layers' activations
    .Attr("encoder: list(string)")
    .Attr("heads: list(string)")
    .Output("address: int64")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape);

REGISTER_KERNEL_BUILDER(Name("RlLnlstm>Network").Device(tensorflow::DEVICE_CPU), NetworkOp);

}  // namespace rl_lnlstm

// Returns 0. If there is an error, returns 1 and writes the error to `message`.
extern "C" int rl_lnlstm_act(void* network, const RlLnlstmArrays* arrays, char* message, int64_t message_size) {
  const absl::Status status = static_cast<rl_lnlstm::Network*>(network)->Act(*arrays);
  if (status.ok()) return 0;
  const std::string text(status.message());
  std::memcpy(message, text.c_str(), std::min<int64_t>(message_size, text.size() + 1));
  message[message_size - 1] = '\0';
  return 1;
}

extern "C" void rl_lnlstm_free(void* network) { delete static_cast<rl_lnlstm::Network*>(network); }
