// Rows of floats, and fully connected layers on them.
#ifndef RL_LNLSTM_KERNEL_ROWS_H_
#define RL_LNLSTM_KERNEL_ROWS_H_

#include <cstring>
#include <utility>

#include "launch.h"

namespace rl_lnlstm {

// Each row has room for whole panels.
class Rows {
 public:
  absl::Status Allocate(int64_t rows, int64_t columns) {
    columns_ = columns, stride_ = RoundUp(columns, kPanel);
    return buffer_.Allocate(rows * stride_);
  }
  float* operator[](int64_t row) const { return buffer_.data() + row * stride_; }
  int64_t columns() const { return columns_; }
  int64_t stride() const { return stride_; }

 private:
  Buffer buffer_;
  int64_t columns_ = 0, stride_ = 0;
};

inline void CopyColumns(int64_t rows, int64_t columns, const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * to_row, from + i * from_row, columns * sizeof(float));
}

// Applies a layer to `count` rows, in place.
inline absl::Status Apply(const Dense& layer, int64_t count, Rows& rows) {
  Rows outputs;
  TF_RETURN_IF_ERROR(outputs.Allocate(count, layer.outputs));
  ChooseCore().dense(layer, count, rows[0], rows.stride(), outputs[0], outputs.stride());
  rows = std::move(outputs);
  return absl::OkStatus();
}

}  // namespace rl_lnlstm

#endif  // RL_LNLSTM_KERNEL_ROWS_H_
