// Products with weights of eight bits, and their embedding; a file for each format, so that they are compiled side by side.
#include "gemm_quant.h"

QUANT_KERNELS(int8, Int8)
