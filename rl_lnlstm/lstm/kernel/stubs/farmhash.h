// See highwayhash/arch_specific.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
namespace util {
using uint128_t = std::pair<uint64_t, uint64_t>;
uint64_t Fingerprint64(const char*, size_t);
uint32_t Fingerprint32(const char*, size_t);
uint128_t Fingerprint128(const char*, size_t);
inline uint64_t Uint128Low64(const uint128_t& value) { return value.first; }
inline uint64_t Uint128High64(const uint128_t& value) { return value.second; }
}  // namespace util
namespace farmhash {
using namespace util;
}
