//! Element types, and how many bytes their rows have.

/// Element types that tensors may have.
///
/// The quantised ones (ggml's, by its names) hold blocks of elements that share their scales; a row is a whole number
/// of blocks, and no block crosses a row. What the blocks mean: [`super::blocks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

impl Dtype {
    /// Elements and bytes of the smallest unit.
    const fn block(self) -> (usize, usize) {
        match self {
            Dtype::F32 => (1, 4),
            Dtype::F16 | Dtype::Bf16 => (1, 2),
            Dtype::Q8_0 => (32, 34),
            Dtype::Q4_0 => (32, 18),
            Dtype::Q4_1 => (32, 20),
            Dtype::Q5_0 => (32, 22),
            Dtype::Q5_1 => (32, 24),
            Dtype::Q4K => (256, 144),
            Dtype::Q5K => (256, 176),
            Dtype::Q6K => (256, 210),
        }
    }

    /// Elements of the smallest unit: of a block, or one.
    pub const fn block_len(self) -> usize {
        self.block().0
    }

    /// Bytes of the smallest unit.
    pub const fn block_bytes(self) -> usize {
        self.block().1
    }

    pub const fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of a row. Panics where `cols` is no whole number of blocks: callers check untrusted shapes first.
    pub fn row_bytes(self, cols: usize) -> usize {
        let (len, bytes) = self.block();
        assert!(cols.is_multiple_of(len), "a row of {cols} elements is no whole number of {self} blocks");
        cols / len * bytes
    }
}

/// As config files and checkpoints write it.
impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4_1 => "Q4_1",
            Dtype::Q5_0 => "Q5_0",
            Dtype::Q5_1 => "Q5_1",
            Dtype::Q4K => "Q4_K",
            Dtype::Q5K => "Q5_K",
            Dtype::Q6K => "Q6_K",
        })
    }
}
