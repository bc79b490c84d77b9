// The kernels by name. KERNEL in dev.h makes an entry beside each definition, so none can be forgotten.
#pragma once
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>
#include "block.h"

namespace shim {
struct Kernel {
  const char* name;
  unsigned max_threads;
  int num_params;
  std::function<std::function<void()>(void** args)> bind;  // one thread's work, the arguments copied
};
void add_kernel(Kernel kernel);

template <class... P, size_t... I>
std::function<std::function<void()>(void**)> binder(void (*f)(P...), std::index_sequence<I...>) {
  return [f](void** args) -> std::function<void()> {
    return [f, values = std::make_tuple(*static_cast<std::decay_t<P>*>(args[I])...)] { std::apply(f, values); };
  };
}
struct Registration {
  template <class... P> Registration(const char* name, unsigned max_threads, void (*f)(P...)) {
    add_kernel({name, max_threads, sizeof...(P), binder(f, std::index_sequence_for<P...>{})});
  }
};
}  // namespace shim
