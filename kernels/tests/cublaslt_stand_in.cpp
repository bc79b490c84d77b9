// Stands in for libcublasLt.so.13 in tests of the program's binding: the functions it calls, over matrices in the host's
// memory. Looks at everything it is handed and multiplies as the layouts say, so that a wrong shape, transpose or leading
// dimension is found out. Numbers are those of the cuBLAS documentation, written down apart from the binding's.
//
// What a thread has done and what went wrong on it is that thread's alone: stand_in_* ask for it.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { R_32F = 0, R_16BF = 14, R_8F_E4M3 = 28 };
constexpr int COMPUTE_32F = 68, OP_N = 0, OP_T = 1;
constexpr int OUTER_VEC_32F = 3;
constexpr uint64_t ALGORITHM = 0x616c676f72697468;

struct Handle { int alive; };
struct Description { int compute, scale, transposed[2], scale_mode[2]; const float* scales[2]; };
struct Layout { int type; uint64_t rows, cols; int64_t stride; };
struct Preference { uint64_t workspace; uint32_t reduction, alignment[4]; };
struct Algorithm { uint64_t magic, m, n, k, type, alignment, workspace, unused; };
struct Choice { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };

thread_local char complaint[256];
thread_local int alive, chosen, multiplied, next_create, next_choose, next_multiply;

int wrong(const char* what) {
    if (!complaint[0]) snprintf(complaint, sizeof complaint, "%s", what);
    return INVALID_VALUE;
}

int taken(int& status) {
    const int now = status;
    status = 0;
    return now;
}

template <class T> int made(T** to, T value) {
    *to = new T(value);
    alive++;
    return SUCCESS;
}

template <class T> int gone(T* object) {
    delete object;
    alive--;
    return SUCCESS;
}

float value(const void* matrix, int type, uint64_t at) {
    if (type == R_32F) return static_cast<const float*>(matrix)[at];
    if (type == R_8F_E4M3) {
        const int byte = static_cast<const uint8_t*>(matrix)[at], exponent = byte >> 3 & 15, fraction = byte & 7;
        const float size = exponent ? ldexpf(float(8 + fraction), exponent - 10) : ldexpf(float(fraction), -9);
        return byte & 128 ? -size : size;
    }
    const uint32_t bits = uint32_t(static_cast<const uint16_t*>(matrix)[at]) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

void put(void* matrix, int type, uint64_t at, float f) {
    if (type == R_32F) {
        static_cast<float*>(matrix)[at] = f;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &f, 4);
    bits += 0x7fff + (bits >> 16 & 1);
    static_cast<uint16_t*>(matrix)[at] = uint16_t(bits >> 16);
}

// An element of a matrix or of its transpose; columns lie one after the other.
struct View {
    const Layout& layout;
    bool transposed;
    uint64_t rows() const { return transposed ? layout.cols : layout.rows; }
    uint64_t cols() const { return transposed ? layout.rows : layout.cols; }
    uint64_t at(uint64_t row, uint64_t col) const {
        return transposed ? col + row * layout.stride : row + col * layout.stride;
    }
};

const char* misfit(const Description& d, const Layout& a, const Layout& b, const Layout& c, const Layout& out) {
    if (d.compute != COMPUTE_32F || d.scale != R_32F) return "sums are float32";
    for (const Layout* layout : {&a, &b, &c, &out})
        if (layout->stride < int64_t(layout->rows) || !layout->rows || !layout->cols) return "columns overlap, or there are none";
    const View left{a, d.transposed[0] == OP_T}, right{b, d.transposed[1] == OP_T};
    if (left.cols() != right.rows()) return "the inner dimensions differ";
    if (left.rows() != out.rows || right.cols() != out.cols) return "the product's shape is another";
    if (c.rows != out.rows || c.cols != out.cols || c.type != out.type) return "C is not as D";
    if (a.type != b.type || (a.type != R_16BF && a.type != R_8F_E4M3)) return "factors are both bfloat16, or both E4M3";
    for (int i = 0; i < 2; i++) {
        if (a.type == R_8F_E4M3 ? d.scale_mode[i] != OUTER_VEC_32F || !d.scales[i] : d.scale_mode[i] || d.scales[i])
            return "E4M3 has a scale for each row and column, and nothing else has any";
        if (uintptr_t(d.scales[i]) % 4) return "a scale is not aligned";
    }
    if (a.type == R_8F_E4M3 && (d.transposed[0] != OP_T || d.transposed[1] != OP_N)) return "E4M3 is multiplied by rows";
    return nullptr;
}

}  // namespace

API const char* stand_in_complaint() { return complaint; }
API int stand_in_alive() { return alive; }
API int stand_in_chosen() { return chosen; }
API int stand_in_multiplied() { return multiplied; }
API void stand_in_fail_create(int status) { next_create = status; }
API void stand_in_fail_choose(int status) { next_choose = status; }
API void stand_in_fail_multiply(int status) { next_multiply = status; }

API size_t cublasLtGetVersion() { return 130002; }

API int cublasLtCreate(Handle** to) {
    const int status = taken(next_create);
    return status ? status : made(to, Handle{1});
}
API int cublasLtDestroy(Handle* handle) { return gone(handle); }

