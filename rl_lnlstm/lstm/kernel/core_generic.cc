// The vector code for all other processors.
#define RL_LANES 4
#define RL_ROWS 4
#define RL_NAMESPACE generic
#define RL_CORE kGeneric
#define RL_NAME "portable"
#include "core.inc"
