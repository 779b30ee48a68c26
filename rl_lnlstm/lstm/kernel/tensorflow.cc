// Everything that needs TensorFlow's headers, except for XLA, as one unit, because compiling the headers takes longest.
#include "act.cc"
#include "filter_gradient.cc"
#include "launch.cc"
#include "op.cc"
