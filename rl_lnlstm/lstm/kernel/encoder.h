// The first part of a policy's network: normalises observations and encodes them to features.
#ifndef RL_LNLSTM_KERNEL_ENCODER_H_
#define RL_LNLSTM_KERNEL_ENCODER_H_

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "activation.h"
#include "launch.h"
#include "network_weights.h"
#include "rows.h"

namespace rl_lnlstm {

// The structure of an encoder: convolutions, if observations are images of bytes, and fully connected layers.
struct EncoderDesign {
  int64_t observation_size;
  bool normalized;
  float clip, epsilon;             // of the normalisation
  std::vector<int64_t> image;      // rows, columns and channels; empty if observations are doubles
  bool channels_first;             // of the observations
  float scale;                     // multiplies the bytes, normalised or not
  std::vector<Activation> convolutions, layers;
  std::vector<int64_t> strides;    // two of each convolution

  absl::Status Check() const {
    const auto positive = [](int64_t value) { return value > 0; };
    const bool right = image.empty() ? convolutions.empty()
                                     : image.size() == 3 && image[0] * image[1] * image[2] == observation_size;
    if (right && strides.size() == 2 * convolutions.size() && std::all_of(image.begin(), image.end(), positive) &&
        std::all_of(strides.begin(), strides.end(), positive))
      return absl::OkStatus();
    return InvalidArgument("image or strides do not match the other attributes");
  }
};

// An encoder with its weights.
class Encoder {
 public:
  explicit Encoder(const EncoderDesign& design) : design_(design) {}

  // Reads the weights, which must stay in memory.
  absl::Status Read(WeightReader& weights) {
    size_ = design_.observation_size;
    if (design_.normalized)
      TF_RETURN_IF_ERROR(ReadStatistics(weights));
    std::vector<int64_t> image = design_.image;
    for (size_t i = 0; i < design_.convolutions.size(); ++i) {
      Convolution c{image[0], image[1], image[2], 0, 0, 0, design_.strides[2 * i], design_.strides[2 * i + 1]};
      Dense layer;
      TF_RETURN_IF_ERROR(weights.NextConvolution(design_.convolutions[i], &c, &layer));
      convolutions_.push_back({c, layer, {}, {}});
      TF_RETURN_IF_ERROR(FilterPanels(c, layer.kernel, &convolutions_[i].buffer, &convolutions_[i].filters));
      image = {c.output_rows(), c.output_columns(), c.filters};
      size_ = image[0] * image[1] * image[2];
      multiplications_ += c.multiplications();
    }
    flat_size_ = size_;
    for (const Activation activation : design_.layers) {
      Dense layer;
      TF_RETURN_IF_ERROR(weights.NextDense(size_, activation, &layer));
      layers_.push_back(layer);
      size_ = layer.outputs;
    }
    return absl::OkStatus();
  }

  int64_t features() const { return size_; }
  double multiplications() const { return multiplications_; }  // of the convolutions, for an image

  absl::Status Encode(int64_t batch, const double* observations, Rows& features) const {
    TF_RETURN_IF_ERROR(features.Allocate(batch, design_.observation_size));
    for (int64_t i = 0; i < batch; ++i) Normalize(observations + i * design_.observation_size, features[i]);
    return ApplyLayers(batch, features);
  }

  absl::Status Encode(int64_t batch, const uint8_t* images, Rows& features) const {
    const int64_t size = design_.observation_size, channels = design_.channels_first ? design_.image[2] : 1;
    int64_t largest = size, scratch_size = 0;
    for (const Layer& layer : convolutions_) {
      largest = std::max(largest, layer.sizes.outputs() * layer.sizes.filters);
      scratch_size = std::max(scratch_size, layer.sizes.scratch());
    }
    Buffer one, other, scratch;  // what a convolution reads, and what it writes
    for (Buffer* buffer : {&one, &other}) TF_RETURN_IF_ERROR(buffer->Allocate(largest));
    TF_RETURN_IF_ERROR(scratch.Allocate(scratch_size));
    TF_RETURN_IF_ERROR(features.Allocate(batch, flat_size_));
    const Core& core = ChooseCore();
    for (int64_t i = 0; i < batch; ++i) {
      const uint8_t* image = images + i * size;
      if (design_.normalized) {
        Normalize(image, other.data());
        core.float_pixels(other.data(), channels, size / channels, design_.scale, one.data());
      } else {
        core.byte_pixels(image, channels, size / channels, design_.scale, one.data());
      }
      for (const Layer& layer : convolutions_) {
        core.convolution(layer.sizes, layer.dense, layer.filters, one.data(), 0, 1, other.data(), scratch.data());
        std::swap(one, other);
      }
      std::memcpy(features[i], one.data(), features.columns() * sizeof(float));
    }
    return ApplyLayers(batch, features);
  }

 private:
  // A convolution; `dense` has its weights, bias and activation.
  struct Layer {
    Convolution sizes;
    Dense dense;
    Matrix filters;
    Buffer buffer;  // of the filters, if they are padded
  };

  absl::Status ReadStatistics(WeightReader& weights) {
    const double *mean, *variance;
    for (const double** statistic : {&mean, &variance}) TF_RETURN_IF_ERROR(weights.NextStatistic(size_, statistic));
    mean_.assign(mean, mean + size_);
    deviations_.resize(size_);
    for (int64_t j = 0; j < size_; ++j) deviations_[j] = std::sqrt(variance[j] + design_.epsilon);
    return absl::OkStatus();
  }

  // Like RunningStatistics.normalize, which computes in float64; without normalisation, only converts to float32.
  void Normalize(const double* from, float* to) const {
    const double clip = design_.clip;
    for (int64_t j = 0; j < design_.observation_size; ++j)
      to[j] = design_.normalized ? std::clamp((from[j] - mean_[j]) / deviations_[j], -clip, clip) : from[j];
  }

  // RunningStatistics.normalize computes bytes in float32, so this does too.
  void Normalize(const uint8_t* from, float* to) const {
    for (int64_t j = 0; j < design_.observation_size; ++j) {
      const float mean = mean_[j], deviation = deviations_[j];
      to[j] = std::clamp((from[j] - mean) / deviation, -design_.clip, design_.clip);
    }
  }

  absl::Status ApplyLayers(int64_t batch, Rows& rows) const {
    for (const Dense& layer : layers_) TF_RETURN_IF_ERROR(Apply(layer, batch, rows));
    return absl::OkStatus();
  }

  const EncoderDesign& design_;
  int64_t size_ = 0, flat_size_ = 0;  // of the features; of the result of the convolutions
  double multiplications_ = 0;
  std::vector<double> mean_, deviations_;  // empty without normalisation
  std::vector<Layer> convolutions_;
  std::vector<Dense> layers_;
};

}  // namespace rl_lnlstm

#endif  // RL_LNLSTM_KERNEL_ENCODER_H_
