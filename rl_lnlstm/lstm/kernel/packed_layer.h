// The weights of a layer, packed again only if they have changed.
#ifndef RL_LNLSTM_KERNEL_PACKED_LAYER_H_
#define RL_LNLSTM_KERNEL_PACKED_LAYER_H_

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "launch.h"

namespace rl_lnlstm {

// Several threads may use it.
class PackedLayer {
 public:
  // Packs `weights`, whose memory belongs to `tensors`. It relies on TensorFlow's rule that an assignment does not write
  // to a tensor that is held elsewhere: the same memory then holds the same weights. `lasting` is false where the rule
  // does not hold.
  absl::Status Get(const Sizes& sizes, const Weights& weights, std::vector<tensorflow::Tensor> tensors, bool lasting,
                   std::shared_ptr<const ForwardWeights>* packed) {
    const auto same = [](const tensorflow::Tensor& one, const tensorflow::Tensor& other) {
      // Slices of a tensor share its buffer. Another tensor may get the address of one that is gone.
      return one.SharesBufferWith(other) && one.data() == other.data() && one.shape() == other.shape();
    };
    const tensorflow::mutex_lock lock(mutex_);
    if (!lasting || !std::equal(tensors.begin(), tensors.end(), held_.begin(), held_.end(), same)) {
      auto made = std::make_shared<ForwardWeights>();
      TF_RETURN_IF_ERROR(made->Make(sizes, weights));
      held_ = std::move(tensors), packed_ = std::move(made);
    }
    *packed = packed_;
    return absl::OkStatus();
  }

 private:
  tensorflow::mutex mutex_;
  std::vector<tensorflow::Tensor> held_;
  std::shared_ptr<const ForwardWeights> packed_;
};

}  // namespace rl_lnlstm

#endif  // RL_LNLSTM_KERNEL_PACKED_LAYER_H_
