// The shim itself: that it finds the faults it is there for, says which, and serves two threads.
#include <thread>
#include "harness.h"
using namespace test;

// Its error text contains `part`.
static void expect_fault(const char* name, Dim grid, Dim block, size_t smem, int code, const char* part) {
  current_case = name;
  Buffer<float> out(256);
  const int got = try_launch(name, grid, block, smem, out.data());
  expect(got == code, "it returned " + std::to_string(got));
  expect(strstr(garrick_shim_error(), part), std::string("its error is: ") + garrick_shim_error());
}

static void test_threads() {
  current_case = "two threads launch at a time";
  auto work = [](int value, bool* ok) {
    *ok = true;
    for (int i = 0; i < 50; ++i) {
      std::vector<float> x(100, float(value)), out(100);
      std::vector<uint32_t> rows(1, 0);
      float *o = out.data(), *from = x.data();
      uint32_t* r = rows.data();
      int width = 100;
      void* args[] = {&o, &from, &r, &width};
      const uint32_t grid[] = {1, 1, 1}, block[] = {256, 1, 1};
      *ok &= garrick_shim_launch("gather_rows_f32", grid, block, 0, args, 0) == 0 && out == x;
      *ok &= garrick_shim_launch("no such kernel", grid, block, 0, args, 0) == GARRICK_SHIM_UNKNOWN_KERNEL;
    }
  };
  bool ok[2];
  std::thread a(work, 1, &ok[0]), b(work, 2, &ok[1]);
  a.join();
  b.join();
  expect(ok[0] && ok[1], "a launch went wrong");
}

static void all() {
  expect_fault("nothing of this name", {1}, {32}, 0, GARRICK_SHIM_UNKNOWN_KERNEL, "nothing of this name");
  expect_fault("fault_none", {1}, {65}, 0, GARRICK_SHIM_BAD_LAUNCH, "at most 64 threads");
  expect_fault("fault_none", {1, 0}, {64}, 0, GARRICK_SHIM_BAD_LAUNCH, "grid (1,0,1)");
  expect_fault("fault_none", {1, 70000}, {64}, 0, GARRICK_SHIM_BAD_LAUNCH, "grid");
  expect_fault("fault_none", {1}, {64}, 100 << 10, GARRICK_SHIM_BAD_LAUNCH, "shared memory");
  expect_fault("fault_none", {1}, {64}, 0, GARRICK_SHIM_OK, "");
  expect_fault("fault_barrier_in_branch", {1}, {64}, 0, GARRICK_SHIM_FAULT, "deadlock");
  expect_fault("fault_barriers_of_two_lines", {1}, {64}, 0, GARRICK_SHIM_FAULT, "different lines");
  expect_fault("fault_shuffle_in_branch", {2}, {64}, 0, GARRICK_SHIM_FAULT, "deadlock");
  expect_fault("fault_shuffle_outside_mask", {1}, {64}, 0, GARRICK_SHIM_FAULT, "outside the mask");
  expect_fault("fault_lane_not_in_mask", {1}, {64}, 0, GARRICK_SHIM_FAULT, "not in its own mask");
  expect_fault("fault_copy_misaligned", {1}, {64}, 512, GARRICK_SHIM_FAULT, "multiple of 16");
  expect_fault("fault_vector_misaligned", {1}, {64}, 0, GARRICK_SHIM_FAULT, "not aligned");
  expect_fault("fault_ldmatrix_misaligned", {1}, {64}, 512, GARRICK_SHIM_FAULT, "ldmatrix");
  expect_fault("fault_none", {1}, {64}, 0, GARRICK_SHIM_OK, "");
  Buffer<float> out(64);
  current_case = "what is not there yet is not a number";
  launch("late_copy", {1}, {32}, 512, out.data());
  for (int i = 0; i < 32; ++i) expect(std::isnan(out[i]) && out[32 + i] == 0, "a copy came before its wait");
  launch("unwritten_shared", {2}, {32}, 128, out.data());
  for (int i = 0; i < 64; ++i) expect(std::isnan(out[i]), "shared memory has a value at the start of a block");
  test_threads();
}
int main(int argc, char** argv) { return run(argc, argv, all); }
