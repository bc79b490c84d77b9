// Attention over spans of many forms: groups, borders of tiles, blocks and splits, windows.
#include "attention_twin.h"
using namespace test;

static void all() {
  // Groups of every size, some of which divide no tile; at the borders of blocks and tiles.
  for (int group = 1; group <= 17; ++group)
    test_tensor_cores<bf16>({group, 1, 64}, {0, 0}, {{group % 2 ? 15 : 62, 3}, {16 * group, 1}});
  test_tensor_cores<bf16>({40, 2, 64}, {0, 0}, {{3, 2}});
  // A prompt from its start, longer than a tile of queries; a context of three splits; sharp and flat softmax.
  test_tensor_cores<bf16>({2, 2, 64}, {0, 0}, {{0, 70}}, 8);
  test_tensor_cores<bf16>({3, 1, 64}, {0, 0}, {{1020, 12}, {511, 2}, {512, 1}}, 0.01f);
  test_tensor_cores<bf16>({2, 1, 256}, {30, 0}, {{505, 12}});
  // Windows that end in, before and after blocks and splits, and one of a single position.
  for (int window : {1, 16, 17, 64, 100, 600})
    test_tensor_cores<bf16>({2, 1, 64}, {0, window}, {{window - 1, 3}, {1022, 5}});
}
int main(int argc, char** argv) { return run(argc, argv, all); }
