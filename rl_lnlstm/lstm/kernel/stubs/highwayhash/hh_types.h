// See arch_specific.h.
#pragma once
#include <cstdint>
namespace highwayhash {
using HHKey = uint64_t[4];
using HHResult64 = uint64_t;
}  // namespace highwayhash
