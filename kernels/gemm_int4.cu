// Products with weights of four bits with a minimum, and their embedding; a file for each format, so that they are compiled side by side.
#include "gemm_quant.h"

QUANT_KERNELS(int4, Int4)
