// A stack to run a CUDA thread on, and the switch between it and the scheduler.
//
// Owns stacks and switching only; who runs next is block.h's. On x86-64 a switch saves the callee-saved registers alone
// (System V ABI), about ten times faster than swapcontext, which serves elsewhere.
#pragma once
#include <cstddef>
#include <cstdint>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace shim {
constexpr size_t STACK_BYTES = 64 << 10;

#if defined(__x86_64__)
struct Context { void* sp = nullptr; };

__attribute__((naked, noinline)) inline void swap_stack(void**, void*) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
inline void switch_to(Context& from, Context& to) { swap_stack(&from.sp, to.sp); }
// The first switch to `context` calls `entry`, which must not return.
inline void prepare(Context& context, char* stack, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + STACK_BYTES) & ~uintptr_t(15));
  *--sp = nullptr;
  *--sp = reinterpret_cast<void*>(entry);
  sp -= 6;
  context.sp = sp;
}
#else
struct Context { ucontext_t uc; };
inline void switch_to(Context& from, Context& to) { swapcontext(&from.uc, &to.uc); }
inline void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.uc);
  context.uc.uc_stack.ss_sp = stack;
  context.uc.uc_stack.ss_size = STACK_BYTES;
  context.uc.uc_link = nullptr;
  makecontext(&context.uc, entry, 0);
}
#endif
}  // namespace shim