API int cublasLtMatmulDescCreate(Description** to, int compute, int scale) {
    return made(to, Description{compute, scale, {OP_N, OP_N}, {0, 0}, {nullptr, nullptr}});
}
API int cublasLtMatmulDescSetAttribute(Description* d, int attribute, const void* from, size_t bytes) {
    void* to = attribute == 3 || attribute == 4 ? static_cast<void*>(&d->transposed[attribute - 3])
        : attribute == 17 || attribute == 18 ? static_cast<void*>(&d->scales[attribute - 17])
        : attribute == 31 || attribute == 32 ? static_cast<void*>(&d->scale_mode[attribute - 31]) : nullptr;
    if (!to || bytes != (attribute == 17 || attribute == 18 ? 8 : 4)) return wrong("no such attribute, or of another size");
    memcpy(to, from, bytes);
    return SUCCESS;
}
API int cublasLtMatmulDescDestroy(Description* d) { return gone(d); }

API int cublasLtMatrixLayoutCreate(Layout** to, int type, uint64_t rows, uint64_t cols, int64_t stride) {
    return made(to, Layout{type, rows, cols, stride});
}
API int cublasLtMatrixLayoutDestroy(Layout* layout) { return gone(layout); }

API int cublasLtMatmulPreferenceCreate(Preference** to) { return made(to, Preference{0, 7, {256, 256, 256, 256}}); }
API int cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* from, size_t bytes) {
    void* to = attribute == 1 ? static_cast<void*>(&p->workspace) : attribute == 3 ? &p->reduction
        : attribute >= 5 && attribute <= 8 ? &p->alignment[attribute - 5] : nullptr;
    if (!to || bytes != (attribute == 1 ? 8 : 4)) return wrong("no such preference, or of another size");
    memcpy(to, from, bytes);
    return SUCCESS;
}
API int cublasLtMatmulPreferenceDestroy(Preference* p) { return gone(p); }

API int cublasLtMatmulAlgoGetHeuristic(Handle*, Description* d, Layout* a, Layout* b, Layout* c, Layout* out, Preference* p,
                                       int wanted, Choice* choices, int* found) {
    if (const int status = taken(next_choose)) return status;
    if (const char* what = misfit(*d, *a, *b, *c, *out)) return wrong(what);
    if (wanted != 1) return wrong("one choice is wanted");
    if (p->reduction != 2) return wrong("parts of sums are added in float32, and never in place");
    if (p->alignment[1] != p->alignment[0] || p->alignment[2] != p->alignment[0] || p->alignment[3] != p->alignment[0])
        return wrong("one alignment for all");
    chosen++;
    *found = 0;
    // Like the real one, which may have nothing.
    if (a->rows % 8 || (a->type == R_8F_E4M3 && (a->rows % 16 || a->cols % 16))) return NOT_SUPPORTED;
    *found = 1;
    choices[0] = Choice{{ALGORITHM, b->cols, a->cols, a->rows, uint64_t(out->type), p->alignment[0], p->workspace, 0},
                        size_t(p->workspace), SUCCESS, 1, {}};
    return SUCCESS;
}

API int cublasLtMatmul(Handle* handle, Description* d, const float* alpha, const void* a, Layout* a_layout, const void* b,
                       Layout* b_layout, const float* beta, const void* c, Layout* c_layout, void* out, Layout* out_layout,
                       const Algorithm* algorithm, char* workspace, size_t workspace_bytes, void* stream) {
    if (const int status = taken(next_multiply)) return status;
    if (const char* what = misfit(*d, *a_layout, *b_layout, *c_layout, *out_layout)) return wrong(what);
    const uint64_t m = b_layout->cols, n = a_layout->cols, k = a_layout->rows;
    if (!handle->alive || stream || c != out) return wrong("another handle, stream or C");
    if (algorithm->magic != ALGORITHM || algorithm->n != n || algorithm->k != k || algorithm->m < m ||
        algorithm->type != uint64_t(out_layout->type))
        return wrong("chosen for another shape");
    for (const void* matrix : {a, b, c})
        if (uintptr_t(matrix) % algorithm->alignment) return wrong("less aligned than was said");
    if (workspace_bytes < algorithm->workspace || uintptr_t(workspace) % 256) return wrong("too small a workspace");
    workspace[0] = workspace[workspace_bytes - 1] = 1;
    const View left{*a_layout, d->transposed[0] == OP_T}, right{*b_layout, d->transposed[1] == OP_T};
    const View to{*out_layout, false};
    for (uint64_t col = 0; col < to.cols(); col++)
        for (uint64_t row = 0; row < to.rows(); row++) {
            float sum = 0;
            for (uint64_t i = 0; i < left.cols(); i++)
                sum += value(a, a_layout->type, left.at(row, i)) * value(b, b_layout->type, right.at(i, col));
            if (d->scales[0]) sum *= d->scales[0][row] * d->scales[1][col];
            sum *= *alpha;
            if (*beta != 0) sum += *beta * value(c, c_layout->type, to.at(row, col));
            put(out, out_layout->type, to.at(row, col), sum);
        }
    multiplied++;
    return SUCCESS;
}
