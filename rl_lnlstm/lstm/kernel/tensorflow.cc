// All that needs TensorFlow's headers but XLA's part, as one unit: to compile these takes longer than all that follows.
#include "act.cc"
#include "launch.cc"
#include "op.cc"
