// What this CPU has, of what the kernels can use.

#include "common.h"
#include "tile_shapes.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#if MATRIX_UNITS
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// As orcinus_best_level(), by vectors alone.
int64_t level_of_vectors() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return 1;
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
#else
    return 0;
#endif
}

}  // namespace

namespace orcinus {

bool has_avx_vnni() {
#if HAS_AVX_VNNI
    unsigned a, b, c, d;
    return level_of_vectors() >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4) != 0;
#else
    return false;
#endif
}

bool has_arm_dot() {
#if defined(__aarch64__) && defined(__linux__)
    const unsigned long asimddp = 1ul << 20;  // HWCAP_ASIMDDP
    return (getauxval(AT_HWCAP) & asimddp) != 0;
#else
    return false;
#endif
}

}  // namespace orcinus

extern "C" {

// Whether this CPU has matrix units, and the system lets this process use them: it must be asked, and may have no room for
// their registers on some stack of a signal handler.
EXPORT int64_t orcinus_has_matrix_units() {
#if MATRIX_UNITS
    const unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24, amx_int8 = 1u << 25, wanted = amx_bf16 | amx_tile | amx_int8;
    const long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    if (level_of_vectors() < 3 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & wanted) != wanted) return 0;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return 0;
#endif
}

// The best instruction set of this CPU: 0 generic, 1 AVX2, 2 AVX-512, 3 AVX-512 with bfloat16, 4 that and matrix units.
EXPORT int64_t orcinus_best_level() { return orcinus_has_matrix_units() ? 4 : level_of_vectors(); }
}
