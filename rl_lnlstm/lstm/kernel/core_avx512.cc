// The vector code for AVX-512.
#define RL_LNLSTM_X86
#define RL_LANES 16
#define RL_ROWS 12
#define RL_NAMESPACE avx512
#define RL_CORE kAvx512
#define RL_NAME "AVX-512"
#include "core.inc"
