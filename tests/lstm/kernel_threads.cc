// The kernel's threads under ThreadSanitizer, which `make sanitize` builds this with: TensorFlow's own threads are not
// compiled for it, and so these are. Several callers share them, as under XLA. Exits with 1 if rows differ from those
// of a single thread; a data race makes ThreadSanitizer exit with 66.
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "../../rl_lnlstm/lstm/kernel/launch.h"
#include "tensorflow/core/platform/threadpool_interface.h"

namespace {

using rl_lnlstm::Sizes;
using Floats = std::vector<float>;

class Pool : public tensorflow::thread::ThreadPoolInterface {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }

  ~Pool() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void Schedule(std::function<void()> task) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_one();
  }

  int NumThreads() const override { return threads_.size(); }
  int CurrentThreadId() const override { return -1; }

 private:
  void Work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return closed_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

Floats Random(int64_t size, int seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 0.5f);
  Floats values(size);
  for (float& value : values) value = normal(generator);
  return values;
}

// What a forward and a backward pass compute for each row of the batch.
std::vector<Floats> Rows(tensorflow::thread::ThreadPool* threads, const Sizes& s) {
  const int64_t units = s.units, gates = 4 * units, width = s.width(), steps = s.steps(), states = s.batch * units;
  const Floats kernel = Random(s.features * gates, 1), recurrent = Random(units * gates, 2), gains = Random(gates, 3);
  const Floats inputs = Random(steps * s.features, 4), initial = Random(states, 5), d_outputs = Random(steps * units, 7);
  Floats outputs(steps * units), h(states), c(states), x_hat(steps * 4 * width), r_hat(steps * 4 * width);
  Floats cells(steps * width), x_scale(steps), r_scale(steps), c_scale(steps);
  Floats d_product(steps * 4 * width), d_h0(states), d_c0(states), d_kernel(s.features * gates);
  Floats d_recurrent_kernel(units * gates), d_kernel_gamma(gates), d_recurrent_gamma(gates), d_bias(gates);
  Floats d_cell_gamma(units), d_cell_beta(units);

  const rl_lnlstm::Weights weights{kernel.data(), recurrent.data(), gains.data(), gains.data(),
                                   gains.data(),  gains.data(),     gains.data()};
  rl_lnlstm::Forward forward{};
  forward.sizes = s;
  forward.inputs = inputs.data();
  forward.h0 = forward.c0 = initial.data();
  forward.outputs = outputs.data();
  forward.h = h.data();
  forward.c = c.data();
  forward.x_hat = x_hat.data();
  forward.r_hat = r_hat.data();
  forward.cells = cells.data();
  forward.x_scale = x_scale.data();
  forward.r_scale = r_scale.data();
  forward.c_scale = c_scale.data();

  rl_lnlstm::Backward backward{};
  backward.sizes = s;
  backward.inputs = inputs.data();
  backward.h0 = backward.c0 = backward.d_h = backward.d_c = initial.data();
  backward.outputs = outputs.data();
  backward.x_hat = x_hat.data();
  backward.r_hat = r_hat.data();
  backward.cells = cells.data();
  backward.x_scale = x_scale.data();
  backward.r_scale = r_scale.data();
  backward.c_scale = c_scale.data();
  backward.d_outputs = d_outputs.data();
  backward.d_product = d_product.data();
  backward.d_h0 = d_h0.data();
  backward.d_c0 = d_c0.data();

  const rl_lnlstm::WeightGradients gradients{d_kernel.data(), d_recurrent_kernel.data(), d_kernel_gamma.data(),
                                             d_recurrent_gamma.data(), d_bias.data(), d_cell_gamma.data(),
                                             d_cell_beta.data()};
  const bool done = rl_lnlstm::LaunchForward(threads, weights, forward).ok() &&
                    rl_lnlstm::LaunchBackward(threads, weights, backward, gradients).ok();
  if (!done) return {};
  return {outputs, h, c, d_product, d_h0, d_c0};
}

}  // namespace

int main() {
  Pool one(1), four(4);
  tensorflow::thread::ThreadPool alone(&one), shared(&four);
  int failures = 0;
  // Work enough for two, three and four threads.
  for (const Sizes& sizes : {Sizes{100, 16, 30, 24, true}, Sizes{600, 3, 20, 40, false}, Sizes{400, 9, 30, 33, true}}) {
    const std::vector<Floats> expected = Rows(&alone, sizes);
    std::vector<std::vector<Floats>> got(3);
    std::vector<std::thread> callers;
    for (std::vector<Floats>& result : got) callers.emplace_back([&] { result = Rows(&shared, sizes); });
    for (std::thread& caller : callers) caller.join();
    for (const std::vector<Floats>& result : got) failures += expected.empty() || result != expected;
  }
  const int64_t without_limit = rl_lnlstm::Blocks(&shared, 1000, 1e12).count();
  const int64_t at_most_ten = rl_lnlstm::Blocks(&shared, 1000, 1e12, 10).count();
  const int64_t at_least_threads = rl_lnlstm::Blocks(&shared, 1000, 1e12, 1).count();
  if (without_limit != 16 || at_most_ten != 10 || at_least_threads != 4) {
    std::printf("%d, %d, %d blocks\n", int(without_limit), int(at_most_ten), int(at_least_threads));
    ++failures;
  }
  std::printf("%d of 9 calls differ from those of a single thread\n", failures);
  return failures != 0;
}
