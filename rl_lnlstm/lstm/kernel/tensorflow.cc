// Everything that needs TensorFlow's headers, except for XLA, as one unit, because compiling the headers takes longest.
#include "act.cc"
#include "convolution.cc"
#include "convolution_interface.cc"
#include "launch.cc"
#include "op.cc"
#include "pixels.cc"
