// The names of activations.
#ifndef RL_LNLSTM_KERNEL_ACTIVATION_H_
#define RL_LNLSTM_KERNEL_ACTIVATION_H_

#include <string>
#include <utility>

#include "core.h"
#include "tensorflow/core/platform/errors.h"

namespace rl_lnlstm {

inline absl::Status FindActivation(const std::string& name, Activation* activation) {
  constexpr std::pair<const char*, Activation> kKnown[] = {{"linear", Activation::kLinear},
                                                           {"tanh", Activation::kTanh},
                                                           {"relu", Activation::kRelu},
                                                           {"sigmoid", Activation::kSigmoid}};
  for (const auto& [known, value] : kKnown)
    if (name == known) {
      *activation = value;
      return absl::OkStatus();
    }
  return tensorflow::errors::InvalidArgument("no activation ", name);
}

}  // namespace rl_lnlstm

#endif  // RL_LNLSTM_KERNEL_ACTIVATION_H_
