// The vector code for AVX2.
#define RL_LNLSTM_X86
#define RL_LANES 8
#define RL_ROWS 6
#define RL_NAMESPACE avx2
#define RL_CORE kAvx2
#define RL_NAME "AVX2"
#include "core.inc"
