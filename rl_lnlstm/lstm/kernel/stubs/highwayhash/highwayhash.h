// See arch_specific.h.
#pragma once
#include "hh_types.h"
namespace highwayhash {
template <int>
class HighwayHashCatT {};
}  // namespace highwayhash
