// The interface between the operations (op.cc, convolution.cc, pixels.cc, act.cc) and the vector code (core.inc), which
// is compiled for each instruction set.
// All arrays are row-major, and float32 except for images of bytes. Private arrays are padded: each of the four gates
// has `width` columns, which is the number of units rounded up to a multiple of 16. So loops over units have no
// remainder. Padding that is read is zero.
#ifndef RL_LNLSTM_KERNEL_CORE_H_
#define RL_LNLSTM_KERNEL_CORE_H_

#include <cstdint>

namespace rl_lnlstm {

constexpr int64_t kPad = 16;      // the widest vector
constexpr int64_t kPanel = 32;    // packed matrices are padded to multiples of the widest panel
constexpr float kEpsilon = 1e-5f;
constexpr int64_t kKeptInMemory = 32 << 20;  // bytes

constexpr int64_t kPatches = 96;  // the most patches of images in one product of matrices

inline int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

struct Sizes {
  int64_t time, batch, features, units;
  bool time_major;  // otherwise batch before time; all arrays with a row for each step
  int64_t width() const { return RoundUp(units, kPad); }  // of a padded gate or state
  int64_t steps() const { return time * batch; }
  // Whether the forward pass keeps r_hat. If it is large, the backward pass computes it again, with the same result.
  bool keeps_r_hat() const { return steps() * 4 * width() * static_cast<int64_t>(sizeof(float)) <= kKeptInMemory; }
  int64_t step(int64_t t, int64_t row) const { return time_major ? t * batch + row : row * time + t; }
};

// Padded gains and biases, with the width of four gates or of one state.
struct Gains {
  const float *kernel_gamma, *recurrent_gamma, *bias;  // [4 * width]
  const float *cell_gamma, *cell_beta;                 // [width]
  const float* valid;                                  // [width], 1 for a unit, 0 for padding
};

// A matrix in panels of columns. Packed panels follow one another. A matrix may also stay unpacked.
struct Matrix {
  const float* data;
  int64_t row, panel;  // distance between rows, and between panels
};

struct Forward {
  Sizes sizes;
  const float *inputs, *masks, *h0, *c0;  // [steps, features], [steps] or null, [batch, units] each
  Matrix kernel, recurrent_kernel;  // centred, so their products need not be
  Gains gains;
  float *outputs, *h, *c;  // [steps, units], [batch, units] each
  // Residuals for the backward pass; all null if there will be none. The gates follow from them.
  float *x_hat, *r_hat;  // [steps, 4 * width]: the two products after their normalisation; r_hat may be null
  float* cells;          // [steps, width]
  float *x_scale, *r_scale, *c_scale;  // [steps]
};

struct Backward {
  Sizes sizes;
  const float *inputs, *masks, *h0, *c0;
  Matrix recurrent_kernel, recurrent_kernel_t;  // centred, [units, 4 * width]; its transpose, [4 * width, width]
  Gains gains;
  const float *outputs, *x_hat, *r_hat, *cells, *x_scale, *r_scale, *c_scale;  // results of the forward pass
  const float *d_outputs, *d_h, *d_c;
  float* d_product;  // [steps, 4 * width], of inputs @ kernel; may share x_hat's memory
  float *d_h0, *d_c0;
};

// Gradients of the weights, or sums over a part of the steps. The backward pass pads them like private arrays.
struct WeightGradients {
  float *kernel, *recurrent_kernel;                 // [features, 4 * units], [units, 4 * units]
  float *kernel_gamma, *recurrent_gamma, *bias;     // [4 * units]
  float *cell_gamma, *cell_beta;                    // [units]
};

enum class Activation { kLinear, kTanh, kRelu, kSigmoid };

// A fully connected layer: activation(inputs @ kernel + bias).
struct Dense {
  int64_t inputs, outputs;
  const float *kernel, *bias;  // [inputs, outputs], [outputs]
  Activation activation;
};

// A convolution without padding. All arrays have the channels last.
struct Convolution {
  int64_t rows, columns, channels;                 // of an image
  int64_t kernel_rows, kernel_columns, filters;
  int64_t row_stride, column_stride;
  int64_t output_rows() const { return (rows - kernel_rows) / row_stride + 1; }
  int64_t output_columns() const { return (columns - kernel_columns) / column_stride + 1; }
  int64_t outputs() const { return output_rows() * output_columns(); }  // of an image and filter
  int64_t weights() const { return kernel_rows * kernel_columns * channels; }  // of a filter
  double multiplications() const { return static_cast<double>(outputs()) * weights() * filters; }  // for an image
  // Of a padded patch: an odd number of cache lines, so that a column of many patches uses all sets of the cache.
  int64_t patch_width() const { return RoundUp(weights(), kPanel) | kPad; }
  int64_t padded_filters() const { return RoundUp(filters, kPanel); }
  // Floats for patches and a panel, or for outputs and the places of weights.
  int64_t scratch() const { return kPatches * (patch_width() + padded_filters() + kPanel); }
};

// The functions for one instruction set. Rows are rows of the batch, from `begin` to `end`.
struct Core {
  const char* name;  // of the instruction set
  int64_t panel;  // columns of a packed panel
  int64_t (*scratch)(const Sizes&, int64_t rows);  // floats that forward and backward need, 64-byte aligned
  void (*forward)(const Forward&, int64_t begin, int64_t end, float* scratch);
  // Adds to the gradients.
  void (*backward)(const Backward&, int64_t begin, int64_t end, const WeightGradients&, float* scratch);
  // Reads rows of `x_row` floats, and writes rows of `y_row` floats with room for the outputs rounded up to kPanel.
  void (*dense)(const Dense&, int64_t rows, const float* x, int64_t x_row, float* y, int64_t y_row);
  // Converts an image of `channels` planes to pixels with all channels each, times `scale`.
  void (*byte_pixels)(const uint8_t* image, int64_t channels, int64_t pixels, float scale, float* to);
  void (*float_pixels)(const float* image, int64_t channels, int64_t pixels, float scale, float* to);
  // Convolutions of images `begin` to `end`, with the bias and the activation of `layer`. `filters`
  // are [weights, filters], padded to whole panels.
  void (*convolution)(const Convolution&, const Dense& layer, const Matrix& filters, const float* images,
                      int64_t begin, int64_t end, float* outputs, float* scratch);
  // Adds the gradients of filters and, in the last row, biases to `sums`, [weights + 1, padded filters].
  void (*filter_gradient)(const Convolution&, const float* images, const float* d_outputs, int64_t begin, int64_t end,
                          float* sums, float* scratch);
  // `filters_t` is packed, [filters, weights].
  void (*image_gradient)(const Convolution&, const Matrix& filters_t, const float* d_outputs, int64_t begin,
                         int64_t end, float* d_images, float* scratch);
};

extern const Core kGeneric;
#ifdef RL_LNLSTM_X86
extern const Core kAvx2;
extern const Core kAvx512;
#endif

// A matrix packed for Core, in panels of `panel` columns. In each panel the rows follow one another.
inline int64_t PackedSize(int64_t rows, int64_t columns) { return rows * RoundUp(columns, kPanel); }

}  // namespace rl_lnlstm

#endif  // RL_LNLSTM_KERNEL_CORE_H_
