// All that needs TensorFlow's headers, as one unit: to compile these takes longer than all that follows.
#include "act.cc"
#include "launch.cc"
#include "op.cc"
#ifdef RL_LNLSTM_XLA
#include "xla.cc"
#endif
